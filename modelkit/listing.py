"""What the registry says of its models, and the catalogue that is written from it (``python -m modelkit.listing``)."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection

import torch

from modelkit.catalogue import CATALOGUE, ModelInfo
from modelkit.published import find_published
from modelkit.registry import count_parameters, create_model, find_model, model_names, source_names
from modelkit.video import VideoModel


def registered_models(without: Collection[str] = ()) -> list[ModelInfo]:
    """Every model that can be created, but those that are known already."""
    infos = []
    for name in (each for each in model_names() if each not in without):
        entry = find_model(name)
        count = _count(name, entry.build)
        infos.append(ModelInfo(name, entry.architecture, entry.kind, count, False, entry.weights))
    return infos


@functools.cache
def _count(name: str, build: object) -> int:
    """Parameters of the default config; ``build`` tells a name registered anew from the one before."""
    return count_parameters(name)


def catalogue_text() -> str:
    """What ``catalogue.json`` must hold while no other package registers models."""
    models = {}
    for info in registered_models():
        with torch.device("meta"):
            is_video = isinstance(create_model(info.name), VideoModel)
        models[info.name] = {
            "architecture": info.architecture,
            "kind": info.kind,
            "num_parameters": info.num_parameters,
            "published": {weights: find_published(info.name, weights).url for weights in info.weights},
            "is_video": is_video,
        }
    return json.dumps({"sources": source_names(), "models": models}, indent=1) + "\n"


if __name__ == "__main__":
    CATALOGUE.write_text(catalogue_text(), "utf-8")
