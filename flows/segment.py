"""Where deployments made before there was :mod:`flows.job` find their flow: ``flows/segment.py:segment_dataset``."""

from flows.job import segment_dataset

__all__ = ["segment_dataset"]
