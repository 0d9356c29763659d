"""The two fits of a gated reward: attributes by ridge regression with verbosity taken off, and the gate's task.

Shapes: N labelled answers, A answers, G prompts, P pairs, K attributes, H hidden size, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.losses.reward.bradley_terry import bradley_terry
from trimtab.records.types import Group, pairs
from trimtab.rewards.gated import Gate
from trimtab.seeds import derive
from trimtab.tensors.masked import correlation
from trimtab.train.loop import Update, batch_at
from trimtab.train.run import Means, invariant

RIDGES = tuple(float(10.0**power) for power in np.linspace(-4, 4, 17))
PENALTIES = (0.0, 0.01, *(round(0.025 * i, 3) for i in range(1, 39)))  # 0, .01, .025, .05, ... .95
TESTED = 5
"""Every fifth prompt, in an order that the seed gives, tests the ridges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridge:
    """One attribute's weights (H,), the ridge that was chosen, and what it explained of labels it had not seen."""

    weight: Tensor
    ridge: float
    explained: float


def ridge_regression(x: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES) -> Tensor:
    """Weights of y = w . x without an intercept for every ridge, (N, H), (N,) -> (C, H) float64.

    w = (x^T x + ridge I)^-1 x^T y
    """
    x, y = x.double(), y.double()
    values, vectors = torch.linalg.eigh(x.T @ x)  # (H,), (H, H)
    along = vectors.T @ (x.T @ y)
    strengths = torch.tensor(ridges, dtype=torch.float64)[:, None]
    weights: Tensor = (along / (values.clamp_min(0) + strengths)) @ vectors.T
    return weights


def fit_attribute(x: Tensor, y: Tensor, group: Tensor, *, seed: int) -> Ridge:
    """Choose the ridge on a fifth of the prompts, then fit all labels with it; ``group`` (N,) names their prompts."""
    names = group.unique()
    order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(derive(seed, "ridge")))]
    tested = torch.isin(group, order[::TESTED])
    if bool(tested.all()):  # one prompt: nothing to test on
        return Ridge(weight=ridge_regression(x, y, (1.0,))[0], ridge=1.0, explained=float("nan"))
    tries = ridge_regression(x[~tested], y[~tested])  # (C, H)
    errors = (x[tested].double() @ tries.T - y[tested].double()[:, None]).square().mean(0)  # (C,)
    best = int(errors.argmin())
    plain = float((y[tested].double() - y[~tested].double().mean()).square().mean())
    explained = 1 - float(errors[best]) / plain if plain > 0 else float("nan")
    return Ridge(weight=ridge_regression(x, y, (RIDGES[best],))[0], ridge=RIDGES[best], explained=explained)


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Rank correlation; 0 where a side is constant."""
    from scipy.stats import rankdata

    return float(correlation(torch.from_numpy(rankdata(x)), torch.from_numpy(rankdata(y))))


def penalty_of(scores: Tensor, verbosity: Tensor, *, threshold: float) -> float:
    """The smallest lambda with Spearman(R - lambda V, V) at most ``threshold``, (A,), (A,); 1 when none of them will.

    Source: Wang et al. 2024 (arXiv:2406.12845), section 2.2.
    """
    r, v = scores.double().numpy(), verbosity.double().numpy()
    return next((penalty for penalty in PENALTIES if spearman(r - penalty * v, v) <= threshold), 1.0)


# --- the gate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the gate learns from: R' (A, K) of all answers, z (G, H) of their prompts, and each prompt's pairs.

    A pair is (better, worse, P(better beats worse)), answers by their place among all.
    """

    attributes: Tensor
    prompts: Tensor
    pairs: tuple[tuple[tuple[int, int, float], ...], ...]


def judged_pairs(groups: Sequence[Group]) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """Every Group's strict preferences, answers counted over all Groups."""
    found: list[tuple[tuple[int, int, float], ...]] = []
    first = 0
    for group in groups:
        own = pairs(group)
        found.append(
            tuple((first + p.better, first + p.worse, 1.0 if p.probability is None else p.probability) for p in own)
        )
        first += len(group.answers)
    return tuple(found)


class GateTask:
    """Batches of judged prompts, one update a step; every prompt weighs 1. The ``fit`` loop's task."""

    def __init__(self, gate: Gate, judged: Judged, *, batch: int, seed: int) -> None:
        self.gate, self.judged, self.batch, self.seed = gate, judged, batch, seed

    def updates(self, step: int, log: Means) -> Iterator[Update[list[int]]]:
        """The step's batch."""
        chosen = batch_at(step, len(self.judged.pairs), self.batch, self.seed)
        yield Update(micros=[chosen], accumulate=self.accumulate)

    def accumulate(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Bradley-Terry on the gated sums of R', averaged within a prompt, then over prompts."""
        losses, weight, leads = self.losses(chosen)
        (losses * weight).sum().backward()
        return {"train/loss": losses.detach(), "train/accuracy": (leads > 0).float().detach()}

    def losses(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, weights that sum to 1, and leads of the better answers, (P,) each."""
        rows = [
            (place, better, worse, chance, 1 / len(self.judged.pairs[i]) / len(chosen))
            for place, i in enumerate(chosen)
            for better, worse, chance in self.judged.pairs[i]
        ]
        owner, better, worse = (torch.tensor(column) for column in list(zip(*rows, strict=True))[:3])
        chance, weight = (torch.tensor(column) for column in list(zip(*rows, strict=True))[3:])
        shares = self.gate(self.judged.prompts[torch.tensor(list(chosen))])[owner]  # (P, K)
        upper, lower = (self.gate.mix(self.judged.attributes[side], shares) for side in (better, worse))
        return bradley_terry(upper, lower, probability=chance), weight, upper - lower

    @torch.no_grad()
    def check_start(self) -> None:
        """Every attribute has the same share at first."""
        shares = self.gate(self.judged.prompts[:8])
        off = float((shares - 1 / shares.shape[1]).abs().max())
        invariant(off < 1e-6, f"step 0: the gate's shares are off by {off:.3g} from equal ones")

    def state(self) -> dict[str, Any]:
        """Nothing: the data order comes from (seed, step)."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""
