"""Bradley-Terry against TRL's reward trainer: losses, gradients, and the curve of 20 steps."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_stages as tiny
from trimtab.data.encode import encode
from trimtab.data.judged import read_judged, with_pairs
from trimtab.losses.reward._terms import centering
from trimtab.losses.reward.bradley_terry import bradley_terry
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.registry import REWARD_LOSSES
from trimtab.stages._reward_task import Pairs, Task
from trimtab.tensors.tree import TokenGroup
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Means

STEPS, LR, MARGIN, CENTER = 20, 1e-3, 0.3, 0.01

pytest.importorskip("trl", minversion="1.16", reason="TRL is here to compare with only: pip install trl==1.16.0")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what another project's code warns of is not ours
]


def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer import reward_config, reward_trainer
    return SimpleNamespace(RewardConfig=reward_config.RewardConfig, RewardTrainer=reward_trainer.RewardTrainer)


def trl_loss(better: Tensor, worse: Tensor, *, margin: Tensor | None, center: float | None) -> Tensor:
    """TRL's loss of one batch of scores, in place of a model that gives them."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    logits = torch.cat([better, worse])[:, None]
    given = {} if margin is None else {"margin": margin}
    loss: Tensor = trl().RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), given)
    return loss


@pytest.mark.parametrize("center", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_losses_and_gradients_of_single_pairs(with_margin: bool, center: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    better, worse, margin = 3 * torch.randn(3, 8, generator=generator, dtype=torch.float64)
    margins = margin.abs() if with_margin else torch.zeros(8, dtype=torch.float64)
    better.requires_grad_()
    worse.requires_grad_()
    ours = bradley_terry(better, worse, margin=margins) + (center or 0.0) * centering(better, worse)
    theirs = torch.stack(
        [
            trl_loss(
                better[i : i + 1], worse[i : i + 1], margin=margins[i : i + 1] if with_margin else None, center=center
            )
            for i in range(8)
        ]
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    mine = torch.autograd.grad(ours.sum(), (better, worse))
    others = torch.autograd.grad(theirs.sum(), (better, worse))
    torch.testing.assert_close(mine, others, rtol=0, atol=1e-5)


def our_curve(task: Task) -> list[float]:
    """Every weight is trained, and the head's row; TRL's head has no bias."""
    assert isinstance(task.head, ScalarHead)
    task.head.bias.requires_grad_(False)
    parameters = [p.requires_grad_() for p in task.trunk.decoder.parameters()]
    group = ParameterGroup(name="all", parameters=[*parameters, task.head.weight], lr=LR)
    optimiser = Optimiser([group], max_grad_norm=1e9)
    curve = []
    for step in range(STEPS):
        (update,) = task.updates(step, Means())
        (micro,) = update.micros
        with torch.no_grad():
            losses, added, _ = task.objective.losses(task.scores(micro), micro.columns)
        curve.append(float((losses + added).mean()))
        update.accumulate(micro)
        optimiser.accumulate()
        optimiser.step(1.0)
    return curve


def their_curve(folder: Path, model: Path, tokens: list[TokenGroup], margins: list[float]) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    there = trl()
    curve: list[float] = []

    class Recorder(there.RewardTrainer):  # type: ignore[misc, name-defined]
        """TRL's trainer; the losses that it computes are written down before they are rounded for its log."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            curve.append(float(loss.detach()))
            return loss

    net = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    net.score.weight.data.zero_()
    rows = {
        "chosen_ids": [[*item.prompt, *item.answers[0]] for item in tokens],
        "rejected_ids": [[*item.prompt, *item.answers[1]] for item in tokens],
        "margin": margins,
    }
    config = there.RewardConfig(
        output_dir=str(folder), per_device_train_batch_size=len(tokens), max_steps=STEPS, learning_rate=LR,
        lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.0,
        max_grad_norm=1e9, center_rewards_coefficient=CENTER, report_to=[], save_strategy="no", use_cpu=True,
        bf16=False, gradient_checkpointing=False, max_length=None, disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    Recorder(model=net, args=config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer).train()
    return curve


def test_the_curve_of_twenty_steps(tmp_path: Path, tiny_model: Path) -> None:
    strengths = [0.0, 1.0, 2.0, 3.0, 0.5]
    rows = [
        tiny.row(f"p{i}", tiny.QUESTIONS[i], [tiny.ANSWERS[i], "No" * (i + 1)],
                 [{"kind": "pair", "better": 0, "worse": 1, "strength": strength}])
        for i, strength in enumerate(strengths)
    ]  # fmt: skip
    run = tiny.make_run(tmp_path / "ours", "reward")
    judged = read_judged(tiny.write_rows(tmp_path / "p.jsonl", rows).source, with_pairs, run=run)
    trunk = Trunk.load(tiny_model, dtype="float32")
    groups, tokens = encode(judged.groups, trunk.chat, max_length=512, run=run, what="preferences")
    pairs = Pairs(loss=REWARD_LOSSES["bradley_terry"], margin=MARGIN, center=CENTER)
    head = ScalarHead(trunk.hidden_size)
    task = Task(trunk, head, pairs, groups, tokens, batch=len(tokens), micro_tokens=4096, seed=0)
    ours = our_curve(task)
    theirs = their_curve(tmp_path / "theirs", tiny_model, tokens, [MARGIN * strength for strength in strengths])
    assert len(theirs) == STEPS
    assert ours[-1] < 0.5 * ours[0]
    assert ours == pytest.approx(theirs, abs=1e-3)
