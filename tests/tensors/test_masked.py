"""Masked statistics: numbers by hand, slow loops, and what stands off the mask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.masked import (
    correlation,
    explained_variance,
    last_true,
    masked_mean,
    masked_sum,
    masked_var,
    whiten,
)

NAN, INF = math.nan, math.inf
SQUARE = (torch.arange(12, 21, dtype=torch.float64) / 10).reshape(3, 3)  # 1.2, 1.3 ... 2.0


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def close(a: Tensor, b: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance, equal_nan=False)


def test_sum_and_mean_by_hand_with_garbage_off_the_mask() -> None:
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, INF, -INF]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # a float mask
    close(masked_sum(x, mask), 7.0)
    close(masked_sum(x, mask, 1), f64(3, 4))
    close(masked_mean(x, mask), 7 / 3)
    close(masked_mean(x, mask, 1), f64(1.5, 4))
    close(masked_mean(x, mask, 0), f64(2.5, 2, 0))
    close(masked_mean(x, mask.bool(), 1), f64(1.5, 4))


def test_variance_is_biased() -> None:
    """(1.0, 1.2, 2.6): mean 1.6, squares .36 + .16 + 1.0 = 1.52, over 3 = .506667 (over 2 it would be .76)."""
    x = f64(1.0, 1.2, 2.6, 99.0)
    mask = f64(1, 1, 1, 0)
    close(masked_var(x, mask), 1.52 / 3)
    close(masked_var(SQUARE, torch.ones(3, 3)), 0.06666666666666667)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_numbers_have_exactly_no_variance(dtype: torch.dtype) -> None:
    """The mean of 9 times 12345.678 in float32 is off by rounding; divided by its own dust it would become +-1."""
    x = torch.full((3, 3), 12345.678, dtype=dtype)
    x[0, 0] = 7.0
    mask = torch.ones(3, 3)
    mask[0, 0] = 0
    assert masked_var(x, mask).item() == 0.0
    assert torch.equal(whiten(x, mask), torch.zeros(3, 3, dtype=dtype))
    kept = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept, x * mask.to(dtype))
    assert kept.dtype == dtype


def test_large_offset_costs_no_digits() -> None:
    """In float32, 1e6 + (0, 1, 2) still has variance 2/3."""
    x = torch.tensor([1e6, 1e6 + 1, 1e6 + 2])
    torch.testing.assert_close(masked_var(x, torch.ones(3)), torch.tensor(2 / 3), rtol=1e-6, atol=0)


def test_empty_mask_gives_zero_in_value_and_gradient() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, NAN]], dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 2, dtype=torch.bool)
    total = (
        masked_sum(x, mask)
        + masked_mean(x, mask)
        + masked_var(x, mask)
        + masked_var(x, mask, 1).sum()
        + whiten(x, mask).sum()
    )
    assert total.item() == 0.0
    (gradient,) = torch.autograd.grad(total, x)
    assert torch.equal(gradient, torch.zeros(2, 2, dtype=torch.float64))


def test_garbage_off_the_mask_leaves_gradients_finite() -> None:
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, INF, -INF]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    (gradient,) = torch.autograd.grad(masked_var(x, mask) + masked_mean(x, mask, 1).sum() + whiten(x, mask)[0, 0], x)
    assert gradient.isfinite().all()
    assert (gradient[mask == 0] == 0).all()


def test_whitening_example() -> None:
    """Huang et al.: 1.2 ... 2.0, mean 1.6, var .0667; 1.2, 1.6, 2.0 -> .0508, 1.6, 3.1492 or -1.549, 0, 1.549."""
    ones = torch.ones(3, 3)
    kept = whiten(SQUARE, ones, shift_mean=False).flatten()[[0, 4, 8]]
    shifted = whiten(SQUARE, ones).flatten()[[0, 4, 8]]
    close(kept, f64(0.0508, 1.6, 3.1492), 5e-5)
    close(shifted, f64(-1.549, 0, 1.549), 5e-4)


def test_whitened_moments_and_zero_off_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3 + 5
    mask = torch.rand(4, 6, generator=generator) < 0.6
    white = whiten(x, mask)
    close(masked_mean(white, mask), 0.0, 1e-9)
    close(masked_var(white, mask), 1.0, 1e-8)
    assert (white[~mask] == 0).all()
    close(masked_mean(whiten(x, mask, shift_mean=False), mask), masked_mean(x, mask))
    garbage = x.masked_fill(~mask, NAN)
    assert torch.equal(whiten(garbage, mask), white)


def test_whitening_is_over_the_whole_batch() -> None:
    """Rows whitened one by one would hide that the second row is the better one."""
    x = torch.tensor([[0.0, 1.0], [10.0, 11.0]], dtype=torch.float64)
    white = whiten(x, torch.ones(2, 2))
    assert white[1].min() > white[0].max()


def test_explained_variance_by_hand() -> None:
    """Targets (1, 2, 3): variance 2/3. Values (1, 2, 4) leave (0, 0, -1): variance 2/9, so 1 - 1/3."""
    targets, mask = f64(1, 2, 3, NAN), f64(1, 1, 1, 0)
    close(explained_variance(f64(1, 2, 4, 0), targets, mask), 2 / 3)
    close(explained_variance(f64(1, 2, 3, 0), targets, mask), 1.0)
    close(explained_variance(f64(11, 12, 13, 0), targets, mask), 1.0)  # a constant offset is not variance
    close(explained_variance(f64(5, 5, 5, 0), targets, mask), 0.0)
    close(explained_variance(f64(3, 2, 1, 0), targets, mask), -3.0)  # left (-2, 0, 2): 4 times the variance
    close(explained_variance(f64(1, 2, 3, 0), f64(0.1, 0.1, 0.1, 9), mask), 0.0)


def test_correlation_by_hand() -> None:
    """x (1,2,3), y (1,3,2): sum of products of deviations 1, norms sqrt(2) sqrt(2): .5."""
    close(correlation(f64(1, 2, 3), f64(1, 3, 2)), 0.5)
    close(correlation(f64(1, 2, 3), f64(20, 40, 60)), 1.0)
    close(correlation(f64(1, 2, 3), torch.tensor([1, 3, 2])), 0.5)
    close(correlation(f64(1, 2, 3), f64(-1, -2, -3)), -1.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_correlation_of_tiny_and_huge_float32(scale: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]) * scale
    torch.testing.assert_close(correlation(x, torch.tensor([1.0, 3.0, 2.0])), torch.tensor(0.5))


def test_correlation_is_zero_where_it_is_undefined() -> None:
    constant = torch.full((7,), 0.1)
    assert correlation(constant, torch.arange(7.0)).item() == 0.0
    assert correlation(torch.arange(7.0), constant).item() == 0.0
    assert correlation(constant, constant).item() == 0.0
    assert correlation(torch.ones(1), torch.ones(1)).item() == 0.0
    assert correlation(torch.ones(0), torch.ones(0)).item() == 0.0


def test_last_true() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]])
    assert last_true(mask).tolist() == [1, -1, 2, 1, 2]
    assert last_true(mask.bool()).tolist() == [1, -1, 2, 1, 2]
    assert last_true(mask.float()).tolist() == [1, -1, 2, 1, 2]
    assert last_true(torch.zeros(2, 0)).tolist() == [-1, -1]


def test_batches_without_tokens() -> None:
    empty = torch.zeros(2, 0)
    assert masked_mean(empty, empty).item() == 0.0
    assert masked_var(empty, empty).item() == 0.0
    assert masked_var(empty, empty, 1).tolist() == [0.0, 0.0]
    assert whiten(empty, empty).shape == (2, 0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), width=st.integers(1, 6))
def test_slow_loops_agree(seed: int, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.5
    kept = [x[b, t].item() for b in range(rows) for t in range(width) if mask[b, t]]
    mean = sum(kept) / len(kept) if kept else 0.0
    variance = sum((k - mean) ** 2 for k in kept) / len(kept) if kept else 0.0
    close(masked_sum(x, mask), float(sum(kept)))
    close(masked_mean(x, mask), mean)
    close(masked_var(x, mask), variance)
    white = [(x[b, t].item() - mean) / math.sqrt(variance + 1e-8) if mask[b, t] else 0.0 for b, t in _grid(mask)]
    close(whiten(x, mask).flatten(), f64(*white), 1e-9)
    last = [max((t for t in range(width) if mask[b, t]), default=-1) for b in range(rows)]
    assert last_true(mask).tolist() == last


def _grid(mask: Tensor) -> list[tuple[int, int]]:
    return [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1])]
