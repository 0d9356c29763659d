"""Charts as inline SVG: colours are CSS variables of the page, so that one drawing serves light and dark.

Every function returns an ``<svg>`` for an HTML page (no namespace, no metadata, no fonts of its own) with
``role="img"`` and the whole of its message in ``aria-label``. The same numbers give the same bytes. Only names from a
recipe and numbers are drawn, never a model's text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.report.read import HeadToHead, Interval
from trimtab.report.reading import percent, short
from trimtab.stats.describe import finite, histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

# matplotlib wants real colours; these stand for the page's variables until the SVG is written.
INK, MUTED, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14")
VARIABLES: Mapping[str, str] = {
    INK: "var(--ink, #1c2330)",
    MUTED: "var(--muted, #5b6472)",
    GRID: "var(--line, #dfe3e8)",
    **{colour: f"var(--series-{i}, #5b6472)" for i, colour in enumerate(SERIES)},
}

SMOOTH_FROM = 30
"""Steps from which a curve is drawn as a running mean over a faint line of the raw values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, x (steps) and y, its colour as a place in the page's palette, and whether it is noisy."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 1
    noisy: bool = True


def curves(
    series: Sequence[Series], *, name: str, what: str, unit: str = "", mark: float | None = None, mark_name: str = ""
) -> str:
    """Draw one or a few metrics over steps.

    ``name`` makes the ids in the SVG unique on the page, ``what`` begins its description; ``mark`` draws a level to
    hold against (a budget). Values that are not finite leave gaps; no finite value at all gives an empty string.
    """
    drawn = [one for one in series if finite(one.values).size]
    if not drawn:
        return ""
    with _figure(3.5, 2.05) as figure:
        axes = figure.add_axes((0.125, 0.145, 0.735, 0.79))
        for one in drawn:
            _line(axes, one, label=len(drawn) == 1)
        if mark is not None:
            axes.axhline(mark, color=MUTED, linewidth=0.9, dashes=(4, 3))
            axes.annotate(
                mark_name,
                (0.01, mark),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=7.5,
            )
        if len(drawn) > 1:
            axes.legend(frameon=False, loc="best", fontsize=8, labelcolor=INK, handlelength=1.2, borderaxespad=0.1)
        _bare(axes)
        _vertical(axes, drawn)
        svg = _write(figure)
    said = "; ".join(f"{one.name} {_course(one)}" for one in drawn)
    return _inline(svg, name=name, label=f"{what}{f' ({unit})' if unit else ''} over steps: {said}.")


def win_rates(rows: Sequence[HeadToHead], *, name: str, colours: Mapping[str, int] | None = None) -> str:
    """Draw win rates as bars from one half, each with its 95 % interval; below it, hollow, the length-matched rate."""
    lines = [
        (f"{row.a} over {row.b}", kind, interval, (colours or {}).get(row.a, 1))
        for row in rows
        for kind, interval in (("all", row.rate), ("equal length", row.length_matched))
        if interval is not None and isfinite(interval.mean)
    ]
    if not lines:
        return ""
    height = 0.42 + 0.36 * len(lines)
    with _figure(4.9, height) as figure:
        axes = figure.add_axes((0.29, 0.3 / height, 0.6, 1 - 0.36 / height))
        for place, (what, kind, interval, colour) in enumerate(lines):
            _win_rate(axes, -place, interval, SERIES[colour % len(SERIES)], hollow=kind != "all")
            axes.annotate(
                what if kind == "all" else kind,
                (0, -place),
                xycoords=("axes fraction", "data"),
                xytext=(-8, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=INK if kind == "all" else MUTED,
                fontsize=9 if kind == "all" else 8,
            )
        axes.axvline(0.5, color=INK, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(-len(lines) + 0.4, 0.6), yticks=[])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "", "50%: no difference", "", "100%"])
        _bare(axes, grid="x")
        svg = _write(figure)
    said = "; ".join(
        f"{what}{'' if kind == 'all' else ', answers of equal length'}: {percent(i.mean)}, "
        f"95% interval {percent(i.lo)} to {percent(i.hi)}, {i.n} prompts"
        for what, kind, i, _ in lines
    )
    return _inline(svg, name=name, label=f"Win rates. {said}.")


def histograms(
    samples: Mapping[str, Sequence[float]], *, name: str, what: str, unit: str, colours: Mapping[str, int] | None = None
) -> str:
    """Draw one histogram a model, one below the other on one scale, with a tick at the median."""
    clean = {model: finite(values) for model, values in samples.items()}
    clean = {model: values for model, values in clean.items() if values.size}
    if not clean:
        return ""
    edges, shares = histogram(clean)
    top = max(float(share.max()) for share in shares.values())
    with _figure(5.2, 0.35 + 0.62 * len(clean)) as figure:
        height = figure.get_figheight()
        for place, (model, share) in enumerate(shares.items()):
            bottom = (0.3 + 0.62 * (len(clean) - 1 - place)) / height
            axes = figure.add_axes((0.17, bottom, 0.79, 0.54 / height))
            colour = SERIES[(colours or {}).get(model, place) % len(SERIES)]
            _histogram(axes, model, share, edges, median=float(np.median(clean[model])), top=top, colour=colour)
            if place < len(clean) - 1:
                axes.set_xticklabels([])
        svg = _write(figure)
    said = "; ".join(
        f"{model}: median {short(float(np.median(values)))}, nine in ten up to {short(float(np.quantile(values, 0.9)))}"
        for model, values in clean.items()
    )
    return _inline(svg, name=name, label=f"{what} ({unit}). {said}.")


def _histogram(
    axes: Axes, model: str, share: FloatArray, edges: FloatArray, *, median: float, top: float, colour: str
) -> None:
    """Draw one model's histogram with its name and median; the median's number stands where there is room."""
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
    axes.stairs(share, edges, color=colour, linewidth=1.2)
    axes.plot([median, median], [0, top], color=INK, linewidth=1.2)
    axes.annotate(
        model, (0, 0.3), xycoords="axes fraction", xytext=(-8, 0), textcoords="offset points", ha="right", color=INK
    )
    right = median > edges[0] + 0.7 * (edges[-1] - edges[0])
    axes.annotate(
        f"median {short(median)}",
        (median, top * 0.74),
        xytext=(-4 if right else 4, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=7.5,
        color=MUTED,
    )
    axes.set(ylim=(0, top * 1.05), xlim=(edges[0], edges[-1]), yticks=[])
    _bare(axes, grid=None)


def _line(axes: Axes, one: Series, *, label: bool) -> None:
    """Draw a series, smoothed when long, with a dot (and number) at its end."""
    colour = SERIES[one.colour % len(SERIES)]
    steps, values = np.asarray(one.steps, dtype=float), np.asarray(one.values, dtype=float)
    keep = np.isfinite(values)
    if one.noisy and keep.sum() >= SMOOTH_FROM:
        axes.plot(steps, np.where(keep, values, np.nan), color=colour, linewidth=0.7, alpha=0.35)
        steps, values = _running_mean(steps[keep], values[keep])
        keep = np.ones(values.size, dtype=bool)
    axes.plot(steps, np.where(keep, values, np.nan), color=colour, linewidth=1.7, label=one.name)
    last_step, last = steps[keep][-1], values[keep][-1]
    axes.plot([last_step], [last], marker="o", markersize=3.6, color=colour, linestyle="none")
    if label:
        axes.annotate(
            short(float(last)),
            (last_step, last),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8.5,
            annotation_clip=False,
        )


def _running_mean(steps: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a centred running mean over a tenth of the curve; windows shrink at the ends."""
    half = max(1, values.size // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return steps, (total[high] - total[low]) / (high - low)


def _win_rate(axes: Axes, y: float, interval: Interval, colour: str, *, hollow: bool) -> None:
    """Draw one bar from one half with its interval and number."""
    low, high = sorted((0.5, interval.mean))
    if not hollow:
        axes.barh(y, high - low, left=low, height=0.62, color=colour, alpha=0.3, linewidth=0)
    axes.plot(
        [interval.lo, interval.hi], [y, y], color=colour, linewidth=2.2 if not hollow else 1.4, solid_capstyle="butt"
    )
    axes.plot(
        [interval.mean],
        [y],
        marker="o",
        markersize=6 if not hollow else 5,
        color=colour,
        fillstyle="none" if hollow else "full",
        markeredgewidth=1.4,
    )
    axes.annotate(
        percent(interval.mean),
        (1, y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=MUTED if hollow else INK,
        fontsize=8.5 if hollow else 9.5,
        annotation_clip=False,
    )


def _vertical(axes: Axes, series: Sequence[Series]) -> None:
    """Set the ticks of a curve: few, whole steps, plain numbers; room about a curve that never moves."""
    values = np.concatenate([finite(one.values) for one in series])
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.2 * abs(low) or 1.0
        axes.set_ylim(low - room, high + room)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{0 if abs(value) < 1e-12 else value:.5g}")


def _bare(axes: Axes, *, grid: Literal["x", "y"] | None = "y") -> None:
    """Take away what does not carry a number: frame, tick marks; leave a quiet grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, colors=MUTED, labelsize=8, pad=3)
    axes.set_facecolor("none")
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def _course(one: Series) -> str:
    """Say where a series starts and ends, and its extremes."""
    x = finite(one.values)
    first, last, low, high = (short(float(v)) for v in (x[0], x[-1], x.min(), x.max()))
    return f"from {first} to {last}, between {low} and {high}"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Give a figure (inches) under matplotlib's own defaults and our few settings, whatever the user's matplotlibrc
    says.

    matplotlib is imported here: a run without a report should not pay for it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "trimtab",
                "text.parse_math": False,
            }
        )
        figure = Figure(figsize=(width, height))
        figure.patch.set_visible(False)
        yield figure


def _write(figure: Figure) -> str:
    """Return the figure's SVG; inside `_figure`, because matplotlib reads its settings when it writes."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return stream.getvalue()


def _inline(svg: str, *, name: str, label: str) -> str:
    """Make matplotlib's SVG part of a page: no prolog, metadata, namespaces, or fonts; own ids; the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font-family:[^;\"]*;?\s*", "", svg)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None, "matplotlib writes a viewBox"
    head = f'<svg class="chart" viewBox="{view[1]}" role="img" aria-label="{html.escape(label)}">'
    body = re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :])
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), body)
    return head + body.strip()
