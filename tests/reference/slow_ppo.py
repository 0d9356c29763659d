"""PPO's mathematics again, slowly: Python floats, one answer at a time, no masks and no tensors.

An answer is a list with one number per token; a batch is a list of answers. Everything is written from the papers'
formulas, in another way than the package does it where there is one (GAE as a sum over the future, exact means, the
loss and its slope case by case), so that the two are unlikely to share a mistake. Gradients are by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, pvariance

Answer = list[float]
Batch = list[Answer]
LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Term:
    """A loss of one token, its slope in the number that is trained, and whether a clip took the slope away."""

    loss: float
    slope: float
    clipped: bool = False


def kl(logp: float, ref_logp: float, kind: str) -> Term:
    """One token's KL estimate and its slope in ``logp`` (Schulman 2020)."""
    q = ref_logp - logp
    if kind == "k1":
        return Term(-q, 1.0)
    if kind == "k2":
        return Term(q * q / 2, -q)
    inside = abs(q) <= LARGEST_LOG_RATIO
    q_held = q if inside else math.copysign(LARGEST_LOG_RATIO, q)
    k3 = math.expm1(q_held) - q_held
    if kind == "k3":
        return Term(k3, -math.expm1(q) if inside else 0.0)
    assert kind == "k3+"  # the value of k3, the slope of k2
    return Term(k3, -q)


def score_of(score: float, ended: bool, mode: str, penalty: float) -> float:
    """The score of an answer, after what it loses when it was cut."""
    if ended or mode in ("none", "leave_out"):
        return score
    return {"replace": -penalty, "subtract": score - penalty}[mode]


def token_rewards(score: float, logps: Answer, ref_logps: Answer, *, beta: float, kind: str) -> Answer:
    """The KL penalty on every token, the score on the last."""
    rewards = [-beta * kl(logps[t], ref_logps[t], kind).loss for t in range(len(logps))]
    if rewards:
        rewards[-1] += score
    return rewards


def gae(rewards: Answer, values: Answer, *, gamma: float, lam: float) -> tuple[Answer, Answer]:
    """Advantages and targets of one answer: A_t = sum_l (gamma lam)^l delta_{t+l} (Schulman et al. 2016, eq. 16)."""
    end = len(rewards)
    after = [*values[1:], 0.0]  # nothing comes after the last token
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(end)]
    advantages = [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, end)) for t in range(end)]
    return advantages, [advantages[t] + values[t] for t in range(end)]


def whiten(batch: Batch, *, shift_mean: bool) -> Batch:
    """Unit variance over all tokens of all answers, mean zero or kept."""
    everything = [x for answer in batch for x in answer]
    centre = mean(everything)  # exact: the standard library sums fractions
    width = math.sqrt(pvariance(everything) + 1e-8)
    return [[(x - centre) / width + (0.0 if shift_mean else centre) for x in answer] for answer in batch]


def ppo(logp: float, old_logp: float, advantage: float, *, low: float, high: float, dual: float | None) -> Term:
    """One token's surrogate, case by case (Schulman et al. 2017, eq. 7; Ye et al. 2019 for ``dual``)."""
    log_ratio = logp - old_logp
    inside = abs(log_ratio) <= LARGEST_LOG_RATIO
    ratio = math.exp(log_ratio if inside else math.copysign(LARGEST_LOG_RATIO, log_ratio))
    if advantage == 0:
        return Term(0.0, 0.0)
    if advantage > 0 and ratio > 1 + high:  # good, and already much likelier
        return Term(-advantage * (1 + high), 0.0, True)
    if advantage < 0 and ratio < 1 - low:  # bad, and already much less likely
        return Term(-advantage * (1 - low), 0.0, True)
    if advantage < 0 and dual is not None and ratio > dual:  # bad, and so likely that its slope would be huge
        return Term(-advantage * dual, 0.0, True)
    loss = -advantage * ratio  # d ratio / d logp = ratio, so the slope is the loss itself
    return Term(loss, loss) if inside else Term(loss, 0.0, True)


def value(now: float, old: float, target: float, *, clip: float | None) -> Term:
    """One token's critic loss: the worse of the free and the held value (Ziegler et al. 2019, code)."""
    free = Term((now - target) ** 2 / 2, now - target)
    if clip is None or old - clip <= now <= old + clip:
        return free
    held = old + clip if now > old else old - clip
    loss = (held - target) ** 2 / 2
    return free if free.loss > loss else Term(loss, 0.0, True)


def token_weights(lengths: list[int], how: str, longest: int) -> Batch:
    """What each token's loss is multiplied by before all are summed."""
    weights = {
        "token-mean": [1 / sum(lengths)] * len(lengths),
        "seq-mean-token-mean": [1 / (len(lengths) * max(length, 1)) for length in lengths],
        "seq-mean-token-sum": [1 / len(lengths)] * len(lengths),
        "seq-mean-token-sum-norm": [1 / (len(lengths) * longest)] * len(lengths),
    }[how]
    return [[weight] * length for weight, length in zip(weights, lengths, strict=True)]


def aggregate(terms: list[list[Term]], how: str, longest: int) -> tuple[float, Batch]:
    """The step's loss, and its gradient in what each token trains."""
    weights = token_weights([len(answer) for answer in terms], how, longest)
    pairs = [list(zip(own, answer, strict=True)) for own, answer in zip(weights, terms, strict=True)]
    loss = math.fsum(weight * term.loss for answer in pairs for weight, term in answer)
    return loss, [[weight * term.slope for weight, term in answer] for answer in pairs]
