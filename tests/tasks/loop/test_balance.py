"""What is accepted teaches by class as the labels make expect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.loop.balance import balanced, class_factors
from tasks.loop.selection import select
from tests.tasks.loop.rows import candidate, candidates, identity, thresholds


def test_a_class_of_which_more_is_accepted_than_others_counts_less_and_all_together_as_before() -> None:
    accepted, truth = {1: 900, 2: 100, 3: 90}, {1: 100.0, 2: 20.0, 3: 30.0}  # 9, 5 and 3 times the labels'
    factors = class_factors(accepted, truth)
    assert factors[1] < factors[2] < factors[3]
    assert factors[2] / factors[1] == pytest.approx(9 / 5) and factors[3] / factors[2] == pytest.approx(5 / 3)
    assert sum(accepted[label] * factors[label] for label in accepted) == pytest.approx(sum(accepted.values()))
    assert class_factors({1: 5, 2: 0}, truth) == {}, "one class alone is balanced"
    wild = class_factors({1: 10_000, 2: 1, 3: 3}, {1: 1.0, 2: 1.0, 3: 1.0})
    assert wild[2] / wild[1] <= 4.0, "within a half and twice"


def test_weights_of_the_training_set_are_balanced_and_the_remembered_ones_are_not() -> None:
    rows = [candidate(f"u{k}", 0, 0.9, [0, 0, 20, 20], 1) for k in range(8)]
    rows += [candidate(f"u{k}", 1, 0.9, [30, 0, 50, 20], 2) for k in range(2)]
    rows += [candidate("u0", 2, 0.1, [0, 30, 20, 50], 2)]
    listed = [{"image_id": f"u{k}", "uri": f"u{k}", "group_id": f"u{k}", "status": "ok"} for k in range(8)]
    sets = thresholds({1: 0.5, 2: 0.5})
    found = select(candidates(rows), listed, thresholds=sets, scores=identity())
    taught = balanced(found, sets)
    weights = {label: set() for label in (1, 2)}
    for row in taught.to_pylist():
        if row["decision"] == "accept":
            weights[row["label"]].add(row["weight"])
    assert len(weights[1]) == len(weights[2]) == 1 and max(weights[1]) < max(weights[2])
    assert set(found.accepted["weight"].to_pylist()) == {1.0}
    ignored = [row["weight"] for row in taught.to_pylist() if row["decision"] != "accept"]
    assert ignored == [0.0]
    alone = replace(sets, classes=tuple(replace(each, truth_per_image=0.0) for each in sets.classes))
    assert balanced(found, alone).equals(found.labels), "nothing is expected, nothing is changed"
