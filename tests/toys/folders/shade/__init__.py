"""A product as a folder: how light an image is. It stands as one below ``tasks/products`` would, a file per part."""

from tasks.products.shade.product import PRODUCT

__all__ = ["PRODUCT"]
