"""Laws that every preference loss in the folder obeys, and one in a user's own folder; a new file is tested at once.

Columns are handed in by name; which of them a loss asks for decides what its items are. What the laws call ordinary
values: a nat or two a token, and a policy that has moved by half a nat from the reference.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trimtab.registry import PREFERENCE_LOSSES, Entry, Folder

COLUMNS = {
    "chosen": (
        "chosen", "rejected", "ref_chosen", "ref_rejected",
        "chosen_tokens", "rejected_tokens", "chosen_kl", "rejected_kl",
    ),
    "desirable": ("logps", "ref_logps", "desirable", "baseline"),
    "scores": ("logps", "tokens", "scores", "mask"),
}  # fmt: skip
POLICY = {"chosen", "rejected", "logps", "chosen_kl", "rejected_kl"}  # through these a gradient may flow

# The laws' exceptions, by name.
STOPPED = {"tdpo2": {"chosen_kl"}}  # the method's own gradient stop
SEES_THE_LIKELIHOOD = {"rpo"}  # beside the log-ratios, it wants the chosen answer itself likely

OWN = '''
from torch import Tensor
from torch.nn.functional import softplus


def own(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.5) -> Tensor:
    """Logistic loss on the margin, by another road, (P,).

    ``beta``: as in DPO.

    Source: nobody, 2026
    Confirmed by: the laws
    """
    return softplus(beta * (rejected - ref_rejected.detach() - chosen + ref_chosen.detach()))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("plugins")
    (path / "own.py").write_text(OWN, encoding="utf-8")
    both = Folder(PREFERENCE_LOSSES.package, PREFERENCE_LOSSES.what)
    assert both.add(path) == ("own",)
    return both


@pytest.fixture(params=[*PREFERENCE_LOSSES, "own"])
def entry(request: pytest.FixtureRequest, folder: Folder) -> Entry:
    return folder[request.param]


def wanted(entry: Entry) -> list[str]:
    return [name for name in inspect.signature(entry.function).parameters if name not in entry.options]


def kind(entry: Entry) -> str:
    """Return the column that decides what an item is."""
    (deciding,) = set(wanted(entry)) & set(COLUMNS)
    return deciding


def ordinary(deciding: str) -> dict[str, Tensor]:
    """Five items at ordinary values, ragged, with one answer of a single token."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def answers(tokens: Tensor) -> tuple[Tensor, Tensor]:
        logps = -tokens * (0.5 + draw(*tokens.shape))
        return logps, logps - 1 + 2 * draw(*tokens.shape)

    if deciding == "chosen":
        chosen_tokens, rejected_tokens = torch.tensor([4, 1, 7, 3, 5]), torch.tensor([2, 6, 1, 3, 8])
        (chosen, ref_chosen), (rejected, ref_rejected) = answers(chosen_tokens), answers(rejected_tokens)
        return {
            "chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected,
            "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens,
            "chosen_kl": 0.1 * chosen_tokens * draw(5), "rejected_kl": 0.1 * rejected_tokens * draw(5),
        }  # fmt: skip
    if deciding == "desirable":
        logps, ref_logps = answers(torch.tensor([4, 1, 7, 3, 5]))
        desirable = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
        return {"logps": logps, "ref_logps": ref_logps, "desirable": desirable, "baseline": 0.3 * draw(1)[0]}
    tokens = torch.tensor([[4, 1, 7], [2, 2, 3], [9, 4, 1], [1, 1, 1], [5, 8, 2]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    return {"logps": answers(tokens)[0], "tokens": tokens, "scores": draw(5, 3), "mask": mask}


def run(entry: Entry, columns: Mapping[str, Tensor], **options: float) -> Tensor:
    loss = entry.function(*(columns[name] for name in wanted(entry)), **options)
    assert isinstance(loss, Tensor)
    return loss


def with_grad(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in columns.items()}


def items(columns: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: x[index] if x.ndim else x for name, x in columns.items()}


def cast(columns: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x.clone() for name, x in columns.items()}


# What a loss is


def test_all_are_there() -> None:
    expected = "dpo cdpo rdpo ipo hinge rpo dpop tdpo1 tdpo2 orpo simpo kto rrhf"
    assert set(expected.split()) <= set(PREFERENCE_LOSSES)


def test_it_asks_for_columns_of_one_kind_of_item(entry: Entry) -> None:
    assert set(wanted(entry)) <= set(COLUMNS[kind(entry)])
    parameters = inspect.signature(entry.function).parameters
    assert all(parameters[name].default is inspect.Parameter.empty for name in wanted(entry))


def test_its_options_are_numbers_and_switches_and_are_documented(entry: Entry) -> None:
    said, hints = inspect.getdoc(entry.function) or "", typing.get_type_hints(entry.function)
    for name, parameter in entry.options.items():
        assert hints[name] in (float, bool)
        assert type(parameter.default) is hints[name]
        assert f"``{name}``" in said


def test_it_says_where_it_comes_from_and_what_confirmed_it(entry: Entry) -> None:
    assert entry.summary.endswith(".")
    assert entry.paper
    assert entry.confirmed
    assert entry.path is not None
    assert entry.path.name == f"{entry.name}.py"
    if entry.name in PREFERENCE_LOSSES:
        assert re.search(r"arXiv:\d{4}\.\d{5}|no arXiv number", entry.paper)
        assert "hand-worked numbers" in entry.confirmed
        assert re.search(r"TRL 1\.16|a slow loop", entry.confirmed)


# What it gives


def test_one_finite_number_an_item(entry: Entry) -> None:
    columns = with_grad(ordinary(kind(entry)))
    loss = run(entry, columns)
    assert loss.shape == (5,)
    assert loss.dtype == torch.float64
    assert loss.isfinite().all()
    assert loss.requires_grad


def test_no_items_no_numbers(entry: Entry) -> None:
    columns = with_grad(items(ordinary(kind(entry)), torch.tensor([], dtype=torch.int64)))
    loss = run(entry, columns)
    assert loss.shape == (0,)
    loss.sum().backward()


def test_float32_gives_the_same(entry: Entry) -> None:
    columns = ordinary(kind(entry))
    loss = run(entry, cast(columns, torch.float32))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), run(entry, columns), rtol=1e-4, atol=1e-5)


def test_the_columns_stay_as_they_are(entry: Entry) -> None:
    columns = ordinary(kind(entry))
    before = {name: x.clone() for name, x in columns.items()}
    run(entry, columns)
    assert all(torch.equal(columns[name], before[name]) for name in columns)


def test_permuting_items_permutes_losses(entry: Entry) -> None:
    columns, order = ordinary(kind(entry)), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(run(entry, items(columns, order)), run(entry, columns)[order], rtol=0, atol=1e-14)


def test_an_item_does_not_depend_on_its_neighbours(entry: Entry) -> None:
    """So micro-batches of any size add up to the same gradient."""
    columns = ordinary(kind(entry))
    alone = torch.cat([run(entry, items(columns, torch.tensor([i]))) for i in range(5)])
    torch.testing.assert_close(alone, run(entry, columns), rtol=0, atol=1e-14)


def test_every_column_asked_for_counts(entry: Entry) -> None:
    """A forgotten reference or length would leave the loss as it was."""
    columns = ordinary(kind(entry))
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "desirable": lambda x: 1 - x,
        "scores": lambda x: -x,
        "mask": lambda x: x & torch.tensor([False, True, True]),
    }
    for name in wanted(entry):
        moved = change[name](columns[name]) if name in change else columns[name] + 1
        assert not torch.allclose(run(entry, {**columns, name: moved}), run(entry, columns)), name


# Where gradients flow


def test_only_the_policy_gets_a_gradient(entry: Entry) -> None:
    columns = with_grad(ordinary(kind(entry)))
    run(entry, columns).sum().backward()
    for name in wanted(entry):
        flows = name in POLICY and name not in STOPPED.get(entry.name, ())
        assert (columns[name].grad is not None) == flows, name


def far(deciding: str, sign: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Two items whose margins, means and gains are +-1e4 nats; the second over a single token."""
    near, off = torch.full((2,), -1.0), torch.full((2,), -1e4)
    up, down = (near, off) if sign > 0 else (off, near)
    tokens = torch.tensor([50, 1])
    if deciding == "chosen":
        columns = {
            "chosen": up, "rejected": down, "ref_chosen": down, "ref_rejected": up,
            "chosen_tokens": tokens, "rejected_tokens": tokens, "chosen_kl": -off, "rejected_kl": -near,
        }  # fmt: skip
    elif deciding == "desirable":
        baseline = torch.tensor(0.0 if sign > 0 else 1e4)
        columns = {"logps": up, "ref_logps": down, "desirable": torch.tensor([1.0, 0.0]), "baseline": baseline}
    else:
        both = torch.stack((up, down), 1)
        columns = {
            "logps": both, "tokens": torch.tensor([[50, 1], [1, 50]]),
            "scores": torch.tensor([[1.0, 0.0], [1e4, -1e4]]), "mask": torch.ones(2, 2, dtype=torch.bool),
        }  # fmt: skip
    return with_grad(cast(columns, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_far_out(entry: Entry, sign: int, dtype: torch.dtype) -> None:
    columns = far(kind(entry), sign, dtype)
    loss = run(entry, columns)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert all(x.grad.isfinite().all() for x in columns.values() if x.grad is not None)


# What it wants


def sides(entry: Entry) -> Iterator[tuple[str, int]]:
    """Yield (column of the policy, +1 where the loss should fall as it rises, -1 where it should rise)."""
    if kind(entry) == "chosen":
        yield from (("chosen", 1), ("rejected", -1))


def test_better_sides_cost_less(entry: Entry) -> None:
    """Chosen up: less; rejected up: more. IPO and cDPO promise it below their targets, the hinge while it is not done:
    ordinary values are there.
    """
    columns = ordinary(kind(entry))
    for name, direction in sides(entry):
        change = run(entry, {**columns, name: columns[name] + 0.05}) - run(entry, columns)
        assert (direction * change < 0).all(), name


def test_answers_go_where_they_were_voted(entry: Entry) -> None:
    if kind(entry) != "desirable":
        return
    columns = ordinary("desirable")
    change = run(entry, {**columns, "logps": columns["logps"] + 0.3}) - run(entry, columns)
    assert torch.equal(change < 0, columns["desirable"] == 1)


def test_lists_want_the_best_answer_likely(entry: Entry) -> None:
    """The best up: less. The worst up: never less, unless it is the only one."""
    if kind(entry) != "scores":
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
    assert (change["best"] < 0).all()
    assert (change["worst"][several] >= 0).all()


def test_the_start_pulls_two_equal_answers_apart(entry: Entry) -> None:
    """Same text of both sides, policy = reference: the first step raises the chosen one and lowers the other."""
    if kind(entry) != "chosen":
        return
    logps = torch.tensor([-3.0, -0.7], dtype=torch.float64)
    tokens, kl = torch.tensor([4, 1]), torch.zeros(2, dtype=torch.float64)
    columns = with_grad(
        {name: tokens if "tokens" in name else kl if "kl" in name else logps for name in COLUMNS["chosen"]}
    )
    up, down = torch.autograd.grad(run(entry, columns).sum(), (columns["chosen"], columns["rejected"]))
    assert (up < 0).all()
    assert (down > 0).all()


def test_the_right_way_round_costs_less(entry: Entry) -> None:
    """All else equal, the pair whose chosen side is likelier costs less than the same pair swapped."""
    if kind(entry) != "chosen":
        return
    columns = ordinary("chosen")
    equal = {name: columns[name.replace("rejected", "chosen")] for name in columns}
    right = {**equal, "rejected": equal["chosen"] - 0.5}
    swapped = {name: right[_other(name)] for name in right}
    assert (run(entry, right) < run(entry, swapped)).all()


def test_only_log_ratios_count_where_there_is_a_reference(entry: Entry) -> None:
    """A constant on policy and reference alike cancels, be it another one for each side.

    Not in losses that want the answer itself to be likely: there the constant must be seen, or the exception is stale.
    """
    with_reference = [name for name in wanted(entry) if name.startswith("ref_")]
    if not with_reference:
        return
    columns = ordinary(kind(entry))
    moved = dict(columns)
    for name in with_reference:
        shift = 0.5 if "rejected" in name else -1.5
        moved[name], policy = columns[name] + shift, name.removeprefix("ref_")
        moved[policy] = columns[policy] + shift
    same = torch.allclose(run(entry, moved), run(entry, columns), rtol=0, atol=1e-12)
    assert same != (entry.name in SEES_THE_LIKELIHOOD)


def test_lengths_count_only_as_means(entry: Entry) -> None:
    """Without a reference, an answer said twice (its sum and its length doubled) is the same answer."""
    if kind(entry) != "chosen" or any(name.startswith("ref_") for name in wanted(entry)):
        return
    columns = ordinary("chosen")
    twice = {**columns, "chosen": 2 * columns["chosen"], "chosen_tokens": 2 * columns["chosen_tokens"]}
    torch.testing.assert_close(run(entry, twice), run(entry, columns), rtol=0, atol=1e-12)


def _other(name: str) -> str:
    return name.replace("rejected", "chosen") if "rejected" in name else name.replace("chosen", "rejected")


def test_a_users_own_loss_is_under_the_laws(folder: Folder) -> None:
    assert "own" in folder
    assert "own" not in PREFERENCE_LOSSES
    path = folder["own"].path
    assert path is not None
    assert Path(inspect.getfile(folder["own"].function)) == path
