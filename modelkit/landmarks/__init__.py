"""Landmark models: points on objects."""
