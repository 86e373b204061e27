"""The product `segments`: what segmentation and detection models find."""

from tasks.products.segments.product import PRODUCT

__all__ = ["PRODUCT"]
