"""The laws can be broken: a loss with one fault breaks the law that is there for it, and one without breaks none."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from trimtab.laws import broken, laws_of, name_of
from trimtab.registry import OPEN, Entry, Folder

LOSS = '''
import torch
from torch import Tensor
from torch.nn.functional import softplus

def mine({columns}{options}):
    """{said}

    ``beta``: how much.

    Source: {source}
    Confirmed by: nobody
    """
{body}
'''
PAIR = "chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor"
NO_REFERENCE = "chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor"
VOTE = "logps: Tensor, ref_logps: Tensor, desirable: Tensor, baseline: Tensor"
LIST = "logps: Tensor, tokens: Tensor, scores: Tensor, mask: Tensor"
MARGIN = "h = beta * (chosen - ref_chosen.detach() - rejected + ref_rejected.detach())\n"
GAIN = "h = (2 * desirable.detach() - 1) * beta * (logps - ref_logps.detach() - baseline.detach())\n"
BEST = (
    "mean = (logps / tokens).masked_fill(~mask, -torch.inf)\n"
    "best = scores.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)\n"
)

REWARD_PAIR = "better: Tensor, worse: Tensor, margin: Tensor, probability: Tensor"
LABELS = "scores: Tensor, labels: Tensor, mask: Tensor"
RANKS = "scores: Tensor, ranks: Tensor, mask: Tensor"

GOOD = {
    "preference": [
        (PAIR, MARGIN + "return softplus(-h)"),
        (NO_REFERENCE, "return softplus(beta * (rejected / rejected_tokens - chosen / chosen_tokens))"),
        (VOTE, GAIN + "return softplus(-h)"),
        (LIST, BEST + "return beta * (mean.logsumexp(1) - mean.gather(1, best).squeeze(1))"),
    ],
    "reward": [
        (REWARD_PAIR, "return probability * softplus(worse - better + margin)"),
        (LABELS, "return beta * (scores - labels).masked_fill(~mask, 0).square().sum(1)"),
    ],
}
FAULTS = {
    "preference": {
        "it asks for columns of one kind of item": (f"{PAIR} = None", MARGIN + "return softplus(-h)"),
        "one finite number an item": (PAIR, MARGIN + "return softplus(-h).mean()"),
        "no items no numbers": (PAIR, MARGIN + "return softplus(-h) + 0 * h.max()"),
        "float32 gives the same": (PAIR, MARGIN + "return softplus(-h.double())"),
        "the columns stay as they are": (PAIR, "chosen.data += 1\n" + MARGIN + "return softplus(-h)"),
        "permuting items permutes losses": (PAIR, MARGIN + "return softplus(-h) * torch.arange(1, len(h) + 1)"),
        "an item does not depend on its neighbours": (PAIR, MARGIN + "return softplus(h.detach().mean() - h)"),
        "every column asked for counts": (PAIR, "return softplus(beta * (rejected - chosen))"),
        "only the policy gets a gradient": (PAIR, "return softplus(rejected - ref_rejected - chosen + ref_chosen)"),
        "finite far out": (PAIR, MARGIN + "return (1 + (-h).exp()).log()"),
        "better sides cost less": (PAIR, MARGIN + "return softplus(h)"),
        "answers go where they were voted": (VOTE, GAIN + "return softplus(h)"),
        "lists want the best answer likely": (LIST, BEST + "return mean.gather(1, best).squeeze(1).exp()"),
        "the start pulls two equal answers apart": (PAIR, MARGIN + "return -(h**3)"),
        "the right way round costs less": (PAIR, MARGIN + "return softplus(-h) - 2 * rejected"),
        "only log ratios count where there is a reference": (PAIR, MARGIN + "return softplus(-h) - 0.1 * chosen"),
        "lengths count only as means": (
            NO_REFERENCE, "return softplus(rejected - chosen + chosen_tokens - rejected_tokens)"
        ),
    },
    "reward": {
        "one number an item never negative": (REWARD_PAIR, "return worse - better + margin"),
        "the scores stay as they are": (REWARD_PAIR, "better.data += 1\nreturn softplus(worse - better)"),
        "an item does not depend on its neighbours": (LABELS, "return (scores - scores.mean(0)).square().sum(1)"),
        "gradients do not depend on micro batches": (REWARD_PAIR, "return softplus(worse - better) / len(better)"),
        "finite far out in float32": (REWARD_PAIR, "return (1 + (worse - better).exp()).log()"),
        "what is masked has no gradient": (LABELS, "return (scores - labels).square().sum(1)"),
        "only differences between answers count": (REWARD_PAIR, "return softplus(worse - better) + better.square()"),
        "at equal scores the best goes up and the worst down": (REWARD_PAIR, "return softplus(better - worse)"),
    },
}  # fmt: skip
SHARED = {
    "its options are numbers and switches and are documented": {"options": ", *, beta: float = 1"},
    "it says where it comes from and what confirmed it": {"source": ""},
}


def load(folder: Path, kind: str, columns: str, body: str, **words: str) -> Entry:
    """Write a loss as a user would, and load it as his."""
    told = {"options": ", *, beta: float = 0.5", "said": "Do it.", "source": "nobody", **words}
    folder.mkdir(exist_ok=True)
    text = LOSS.format(columns=columns, body=textwrap.indent(body, "    "), **told)
    (folder / "mine.py").write_text(text, encoding="utf-8")
    losses = Folder(OPEN[kind].package, OPEN[kind].what, OPEN[kind].columns, place=OPEN[kind].place)
    losses.add(folder)
    return losses["mine"]


@pytest.mark.parametrize(("kind", "columns", "body"), [(kind, *loss) for kind, good in GOOD.items() for loss in good])
def test_a_loss_without_a_fault_breaks_no_law(tmp_path: Path, kind: str, columns: str, body: str) -> None:
    assert broken(kind, load(tmp_path, kind, columns, body)) == {}


@pytest.mark.parametrize(("kind", "law"), [(kind, law) for kind, faults in FAULTS.items() for law in faults])
def test_a_fault_breaks_its_law(tmp_path: Path, kind: str, law: str) -> None:
    found = broken(kind, load(tmp_path, kind, *FAULTS[kind][law]))
    assert law in found
    assert found[law]
    assert all("\n" not in said for said in found.values())


@pytest.mark.parametrize("kind", list(OPEN))
@pytest.mark.parametrize("law", list(SHARED))
def test_a_fault_in_what_it_says_breaks_its_law(tmp_path: Path, kind: str, law: str) -> None:
    assert list(broken(kind, load(tmp_path, kind, *GOOD[kind][0], **SHARED[law]))) == [law]


@pytest.mark.parametrize("kind", list(OPEN))
def test_every_law_has_a_fault_here(kind: str) -> None:
    assert {*FAULTS[kind], *SHARED} == {name_of(law) for law in laws_of(kind)}


def test_what_a_loss_raises_is_a_broken_law_with_its_words(tmp_path: Path) -> None:
    found = broken("preference", load(tmp_path, "preference", PAIR, "raise RuntimeError('not today\\nor ever')"))
    assert found["one finite number an item"] == "RuntimeError: not today"
    assert "it says where it comes from and what confirmed it" not in found


def test_what_is_no_tensor(tmp_path: Path) -> None:
    found = broken("preference", load(tmp_path, "preference", PAIR, "return 1.0"))
    assert found["one finite number an item"] == "it gives float, not a tensor"
