"""Small training sets of digitscape scenes in a store, and tiny recipes for them."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

from PIL import Image

from infra.store import Store
from modelkit import rle
from modelkit.digitscape import CLASS_NAMES, Digitscape
from modelkit.training.loop import LoopConfig
from tasks.training.examples import Example, ExampleObject
from tasks.training.recipe import Noise, TrainingRecipe
from tests.modelkit.builders import small_mask_rcnn

SIZE_HW = (64, 64)
CLASSES = tuple((k + 1, name, True) for k, name in enumerate(CLASS_NAMES))


def put_examples(store: Store, count: int, *, first: int = 0, prefix: str = "images") -> list[Example]:
    """Scenes as PNG objects, and their truth."""
    source = Digitscape("train", SIZE_HW, seed=5, dense=False)
    examples = []
    for index in range(first, first + count):
        scene = source.scene(index)
        buffer = io.BytesIO()
        Image.fromarray(scene.image_rgb).save(buffer, "PNG")
        key = f"{prefix}/{index:03d}.png"
        store.put(key, buffer.getvalue())
        objects = tuple(
            ExampleObject(int(label), tuple(map(float, box)), rle.encode(mask))  # type: ignore[arg-type]
            for label, box, mask in zip(scene.labels, scene.boxes_xyxy, scene.masks, strict=True)
        )
        examples.append(Example(store.uri_of(key), scene.size_hw, objects))
    return examples


def pseudo(examples: list[Example], weight: float = 0.5) -> list[Example]:
    """The same as a teacher would have labelled them: lighter, with an unsure corner."""
    return [
        dataclasses.replace(
            example,
            origin="pseudo",
            objects=tuple(dataclasses.replace(each, class_weight=weight, box_weight=0.0) for each in example.objects),
            ignore_boxes=((0.0, 0.0, 9.0, 9.0),),
        )
        for example in examples
    ]


def recipe(**changes: Any) -> TrainingRecipe:
    """A tiny mask_rcnn, a handful of steps."""
    config = small_mask_rcnn(num_classes=11)
    loop = LoopConfig(steps=8, learning_rate=1e-3, warmup_steps=2, checkpoint_every=2, ema_decay=0.9, seed=3)
    content: dict[str, Any] = {
        "name": "tiny",
        "architecture": "mask_rcnn",
        "config": config,
        "classes": CLASSES,
        "loop": loop,
        "batch_size": 2,
        "labelled": Noise(({"name": "horizontal_flip"},), copy_paste=0.5),
        "unlabelled": Noise(({"name": "stac_geometric"}, {"name": "cutout"}), cutmix=0.5),
    }
    return TrainingRecipe(**{**content, **changes})


def panoptic_recipe(**changes: Any) -> TrainingRecipe:
    """A tiny Panoptic FPN for the same scenes, with one kind of ground that nobody labelled."""
    classes = (*CLASSES, (11, "ground", False))
    small = small_mask_rcnn(num_classes=11)
    config = {name: part for name, part in small.items() if name != "num_classes"} | {"num_things": 10, "num_stuff": 1}
    config["semantic"] = {"name": "semantic_fpn", "channels": 16}
    return recipe(**{"architecture": "panoptic_fpn", "config": config, "classes": classes, **changes})


def semantic_recipe(**changes: Any) -> TrainingRecipe:
    """A small semantic model on the same scenes."""
    transform = {"min_size": 64, "max_size": 64, "padding": "none", "size_divisible": 1}
    config = {"num_classes": 11, "transform": transform}
    return recipe(**{"architecture": "lraspp_mobilenet_v3_large", "config": config, **changes})
