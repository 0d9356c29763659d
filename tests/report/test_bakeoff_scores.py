"""A bake-off whose answers got scores from rules or a reward model, and the frontier, on rows made by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from trimtab.report.bakeoff import matrix, notes, overview, page, verdict
from trimtab.report.bakeoff_numbers import JUDGE, Measure, by_method, compare, families, gain, measures
from trimtab.report.bakeoff_pictures import draw, frontier
from trimtab.stats.winrate import win_rate

NUMBER, TONE = Measure(name="number"), Measure(name="tone", share=False)


def row(method: str, seed: int, measured: dict[str, Sequence[float]] | None = None, **facts: Any) -> dict[str, Any]:
    given = {name: list(values) for name, values in (measured or {}).items()}
    count = len(next(iter(given.values()), [0]))
    return {
        "method": method, "seed": seed, "revision": "abc", "code": "c", "machine": "here", "start": f"s{seed}",
        "pace": None, "asked": {}, "scores": [], "measured": given, "prompts": [f"q{i}" for i in range(count)],
        "judge": {}, "steps": 12, "seconds": 90.0, "peak_gb": 1.0, "trained_tokens": 0, "sampled": 96,
        "sampled_tokens": 960, "metrics": {}, "kl": [1.0] * count, "tokens": [10] * count, "ended": [True] * count,
        **facts,
    }  # fmt: skip


def base(seed: int, **measured: Sequence[float]) -> dict[str, Any]:
    none = {"peak_gb": None, "steps": 0, "seconds": 0.0, "sampled": 0, "sampled_tokens": 0}
    return row("base", seed, measured, kl=[0.0] * len(next(iter(measured.values()))), **none)


def sums() -> list[dict[str, Any]]:
    """Four sums, two seeds: right or wrong."""
    return [
        base(0, number=[1, 0, 0, 0]),
        base(1, number=[0, 0, 0, 0]),
        row("grpo", 0, {"number": [1, 1, 1, 0]}),
        row("grpo", 1, {"number": [1, 1, 0, 0]}),
        row("raft", 0, {"number": [1, 0, 0, 0]}, sampled=84),
    ]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_what_rows_were_judged_by() -> None:
    assert measures(sums()) == [NUMBER]
    both = {"number": [0.0, 1.0], "reward model": [0.5, 1.0]}
    judged = [{**row("sft", 0, both), "scores": [0.1, 0.2]}]
    assert measures(judged) == [JUDGE, NUMBER, Measure(name="reward model", share=False)]
    old = row("sft", 0)
    del old["measured"]  # written before there were scores
    assert measures([old]) == []


def test_a_gain_is_paired_by_prompt_and_seed() -> None:
    methods = by_method(sums())
    found = gain(methods["grpo"], methods["base"], NUMBER)
    assert found is not None
    # Differences 0, 1, 1, 0 and 1, 1, 0, 0: the prompts' means are 1/2, 1, 1/2, 0, and the seeds' 1/2 each.
    assert (found.mean, found.seeds) == (0.5, [0.5, 0.5])
    # As outcomes (1 + d) / 2 they are 3/4, 1, 3/4, 1/2: what the judge's ties would be.
    rate = win_rate([0.75, 1.0, 0.75, 0.5])
    assert (found.lo, found.hi) == (2 * rate.lo - 1, 2 * rate.hi - 1)
    one = gain(methods["raft"], methods["base"], NUMBER)  # one seed in common
    assert one is not None
    assert (one.mean, one.seeds, one.sign) == (0.0, [0.0], 0)
    assert one.lo < 0 < one.hi  # though no prompt differs


def test_a_gain_of_a_score_is_students() -> None:
    a, b = row("a", 0, {"tone": [0.5, 0.1, 0.9]}), row("b", 0, {"tone": [0.2, 0.2, 0.2]})
    found = gain([a], [b], TONE)
    assert found is not None
    # Differences .3, -.1, .7: mean .3, deviation .4; t(2) = 4.3027, times .4 / sqrt(3) = .9937.
    assert found.mean == pytest.approx(0.3)
    assert (found.lo, found.hi) == (pytest.approx(0.3 - 0.9937, abs=1e-4), pytest.approx(0.3 + 0.9937, abs=1e-4))
    assert gain([row("a", 0, {"tone": [0.5]})], [row("b", 0, {"tone": [0.2]})], TONE) is None  # one prompt
    assert gain([a], [row("b", 1, {"tone": [0.2] * 3})], TONE) is None  # no seed in common
    assert gain([a], [row("b", 0, {"other": [0.2] * 3})], TONE) is None


scores = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=30)


@settings(deadline=None)
@given(scores, st.floats(-5, 5))
def test_gains_are_opposite_and_a_shift_of_both_is_none(pairs: list[tuple[float, float]], shift: float) -> None:
    a, b = ([row(name, 0, {"tone": values})] for name, values in zip("ab", zip(*pairs, strict=True), strict=True))
    found, back = gain(a, b, TONE), gain(b, a, TONE)
    assert found is not None
    assert back is not None
    assert (found.mean, found.lo, found.hi) == pytest.approx((-back.mean, -back.hi, -back.lo))
    assert found.sign == -back.sign
    moved = [[row(one[0]["method"], 0, {"tone": [v + shift for v in one[0]["measured"]["tone"]]})] for one in (a, b)]
    again = gain(*moved, TONE)
    assert again is not None
    assert (again.mean, again.hi) == pytest.approx((found.mean, found.hi), abs=1e-6)


def test_by_the_judge_nothing_but_who_is_preferred_counts() -> None:
    a, b = ({**row(name, 0), "scores": values} for name, values in (("a", [9.0, 1.0]), ("b", [0.0, 2.0])))
    found = compare([a], [b])
    assert found is not None
    assert (found.mean, found.level, found.seeds) == (0.5, 0.5, [0.5])


# --- tables and words -------------------------------------------------------------------------------------------------


def lines(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    head, *rest = overview(rows, "base")
    return {line[0]: dict(zip(head, line, strict=True)) for line in rest}


def test_a_table_without_a_judge() -> None:
    found = lines(sums())
    assert list(found["grpo"]) == [
        "method", "number, %", "number over base (95 %)", "number, each seed", "KL, nats", "tokens", "ended, %",
        "steps", "answers sampled", "tokens sampled", "minutes", "peak GB",
    ]  # fmt: skip
    assert found["base"] == {
        "method": "base", "number, %": "12.5", "number over base (95 %)": "", "number, each seed": "25.0, 0.0",
        "KL, nats": "0.0", "tokens": "10", "ended, %": "100", "steps": "", "answers sampled": "", "tokens sampled": "",
        "minutes": "", "peak GB": "",
    }  # fmt: skip
    assert found["grpo"]["number, %"] == "62.5"
    assert re.fullmatch(r"\+50\.0 \([+-]\d+\.\d to \+\d+\.\d\)", found["grpo"]["number over base (95 %)"])
    assert found["grpo"]["number, each seed"] == "75.0, 50.0"
    assert found["raft"]["number, each seed"] == ""  # one seed says what the mean says
    assert (found["grpo"]["answers sampled"], found["grpo"]["tokens sampled"]) == ("96", "960")


def test_scores_that_are_no_shares_are_told_as_they_are() -> None:
    rows = [base(0, tone=[-0.5, 0.0]), row("ppo", 0, {"tone": [0.5, 0.25]})]
    found = lines(rows)
    assert (found["base"]["tone"], found["ppo"]["tone"]) == ("-0.25", "0.38")
    # Differences 1 and 1/4: mean 5/8, deviation .5303; t(1) = 12.706, times .5303 / sqrt(2) = 4.7648.
    assert found["ppo"]["tone over base (95 %)"] == "+0.62 (-4.14 to +5.39)"
    assert matrix(rows, TONE) == [["tone", "base", "ppo"], ["base", "", "-0.62"], ["ppo", "+0.62", ""]]


def many(method: str, right: int, seed: int = 0, of: int = 100, **facts: Any) -> dict[str, Any]:
    return row(method, seed, {"number": [1] * right + [0] * (of - right)}, **facts)


def test_the_verdict_by_a_rule() -> None:
    rows = [base(0, number=[1] * 27 + [0] * 73), many("grpo", 90), many("rloo", 88), many("raft", 29), many("bad", 3)]
    assert verdict(rows, "base") == (
        "number: base has 27.0 %. Above base by number: grpo, rloo. Below base by number: bad. Not told apart from "
        "base by number: raft. Highest by number: grpo (90.0 %); not shown to be behind it: rloo."
    )
    assert matrix(rows, NUMBER)[2] == ["grpo", "+63.0*", "", "+2.0", "+61.0*", "+87.0*"]


def test_the_verdict_by_a_rule_over_seeds() -> None:
    rows = [base(seed, number=[1] * 20 + [0] * 80) for seed in (0, 1, 2)]
    rows += [many("grpo", right, seed) for seed, right in enumerate((80, 85, 75))]
    rows += [many("ppo", right, seed) for seed, right in enumerate((60, 62, 21))]
    said = verdict(rows, "base")
    assert "Above base by number: grpo (3 of 3 seeds), ppo (3 of 3 seeds). " in said
    # s² = (.05² + .2312²) / 2, grpo's and ppo's: s = .1673, and t(4) s / sqrt(3) = .268
    s = sqrt((0.05**2 + 0.23116**2) / 2)
    assert student.ppf(0.975, 4) * s / sqrt(3) == pytest.approx(0.268, abs=1e-3)
    assert "it would hold with others too for grpo. Highest" in said  # ppo's .277 is not beyond that and its prompts'
    assert any(
        note.startswith("From seed to seed a method's number over base varies by 16.7 points")
        for note in notes(rows, "base")
    )


def test_judge_and_rule_are_told_one_after_the_other() -> None:
    measured = {"number": [0.0, 1.0]}
    rows = [
        {**row("base", 0, measured), "scores": [0.0, 0.0]},
        {**row("dpo", 0, {"number": [1.0, 1.0]}), "scores": [1.0, 1.0]},
    ]
    said = verdict(rows, "base")
    assert said.index("How far the judge") < said.index("Not told apart from base: dpo") < said.index("number: base")
    found = lines(rows)["dpo"]
    assert (found["over base, % (95 %)"][:5], found["number, %"]) == ("100.0", "100.0")


def test_whether_samples_were_equal() -> None:
    rows = [base(0, number=[0, 1]), many("grpo", 1, of=2), many("ppo", 1, of=2)]
    assert "Every method that samples has sampled 96 answers in training, greedy baselines included." in notes(
        rows, "base"
    )
    said = notes([*rows, many("remax", 1, of=2, sampled=192)], "base")
    assert (
        "Not all have sampled as many answers in training (greedy baselines included): grpo 96, ppo 96, remax 192."
        in said
    )
    assert not any("answers in training" in note for note in notes([base(0, number=[0, 1])], "base"))


def test_a_page_of_a_rule() -> None:
    text = page(sums(), "base", {}, "bakeoff.svg", "frontier.svg")
    assert text.index("| method |") < text.index("(bakeoff.svg)") < text.index("(frontier.svg)")
    assert text.index("(frontier.svg)") < text.index("| number, % | base |") < text.index("- number: the mean over 4")
    assert "judge" not in text
    assert "frontier" not in page(sums(), "base", {}, "bakeoff.svg")


# --- pictures ---------------------------------------------------------------------------------------------------------


def strengths() -> list[dict[str, Any]]:
    """Two methods at two strengths each, and one at one."""
    rows = [base(0, tone=[0.0, 0.1, 0.2])]
    for name, nats, gained in (
        ("dpo-1", 1.0, 0.1), ("dpo-0_1", 4.0, 0.3), ("ppo-0_3", 2.0, 0.2), ("ppo-0_03", 9.0, 0.6), ("kto-1", 3.0, 0.2)
    ):  # fmt: skip
        rows.append(row(name, 0, {"tone": [0.0 + gained, 0.15 + gained, 0.2 + gained]}, kl=[nats] * 3))
    return rows


def test_families_are_methods_at_several_strengths() -> None:
    assert families(strengths(), "base") == {"dpo": ["dpo-1", "dpo-0_1"], "ppo": ["ppo-0_3", "ppo-0_03"]}
    assert families([row("-1", 0), row("-2", 0), row("more_sft", 0)], "sft") == {}
    assert families([row("sft-1", 0), row("sft-2", 0)], "sft-1") == {}


def drawn(path: Path) -> str:
    text = path.read_text()
    assert text.startswith("<?xml")
    return text


def test_the_frontier(tmp_path: Path) -> None:
    assert frontier(strengths(), "base", tmp_path / "a.svg")
    text = drawn(tmp_path / "a.svg")
    for word in ("dpo", "ppo", "0.03", "0.1", "tone", "base"):
        assert f"<!-- {word} -->" in text, word
    assert "<!-- kto -->" not in text  # one strength is no line
    frontier(strengths(), "base", tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()
    assert "<dc:date>" not in text


def test_no_frontier_without_families(tmp_path: Path) -> None:
    path = tmp_path / "none.svg"
    assert not frontier(sums(), "base", path)
    unmeasured = [row(name, 0) for name in ("base", "dpo-1", "dpo-2")]
    assert not frontier(unmeasured, "base", path)
    assert not path.exists()


def test_a_frontier_by_the_judge(tmp_path: Path) -> None:
    rows = [{**row(name, 0), "scores": [0.0, won]} for name, won in (("base", 0.0), ("dpo-1", 1.0), ("dpo-2", -1.0))]
    assert frontier(rows, "base", tmp_path / "p.svg")
    assert "<!-- Preferred to base, % -->" in drawn(tmp_path / "p.svg")


def test_scores_have_a_panel_of_their_own(tmp_path: Path) -> None:
    draw(sums(), "base", tmp_path / "p.svg")
    text = drawn(tmp_path / "p.svg")
    assert "<!-- number, % -->" in text
    assert "Preferred" not in text
    assert text.index("<!-- base (start) -->") < text.index("<!-- raft -->") < text.index("<!-- grpo -->")  # from below
