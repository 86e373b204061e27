"""Runs dbolya/yolact or haotian-liu/yolact_edge in a process of its own: both take over ``sys.path`` and expect a GPU.

    python -m tests.modelkit.reference.run_yolact FOLDER CONFIG OUTPUT [--edge]

Writes what the reference computes on seeded weights and pictures: ``theirs.pth`` (its state dict) and
``results.safetensors``. Nothing of its code is needed but what is called here.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.yolact_reference import build, open_folder, pictures, randomise
from tests.modelkit.builders import picture

SOURCE_HW = (97, 131)  # of the user's picture, and what detections go back to


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("config")
    parser.add_argument("output", type=Path)
    parser.add_argument("--edge", action="store_true")
    given = parser.parse_args()
    open_folder(given.folder, jit=False)
    sys.modules["yolact_edge.utils.cython_nms"] = types.ModuleType("cython_nms")
    sys.modules["yolact_edge.utils.cython_nms"].nms = None  # type: ignore[attr-defined]
    with torch.no_grad():
        results, state = (run_edge if given.edge else run_yolact)(given.config)
    torch.save(state, given.output / "theirs.pth")
    save_file({name: value.contiguous() for name, value in results.items()}, given.output / "results.safetensors")


def run_yolact(config: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw maps, detections and losses of YOLACT."""
    net = build(config)
    from data import cfg
    from layers.modules import MultiBoxLoss
    from layers.output_utils import postprocess

    batch = pictures(2, cfg.max_size)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()  # gives raw maps
    raw = net(batch)
    results = {
        "batch": batch,
        **{name: raw[name].clone() for name in ("loc", "conf", "mask", "proto", "priors", "segm")},
    }
    boxes, masks, labels = truth(cfg.max_size, cfg.num_classes, raw["priors"])
    results.update({"boxes": boxes, "masks": masks, "labels": labels})
    pairs = zip(boxes, labels, strict=True)
    targets = [torch.cat([b / cfg.max_size, (label - 1)[:, None].float()], 1) for b, label in pairs]
    criterion = MultiBoxLoss(cfg.num_classes, cfg.positive_iou_threshold, cfg.negative_iou_threshold, 3)
    losses = criterion(net, raw, targets, [each.float() for each in masks], [1, 0])  # the first image's last is a crowd
    results.update({f"loss.{name}": value for name, value in losses.items()})
    net.eval()
    found = net(batch[:1])
    detection = found[0]["detection"]
    results.update({f"found.{name}": detection[name].clone() for name in ("box", "class", "score")})
    height, width = SOURCE_HW
    results["found.masks"] = postprocess(found, width, height)[3].bool()
    results.update(from_picture(net))
    return results, state


def from_picture(net: Any) -> dict[str, Tensor]:
    """What it makes of a picture of bytes, RGB, which it resizes: normalised, boxes and masks."""
    from layers.output_utils import postprocess
    from utils.augmentations import FastBaseTransform

    torch.Tensor.cuda = lambda self, *options: self  # type: ignore[assignment, method-assign, return-value]
    height, width = SOURCE_HW
    image = picture(height, width, 4)
    batch = FastBaseTransform()(torch.from_numpy(image[None, :, :, ::-1].astype("float32")))
    detection = net(batch)
    found = {name: detection[0]["detection"][name].clone() for name in ("box", "class", "score")}
    masks = postprocess(detection, width, height)[3].bool()
    return {"user.batch": batch, "user.masks": masks, **{f"user.{name}": value for name, value in found.items()}}


def run_edge(config: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw maps of a key frame and of the frame after it, and how far warped features are from true ones."""
    from yolact_edge.data.config import cfg, set_cfg

    set_cfg(config)
    cfg.freeze_bn = True
    cfg.flow.fm_loss_loc = "L"
    from yolact_edge.yolact import Yolact

    net = randomise(Yolact())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    batch = pictures(2, cfg.max_size)
    net.train()
    results: dict[str, Tensor] = {"batch": batch}
    key = net(batch[:1], {"backbone": "full", "keep_statistics": True, "moving_statistics": None})
    kept = {"feats": key["feats"], "lateral": key["lateral"]}
    other = net(batch[1:], {"backbone": "partial", "moving_statistics": kept})
    true = net(batch[1:], {"backbone": "full", "moving_statistics": None})
    results["loss.W"] = net.extra_loss(other, true)["W"]
    for frame, outputs in (("key", key), ("other", other)):
        raw = outputs["pred_outs"]
        results.update({f"{frame}.{name}": raw[name].clone() for name in ("loc", "conf", "mask", "proto")})
    return results, state


def truth(side: int, num_classes: int, priors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (2, 3, 4) in pixels, masks (2, 3, side, side) uint8 that stay clear of them, labels (2, 3).

    A box that holds a prior, or lies in one, overlaps its neighbours just as much, and rounding decides which of them
    is forced to learn it. So boxes are drawn until the best prior is better than the second.
    """
    generator = torch.Generator().manual_seed(5)
    drawn: list[Tensor] = []
    while len(drawn) < 6:
        first = torch.rand(2, generator=generator) * 0.5
        box = torch.cat([first, first + 0.1 + torch.rand(2, generator=generator) * 0.3])
        best = overlap(box, priors).topk(2).values
        if float(best[0] - best[1]) > 1e-3:
            drawn.append(box * side)
    boxes = torch.stack(drawn).reshape(2, 3, 4)
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    centre, radius = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 * 0.9
    x, y = (
        ((grid - centre[..., k, None, None]) / radius[..., k, None, None]) ** 2 for k, grid in ((0, columns), (1, rows))
    )
    labels = torch.randint(1, num_classes, (2, 3), generator=generator)
    return boxes, (x + y < 1).to(torch.uint8), labels


def overlap(box: Tensor, priors: Tensor) -> Tensor:
    """IoU of one box xyxy with priors (P, 4) of centre and size, sides of 0 .. 1."""
    first, last = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    shared = (torch.minimum(last, box[2:]) - torch.maximum(first, box[:2])).clamp(min=0).prod(1)
    return shared / (priors[:, 2:].prod(1) + (box[2:] - box[:2]).prod() - shared)


if __name__ == "__main__":
    main()
