"""The product `segments`: what segmentation and detection models find."""

from __future__ import annotations

from tasks.product import offer_kinds

KINDS = {name: f"{__name__}.{name}" for name in ("detection", "instance", "panoptic", "semantic")}
offer_kinds(KINDS)
