"""What the page about a judged model shows of maps: which classes are taken for which, and the worst pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from modelkit import Instances
from tasks.labels.label_sets import LabelSet
from tasks.product import Judgement
from tasks.report.charts_by_name import Interval, intervals
from tasks.report.judged_objects import objects_picture
from tasks.report.judged_panels import JudgedGallery, JudgedPanels
from tasks.report.panels import Section

_MOST_CONFUSIONS = 20
_LEAST_CONFUSION = 0.01  # of the pixels of a class


@dataclass(frozen=True, slots=True)
class MapEvidence:
    """Labels under the class ids of a model, and the maps that it finds, in the order of their table.

    Args:
        labels, found: these. names: of all classes of the model.
        counts: what was counted in each image: (images, K, K) pixels (rows truth, columns prediction) of maps of
            classes, (images, K, 4) of maps of segments as ``panoptic.mean_panoptic_quality`` takes them.
    """

    labels: LabelSet
    found: Sequence[Instances]
    names: Mapping[int, str]
    counts: np.ndarray


def semantic_panels(judgement: Judgement, at_most: int) -> JudgedPanels:
    """Which classes are taken for which, and the images with the smallest share of right pixels."""
    evidence: MapEvidence = judgement.evidence
    names, counts = judgement.class_names, evidence.counts
    pixels = counts.sum((1, 2))
    right = np.divide(counts.trace(axis1=1, axis2=2), pixels, out=np.ones(len(pixels)), where=pixels > 0)
    rows = evidence.labels.table.to_pylist()
    pictures = []
    for k in [k for k in np.argsort(right, kind="stable").tolist() if right[k] < 1][:at_most]:
        wrong = counts[k] - np.diag(np.diag(counts[k]))
        truth, taken = np.unravel_index(int(wrong.argmax()), wrong.shape)
        share = wrong[truth, taken] / pixels[k]
        words = f"{right[k]:.2f} of the pixels are right; {share:.2f} are {names[truth]} taken for {names[taken]}"
        flat = {**rows[k], "is_thing": [False] * len(rows[k]["labels"])}
        pictures.append(objects_picture(flat, evidence.found[k], evidence.names, words))
    said = "labels to the left, what the model says to the right; the smallest share of right pixels first"
    sections = (Section("confusions", "What is taken for what", _confusions(counts.sum(0), names)),)
    return JudgedPanels(sections=sections, galleries=(JudgedGallery("Most wrong", said, pictures, are_pairs=True),))


def _confusions(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """Bars of the largest shares of a class's pixels that are taken for another, from (K, K) pixels."""
    labelled = counts.sum(1, keepdims=True)
    shares = np.divide(counts, labelled, out=np.zeros(counts.shape), where=labelled > 0)
    np.fill_diagonal(shares, 0.0)
    order = [divmod(int(k), len(names)) for k in np.argsort(-shares, axis=None, kind="stable")[:_MOST_CONFUSIONS]]
    bars = [
        Interval(f"{names[truth]} → {names[taken]}", float(shares[truth, taken]))
        for truth, taken in order if shares[truth, taken] >= _LEAST_CONFUSION
    ]  # fmt: skip
    if not bars:
        return Markup("<p>No class loses a hundredth of its pixels to another.</p>")
    said = "<p class='muted'>Shares of the labelled pixels of a class that the model gives to another, the largest.</p>"
    chart = intervals("Shares of a class taken for another", bars, end=max(each.value for each in bars))
    return Markup(said + '<div class="cards narrow"><div class="card">{}</div></div>').format(chart)


def panoptic_panels(judgement: Judgement, at_most: int) -> JudgedPanels:
    """The images with the lowest quality over all of their segments."""
    evidence: MapEvidence = judgement.evidence
    iou, matched, extra, missed = evidence.counts.sum(1).T
    counted = matched + (extra + missed) / 2
    quality = np.divide(iou, counted, out=np.ones(len(iou)), where=counted > 0)
    rows = evidence.labels.table.to_pylist()
    pictures = []
    for k in [k for k in np.argsort(quality, kind="stable").tolist() if quality[k] < 1][:at_most]:
        words = f"{matched[k]:.0f} segments right, {missed[k]:.0f} missed, {extra[k]:.0f} made up"
        said = f"quality {quality[k]:.2f}; {words}"
        pictures.append(objects_picture(rows[k], evidence.found[k], evidence.names, said))
    said = (
        "labels to the left, finds to the right; the lowest quality first, over the segments of all classes of an image"
        " together (right: IoU above .5)"
    )
    return JudgedPanels(galleries=(JudgedGallery("Most wrong", said, pictures, are_pairs=True),))
