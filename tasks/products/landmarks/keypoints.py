"""The kind `keypoints`: points on objects; of models that tell objects by points alone (corners), their boxes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from infra.errors import UsageError
from modelkit import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.registry import find_model
from tasks.product import Kind
from tasks.products.landmarks import digitscape, photographs
from tasks.products.landmarks.judged_panels import judged_panels
from tasks.products.landmarks.judging import judge
from tasks.products.landmarks.learning import pieces_of, target_of
from tasks.products.landmarks.loop_points import POINTS
from tasks.products.landmarks.remarks import point_remarks
from tasks.products.landmarks.surface_learning import with_parts
from tasks.products.landmarks.suspects import point_suspects
from tasks.training.inspection import Inspection

_MIRROR = "horizontal_flip"
_ALWAYS_0 = (Literal[0], "Literal[0]")  # an annotation is a text where its module says that they are not evaluated


def fitted(seen: Inspection, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What labels say of any recipe: how many points there are, what they are, and which change places in a mirror.

    Without pairs, or with a model that has no place for them, nobody knows what a mirror image shows, so pictures are
    not mirrored then. A model without points learns boxes, whatever points there are.

    Raises:
        UsageError: labels without points for a model that has some, or a model that has none to choose.
    """
    points, architecture, config = seen.points, recipe["architecture"], dict(recipe["config"])
    if "num_classes" in _options(architecture):
        config["num_classes"] = max(each.id for each in seen.classes) + 1
    if "surface" in _heads(architecture, config):
        return _with_surface(seen, recipe, config)
    if finds_boxes_alone(architecture, config, points):
        return {"config": {**config, "num_keypoints": 0}, "points": {}}
    if points is None:
        raise UsageError(
            "no labelled object has points, so no model of points can learn from these labels",
            hint="`visionmill inspect LABELLED` shows what they are for",
        )
    config = _with_points(architecture, config, len(points), [list(p) for p in points.flip_pairs])
    may_be_mirrored = points.flip_pairs and "flip_pairs" in _options(architecture)
    noise = {} if may_be_mirrored else {name: _unmirrored(recipe[name]) for name in ("labelled", "unlabelled")}
    return {"config": config, "points": points.to_json(), **noise}


def _heads(architecture: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of a two-stage model, by name, as the config states them or else its function does."""
    model = find_model(architecture)
    option = inspect.signature(model.build).parameters.get("heads")
    usual = {} if option is None else model.defaults.get("heads", option.default)
    return {**usual, **config.get("heads", {})}


def _with_surface(seen: Inspection, recipe: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Of models that tell points of surfaces: as many parts as the labels have. Nobody knows how to mirror them."""
    if not seen.surface_parts:
        raise UsageError(
            f"no labelled object has points of its surface, which {recipe['architecture']} learns",
            hint="COCO's files of DensePose have some (dp_x, dp_y, dp_I, dp_U, dp_V); "
            "`visionmill digitscape OUTPUT --surface-points 100` writes some, too",
        )
    noise = {name: _unmirrored(recipe[name]) for name in ("labelled", "unlabelled")}
    return {"config": with_parts(config, seen.surface_parts), "points": {}, **noise}


def finds_boxes_alone(architecture: str, config: Mapping[str, Any], points: KeypointSet | None) -> bool:
    """Whether a model is to learn boxes without points.

    It is where it has no points at all, where its config says 0, and where labels have none and its default is 0.

    Args:
        architecture, config: of the model, as a recipe states them.
        points: what those of the labels are; None: they have none.
    """
    model = find_model(architecture)
    option = inspect.signature(model.build).parameters.get("num_keypoints")
    if option is None or option.annotation in _ALWAYS_0:
        return option is not None
    if "num_keypoints" in config:
        return config["num_keypoints"] == 0
    return points is None and model.defaults.get("num_keypoints", option.default) == 0


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
        "digitscape_heatmap_fine": digitscape.heatmap_fine,
        "digitscape_coordinate": digitscape.coordinate,
        "digitscape_hourglass": digitscape.hourglass,
        "digitscape_keypoint_rcnn": digitscape.keypoint_rcnn,
        "digitscape_densepose_rcnn": digitscape.densepose_rcnn,
        "digitscape_retinaface": digitscape.retinaface,
        "digitscape_centernet": digitscape.centernet,
        "digitscape_cornernet": digitscape.cornernet,
        "digitscape_centernet_triplet": digitscape.centernet_triplet,
    },
    default_recipe="heatmap_landmarker",
    class_counts=_no_counts,
    suits=lambda seen: seen.points is not None and seen.with_points > 0.5,
    meant_for=lambda seen: seen.surface_parts > 0,  # beside masks, which suit a model of instances
    derived=photographs.keypoints,
    fitted=fitted,
    remarks=point_remarks,
    suspects=point_suspects,
    panels=judged_panels,
    words={
        "auc": "AUC",
        "pck": "PCK",
        "nme": "NME",
        "failure_rate": "failure rate",
        "gps": "GPS",
        "part_accuracy": "parts",
        "uv_error": "UV error",
    },
    loop=POINTS,
)
