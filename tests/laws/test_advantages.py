"""Laws that every advantage estimator in the folder obeys; a new file is tested the moment it exists.

Arguments are handed in by the estimator's own parameter names. An estimator returns its advantages (B, T), or a tuple
whose first member they are.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from trimtab.registry import ADVANTAGES

LENGTHS = torch.tensor([5, 1, 3, 0])
MASK = torch.arange(5) < LENGTHS.unsqueeze(1)

GIVEN = ("mask", "group")  # no numbers to learn from

every_estimator = pytest.mark.parametrize("name", sorted(ADVANTAGES))


def batch(garbage: float = 0.0) -> dict[str, Tensor]:
    """Four ragged answers, one of them empty, with ``garbage`` off the mask."""
    generator = torch.Generator().manual_seed(13)
    rewards, values = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    return {
        "rewards": rewards.masked_fill(~MASK, garbage),
        "values": values.masked_fill(~MASK, garbage),
        "mask": MASK,
        "group": torch.tensor([4, 7, 4, 4]),
        "scores": torch.tensor([1.5, -0.5, 0.25, 2.0], dtype=torch.float64),
        "baseline": torch.tensor([0.5, 0.75, 0.5, 0.5], dtype=torch.float64),
    }


def run(name: str, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    entry = ADVANTAGES[name]
    wanted = [p for p in inspect.signature(entry.function).parameters if p not in entry.options]
    unknown = set(wanted) - set(given)
    assert not unknown, f"{name} wants {unknown}: teach the laws what that is"
    result = entry.function(*(given[parameter] for parameter in wanted))
    return result if isinstance(result, tuple) else (result,)


def test_the_folder_is_not_empty() -> None:
    assert "gae" in ADVANTAGES


@every_estimator
def test_documented_with_a_source(name: str) -> None:
    entry = ADVANTAGES[name]
    assert entry.summary.endswith(".")
    assert "Source:" in (entry.function.__doc__ or "")


@every_estimator
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_zero_off_the_answer_and_blind_to_it(name: str, garbage: float) -> None:
    for clean, dirty in zip(run(name, batch()), run(name, batch(garbage)), strict=True):
        assert clean.shape == (4, 5)
        assert (dirty[~MASK] == 0).all()
        torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
        assert dirty[MASK].any()


@every_estimator
def test_longer_padding_changes_nothing(name: str) -> None:
    given = batch()
    wide = {key: torch.nn.functional.pad(value, (0, 3)) if value.ndim == 2 else value for key, value in given.items()}
    for narrow, padded in zip(run(name, given), run(name, wide), strict=True):
        torch.testing.assert_close(padded[:, :5], narrow)
        assert not padded[:, 5:].any()


@every_estimator
def test_permuting_answers_permutes_advantages(name: str) -> None:
    given = batch()
    order = torch.tensor([3, 1, 0, 2])
    moved = run(name, {key: value[order] for key, value in given.items()})
    for here, there in zip(run(name, given), moved, strict=True):
        torch.testing.assert_close(there, here[order])


@every_estimator
def test_no_gradient_no_change_of_inputs_and_the_dtype_stays(name: str) -> None:
    given = {key: value if key in GIVEN else value.float().requires_grad_() for key, value in batch().items()}
    before = {key: value.detach().clone() for key, value in given.items()}
    for result in run(name, given):
        assert not result.requires_grad
        assert result.dtype == torch.float32
    for key, value in given.items():
        assert torch.equal(value.detach(), before[key])


@every_estimator
def test_no_reward_and_no_value_is_no_advantage(name: str) -> None:
    given = {key: value if key in GIVEN else torch.zeros_like(value) for key, value in batch().items()}
    for result in run(name, given):
        assert not result.any()
