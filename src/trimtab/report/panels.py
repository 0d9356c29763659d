"""Which curves a stage's page shows, with the words beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.report.charts import Series, curves
from trimtab.report.health_policy import kl_budget
from trimtab.report.read import StageRecord
from trimtab.report.reading import column, curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small chart to be: a title, a unit, a hint, its metrics by the name each line bears, whether to smooth."""

    title: str
    metrics: Mapping[str, str]
    unit: str = ""
    hint: str = ""
    noisy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One small chart: its words and its SVG."""

    title: str
    unit: str
    hint: str
    svg: str


_GRADIENT = Panel(
    title="Gradient norm", metrics={"gradient norm": "train/grad_norm"}, hint="Calm is good; spikes are not."
)
_RATE = Panel(title="Learning rate", metrics={"learning rate": "train/lr"}, hint="As scheduled.", noisy=False)

PANELS: Mapping[str, Sequence[Panel]] = {
    "sft": (
        Panel(
            title="Loss",
            metrics={"training": "train/loss", "held out": "heldout/loss"},
            unit="nats a token",
            hint="Should fall, then flatten.",
        ),
        Panel(title="Token accuracy", metrics={"accuracy": "train/accuracy"}, hint="Near 1 means learnt by heart."),
        _RATE,
        _GRADIENT,
    ),
    "reward": (
        Panel(title="Loss", metrics={"loss": "train/loss"}, unit="nats a pair", hint="A coin has ln 2 = 0.693."),
        Panel(title="Pair accuracy", metrics={"accuracy": "train/accuracy"}, hint="In training; a coin has 0.5."),
        Panel(title="Margin", metrics={"margin": "train/margin"}, hint="Score of the better answer minus the worse."),
        _RATE,
        _GRADIENT,
    ),
    "policy": (
        Panel(
            title="Reward",
            metrics={"score": "rollout/score", "score less KL": "rollout/reward", "gold": "rollout/gold"},
            hint="What is raised; no proof of better answers.",
        ),
        Panel(
            title="KL from the start", metrics={"KL": "rollout/kl"}, unit="nats a sequence", hint="How far it has gone."
        ),
        Panel(
            title="Entropy",
            metrics={"entropy": "rollout/entropy"},
            unit="nats a token",
            hint="Falls as choices narrow.",
        ),
        Panel(title="Length", metrics={"length": "rollout/length"}, unit="tokens", hint="Drift here can fake a gain."),
        Panel(title="Ended answers", metrics={"ended": "rollout/ended"}, hint="Share that stopped by themselves."),
        Panel(
            title="Score and length",
            metrics={"correlation": "rollout/score_length_correlation"},
            hint="Far from 0: paid by the word.",
        ),
        Panel(title="Repetition", metrics={"repeated": "rollout/repeated"}, hint="Runs of four words said before."),
        Panel(
            title="Prompts that teach nothing",
            metrics={"skipped": "rollout/skipped"},
            hint="All their answers are worth the same.",
        ),
        Panel(
            title="Explained variance",
            metrics={"explained variance": "value/explained_variance"},
            hint="Critic: 1 is perfect, 0 a constant.",
        ),
        Panel(
            title="Clipped tokens",
            metrics={"policy": "policy/clip_fraction", "value": "value/clip_fraction"},
            hint="Tokens held back by clipping.",
        ),
        Panel(title="Probability ratio", metrics={"ratio": "policy/ratio"}, hint="Mean must stay near 1."),
        Panel(
            title="Update size",
            metrics={"approx. KL": "policy/approx_kl"},
            unit="nats a token",
            hint="One update's step.",
        ),
        Panel(
            title="Policy loss",
            metrics={"policy loss": "policy/loss"},
            hint="Hovers about 0; not to be minimised by eye.",
        ),
        Panel(title="Value loss", metrics={"value loss": "value/loss"}, hint="Should fall as the critic learns."),
        Panel(
            title="Sampler and trainer",
            metrics={"mean": "rollout/logp_gap", "largest": "rollout/logp_gap_max"},
            unit="nats a token",
            hint="Difference of log-probabilities; near 0.",
        ),
        Panel(title="KL weight", metrics={"beta": "train/beta"}, hint="Moves when the KL is steered.", noisy=False),
        _GRADIENT,
    ),
}

OTHER_METRICS = 9
"""At most this many metrics are drawn of a stage type that has no panels of its own."""


def stage_charts(record: StageRecord) -> list[Drawn]:
    """Draw a stage's panels; metrics that it did not log are left out. Stage types unknown here show what they
    logged."""
    drawn = []
    for place, panel in enumerate(PANELS.get(record.stage) or _found(record)):
        series = _series(record, panel)
        budget = kl_budget(record.config) if "rollout/kl" in panel.metrics.values() else None
        svg = curves(
            series,
            name=f"{_slug(record.name)}-{place}",
            what=panel.title,
            unit=panel.unit,
            mark=budget if budget and _near(series, budget) else None,
            mark_name="budget",
        )
        if svg:
            drawn.append(Drawn(title=panel.title, unit=panel.unit, hint=panel.hint, svg=svg))
    return drawn


def _series(record: StageRecord, panel: Panel) -> list[Series]:
    return [
        Series(
            name=label,
            steps=[row.get("step", float(i)) for i, row in enumerate(record.rows, start=1)],
            values=values,
            colour=1 + place,
            noisy=panel.noisy,
        )
        for place, (label, metric) in enumerate(panel.metrics.items())
        if (values := column(record.rows, metric)) and curve(record.rows, metric)
    ]


def _found(record: StageRecord) -> list[Panel]:
    """Return one plain panel for each metric of a stage, the first `OTHER_METRICS` by name."""
    names = sorted({name for row in record.rows for name in row if "/" in name and not name.endswith("/seconds")})
    return [Panel(title=name, metrics={name: name}) for name in names[:OTHER_METRICS]]


def _near(series: Sequence[Series], level: float) -> bool:
    """Tell whether a level may be drawn without flattening the curve: some value reaches a third of it."""
    return any(value > level / 3 for one in series for value in one.values)


def _slug(name: str) -> str:
    """Return a name as part of an id: letters and digits stay, the rest is spelt in hexadecimal."""
    return "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}" for c in name)
