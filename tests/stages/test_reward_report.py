"""The report on held-out verdicts: every number by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.records.types import Answer, Group, Message, Pair, Ranking, Score
from trimtab.rewards.reward_model import Attribute, Card
from trimtab.stages._reward_labels import LabelScale
from trimtab.stages._reward_report import (
    FEW_VERDICTS,
    MOST,
    Compared,
    auc,
    calibration_error,
    compare_labels,
    compare_verdicts,
    report_labels,
    report_pairs,
)
from trimtab.tensors.tree import TokenGroup

HIT, MISS = (1.0, 0.0), (0.0, 1.0)


def compared(scores: tuple[float, float] = HIT, **facts: Any) -> Compared:
    return Compared(**{"prompt": "p", "lengths": (1, 1), "finished": (True, True), **facts, "scores": scores})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_accuracy_by_source_and_rater() -> None:
    found = [
        *[compared(HIT, source="chat", rater="a")] * 15,
        *[compared(MISS, source="chat", rater="a")] * 5,
        *[compared(MISS, source="code", rater="b")] * 19,
    ]
    assert (len(found), FEW_VERDICTS) == (39, 20)
    metrics = report_pairs(found, std=None)
    assert metrics["heldout/by_source/chat"] == 0.75
    assert metrics["heldout/by_source/code"] == 0.0
    assert metrics["heldout/by_rater/a"] == 0.75
    assert "heldout/by_rater/b" not in metrics  # 19 verdicts
    assert metrics["heldout/accuracy"] == pytest.approx(15 / 39)
    assert not any(name.startswith(("heldout/ece", "heldout/accuracy/")) for name in metrics)


def test_a_missing_score_is_no_miss() -> None:
    with pytest.raises(DataError, match="a judge's score is missing"):
        report_pairs([compared((math.nan, 0.0))], std=None)


def test_an_even_label_has_no_better_answer_to_find_but_counts_for_calibration() -> None:
    found = [compared(HIT), compared(MISS, chance=0.5), compared(HIT, chance=0.5)]
    metrics = report_pairs(found, std=1.0)
    assert (metrics["heldout/accuracy"], metrics["heldout/n"]) == (1.0, 1.0)
    assert metrics["heldout/brier"] != report_pairs(found[:1], std=1.0)["heldout/brier"]


def test_one_source_is_no_breakdown_and_many_are_cut_to_the_largest() -> None:
    assert not any("by_source" in name for name in report_pairs([compared(source="chat")] * 3, std=None))
    many = [compared(source=f"s{i:02}") for i in range(20) for _ in range(i + 1)]
    named = sorted(name for name in report_pairs(many, std=None) if "by_source" in name)
    assert named == [f"heldout/by_source/s{i}" for i in range(20 - MOST, 20)]


def test_accuracy_by_length() -> None:
    """Differences -4, -1, 0, 2, 5, 9: terciles {-4, -1}, {0, 2}, {5, 9}. The model goes by length."""
    lengths = [(1, 5), (1, 2), (3, 3), (5, 3), (6, 1), (10, 1)]
    found = [compared((float(b), float(w)), lengths=(b, w)) for b, w in lengths]
    metrics = report_pairs(found, std=None)
    assert metrics["heldout/longer_wins"] == pytest.approx(3.5 / 6)
    assert metrics["heldout/by_length/shorter_preferred"] == 0.0
    assert metrics["heldout/by_length/longer_preferred"] == 1.0
    thirds = [metrics[f"heldout/by_length/tercile_{name}"] for name in ("low", "middle", "high")]
    assert thirds == [0.0, 0.75, 1.0]


def test_all_of_one_length() -> None:
    metrics = report_pairs([compared(HIT), compared(MISS)], std=None)
    assert {name for name in metrics if "by_length" in name} == {"heldout/by_length/tercile_low"}


def test_calibration_uses_the_scale_before_rescaling() -> None:
    """Scores (1, 0), before rescaling (2, 0): a chance of sigmoid(2), one hit and one miss."""
    metrics = report_pairs([compared(HIT), compared(MISS)], std=2.0)
    chance = sigmoid(2.0)
    assert metrics["heldout/brier"] == pytest.approx(((1 - chance) ** 2 + chance**2) / 2)
    assert metrics["heldout/ece"] == pytest.approx(chance - 0.5)


def test_calibration_of_soft_labels_and_ties() -> None:
    """A chance of .8 stated for the better side, whose label is .8; and equal scores, whose label is 1."""
    lead = math.log(0.8 / 0.2)
    metrics = report_pairs([compared((lead, 0.0), chance=0.8), compared((0.0, 0.0))], std=1.0)
    assert metrics["heldout/brier"] == pytest.approx((0.0 + 0.25) / 2)
    assert metrics["heldout/ece"] == pytest.approx(0.0)
    # the model is sure of the side that the label gives a chance of .2
    metrics = report_pairs([compared((-lead, 0.0), chance=0.8)], std=1.0)
    assert metrics["heldout/ece"] == pytest.approx(0.8 - 0.2)


def test_calibration_error_by_hand() -> None:
    """Bins (.1, .3) and (.7, .9): means .2 and .8; what happened: 1/2 and 1. So (.3 + .2) / 2."""
    stated, happened = [0.9, 0.1, 0.7, 0.3], [1, 1, 1, 0]
    assert calibration_error(stated, happened, bins=2) == pytest.approx(0.25)
    assert calibration_error([0.5], [1]) == pytest.approx(0.5)


def test_calibration_error_of_a_calibrated_model_is_small() -> None:
    generator = np.random.default_rng(0)
    stated = generator.uniform(size=20_000)
    happened = generator.uniform(size=20_000) < stated
    assert calibration_error(stated, happened) < 0.02
    assert calibration_error(stated**2, happened) > 0.1


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.8]), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_calibration_error_does_not_depend_on_the_order(items: list[tuple[float, bool]], random: Any) -> None:
    mixed = random.sample(items, len(items))
    here, there = ([list(side) for side in zip(*rows, strict=True)] for rows in (items, mixed))
    assert calibration_error(*here) == pytest.approx(calibration_error(*there))


def prompt(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_verdicts_are_compared_with_what_is_known_of_them() -> None:
    group = Group(
        id="g", prompt=prompt("Why?"), answers=(Answer(text="a"), Answer(text="bb", finish="length"), Answer(text="c")),
        verdicts=(Pair(better=1, worse=0, rater="r", probability=0.9), Ranking(order=((2,), (0,)))),
        meta={"category": "chat", "flaw": 3},
    )  # fmt: skip
    tokens = TokenGroup(prompt=(7, 8), answers=((1,), (2, 3), (4,)))
    first, second = compare_verdicts([group], [tokens], [[0.1, 0.2, 0.3]])
    assert first == Compared(
        prompt=(7, 8), scores=(0.2, 0.1), lengths=(2, 1), finished=(False, True), chance=0.9, rater="r", source="chat",
        flaw="3",
    )  # fmt: skip
    assert second.scores == (0.3, 0.1)


# --- labels -----------------------------------------------------------------------------------------------------------


def labelled(name: str, *rows: dict[str, float]) -> tuple[Group, TokenGroup]:
    """Answers with labels; the prompt's tokens are its letters."""
    answers = tuple(Answer(text=str(i)) for i in range(len(rows)))
    verdicts = tuple(Score(answer=i, values=row) for i, row in enumerate(rows))
    tokens = TokenGroup(prompt=tuple(map(ord, name)), answers=tuple((i,) for i in range(len(rows))))
    return Group(id=name, prompt=prompt(name) if name else (), answers=answers, verdicts=verdicts), tokens


def card(scale: LabelScale, *weights: float) -> Card:
    return Card(
        loss="mse" if scale.standardised else "bce",
        attributes=tuple(
            Attribute(name=name, weight=w, label_mean=scale.pooled[name].mean, label_std=scale.pooled[name].std)
            for name, w in zip(scale.attributes, weights, strict=True)
        ),
    )


def test_labels_put_answers_to_one_prompt_in_order_over_groups() -> None:
    rows = [labelled("x", {"wit": 1.0}, {"wit": 3.0}), labelled("y", {"wit": 2.0}), labelled("x", {"wit": 2.0})]
    groups, tokens = [g for g, _ in rows], [t for _, t in rows]
    tokens[2] = replace(tokens[2], answers=((7,),))  # another text than the first Group's answer 0
    scale = LabelScale.fit(groups, (), per_rater=False, standardised=True)
    found = compare_labels(groups, tokens, [[0.1, 0.2], [9.0], [0.3]], scale, card(scale, 1.0))
    assert [c.scores for c in found] == [(0.2, 0.1), (0.3, 0.1), (0.2, 0.3)]
    against = compare_labels(groups, tokens, [[0.1, 0.2], [9.0], [0.3]], scale, card(scale, -1.0))
    assert [c.scores for c in against] == [(0.1, 0.2), (0.1, 0.3), (0.3, 0.2)]


def test_labels_of_an_answer_that_stands_in_several_groups_are_averaged() -> None:
    """a 1 and 5, b 2: a is better by 3 to 2, and is not compared with itself. Its tact is known in one Group only."""
    rows = [labelled("x", {"wit": 1.0}, {"wit": 2.0}), labelled("x", {"wit": 5.0, "tact": 1.0})]
    groups, tokens = [g for g, _ in rows], [t for _, t in rows]
    train, _ = labelled("t", {"wit": 0.0, "tact": 0.0}, {"wit": 1.0, "tact": 1.0})
    scale = LabelScale.fit([train], (), per_rater=False, standardised=True)
    found = compare_labels(groups, tokens, [[0.1, 0.2], [0.1]], scale, card(scale, 1.0, 1.0))
    assert [c.scores for c in found] == [(0.1, 0.2)]


def test_labels_are_weighed_and_only_shared_attributes_count() -> None:
    rows = {"a": {"tact": 0.0, "wit": 4.0}, "b": {"tact": 2.0, "wit": 0.0}, "c": {"wit": 3.0}}
    group, tokens = labelled("x", *rows.values())
    scale = LabelScale.fit([group], (), per_rater=False, standardised=True)
    scores = [[0.1, 0.2, 0.3]]  # a, b, c
    by_wit = compare_labels([group], [tokens], scores, scale, card(scale, 0.0, 1.0))
    assert {c.scores for c in by_wit} == {(0.1, 0.2), (0.1, 0.3), (0.3, 0.2)}
    by_tact = compare_labels([group], [tokens], scores, scale, card(scale, 1.0, 0.0))
    assert [c.scores for c in by_tact] == [(0.2, 0.1)]


def test_plain_text_and_equal_labels_are_compared_with_nothing() -> None:
    for rows in ([labelled("", {"wit": 1.0}, {"wit": 2.0})], [labelled("x", {"wit": 1.0}, {"wit": 1.0})]):
        groups, tokens = [g for g, _ in rows], [t for _, t in rows]
        scale = LabelScale.fit([labelled("y", {"wit": 1.0}, {"wit": 2.0})[0]], (), per_rater=False, standardised=True)
        assert compare_labels(groups, tokens, [[0.1, 0.2]], scale, card(scale, 1.0)) == []


def test_regression_by_hand() -> None:
    """wit 1, 3 becomes -1, 1; the heads say -.5, 1. tact is known once, 5 of (3, 5): 1, and the head says 0.

    Squared errors .25, 0, 1 against 1, 1, 1 of the mean. wit: 1 - .125 / 1.
    """
    train = [labelled("t", {"wit": 1.0, "tact": 3.0}, {"wit": 3.0, "tact": 5.0})[0]]
    scale = LabelScale.fit(train, ("wit", "tact"), per_rater=False, standardised=True)
    group, tokens = labelled("x", {"wit": 1.0}, {"wit": 3.0, "tact": 5.0})
    metrics = report_labels([group], [tokens], [torch.tensor([[-0.5, 9.0], [1.0, 0.0]])], scale, card(scale, 0.5, 0.5))
    assert metrics["heldout/mse"] == pytest.approx(1.25 / 3)
    assert metrics["heldout/mse_of_mean"] == pytest.approx(1.0)
    assert (metrics["heldout/labels"], metrics["heldout/missing_labels"]) == (3, 1)
    assert metrics["heldout/explained/wit"] == pytest.approx(1 - 0.125)
    assert metrics["heldout/explained/tact"] == pytest.approx(0.0)
    assert metrics["heldout/pearson/wit"] == pytest.approx(1.0)
    assert metrics["heldout/spearman/wit"] == pytest.approx(1.0)
    assert metrics["heldout/pearson/tact"] == 0.0  # one number
    assert "heldout/ece" not in metrics


def test_correlations_by_hand() -> None:
    """Said 1, 2, 3, 10 for labels 1, 2, 4, 3: ranks differ by 0, 0, 1, 1, so Spearman is 1 - 6 * 2 / (4 * 15) = .8."""
    group, tokens = labelled("x", *({"wit": y} for y in (1.0, 2.0, 4.0, 3.0)))
    scale = LabelScale.fit([group], (), per_rater=False, standardised=True)
    metrics = report_labels([group], [tokens], [torch.tensor([[1.0], [2.0], [3.0], [10.0]])], scale, card(scale, 1.0))
    assert metrics["heldout/spearman/wit"] == pytest.approx(0.8)
    assert metrics["heldout/pearson/wit"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [1, 2, 4, 3])[0, 1])


def test_chances_are_compared_as_chances() -> None:
    """Logits 0 and ln 4: chances .5 and .8, labels 0 and 1. Training labels 0, 0, 1, 1: mean 1/2."""
    train, _ = labelled("t", *({"good": y} for y in (0.0, 0.0, 1.0, 1.0)))
    scale = LabelScale.fit([train], (), per_rater=False, standardised=False)
    group, tokens = labelled("x", {"good": 0.0}, {"good": 1.0})
    metrics = report_labels([group], [tokens], [torch.tensor([[0.0], [math.log(4)]])], scale, card(scale, 1.0))
    assert metrics["heldout/mse"] == metrics["heldout/brier"] == pytest.approx((0.25 + 0.04) / 2)
    assert metrics["heldout/mse_of_mean"] == pytest.approx(0.25)
    assert metrics["heldout/ece"] == pytest.approx((0.5 + 0.2) / 2)
    assert (metrics["heldout/auc/good"], metrics["heldout/longer_auc/good"]) == (1.0, 0.5)  # of one length


def test_area_under_the_curve_by_hand() -> None:
    """Yes 1 and 3, no 1 and 2: of four pairs two are above, one is below, one is level."""
    assert auc(np.array([1.0, 3.0, 1.0, 2.0]), np.array([True, True, False, False])) == pytest.approx(2.5 / 4)


def test_there_are_at_most_a_few_dozen_numbers() -> None:
    names = [f"a{i}" for i in range(30)]
    rows = [labelled("x", *({name: float(i + j) for name in names} for j in range(3))) for i in range(4)]
    groups, tokens = [group for group, _ in rows], [item for _, item in rows]
    scale = LabelScale.fit(groups, (), per_rater=False, standardised=True)
    outputs = [torch.zeros(3, 30) for _ in groups]
    assert len(report_labels(groups, tokens, outputs, scale, card(scale, *[1.0] * 30))) <= 4 + 3 * MOST
    pairs = [compared(source=f"s{i}", rater=f"r{j}") for i in range(30) for j in range(30)]
    assert len(report_pairs(pairs, std=1.0)) <= 14 + 2 * MOST
