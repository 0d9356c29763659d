"""The one line: it says who, how sure and at what price, and never hides what makes it void."""

from __future__ import annotations

from math import inf, log

import pytest

from trimtab.stats.experiments import Guardrail, check_guardrail, sample_ratio
from trimtab.stats.length_control import LengthControlled
from trimtab.stats.mean_sequence import Sample
from trimtab.stats.sequential import log_e_value
from trimtab.stats.verdict import decided_needed, paired_verdict

CONTROLLED = LengthControlled(
    raw=0.6, controlled=0.531, lo=0.5, hi=0.56, length=0.4, difficulty=0.0, quality=0.1, inverse_penalty=1.0, n=9
)
OLD = Sample(n=4000, mean=0.05, variance=0.0475)
FINE = check_guardrail(Guardrail(name="latency", margin=0.02), OLD, OLD, expected_n=5000)
BREACH = check_guardrail(
    Guardrail(name="latency", margin=0.02), OLD, Sample(n=4000, mean=0.2, variance=0.16), expected_n=5000
)


def test_a_winner() -> None:
    found = paired_verdict([1.0] * 660 + [0.0] * 480 + [0.5] * 64, new="B", controlled=CONTROLLED, guardrails=[FINE])
    assert found.decision == "new"
    assert found.more == 0
    assert found.line == (
        "B better: B wins 57.9 % [53.1, 62.6] anytime-valid, n=1,204 (64 ties left out), "
        "length-controlled 53.1 %, guardrails ok"
    )


def test_the_old_one_wins() -> None:
    found = paired_verdict([0.0] * 700 + [1.0] * 400, new="B", old="A")
    assert found.decision == "old"
    assert found.line.startswith("A better: B wins 36.4 %")


def test_not_yet_and_never() -> None:
    won = [1.0] * 110 + [0.0] * 90
    found = paired_verdict(won, per_day=300)
    assert found.decision == "undecided"
    assert found.more == decided_needed(0.55) - 200
    assert found.line.endswith(f"n=200, ~{round(found.more / 300)} days to decide")
    assert paired_verdict(won, cap=200, per_day=300).line.startswith("no decision: ")
    even = paired_verdict([1.0, 0.0] * 50, per_day=10)
    assert even.more == inf
    assert even.line.endswith("no end in sight")
    assert paired_verdict([]).line.startswith("no decision yet: new wins 50.0 % [0.0, 100.0]")


def test_ties_make_the_road_longer() -> None:
    won = [1.0] * 110 + [0.0] * 90
    assert paired_verdict([*won, *[0.5] * 200]).more == pytest.approx(2 * paired_verdict(won).more)


def test_a_breach_keeps_the_old_one() -> None:
    found = paired_verdict([1.0] * 300 + [0.0] * 100, guardrails=[FINE, BREACH])
    assert found.decision == "old"
    assert "new better, but old stays" in found.line
    assert "guardrails breached: latency" in found.line


def test_a_bad_split_withholds_everything() -> None:
    found = paired_verdict([1.0] * 300 + [0.0] * 100, ratio=sample_ratio([6000, 5000], [1, 1]))
    assert found.decision == "withheld"
    assert "verdict withheld" in found.line


@pytest.mark.parametrize("rate", [0.52, 0.55, 0.7, 0.3])
def test_needed_is_the_first_number_that_decides(rate: float) -> None:
    n = decided_needed(rate)
    assert float(log_e_value(rate * n, (1 - rate) * n)) >= log(20)
    assert float(log_e_value(rate * (n - 2), (1 - rate) * (n - 2))) < log(20)
