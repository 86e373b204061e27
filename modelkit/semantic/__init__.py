"""Semantic segmentation models. Importing this package registers them."""
