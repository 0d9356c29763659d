"""The diamond grid world: its rules by hand, what is best in it against other ways to find it, Gymnasium's checker."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path

from trimtab.environments.grid import (
    CLASSIC,
    Grid,
    GridWorld,
    draw_policy,
    drawn,
    greedy_path,
    policy_values,
    transitions,
    value_iteration,
)
from trimtab.errors import ConfigError, DataError

UP, DOWN, LEFT, RIGHT = range(4)


def walk(env: GridWorld, *actions: int) -> list[tuple[int, float, bool, bool]]:
    env.reset()
    return [(int(state), reward, over, cut) for state, reward, over, cut, _ in map(env.step, actions)]


def test_gymnasium_accepts_it() -> None:
    spec = EnvSpec(id="DiamondGrid-v0", entry_point="trimtab.environments.grid:GridWorld", kwargs={"horizon": 7})
    check_env(spec.make().unwrapped)


def test_a_wall_and_the_edge_leave_the_agent_in_place_and_cost_a_step() -> None:
    env = GridWorld(drawn("S#\n.D"))
    assert walk(env, UP, LEFT, RIGHT, DOWN, RIGHT) == [
        (0, -0.01, False, False),
        (0, -0.01, False, False),
        (0, -0.01, False, False),
        (2, -0.01, False, False),
        (3, 1.0, True, False),
    ]


def test_a_trap_ends_the_episode() -> None:
    assert walk(GridWorld(drawn("TSD", trap=-3.0)), LEFT) == [(0, -3.0, True, False)]


def test_truncation_is_not_termination() -> None:
    env = GridWorld(drawn("S.D"), horizon=2)
    assert walk(env, UP, UP)[-1] == (0, -0.01, False, True)
    with pytest.raises(ResetNeeded):
        env.step(UP)
    # a diamond on the last move: the world ended the episode, not the clock
    assert walk(env, RIGHT, RIGHT)[-1] == (2, 1.0, True, False)


def test_what_is_no_move_is_refused() -> None:
    env = GridWorld()
    with pytest.raises(ResetNeeded):
        env.step(UP)
    env.reset()
    for action in (4, -1, 1.0, "up"):
        with pytest.raises(InvalidAction):
            env.step(action)  # type: ignore[arg-type]


def test_it_is_drawn_as_text() -> None:
    env = GridWorld(drawn("S.#\n.TD"), render_mode="ansi")
    assert env.render() == "S.#\n.TD"
    walk(env, RIGHT)
    assert env.render() == "SA#\n.TD"
    assert GridWorld().render() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("S.D\n..", "row 2: 2 cells wide"),
        ("S.D\n.x.", "row 2: no cell 'x'"),
        ("..D", "has 0 and 1"),
        ("SSD", "has 2 and 1"),
        ("S..", "has 1 and 0"),
        ("", "has 0 and 0"),
    ],
)
def test_a_map_that_is_none(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        drawn(text)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="horizon"):
        GridWorld(horizon=0)
    with pytest.raises(ConfigError, match="'human'"):
        GridWorld(render_mode="human")
    with pytest.raises(ConfigError, match="'start'"):
        GridWorld().reset(options={"start": 3})
    with pytest.raises(ConfigError, match="gamma"):
        value_iteration(transitions(CLASSIC), gamma=1.0)


def test_value_iteration_by_hand() -> None:
    q = value_iteration(transitions(drawn("S.D")), gamma=0.9)
    # V(1) = 1 and V(0) = -.01 + .9 = .89; bumping costs a step and time
    assert q[1] == pytest.approx([-0.01 + 0.9, -0.01 + 0.9, -0.01 + 0.9 * 0.89, 1.0])
    assert q[0] == pytest.approx([-0.01 + 0.9 * 0.89, -0.01 + 0.9 * 0.89, -0.01 + 0.9 * 0.89, 0.89])
    assert (q[2] == 0).all()


def test_where_only_a_trap_can_be_reached_it_is_best_to_stay() -> None:
    world = transitions(drawn("S.T#D"))
    q = value_iteration(world, gamma=0.9)
    assert q[0].max() == pytest.approx(-0.01 / (1 - 0.9))
    assert greedy_path(world, 0, q) == [0, 0]


def test_the_value_of_a_policy_by_hand() -> None:
    # three of four moves bump: V = .25 * 1 + .75 (-.01 + .9 V)
    values = policy_values(transitions(drawn("SD")), np.full((2, 4), 0.25), gamma=0.9)
    assert values[0] == pytest.approx((0.25 - 0.0075) / (1 - 0.675))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    width, height = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    cells = draw(st.lists(st.sampled_from("...#T"), min_size=width * height, max_size=width * height))
    start, diamond = draw(st.lists(st.sampled_from(range(width * height)), min_size=2, max_size=2, unique=True))
    cells[start], cells[diamond] = "S", "D"
    return Grid(rows=tuple("".join(cells[at : at + width]) for at in range(0, len(cells), width)))


@settings(deadline=None, max_examples=50)
@given(grids())
def test_the_best_way_is_the_shortest_way_round_the_traps(grid: Grid) -> None:
    world, cells = transitions(grid), grid.cells
    q = value_iteration(world, gamma=0.95)
    links = np.zeros((len(cells), len(cells)))
    for here in range(len(cells)):
        right, below = here + 1, here + grid.width
        for there in [right] * (right % grid.width > 0) + [below] * (below < len(cells)):
            links[here, there] = not {cells[here], cells[there]} & {"#", "T"}
    steps = shortest_path(links, directed=False, unweighted=True)[grid.start, cells.index("D")]
    path = greedy_path(world, grid.start, q)
    if np.isfinite(steps):
        assert cells[path[-1]] == "D"
        assert len(path) - 1 == steps
        discount = 0.95 ** (steps - 1)
        assert q[grid.start].max() == pytest.approx(discount - 0.01 * (1 - discount) / (1 - 0.95))
    else:
        assert cells[path[-1]] != "D"


@settings(deadline=None, max_examples=50)
@given(grids())
def test_no_policy_beats_value_iteration_and_the_greedy_one_reaches_it(grid: Grid) -> None:
    world = transitions(grid)
    q = value_iteration(world, gamma=0.95)
    greedy = np.eye(4)[q.argmax(axis=1)]
    assert policy_values(world, greedy, gamma=0.95) == pytest.approx(q.max(axis=1), abs=1e-9)
    anyone = np.random.default_rng(0).dirichlet(np.ones(4), size=len(q))
    assert (policy_values(world, anyone, gamma=0.95) <= q.max(axis=1) + 1e-9).all()


def test_a_policy_is_drawn_as_arrows() -> None:
    grid = drawn("S.#\n.TD\n...")
    assert draw_policy(grid, value_iteration(transitions(grid))).splitlines() == ["↓←#", "↓TD", "→→↑"]


def test_a_policy_that_goes_in_circles() -> None:
    world = transitions(drawn("S..D"))
    assert greedy_path(world, 0, np.eye(4)[[RIGHT, RIGHT, LEFT, UP]]) == [0, 1, 2, 1]


@pytest.mark.parametrize("module", ["grid", "text", "tasks.arithmetic"])
def test_without_gymnasium_there_is_one_sentence(module: str) -> None:
    program = f"""
import sys
sys.modules["gymnasium"] = None
import trimtab.environments
from trimtab.errors import ConfigError
try:
    import trimtab.environments.{module}
except ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("environments need the package gymnasium (pip install gymnasium)")


def test_no_torch_for_the_worlds_themselves() -> None:
    program = "import sys, trimtab.environments.grid, trimtab.environments.tasks.dialogue; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "trimtab.environments.text" in loaded
    assert not {"torch", "transformers", "datasets", "matplotlib"} & set(loaded)
