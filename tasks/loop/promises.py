"""What a loop promises unless it is asked for something else."""

GEOMETRY_PRECISION = 0.80
"""Of boxes and masks of accepted objects."""
