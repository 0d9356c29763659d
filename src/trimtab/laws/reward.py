"""Laws of reward losses. What a loss asks for says what its items are (``trimtab.losses.reward``).

Each kind is brought into one form: scores (I, 3) in, one number an item out, with three answers, attributes, or pairs'
two sides and a third that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab import laws
from trimtab.laws import close, hold
from trimtab.registry import REWARD_LOSSES, Entry

RANKS = torch.tensor([[1, 2, 3], [2, 1, 2], [3, 1, 2], [1, 2, 2]])
LABELS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.2, 1.0], [1.0, 1.0, 0.0], [0.3, 0.6, 0.9]])
MASK = torch.tensor([[True, True, True], [True, True, True], [True, True, True], [True, True, False]])


def losses(entry: Entry, scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """The loss of the items ``rows`` (all), at the defaults of its options."""
    rows = torch.arange(4) if rows is None else rows
    item = REWARD_LOSSES.item(entry)
    if item == "better":
        better, worse = scores[:, 0], scores[:, 1]
        found = entry.function(better, worse, margin=torch.zeros_like(better), probability=torch.ones_like(better))
    elif item == "ranks":
        found = entry.function(scores, RANKS[rows], MASK[rows])
    else:
        found = entry.function(scores, LABELS[rows].to(scores.dtype), MASK[rows])
    hold(isinstance(found, Tensor), f"it gives {type(found).__name__}, not a tensor")
    assert isinstance(found, Tensor)
    return found


def some_scores(dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores (4, 3), the same every time."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)


def _ordered(entry: Entry) -> bool:
    """It learns from which answer is better, not from numbers."""
    return REWARD_LOSSES.item(entry) != "labels"


def one_number_an_item_never_negative(entry: Entry) -> None:
    """In the precision of the scores."""
    found = losses(entry, some_scores())
    hold(found.shape == (4,), f"of 4 items it gives shape {tuple(found.shape)}")
    hold(found.dtype == torch.float64, f"of float64 it gives {found.dtype}")
    hold((found >= 0).all(), f"{found.tolist()}")


def the_scores_stay_as_they_are(entry: Entry) -> None:
    """Nothing is written into what is handed in."""
    scores = some_scores()
    losses(entry, scores)
    hold(torch.equal(scores, some_scores()), "the scores were changed in place")


def an_item_does_not_depend_on_its_neighbours(entry: Entry) -> None:
    """Nor on their order."""
    scores, order = some_scores(), torch.tensor([2, 0, 3, 1])
    whole = losses(entry, scores)
    close(losses(entry, scores[order], order), whole[order], "in another order", atol=1e-14)
    for i in range(4):
        close(losses(entry, scores[i : i + 1], torch.tensor([i]))[0], whole[i], f"item {i} alone")


def gradients_do_not_depend_on_micro_batches(entry: Entry) -> None:
    """Summed over micro-batches of 1 and 3 they are those of the whole."""
    whole = some_scores().requires_grad_()
    (expected,) = torch.autograd.grad(losses(entry, whole).sum(), whole)
    for size in (1, 3):
        parts = some_scores().requires_grad_()
        for rows in torch.arange(4).split(size):
            losses(entry, parts[rows], rows).sum().backward()
        assert parts.grad is not None
        close(parts.grad, expected, f"micro-batches of {size}")


def finite_far_out_in_float32(entry: Entry) -> None:
    """Loss and gradient at scores of 1e4."""
    for height in (1e4, -1e4):
        far = torch.tensor([height, 0.0, -height]).repeat(4, 1).requires_grad_()
        found = losses(entry, far)
        (gradient,) = torch.autograd.grad(found.sum(), far)
        hold(found.isfinite().all(), f"at {height:.0f}: {found.tolist()}")
        hold(gradient.isfinite().all(), f"at {height:.0f} the gradient is not finite")


def what_is_masked_has_no_gradient(entry: Entry) -> None:
    """And what is not has one."""
    scores = some_scores()
    scores[3, 2] = 77.0
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(losses(entry, scores).sum(), scores)
    hold(gradient[3, 2] == 0, "a masked score gets a gradient")
    hold(gradient[0].any(), "no score gets a gradient")


def only_differences_between_answers_count(entry: Entry) -> None:
    """A constant on all scores of a prompt changes nothing, where answers are compared."""
    if _ordered(entry):
        close(losses(entry, some_scores() + 3.25), losses(entry, some_scores()), "all scores up by 3.25")


def at_equal_scores_the_best_goes_up_and_the_worst_down(entry: Entry) -> None:
    """By as much in all as the others go down."""
    if not _ordered(entry):
        return
    best, worst = (0, 1) if REWARD_LOSSES.item(entry) == "better" else (0, 2)
    scores = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses(entry, scores).sum(), scores)
    hold(gradient[0, best] < 0 < gradient[0, worst], f"the gradient is {gradient[0].tolist()}")
    close(gradient.sum(1), torch.zeros(4, dtype=torch.float64), "the gradient's sum")


LAWS: tuple[laws.Law, ...] = (
    laws.its_options_are_numbers_and_switches_and_are_documented,
    laws.it_says_where_it_comes_from_and_what_confirmed_it,
    one_number_an_item_never_negative,
    the_scores_stay_as_they_are,
    an_item_does_not_depend_on_its_neighbours,
    gradients_do_not_depend_on_micro_batches,
    finite_far_out_in_float32,
    what_is_masked_has_no_gradient,
    only_differences_between_answers_count,
    at_equal_scores_the_best_goes_up_and_the_worst_down,
)
