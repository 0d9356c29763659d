"""Krippendorff's alpha by published tables and laws; the human ceiling by hand."""

from __future__ import annotations

from itertools import permutations
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.stats.agreement import Level, krippendorff_alpha, leave_one_out, majority

_ = nan
WIKIPEDIA = np.array(
    [
        [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
        [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
        [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
    ]
).T
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
).T
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval", "ratio")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (WIKIPEDIA, (0.691358, 0.806721, 0.810845, 0.808944)),
        (KRIPPENDORFF, (0.743421, 0.815388, 0.849107, 0.797403)),
    ],
)
def test_published_tables(table: np.ndarray, expected: tuple[float, ...]) -> None:
    assert [krippendorff_alpha(table, level=level).alpha for level in LEVELS] == pytest.approx(expected, abs=1e-6)


def test_counts() -> None:
    found = krippendorff_alpha(KRIPPENDORFF)
    assert (found.units, found.values) == (11, 40)  # the last unit has one value


TABLES = st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, nan]), min_size=3, max_size=3), min_size=2, max_size=10).map(
    np.array
)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(LEVELS))
def test_it_is_one_minus_the_mean_distance_of_pairs(table: np.ndarray, level: Level) -> None:
    """The definition as a slow loop over pairs of values."""
    units = [row[~np.isnan(row)] for row in table]
    units = [row for row in units if row.size > 1]
    pooled = np.concatenate([*units, np.empty(0)])
    count = {v: int(np.sum(pooled == v)) for v in (1.0, 2.0, 3.0)}

    def squared(c: float, v: float) -> float:
        if level == "nominal":
            return float(c != v)
        if level == "interval":
            return (c - v) ** 2
        if level == "ratio":
            return ((c - v) / (c + v)) ** 2
        low, high = min(c, v), max(c, v)
        return (sum(n for g, n in count.items() if low <= g <= high) - (count[c] + count[v]) / 2) ** 2

    observed = sum(squared(c, v) / (row.size - 1) for row in units for c, v in permutations(row, 2))
    expected = sum(squared(c, v) for c, v in permutations(pooled, 2)) / max(1, pooled.size - 1)
    found = krippendorff_alpha(table, level=level).alpha
    if expected == 0:
        assert isnan(found)
    else:
        assert found == pytest.approx(1 - observed / expected)


@settings(max_examples=40, deadline=None)
@given(TABLES, st.permutations([0, 1, 2]))
def test_raters_units_and_names_of_classes_do_not_matter(table: np.ndarray, order: list[int]) -> None:
    there = krippendorff_alpha(table).alpha
    renamed = np.where(np.isnan(table), nan, (table * 7) % 5)  # 1, 2, 3 -> 2, 4, 1
    back = krippendorff_alpha(renamed[::-1][:, order]).alpha
    assert back == pytest.approx(there, nan_ok=True)
    line = krippendorff_alpha(3 * table - 10, level="interval").alpha
    assert line == pytest.approx(krippendorff_alpha(table, level="interval").alpha, nan_ok=True)


def test_perfect_chance_and_opposite() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2]]).alpha == 1
    # two units, both split: D_o = 1, D_e = 8 of 12 ordered pairs
    assert krippendorff_alpha([[1, 2], [2, 1]]).alpha == pytest.approx(-0.5)
    assert isnan(krippendorff_alpha([[1, 1], [1, 1]]).alpha)
    assert isnan(krippendorff_alpha([[1, _], [2, _]]).alpha)
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(3, size=(3000, 3))).alpha) < 0.02


def test_the_interval_covers() -> None:
    """Three raters who name the truth of a binary item four times in five: alpha = (.68 - .5) / .5 = .36."""
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(60):
        truth = rng.integers(2, size=(150, 1))
        said = np.where(rng.random((150, 3)) < 0.8, truth, 1 - truth)
        found = krippendorff_alpha(said, resamples=150, seed=seed)
        inside.append(found.lo <= 0.36 <= found.hi)
    assert 0.86 <= np.mean(inside) <= 1


def test_the_ceiling_by_hand() -> None:
    # unit 1: 1 1 2: each 1 faces (1, 2), a draw: half; 2 faces (1, 1): no. (1/2 + 1/2 + 0) / 3. Unit 2: all agree.
    assert leave_one_out([[1, 1, 2], [5, 5, 5], [3, _, _]]) == (pytest.approx((1 / 3 + 1) / 2), 6)
    assert isnan(leave_one_out([[1, _]])[0])


def test_majority() -> None:
    found = majority([[1, 1, 2], [1, 2, _], [_, _, _], [3, _, _]])
    assert found == pytest.approx([1, nan, nan, 3], nan_ok=True)


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="table"):
        krippendorff_alpha([1, 2])
    with pytest.raises(DataError, match="not negative"):
        krippendorff_alpha([[-1, 1]], level="ratio")
    with pytest.raises(DataError, match="not one of"):
        krippendorff_alpha([[1, 2]], level="cardinal")  # type: ignore[arg-type]
