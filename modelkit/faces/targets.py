"""What a face's points are, and how a target's mesh moves with the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from modelkit.carriers.fields import Field, Resize, Warp
from modelkit.carriers.geometry import scale_points, warp_points
from modelkit.carriers.landmarks import KeypointSet
from modelkit.carriers.targets import register_field
from modelkit.errors import TargetError

FACE_POINTS = KeypointSet(
    names=("right_eye", "left_eye", "nose", "right_mouth_corner", "left_mouth_corner"),
    flip_pairs=((1, 0), (4, 3)),
    skeleton=((0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)),
)
"""The five points of WIDER FACE's RetinaFace annotations in their order, which goes from left to right in the picture;
left and right are the person's own, as in COCO, so the first eye is the right one."""

MESHES = "meshes"


class Meshes(Field):
    """(n, V, 4) float of x, y, depth and whether it is labelled, for the vertices of each object; depth in pixels."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        places = scale_points(value[..., :2], resize.from_hw, resize.to_hw)
        growth = (resize.to_hw[0] * resize.to_hw[1] / (resize.from_hw[0] * resize.from_hw[1])) ** 0.5
        return torch.cat([places, value[..., 2:3] * growth, value[..., 3:]], -1)

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        if warp.mirrors:
            raise TargetError("a mesh was mirrored, and nobody says which of its vertices change places; do not flip")
        places = warp_points(value[..., :2].double(), warp.matrix).to(value.dtype)
        growth = float(torch.linalg.det(warp.matrix[:2, :2])) ** 0.5
        return torch.cat([places, value[..., 2:3] * growth, value[..., 3:]], -1)


register_field(MESHES, Meshes(per_object=True))
