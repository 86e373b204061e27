"""What every contender does to every image, so that they differ only in how the work is driven.

decode a JPEG > prepare > infer one image > masks to run lengths > row > Parquet with the frozen schema

Each image goes through the model alone: on a CPU a batch is not faster, and all contenders are spared its memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

import modelkit
from benchmarks.events import ItemLog
from modelkit.carriers import Carrier
from modelkit.digitscape import Digitscape
from modelkit.predictor import Predictor, Prepared
from modelkit.records import write_whole
from tasks.media.images import Frame, decode_image
from tasks.output.encoding import PartFacts, Row, ok_row, rows_to_table
from tasks.output.layout import make_version
from tasks.product import find_kind, find_product
from tasks.records import Entry, Version

SIZE_HW = (480, 640)
SCENE_HW = (600, 800)
NUM_SCENES = 40
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model of the benchmark; weights are random from a fixed seed, which costs the same time as trained ones.

    Args:
        name: registered model.
        config: where it differs from the default, and why is said in ``remark``.
        images: by default.
        shard_items: images of one shard or partition.
    """

    name: str
    config: dict[str, Any]
    images: int
    shard_items: int
    remark: str

    @property
    def options(self) -> dict[str, Any]:
        """For ``modelkit.load``."""
        return {"weights": "random:0", "config": self.config}


MODELS = {
    "light": BenchModel(
        name="lraspp_mobilenet_v3_large",
        config={"transform": {"min_size": 480, "max_size": 640, "size_divisible": 32}},
        images=1000,
        shard_items=32,
        remark="LR-ASPP on MobileNetV3 Large, 21 classes, run at the images' own 640x480",
    ),
    "tiny": BenchModel(
        name="lraspp_mobilenet_v3_large",
        config={"transform": {"min_size": 64, "max_size": 64, "size_divisible": 32}},
        images=8,
        shard_items=4,
        remark="the light model at 64x64: for trying the benchmark out, says nothing about speed",
    ),
    "points": BenchModel(
        name="heatmap_landmarker",
        config={"backbone": {"depth": 18}},
        images=300,
        shard_items=16,
        remark="17 points by a heatmap each, ResNet-18 with deconvolutions at 256x192, the image as the one object",
    ),
    "heavy": BenchModel(
        name="mask_rcnn",
        config={"num_classes": 2},
        images=48,
        shard_items=4,
        remark="Mask R-CNN on ResNet-50 FPN, shorter side 800; one class, because with random weights the scores of 90 "
        "classes all lie below the threshold and the mask head would have nothing to do",
    ),
}


def ensure_images(cache: Path, count: int) -> list[Path]:
    """``count`` JPEGs of 640x480 below ``cache``, made once.

    A few dozen large scenes (digits over photographs and textures) are composed, and every image is a crop of one of
    them, mirrored or not and a little brighter or darker: distinct files, as camera images of few places are.
    """
    folder = cache / "jpegs-640x480"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scene-{index:06d}.jpg" for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    scenes = _scenes(folder) if missing else []
    for index in missing:
        rng = np.random.default_rng([7, index])
        scene = scenes[index % len(scenes)]
        top, left = (int(rng.integers(0, have - want + 1)) for have, want in zip(scene.shape, SIZE_HW, strict=False))
        crop = scene[top : top + SIZE_HW[0], left : left + SIZE_HW[1]]
        crop = crop[:, :: -1 if rng.random() < 0.5 else 1]
        light = np.clip(crop.astype(np.int16) + int(rng.integers(-30, 31)), 0, 255).astype(np.uint8)
        write_whole(paths[index], _encoded(light, "JPEG", quality=JPEG_QUALITY))
    return paths


def _scenes(folder: Path) -> list[np.ndarray]:
    """The large scenes, composed on first use."""
    scenes = []
    composer = Digitscape(split="train", size_hw=SCENE_HW, seed=7, dense=False)
    for index in range(NUM_SCENES):
        path = folder / f".base-{index:02d}.png"
        if not path.exists():
            write_whole(path, _encoded(composer.scene(index).image_rgb, "PNG", compress_level=1))
        with Image.open(path) as image:
            scenes.append(np.asarray(image.convert("RGB")))
    return scenes


def _encoded(image: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def source_folder(work: Path, paths: Sequence[Path]) -> Path:
    """A folder with exactly these images (hard links)."""
    folder = work / "source"
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        link = folder / path.name
        if not link.exists():
            os.link(path, link)
    return folder


class LoggedPredictor(Predictor):
    """A predictor that notes when images left the model."""

    log: ItemLog

    def infer(self, prepared: Sequence[Prepared]) -> list[Any]:
        raws = super().infer(prepared)
        self.log.note(len(raws))
        return raws


def load_predictor(model: str, events: Path, device: str = "cpu") -> LoggedPredictor:
    """The workload's model on one thread, eager."""
    torch.set_num_threads(1)
    spec = MODELS[model]
    plain = modelkit.load(spec.name, **spec.options)
    predictor = LoggedPredictor(plain.model, plain.weights, device)
    predictor.log = ItemLog(events)
    return predictor


def version_of(weights: modelkit.Weights) -> Version:
    """Of the rows that the benchmark writes: those of the product that such models are for."""
    product = find_kind(weights.kind).product
    return make_version(
        product,
        model=weights.reference,
        model_digest=weights.rows_digest,
        parameters={"benchmark": "throughput"},
        schema=find_product(product).schema,
    )


def decode(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8, by the decoder of visionmill's workers. Raises ValueError for what it can't read."""
    frame = decode_image(data)
    if frame.image_rgb_hwc_u8 is None:
        raise ValueError(str(frame.failure))
    return frame.image_rgb_hwc_u8


def row_of(uri: str, size_bytes: int, found: Carrier) -> Row:
    """The row of one image."""
    entry = Entry(uri=uri, etag=str(size_bytes), size_bytes=size_bytes, media="image")
    return ok_row(entry, Frame(0, None, None, found.size_hw), found)


def look(predictor: Predictor, uri: str, data: bytes) -> Row:
    """The whole way of one image in one thread."""
    prepared = predictor.prepare(decode(data))
    return row_of(uri, len(data), predictor.finish(predictor.infer([prepared])[0]))


def table_of(rows: Sequence[Row], weights: modelkit.Weights, shard_id: str) -> pa.Table:
    """Rows in the frozen schema."""
    facts = PartFacts(version_of(weights), 1, shard_id, "benchmark", "benchmark", class_names=weights.class_names())
    return rows_to_table(rows, facts)
