"""A bake-off's rows as a page: a verdict, one table, one picture. Rows are what ``trimtab.bakeoff`` writes.

N prompts, S seeds. Win rates are paired: two methods' answers to one prompt, of one seed, by one judge. A prompt's
outcomes are averaged over the seeds first, so intervals are over prompts, for these very models; what another seed may
do is told beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from trimtab.stats.winrate import WinRate, outcomes, wilson, win_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Table = list[list[str]]
BETTER, WORSE, OPEN, FAINT = "#2f6f9f", "#b5562b", "#7d8790", "#c3ccd4"
OFF_BUDGET = 0.15  # a method whose training took so much more or less than the budget is named


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


def heldout(rows: Sequence[Row]) -> tuple[float, float, float] | None:
    """The share of held-out pairs that a method puts right: mean over seeds, and Wilson's interval.

    One outcome a prompt as if all seeds agreed: never too narrow. ``None`` where it was not measured.
    """
    found = [row["metrics"] for row in rows if "heldout/accuracy" in row["metrics"]]
    if not found:
        return None
    mean = _mean([metrics["heldout/accuracy"] for metrics in found])
    return mean, *wilson(mean, min(metrics["heldout/prompts"] for metrics in found))


def _longer_wins(rows: Sequence[Row]) -> float | None:
    """The share of held-out pairs that the rule "the longer answer" puts right."""
    found = [row["metrics"]["heldout/longer_wins"] for row in rows if "heldout/longer_wins" in row["metrics"]]
    return _mean(found) if found else None


def overview(rows: Sequence[Row], start: str) -> Table:
    """One line a method, the head first: whether it is preferred to the start, what it learned, what it cost."""
    table = [
        [
            "method", f"over {start}, % (95 %)", "each seed", "held-out pairs right, % (95 %)", "KL, nats", "tokens",
            "ended, %", "steps", "tokens trained", "minutes", "peak GB",
        ]
    ]  # fmt: skip
    found = over_start(rows, start)
    for name, own in by_method(rows).items():
        rate, seeds = found.get(name, (None, []))
        right = heldout(own)
        table.append(
            [
                name,
                _interval(rate.mean, rate.lo, rate.hi) if rate else "",
                ", ".join(map(_number, seeds)),
                _interval(*right) if right else "",
                f"{_mean([_mean(row['kl']) for row in own]):.1f}",
                f"{_mean([_mean(row['tokens']) for row in own]):.0f}",
                f"{100 * _mean([_mean(row['ended']) for row in own]):.0f}",
                ", ".join(dict.fromkeys(str(row["steps"]) for row in own)),
                f"{_mean([row['trained_tokens'] for row in own]):,.0f}",
                f"{_minutes(own):.1f}",
                f"{max(row['peak_gb'] for row in own):.1f}",
            ]
        )
    return table


def matrix(rows: Sequence[Row]) -> Table:
    """Every method (line) over every other (column): the win rate, starred where its 95 % interval leaves out 50 %."""
    methods = by_method(rows)
    table = [["over, %", *methods]]
    for name, own in methods.items():
        line = [name]
        for other, theirs in methods.items():
            found = paired(own, theirs) if other != name else None
            star = "*" if found and not found[0].lo <= 0.5 <= found[0].hi else ""
            line.append(f"{_number(found[0].mean)}{star}" if found else "")
        table.append(line)
    return table


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *lines])


def page(rows: Sequence[Row], start: str, left_out: Mapping[str, Sequence[str]], picture: str) -> str:
    """The whole result as Markdown: the verdict, the table, the picture, every pair of methods, and how to read it."""
    remarks = "\n".join(f"- {remark}" for remark in [*notes(rows, start), *omissions(left_out)])
    parts = [verdict(rows, start), markdown(overview(rows, start)), f"![{start} and what was made of it]({picture})"]
    if over_start(rows, start):
        parts.append(markdown(matrix(rows)))
    return "\n\n".join([*parts, remarks]) + "\n"


def verdict(rows: Sequence[Row], start: str) -> str:
    """The result in words: how far the judge is to be trusted, who is preferred to the start, who is first."""
    found = over_start(rows, start)
    if not found:
        return f"No method was judged beside {start} yet."
    classes: tuple[tuple[str, Callable[[float, float], bool], int], ...] = (
        (f"Preferred to {start}", lambda lo, hi: lo > 0.5, 1),
        (f"Less liked than {start}", lambda lo, hi: hi < 0.5, -1),
        (f"Not told apart from {start}", lambda lo, hi: lo <= 0.5 <= hi, 0),
    )
    parts = [_judge(rows)]
    for what, holds, sign in classes:
        names = [f"{name}{_on_seeds(seeds, sign)}" for name, (rate, seeds) in found.items() if holds(rate.lo, rate.hi)]
        if names:
            parts.append(f"{what}: {', '.join(names)}.")
    if any(not rate.lo <= 0.5 <= rate.hi for rate, _ in found.values()):
        parts.append(_with_other_seeds(found))
    if len(found) > 1:
        parts.append(_best(by_method(rows), {name: rate for name, (rate, _) in found.items()}))
    return " ".join(part for part in parts if part)


def notes(rows: Sequence[Row], start: str) -> list[str]:
    """What the numbers mean and what was not as it should be, a sentence or two each."""
    methods = by_method(rows)
    said = [
        f"Over {start}: the share of {len(rows[0]['prompts'])} prompts on which the judge prefers a method's answer to "
        f"{start}'s of the same seed. Seeds are averaged by prompt; 95 % is over prompts, for these very models.",
        f"KL is from {start}, on the method's own answers. Minutes and memory are of the method's own training.",
    ]
    said += _seeds(rows, start)
    judged = [pair for pair in combinations(methods.values(), 2) if paired(*pair) is not None]
    if len(judged) > 1:
        said.append(
            f"Each interval speaks of one comparison alone: of {len(judged)}, about {0.05 * len(judged):.1f} would "
            f"leave out 50 % even if no two methods differed."
        )
    longer = _longer_wins(rows)
    if longer is not None:
        said.append(f"On the held-out pairs, always picking the longer answer is right on {percent(longer)}.")
    return [*said, *_budget(methods, start), *_origins(rows)]


def omissions(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Which rows of the file are not counted, and why."""
    return [f"Not counted, {reason}: {', '.join(names)}." for reason, names in left_out.items()]


def _judge(rows: Sequence[Row]) -> str:
    """How far the judge agrees with verdicts that it was not fitted on; a coin is called one."""
    cards = [row["judge"] for row in rows if "accuracy_lo" in row["judge"]]
    if not cards:
        return "How far the judge can be trusted was not measured (evaluate.judge_heldout)."
    mean, lo, hi, longer = (
        _mean([card[name] for card in cards]) for name in ("accuracy", "accuracy_lo", "accuracy_hi", "longer_wins")
    )
    said = (
        f"The judge agrees with {percent(mean)} of {cards[0]['n']} held-out verdicts ({_number(lo)} to {percent(hi)}); "
        f"picking the longer answer, {percent(longer)}."
    )
    return said if lo > 0.5 else f"{said} It is not shown to beat a coin, so what follows says little."


def _on_seeds(seeds: Sequence[float], sign: int) -> str:
    """On how many seeds the direction holds; nothing for one seed, or where there is no direction."""
    held = sum(sign * (rate - 0.5) > 0 for rate in seeds)
    return f" ({held} of {len(seeds)} seeds)" if sign and len(seeds) > 1 else ""


def _best(methods: Mapping[str, Sequence[Row]], rates: Mapping[str, WinRate]) -> str:
    """Which method has the highest win rate over the start, and which others may be as good."""
    best = max(rates, key=lambda name: rates[name].mean)
    against = {name: paired(methods[best], methods[name]) for name in rates if name != best}
    close = [name for name, pair in against.items() if pair is None or pair[0].lo <= 0.5]
    others = f"not shown to be behind it: {', '.join(close)}" if close else "every other method is behind it"
    return f"Highest: {best} ({percent(rates[best].mean)}); {others}."


def _seeds(rows: Sequence[Row], start: str) -> list[str]:
    """How much seeds matter, and the least difference of two methods beyond it: t s sqrt(2 / S) (``_spread``)."""
    found = over_start(rows, start)
    if not found:
        return []
    spread = _spread(found)
    if spread is None:
        return ["One seed: another could turn out otherwise, and nothing here says by how much."]
    deviation, reach = spread
    least = reach * sqrt(2 / min(len(seeds) for _, seeds in found.values() if len(seeds) > 1))
    return [
        f"From seed to seed a method's rate over {start} varies by {100 * deviation:.1f} points (standard deviation). "
        f"Two methods less than {100 * least:.0f} points apart may differ by their seeds alone, whatever the stars say."
    ]


def _spread(found: Mapping[str, tuple[WinRate, list[float]]]) -> tuple[float, float] | None:
    """Return s and t s of the seeds' rates: s² is their variance pooled over methods, t Student's for 95 %.

    Pooled, because the two or three seeds of one method say little of how far seeds are apart. ``None`` for one seed.
    """
    rates = [seeds for _, seeds in found.values() if len(seeds) > 1]
    if not rates:
        return None
    freedom = sum(len(seeds) - 1 for seeds in rates)
    deviation = sqrt(sum(float(np.var(seeds)) * len(seeds) for seeds in rates) / freedom)
    return deviation, float(student.ppf(0.975, freedom)) * deviation


def _with_other_seeds(found: Mapping[str, tuple[WinRate, list[float]]]) -> str:
    """For which methods the direction is beyond prompts and seeds together: both half-widths, as root of squares."""
    spread = _spread(found)
    if spread is None:
        return ""
    kept = []
    for name, (rate, seeds) in found.items():
        near = rate.mean - rate.lo if rate.mean > 0.5 else rate.hi - rate.mean
        if len(seeds) > 1 and abs(rate.mean - 0.5) > sqrt(near**2 + spread[1] ** 2 / len(seeds)):
            kept.append(name)
    if not kept:
        return "As far as these seeds tell, with other seeds none of that need hold."
    return f"As far as these seeds tell, it would hold with others too for {', '.join(kept)}."


def _budget(methods: Mapping[str, Sequence[Row]], start: str) -> list[str]:
    """How steps were chosen, and who trained for longer or shorter than was meant."""
    limited = {name: own for name, own in methods.items() if name != start and own[0].get("pace")}
    if not limited:
        return []
    budget = next(iter(limited.values()))[0]["asked"]["budget"]
    minutes = budget.get("minutes")
    meant = f"{minutes:g} minute{'' if minutes == 1 else 's'}" if minutes else f"{budget['tokens']:,} tokens"
    said = [
        f"Each method's steps were chosen once, from a few steps done before its training, so that it trains for "
        f"{meant}; every seed does as many."
    ]
    machines = dict.fromkeys(row["pace"]["machine"] for own in limited.values() for row in own)
    if minutes and len(machines) > 1:
        said.append(f"Steps were chosen on different machines ({'; '.join(machines)}): the same time is not the same.")
    off = {name: _minutes(own) for name, own in limited.items()}
    off = {name: took for name, took in off.items() if minutes and abs(took / minutes - 1) > OFF_BUDGET}
    if off:
        told = ", ".join(f"{name} {took:.1f}" for name, took in off.items())
        said.append(
            f"Off the budget, in minutes: {told}. The machine was busier or idler than when steps were chosen, or "
            "steps grew."
        )
    return said


def _origins(rows: Sequence[Row]) -> list[str]:
    """Whether all rows come from one code, one kind of machine and, for each seed, one start."""
    said = []
    codes: dict[str, set[str]] = {}
    for row in rows:
        codes.setdefault(row["method"], set()).add(row["code"])
    mixed = [name for name, found in codes.items() if len(found) > 1]
    revisions = list(dict.fromkeys(row["revision"] for row in rows))
    if mixed:
        said.append(f"Rows made by different code are counted together: {', '.join(mixed)} ({', '.join(revisions)}).")
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    if len(machines) > 1:
        said.append(f"The rows come from {len(machines)} machines: {'; '.join(machines)}.")
    starts: dict[int, set[str]] = {}
    for row in rows:
        starts.setdefault(row["seed"], set()).add(row["start"])
    several = [str(seed) for seed, found in sorted(starts.items()) if len(found) > 1]
    if several:
        said.append(
            f"Seed {', '.join(several)}: its start was trained more than once, and not to the same bits; the "
            "answers that methods are held against are of one of these trainings."
        )
    return said


def draw(rows: Sequence[Row], start: str, path: Path) -> None:
    """Draw every method as a line of dots: win rate, held-out accuracy, KL, length, minutes, memory.

    The most preferred stands on top, the start below all. A panel without numbers is left out. The same rows give the
    same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = by_method(rows)
    found = over_start(rows, start)
    names = [name for name in methods if name != start]
    names.sort(key=lambda name: found[name][0].mean if name in found else 0.0)
    names = [name for name in (start, *names) if name in methods]
    accuracies = {name: right for name in names if (right := heldout(methods[name])) is not None}
    costs: list[tuple[str, dict[str, float], str]] = [
        (f"KL from {start}, nats", {n: _mean([_mean(row["kl"]) for row in methods[n]]) for n in names}, ".1f"),
        ("Answer, tokens", {n: _mean([_mean(row["tokens"]) for row in methods[n]]) for n in names}, ".0f"),
        ("Training, minutes", {n: _minutes(methods[n]) for n in names if n != start}, ".1f"),
        ("Peak memory, GB", {n: max(row["peak_gb"] for row in methods[n]) for n in names}, ".1f"),
    ]
    wide = ([2.4] if found else []) + ([1.8] if accuracies else [])
    with matplotlib.rc_context({"svg.hashsalt": "trimtab", "font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(sum(wide) * 1.5 + 6.4, 0.34 * len(names) + 1.1), layout="constrained")
        ratios = [*wide, *[1.0] * len(costs)]
        panels = list(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0])
        rest = iter(panels)
        if found:
            _wins(next(rest), names, found, start)
        if accuracies:
            _accuracies(next(rest), names, accuracies, _longer_wins(rows))
        for axes, (title, values, form) in zip(rest, costs, strict=True):
            _cost(axes, names, title, values, form)
        panels[0].set_yticks(range(len(names)), [f"{name} (start)" if name == start else name for name in names])
        panels[0].set_ylim(-0.6, len(names) - 0.4)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def _wins(axes: Axes, names: Sequence[str], found: Mapping[str, tuple[WinRate, list[float]]], start: str) -> None:
    """Win rates over the start with their intervals; a tick for each seed."""
    for place, name in enumerate(names):
        if name not in found:
            continue
        rate, seeds = found[name]
        colour = BETTER if rate.lo > 0.5 else WORSE if rate.hi < 0.5 else OPEN
        axes.plot([100 * rate.lo, 100 * rate.hi], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        if len(seeds) > 1:
            axes.plot([100 * seed for seed in seeds], [place] * len(seeds), "|", color=colour, markersize=9, alpha=0.6)
        axes.plot(100 * rate.mean, place, "o", color=colour, markersize=6)
    axes.axvline(50, color="#888", linewidth=0.8, zorder=0)
    _dress(axes, f"Preferred to {start}, %", "line: 95 %, ticks: each seed")


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


def percent(share: float) -> str:
    """0.5 -> 50.0 %."""
    return f"{_number(share)} %"


def _number(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(mean: float, lo: float, hi: float) -> str:
    return f"{_number(mean)} ({_number(lo)} to {_number(hi)})"


def _minutes(rows: Sequence[Row]) -> float:
    return _mean([row["seconds"] for row in rows]) / 60


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
