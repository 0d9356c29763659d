"""Labels on one scale: statistics by hand, raters, what is missing, what cannot be learned from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError
from trimtab.records.types import Answer, Group, Score
from trimtab.stages._reward_labels import FEW_LABELS, LabelScale

NAN = math.nan


def group(*scores: Score, answers: int = 2) -> Group:
    return Group(id="g", answers=tuple(Answer(text=str(i)) for i in range(answers)), verdicts=scores)


def score(answer: int, rater: str | None = None, **values: float) -> Score:
    return Score(answer=answer, values=values, rater=rater)


def fit(*groups: Group, attributes: tuple[str, ...] = (), per_rater: bool = False, chances: bool = False) -> LabelScale:
    return LabelScale.fit(groups, attributes, per_rater=per_rater, standardised=not chances)


def test_standardised_by_hand() -> None:
    """wit 1, 3, 5, 7: mean 4, deviation sqrt(5). Two raters of one answer are averaged: (1 + 3) / 2 = 2."""
    here = group(score(0, "a", wit=1.0, tact=2.0), score(0, "b", wit=3.0), score(1, "a", wit=5.0, tact=6.0))
    there = group(score(1, "a", wit=7.0))
    scale = fit(here, there)
    assert scale.attributes == ("tact", "wit")
    assert (scale.pooled["wit"].mean, scale.pooled["wit"].std) == (4.0, pytest.approx(math.sqrt(5)))
    table = scale.table(here)
    assert list(table) == [0, 1]
    assert table[0] == pytest.approx([-1.0, (2 - 4) / math.sqrt(5)])
    assert table[1] == pytest.approx([1.0, 1 / math.sqrt(5)])
    row = scale.table(there)[1]
    assert math.isnan(row[0])
    assert row[1] == pytest.approx(3 / math.sqrt(5))


def test_chances_are_only_averaged() -> None:
    here = group(score(0, "a", good=1.0), score(0, "b", good=0.0), score(0, "c", good=1.0))
    assert fit(here, chances=True).table(here) == {0: [pytest.approx(2 / 3)]}


@given(
    truth=st.lists(st.integers(-50, 50), min_size=FEW_LABELS, max_size=12).filter(lambda x: len(set(x)) > 1),
    offset=st.integers(-100, 100),
    stretch=st.integers(1, 20),
)
def test_per_rater_undoes_a_raters_offset_and_scale(truth: list[int], offset: int, stretch: int) -> None:
    groups = [group(score(0, "a", wit=float(x)), score(0, "b", wit=float(offset + stretch * x))) for x in truth]
    scale = fit(*groups, per_rater=True)
    mean = sum(truth) / len(truth)
    std = math.sqrt(sum((x - mean) ** 2 for x in truth) / len(truth))
    for x, own in zip(truth, groups, strict=True):
        alone = [scale.table(group(verdict))[0] for verdict in own.verdicts if isinstance(verdict, Score)]
        assert alone[0] == pytest.approx([(x - mean) / std])
        assert alone[0] == pytest.approx(alone[1])
        assert scale.table(own)[0] == pytest.approx(alone[0])


def test_without_per_rater_the_offset_stays() -> None:
    groups = [group(score(0, "a", wit=float(x)), score(1, "b", wit=float(100 + x))) for x in range(5)]
    table = fit(*groups).table(groups[0])
    assert table[0][0] < -0.9 < 0.9 < table[1][0]


def test_raters_of_few_labels_are_standardised_with_all() -> None:
    many = [group(score(0, "a", wit=float(x))) for x in range(FEW_LABELS)]  # 0 .. 4: mean 2, deviation sqrt(2)
    few = group(score(0, "b", wit=7.0))
    scale = fit(*many, few, per_rater=True)
    assert scale.table(many[4])[0] == pytest.approx([math.sqrt(2)])
    labels = [0.0, 1.0, 2.0, 3.0, 4.0, 7.0]
    mean = sum(labels) / 6
    std = math.sqrt(sum((x - mean) ** 2 for x in labels) / 6)
    assert scale.table(few)[0] == pytest.approx([(7 - mean) / std])
    assert any("1 raters with fewer than 5 labels" in sentence for sentence in scale.describe([*many, few]))
    # a rater whom training has not seen
    assert scale.table(group(score(0, "new", wit=mean)))[0] == pytest.approx([0.0])


def test_a_rater_who_always_says_the_same_says_nothing() -> None:
    groups = [group(score(0, "a", wit=0.1), score(1, "b", wit=float(x))) for x in range(FEW_LABELS)]
    scale = fit(*groups, per_rater=True)
    assert [scale.table(own)[0][0] for own in groups] == [0.0] * FEW_LABELS


def test_a_constant_attribute_is_left_out_and_said_or_refused_when_named() -> None:
    groups = [group(score(0, wit=float(x), taste=0.1)) for x in range(4)]
    scale = fit(*groups)
    assert scale.attributes == ("wit",)
    assert list(scale.describe(groups)) == ["left out, because every label of it is the same: taste"]
    with pytest.raises(ConfigError, match=r"^attributes: every label of 'taste' is 0\.1, nothing to learn from$"):
        fit(*groups, attributes=("taste",))
    with pytest.raises(DataError, match="the same labels"):
        fit(group(score(0, taste=0.1)), group(score(0, taste=0.1)))


def test_attributes_that_are_named_keep_their_order() -> None:
    groups = [group(score(0, a=float(x), b=float(-x), c=1.0 + x)) for x in range(3)]
    assert fit(*groups, attributes=("c", "a")).attributes == ("c", "a")
    with pytest.raises(ConfigError, match=r"^attributes: no label has the attribute 'wti'; did you mean 'wit'\?$"):
        fit(group(score(0, wit=1.0)), attributes=("wti",))


@pytest.mark.parametrize("rater", [None, "a"])
def test_per_rater_needs_two_raters(rater: str | None) -> None:
    groups = [group(score(0, rater, wit=float(x))) for x in range(6)]
    with pytest.raises(ConfigError, match="per_rater would change nothing"):
        fit(*groups, per_rater=True)


def test_missing_labels_are_counted() -> None:
    groups = [group(score(0, a=1.0, b=2.0), score(1, a=2.0)), group(score(0, b=3.0))]
    said = "2 of 6 labels are missing and teach nothing (the first: group 'g')"
    assert list(fit(*groups).describe(groups)) == [said]
