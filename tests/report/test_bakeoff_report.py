"""A bake-off's table, matrix, sentences and picture, on rows made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.report.bakeoff import by_method, draw, markdown, matrix, over_start, overview, paired, verdict


def row(method: str, seed: int, scores: Sequence[float], **facts: Any) -> dict[str, Any]:
    count = max(1, len(scores))
    return {
        "method": method, "seed": seed, "revision": "abc", "scores": list(scores), "steps": 7, "seconds": 90.0,
        "peak_gb": 1.0, "trained_tokens": 1000, "metrics": {}, "kl": [1.0] * count, "tokens": [10] * count,
        "ended": [True] * count, **facts,
    }  # fmt: skip


def small() -> list[dict[str, Any]]:
    """Four prompts; dpo with two seeds, kto with one, the start (sft) with two."""
    accuracy = "heldout/accuracy"
    return [
        row("sft", 0, [0, 0, 0, 0], kl=[0.0] * 4, steps=20),
        row("sft", 1, [0, 0, 0, 0], kl=[0.0] * 4, steps=20),
        row(
            "dpo", 0, [1, 1, 1, -1], kl=[4.0, 2.0, 0.0, 2.0], tokens=[10, 20, 30, 40], ended=[True, True, True, False],
            metrics={accuracy: 0.7}, seconds=60.0, peak_gb=1.24, trained_tokens=2000,
        ),
        row("dpo", 1, [1, 1, -1, -1], metrics={accuracy: 0.8}, seconds=120.0, peak_gb=1.26, trained_tokens=2003),
        row("kto", 0, [2, -1, 0, 0]),
    ]  # fmt: skip


def many(method: str, won: int, of: int = 100, seed: int = 0, size: float = 1.0) -> dict[str, Any]:
    """A method that the judge puts above zero on ``won`` prompts and below it on the rest."""
    return row(method, seed, [size] * won + [-size] * (of - won))


START = row("sft", 0, [0.0] * 100)


def test_a_prompt_counts_once_its_seeds_averaged() -> None:
    methods = by_method(small())
    found = paired(methods["dpo"], methods["sft"])
    assert found is not None
    rate, seeds = found
    # Outcomes 1, 1, 1, 0 and 1, 1, 0, 0: the prompts' means are 1, 1, 1/2, 0.
    assert (rate.mean, rate.n, rate.wins, rate.ties, rate.losses) == (0.625, 4, 2, 1, 1)
    assert seeds == [0.75, 0.5]
    # Their variance is 0.171875, of 0.234375 without ties: 4 / ((4 x 0.7333 + 4) / 8) = 4.6154 prompts for Wilson.
    assert (rate.lo, rate.hi) == (pytest.approx(0.23703, abs=1e-5), pytest.approx(0.89941, abs=1e-5))


def test_only_seeds_that_both_have_are_compared() -> None:
    methods = by_method(small())
    found = paired(methods["dpo"], methods["kto"])
    assert found is not None
    assert (found[0].mean, found[1]) == (0.5, [0.5])  # 1 < 2, 1 > -1, 1 > 0, -1 < 0
    assert paired([row("a", 0, [1.0])], [row("b", 1, [0.0])]) is None
    assert paired([row("a", 0, [])], [row("b", 0, [])]) is None
    assert paired([row("a", 0, [1.0])], []) is None


def test_pairing_is_by_seed_not_by_place() -> None:
    a = [row("a", 1, [0.0]), row("a", 0, [1.0])]
    b = [row("b", 0, [0.0]), row("b", 1, [1.0])]
    found = paired(a, b)
    assert found is not None
    assert found[1] == [1.0, 0.0]


def test_methods_keep_their_order_however_rows_are_mixed() -> None:
    rows = [row("b", 1, []), row("a", 0, []), row("b", 0, [])]
    assert [(name, [r["seed"] for r in own]) for name, own in by_method(rows).items()] == [("b", [0, 1]), ("a", [0])]


def test_the_table_by_hand() -> None:
    head, sft, dpo, kto = (
        dict(zip(overview(small(), "sft")[0], line, strict=True)) for line in overview(small(), "sft")
    )
    assert head["over sft"] == "over sft"
    assert sft == {
        "method": "sft", "right on held-out pairs": "", "over sft": "", "95 %, by prompt": "", "each seed": "",
        "KL, nats": "0.0", "answer tokens": "10", "ended": "100.0 %", "steps": "20", "trained tokens": "1,000",
        "minutes": "1.5", "peak GB": "1.0",
    }  # fmt: skip
    assert dpo == {
        "method": "dpo", "right on held-out pairs": "75.0 %", "over sft": "62.5 %",
        "95 %, by prompt": "23.7 % to 89.9 %", "each seed": "75.0 %, 50.0 %",
        "KL, nats": "1.5", "answer tokens": "18", "ended": "87.5 %", "steps": "7",
        "trained tokens": "2,002", "minutes": "1.5", "peak GB": "1.3",
    }  # fmt: skip
    assert (kto["over sft"], kto["each seed"]) == ("50.0 %", "50.0 %")  # 1, 0, 1/2, 1/2


def test_the_matrix_by_hand() -> None:
    assert matrix(small()) == [
        ["over", "sft", "dpo", "kto"],
        ["sft", "", "37.5 %", "50.0 %"],
        ["dpo", "62.5 %", "", "50.0 %"],
        ["kto", "50.0 %", "50.0 %", ""],
    ]


def test_a_star_stands_where_the_interval_leaves_out_one_half() -> None:
    table = matrix([START, many("good", 70), many("fair", 55), many("bad", 30)])
    assert [line[1] for line in table] == ["sft", "", "70.0 %*", "55.0 %", "30.0 %*"]
    assert table[1][1:] == ["", "30.0 %*", "45.0 %", "70.0 %*"]


def test_markdown() -> None:
    assert markdown([["a", "b"], ["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |"


# --- in words ---------------------------------------------------------------------------------------------------------


def test_one_clear_winner() -> None:
    rows = [START, many("dpo", 80, size=2.0), many("kto", 52)]  # head to head dpo wins 80
    assert verdict(rows, "sft") == (
        "Preferred to sft: dpo. Not told apart from sft: kto. Highest: dpo (80.0 %); every other method is behind it. "
        "Each interval speaks of one comparison alone: of 3, about 0.2 would leave out 50 % even if no two methods "
        "differed."
    )


def test_nothing_decided() -> None:
    said = verdict([START, many("dpo", 52), many("kto", 49, size=2.0)], "sft")
    assert said.startswith(
        "Not told apart from sft: dpo, kto. Highest: dpo (52.0 %); not shown to be behind it: kto. Each interval"
    )


def test_less_liked_than_the_start() -> None:
    said = verdict([START, many("dpo", 30), many("kto", 10)], "sft")
    assert said.startswith("Less liked than sft: dpo, kto. Highest: dpo (30.0 %); every other method is behind it.")


def test_the_highest_may_still_lose_to_another() -> None:
    # Over sft dpo is first, 70 to 60; of the two, kto wins wherever it wins at all: 60 of 100.
    said = verdict([START, many("dpo", 70), many("kto", 60, size=2.0)], "sft")
    assert "Highest: dpo (70.0 %); not shown to be behind it: kto." in said


def test_a_method_without_a_common_seed_is_not_said_to_be_behind() -> None:
    rows = [START, {**START, "seed": 1}, many("dpo", 80), many("kto", 60, seed=1)]
    assert "Highest: dpo (80.0 %); not shown to be behind it: kto." in verdict(rows, "sft")


def test_one_method_is_not_called_the_highest() -> None:
    assert verdict([START, many("dpo", 80)], "sft") == "Preferred to sft: dpo."


@pytest.mark.parametrize(
    "rows", [[START], [many("dpo", 50)], [row("sft", 0, []), row("dpo", 0, [])], [START, many("dpo", 50, seed=1)]]
)
def test_nothing_judged(rows: list[dict[str, Any]]) -> None:
    assert verdict(rows, "sft") == "No method was judged beside sft yet."
    assert over_start(rows, "sft") == {}
    assert len(overview(rows, "sft")) == 1 + len(by_method(rows))
    assert len(matrix(rows)) == 1 + len(by_method(rows))


def test_rows_of_two_revisions_are_told() -> None:
    rows = [START, {**many("dpo", 80), "revision": "def"}]
    assert verdict(rows, "sft").endswith("The rows come from 2 revisions of the code.")


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    draw(small(), "sft", tmp_path / "a.svg")
    draw(small(), "sft", tmp_path / "b.svg")
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert picture.startswith(b"<?xml")
    assert b"<dc:date>" not in picture
    draw([*small()[:-1], row("kto", 0, [2, 1, 0, 0])], "sft", tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes() != picture


@pytest.mark.parametrize("won", [0, 1, 99, 100])
def test_a_rate_at_the_edge_is_drawn(won: int, tmp_path: Path) -> None:
    draw([START, many("dpo", won)], "sft", tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
