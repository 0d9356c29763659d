"""The diamond grid world: walk to the diamond, mind the traps. What is best in it is computed exactly.

    S..#      S start   . free   # wall   D diamond   T trap
    .T..      A move into a wall or over the edge leaves the agent where it is.
    ...D      A diamond or a trap ends the episode.

A state is a cell's number, ``row * width + column``; an action is 0 up, 1 down, 2 left, 3 right. The text methods'
prompt, token and score are this world's state, action and reward.

Shapes: S cells, A = 4 actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.environments._gymnasium import Discrete, Env, InvalidAction, ResetNeeded
from trimtab.errors import ConfigError, DataError

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
ARROWS = "↑↓←→"
START, FREE, WALL, DIAMOND, TRAP = "S.#DT"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A map and what its cells are worth.

    A move earns what the cell it leads to is worth: ``diamond``, ``trap``, or ``step`` for any other, the one that the
    agent did not get away from included.
    """

    rows: tuple[str, ...]
    step: float = -0.01
    trap: float = -1.0
    diamond: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a map that is not a rectangle of known cells with one start and a diamond."""
        for number, row in enumerate(self.rows, 1):
            unknown = sorted(set(row) - {START, FREE, WALL, DIAMOND, TRAP})
            if unknown:
                raise DataError(f"map, row {number}: no cell {unknown[0]!r}; known: S . # D T")
            if len(row) != self.width:
                raise DataError(f"map, row {number}: {len(row)} cells wide, but the first row is {self.width}")
        starts, diamonds = (sum(row.count(cell) for row in self.rows) for cell in (START, DIAMOND))
        if starts != 1 or not diamonds:
            raise DataError(f"map: it needs one start S and a diamond D, and has {starts} and {diamonds}")

    @property
    def width(self) -> int:
        """Cells from left to right."""
        return len(self.rows[0]) if self.rows else 0

    @property
    def cells(self) -> str:
        """All cells in the order of their numbers."""
        return "".join(self.rows)

    @property
    def start(self) -> int:
        """The number of the cell where the agent starts."""
        return self.cells.index(START)


def drawn(text: str, *, step: float = -0.01, trap: float = -1.0, diamond: float = 1.0) -> Grid:
    """Read a map as it is drawn, one line a row; empty lines and space around the lines do not count."""
    rows = tuple(line.strip() for line in text.splitlines() if line.strip())
    return Grid(rows=rows, step=step, trap=trap, diamond=diamond)


CLASSIC = drawn("""
    S...#.
    .##.T.
    ....#.
    .T....
    ...#.D
""")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transitions:
    """What every action does in every state: where it leads, what it earns, whether that is the end.

    Diamonds, traps and walls, from where nobody moves, lead to themselves, earn nothing and are the end.
    """

    next_states: NDArray[np.int64]  # (S, A)
    rewards: Floats  # (S, A)
    terminal: NDArray[np.bool_]  # (S, A)


def transitions(grid: Grid) -> Transitions:
    """Work out every move on a map."""
    cells, width = grid.cells, grid.width
    shape = (len(cells), len(MOVES))
    next_states, rewards, terminal = np.empty(shape, np.int64), np.zeros(shape), np.ones(shape, np.bool_)
    worth = {DIAMOND: grid.diamond, TRAP: grid.trap}
    for state, cell in enumerate(cells):
        row, column = divmod(state, width)
        next_states[state] = state
        if cell not in (START, FREE):
            continue
        for action, (down, right) in enumerate(MOVES):
            inside = 0 <= row + down < len(grid.rows) and 0 <= column + right < width
            to = state + down * width + right if inside else state
            to = state if cells[to] == WALL else to
            next_states[state, action] = to
            rewards[state, action] = worth.get(cells[to], grid.step)
            terminal[state, action] = cells[to] in worth
    return Transitions(next_states=next_states, rewards=rewards, terminal=terminal)


def value_iteration(world: Transitions, *, gamma: float = 0.99, tolerance: float = 1e-12) -> Floats:
    """Return what every action is worth if all later ones are the best, Q* (S, A).

        Q(s, a) <- r(s, a) + gamma (1 - terminal) max_a' Q(s', a')      until nothing changes by more than tolerance

    This is the world without a horizon. A sweep brings Q nearer to Q* by the factor gamma, so Q is within ``tolerance *
    gamma / (1 - gamma)`` of it. Raises ``ConfigError`` for a gamma outside [0, 1).

    Source: Bellman 1957; Sutton and Barto 2018, "Reinforcement Learning", section 4.4.
    """
    _contracts(gamma)
    values = np.zeros_like(world.rewards)
    while True:
        later = np.where(world.terminal, 0.0, values.max(axis=1)[world.next_states])  # (S, A)
        better = world.rewards + gamma * later
        if np.abs(better - values).max() <= tolerance:
            return better
        values = better


def policy_values(world: Transitions, policy: Floats, *, gamma: float = 0.99) -> Floats:
    """Return what every state is worth to somebody who draws actions from ``policy`` (S, A): V (S,), without sampling.

        V = r_pi + gamma P_pi V      solved as (I - gamma P_pi) V = r_pi

    Like ``value_iteration`` it knows no horizon. Raises ``ConfigError`` for a gamma outside [0, 1).
    """
    _contracts(gamma)
    size = len(policy)
    moves = np.zeros((size, size))  # chance to go on in s', from s
    np.add.at(moves, (np.arange(size)[:, None], world.next_states), np.where(world.terminal, 0.0, policy))
    found: Floats = np.linalg.solve(np.eye(size) - gamma * moves, (policy * world.rewards).sum(axis=1))
    return found


def greedy_path(world: Transitions, start: int, scores: Floats) -> list[int]:
    """Return the states on the way of somebody who always takes the action with the highest score (S, A).

    It ends where the episode ends, or with the first state that was there before: from there it goes in circles.
    """
    path = [start]
    while True:
        action = int(scores[path[-1]].argmax())
        over, to = bool(world.terminal[path[-1], action]), int(world.next_states[path[-1], action])
        path.append(to)
        if over or to in path[:-1]:
            return path


def draw_policy(grid: Grid, scores: Floats) -> str:
    """Draw the map with an arrow in every free cell: the action with the highest score (S, A)."""
    marks = [ARROWS[int(scores[s].argmax())] if cell in (START, FREE) else cell for s, cell in enumerate(grid.cells)]
    return _lines(grid, marks)


class GridWorld(Env[np.int64, np.int64]):
    """A map as a Gymnasium environment.

    ``terminated`` says that a diamond or a trap was reached, ``truncated`` that ``horizon`` moves were made without;
    never both. The state does not hold the number of moves, so a truncated episode is one that somebody stopped
    watching, not one that ended. Nothing is random. ``render_mode="ansi"`` draws the map with the agent as ``A``.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium reads it from the class

    def __init__(self, grid: Grid = CLASSIC, *, horizon: int = 100, render_mode: str | None = None) -> None:
        if horizon < 1:
            raise ConfigError(f"horizon counts an episode's moves, so it is at least 1, not {horizon}")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"a grid world is drawn as text only (render_mode 'ansi'), not as {render_mode!r}")
        self.grid, self.horizon, self.render_mode = grid, horizon, render_mode
        self.world = transitions(grid)
        self.observation_space = Discrete(len(grid.cells))
        self.action_space = Discrete(len(MOVES))
        self._state: np.int64 | None = None
        self._moves = 0
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Put the agent on the start; there are no options."""
        super().reset(seed=seed)
        if options:
            raise ConfigError(f"a grid world has no option {next(iter(options))!r}")
        self._state, self._moves, self._over = np.int64(self.grid.start), 0, False
        return self._state, {}

    def step(self, action: int | np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Move; raises Gymnasium's ``ResetNeeded`` once the episode is over, and ``InvalidAction`` for no such move."""
        if self._over or self._state is None:
            raise ResetNeeded("the episode is over (or has not begun): call reset")
        if not (isinstance(action, int | np.integer) and 0 <= action < len(MOVES)):
            raise InvalidAction(f"action {action!r} is not one of 0 up, 1 down, 2 left, 3 right")
        here, self._moves = (self._state, action), self._moves + 1
        terminated = bool(self.world.terminal[here])
        truncated = not terminated and self._moves >= self.horizon
        self._state, self._over = self.world.next_states[here], terminated or truncated
        return self._state, float(self.world.rewards[here]), terminated, truncated, {}

    def render(self) -> str | None:
        """Draw the map, if ``render_mode`` says so."""
        if self.render_mode is None:
            return None
        marks = list(self.grid.cells)
        if self._state is not None:
            marks[self._state] = "A"
        return _lines(self.grid, marks)


def _lines(grid: Grid, marks: list[str]) -> str:
    return "\n".join("".join(marks[at : at + grid.width]) for at in range(0, len(marks), grid.width))


def _contracts(gamma: float) -> None:
    if not 0 <= gamma < 1:
        raise ConfigError(f"gamma is in [0, 1): without a horizon, values need not be finite at {gamma}")
