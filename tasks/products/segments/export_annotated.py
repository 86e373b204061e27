"""What was found, drawn as the report draws it: a JPEG for each image and frame, or an MP4 for each video."""

from __future__ import annotations

from infra.store import Store
from tasks.output.views import Views
from tasks.products.segments.overlay import overlay
from tasks.report import export_annotated


def write_images(views: Views, store: Store) -> tuple[int, int]:
    """See :func:`tasks.report.export_annotated.write_images`; returns (instances, files)."""
    return export_annotated.write_images(views, store, overlay)


def write_videos(views: Views, store: Store) -> tuple[int, int]:
    """See :func:`tasks.report.export_annotated.write_videos`; returns (instances, files)."""
    return export_annotated.write_videos(views, store, overlay)
