"""From token losses to the step's loss, with the denominators of the whole optimiser step.

A mean of micro-batch means is another loss than the mean (it weighs short micro-batches more), so nothing here
averages: every sequence gives a contribution whose denominators were counted over the whole step, over all
micro-batches and ranks. The plain sum of the contributions *is* the step's loss, however the step is cut up.

Shapes: B answers in the micro-batch, T the longest of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from trimtab.errors import ConfigError, did_you_mean
from trimtab.tensors.masked import masked_mean, masked_sum

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The counts of a whole optimiser step.

    ``tokens`` and ``sequences`` are what the step's losses are spread over: unmasked tokens, and answers (whether those
    that are fully masked count is the caller's choice). ``length`` is the fixed length of ``seq-mean-token-sum-norm``,
    in tokens: the longest answer that a run allows, never the longest of a batch.
    """

    tokens: float
    sequences: float
    length: float = math.nan


def aggregate(losses: Tensor, mask: Tensor, how: Aggregation, totals: Totals) -> Tensor:
    """Return each sequence's contribution to the step's loss, (B, T) -> (B,).

        token-mean                 sum_t m l / tokens                         SFT, PPO, DAPO, REINFORCE++
        seq-mean-token-mean        (sum_t m l / sum_t m) / sequences          GRPO as published, GSPO
        seq-mean-token-sum         sum_t m l / sequences                      REINFORCE, RLOO, the DPO family
        seq-mean-token-sum-norm    sum_t m l / (sequences * length)           Dr.GRPO (arXiv:2503.20783)

    A fully masked row contributes 0, also when the step has no token at all. Raises ``ConfigError`` for an unknown
    ``how`` and for the last one without ``totals.length``.
    """
    assert losses.shape == mask.shape
    sequences = max(totals.sequences, 1.0)  # an empty step divides 0 by 1, not by 0
    match how:
        case "token-mean":
            return masked_sum(losses, mask, 1) / max(totals.tokens, 1.0)
        case "seq-mean-token-mean":
            return masked_mean(losses, mask, 1) / sequences
        case "seq-mean-token-sum":
            return masked_sum(losses, mask, 1) / sequences
        case "seq-mean-token-sum-norm":
            if not totals.length > 0:
                raise ConfigError(
                    f"aggregation {how!r} divides by a fixed length, but the step's length is {totals.length}"
                )
            return masked_sum(losses, mask, 1) / (sequences * totals.length)
        case _:
            raise ConfigError(f"no aggregation {how!r}{did_you_mean(str(how), AGGREGATIONS)}")
