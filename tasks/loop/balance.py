"""What is accepted, balanced over classes.

A teacher is sure of common classes first: of roads and not of what stands beside them. A student that is shown mostly
those drifts towards them. So what was accepted of a class is weighed by how much of it the labels make expect: with
r = (accepted of the class) / (truth of it per labelled image), a label of the class counts median(r) / r times, within
a half and twice, and all weights are scaled so that together they weigh as before. That is class-balanced self-training
(Zou et al. 2018) by weights: thresholds stay those that were certified, and the selection is remembered without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.loop.selection import WEIGHT_CAP, Selection, floats
from tasks.loop.thresholds import ThresholdSet

LEAST, MOST = 0.5, 2.0


def class_factors(accepted: Mapping[int, int], truth_per_image: Mapping[int, float]) -> dict[int, float]:
    """Class id -> what its weights are multiplied by; nothing where fewer than two classes were accepted.

    Args:
        accepted, truth_per_image: by class id, in the unit of the kind.
    """
    ratio = {
        label: count / truth_per_image[label]
        for label, count in accepted.items()
        if count > 0 and truth_per_image.get(label, 0.0) > 0
    }
    if len(ratio) < 2:
        return {}
    usual = float(np.median(list(ratio.values())))
    factors = {label: float(np.clip(usual / each, LEAST, MOST)) for label, each in ratio.items()}
    total = sum(accepted[label] for label in factors)
    mean = sum(accepted[label] * factor for label, factor in factors.items()) / total
    return {label: factor / mean for label, factor in factors.items()}


def balanced(selection: Selection, thresholds: ThresholdSet) -> pa.Table:
    """``pseudo_labels.v2`` as it teaches: the weights of accepted rows by class, six decimals, at most 2."""
    labels = selection.labels
    truth = {each.label: each.truth_per_image for each in thresholds.classes}
    factors = class_factors(selection.accepted_by_class(), truth)
    factor = np.array([factors.get(label, 1.0) for label in labels["label"].to_pylist()])
    weight = np.round(np.minimum(floats(labels["weight"]) * factor, WEIGHT_CAP), 6)
    values = pc.if_else(pc.equal(labels["decision"], "accept"), pa.array(weight), labels["weight"])
    place = labels.schema.get_field_index("weight")
    return labels.set_column(place, labels.schema.field(place), values)
