"""Online methods as rows of one table: which answers are learned from, by which advantage and loss, how summed.

A row learns in one of three ways:

    by advantage    advantage x policy loss x aggregation              PPO, GRPO, RLOO, ReMax and their relatives
    by imitation    the best answers become demonstrations             RAFT, best-of-n, rejection sampling
    by comparison   better and worse answers meet a preference loss    online DPO; every file of losses/preference
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from trimtab.registry import ADVANTAGES, PREFERENCE_LOSSES, Table
from trimtab.tensors.aggregate import Aggregation
from trimtab.tensors.kl import KLKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One online method.

    ``relative``: an answer is held against the other answers to its prompt. ``whiten``: advantages are standardised
    over all tokens of the step. ``kl_loss`` names the estimator of a KL term in the loss; ``None``: the KL is taken
    from the reward, by k1. ``fixed`` are options of the advantage. ``preference`` names the loss of a method that
    compares. ``defaults`` are the stage's options as this method has them.
    """

    paper: str
    summary: str
    advantage: str = ""  # a file in advantages/; none: it imitates or compares
    loss: str = "ppo"  # a file in losses/policy/
    aggregation: Aggregation = "token-mean"
    whiten: bool = False
    kl_loss: KLKind | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    preference: str = ""  # a file in losses/preference/
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def critic(self) -> bool:
        """It needs values."""
        return self._asks("values")

    @property
    def relative(self) -> bool:
        """It compares answers to one prompt."""
        return bool(self.preference) or self._asks("group")

    @property
    def greedy(self) -> bool:
        """It needs the greedy answer to every prompt."""
        return self._asks("baseline")

    @property
    def imitates(self) -> bool:
        """It learns the answers that it keeps as if they were demonstrations."""
        return not self.advantage and not self.preference

    def _asks(self, column: str) -> bool:
        return bool(self.advantage) and column in ADVANTAGES[self.advantage].columns


_NO_KL = {"kl": {"beta": 0.0}}

ROWS: Mapping[str, Method] = {
    "ppo": Method(
        advantage="gae",
        whiten=True,
        paper="Schulman et al. 2017 (arXiv:1707.06347); Ouyang et al. 2022 (arXiv:2203.02155)",
        summary="clipped ratio, a critic with GAE, KL to the reference in the reward",
    ),
    "reinforce": Method(
        advantage="returns",
        loss="reinforce",
        aggregation="seq-mean-token-sum",
        paper="Williams 1992",
        summary="the score itself as the advantage: no baseline, no critic, one update a round",
    ),
    "reinforce_pp": Method(
        advantage="returns",
        whiten=True,
        paper="REINFORCE++ (arXiv:2501.03262)",
        summary="returns standardised over the step's tokens, clipped ratio, KL in the reward, no critic",
    ),
    "reinforce_pp_baseline": Method(
        advantage="grpo",
        fixed={"scale": False},
        whiten=True,
        kl_loss="k2",
        paper="REINFORCE++ (arXiv:2501.03262), with baseline",
        summary="less the mean of the prompt's answers, then standardised over the step; KL in the loss, by k2",
    ),
    "rloo": Method(
        advantage="rloo",
        loss="rloo",
        aggregation="seq-mean-token-sum",
        paper="Ahmadian et al. 2024 (arXiv:2402.14740)",
        summary="the prompt's other answers as an unbiased baseline, the whole answer as one action",
    ),
    "remax": Method(
        advantage="remax",
        loss="reinforce",
        aggregation="seq-mean-token-sum",
        defaults={"answers": 1},
        paper="Li et al. 2024 (arXiv:2310.10505)",
        summary="the greedy answer's score as the baseline; one sampled answer is enough, no critic",
    ),
    "grpo": Method(
        advantage="grpo",
        aggregation="seq-mean-token-mean",
        kl_loss="k3",
        paper="Shao et al. 2024, DeepSeekMath (arXiv:2402.03300)",
        summary="clipped ratio, the prompt's other answers as the baseline, KL to the reference in the loss",
    ),
    "dr_grpo": Method(
        advantage="grpo",
        fixed={"scale": False},
        aggregation="seq-mean-token-sum-norm",
        kl_loss="k3",
        defaults=_NO_KL,
        paper="Liu et al. 2025 (arXiv:2503.20783)",
        summary="GRPO without its two biases: no division by the deviation or by the answer's length; no KL",
    ),
    "dapo": Method(
        advantage="grpo",
        kl_loss="k3",
        defaults={**_NO_KL, "clip": {"high": 0.28}, "keep": {"how": "mixed"}, "shaping": {"eos": "leave_out"}},
        paper="Yu et al. 2025 (arXiv:2503.14476)",
        summary="GRPO with clip-higher, prompts whose answers differ, cut answers left out, every token alike; no KL",
    ),
    "gspo": Method(
        advantage="grpo",
        loss="gspo",
        aggregation="seq-mean-token-mean",
        kl_loss="k3",
        defaults={**_NO_KL, "clip": {"low": 3e-4, "high": 4e-4}},
        paper="Zheng et al. 2025 (arXiv:2507.18071)",
        summary="one length-normalised ratio an answer, clipped as a whole; no KL",
    ),
    "cispo": Method(
        advantage="grpo",
        loss="cispo",
        kl_loss="k3",
        defaults={**_NO_KL, "clip": {"high": 4.0}},
        paper="MiniMax-M1 (arXiv:2506.13585)",
        summary="capped importance weights instead of a clip: every token keeps a gradient; no KL",
    ),
    "raft": Method(
        defaults={**_NO_KL, "keep": {"how": "best"}},
        paper="Dong et al. 2023 (arXiv:2304.06767)",
        summary="SFT on the best answer to each prompt, or on the best of the step (keep.how: top)",
    ),
    "best_of_n": Method(
        defaults={**_NO_KL, "keep": {"how": "best"}, "answers": 8},
        paper="Touvron et al. 2023, Llama 2 (arXiv:2307.09288), section 3.2.3",
        summary="SFT on the best of eight answers to each prompt: RAFT with its local selection",
    ),
    "rejection": Method(
        defaults={**_NO_KL, "keep": {"how": "above"}},
        paper="Zelikman et al. 2022, STaR (arXiv:2203.14465)",
        summary="SFT on the answers whose score is above a threshold: with a rule, on those that are right",
    ),
}  # fmt: skip


@cache
def _online(loss: str) -> Method:
    entry = PREFERENCE_LOSSES[loss]
    return Method(
        preference=loss,
        defaults=_NO_KL,
        paper=f"{entry.paper}; online: Guo et al. 2024 (arXiv:2402.04792), Dong et al. 2024 (arXiv:2405.07863)",
        summary=f"the policy's own answers to a prompt, the better against the worse, by losses/preference/{loss}.py",
    )


def _rows() -> Mapping[str, Method]:
    return {**ROWS, **{f"online_{loss}": _online(loss) for loss in PREFERENCE_LOSSES}}


METHODS: Table[Method] = Table("method", _rows)
