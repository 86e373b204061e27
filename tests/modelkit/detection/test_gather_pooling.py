"""The training-time RoIAlign equals torchvision's, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from modelkit.detection.gather_pooling import roi_align_gather


@pytest.mark.parametrize(("output_size", "scale"), [(7, 0.25), (14, 0.25), (7, 0.125)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_torchvisions(output_size: int, scale: float, layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    feature = torch.randn(3, 8, 20, 17).contiguous(memory_format=layout)
    corner = torch.rand(40, 2) * 100 - 20  # also boxes that stick out of the map on every side
    rois = torch.cat([torch.randint(0, 3, (40, 1)).float(), corner, corner + torch.rand(40, 2) * 60], dim=1)
    rois[0, 3:] = rois[0, 1:3] + 0.5  # thinner than a cell
    ours, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()
    pooled = roi_align_gather(ours, rois, output_size, scale)
    wanted = roi_align(theirs, rois, output_size, scale, sampling_ratio=1, aligned=False)
    assert pooled.shape == wanted.shape
    assert (pooled - wanted).abs().max() < 1e-4
    upstream = torch.randn_like(wanted)
    pooled.backward(upstream)
    wanted.backward(upstream)
    assert ours.grad is not None
    assert (ours.grad - theirs.grad).abs().max() < 1e-4
