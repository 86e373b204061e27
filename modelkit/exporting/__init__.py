"""Trained models as files that other programs run: graphs that take an image and give results in source pixels."""
