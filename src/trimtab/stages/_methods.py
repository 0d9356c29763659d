"""Online methods as rows of one table: advantage x policy loss x aggregation, and where the KL goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.tensors.aggregate import Aggregation


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One online method."""

    advantage: str  # a file in advantages/
    loss: str  # a file in losses/policy/
    aggregation: Aggregation
    critic: bool
    paper: str
    summary: str


METHODS: Mapping[str, Method] = {
    "ppo": Method(
        advantage="gae",
        loss="ppo",
        aggregation="token-mean",
        critic=True,
        paper="Schulman et al. 2017 (arXiv:1707.06347); Ouyang et al. 2022 (arXiv:2203.02155)",
        summary="clipped ratio, a critic with GAE, KL to the reference in the reward",
    ),
}
