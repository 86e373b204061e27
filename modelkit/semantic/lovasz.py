"""The Lovasz-softmax loss (Berman et al. 2018): the mean IoU of the classes itself, made smooth."""

from __future__ import annotations

import torch
from torch import Tensor

from modelkit.carriers.targets import IGNORE


def lovasz_softmax(probabilities: Tensor, wanted: Tensor, first_class: int = 0) -> Tensor:
    """Mean over the classes that a batch holds of the Lovasz extension of 1 - IoU; 0 where nothing is labelled.

    For a class, m(i) is 1 - p(i) on its own pixels and p(i) elsewhere. Where all m(i) are 0 or 1 they say which pixels
    are wrong, and the loss is 1 - IoU; between these the extension is linear as long as the order of m stays the same.

    Args:
        probabilities: (N, C, H, W); the whole batch is one picture.
        wanted: (N, H, W) class ids, 255 is ignored.
        first_class: classes below it are left out; 1 judges the foreground alone.
    """
    labelled = wanted != IGNORE
    truth, chosen = wanted[labelled], probabilities.movedim(1, -1)[labelled]
    present = [label for label in truth.unique().tolist() if label >= first_class]
    if not present:
        return probabilities.sum() * 0  # keeps the graph: parameters get a zero gradient, not none
    return torch.stack([_of_class(chosen[:, label], truth == label) for label in present]).mean()


def _of_class(probability: Tensor, is_class: Tensor) -> Tensor:
    """The extension at the errors of one class: (p,) probabilities, and which pixels are of it, at least one."""
    ours = is_class.to(probability)
    errors, order = (ours - probability).abs().sort(descending=True)
    return errors @ _gradient(ours[order].detach())


def _gradient(ours: Tensor) -> Tensor:
    """(p,) how much the Jaccard loss grows with each pixel that joins the wrong ones, the worst first."""
    total = ours.sum()
    missed, made_up = ours.cumsum(0), (1 - ours).cumsum(0)
    loss = 1 - (total - missed) / (total + made_up)
    return torch.cat([loss[:1], loss.diff()])
