from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from synthetic_run import REWARD_METRICS, policy_rows, reward_rows, sft_rows

from trimtab.report.health import reward_health, sft_health, stage_health, training_health
from trimtab.report.health_policy import KL_BUDGET, kl_budget, policy_health
from trimtab.report.read import Interval, Row, StageRecord
from trimtab.report.reading import Level, Reading, percent, rising, short, worst


def curve_rows(metric: str, values: list[float]) -> list[Row]:
    return [{"step": float(i), metric: value} for i, value in enumerate(values, start=1)]


def only(readings: list[Reading], name: str) -> Reading:
    (found,) = [reading for reading in readings if reading.name == name]
    return found


def about(mean: float, half: float = 0.05, n: int = 200) -> Interval:
    return Interval(mean=mean, lo=mean - half, hi=mean + half, n=n)


@pytest.mark.parametrize(
    ("metric", "name", "values", "level"),
    [
        ("rollout/kl", "KL", [0, 2, 5, 8, 9.9], "ok"),
        ("rollout/kl", "KL", [0, 5, 10, 15, 20], "watch"),
        ("rollout/kl", "KL", [0, 10, 20, 35, 41], "bad"),
        ("rollout/kl", "KL", [0, -1, -2, -2, -2], "bad"),
        ("rollout/entropy", "Entropy", [2.0, 1.8, 1.6, 1.4, 1.2], "ok"),
        ("rollout/entropy", "Entropy", [2.0, 1.8, 1.6, 1.4, 0.9], "watch"),
        ("rollout/entropy", "Entropy", [2.0, 1.8, 1.0, 0.6, 0.3], "bad"),
        ("rollout/entropy", "Entropy", [2.0, 2.5, 3.0, 4.0, 5.0], "watch"),
        ("rollout/length", "Length", [100, 110, 120, 120, 125], "ok"),
        ("rollout/length", "Length", [100, 110, 120, 140, 150], "watch"),
        ("rollout/length", "Length", [100, 150, 170, 190, 210], "bad"),
        ("rollout/length", "Length", [100, 80, 60, 50, 40], "bad"),
        ("rollout/ended", "Ended answers", [0.7, 0.8, 0.8, 0.9, 0.9], "ok"),
        ("rollout/ended", "Ended answers", [0.9, 0.8, 0.8, 0.7, 0.6], "watch"),
        ("rollout/ended", "Ended answers", [0.9, 0.8, 0.8, 0.7, 0.3], "bad"),
        ("rollout/score_length_correlation", "Score and length", [0.1, 0.1, 0.1, 0.1, -0.2], "ok"),
        ("rollout/score_length_correlation", "Score and length", [0.1, 0.1, 0.1, 0.1, -0.4], "watch"),
        ("rollout/score_length_correlation", "Score and length", [0.1, 0.1, 0.1, 0.1, 0.6], "bad"),
        ("rollout/repeated", "Repetition", [0.3, 0.3, 0.3, 0.3, 0.35], "ok"),
        ("rollout/repeated", "Repetition", [0.0, 0.0, 0.1, 0.1, 0.2], "watch"),
        ("rollout/repeated", "Repetition", [0.0, 0.0, 0.2, 0.4, 0.6], "bad"),
        ("rollout/skipped", "Prompts that teach", [0.9, 0.5, 0.4, 0.4, 0.4], "ok"),
        ("rollout/skipped", "Prompts that teach", [0.2, 0.5, 0.6, 0.6, 0.6], "watch"),
        ("rollout/skipped", "Prompts that teach", [0.2, 0.5, 0.9, 1.0, 1.0], "bad"),
        ("value/explained_variance", "Value function", [-1, 0, 0.3, 0.4, 0.5], "ok"),
        ("value/explained_variance", "Value function", [-1, 0, 0.1, 0.1, 0.1], "watch"),
        ("value/explained_variance", "Value function", [-1, -1, -0.5, -0.5, -0.2], "bad"),
        ("policy/ratio", "Probability ratio", [1, 1.01, 0.99, 1, 1], "ok"),
        ("policy/ratio", "Probability ratio", [1, 0.8, 1, 1, 1], "watch"),
        ("policy/ratio", "Probability ratio", [1, 1, 1, 1.7, 1], "bad"),
        ("policy/clip_fraction", "Clipping", [0, 0.1, 0.1, 0.1, 0.2], "ok"),
        ("policy/clip_fraction", "Clipping", [0, 0.1, 0.1, 0.1, 0.4], "watch"),
        ("policy/clip_fraction", "Clipping", [0, 0.1, 0.1, 0.1, 0.6], "bad"),
        ("policy/approx_kl", "Update size", [0, 0.01, 0.01, 0.01, 0.01], "ok"),
        ("policy/approx_kl", "Update size", [0, 0.01, 0.01, 0.01, 0.05], "watch"),
        ("policy/approx_kl", "Update size", [0, 0.01, 0.01, 0.01, 0.2], "bad"),
        ("rollout/logp_gap", "Sampler and trainer", [1e-5, 1e-5, 1e-5, 1e-5, 1e-5], "ok"),
        ("rollout/logp_gap", "Sampler and trainer", [1e-5, 0.1, 1e-5, 1e-5, 1e-5], "watch"),
        ("rollout/logp_gap", "Sampler and trainer", [0.3, 1e-5, 1e-5, 1e-5, 1e-5], "bad"),
    ],
)
def test_policy_levels(metric: str, name: str, values: list[float], level: Level) -> None:
    reading = only(policy_health(curve_rows(metric, values)), name)
    assert reading.level == level, reading
    assert reading.sentence.endswith(".")


@pytest.mark.parametrize(
    ("gold", "level", "says"),
    [
        ([0.0, 0.5, 1.0, 1.5, 2.0], "ok", "likes the answers more"),
        ([0.0, 1.0, 0.0, -1.0, -2.0, -3.0], "bad", "most from step 1 on: the reward is being gamed"),
        ([0.0, 0.1, 0.0, 0.1, 0.0], "watch", "no clear gain"),
    ],
)
def test_the_gold_scorer_beside_the_reward(gold: list[float], level: Level, says: str) -> None:
    rows = [{"step": float(i), "rollout/score": float(i), "rollout/gold": g} for i, g in enumerate(gold)]
    reading = only(policy_health(rows), "Gold score")
    assert (reading.level, says in reading.sentence) == (level, True), reading


def test_a_metric_that_was_not_logged_has_no_reading() -> None:
    assert policy_health([]) == []
    assert policy_health([{"step": 1.0, "rollout/kl": nan}]) == []
    assert [reading.name for reading in policy_health(curve_rows("rollout/kl", [1.0]))] == ["KL"]


def test_kl_is_held_against_the_configured_budget() -> None:
    rows = curve_rows("rollout/kl", [5.0] * 5)
    assert only(policy_health(rows, budget=4.0), "KL").level == "watch"
    assert only(policy_health(rows, budget=1.0), "KL").level == "bad"
    assert kl_budget({"kl": {"beta": 0.1, "target": 6}}) == 6.0
    assert kl_budget({"kl": {"beta": 0.1, "target": None}}) == kl_budget({}) == KL_BUDGET


RISING, FLAT, FALLING = [0.0, 0.3, 0.5, 0.8, 1.0], [0.5, 0.6, 0.4, 0.6, 0.5], [1.0, 0.8, 0.5, 0.3, 0.0]


@pytest.mark.parametrize(
    ("score", "versus", "matched", "level", "says"),
    [
        (RISING, None, None, "watch", "nothing else was measured"),
        (RISING, about(0.6), None, "ok", "agrees"),
        (RISING, about(0.6), about(0.55, 0.1), "ok", "agrees"),
        (RISING, about(0.6), about(0.48, 0.1), "watch", "may be length"),
        (RISING, about(0.52), None, "watch", "no clear difference"),
        (RISING, about(0.4), None, "bad", "gamed"),
        (FLAT, about(0.6), None, "watch", "did not clearly rise"),
        (FALLING, about(0.6), None, "bad", "fell"),
    ],
)
def test_reward_against_judge(
    score: list[float], versus: Interval | None, matched: Interval | None, level: Level, says: str
) -> None:
    reading = policy_health(curve_rows("rollout/score", score), versus_start=versus, matched=matched)[0]
    assert (reading.name, reading.level) == ("Reward against judge", level)
    assert says in reading.sentence


@pytest.mark.parametrize(
    ("values", "level"), [(FALLING, "ok"), (FLAT, "watch"), (RISING, "bad"), ([1.0, 0.5], "watch")]
)
def test_sft_loss(values: list[float], level: Level) -> None:
    assert only(sft_health(curve_rows("train/loss", values)), "Loss").level == level


def test_sft_by_heart_and_overfitting() -> None:
    assert only(sft_health(curve_rows("train/accuracy", [0.5, 0.6, 0.7, 0.8, 0.97])), "Memorising").level == "watch"
    assert only(sft_health(curve_rows("train/accuracy", [0.5, 0.6, 0.6, 0.6, 0.7])), "Memorising").level == "ok"
    for last, level in ((1.02, "ok"), (1.1, "watch"), (1.3, "bad")):
        rows = curve_rows("heldout/loss", [2.0, nan, 1.0, nan, last])
        assert only(sft_health(rows), "Overfitting").level == level


def test_reward_readings_of_a_good_model() -> None:
    readings = reward_health([], REWARD_METRICS)
    assert {reading.name: reading.level for reading in readings} == {
        "Held-out accuracy": "ok",
        "Against length": "ok",
        "Against cut-off": "ok",
        "Flaws": "ok",
    }


@pytest.mark.parametrize(
    ("longer", "level", "says"),
    [
        (0.6, "ok", "longer answer"),
        (0.67, "watch", "longer answer"),  # below the lower bound, but its own interval reaches 73 %
        (0.8, "bad", "longer answer"),
        (0.2, "bad", "shorter"),  # where longer loses 80 %, the rule to beat prefers the shorter
    ],
)
def test_a_reward_model_must_beat_the_ruler(longer: float, level: Level, says: str) -> None:
    reading = only(reward_health([], {**REWARD_METRICS, "heldout/longer_wins": longer}), "Against length")
    assert reading.level == level
    assert says in reading.sentence


@pytest.mark.parametrize(("accuracy", "level"), [(0.6, "ok"), (0.54, "watch"), (0.49, "bad")])
def test_a_reward_model_must_beat_a_coin(accuracy: float, level: Level) -> None:
    # 200 pairs, bounds not given: Wilson's half width is 6.9 points.
    readings = reward_health([], {"heldout/accuracy": accuracy, "heldout/n": 200})
    assert only(readings, "Held-out accuracy").level == level


def test_reward_flaws_and_overfitting() -> None:
    readings = reward_health(
        curve_rows("train/accuracy", [0.9, 0.95, 0.97, 0.98, 0.99]),
        {**REWARD_METRICS, "heldout/accuracy/rude": 0.4, "heldout/accuracy/wrong fact": 0.3},
    )
    flaws = only(readings, "Flaws")
    assert flaws.level == "watch"
    assert "wrong fact, rude" in flaws.sentence
    assert only(readings, "Overfitting").level == "watch"
    assert reward_health([], {}) == []


def test_numbers_that_are_not_finite() -> None:
    assert only(training_health([{"step": 1, "train/loss": 1.0}]), "Numbers").level == "ok"
    assert only(training_health([{"step": 1, "value/explained_variance": nan}]), "Numbers").level == "watch"
    broken = only(training_health([{"step": 1, "train/loss": inf}]), "Numbers")
    assert broken.level == "bad"
    assert "train/loss" in broken.value


def test_a_gradient_spike() -> None:
    assert only(training_health(curve_rows("train/grad_norm", [1, 1.2, 0.9, 1.1, 9])), "Gradient").level == "ok"
    spike = only(training_health(curve_rows("train/grad_norm", [1, 1.2, 0.9, 1.1, 1, 50])), "Gradient")
    assert spike.level == "watch"
    assert "48 times" in spike.sentence  # the median of six is 1.05


def test_every_stage_type() -> None:
    rng = np.random.default_rng(0)
    policy = StageRecord(name="ppo", stage="policy", rows=tuple(policy_rows(30, rng)))
    names = [reading.name for reading in stage_health(policy, versus_start=about(0.6))]
    assert names[:3] == ["Numbers", "Gradient", "Reward against judge"]
    assert len(names) == len(set(names)) == 13
    assert stage_health(replace(policy, stage="sft", rows=tuple(sft_rows(30, rng))))[2].name == "Loss"
    reward = replace(policy, stage="reward", rows=tuple(reward_rows(30, rng)), metrics=REWARD_METRICS)
    assert {"Against length", "Gradient"} <= {reading.name for reading in stage_health(reward)}
    assert [reading.name for reading in stage_health(replace(policy, stage="newcomer"))] == ["Numbers", "Gradient"]
    assert stage_health(StageRecord(name="evaluate", stage="evaluate")) == []


def test_small_tools() -> None:
    assert [rising(x, watch=1, bad=2) for x in (1, 1.5, 2, 2.5)] == ["ok", "watch", "watch", "bad"]
    assert [short(x) for x in (0, 1.23456, 123456, 1e-7, nan, -0.5)] == [
        "0", "1.23", "1.23e+05", "1.00e-07", "unknown", "-0.5",
    ]  # fmt: skip
    assert (percent(0.614), percent(nan)) == ("61%", "unknown")
    fine = Reading(name="a", level="ok", value="", sentence="")
    assert [worst([]), worst([fine]), worst([fine, replace(fine, level="bad"), replace(fine, level="watch")])] == [
        "ok", "ok", "bad",
    ]  # fmt: skip
