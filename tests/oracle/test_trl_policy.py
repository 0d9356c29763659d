"""Policy losses with their aggregation against TRL's own code, in value and gradient, on ragged answers.

TRL's trainers are really made, on the tiny model, and their loss is really called; where they call the model, a
stand-in answers with numbers drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses.policy.cispo import cispo
from trimtab.losses.policy.gspo import gspo
from trimtab.losses.policy.ppo import ppo
from trimtab.losses.policy.rloo import rloo
from trimtab.tensors.aggregate import Aggregation, Totals, aggregate
from trimtab.tensors.kl import kl_estimate

pytest.importorskip("trl", minversion="1.16", reason="TRL is here to compare with only: pip install trl==1.16.0")

ANSWERS, LONGEST, CAP = 6, 9, 12


def numbers() -> dict[str, Tensor]:
    """Six answers of 1 to 9 tokens: the policy's, the old policy's and the reference's log-probabilities."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([9, 1, 4, 7, 2, 5])
    mask = torch.arange(LONGEST) < lengths[:, None]
    old = -3 * torch.rand(ANSWERS, LONGEST, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, ANSWERS, LONGEST, generator=generator, dtype=torch.float64)
    advantages = torch.randn(ANSWERS, generator=generator, dtype=torch.float64)
    return {
        "mask": mask, "old": old, "logps": (old + 0.25 * noise[0]).requires_grad_(), "ref": old + 0.3 * noise[1],
        "advantages": advantages,
    }  # fmt: skip


def made(kind: str, folder: Path, model: Path, **options: Any) -> Any:
    import trl
    from datasets import Dataset

    settings = {
        "output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False, "num_generations": 2,
        "per_device_train_batch_size": 2, "activation_checkpointing": False, "max_completion_length": CAP, **options,
    }  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(model), reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=getattr(trl, f"{kind}Config")(**settings), train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
    )  # fmt: skip
    trainer.model.eval()  # in training the loss is divided by accumulation steps too
    return trainer


def theirs(trainer: Any, given: dict[str, Tensor]) -> Tensor:
    mask = given["mask"]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (given["logps"], torch.zeros_like(given["old"]), None)
    ids = torch.zeros(ANSWERS, LONGEST, dtype=torch.long)
    found: Tensor = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :1], "prompt_mask": torch.ones_like(ids[:, :1]), "completion_ids": ids,
            "completion_mask": mask.long(), "advantages": given["advantages"], "old_per_token_logps": given["old"],
            "ref_per_token_logps": given["ref"], "old_logps": (given["old"] * mask).sum(1),
            "num_items_in_batch": mask.sum(),
        },
    )  # fmt: skip
    return found


def ours(given: dict[str, Tensor], loss: Callable[..., Any], how: Aggregation, beta: float, **clip: float) -> Tensor:
    mask = given["mask"]
    advantages = given["advantages"][:, None].expand(ANSWERS, LONGEST)
    columns = (given["logps"], given["old"], advantages, *((mask,) if loss in (gspo, rloo) else ()))
    losses = loss(*columns, **clip).loss
    if beta:
        losses = losses + beta * kl_estimate(given["logps"], given["ref"], "k3")
    totals = Totals(tokens=float(mask.sum()), sequences=ANSWERS, length=CAP)
    return aggregate(losses, mask, how, totals).sum()


TRL_GRPO = [
    ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, ppo, "seq-mean-token-mean", {}),
    ({"loss_type": "bnpo", "beta": 0.0}, ppo, "token-mean", {}),
    ({"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28}, ppo, "token-mean", {"clip_high": 0.28}),
    ({"loss_type": "dr_grpo", "beta": 0.0}, ppo, "seq-mean-token-sum-norm", {}),
    ({"loss_type": "cispo", "beta": 0.0, "epsilon_high": 1.1}, cispo, "token-mean", {"clip_high": 0.1}),
    (
        {"loss_type": "grpo", "beta": 0.0, "importance_sampling_level": "sequence", "epsilon": 0.05},
        gspo, "seq-mean-token-mean", {"clip_low": 0.05, "clip_high": 0.05},
    ),
]  # fmt: skip


def same(mine: Tensor, other: Tensor, logps: Tensor) -> None:
    assert mine.item() == pytest.approx(other.item(), abs=1e-9)
    (a,), (b,) = (torch.autograd.grad(x, logps) for x in (mine, other))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    assert a.any()


@pytest.mark.parametrize(
    ("options", "loss", "how", "clip"), TRL_GRPO, ids=["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "gspo"]
)
def test_grpo_and_its_relatives(
    options: dict[str, Any], loss: Callable[..., Any], how: Aggregation, clip: dict[str, float], tmp_path: Path,
    tiny_model: Path,
) -> None:  # fmt: skip
    given = numbers()
    trainer = made("GRPO", tmp_path, tiny_model, **options)
    same(ours(given, loss, how, options["beta"], **clip), theirs(trainer, given), given["logps"])


def test_rloo(tmp_path: Path, tiny_model: Path) -> None:
    given = numbers()
    trainer = made("RLOO", tmp_path, tiny_model)
    same(ours(given, rloo, "seq-mean-token-sum", 0.0), theirs(trainer, given), given["logps"])
