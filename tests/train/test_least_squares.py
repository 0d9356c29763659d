from __future__ import annotations

import math

import pytest
import torch

from trimtab.train.least_squares import RIDGES, LeastSquares


def draw(n: int, seed: int, *, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) + 5.0
    y = x @ torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64) + 0.5
    return x, y + noise * torch.randn(n, generator=generator, dtype=torch.float64)


def test_says_zero_before_it_has_seen_anything() -> None:
    weight, bias = LeastSquares(3, decay=1.0).solution
    assert not weight.any()
    assert bias == 0


def test_says_the_mean_after_one_batch_since_nothing_is_proved_yet() -> None:
    fit = LeastSquares(3, decay=1.0)
    x, y = draw(50, 1)
    fit.add(x, y)
    weight, bias = fit.solution
    assert fit.ridge == math.inf
    assert not weight.any()
    assert float(bias) == pytest.approx(float(y.mean()))


def test_every_candidate_is_the_ridge_solution() -> None:
    """Against the normal equations of centred data, written out."""
    fit = LeastSquares(3, decay=1.0)
    x, y = draw(40, 2)
    fit.add(x[:15], y[:15])
    fit.add(x[15:], y[15:])  # two batches are one
    z = (x - x.mean(0)) / x.std(0, correction=0)
    for c, ridge in enumerate(RIDGES[:-1]):
        system = z.T @ z / len(x) + ridge * torch.eye(3, dtype=torch.float64)
        weight = torch.linalg.solve(system, z.T @ (y - y.mean()) / len(x)) / x.std(0, correction=0)
        torch.testing.assert_close(fit.weights[c], weight)
        torch.testing.assert_close(fit.biases[c], y.mean() - weight @ x.mean(0))


def test_finds_a_line_and_takes_the_smallest_ridge_for_it() -> None:
    fit = LeastSquares(3, decay=1.0)
    for seed in range(4):
        fit.add(*draw(200, seed))
    weight, bias = fit.solution
    assert fit.ridge == RIDGES[0]
    torch.testing.assert_close(weight, torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), atol=0.05, rtol=0)
    x, y = draw(500, 99)
    assert (x @ weight + bias - y).square().mean() < 0.02


def test_keeps_to_the_mean_when_the_features_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    fit = LeastSquares(40, decay=1.0)
    for _ in range(3):
        fit.add(torch.randn(50, 40, generator=generator), torch.randn(50, generator=generator))
    assert fit.ridge >= 3.0


def test_a_light_feature_bears_a_32nd_of_the_ridge() -> None:
    generator = torch.Generator().manual_seed(3)
    light, plain = LeastSquares(1, decay=1.0, light=1), LeastSquares(1, decay=1.0)
    x = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    for fit in (light, plain):
        fit.add(x, 5.0 * x[:, 0] + 3.0)
    for c, ridge in enumerate(RIDGES[:-1]):  # one feature: the line's slope over 1 + ridge
        assert float(light.weights[c, 0]) == pytest.approx(5.0 / (1 + ridge / 32))
        assert float(plain.weights[c, 0]) == pytest.approx(5.0 / (1 + ridge))
    assert not light.weights[-1].any()


def test_the_scale_of_a_feature_does_not_matter() -> None:
    one, other = LeastSquares(3, decay=1.0), LeastSquares(3, decay=1.0)
    x, y = draw(60, 4)
    stretched = x * torch.tensor([1.0, 1000.0, 0.001])
    one.add(x, y)
    other.add(stretched, y)
    for c in range(len(RIDGES)):
        torch.testing.assert_close(other.weights[c] * torch.tensor([1.0, 1000.0, 0.001]), one.weights[c])


def test_old_batches_fade() -> None:
    fit = LeastSquares(1, decay=0.5)
    one = torch.ones(10, 1)
    fit.add(one, torch.zeros(10))
    fit.add(one, torch.ones(10))
    assert float(fit.solution[1]) == pytest.approx(1 / 1.5)  # weights 1/2 and 1


def test_features_that_never_change_are_no_division_by_zero() -> None:
    fit = LeastSquares(2, decay=1.0)
    for _ in range(2):
        fit.add(torch.ones(5, 2), torch.arange(5.0))
    weight, bias = fit.solution
    assert not weight.any()
    assert float(bias) == pytest.approx(2.0)


def test_state_goes_on_to_the_same_bits() -> None:
    whole, half = LeastSquares(3, decay=0.9), LeastSquares(3, decay=0.9)
    whole.add(*draw(20, 1))
    half.load(whole.state())
    for fit in (whole, half):
        fit.add(*draw(20, 2))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, half.state()[name]), name
