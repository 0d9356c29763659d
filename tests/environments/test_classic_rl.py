"""REINFORCE, actor-critic and Q-learning: gradients by enumeration, updates by hand, and what they reach."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.environments.classic import (
    Episodes,
    actor_critic,
    critic_credit,
    policy_loss,
    q_learning,
    q_update,
    reinforce,
    return_credit,
    sample_episodes,
)
from trimtab.environments.grid import GridWorld, drawn, policy_values, transitions, value_iteration
from trimtab.environments.tasks.classification import classification
from trimtab.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = drawn("""
    S...
    .#T.
    ...D
""")


def episodes(
    states: list[list[int]],
    actions: list[list[int]],
    rewards: list[list[float]],
    *,
    last: list[int] | None = None,
    terminated: list[bool] | None = None,
) -> Episodes:
    lengths = torch.tensor([len(row) for row in states])
    longest = int(lengths.max())

    def padded(rows: list[list[Any]], dtype: torch.dtype, off: float) -> Tensor:
        return torch.tensor([[*row, *[off] * (longest - len(row))] for row in rows], dtype=dtype)

    return Episodes(
        states=padded(states, torch.int64, 0),
        actions=padded(actions, torch.int64, 0),
        rewards=padded(rewards, torch.float64, torch.nan),  # what stands off the mask must not matter
        mask=torch.arange(longest) < lengths[:, None],
        last=torch.tensor(last or [0] * len(states)),
        terminated=torch.tensor(terminated or [True] * len(states)),
    )


def gradient(logits: Tensor, loss: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


# --- a bandit: three answers to one prompt ----------------------------------------------------------------------------


def bandit_gradient(logits: Tensor, rewards: list[float], value: float = 0.0) -> Tensor:
    """The expected REINFORCE update: every action's, weighed by its chance."""
    total = torch.zeros_like(logits)
    for action, chance in enumerate(logits.detach().softmax(-1)[0]):
        one = episodes([[0]], [[action]], [[rewards[action]]])
        advantages, _ = return_credit(one, torch.full((1,), value, dtype=torch.float64), gamma=1.0)
        total -= chance * gradient(logits, policy_loss(logits, one, advantages))
    return total


def test_the_bandits_gradient_by_hand() -> None:
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    found = bandit_gradient(logits, [1.0, 0.0, 0.0])
    assert found[0].tolist() == pytest.approx([2 / 9, -1 / 9, -1 / 9])
    assert bandit_gradient(logits, [6.0, 5.0, 5.0])[0].tolist() == pytest.approx(found[0].tolist())


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.floats(-5, 5),
)
@settings(deadline=None, max_examples=30)
def test_the_bandits_gradient_in_closed_form_whatever_the_baseline(
    row: list[float], rewards: list[float], value: float
) -> None:
    logits = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    pi, r = logits.detach().softmax(-1)[0], torch.tensor(rewards, dtype=torch.float64)
    exact = pi * (r - pi @ r)
    torch.testing.assert_close(bandit_gradient(logits, rewards, value)[0], exact, rtol=0, atol=1e-12)


class Bandit(Env[np.int64, np.int64]):
    """One state, one move; it remembers which."""

    def __init__(self, rewards: list[float]) -> None:
        self.rewards, self.drawn = rewards, list[int]()
        self.observation_space, self.action_space = Discrete(1), Discrete(len(rewards))

    def reset(self, **given: Any) -> tuple[np.int64, dict[str, Any]]:
        return np.int64(0), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self.drawn.append(int(action))
        return np.int64(0), self.rewards[action], True, False, {}


def test_samples_have_the_expected_gradient() -> None:
    logits = torch.tensor([[0.5, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    count, rewards = 20_000, [1.0, 0.0, 2.0]
    draw = np.random.default_rng(0).random
    seen = sample_episodes(Bandit(rewards), logits.detach().softmax(-1), count, draw)
    pi = logits.detach().softmax(-1)[0]
    shares = torch.bincount(seen.actions[:, 0], minlength=3) / count
    torch.testing.assert_close(shares.double(), pi, rtol=0, atol=0.015)
    advantages, _ = return_credit(seen, torch.zeros(1, dtype=torch.float64), gamma=1.0)
    found = -gradient(logits, policy_loss(logits, seen, advantages))[0]
    r = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(found, pi * (r - pi @ r), rtol=0, atol=0.02)  # deviation about 0.005


# --- two moves: what comes later is credited, what came before is not -------------------------------------------------

FIRST = torch.tensor([0.3, -0.2], dtype=torch.float64)  # rewards of the first move, which leads to state 1 or 2
SECOND = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)


def chain_gradient(logits: Tensor, values: Tensor, *, whole: bool = False) -> Tensor:
    total = torch.zeros_like(logits)
    pi = logits.detach().softmax(-1)
    for a, b in itertools.product(range(2), range(2)):
        one = episodes([[0, 1 + a]], [[a, b]], [[float(FIRST[a]), float(SECOND[a, b])]])
        advantages, _ = return_credit(one, values, gamma=1.0)
        if whole:
            advantages = (FIRST[a] + SECOND[a, b]).expand(1, 2)
        total -= pi[0, a] * pi[1 + a, b] * gradient(logits, policy_loss(logits, one, advantages))
    return total


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
@settings(deadline=None, max_examples=20)
def test_reward_to_go_with_any_baseline_is_the_gradient_of_the_expected_return(values: list[float]) -> None:
    logits = torch.tensor([[0.4, -0.1], [1.0, 0.2], [-0.7, 0.3]], dtype=torch.float64, requires_grad=True)
    pi = logits.softmax(-1)
    expected = (pi[0] * (FIRST + (pi[1:] * SECOND).sum(-1))).sum()
    exact = gradient(logits, expected)
    zero, some = torch.zeros(3, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    for found in (
        chain_gradient(logits, zero),
        chain_gradient(logits, some),
        chain_gradient(logits, zero, whole=True),
    ):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_reward_to_go_by_hand() -> None:
    one = episodes([[0, 1]], [[0, 0]], [[1.0, 2.0]])
    advantages, targets = return_credit(one, torch.tensor([0.5, 0.25], dtype=torch.float64), gamma=0.5)
    assert targets.tolist() == [[2.0, 2.0]]
    assert advantages.tolist() == [[1.5, 1.75]]


def test_the_entropy_bonus_in_closed_form() -> None:
    logits = torch.tensor([[0.5, 0.0, -1.0], [3.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    two = episodes([[0], [0, 1]], [[0], [1, 2]], [[0.0], [0.0, 0.0]])
    found = -gradient(logits, policy_loss(logits, two, torch.zeros(2, 2, dtype=torch.float64), entropy=0.6))
    pi = logits.detach().softmax(-1)
    entropy = -(pi * pi.log()).sum(-1, keepdim=True)
    visits = torch.tensor([[2.0], [1.0]], dtype=torch.float64) / 3  # each move counts the same
    torch.testing.assert_close(found, 0.6 * visits * -pi * (pi.log() + entropy))


# --- the critic -------------------------------------------------------------------------------------------------------


def test_a_cut_episode_is_worth_what_the_critic_expects_of_its_rest() -> None:
    rows = ([[0, 1]] * 2, [[0, 0]] * 2, [[0.0, 1.0]] * 2)
    both = episodes(*rows, last=[2, 2], terminated=[True, False])
    values = torch.tensor([0.5, 0.4, 0.2], dtype=torch.float64)
    one_step, _ = critic_credit(both, values, gamma=0.9, lam=0.0)
    first = 0.9 * 0.4 - 0.5
    assert one_step[0].tolist() == pytest.approx([first, 1.0 - 0.4])
    assert one_step[1].tolist() == pytest.approx([first, 1.0 + 0.9 * 0.2 - 0.4])
    whole, targets = critic_credit(both, values, gamma=0.9, lam=1.0)
    assert whole[1].tolist() == pytest.approx([0.9 + 0.81 * 0.2 - 0.5, 1.18 - 0.4])
    assert targets[1].tolist() == pytest.approx([0.9 + 0.81 * 0.2, 1.18])


def test_with_lam_1_and_no_cut_the_critic_credits_like_reinforce() -> None:
    some = episodes([[0, 1, 0], [1]], [[0, 1, 0], [1]], [[1.0, -1.0, 0.5], [2.0]])
    values = torch.tensor([0.3, -0.6], dtype=torch.float64)
    torch.testing.assert_close(
        critic_credit(some, values, gamma=0.9, lam=1.0)[0], return_credit(some, values, gamma=0.9)[0]
    )


def test_no_gradient_reaches_the_critic_through_the_credit() -> None:
    some = episodes([[0, 1]], [[0, 1]], [[1.0, -1.0]], terminated=[False])
    values = torch.tensor([0.3, -0.6], dtype=torch.float64, requires_grad=True)
    credits = (*critic_credit(some, values, gamma=0.9, lam=0.9), *return_credit(some, values, gamma=0.9))
    assert not any(credit.requires_grad for credit in credits)


# --- Q-learning -------------------------------------------------------------------------------------------------------


def test_the_update_by_hand() -> None:
    assert q_update(0.0, -1.0, [2.0, 1.0], False, alpha=0.5, gamma=0.9) == pytest.approx(0.4)
    assert q_update(0.0, -1.0, [2.0, 1.0], True, alpha=0.5, gamma=0.9) == pytest.approx(-0.5)


def test_a_random_walk_learns_what_is_best_though_most_of_its_episodes_are_cut() -> None:
    exact = value_iteration(transitions(SMALL))
    env = GridWorld(SMALL, horizon=8)
    learned = q_learning(env, epsilon=(1.0, 1.0), moves=40_000, seed=0)
    assert np.mean([-0.1 < earned < 0 for earned in learned.returns]) > 0.5  # neither the diamond nor the trap
    walked = [state for state, cell in enumerate(SMALL.cells) if cell in "S."]
    assert np.abs(learned.values.numpy() - exact)[walked].max() < 1e-3
    # the behaviour was poor all along, and the policy that it taught is the best
    assert np.mean(learned.returns) < 0
    assert policy_values(transitions(SMALL), learned.policy.numpy())[0] == pytest.approx(exact[0].max())


def test_ties_are_broken_at_random() -> None:
    env = Bandit([0.0, 0.0, 0.0])
    learned = q_learning(env, epsilon=(0.0, 0.0), moves=3000, seed=1)
    assert np.bincount(env.drawn) / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)
    assert learned.policy[0].tolist() == pytest.approx([1 / 3] * 3)
    env = Bandit([0.0, 1.0, 0.0])
    q_learning(env, epsilon=(0.0, 0.0), moves=300, seed=1)
    assert set(env.drawn[-250:]) == {1}


def test_epsilon_falls_in_a_straight_line() -> None:
    env = Bandit([0.0, 1.0])
    q_learning(env, epsilon=(1.0, 0.0), moves=4000, seed=0)
    thirds = [np.mean(np.array(part) == 0) for part in np.array_split(env.drawn, 4)]
    assert thirds == pytest.approx([7 / 16, 5 / 16, 3 / 16, 1 / 16], abs=0.05)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        q_learning(Bandit([0.0]), epsilon=(1.0, -0.1))
    with pytest.raises(ConfigError, match="numbered from 0"):
        reinforce(classification())  # type: ignore[arg-type]


# --- what they reach --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_comes_near_the_best(baseline: bool, seed: int) -> None:
    learned = reinforce(GridWorld(SMALL, horizon=50), baseline=baseline, episodes=16, updates=80, seed=seed)
    world = transitions(SMALL)
    assert policy_values(world, learned.policy.numpy())[0] >= 0.95 * value_iteration(world)[0].max()
    assert learned.returns[0] < 0 < learned.returns[-1]
    assert bool(learned.values.any()) is baseline


def test_the_actor_critic_comes_near_the_best_and_its_critic_knows() -> None:
    learned = actor_critic(GridWorld(SMALL, horizon=50), episodes=16, updates=80)
    world = transitions(SMALL)
    best = value_iteration(world)[0].max()
    assert policy_values(world, learned.policy.numpy())[0] >= 0.95 * best
    assert float(learned.values[0]) == pytest.approx(best, abs=0.1)


def test_the_seed_decides() -> None:
    runs = [reinforce(GridWorld(SMALL, horizon=20), episodes=4, updates=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].policy, runs[1].policy)
    assert runs[0].returns == runs[1].returns != runs[2].returns
    assert runs[0].policy.dtype is torch.float64


def test_the_tutorial_shows_what_the_example_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "examples" / "grid_world.py"
    spec = importlib.util.spec_from_file_location("grid_world_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [path.name])
    module.main()
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "tutorial" / "1-grid-world.md").read_text(encoding="utf-8")
    assert printed.strip() in re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    shares = [float(found) for found in re.findall(r" (\d+\.\d)% ", printed)]
    assert len(shares) == 5
    assert min(shares) >= 95
