"""A bake-off's table, matrix, sentences and picture, on rows made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.report.bakeoff import markdown, matrix, notes, omissions, overview, page, verdict
from trimtab.report.bakeoff_numbers import by_method, heldout, over_start, paired
from trimtab.report.bakeoff_pictures import draw

CARD = {"accuracy": 0.78, "accuracy_lo": 0.72, "accuracy_hi": 0.83, "n": 230, "longer_wins": 0.51}
TRUST = "The judge agrees with 78.0 % of 230 held-out verdicts (72.0 to 83.0 %); picking the longer answer, 51.0 %. "


def row(method: str, seed: int, scores: Sequence[float], **facts: Any) -> dict[str, Any]:
    count = max(1, len(scores))
    return {
        "method": method, "seed": seed, "revision": "abc", "code": "c", "machine": "here", "start": f"s{seed}",
        "pace": None, "asked": {}, "scores": list(scores), "prompts": [f"q{i}" for i in range(count)], "judge": CARD,
        "steps": 7, "seconds": 90.0, "peak_gb": 1.0, "trained_tokens": 1000, "metrics": {}, "kl": [1.0] * count,
        "tokens": [10] * count, "ended": [True] * count, **facts,
    }  # fmt: skip


def small() -> list[dict[str, Any]]:
    """Four prompts; dpo with two seeds, kto with one, the start (sft) with two."""
    accuracies = [
        {"heldout/accuracy": share, "heldout/prompts": 100.0, "heldout/longer_wins": 0.4} for share in (0.7, 0.8)
    ]
    return [
        row("sft", 0, [0, 0, 0, 0], kl=[0.0] * 4, steps=20),
        row("sft", 1, [0, 0, 0, 0], kl=[0.0] * 4, steps=20),
        row(
            "dpo", 0, [1, 1, 1, -1], kl=[4.0, 2.0, 0.0, 2.0], tokens=[10, 20, 30, 40], ended=[True, True, True, False],
            metrics=accuracies[0], seconds=60.0, peak_gb=1.24, trained_tokens=2000,
        ),
        row("dpo", 1, [1, 1, -1, -1], metrics=accuracies[1], seconds=120.0, peak_gb=1.26, trained_tokens=2003),
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


def test_held_out_accuracy_is_a_mean_over_seeds_with_an_interval_over_prompts() -> None:
    methods = by_method(small())
    found = heldout(methods["dpo"])
    assert found is not None
    assert found[0] == 0.75
    # Wilson for 75 of 100: (0.75 + 0.019207 -+ 1.96 sqrt(0.1875 / 100 + 0.0000922)) / 1.038415
    assert found[1:] == (pytest.approx(0.6570, abs=1e-4), pytest.approx(0.8245, abs=1e-4))
    assert heldout(methods["kto"]) is None


def test_the_table_by_hand() -> None:
    head, sft, dpo, kto = (
        dict(zip(overview(small(), "sft")[0], line, strict=True)) for line in overview(small(), "sft")
    )
    over, right = "over sft, % (95 %)", "held-out pairs right, % (95 %)"
    assert head[over] == over
    assert sft == {
        "method": "sft", over: "", "each seed": "", right: "", "KL, nats": "0.0", "tokens": "10", "ended, %": "100",
        "steps": "20", "tokens trained": "1,000", "minutes": "1.5", "peak GB": "1.0",
    }  # fmt: skip
    assert dpo == {
        "method": "dpo", over: "62.5 (23.7 to 89.9)", "each seed": "75.0, 50.0", right: "75.0 (65.7 to 82.5)",
        "KL, nats": "1.5", "tokens": "18", "ended, %": "88", "steps": "7", "tokens trained": "2,002", "minutes": "1.5",
        "peak GB": "1.3",
    }  # fmt: skip
    assert (kto[over], kto["each seed"]) == ("50.0 (17.6 to 82.4)", "50.0")  # 1, 0, 1/2, 1/2: 5.33 prompts


def test_the_matrix_by_hand() -> None:
    assert matrix(small()) == [
        ["over, %", "sft", "dpo", "kto"],
        ["sft", "", "37.5", "50.0"],
        ["dpo", "62.5", "", "50.0"],
        ["kto", "50.0", "50.0", ""],
    ]


def test_a_star_stands_where_the_interval_leaves_out_one_half() -> None:
    table = matrix([START, many("good", 70), many("fair", 55), many("bad", 30)])
    assert [line[1] for line in table] == ["sft", "", "70.0*", "55.0", "30.0*"]
    assert table[1][1:] == ["", "30.0*", "45.0", "70.0*"]


def test_markdown() -> None:
    assert markdown([["a", "b"], ["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |"


# --- in words ---------------------------------------------------------------------------------------------------------


def test_one_clear_winner() -> None:
    rows = [START, many("dpo", 80, size=2.0), many("kto", 52)]  # head to head dpo wins 80
    assert verdict(rows, "sft") == (
        f"{TRUST}Preferred to sft: dpo. Not told apart from sft: kto. Highest: dpo (80.0 %); every other method is "
        "behind it."
    )
    assert (
        "Each interval speaks of one comparison alone: of 3, about 0.2 would leave out 50 % even if no two methods "
        "differed."
    ) in notes(rows, "sft")


def test_nothing_decided() -> None:
    said = verdict([START, many("dpo", 52), many("kto", 49, size=2.0)], "sft")
    assert said == (f"{TRUST}Not told apart from sft: dpo, kto. Highest: dpo (52.0 %); not shown to be behind it: kto.")


def test_less_liked_than_the_start() -> None:
    said = verdict([START, many("dpo", 30), many("kto", 10)], "sft")
    assert said == f"{TRUST}Less liked than sft: dpo, kto. Highest: dpo (30.0 %); every other method is behind it."


def test_the_highest_may_still_lose_to_another() -> None:
    # Over sft dpo is first, 70 to 60; of the two, kto wins wherever it wins at all: 60 of 100.
    said = verdict([START, many("dpo", 70), many("kto", 60, size=2.0)], "sft")
    assert "Highest: dpo (70.0 %); not shown to be behind it: kto." in said


def test_a_method_without_a_common_seed_is_not_said_to_be_behind() -> None:
    rows = [START, {**START, "seed": 1}, many("dpo", 80), many("kto", 60, seed=1)]
    assert "Highest: dpo (80.0 %); not shown to be behind it: kto." in verdict(rows, "sft")


def test_one_method_is_not_called_the_highest() -> None:
    assert verdict([START, many("dpo", 80)], "sft") == f"{TRUST}Preferred to sft: dpo."


def seeds(method: str, *won: int) -> list[dict[str, Any]]:
    return [many(method, count, seed=seed) for seed, count in enumerate(won)]


def test_on_how_many_seeds_it_holds() -> None:
    starts = [{**START, "seed": seed} for seed in range(3)]
    rows = [*starts, *seeds("dpo", 80, 75, 70), *seeds("kto", 90, 90, 45), *seeds("bad", 10, 20, 55)]
    said = verdict(rows, "sft")
    assert "Preferred to sft: dpo (3 of 3 seeds), kto (2 of 3 seeds)." in said
    assert "Less liked than sft: bad (2 of 3 seeds)." in said


def test_what_would_hold_with_other_seeds() -> None:
    starts = [{**START, "seed": seed} for seed in range(2)]
    # s² = 2 x 0.005 / 2, s = 7.1 points; t(2) s / sqrt(2) = 21.5 points for the seeds, some 7 to 9 for the prompts.
    said = verdict([*starts, *seeds("dpo", 75, 85), *seeds("kto", 60, 70)], "sft")
    assert (
        "Preferred to sft: dpo (2 of 2 seeds), kto (2 of 2 seeds). As far as these seeds tell, it would hold with"
        in said
    )
    assert "with others too for dpo. Highest" in said
    said = verdict([*starts, *seeds("dpo", 65, 75), *seeds("kto", 60, 70)], "sft")
    assert "As far as these seeds tell, with other seeds none of that need hold." in said
    assert "other seeds" not in verdict([*starts, *seeds("dpo", 45, 55)], "sft")  # nothing was said to hold


def test_how_far_seeds_are_apart() -> None:
    rows = [*({**START, "seed": seed} for seed in range(2)), *seeds("dpo", 70, 80), *seeds("kto", 50, 60)]
    # s² = (0.005 + 0.005) / 2 = 0.005 each way: s = 7.07 points; t(2) = 4.303; 4.303 x 7.07 x sqrt(2 / 2) = 30.4
    assert (
        "From seed to seed a method's rate over sft varies by 7.1 points (standard deviation). Two methods less than "
        "30 points apart may differ by their seeds alone, whatever the stars say."
    ) in notes(rows, "sft")
    assert any(note.startswith("One seed: another could") for note in notes([START, many("dpo", 60)], "sft"))


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({**CARD, "accuracy_lo": 0.5}, "It is not shown to beat a coin, so what follows says little. Preferred"),
        ({}, "How far the judge can be trusted was not measured (evaluate.judge_heldout). Preferred"),
    ],
)
def test_a_judge_that_is_not_to_be_trusted_is_said_first(judge: dict[str, Any], said: str) -> None:
    assert said in verdict([{**START, "judge": judge}, {**many("dpo", 80), "judge": judge}], "sft")


@pytest.mark.parametrize(
    "rows", [[START], [many("dpo", 50)], [row("sft", 0, []), row("dpo", 0, [])], [START, many("dpo", 50, seed=1)]]
)
def test_nothing_judged(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert verdict(rows, "sft") == "No method was judged beside sft yet."
    assert over_start(rows, "sft") == {}
    assert len(overview(rows, "sft")) == 1 + len(by_method(rows))
    assert len(matrix(rows)) == 1 + len(by_method(rows))
    draw(rows, "sft", tmp_path / "p.png")  # what it cost can be shown all the same
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_rows_of_different_origin_are_told() -> None:
    assert not any("Rows made by" in note or "machines" in note for note in notes([START, many("dpo", 80)], "sft"))
    old = {**many("dpo", 80, seed=1), "code": "d", "revision": "def", "machine": "there", "start": "other"}
    said = notes([START, {**START, "seed": 1}, many("dpo", 80), old], "sft")
    assert "Rows made by different code are counted together: dpo (abc, def)." in said
    assert "The rows come from 2 machines: here; there." in said
    assert any(note.startswith("Seed 1: its start was trained more than once") for note in said)


def test_the_budget_and_who_did_not_keep_it() -> None:
    def limited(method: str, seconds: float, machine: str = "here", **budget: float) -> dict[str, Any]:
        pace = {"steps": 7, "each": 1.0, "machine": machine}
        return {**many(method, 60), "seconds": seconds, "pace": pace, "asked": {"budget": budget}}

    said = notes([START, limited("dpo", 60.0, minutes=1.0), limited("kto", 72.0, minutes=1.0)], "sft")
    assert any("so that it trains for 1 minute; every seed does as many." in note for note in said)
    assert (
        "Off the budget, in minutes: kto 1.2. The machine was busier or idler than when steps were chosen, or steps "
        "grew." in said
    )
    said = notes([START, limited("dpo", 60.0, minutes=1.0), limited("kto", 60.0, "there", minutes=1.0)], "sft")
    assert "Steps were chosen on different machines (here; there): the same time is not the same." in said
    said = notes([START, limited("dpo", 60.0, tokens=2000), limited("kto", 72.0, "there", tokens=2000)], "sft")
    assert any("trains for 2,000 tokens" in note for note in said)
    assert not any("Off the budget" in note or "Steps were chosen on" in note for note in said)


def test_the_page_holds_all_of_it() -> None:
    rows, others = small(), {"stages.dpo.beta 0.1, not 0.2": ["dpo 0", "dpo 1"]}
    text = page(rows, "sft", others, "bakeoff.svg")
    place = [
        text.index(part)
        for part in (
            verdict(rows, "sft"), markdown(overview(rows, "sft")), "(bakeoff.svg)", markdown(matrix(rows)),
            "- Over sft: ",
            "- On the held-out pairs, always picking the longer answer is right on 40.0 %.",
            "- Not counted, stages.dpo.beta 0.1, not 0.2: dpo 0, dpo 1.",
        )
    ]  # fmt: skip
    assert place == sorted(place)
    assert omissions({}) == []


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
