"""Controllers and running statistics: numbers by hand, merging, and states that come back bit for bit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError, InvariantError, RewardError
from trimtab.train.control import AdaptiveKL, FixedKL, KLControl, RewardNormaliser, RunningMoments

numbers = st.lists(st.floats(-1e3, 1e3), max_size=30)


@pytest.mark.parametrize(
    ("kl", "beta"), [(6.0, 0.15), (7.2, 0.151536), (700.0, 0.151536), (3.0, 0.148464), (0.0, 0.148464)]
)
def test_adaptive_kl_by_hand(kl: float, beta: float) -> None:
    """beta .15, target 6, horizon 10000, 512 answers: at most .2 * 512 / 10000 = 1.024 % a step."""
    control = AdaptiveKL(0.15, 6, 10000)
    control.update(kl, 512)
    assert control.beta == pytest.approx(0.15 if kl == 6 else beta, abs=1e-12)


def test_adaptive_kl_inside_the_clip_and_per_answer() -> None:
    """KL 6.6 is 10 % too much: beta (1 + .1 * 512 / 10000). Answers count, not batches: one moves 512 times less."""
    control = AdaptiveKL(0.15, 6, 10000)
    control.update(6.6, 512)
    assert control.beta == pytest.approx(0.15 * 1.00512, abs=1e-12)
    slow = AdaptiveKL(0.15, 6, 10000)
    slow.update(6.6, 1)
    assert slow.beta == pytest.approx(0.15 * 1.00001, abs=1e-12)


def test_adaptive_kl_settles_at_its_target() -> None:
    """A policy whose KL is 1 / beta must end at the beta whose KL is the target."""
    control = AdaptiveKL(1.0, 4.0, 2000)
    for _ in range(500):
        control.update(1 / control.beta, 256)
    assert control.beta == pytest.approx(0.25, rel=1e-3)


def test_fixed_kl_never_moves() -> None:
    control = FixedKL(0.05)
    control.update(1000.0, 512)
    assert control.beta == 0.05


def test_numbers_that_cannot_steer_are_refused() -> None:
    for broken in ((-0.1, 6, 100), (0.1, 0, 100), (0.1, 6, -1), (math.nan, 6, 100)):
        with pytest.raises(ConfigError):
            AdaptiveKL(*broken)
    with pytest.raises(ConfigError, match="beta"):
        FixedKL(-1.0)
    with pytest.raises(InvariantError, match="nan"):
        AdaptiveKL(0.1, 6, 1000).update(math.nan, 8)
    with pytest.raises(ConfigError, match="too short"):
        AdaptiveKL(0.1, 6, 100).update(0.0, 500)


def test_moments_by_hand() -> None:
    """(1, 1.2, 2.6): mean 1.6, biased variance 1.52 / 3 = .506667."""
    moments = RunningMoments()
    assert (moments.mean, moments.variance) == (0.0, 0.0)
    moments.update([1.0, 1.2, 2.6])
    assert moments.mean == pytest.approx(1.6)
    assert moments.variance == pytest.approx(1.52 / 3)
    assert moments.std == pytest.approx(math.sqrt(1.52 / 3))


@given(numbers)
def test_moments_equal_the_definition(values: list[float]) -> None:
    moments = RunningMoments()
    moments.update(values)
    mean = math.fsum(values) / len(values) if values else 0.0
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values) if values else 0.0
    assert moments.mean == pytest.approx(mean, abs=1e-9)
    assert moments.variance == pytest.approx(variance, abs=1e-6)


@given(numbers, numbers, numbers)
def test_merging_equals_seeing_everything(a: list[float], b: list[float], c: list[float]) -> None:
    merged = RunningMoments()
    for part in (a, b, c):
        one = RunningMoments()
        one.update(part)
        merged.merge(one)
    everything = RunningMoments()
    everything.update(a + b + c)
    assert merged.count == everything.count
    assert merged.mean == pytest.approx(everything.mean, abs=1e-9)
    assert merged.variance == pytest.approx(everything.variance, abs=1e-6)


def test_moments_keep_their_digits_far_from_zero() -> None:
    moments = RunningMoments()
    moments.update([1e9, 1e9 + 1, 1e9 + 2])
    assert moments.variance == pytest.approx(2 / 3)
    same = RunningMoments()
    same.update([0.1] * 1000)
    assert same.variance == 0.0


def test_normalised_by_hand() -> None:
    """Mean 3, std 2 (scores 1 and 5): r' = .5 r - 1.5, or r / 2 with the mean kept."""
    scores = torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)
    normalised = {}
    for kind in ("none", "std", "mean_std"):
        normaliser = RewardNormaliser(kind)
        normaliser.update(scores[:2])
        normalised[kind] = normaliser.normalise(scores).tolist()
    assert normalised == {"none": [1.0, 5.0, 3.0], "std": [0.5, 2.5, 1.5], "mean_std": [-1.0, 1.0, 0.0]}


def test_statistics_run_over_all_batches_and_normalising_adds_nothing() -> None:
    normaliser = RewardNormaliser("mean_std")
    normaliser.update(torch.tensor([1.0, 1.0]))
    assert normaliser.normalise(torch.tensor([4.0])).tolist() == [3.0]  # nothing spread yet: only shifted
    normaliser.update(torch.tensor([5.0, 5.0]))
    for _ in range(3):
        assert normaliser.normalise(torch.tensor([1.0, 5.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("kind", ["none", "std", "mean_std"])
def test_equal_scores_never_become_nan(kind: str) -> None:
    normaliser = RewardNormaliser(kind)  # type: ignore[arg-type]
    scores = torch.full((5,), 0.1)
    normaliser.update(scores)
    expected = torch.zeros(5) if kind == "mean_std" else scores
    assert torch.equal(normaliser.normalise(scores), expected)
    assert RewardNormaliser(kind).normalise(scores).isfinite().all()  # type: ignore[arg-type]


def test_clip_comes_after_the_scaling() -> None:
    normaliser = RewardNormaliser("std", clip=2.0)
    normaliser.update(torch.tensor([1.0, 5.0]))
    assert normaliser.normalise(torch.tensor([3.0, 5.0, -100.0])).tolist() == [1.5, 2.0, -2.0]
    assert RewardNormaliser("none", clip=1.0).normalise(torch.tensor([3.0])).tolist() == [1.0]


def test_broken_scores_and_settings_are_refused() -> None:
    normaliser = RewardNormaliser("std")
    with pytest.raises(RewardError, match="answer 1 of the batch is nan"):
        normaliser.update(torch.tensor([1.0, math.nan]))
    assert normaliser.moments.count == 0
    with pytest.raises(ConfigError, match="did you mean 'mean_std'"):
        RewardNormaliser("mean-std")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clip"):
        RewardNormaliser("std", clip=0.0)


def through_json(state: dict[str, float]) -> dict[str, float]:
    restored: dict[str, float] = json.loads(json.dumps(state, allow_nan=False))
    return restored


@given(kls=st.lists(st.floats(0, 20), min_size=2, max_size=12))
def test_kl_state_comes_back_bit_for_bit(kls: list[float]) -> None:
    controls: list[KLControl] = [AdaptiveKL(0.15, 6, 10000), FixedKL(0.1)]
    fresh: list[KLControl] = [AdaptiveKL(0.9, 6, 10000), FixedKL(0.9)]
    for control, other in zip(controls, fresh, strict=True):
        control.update(kls[0], 512)
        other.load(through_json(control.state()))
        for kl in kls[1:]:
            control.update(kl, 512)
            other.update(kl, 512)
        assert control.state() == other.state()


@given(before=numbers, after=numbers)
def test_moments_state_comes_back_bit_for_bit(before: list[float], after: list[float]) -> None:
    one, other = RewardNormaliser("mean_std"), RewardNormaliser("mean_std")
    one.update(torch.tensor(before, dtype=torch.float64))
    other.load(through_json(one.state()))
    for normaliser in (one, other):
        normaliser.update(torch.tensor(after, dtype=torch.float64))
    assert one.state() == other.state()


def test_another_kinds_state_is_refused() -> None:
    with pytest.raises(DataError, match="wanted: beta"):
        FixedKL(0.1).load(RunningMoments().state())
    with pytest.raises(DataError, match="nothing"):
        RunningMoments().load({})
