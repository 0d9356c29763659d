"""Bradley-Terry: one answer is better than another.

Shapes: P pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bradley_terry(
    better: Tensor, worse: Tensor, margin: Tensor | float = 0.0, probability: Tensor | float = 1.0
) -> Tensor:
    """Negative log-likelihood that ``better`` beats ``worse``, per pair, (P,), (P,) -> (P,).

        -q log sigmoid(d - m) - (1 - q) log sigmoid(-d - m),    d = better - worse

    ``margin`` m asks whichever side wins to win by more (Llama-2: {1, 2/3, 1/3, 0} or {3, 2, 1, 0} by strength);
    ``probability`` q is a soft label, from a judge say. Both are numbers or (P,). Swapping the sides and q for 1 - q
    changes nothing, so a pair with q = 1/2 pulls towards equal scores, whatever its margin. Equal scores, m = 0: ln 2.
    Finite for any finite scores; the gradients on the two sides sum to zero.

    Source: Bradley and Terry 1952; InstructGPT (arXiv:2203.02155), eq. 1; margin: Llama 2 (arXiv:2307.09288), eq. 2;
    soft labels: RLAIF (arXiv:2309.00267).
    Confirmed by: numbers worked out by hand; a tournament whose strengths it finds again; TRL 1.16 (``RewardTrainer``,
    with margin and centering: losses, gradients, and the curve of 20 steps).
    """
    assert better.shape == worse.shape
    difference = better - worse  # (P,)
    return -probability * F.logsigmoid(difference - margin) - (1 - probability) * F.logsigmoid(-difference - margin)
