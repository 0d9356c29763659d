"""Laws of preference losses. Which columns a loss asks for decides what its items are (``trimtab.losses.preference``).

What the laws call ordinary values: a nat or two a token, and a policy that has moved by half a nat from the reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trimtab import laws
from trimtab.laws import cast, close, hold
from trimtab.registry import PREFERENCE_LOSSES, Entry

POLICY = {"chosen", "rejected", "logps", "chosen_kl", "rejected_kl"}  # through these a gradient may flow

# The laws' exceptions, by name.
STOPPED = {"tdpo2": {"chosen_kl"}}  # the method's own gradient stop
SEES_THE_LIKELIHOOD = {"rpo"}  # beside the log-ratios, it wants the chosen answer itself likely


def ordinary(item: str) -> dict[str, Tensor]:
    """Five items at ordinary values, ragged, with one answer of a single token."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def answers(tokens: Tensor) -> tuple[Tensor, Tensor]:
        logps = -tokens * (0.5 + draw(*tokens.shape))
        return logps, logps - 1 + 2 * draw(*tokens.shape)

    if item == "chosen":
        chosen_tokens, rejected_tokens = torch.tensor([4, 1, 7, 3, 5]), torch.tensor([2, 6, 1, 3, 8])
        (chosen, ref_chosen), (rejected, ref_rejected) = answers(chosen_tokens), answers(rejected_tokens)
        return {
            "chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected,
            "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens,
            "chosen_kl": 0.1 * chosen_tokens * draw(5), "rejected_kl": 0.1 * rejected_tokens * draw(5),
        }  # fmt: skip
    if item == "desirable":
        logps, ref_logps = answers(torch.tensor([4, 1, 7, 3, 5]))
        desirable = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
        return {"logps": logps, "ref_logps": ref_logps, "desirable": desirable, "baseline": 0.3 * draw(1)[0]}
    tokens = torch.tensor([[4, 1, 7], [2, 2, 3], [9, 4, 1], [1, 1, 1], [5, 8, 2]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    return {"logps": answers(tokens)[0], "tokens": tokens, "scores": draw(5, 3), "mask": mask}


def far(item: str, sign: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Two items whose margins, means and gains are +-1e4 nats; the second over a single token."""
    near, off = torch.full((2,), -1.0), torch.full((2,), -1e4)
    up, down = (near, off) if sign > 0 else (off, near)
    tokens = torch.tensor([50, 1])
    if item == "chosen":
        columns = {
            "chosen": up, "rejected": down, "ref_chosen": down, "ref_rejected": up,
            "chosen_tokens": tokens, "rejected_tokens": tokens, "chosen_kl": -off, "rejected_kl": -near,
        }  # fmt: skip
    elif item == "desirable":
        baseline = torch.tensor(0.0 if sign > 0 else 1e4)
        columns = {"logps": up, "ref_logps": down, "desirable": torch.tensor([1.0, 0.0]), "baseline": baseline}
    else:
        columns = {
            "logps": torch.stack((up, down), 1), "tokens": torch.tensor([[50, 1], [1, 50]]),
            "scores": torch.tensor([[1.0, 0.0], [1e4, -1e4]]), "mask": torch.ones(2, 2, dtype=torch.bool),
        }  # fmt: skip
    return with_grad(cast(columns, dtype))


def run(entry: Entry, columns: Mapping[str, Tensor]) -> Tensor:
    """A loss at the defaults of its options."""
    loss = entry.function(**{name: columns[name] for name in entry.columns})
    hold(isinstance(loss, Tensor), f"it gives {type(loss).__name__}, not a tensor")
    assert isinstance(loss, Tensor)
    return loss


def with_grad(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that take a gradient, where they can."""
    return {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in columns.items()}


def items(columns: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Some of the items."""
    return {name: x[index] if x.ndim else x for name, x in columns.items()}


def _usual(entry: Entry) -> dict[str, Tensor]:
    return ordinary(PREFERENCE_LOSSES.item(entry))


def _pairs(entry: Entry) -> bool:
    return PREFERENCE_LOSSES.item(entry) == "chosen"


def _other(name: str) -> str:
    return name.replace("rejected", "chosen") if "rejected" in name else name.replace("chosen", "rejected")


# What it gives


def it_asks_for_columns_of_one_kind_of_item(entry: Entry) -> None:
    """And no column has a default: it is always handed in."""
    PREFERENCE_LOSSES.item(entry)
    parameters = inspect.signature(entry.function).parameters
    for name in entry.columns:
        hold(parameters[name].default is inspect.Parameter.empty, f"column {name!r} has a default")


def one_finite_number_an_item(entry: Entry) -> None:
    """With a gradient, in the precision of the columns."""
    loss = run(entry, with_grad(_usual(entry)))
    hold(loss.shape == (5,), f"of 5 items it gives shape {tuple(loss.shape)}")
    hold(loss.dtype == torch.float64, f"of float64 it gives {loss.dtype}")
    hold(loss.isfinite().all(), f"{loss.tolist()}")
    hold(loss.requires_grad, "there is no gradient")


def no_items_no_numbers(entry: Entry) -> None:
    """An empty batch has an empty loss, which can be summed and descended."""
    loss = run(entry, with_grad(items(_usual(entry), torch.tensor([], dtype=torch.int64))))
    hold(loss.shape == (0,), f"of no items it gives shape {tuple(loss.shape)}")
    loss.sum().backward()


def float32_gives_the_same(entry: Entry) -> None:
    """To four digits."""
    columns = _usual(entry)
    loss = run(entry, cast(columns, torch.float32))
    hold(loss.dtype == torch.float32, f"of float32 it gives {loss.dtype}")
    close(loss.double(), run(entry, columns), "float32", rtol=1e-4, atol=1e-5)


def the_columns_stay_as_they_are(entry: Entry) -> None:
    """Nothing is written into what is handed in."""
    columns = _usual(entry)
    before = {name: x.clone() for name, x in columns.items()}
    run(entry, columns)
    for name, x in columns.items():
        hold(torch.equal(x, before[name]), f"{name!r} was changed in place")


def permuting_items_permutes_losses(entry: Entry) -> None:
    """Their order says nothing."""
    columns, order = _usual(entry), torch.tensor([3, 0, 4, 2, 1])
    close(run(entry, items(columns, order)), run(entry, columns)[order], "in another order", atol=1e-14)


def an_item_does_not_depend_on_its_neighbours(entry: Entry) -> None:
    """So micro-batches of any size add up to the same gradient."""
    columns = _usual(entry)
    alone = torch.cat([run(entry, items(columns, torch.tensor([i]))) for i in range(5)])
    close(alone, run(entry, columns), "one by one", atol=1e-14)


def every_column_asked_for_counts(entry: Entry) -> None:
    """A forgotten reference or length would leave the loss as it was."""
    columns = _usual(entry)
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "desirable": lambda x: 1 - x,
        "scores": lambda x: -x,
        "mask": lambda x: x & torch.tensor([False, True, True]),
    }
    for name in entry.columns:
        moved = change[name](columns[name]) if name in change else columns[name] + 1
        hold(not torch.allclose(run(entry, {**columns, name: moved}), run(entry, columns)), f"{name!r} changes nothing")


# Where gradients flow


def only_the_policy_gets_a_gradient(entry: Entry) -> None:
    """The reference, lengths and labels are constants."""
    columns = with_grad(_usual(entry))
    run(entry, columns).sum().backward()
    for name in entry.columns:
        flows = name in POLICY and name not in STOPPED.get(entry.name, ())
        hold((columns[name].grad is not None) == flows, f"{name!r} {'gets no' if flows else 'gets a'} gradient")


def finite_far_out(entry: Entry) -> None:
    """Loss and gradient at margins of 1e4 nats, in both precisions."""
    for dtype in (torch.float32, torch.float64):
        for sign in (1, -1):
            columns = far(PREFERENCE_LOSSES.item(entry), sign, dtype)
            loss = run(entry, columns)
            hold(loss.isfinite().all(), f"at {sign * 1e4:.0f} nats in {dtype}: {loss.tolist()}")
            loss.sum().backward()
            for name, x in columns.items():
                fine = x.grad is None or bool(x.grad.isfinite().all())
                hold(fine, f"at {sign * 1e4:.0f} nats in {dtype} the gradient on {name!r} is not finite")


# What it wants


def better_sides_cost_less(entry: Entry) -> None:
    """Chosen up: less; rejected up: more.

    IPO and cDPO promise it below their targets, the hinge while it is not done: ordinary values are there.
    """
    columns = _usual(entry)
    for name, direction in (("chosen", 1), ("rejected", -1)) if _pairs(entry) else ():
        change = run(entry, {**columns, name: columns[name] + 0.05}) - run(entry, columns)
        hold((direction * change < 0).all(), f"{name!r} up by 0.05 nats changes the loss by {change.tolist()}")


def answers_go_where_they_were_voted(entry: Entry) -> None:
    """A liked answer up: less; any other: more."""
    if PREFERENCE_LOSSES.item(entry) != "desirable":
        return
    columns = ordinary("desirable")
    change = run(entry, {**columns, "logps": columns["logps"] + 0.3}) - run(entry, columns)
    hold(torch.equal(change < 0, columns["desirable"] == 1), f"up by 0.3 nats changes the loss by {change.tolist()}")


def lists_want_the_best_answer_likely(entry: Entry) -> None:
    """The best up: less; never more where it is the only one. The worst up: never less, unless it is the only one."""
    if PREFERENCE_LOSSES.item(entry) != "scores":
        return
    columns = ordinary("scores")
    scores, rows = columns["scores"], torch.arange(5)
    best = scores.masked_fill(~columns["mask"], -torch.inf).argmax(1)
    worst = scores.masked_fill(~columns["mask"], torch.inf).argmin(1)
    several = columns["mask"].sum(1) > 1
    before = run(entry, columns)
    change = {}
    for name, place in (("best", best), ("worst", worst)):
        logps = columns["logps"].clone()
        logps[rows, place] += 0.3
        change[name] = run(entry, {**columns, "logps": logps}) - before
    hold(
        (change["best"] <= 0).all() and (change["best"][several] < 0).all(),
        f"the best up changes the loss by {change['best'].tolist()}",
    )
    hold((change["worst"][several] >= 0).all(), f"the worst up changes the loss by {change['worst'].tolist()}")


def the_start_pulls_two_equal_answers_apart(entry: Entry) -> None:
    """Same text of both sides, policy = reference: the first step raises the chosen one and lowers the other."""
    if not _pairs(entry):
        return
    logps = torch.tensor([-3.0, -0.7], dtype=torch.float64)
    tokens, kl = torch.tensor([4, 1]), torch.zeros(2, dtype=torch.float64)
    columns = with_grad(
        {name: tokens if "tokens" in name else kl if "kl" in name else logps for name in ordinary("chosen")}
    )
    up, down = torch.autograd.grad(run(entry, columns).sum(), (columns["chosen"], columns["rejected"]))
    hold((up < 0).all(), f"the gradient on 'chosen' is {up.tolist()}")
    hold((down > 0).all(), f"the gradient on 'rejected' is {down.tolist()}")


def the_right_way_round_costs_less(entry: Entry) -> None:
    """All else equal, the pair whose chosen side is likelier costs less than the same pair swapped."""
    if not _pairs(entry):
        return
    columns = ordinary("chosen")
    equal = {name: columns[name.replace("rejected", "chosen")] for name in columns}
    right = {**equal, "rejected": equal["chosen"] - 0.5}
    loss, swapped = run(entry, right), run(entry, {name: right[_other(name)] for name in right})
    hold((loss < swapped).all(), f"{loss.tolist()}, swapped {swapped.tolist()}")


def only_log_ratios_count_where_there_is_a_reference(entry: Entry) -> None:
    """A constant on policy and reference alike cancels, be it another one for each side.

    Not in losses that want the answer itself to be likely: there the constant must be seen, or the exception is stale.
    """
    with_reference = [name for name in entry.columns if name.startswith("ref_")]
    if not with_reference:
        return
    columns = _usual(entry)
    moved = dict(columns)
    for name in with_reference:
        shift = 0.5 if "rejected" in name else -1.5
        moved[name], policy = columns[name] + shift, name.removeprefix("ref_")
        moved[policy] = columns[policy] + shift
    same = torch.allclose(run(entry, moved), run(entry, columns), rtol=0, atol=1e-12)
    hold(same != (entry.name in SEES_THE_LIKELIHOOD), "a constant on policy and reference does not cancel")


def lengths_count_only_as_means(entry: Entry) -> None:
    """Without a reference, an answer said twice (its sum and its length doubled) is the same answer."""
    if not _pairs(entry) or any(name.startswith("ref_") for name in entry.columns):
        return
    columns = ordinary("chosen")
    twice = {**columns, "chosen": 2 * columns["chosen"], "chosen_tokens": 2 * columns["chosen_tokens"]}
    close(run(entry, twice), run(entry, columns), "every token of the chosen answer said twice")


LAWS: tuple[laws.Law, ...] = (
    it_asks_for_columns_of_one_kind_of_item,
    laws.its_options_are_numbers_and_switches_and_are_documented,
    laws.it_says_where_it_comes_from_and_what_confirmed_it,
    one_finite_number_an_item,
    no_items_no_numbers,
    float32_gives_the_same,
    the_columns_stay_as_they_are,
    permuting_items_permutes_losses,
    an_item_does_not_depend_on_its_neighbours,
    every_column_asked_for_counts,
    only_the_policy_gets_a_gradient,
    finite_far_out,
    better_sides_cost_less,
    answers_go_where_they_were_voted,
    lists_want_the_best_answer_likely,
    the_start_pulls_two_equal_answers_apart,
    the_right_way_round_costs_less,
    only_log_ratios_count_where_there_is_a_reference,
    lengths_count_only_as_means,
)
