"""Training on data in stores: what is trained on, the recipe, the workers of Ray Train, and what they leave."""
