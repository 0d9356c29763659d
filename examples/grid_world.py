"""Three classic methods walk to the diamond: REINFORCE, actor-critic and Q-learning, next to what is best.

    python examples/grid_world.py --seed 0

    return    what the learned policy earns from the start on, discounted; computed exactly, not sampled
    optimum   the same as a share of the best that there is, which value iteration finds
    moves     steps in the world that were needed to learn
    path      moves to the end for somebody who always takes the policy's likeliest action, and what is there
    early     the mean discounted return of the first twentieth of the episodes

REINFORCE and the actor-critic run on the text methods' own returns, advantages and losses. The story to it is told in
docs/tutorial/1-grid-world.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import fmean

import torch

from trimtab.environments.classic import Learned, actor_critic, q_learning, reinforce
from trimtab.environments.grid import (
    CLASSIC,
    GridWorld,
    draw_policy,
    greedy_path,
    policy_values,
    transitions,
    value_iteration,
)

GAMMA = 0.99
NAMES = {"D": "diamond", "T": "trap"}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="REINFORCE, actor-critic and Q-learning in a grid world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=120, help="of the two policy-gradient methods")
    parser.add_argument("--moves", type=int, default=20_000, help="of Q-learning")
    return parser.parse_args()


def row(name: str, learned: Learned) -> str:
    """Write a line of the table."""
    world = transitions(CLASSIC)
    best = value_iteration(world, gamma=GAMMA)[CLASSIC.start].max()
    policy = learned.policy.numpy()
    earned = policy_values(world, policy, gamma=GAMMA)[CLASSIC.start]
    path = greedy_path(world, CLASSIC.start, policy)
    end = NAMES.get(CLASSIC.cells[path[-1]], "circles")
    early = fmean(learned.returns[: max(len(learned.returns) // 20, 1)])
    return (
        f"{name:<21}{earned:>7.3f}{earned / best:>9.1%}{learned.moves:>9,}"
        f"{f'{len(path) - 1}, {end}':>13}{early:>8.2f}"
    )  # fmt: skip


def main() -> None:
    """Train all of them and print what they have learned."""
    given = arguments()
    torch.set_num_threads(1)  # tables are small: threads would only wait for one another
    env = GridWorld(CLASSIC)
    world = transitions(CLASSIC)
    best = value_iteration(world, gamma=GAMMA)
    policy_gradient = {"gamma": GAMMA, "updates": given.updates, "seed": given.seed}
    methods: dict[str, Callable[[], Learned]] = {
        "REINFORCE": lambda: reinforce(env, **policy_gradient),
        "REINFORCE, baseline": lambda: reinforce(env, baseline=True, **policy_gradient),
        "actor-critic": lambda: actor_critic(env, **policy_gradient),
        "Q-learning": lambda: q_learning(env, gamma=GAMMA, moves=given.moves, seed=given.seed),
    }
    print("the map (S start, # wall, T trap, D diamond) and the best way:\n")
    for drawn, arrows in zip(CLASSIC.rows, draw_policy(CLASSIC, best).splitlines(), strict=True):
        print(f"    {drawn}    {arrows}")
    print(f"\n{'method':<21}{'return':>7}{'optimum':>9}{'moves':>9}{'path':>13}{'early':>8}")
    path = greedy_path(world, CLASSIC.start, best)
    optimum = best[CLASSIC.start].max()
    print(f"{'value iteration':<21}{optimum:>7.3f}{1:>9.1%}{'-':>9}{f'{len(path) - 1}, diamond':>13}{'-':>8}")
    pictures = []
    for name, learn in methods.items():
        learned = learn()
        print(row(name, learned))
        pictures.append(draw_policy(CLASSIC, learned.policy.numpy()).splitlines())
    print("\nthe learned policies, in this order:\n")
    for lines in zip(*pictures, strict=True):
        print("    " + "    ".join(lines))


if __name__ == "__main__":
    main()
