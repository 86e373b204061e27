"""What users get through the ``Predictor`` beside what the models' own systems give on the same picture.

The tests keep to small pictures; ``python -m benchmarks.parity`` measures all names at full size.
"""
