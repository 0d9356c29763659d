"""Laws that every reward loss in the folder obeys; a new file is tested the moment it exists.

What a loss asks for says what its items are (``trimtab.losses.reward``). Each kind is brought into one form: scores
(I, 3) in, one number an item out, with three answers, attributes, or pairs' two sides and a third that nobody reads.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from trimtab.registry import REWARD_LOSSES

every_loss = pytest.mark.parametrize("name", sorted(REWARD_LOSSES))
preferences = pytest.mark.parametrize("name", sorted(set(REWARD_LOSSES) - {"mse", "bce"}))

RANKS = torch.tensor([[1, 2, 3], [2, 1, 2], [3, 1, 2], [1, 2, 2]])
LABELS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.2, 1.0], [1.0, 1.0, 0.0], [0.3, 0.6, 0.9]])
MASK = torch.tensor([[True, True, True], [True, True, True], [True, True, True], [True, True, False]])


def kind(name: str) -> str:
    parameters = inspect.signature(REWARD_LOSSES[name].function).parameters
    found = [word for word in ("better", "ranks", "labels") if word in parameters]
    assert len(found) == 1, f"{name} must ask for one of better, ranks, labels"
    return found[0]


def losses(name: str, scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """The loss of the items ``rows`` (all)."""
    rows = torch.arange(4) if rows is None else rows
    function = REWARD_LOSSES[name].function
    mask = MASK[rows]
    if kind(name) == "better":
        return function(scores[:, 0], scores[:, 1], margin=0.0, probability=1.0)
    if kind(name) == "ranks":
        return function(scores, RANKS[rows], mask)
    return function(scores, LABELS[rows].to(scores.dtype), mask)


def some_scores(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)


def test_the_folder_holds_what_it_should() -> None:
    assert {"bradley_terry", "plackett_luce", "mse", "bce"} <= set(REWARD_LOSSES)
    assert not any(name.startswith("_") for name in REWARD_LOSSES)


@every_loss
def test_documented_with_a_source_and_what_confirmed_it(name: str) -> None:
    said = inspect.getdoc(REWARD_LOSSES[name].function) or ""
    assert REWARD_LOSSES[name].summary.rstrip(".").endswith(("(P,)", "(R,)", "(N,)"))
    assert "Source:" in said
    assert "Confirmed by:" in said


@every_loss
def test_parameters_are_the_columns_of_its_kind(name: str) -> None:
    entry = REWARD_LOSSES[name]
    columns = [
        parameter for parameter in inspect.signature(entry.function).parameters if parameter not in entry.options
    ]
    wanted = {
        "better": ["better", "worse", "margin", "probability"],
        "ranks": ["scores", "ranks", "mask"],
        "labels": ["scores", "labels", "mask"],
    }
    assert columns == wanted[kind(name)]
    assert not entry.options  # what a loss is told of an item is a column; an option would be one of the stage's


@every_loss
def test_one_number_an_item_never_negative(name: str) -> None:
    found = losses(name, some_scores())
    assert found.shape == (4,)
    assert found.dtype == torch.float64
    assert (found >= 0).all()


@every_loss
def test_an_item_does_not_depend_on_its_neighbours(name: str) -> None:
    scores, order = some_scores(), torch.tensor([2, 0, 3, 1])
    whole = losses(name, scores)
    torch.testing.assert_close(losses(name, scores[order], order), whole[order], rtol=0, atol=0)
    for i in range(4):
        torch.testing.assert_close(losses(name, scores[i : i + 1], torch.tensor([i]))[0], whole[i])


@every_loss
def test_gradients_do_not_depend_on_micro_batches(name: str) -> None:
    whole = some_scores().requires_grad_()
    (expected,) = torch.autograd.grad(losses(name, whole).sum(), whole)
    for size in (1, 3):
        parts = some_scores().requires_grad_()
        for rows in torch.arange(4).split(size):
            losses(name, parts[rows], rows).sum().backward()
        torch.testing.assert_close(parts.grad, expected)


@every_loss
@pytest.mark.parametrize("height", [1e4, -1e4])
def test_finite_far_out_in_float32(name: str, height: float) -> None:
    far = torch.tensor([height, 0.0, -height]).repeat(4, 1).requires_grad_()
    found = losses(name, far)
    (gradient,) = torch.autograd.grad(found.sum(), far)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


@every_loss
def test_what_is_masked_has_no_gradient(name: str) -> None:
    scores = some_scores()
    scores[3, 2] = 77.0
    if kind(name) == "labels":
        assert LABELS[3, 2] != 77
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(losses(name, scores).sum(), scores)
    assert gradient[3, 2] == 0
    assert gradient[0].any()


@preferences
def test_only_differences_between_answers_count(name: str) -> None:
    torch.testing.assert_close(losses(name, some_scores() + 3.25), losses(name, some_scores()))


@preferences
def test_at_equal_scores_the_best_goes_up_and_the_worst_down(name: str) -> None:
    best, worst = (0, 1) if kind(name) == "better" else (0, 2)
    scores = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses(name, scores).sum(), scores)
    assert gradient[0, best] < 0 < gradient[0, worst]
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4, dtype=torch.float64))


@preferences
def test_zero_scores_of_two_answers_cost_ln_2(name: str) -> None:
    if kind(name) == "better":
        assert losses(name, torch.zeros(4, 3))[0].item() == pytest.approx(math.log(2), rel=1e-6)
    else:
        two = torch.tensor([[True, True, False]])
        function = REWARD_LOSSES[name].function
        assert function(torch.zeros(1, 3), RANKS[:1], two).item() == pytest.approx(math.log(2), rel=1e-6)
