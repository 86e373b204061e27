"""One folder per product; see README.md here."""

DEFAULT_PRODUCT = "segments"
"""What the demo shows."""

DEFAULT_KIND = "instance"
"""What the self-training loop teaches where no kind is named."""
