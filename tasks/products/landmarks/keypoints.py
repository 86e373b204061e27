"""The kind `keypoints`: points on objects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from infra.errors import UsageError
from modelkit import ClassInfo
from modelkit.registry import find_model
from tasks.product import Kind
from tasks.products.landmarks import digitscape, photographs
from tasks.products.landmarks.judging import judge
from tasks.products.landmarks.learning import pieces_of, target_of
from tasks.products.landmarks.loop_points import POINTS
from tasks.products.landmarks.remarks import point_remarks
from tasks.products.landmarks.suspects import point_suspects
from tasks.training.inspection import Inspection

_MIRROR = "horizontal_flip"


def fitted(seen: Inspection, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What labels say of any recipe: how many points there are, what they are, and which change places in a mirror.

    Without pairs, or with a model that has no place for them, nobody knows what a mirror image shows, so pictures are
    not mirrored then.

    Raises:
        UsageError: labels without points, or a model that has none to choose.
    """
    points = seen.points
    if points is None:
        raise UsageError(
            "no labelled object has points, so no model of points can learn from these labels",
            hint="`visionmill inspect LABELLED` shows what they are for",
        )
    config = _with_points(recipe["architecture"], recipe["config"], len(points), [list(p) for p in points.flip_pairs])
    if "num_classes" in _options(recipe["architecture"]):
        config["num_classes"] = max(each.id for each in seen.classes) + 1
    may_be_mirrored = points.flip_pairs and "flip_pairs" in _options(recipe["architecture"])
    noise = {} if may_be_mirrored else {name: _unmirrored(recipe[name]) for name in ("labelled", "unlabelled")}
    return {"config": config, "points": points.to_json(), **noise}


def _with_points(architecture: str, config: Mapping[str, Any], count: int, pairs: list[list[int]]) -> dict[str, Any]:
    options = _options(architecture)
    if "num_keypoints" in options:
        mirrored = {"flip_pairs": pairs} if "flip_pairs" in options else {}
        return {**config, "num_keypoints": count, **mirrored}
    if architecture == "keypoint_rcnn":
        heads = config.get("heads", {})
        return {**config, "heads": {**heads, "keypoint": {**heads.get("keypoint", {}), "num_keypoints": count}}}
    raise UsageError(
        f"{architecture} cannot be trained for points of one's own",
        hint="Its function needs an option num_keypoints, as that of heatmap_landmarker has one.",
    )


def _options(architecture: str) -> set[str]:
    return set(inspect.signature(find_model(architecture).build).parameters)


def _unmirrored(noise: Mapping[str, Any]) -> dict[str, Any]:
    return {**noise, "augmentation": [each for each in noise["augmentation"] if each["name"] != _MIRROR]}


def _no_counts(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """Top-down models do not tell classes apart; what others need, ``fitted`` says."""
    return {}


KIND = Kind(
    name="keypoints",
    product="landmarks",
    target_of=target_of,
    pieces_of=pieces_of,
    judge=judge,
    recipes={
        "digitscape_heatmap": digitscape.heatmap,
        "digitscape_coordinate": digitscape.coordinate,
        "digitscape_hourglass": digitscape.hourglass,
        "digitscape_keypoint_rcnn": digitscape.keypoint_rcnn,
        "digitscape_retinaface": digitscape.retinaface,
        "digitscape_centernet": digitscape.centernet,
    },
    default_recipe="heatmap_landmarker",
    class_counts=_no_counts,
    suits=lambda seen: seen.points is not None and seen.with_points > 0.5,
    derived=photographs.keypoints,
    fitted=fitted,
    remarks=point_remarks,
    suspects=point_suspects,
    words={"auc": "AUC", "pck": "PCK", "nme": "NME", "failure_rate": "failure rate"},
    loop=POINTS,
)
