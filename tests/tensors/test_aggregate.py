"""Aggregation: the table by hand, and the step's loss however the step is cut up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.tensors.aggregate import AGGREGATIONS, Aggregation, Totals, aggregate

# Sequence A: 2 tokens of loss 1. Sequence B: 8 tokens, seven of loss 1 and one of loss 3. Off the mask: garbage.
LOSSES = torch.tensor([[1.0, 1.0] + [math.nan] * 6, [1.0] * 7 + [3.0]], dtype=torch.float64)
MASK = torch.tensor([[1] * 2 + [0] * 6, [1] * 8], dtype=torch.bool)
STEP = Totals(tokens=10, sequences=2, length=8)


@pytest.mark.parametrize(
    ("how", "parts", "loss"),
    [
        ("token-mean", (0.2, 1.0), 1.2),
        ("seq-mean-token-mean", (0.5, 0.625), 1.125),
        ("seq-mean-token-sum", (1.0, 5.0), 6.0),
        ("seq-mean-token-sum-norm", (0.125, 0.625), 0.75),
    ],
)
def test_table_by_hand(how: Aggregation, parts: tuple[float, float], loss: float) -> None:
    contributions = aggregate(LOSSES, MASK, how, STEP)
    torch.testing.assert_close(contributions, torch.tensor(parts, dtype=torch.float64))
    torch.testing.assert_close(contributions.sum().item(), loss)
    torch.testing.assert_close(aggregate(LOSSES, MASK.double(), how, STEP), contributions)


def test_the_table_covers_every_name() -> None:
    assert len(AGGREGATIONS) == 4


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_fully_masked_rows_contribute_nothing(how: Aggregation) -> None:
    losses = torch.tensor([[math.nan, math.inf], [2.0, 2.0]], requires_grad=True)
    mask = torch.tensor([[0, 0], [1, 1]])
    contributions = aggregate(losses, mask, how, Totals(tokens=2, sequences=2, length=2))
    assert contributions[0].item() == 0.0
    (gradient,) = torch.autograd.grad(contributions.sum(), losses)
    assert gradient[0].tolist() == [0.0, 0.0]
    assert (gradient[1] > 0).all()


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_step_without_tokens_is_zero(how: Aggregation) -> None:
    nothing = aggregate(torch.ones(2, 3), torch.zeros(2, 3), how, Totals(tokens=0, sequences=0, length=3))
    assert nothing.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_accumulation_changes_nothing(how: Aggregation) -> None:
    """1 x 8 = 2 x 4 = 4 x 2 = 8 x 1 gradients, with each micro-batch padded to its own longest answer."""
    answers, weights = _ragged_answers()
    whole = _step_gradient(answers, weights, how, 8)
    for size in (1, 2, 4):
        torch.testing.assert_close(_step_gradient(answers, weights, how, size), whole, rtol=1e-12, atol=1e-14)


def test_a_mean_of_means_would_be_another_gradient() -> None:
    """The law above has teeth: local token counts give another answer on this very batch."""
    answers, weights = _ragged_answers()
    whole = _step_gradient(answers, weights, "token-mean", 8)
    means = torch.zeros_like(whole)
    for low in range(0, 8, 2):
        losses, mask = _losses(answers[low : low + 2], weights)
        local = Totals(tokens=mask.sum().item() * 4, sequences=8)
        (gradient,) = torch.autograd.grad(aggregate(losses, mask, "token-mean", local).sum(), weights)
        means += gradient
    assert (means - whole).abs().max() > 0.01


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_slow_loop_agrees(how: Aggregation) -> None:
    generator = torch.Generator().manual_seed(3)
    losses = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 0, 3, 2, 4]).unsqueeze(1)
    totals = Totals(tokens=40, sequences=11, length=16)
    expected = []
    for row, kept in zip(losses.tolist(), mask.tolist(), strict=True):
        numbers = [loss for loss, on in zip(row, kept, strict=True) if on]
        total = sum(numbers)
        expected.append(
            {
                "token-mean": total / 40,
                "seq-mean-token-mean": total / len(numbers) / 11 if numbers else 0.0,
                "seq-mean-token-sum": total / 11,
                "seq-mean-token-sum-norm": total / 11 / 16,
            }[how]
        )
    torch.testing.assert_close(aggregate(losses, mask, how, totals), torch.tensor(expected, dtype=torch.float64))


def test_norm_needs_its_length() -> None:
    with pytest.raises(ConfigError, match="fixed length"):
        aggregate(LOSSES, MASK, "seq-mean-token-sum-norm", Totals(tokens=10, sequences=2))


def test_unknown_name_is_refused_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'token-mean'"):
        aggregate(LOSSES, MASK, "tokn-mean", STEP)  # type: ignore[arg-type]


def _ragged_answers() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 9, 2, 4, 0, 7, 3, 5]  # one fully masked
    answers = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in lengths]
    return answers, torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()


def _losses(answers: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """A tiny model: the loss of a token is softplus(features . weights)."""
    width = max(len(a) for a in answers)
    features = torch.stack([torch.cat([a, a.new_full((width - len(a), 4), 50.0)]) for a in answers])
    mask = torch.arange(width) < torch.tensor([len(a) for a in answers]).unsqueeze(1)
    return torch.nn.functional.softplus(features @ weights), mask


def _step_gradient(answers: list[Tensor], weights: Tensor, how: Aggregation, size: int) -> Tensor:
    totals = Totals(tokens=sum(len(a) for a in answers), sequences=len(answers), length=9)
    gradient = torch.zeros_like(weights)
    for low in range(0, len(answers), size):
        losses, mask = _losses(answers[low : low + size], weights)
        gradient += torch.autograd.grad(aggregate(losses, mask, how, totals).sum(), weights)[0]
    return gradient
