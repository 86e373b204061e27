"""Models of Hugging Face transformers: ``modelkit.load("hf:LOCATION")``. Importing this registers them.

transformers itself, an extra, is imported when such a model is built.
"""

from modelkit.huggingface.checkpoints import load_huggingface, transform_of
from modelkit.huggingface.models import (
    huggingface_instance,
    huggingface_keypoints,
    huggingface_panoptic,
    huggingface_semantic,
)
from modelkit.huggingface.network import HuggingFaceNetwork
from modelkit.huggingface.poses import PoseModel
from modelkit.huggingface.queries import QuerySegmentor
from modelkit.huggingface.query_masks import QueryDisjoint, QueryInstances, QueryMasks, QueryPanoptic, QuerySemantic

__all__ = [
    "HuggingFaceNetwork",
    "PoseModel",
    "QueryDisjoint",
    "QueryInstances",
    "QueryMasks",
    "QueryPanoptic",
    "QuerySegmentor",
    "QuerySemantic",
    "huggingface_instance",
    "huggingface_keypoints",
    "huggingface_panoptic",
    "huggingface_semantic",
    "load_huggingface",
    "transform_of",
]
