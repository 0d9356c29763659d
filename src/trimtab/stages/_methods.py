"""Online methods as rows of one table: advantage x policy loss x aggregation, and where the KL goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.tensors.aggregate import Aggregation
from trimtab.tensors.kl import KLKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One online method.

    ``relative``: an answer is held against the other answers to its prompt. ``whiten``: advantages are standardised
    over all tokens of the step. ``kl_loss`` names the estimator of a KL term in the loss; ``None``: the KL is taken
    from the reward, by k1.
    """

    advantage: str  # a file in advantages/
    loss: str  # a file in losses/policy/
    aggregation: Aggregation
    critic: bool
    relative: bool
    whiten: bool
    kl_loss: KLKind | None
    paper: str
    summary: str


METHODS: Mapping[str, Method] = {
    "ppo": Method(
        advantage="gae",
        loss="ppo",
        aggregation="token-mean",
        critic=True,
        relative=False,
        whiten=True,
        kl_loss=None,
        paper="Schulman et al. 2017 (arXiv:1707.06347); Ouyang et al. 2022 (arXiv:2203.02155)",
        summary="clipped ratio, a critic with GAE, KL to the reference in the reward",
    ),
    "grpo": Method(
        advantage="grpo",
        loss="ppo",
        aggregation="seq-mean-token-mean",
        critic=False,
        relative=True,
        whiten=False,
        kl_loss="k3",
        paper="Shao et al. 2024, DeepSeekMath (arXiv:2402.03300)",
        summary="clipped ratio, the prompt's other answers as the baseline, KL to the reference in the loss",
    ),
}
