"""Language modelling: pretraining and supervised fine-tuning.

Shapes: N tokens of the whole batch, laid end to end.
"""

from __future__ import annotations

from torch import Tensor


def next_token(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each trained token in nats, (N,) -> (N,): ``-log p(token | what came before)``.

    Prompt tokens are not handed in. About ``ln V`` before any training. No token, no loss: (0,) -> (0,).
    """
    return -logps
