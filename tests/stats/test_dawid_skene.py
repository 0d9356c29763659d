"""Dawid and Skene on their own data, and on simulated raters."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest

from trimtab.errors import DataError
from trimtab.stats.dawid_skene import dawid_skene

# Table 1 of the paper: 45 patients, one group each; the first anaesthetist saw every patient three times.
ANAESTHETISTS = """
111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3|222 2 2 2 3
232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1|111 1 1 1 1|111 1 1 1 1
222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2|111 1 1 1 1|111 1 1 1 1|232 2 2 2 2
111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3|111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3
221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1|111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2
"""
PATIENTS = [patient for line in ANAESTHETISTS.split("\n") for patient in line.split("|") if patient]
LABELS: list[tuple[Hashable, Hashable, Hashable]] = [
    (patient, doctor, int(label))
    for patient, row in enumerate(PATIENTS)
    for doctor, said in enumerate(row.split())
    for label in said
]


def columns(rows: list[tuple[Hashable, Hashable, Hashable]]) -> tuple[list[Hashable], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def test_the_paper() -> None:
    assert len(LABELS) == 45 * 7
    items, raters, labels = columns(LABELS)
    found = dawid_skene(items, raters, labels, classes=(1, 2, 3, 4), smoothing=0)
    assert found.converged
    assert found.priors == pytest.approx([0.3996, 0.4220, 0.1118, 0.0667], abs=5e-5)
    assert found.confusion[0, 0] == pytest.approx([0.8895, 0.1105, 0, 0], abs=5e-5)
    assert found.confusion[0, 1] == pytest.approx([0.0706, 0.8764, 0.0530, 0], abs=6e-5)
    assert found.log_likelihood == pytest.approx(-192.890881, abs=1e-5)
    assert found.counts.tolist() == [135, 45, 45, 45, 45]
    assert found.posterior.sum(axis=1) == pytest.approx(np.ones(45))


def crowd(
    seed: int, *, items: int = 300, raters: int = 8
) -> tuple[list[tuple[Hashable, Hashable, Hashable]], np.ndarray]:
    """Three classes; rater 0 answers by lot, rater 1 calls every tie a win for a, the rest know four in five."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=items, p=[0.4, 0.2, 0.4])
    rows: list[tuple[Hashable, Hashable, Hashable]] = []
    for i, t in enumerate(truth):
        for k in range(raters):
            said = t if rng.random() < 0.8 else int(rng.integers(3))
            if k == 0:
                said = int(rng.integers(3))
            if k == 1:
                said = 0 if t == 1 else t
            rows.append((i, k, int(said)))
    return rows, truth


def test_raters_and_truth_are_recovered() -> None:
    rows, truth = crowd(0)
    found = dawid_skene(*columns(rows), classes=(0, 1, 2))
    assert np.mean(np.array(found.labels) == truth) > 0.97
    assert found.confusion[0] == pytest.approx(np.full((3, 3), 1 / 3), abs=0.12)
    assert found.confusion[1, 1] == pytest.approx([1, 0, 0], abs=0.05)
    assert found.accuracy[0] < 0.45
    assert found.accuracy[2:] == pytest.approx(np.full(6, 0.8 + 0.2 / 3), abs=0.07)
    assert found.priors == pytest.approx([0.4, 0.2, 0.4], abs=0.06)


def test_renaming_and_reordering_change_nothing() -> None:
    rows, _ = crowd(1, items=60)
    there = dawid_skene(*columns(rows), classes=(0, 1, 2))
    name = {0: "A>B", 1: "tie", 2: "B>A"}
    turned = [(i, k, name[label]) for i, k, label in reversed(rows)]  # type: ignore[index]
    back = dawid_skene(*columns(turned), classes=("B>A", "tie", "A>B"))
    assert back.posterior[::-1, ::-1] == pytest.approx(there.posterior, abs=1e-6)
    assert back.priors[::-1] == pytest.approx(there.priors, abs=1e-6)


def test_the_likelihood_never_falls() -> None:
    items, raters, labels = columns(LABELS)
    values = [
        dawid_skene(items, raters, labels, classes=(1, 2, 3, 4), smoothing=0, iterations=n).log_likelihood
        for n in (1, 2, 3, 5, 9, 17, 40)
    ]
    assert values == sorted(values)


def test_gold_items_are_held() -> None:
    rows, truth = crowd(2, items=80)
    wrong = {5: (int(truth[5]) + 1) % 3}
    found = dawid_skene(*columns(rows), classes=(0, 1, 2), gold=wrong)
    assert found.labels[5] == wrong[5]
    assert found.posterior[5].max() == 1
    some = {i: int(truth[i]) for i in range(40)}
    held = dawid_skene(*columns(rows), classes=(0, 1, 2), gold=some)
    assert list(held.labels[:40]) == truth[:40].tolist()
    assert held.accuracy[0] < 0.5


def test_a_rater_with_one_label_is_thought_ordinary() -> None:
    rows, _ = crowd(3, items=100)
    rows.append((0, "new", 2))
    found = dawid_skene(*columns(rows), classes=(0, 1, 2))
    assert 0.5 < found.accuracy[found.raters.index("new")] < 0.97
    sharp = dawid_skene(*columns(rows), classes=(0, 1, 2), smoothing=0)
    assert sharp.confusion[sharp.raters.index("new")].max() == 1


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="one of each"):
        dawid_skene([1], [1, 2], [1], classes=(1,))
    with pytest.raises(DataError, match="one of each"):
        dawid_skene([], [], [], classes=(1,))
    with pytest.raises(DataError, match="'x' is not one of the classes 1, 2"):
        dawid_skene([1], [1], ["x"], classes=(1, 2))
    with pytest.raises(DataError, match="is not one of"):
        dawid_skene([1], [1], [1], classes=(1, 2), gold={1: 3})
    with pytest.raises(DataError, match="negative"):
        dawid_skene([1], [1], [1], classes=(1, 2), smoothing=-1)
