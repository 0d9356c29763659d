"""REINFORCE, actor-critic and Q-learning with tables, in small worlds.

The first two run on the text methods' own functions: returns and advantages (``reward_to_go``, ``gae``), the policy
loss ``reinforce`` from its folder, the critic's loss, and ``aggregate``. Only the policy differs: a row of logits per
state, where a language model computes them from the prompt.

Shapes: S states, A actions, N episodes, T the longest of them.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.advantages.gae import gae
from trimtab.environments._gymnasium import Discrete, Env
from trimtab.errors import ConfigError
from trimtab.losses.value import clipped_value
from trimtab.registry import POLICY_LOSSES
from trimtab.seeds import derive
from trimtab.tensors.aggregate import Totals, aggregate
from trimtab.tensors.masked import last_true
from trimtab.tensors.shaping import reward_to_go

World = Env[np.int64, np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episodes:
    """What happened in some episodes, padded at the end.

    ``last`` is the state after the last move; ``terminated`` says that the world ended there, and that nobody merely
    stopped watching.
    """

    states: Tensor  # (N, T) int64
    actions: Tensor  # (N, T) int64
    rewards: Tensor  # (N, T) float64
    mask: Tensor  # (N, T) bool
    last: Tensor  # (N,) int64
    terminated: Tensor  # (N,) bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What a method has learned.

    ``values`` are the critic's, (S,), or Q (S, A) for Q-learning. ``returns`` are discounted: the mean of each update's
    episodes, for Q-learning each episode's. ``moves`` counts steps of the world.
    """

    policy: Tensor  # (S, A) probabilities
    values: Tensor
    returns: tuple[float, ...]
    moves: int


Credit = Callable[[Episodes, Tensor], tuple[Tensor, Tensor]]
"""From episodes and the critic's values (S,): advantages and the critic's targets, both (N, T)."""


def sample_episodes(env: World, policy: Tensor, count: int, draw: Callable[[], float]) -> Episodes:
    """Play ``count`` episodes with actions drawn from ``policy`` (S, A).

    ``draw`` gives a uniform number in [0, 1) for every move. The environment is reset, but not seeded.
    """
    edges = policy.cumsum(-1)[:, :-1].tolist()  # (S, A - 1): the last action takes what rounding leaves
    played: list[tuple[list[int], list[int], list[float], int, bool]] = []
    for _ in range(count):
        states, actions, rewards = list[int](), list[int](), list[float]()
        (state, _), terminated, truncated = env.reset(), False, False
        while not (terminated or truncated):
            states.append(int(state))
            actions.append(bisect(edges[state], draw()))
            state, reward, terminated, truncated, _ = env.step(np.int64(actions[-1]))
            rewards.append(float(reward))
        played.append((states, actions, rewards, int(state), terminated))
    longest = max((len(one[0]) for one in played), default=0)

    def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)  # (N, T)

    lengths = torch.tensor([len(one[0]) for one in played])
    return Episodes(
        states=padded([one[0] for one in played], torch.int64),
        actions=padded([one[1] for one in played], torch.int64),
        rewards=padded([one[2] for one in played], torch.float64),
        mask=torch.arange(longest) < lengths[:, None],
        last=torch.tensor([one[3] for one in played]),
        terminated=torch.tensor([one[4] for one in played]),
    )


def return_credit(episodes: Episodes, values: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Credit a move with all that came after it, less what the state was worth: A = G_t - V(s_t), target G_t.

    A truncated episode's return is what was seen of it. Any V that does not look at these episodes' actions leaves the
    expected gradient as it is; zeros give plain REINFORCE.
    """
    returns = reward_to_go(episodes.rewards, episodes.mask, gamma=gamma)  # (N, T)
    return (returns - values.detach()[episodes.states]).masked_fill(~episodes.mask, 0), returns


def critic_credit(episodes: Episodes, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Credit a move by what the critic saw change: GAE, with V(last) as the rest of a truncated episode.

    ``gae`` takes every episode as ended, as for text. So gamma V(last) is added to a truncated one's last reward, which
    is the same sum. Where the world itself ended there is nothing to add.
    """
    values = values.detach()
    at_end = torch.arange(episodes.mask.shape[1]) == last_true(episodes.mask)[:, None]  # (N, T)
    rest = (gamma * values[episodes.last]).masked_fill(episodes.terminated, 0)  # (N,)
    rewards = torch.where(at_end, episodes.rewards + rest[:, None], episodes.rewards)
    return gae(rewards, values[episodes.states], episodes.mask, gamma=gamma, lam=lam)


def policy_loss(logits: Tensor, episodes: Episodes, advantages: Tensor, *, entropy: float = 0.0) -> Tensor:
    """Return the loss whose gradient is the policy gradient, from logits (S, A) and advantages (N, T): a number.

        L = -(1/N) sum_episodes sum_t A_t log pi(a_t | s_t) - entropy * mean_t H(pi(. | s_t))

    The factor gamma^t that the gradient of a discounted return has before each term is left out, as is usual.

    Source: Williams 1992; Sutton et al. 2000, "Policy gradient methods".
    """
    rows = logits.log_softmax(-1)[episodes.states]  # (N, T, A)
    logps = rows.gather(-1, episodes.actions[..., None]).squeeze(-1)  # (N, T)
    terms = POLICY_LOSSES["reinforce"].function(logps, logps.detach(), advantages)
    totals = Totals(tokens=float(episodes.mask.sum()), sequences=len(episodes.mask))
    loss = aggregate(terms.loss, episodes.mask, "seq-mean-token-sum", totals).sum()
    spread = -(rows.exp() * rows).sum(-1)  # (N, T)
    return loss - entropy * aggregate(spread, episodes.mask, "token-mean", totals).sum()


def reinforce(
    env: World,
    *,
    baseline: bool = False,
    gamma: float = 0.99,
    lr: float = 0.2,
    episodes: int = 32,
    updates: int = 120,
    entropy: float = 0.01,
    seed: int = 0,
) -> Learned:
    """Learn a policy by REINFORCE: after each round of episodes, one step along A_t grad log pi(a_t | s_t).

    A_t is the return from t on; with ``baseline`` less V(s_t), a table learned from earlier rounds.

    Source: Williams 1992, "Simple statistical gradient-following algorithms".
    """

    def credit(seen: Episodes, values: Tensor) -> tuple[Tensor, Tensor]:
        return return_credit(seen, values, gamma=gamma)

    critic_lr = lr if baseline else 0.0  # a critic that does not learn says 0 for ever
    return _learn_policy(env, credit, gamma, lr, critic_lr, episodes, updates, entropy, seed)


def actor_critic(
    env: World,
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    lr: float = 0.2,
    critic_lr: float = 0.2,
    episodes: int = 32,
    updates: int = 120,
    entropy: float = 0.01,
    seed: int = 0,
) -> Learned:
    """Learn a policy and a critic that stands in for the rest of the return (GAE with ``lam``).

    Source: Sutton and Barto 2018, section 13.5; Schulman et al. 2016 (arXiv:1506.02438) for the advantages.
    """

    def credit(seen: Episodes, values: Tensor) -> tuple[Tensor, Tensor]:
        return critic_credit(seen, values, gamma=gamma, lam=lam)

    return _learn_policy(env, credit, gamma, lr, critic_lr, episodes, updates, entropy, seed)


def q_update(
    value: float, reward: float, next_values: Sequence[float], terminated: bool, *, alpha: float, gamma: float
) -> float:
    """Return Q(s, a) after one move, from what it was and the next state's values.

        Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a)]

    Truncation is not termination: what a cut episode would have gone on to earn still counts. With the value of the
    action that is taken next, in place of the maximum, this is SARSA.

    Source: Watkins and Dayan 1992, "Q-learning".
    """
    later = 0.0 if terminated else max(next_values)
    return value + alpha * (reward + gamma * later - value)


def q_learning(
    env: World,
    *,
    gamma: float = 0.99,
    alpha: float = 0.5,
    epsilon: tuple[float, float] = (1.0, 0.05),
    moves: int = 20_000,
    seed: int = 0,
) -> Learned:
    """Learn what every action is worth, by acting greedily but for a share epsilon of random moves.

    ``epsilon`` goes in a straight line from its first number to its second over all ``moves``; (1, 1) acts at random
    and learns Q* all the same. Of several best actions one is drawn; ``policy`` spreads evenly over them.
    """
    if not all(0 <= share <= 1 for share in epsilon):
        raise ConfigError(f"epsilon is a share of random moves, so it lies between 0 and 1, not {epsilon}")
    num_states, num_actions = _sizes(env)
    rng = np.random.default_rng(derive(seed, "q_learning"))
    q = [[0.0] * num_actions for _ in range(num_states)]
    returns, total, weight = list[float](), 0.0, 1.0
    state, _ = env.reset(seed=derive(seed, "world"))
    for move in range(moves):
        share = epsilon[0] + (epsilon[1] - epsilon[0]) * move / max(moves - 1, 1)
        best = range(num_actions) if rng.random() < share else _best(q[state])
        action = best[rng.integers(len(best))]
        to, reward, terminated, truncated, _ = env.step(np.int64(action))
        q[state][action] = q_update(q[state][action], float(reward), q[to], terminated, alpha=alpha, gamma=gamma)
        total, weight, state = total + weight * float(reward), weight * gamma, to
        if terminated or truncated:
            returns.append(total)
            total, weight = 0.0, 1.0
            state, _ = env.reset()
    policy = torch.zeros(num_states, num_actions, dtype=torch.float64)
    for row, values in zip(policy, q, strict=True):
        row[list(_best(values))] = 1 / len(_best(values))
    return Learned(policy=policy, values=torch.tensor(q, dtype=torch.float64), returns=tuple(returns), moves=moves)


def _learn_policy(
    env: World,
    credit: Credit,
    gamma: float,
    lr: float,
    critic_lr: float,
    count: int,
    updates: int,
    entropy: float,
    seed: int,
) -> Learned:
    """Play, credit, one step of Adam for the policy's logits and the critic's table; and again."""
    num_states, num_actions = _sizes(env)
    logits = torch.zeros(num_states, num_actions, dtype=torch.float64, requires_grad=True)
    values = torch.zeros(num_states, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [logits], "lr": lr}, {"params": [values], "lr": critic_lr}])
    draw = np.random.default_rng(derive(seed, "actions")).random
    env.reset(seed=derive(seed, "world"))
    returns, moves = list[float](), 0
    for _ in range(updates):
        seen = sample_episodes(env, logits.detach().softmax(-1), count, draw)
        advantages, targets = credit(seen, values)
        now = values[seen.states]  # (N, T)
        misses = clipped_value(now, now, targets, clip=None)
        totals = Totals(tokens=float(seen.mask.sum()), sequences=count)
        loss = policy_loss(logits, seen, advantages, entropy=entropy)
        optimiser.zero_grad()
        (loss + aggregate(misses, seen.mask, "token-mean", totals).sum()).backward()
        optimiser.step()
        returns.append(float(reward_to_go(seen.rewards, seen.mask, gamma=gamma)[:, 0].mean()))
        moves += int(seen.mask.sum())
    policy = logits.detach().softmax(-1)
    return Learned(policy=policy, values=values.detach(), returns=tuple(returns), moves=moves)


def _best(values: Sequence[float]) -> list[int]:
    top = max(values)
    return [action for action, value in enumerate(values) if value == top]


def _sizes(env: World) -> tuple[int, int]:
    """Count states and actions."""
    states, actions = env.observation_space, env.action_space
    if not (isinstance(states, Discrete) and isinstance(actions, Discrete) and states.start == actions.start == 0):
        raise ConfigError(f"tables need states and actions that are numbered from 0, not {states} and {actions}")
    return int(states.n), int(actions.n)
