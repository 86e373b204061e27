"""The product `landmarks`: objects with points on them, as landmark, pose and face models find them."""

from tasks.products.landmarks.product import PRODUCT

__all__ = ["PRODUCT"]
