"""One folder per product; see README.md here."""

DEFAULT = "segments"
"""See :func:`tasks.product.default_product`."""
