"""A bake-off's rows as one table and one picture. Rows are what ``trimtab.bakeoff`` writes; N prompts, S seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.stats.winrate import WinRate, outcomes, win_rate

Row = Mapping[str, Any]
Table = list[list[str]]
LINE, FAINT = "#3a6ea5", "#9bb4cf"


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by method: methods in the order of their first rows, each method's rows by seed."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        found.setdefault(row["method"], []).append(row)
    return {name: found[name] for name in dict.fromkeys(row["method"] for row in rows)}


def paired(a: Sequence[Row], b: Sequence[Row]) -> tuple[WinRate, list[float]] | None:
    """How often method a beats method b: on each prompt, the mean over the seeds that both have; and each seed's rate.

    The interval is over prompts, for these very models. ``None`` when no seed is common or nothing was judged.
    """
    seeds = sorted({row["seed"] for row in a} & {row["seed"] for row in b})
    mine, theirs = ({row["seed"]: row["scores"] for row in rows} for rows in (a, b))
    if not seeds or not all(mine[seed] and theirs[seed] for seed in seeds):
        return None
    won: NDArray[np.float64] = np.stack([outcomes(mine[seed], theirs[seed]) for seed in seeds], axis=1)  # (N, S)
    return win_rate(won.mean(axis=1)), won.mean(axis=0).tolist()


def over_start(rows: Sequence[Row], start: str) -> dict[str, tuple[WinRate, list[float]]]:
    """What ``paired`` says of every method against the start, where it says anything."""
    methods = by_method(rows)
    found = {name: paired(own, methods.get(start, [])) for name, own in methods.items() if name != start}
    return {name: pair for name, pair in found.items() if pair is not None}


def overview(rows: Sequence[Row], start: str) -> Table:
    """One line a method, the head first: what it learned, whether it is preferred to the start, what it cost."""
    head = [
        "method", "right on held-out pairs", f"over {start}", "95 %, by prompt", "each seed", "KL, nats",
        "answer tokens", "ended", "steps", "trained tokens", "minutes", "peak GB",
    ]  # fmt: skip
    found = over_start(rows, start)
    table = [head]
    for name, own in by_method(rows).items():
        rate, seeds = found.get(name, (None, []))
        table.append(
            [
                name,
                _accuracy(own),
                percent(rate.mean) if rate else "",
                f"{percent(rate.lo)} to {percent(rate.hi)}" if rate else "",
                ", ".join(map(percent, seeds)),
                f"{_mean([_mean(row['kl']) for row in own]):.1f}",
                f"{_mean([_mean(row['tokens']) for row in own]):.0f}",
                percent(_mean([_mean(row["ended"]) for row in own])),
                ", ".join(dict.fromkeys(str(row["steps"]) for row in own)),
                f"{_mean([row['trained_tokens'] for row in own]):,.0f}",
                f"{_mean([row['seconds'] for row in own]) / 60:.1f}",
                f"{max(row['peak_gb'] for row in own):.1f}",
            ]
        )
    return table


def matrix(rows: Sequence[Row]) -> Table:
    """Every method (line) over every other (column): the win rate, starred where its 95 % interval leaves out 50 %."""
    methods = by_method(rows)
    table = [["over", *methods]]
    for name, own in methods.items():
        line = [name]
        for other, theirs in methods.items():
            found = paired(own, theirs) if other != name else None
            star = "*" if found and not found[0].lo <= 0.5 <= found[0].hi else ""
            line.append(f"{percent(found[0].mean)}{star}" if found else "")
        table.append(line)
    return table


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *lines])


def verdict(rows: Sequence[Row], start: str) -> str:
    """The result in words."""
    rates = {name: rate for name, (rate, _) in over_start(rows, start).items()}
    if not rates:
        return f"No method was judged beside {start} yet."
    said = {
        f"Preferred to {start}": [name for name, rate in rates.items() if rate.lo > 0.5],
        f"Less liked than {start}": [name for name, rate in rates.items() if rate.hi < 0.5],
        f"Not told apart from {start}": [name for name, rate in rates.items() if rate.lo <= 0.5 <= rate.hi],
    }
    parts = [f"{what}: {', '.join(names)}." for what, names in said.items() if names]
    if len(rates) > 1:
        parts.append(_best(by_method(rows), rates))
    judged = [pair for pair in combinations(by_method(rows).values(), 2) if paired(*pair) is not None]
    if len(judged) > 1:
        parts.append(
            f"Each interval speaks of one comparison alone: of {len(judged)}, about {0.05 * len(judged):.1f} would "
            f"leave out 50 % even if no two methods differed."
        )
    revisions = {row["revision"] for row in rows}
    if len(revisions) > 1:
        parts.append(f"The rows come from {len(revisions)} revisions of the code.")
    return " ".join(parts)


def _best(methods: Mapping[str, Sequence[Row]], rates: Mapping[str, WinRate]) -> str:
    """Which method has the highest win rate over the start, and which others may be as good."""
    best = max(rates, key=lambda name: rates[name].mean)
    against = {name: paired(methods[best], methods[name]) for name in rates if name != best}
    close = [name for name, pair in against.items() if pair is None or pair[0].lo <= 0.5]
    others = f"not shown to be behind it: {', '.join(close)}" if close else "every other method is behind it"
    return f"Highest: {best} ({percent(rates[best].mean)}); {others}."


def draw(rows: Sequence[Row], start: str, path: Path) -> None:
    """Draw win rates with their intervals, and beside them each method's win rate against how far it went (KL).

    Needs a method that was judged (``over_start`` is not empty). The same rows give the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = by_method(rows)
    shown = sorted(over_start(rows, start).items(), key=lambda item: item[1][0].mean)
    with matplotlib.rc_context({"svg.hashsalt": "trimtab", "font.size": 9}):
        figure = Figure(figsize=(9, max(2.4, 0.38 * len(shown) + 1.0)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, (name, (rate, seeds)) in enumerate(shown):
            mean, lo, hi = 100 * rate.mean, 100 * rate.lo, 100 * rate.hi
            left.plot([lo, hi], [place, place], color=LINE, linewidth=2)
            left.plot([100 * one for one in seeds], [place] * len(seeds), "|", color=FAINT, markersize=9)
            left.plot(mean, place, "o", color=LINE)
            kl = _mean([_mean(row["kl"]) for row in methods[name]])
            right.plot([kl, kl], [lo, hi], color=FAINT, linewidth=1.5, zorder=1)
            right.plot(kl, mean, "o", color=LINE)
            right.annotate(name, (kl, mean), xytext=(5, 3), textcoords="offset points", fontsize=8)
        left.set_yticks(range(len(shown)), [name for name, _ in shown])
        left.set_ylim(-0.6, len(shown) - 0.4)
        left.set_xlabel(f"preferred to {start}, % of prompts (line: 95 %, ticks: each seed)")
        right.set_xlabel(f"KL from {start}, nats an answer")
        right.set_ylabel(f"preferred to {start}, %")
        right.margins(x=0.15)
        left.axvline(50, color="#888", linewidth=0.8, zorder=0)
        right.axhline(50, color="#888", linewidth=0.8, zorder=0)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def percent(share: float) -> str:
    """0.5 -> 50.0 %."""
    return f"{100 * share:.1f} %"


def _accuracy(rows: Sequence[Row]) -> str:
    found = [row["metrics"]["heldout/accuracy"] for row in rows if "heldout/accuracy" in row["metrics"]]
    return percent(_mean(found)) if found else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
