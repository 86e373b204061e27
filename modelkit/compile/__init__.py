"""How the dense part of a model is run: eager, compiled, in which number format."""
