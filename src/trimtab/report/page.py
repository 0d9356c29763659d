"""The report's page: one HTML file that needs nothing else, made from a run's records.

Model output is text and nothing more: jinja2 escapes every value, the only markup that passes is our own charts, and
the page's content policy allows no script, no frame and no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import isfinite, nan

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from trimtab.report.charts import histograms, win_rates
from trimtab.report.panels import Drawn, stage_charts
from trimtab.report.read import Evaluation, HeadToHead, ModelAnswer, PromptRow, RunRecord, StageRecord
from trimtab.report.reading import Reading, curve, percent, short, worst
from trimtab.report.words import SCORERS, Roles, init_of, roles, story
from trimtab.stats.winrate import LENGTH_FRACTION, outcome

SHOWN = 10
"""Prompts shown at once, at a fixed stride: nobody picks the good ones."""

FOLDED = 40
"""Further prompts in a folded part; beyond these the page would be heavy, and says how many are left."""

LONG_ANSWER = 900
"""Characters after which the rest of a text is folded."""

MODEL_COLOURS = 5
"""Colours in the page's palette; model k has colour k."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large number on top of the page."""

    label: str
    number: str
    note: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """One comparison of the verdict table, with its counts where the judge's scores are known."""

    match: HeadToHead
    counts: str
    tone: str
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One stage's part of the page."""

    record: StageRecord
    charts: Sequence[Drawn]
    readings: Sequence[Reading]


def render(run: RunRecord, health: Mapping[str, Sequence[Reading]]) -> str:
    """Return the page of a run with the readings of its stages. The same run gives the same page, byte for byte."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _or_dash(percent),
        "tenths": _or_dash(tenths),
        "short": _or_dash(short),
        "duration": _or_dash(duration),
        "gigabytes": _or_dash(lambda value: f"{value:.1f} GB"),
        "svg": Markup,
    }
    evaluation = run.evaluation
    models = evaluation.models if evaluation else ()
    colours = {model: place % MODEL_COLOURS for place, model in enumerate(models)}
    role = roles(run)
    prompts = evaluation.prompts if evaluation else ()
    first, more = samples(prompts)
    template = environment.from_string(_template())
    page: str = template.render(
        run=run,
        role=role,
        evaluation=evaluation,
        colours=colours,
        tiles=tiles(run, role, health),
        story=story(run, health),
        verdicts=verdict_rows(evaluation),
        win_chart=win_rates(evaluation.head_to_head, name="win", colours=colours) if evaluation else "",
        length_chart=length_chart(evaluation, colours),
        first=first,
        more=more,
        left=len(prompts) - len(first) - len(more),
        long=LONG_ANSWER,
        best=best_answers,
        fraction=LENGTH_FRACTION,
        cards=[
            Card(record=record, charts=stage_charts(record), readings=_worst_first(health.get(record.name, ())))
            for record in run.stages
            if record.rows or health.get(record.name)
        ],
        rewards=[
            record
            for record in run.stages
            if record.stage in SCORERS and isfinite(record.metrics.get("heldout/accuracy", nan))
        ],
        nan=nan,
        flaws=flaw_shares,
        level_words={"ok": "fine", "watch": "watch", "bad": "bad"},
        worst=worst(reading for readings in health.values() for reading in readings),
        recipe=yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True) if run.recipe else "",
    )
    return page.lstrip()


def samples(prompts: Sequence[PromptRow]) -> tuple[list[tuple[int, PromptRow]], list[tuple[int, PromptRow]]]:
    """Choose the prompts to show and those to fold, each with its number (from 1).

    `SHOWN` prompts at a fixed stride, the largest prime up to N / `SHOWN`: a list that goes round its topics is then
    not met at the same topic each time. Then the first `FOLDED` of the others.
    """
    n = len(prompts)
    stride = _prime_up_to(n // SHOWN)
    shown = range(0, n, stride)[:SHOWN]
    others = [i for i in range(n) if i not in shown][:FOLDED]
    return [(i + 1, prompts[i]) for i in shown], [(i + 1, prompts[i]) for i in others]


def tiles(run: RunRecord, role: Roles, health: Mapping[str, Sequence[Reading]]) -> list[Tile]:
    """Return the large numbers on top: the verdict that counts, its length-matched twin, the judge, KL, health."""
    found = []
    match = run.evaluation.versus(role.final, role.rival) if run.evaluation and role.final and role.rival else None
    if match:
        for label, interval in (
            (f"{match.a} over {match.b}", match.rate),
            ("where equally long", match.length_matched),
        ):
            if interval:
                note = f"{percent(interval.lo)} to {percent(interval.hi)}, {interval.n} prompts"
                tone = {1: "good", 0: "open", -1: "poor"}[interval.verdict]
                found.append(Tile(label=label, number=percent(interval.mean), note=note, tone=tone))
    if run.evaluation and run.evaluation.judge.accuracy:
        accuracy = run.evaluation.judge.accuracy
        note = f"{percent(accuracy.lo)} to {percent(accuracy.hi)}, {accuracy.n} pairs"
        found.append(Tile(label="judge is right on", number=percent(accuracy.mean), note=note))
    for record in run.of_type("policy")[-1:]:
        score, kl = curve(record.rows, "rollout/score"), curve(record.rows, "rollout/kl")
        if score:
            note = f"to {short(score.end)}" + (f", at {short(kl.end)} nats of KL" if kl else "")
            found.append(Tile(label=f"reward in {record.name}", number=f"{score.end - score.start:+.2f}",
                              note=f"from {short(score.start)} {note}"))  # fmt: skip
    if not found:
        found += _loss_tiles(run)
    readings = [reading for of_stage in health.values() for reading in of_stage]
    if readings:
        fine = sum(reading.level == "ok" for reading in readings)
        tone = {"ok": "good", "watch": "open", "bad": "poor"}[worst(readings)]
        note = "see Health for the others" if fine < len(readings) else "nothing to look at"
        found.append(Tile(label="health readings fine", number=f"{fine} of {len(readings)}", note=note, tone=tone))
    return found


def verdict_rows(evaluation: Evaluation | None) -> list[VerdictRow]:
    """Return the verdict table's rows; wins, ties and losses are counted from the judge's scores where all are
    known."""
    rows = []
    for match in evaluation.head_to_head if evaluation else ():
        tone, word = {
            1: ("good", f"{match.a} is better"),
            0: ("open", "not decided"),
            -1: ("poor", f"{match.b} is better"),
        }[match.rate.verdict]
        counts = _counts(evaluation, match) if evaluation else ""
        rows.append(VerdictRow(match=match, counts=counts, tone=tone, word=word))
    return rows


def length_chart(evaluation: Evaluation | None, colours: Mapping[str, int]) -> str:
    """Draw the lengths of all answers, one histogram a model; nothing when no lengths are known."""
    if evaluation is None:
        return ""
    lengths = {
        model: [row.answers[model].tokens for row in evaluation.prompts if model in row.answers]
        for model in evaluation.models
    }
    return histograms(lengths, name="lengths", what="Length of the answers", unit="tokens", colours=colours)


def best_answers(row: PromptRow) -> frozenset[str]:
    """Return the models whose answer has the judge's highest score on this prompt; none when they all tie."""
    scores = {model: answer.score for model, answer in row.answers.items() if isfinite(answer.score)}
    if len(set(scores.values())) < 2:
        return frozenset()
    top = max(scores.values())
    return frozenset(model for model, score in scores.items() if score == top)


def flaw_shares(record: StageRecord) -> list[tuple[str, float]]:
    """Return a reward model's accuracy by planted flaw, the least seen first."""
    prefix = "heldout/accuracy/"
    shares = [(k.removeprefix(prefix), v) for k, v in record.metrics.items() if k.startswith(prefix) and isfinite(v)]
    return sorted(shares, key=lambda flaw: flaw[1])


def visible(text: str) -> str:
    """Return a text that is safe to put in a file and honest to look at.

    Control characters and lone surrogates, which HTML does not allow, and the marks that turn the direction of
    writing, with which a text can look like another, become U+FFFD; new lines and tabs stay.
    """
    return "".join("\ufffd" if _hidden(ord(c)) else c for c in text.replace("\r\n", "\n").replace("\r", "\n"))


def duration(seconds: float) -> str:
    """Return a time in words: ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def tenths(value: float) -> str:
    """Return a share as percent with one decimal."""
    return f"{100 * value:.1f}%"


def _or_dash(write: Callable[[float], str]) -> Callable[[float], str]:
    """Return a table's way to write a number: a dash when it is not known."""
    return lambda value: write(value) if isfinite(value) else "–"


def _shown(value: object) -> object:
    """Pass every string of the template through `visible`; our own markup is left as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hidden(code: int) -> bool:
    control = (code < 0x20 and code not in (0x09, 0x0A)) or 0x7F <= code < 0xA0
    turning = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return control or turning or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE


def _prime_up_to(limit: int) -> int:
    """Return the largest prime up to ``limit``, or 1 when there is none."""
    return next((p for p in range(limit, 1, -1) if all(p % q for q in range(2, p))), 1)


def _counts(evaluation: Evaluation, match: HeadToHead) -> str:
    """Return "wins / ties / losses" over the prompts where both answers have a score, or nothing."""
    pairs = [(_answer(row, match.a), _answer(row, match.b)) for row in evaluation.prompts]
    scores = [(a.score, b.score) for a, b in pairs if a and b and isfinite(a.score) and isfinite(b.score)]
    if len(scores) != match.rate.n or not scores:
        return ""
    won = [outcome(a, b) for a, b in scores]
    return f"{won.count(1.0)} / {won.count(0.5)} / {won.count(0.0)}"


def _answer(row: PromptRow, model: str) -> ModelAnswer | None:
    return row.answers.get(model)


def _worst_first(readings: Sequence[Reading]) -> list[Reading]:
    return sorted(readings, key=lambda reading: ("bad", "watch", "ok").index(reading.level))


def _loss_tiles(run: RunRecord) -> list[Tile]:
    """Return a tile a training stage when nothing was compared: where its loss went."""
    found = []
    for record in run.stages:
        loss = curve(record.rows, "train/loss")
        if loss:
            start = init_of(run, record)
            note = f"from {short(loss.start)}" + (f", starting at {start}" if start else "")
            found.append(Tile(label=f"loss of {record.name}", number=short(loss.end), note=note))
    return found


def _template() -> str:
    return resources.files("trimtab.report").joinpath("template.html").read_text(encoding="utf-8")
