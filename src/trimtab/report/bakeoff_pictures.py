"""A bake-off's rows as pictures: every method as a line of dots, and what is gained against how far a method goes.

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.report.bakeoff_numbers import (
    JUDGE,
    Compared,
    Measure,
    Row,
    by_method,
    families,
    heldout,
    kl,
    longer_wins,
    mean,
    measures,
    minutes,
    over_start,
    peak,
    score,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETTER, WORSE, OPEN, FAINT = "#2f6f9f", "#b5562b", "#7d8790", "#c3ccd4"
FAMILIES = ("#2f6f9f", "#b5562b", "#6a4fb0", "#0f7f74", "#8a6d1b", "#a23b72")
MARKS = "osD^vP"


def draw(rows: Sequence[Row], start: str, path: Path) -> None:
    """Draw every method as a line of dots: what it was judged by, held-out accuracy, KL, length, minutes, memory.

    The highest by the first measure stands on top, the start below all. A panel without numbers is left out.
    """
    methods = by_method(rows)
    judged = {measure: pairs for measure in measures(rows) if (pairs := over_start(rows, start, measure))}
    first = next(iter(judged.values()), {})
    names = [name for name in methods if name != start]
    names.sort(key=lambda name: first[name].mean if name in first else 0.0)
    names = [name for name in (start, *names) if name in methods]
    accuracies = {name: right for name in names if (right := heldout(methods[name])) is not None}
    peaks = {name: memory for name in names if (memory := peak(methods[name])) is not None}
    costs: list[tuple[str, dict[str, float], str]] = [
        (f"KL from {start}, nats", {n: kl(methods[n]) for n in names}, ".1f"),
        ("Answer, tokens", {n: mean([mean(row["tokens"]) for row in methods[n]]) for n in names}, ".0f"),
        ("Training, minutes", {n: minutes(methods[n]) for n in names if n != start}, ".1f"),
        ("Peak memory, GB", peaks, ".1f"),
    ]
    wide = [2.4] * len(judged) + ([1.8] if accuracies else [])
    with _figure(sum(wide) * 1.5 + 6.4, 0.34 * len(names) + 1.1, path) as figure:
        ratios = [*wide, *[1.0] * len(costs)]
        panels = list(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0])
        rest = iter(panels)
        for measure, found in judged.items():
            _judged(next(rest), names, found, measure, methods[start], start)
        if accuracies:
            _accuracies(next(rest), names, accuracies, longer_wins(rows))
        for axes, (title, values, form) in zip(rest, costs, strict=True):
            _cost(axes, names, title, values, form)
        panels[0].set_yticks(range(len(names)), [f"{name} (start)" if name == start else name for name in names])
        panels[0].set_ylim(-0.6, len(names) - 0.4)


def frontier(rows: Sequence[Row], start: str, path: Path) -> bool:
    """Draw reward against KL, a line a family of methods (``families``), where there are any; tell whether there are.

    The reward is the first score that answers were given, else the win rate by the judge. A point is a method: the
    mean over prompts and seeds, with the 95 % interval of its distance to the start; its name's end stands beside it.
    """
    methods, known = by_method(rows), measures(rows)
    measure = next((one for one in known if not one.judge), JUDGE)
    found, several = over_start(rows, start, measure), families(rows, start)
    several = {family: drawn for family, names in several.items() if len(drawn := [n for n in names if n in found]) > 1}
    if not several:
        return False
    level, unit = _level(methods[start], measure), 100 if measure.share else 1
    with _figure(5.2, 3.7, path) as figure:
        axes = figure.subplots()
        for place, (family, names) in enumerate(several.items()):
            colour, mark = FAMILIES[place % len(FAMILIES)], MARKS[place % len(MARKS)]
            points = sorted((kl(methods[name]), name) for name in names)
            far = [nats for nats, _ in points]
            high = [unit * (level + found[name].mean) for _, name in points]
            for nats, name in points:
                ends = [unit * (level + end) for end in (found[name].lo, found[name].hi)]
                axes.plot([nats, nats], ends, color=colour, linewidth=1, alpha=0.4, solid_capstyle="butt")
            axes.plot(far, high, color=colour, linewidth=1.6, marker=mark, markersize=5.5, label=family)
            for (nats, name), value in zip(points, high, strict=True):
                strength = name.removeprefix(f"{family}-").replace("_", ".")
                axes.annotate(
                    strength, (nats, value), xytext=(5, -9), textcoords="offset points", fontsize=7.5, color=colour
                )
        origin = unit * (0.5 if measure.judge else level)
        axes.plot([0], [origin], marker="*", markersize=10, color="#333", linestyle="none", label=start)
        axes.axhline(origin, color="#888", linewidth=0.8, zorder=0)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
        title = f"Preferred to {start}, %" if measure.judge else f"{measure.name}{', %' if measure.share else ''}"
        _dress(axes, title, f"KL from {start}, nats an answer; line: 95 % of the distance to {start}")
        axes.tick_params(axis="y", labelsize=8, colors="#666")
    return True


def _level(rows: Sequence[Row], measure: Measure) -> float:
    """What a comparison's numbers are added to: the start's score, and nothing for win rates."""
    return 0.0 if measure.judge else score(rows, measure) or 0.0


def _judged(
    axes: Axes, names: Sequence[str], found: Mapping[str, Compared], measure: Measure, own: Sequence[Row], start: str
) -> None:
    """Win rates over the start, or scores, with the interval of their distance to the start; a tick for each seed."""
    unit, level = (100 if measure.share else 1), _level(own, measure)
    for place, name in enumerate(names):
        if name not in found:
            continue
        pair = found[name]
        colour = {1: BETTER, -1: WORSE, 0: OPEN}[pair.sign]
        lo, hi, middle = (unit * (level + value) for value in (pair.lo, pair.hi, pair.mean))
        axes.plot([lo, hi], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        if len(pair.seeds) > 1:
            seeds = [unit * (level + seed) for seed in pair.seeds]
            axes.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=9, alpha=0.6)
        axes.plot(middle, place, "o", color=colour, markersize=6)
    axes.axvline(unit * (level + (0.5 if measure.judge else 0.0)), color="#888", linewidth=0.8, zorder=0)
    if measure.judge:
        _dress(axes, f"Preferred to {start}, %", "line: 95 %, ticks: each seed")
    else:
        _dress(axes, f"{measure.name}{', %' if measure.share else ''}", f"line: 95 % of the distance to {start}")


def _accuracies(
    axes: Axes, names: Sequence[str], found: Mapping[str, tuple[float, float, float]], longer: float | None
) -> None:
    """Held-out accuracies with their intervals, beside what the longer answer would get."""
    for place, name in enumerate(names):
        if name in found:
            mean, lo, hi = (100 * share for share in found[name])
            axes.plot([lo, hi], [place, place], color=OPEN, linewidth=2, solid_capstyle="butt")
            axes.plot(mean, place, "o", color=OPEN, markersize=6)
    axes.axvline(50, color="#888", linewidth=0.8, zorder=0)
    if longer is not None:
        axes.axvline(100 * longer, color="#888", linewidth=1.2, linestyle=":", zorder=0)
    _dress(axes, "Held-out pairs right, %", "line: 95 %, dots: the longer answer")


def _cost(axes: Axes, names: Sequence[str], title: str, values: Mapping[str, float], form: str) -> None:
    """A number that has a zero, as a line from there, with the number beside it."""
    for place, name in enumerate(names):
        if name in values:
            axes.plot([0, values[name]], [place, place], color=FAINT, linewidth=3, solid_capstyle="butt", zorder=1)
            axes.annotate(
                format(values[name], form), (values[name], place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
    axes.set_xlim(0, 1.45 * max([1e-9, *values.values()]))
    _dress(axes, title, "")


def _dress(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(below, fontsize=8, color="#666")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors="#666")
    axes.grid(axis="y", color="#eee", linewidth=0.8)
    axes.set_axisbelow(True)


@contextmanager
def _figure(width: float, height: float, path: Path) -> Iterator[Figure]:
    """Give a figure (inches) and save it; the same numbers give the same bytes, whatever day it is."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "trimtab", "font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
