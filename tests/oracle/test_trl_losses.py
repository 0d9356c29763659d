"""Preference losses against TRL's own code, item by item, in value and gradient.

TRL's trainers are really made, on the tiny model, and really called; where they call a model, a stand-in answers with
numbers drawn at random. A batch of one item makes TRL's mean the item's loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.losses.preference.cdpo import cdpo
from trimtab.losses.preference.dpo import dpo
from trimtab.losses.preference.hinge import hinge
from trimtab.losses.preference.ipo import ipo
from trimtab.losses.preference.kto import kto
from trimtab.losses.preference.orpo import orpo
from trimtab.losses.preference.rdpo import rdpo
from trimtab.losses.preference.rpo import rpo
from trimtab.losses.preference.simpo import simpo

pytest.importorskip("trl", minversion="1.16", reason="TRL is here to compare with only: pip install trl==1.16.0")

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental':UserWarning"),
]

ITEMS = 8
LONGEST = 9
VOCABULARY = 11
KL_WIDTH = LONGEST + 3  # another width than the answers', by which the stand-in knows them


# The numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers of 1 to 9 tokens after a prompt of one token; log-probabilities (N, L) are 0 past the end."""

    mask: Tensor
    drawn: Tensor
    reference: Tensor

    @property
    def policy(self) -> Tensor:
        return self.drawn * self.mask  # so nothing past the end gets a gradient, in their code or in ours

    @property
    def tokens(self) -> Tensor:
        return self.mask.sum(1)


def answers(seed: int, width: int = LONGEST) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (ITEMS,), generator=generator)
    mask = torch.arange(width) < lengths.unsqueeze(1)
    drawn = -3 * torch.rand(ITEMS, width, generator=generator, dtype=torch.float64)
    reference = drawn - 0.2 + torch.randn(ITEMS, width, generator=generator, dtype=torch.float64)
    return Answers(mask=mask, drawn=drawn.requires_grad_(), reference=reference.detach() * mask)


def rows(*masks: Tensor) -> dict[str, Tensor]:
    """Return what TRL's collators make of answers to a prompt of one token, without the words."""
    mask = torch.stack(masks)
    ids = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.int64)
    attention = torch.nn.functional.pad(mask, (1, 0), value=True).long()
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "completion_mask": attention * (torch.arange(ids.shape[1]) > 0),
    }


class GivenLogps(nn.Module):
    """Stands where TRL calls a model with its fused head: answers by the width of what comes in."""

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.tables = {table.shape[1] + 1: table for table in tables}

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        logps = self.tables[input_ids.shape[1]]
        assert not (logps.detach() * (labels[:, 1:] == -100)).any()
        nothing = torch.zeros(logps.shape)
        return SimpleNamespace(log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


class GivenLogits(nn.Module):
    """Stands where TRL calls a model for its logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        assert input_ids.shape == self.logits.shape[:2]
        return SimpleNamespace(logits=self.logits)


# TRL's trainers


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def make(model: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return what makes a trainer of TRL's from its two classes, two rows of data and its settings."""
    from datasets import Dataset

    from trimtab.model.tiny import tiny_tokenizer

    def build(trainer: Any, config: Any, data: dict[str, list[Any]], *, reference: bool = False, **options: Any) -> Any:
        arguments = config(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False,
            per_device_train_batch_size=2, disable_tqdm=True, **options,
        )  # fmt: skip
        more = {"ref_model": copy.deepcopy(model)} if reference else {}
        return trainer(
            model=copy.deepcopy(model), args=arguments, train_dataset=Dataset.from_dict(data),
            processing_class=tiny_tokenizer(), **more,
        )  # fmt: skip

    return build


PAIRS = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
FLIPS = {"label_smoothing": 0.2}
WEIGHTS = {"loss_weights": [1.0, 0.7]}
THUMBS = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}


def agree(ours: Tensor, theirs: Tensor, leaves: tuple[Tensor, ...], *, atol: float = 1e-9) -> None:
    """Compare losses, and their gradients on what both were made from."""
    assert ours.shape == theirs.shape == (ITEMS,)
    assert ours.unique().numel() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    here = torch.autograd.grad(ours.sum(), leaves, retain_graph=True)
    there = torch.autograd.grad(theirs.sum(), leaves, retain_graph=True)
    for mine, other in zip(here, there, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


# DPOTrainer


@pytest.mark.parametrize(
    ("loss", "lengths", "options", "settings"),
    [
        (dpo, 0, {"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
        (hinge, 0, {"beta": 0.3}, {"loss_type": ["hinge"], "beta": 0.3}),
        (rdpo, 0, {"beta": 0.3} | FLIPS, {"loss_type": ["robust"], "beta": 0.3} | FLIPS),
        (ipo, 2, {"tau": 0.4}, {"loss_type": ["ipo"], "beta": 0.4}),
        (rpo, 1, {"beta": 0.3, "alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "beta": 0.3} | WEIGHTS),
    ],
)
def test_dpo_trainer(
    make: Callable[..., Any],
    loss: Callable[..., Tensor],
    lengths: int,
    options: dict[str, float],
    settings: dict[str, Any],
) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = make(DPOTrainer, DPOConfig, PAIRS, reference=True, **settings)
    chosen, rejected = answers(1), answers(2)
    found = []
    for i in range(ITEMS):
        trainer.ref_model = GivenLogps(torch.stack((chosen.reference[i], rejected.reference[i])))
        policy = GivenLogps(torch.stack((chosen.policy[i], rejected.policy[i])))
        found.append(trainer.compute_loss(policy, rows(chosen.mask[i], rejected.mask[i])))
    columns = [x.sum(1) for x in (chosen.policy, rejected.policy, chosen.reference, rejected.reference)]
    ours = loss(*columns, *(chosen.tokens, rejected.tokens)[:lengths], **options)
    agree(ours, torch.stack(found), (chosen.drawn, rejected.drawn))


# KTOTrainer


def test_kto_trainer(make: Callable[..., Any]) -> None:
    """One by one, each with its own baseline, below and above 0; then all at once, with one."""
    from trl import KTOConfig, KTOTrainer

    options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = make(KTOTrainer, KTOConfig, THUMBS, reference=True, loss_type="kto", **options)
    given, other = answers(3), answers(4, KL_WIDTH)
    label = torch.arange(ITEMS) % 3 == 0

    def theirs(index: Tensor) -> Tensor:
        trainer.ref_model = GivenLogps(given.reference[index], other.reference[index])
        batch = rows(*given.mask[index]) | {f"KL_{k}": v for k, v in rows(*other.mask[index]).items()}
        policy = GivenLogps(given.policy[index], other.policy[index])
        loss: Tensor = trainer.compute_loss(policy, batch | {"label": label[index]})
        return loss

    def ours(index: Tensor) -> Tensor:
        drift = (other.policy - other.reference)[index].sum(1).mean().clamp(min=0)
        logps, ref_logps = given.policy[index].sum(1), given.reference[index].sum(1)
        return kto(logps, ref_logps, label[index], drift, **options)

    drifts = (other.policy - other.reference).sum(1)
    assert drifts.min() < 0 < drifts.max()
    each = [torch.tensor([i]) for i in range(ITEMS)]
    agree(torch.cat([ours(i) for i in each]), torch.stack([theirs(i) for i in each]), (given.drawn,))
    everything = torch.arange(ITEMS)
    assert ours(everything).mean().item() == pytest.approx(theirs(everything).item(), abs=1e-9)


# ORPOTrainer and CPOTrainer, which have no reference and take logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """One pair as token ids and logits (2, L, V), and the columns that come of them; a prompt of one token."""

    batch: dict[str, Tensor]
    logits: Tensor
    columns: tuple[Tensor, ...]


def texts(seed: int) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = torch.randint(1, LONGEST + 1, (2,), generator=generator).tolist()
    logits = 2 * torch.randn(2, max(lengths) + 1, VOCABULARY, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    batch, sums = {}, []
    for side, (name, length) in enumerate(zip(("chosen", "rejected"), lengths, strict=True)):
        ids = torch.randint(VOCABULARY, (1, length + 1), generator=generator)
        batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"] = ids, torch.ones_like(ids)
        batch[f"{name}_labels"] = ids.index_fill(1, torch.tensor([0]), -100)
        sums.append(logits[side, :length].log_softmax(1).gather(1, ids[0, 1:].unsqueeze(1)).sum())
    return Texts(batch=batch, logits=logits, columns=(*sums, *map(torch.tensor, lengths)))


def without_reference(trainer: Any, loss: Callable[..., Tensor], *, atol: float, **options: float) -> None:
    pairs = [texts(seed) for seed in range(ITEMS)]
    theirs = [trainer.get_batch_loss_metrics(GivenLogits(pair.logits), pair.batch)[0] for pair in pairs]
    ours = [loss(*pair.columns, **options) for pair in pairs]
    agree(torch.stack(ours), torch.stack(theirs).double(), tuple(pair.logits for pair in pairs), atol=atol)


def test_orpo_trainer(make: Callable[..., Any]) -> None:
    """TRL's first term runs over prompt and answer; a prompt of one token is never a target, so it is the answer's.

    Its odds are in float32.
    """
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = make(ORPOTrainer, ORPOConfig, PAIRS, beta=0.4)
    without_reference(trainer, orpo, weight=0.4, atol=1e-5)


def test_cpo_trainer_as_simpo(make: Callable[..., Any]) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    trainer = make(CPOTrainer, CPOConfig, PAIRS, loss_type="simpo", cpo_alpha=0.0, beta=2.5, simpo_gamma=1.4)
    without_reference(trainer, simpo, beta=2.5, gamma=1.4, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "lengths", "options", "settings"),
    [
        (cdpo, 0, {"beta": 0.3} | FLIPS, {"loss_type": "sigmoid", "beta": 0.3} | FLIPS),
        (ipo, 2, {"tau": 0.4, "average": False}, {"loss_type": "ipo", "beta": 0.4}),
    ],
)
def test_cpo_trainer_given_log_ratios(
    make: Callable[..., Any],
    loss: Callable[..., Tensor],
    lengths: int,
    options: dict[str, float],
    settings: dict[str, Any],
) -> None:
    """CPO's loss sees one difference; handed log-ratios for log-probabilities, it is the loss with a reference."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    trainer = make(CPOTrainer, CPOConfig, PAIRS, **settings)
    chosen, rejected = answers(1), answers(2)
    columns = [x.sum(1) for x in (chosen.policy, rejected.policy, chosen.reference, rejected.reference)]
    theirs, _, _ = trainer.cpo_loss(columns[0] - columns[2], columns[1] - columns[3])
    ours = loss(*columns, *(chosen.tokens, rejected.tokens)[:lengths], **options)
    agree(ours, theirs, (chosen.drawn, rejected.drawn))
