"""Group-relative advantages by hand-worked numbers (DeepSeekMath; Dr.GRPO)."""

from __future__ import annotations

import pytest
import torch

from trimtab.advantages.grpo import grpo


def of(returns: list[float], group: list[int], **options: object) -> list[float]:
    rewards = torch.tensor([[0.25 * r, 0.75 * r] for r in returns], dtype=torch.float64)  # over two tokens
    found = grpo(rewards, torch.ones(len(returns), 2), torch.tensor(group), **options)  # type: ignore[arg-type]
    assert torch.equal(found[:, 0], found[:, 1])  # the same for every token
    return found[:, 0].tolist()


def test_one_right_of_four() -> None:
    assert of([1, 0, 0, 0], [0] * 4, eps=0.0) == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert of([1, 0, 0, 0], [0] * 4, scale=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_population_deviation() -> None:
    """With ddof 0: mean square 1, and no advantage beyond sqrt(k - 1)."""
    found = of([1, 0, 0, 0], [0] * 4, eps=0.0, ddof=0)
    assert found == pytest.approx([3**0.5, *[-1 / 3**0.5] * 3])
    assert sum(a * a for a in found) / 4 == pytest.approx(1)
    assert of([1] + [0] * 7, [0] * 8, eps=0.0, ddof=0)[:2] == pytest.approx([2.646, -0.378], abs=5e-4)


def test_one_right_of_eight() -> None:
    found = of([1] + [0] * 7, [0] * 8, eps=0.0)
    assert found[0] == pytest.approx(2.475, abs=5e-4)
    assert found[1] == pytest.approx(-0.354, abs=5e-4)


def test_groups_do_not_see_each_other() -> None:
    assert of([1, 0, 9, 7], [0, 0, 1, 1], eps=0.0) == pytest.approx([0.5**0.5, -(0.5**0.5)] * 2)


def test_equal_returns_and_a_lone_answer_have_no_advantage() -> None:
    assert of([0.3, 0.3, 5.0], [0, 0, 1]) == [0.0, 0.0, 0.0]


def test_blind_to_shift_and_scale() -> None:
    returns, group = [0.2, -1.0, 3.0, 0.4], [0, 0, 0, 0]
    moved = [3 * r - 7 for r in returns]
    assert of(moved, group, eps=0.0) == pytest.approx(of(returns, group, eps=0.0))
