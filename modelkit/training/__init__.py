"""Training: recipes, data, loop, checkpoints; a run that was stopped and resumed equals one that was not."""
