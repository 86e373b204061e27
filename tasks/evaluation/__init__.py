"""Judging models on labelled data."""
