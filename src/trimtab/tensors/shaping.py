"""From one score per answer to a reward per token.

Shapes: B answers, T the longest answer; ``mask`` is 1 on the answer's tokens, end-of-sequence included.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.errors import ConfigError, did_you_mean
from trimtab.tensors.kl import KLKind, kl_estimate
from trimtab.tensors.masked import last_true

EosShaping = Literal["none", "replace", "subtract", "leave_out"]
EOS_SHAPINGS: tuple[EosShaping, ...] = get_args(EosShaping)


def token_rewards(
    scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, *, beta: float, kl: KLKind = "k1"
) -> Tensor:
    """Spread the KL penalty over the tokens and put the score on the last one, (B,), (B, T) ... -> (B, T).

        r_t = -beta kl_t    for every answer token,    + score at the last answer token

    ``logps`` are those of the rollout. With k1, ``sum_t r_t = score - beta sum_t (logps_t - ref_logps_t)``. The result
    carries no gradient and is zero off the mask. An answer without tokens has nowhere to put its score and gets zeros.

    Source: Ziegler et al. 2019 (arXiv:1909.08593); Stiennon et al. 2020 (arXiv:2009.01325), section 3.
    """
    penalty = beta * kl_estimate(logps.detach(), ref_logps.detach(), kl)  # (B, T)
    rewards = (-penalty).masked_fill(~mask.bool(), 0)
    at_end = torch.arange(mask.shape[1], device=mask.device) == last_true(mask).unsqueeze(1)  # (B, T)
    return torch.where(at_end, rewards + scores.detach().unsqueeze(1), rewards)


def truncated_weights(logps: Tensor, sampled_logps: Tensor, *, cap: float) -> Tensor:
    """What a token drawn by one policy counts for another, min(pi / behaviour, cap): (B, T) -> (B, T), no gradient.

    It makes good what a sampler of older weights, other kernels or less precision drew otherwise; without the cap it
    would be exact, and its variance without bound. The log-ratio is clamped to +-20.

    Source: Ionides 2008 (truncated importance sampling); the decoupled objective of AReaL (arXiv:2505.24298), 5.2.
    """
    return (logps.detach() - sampled_logps.detach()).clamp(-20, 20).exp().clamp_max(cap)


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum what is still to come, G_t = r_t + gamma G_{t+1}, over the answer's tokens: (B, T) -> (B, T).

    Off the mask the result is zero and what stands there is passed over, also in the middle of an answer.
    """
    on = mask.bool()
    rewards = rewards.detach().masked_fill(~on, 0)
    returns = torch.zeros_like(rewards)
    later = rewards.new_zeros(rewards.shape[0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        later = torch.where(on[:, t], rewards[:, t] + gamma * later, later)
        returns[:, t] = later
    return returns.masked_fill(~on, 0)


def leave_one_out(returns: Tensor, group: Tensor) -> Tensor:
    """Mean return of the Group's *other* answers, (B,), (B,) -> (B,); a lone answer has none and gets 0.

        b_i = (sum_G R - R_i) / (k - 1)

    It says how hard the prompt is and does not depend on what answer i did, so it is a fair baseline for it.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples"; Ahmadian et al. 2024 (arXiv:2402.14740).
    """
    same = (group[:, None] == group[None, :]).to(returns.dtype)  # (B, B)
    others = same.sum(-1) - 1
    return torch.where(others > 0, (same @ returns - returns) / others.clamp_min(1), torch.zeros_like(returns))


def eos_shaping(scores: Tensor, ended: Tensor, *, mode: EosShaping, penalty: float) -> Tensor:
    """Score answers that were cut before they ended themselves, (B,), (B,) -> (B,).

        none       score
        replace    ended ? score : -penalty           Huang et al. 2024 (arXiv:2403.17031), with penalty 1
        subtract   ended ? score : score - penalty    TRL's missing_eos_penalty
        leave_out  score                              the answer is no part of the loss (DAPO's overlong filtering)

    ``penalty`` is what the answer loses, so it is never negative (``ConfigError``). ``replace`` wants scores that are
    centred, else ``-penalty`` may be a prize.
    """
    if penalty < 0:
        raise ConfigError(f"the penalty for a missing end is what is lost, so it cannot be negative: {penalty}")
    match mode:
        case "none" | "leave_out":
            return scores
        case "replace":
            return torch.where(ended.bool(), scores, torch.full_like(scores, -penalty))
        case "subtract":
            return torch.where(ended.bool(), scores, scores - penalty)
        case _:
            raise ConfigError(f"no end-of-sequence shaping {mode!r}{did_you_mean(str(mode), EOS_SHAPINGS)}")


def overlong_penalty(lengths: Tensor, *, cap: int, ramp: int, penalty: float = 1.0) -> Tensor:
    """What an answer loses for coming near the cap, (B,) tokens -> (B,), never above 0.

        0                                       where length <= cap - ramp
        penalty (cap - ramp - length) / ramp    up to the cap
        -penalty                                beyond

    Source: DAPO (arXiv:2503.14476), eq. 13, with cap 20480, ramp 4096 and penalty 1.
    """
    if not 0 < ramp <= cap:
        raise ConfigError(
            f"the penalty for long answers sets in {ramp} tokens before the cap of {cap}: not a part of it"
        )
    return ((cap - ramp - lengths) / ramp).clamp(-1.0, 0.0) * penalty
