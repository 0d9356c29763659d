"""``summary.json``: a run's numbers in one flat object, and the few sentences for the terminal.

Keys (`KEYS` has the patterns; NAME is a stage instance, A and B models; a number that is not known is null):

    run/*         name, seed, revision, started, seconds (all stages), peak_rss_gb (largest stage), finished
    said/N        the terminal's sentences, in order
    stage/NAME/*  type, seconds, peak_rss_gb, skipped, finished
    curve/NAME/METRIC/start|end    means of the first and last fifth of a metric's steps
    metric/NAME/METRIC             the manifest's own metrics
    health/NAME/READING            ok, watch or bad;  health/worst over all
    role/final|start|base          which evaluated model is which
    win/A/B/*     rate, lo, hi, n; always_valid_lo, always_valid_hi; matched_rate, matched_lo, matched_hi, matched_n
    judge/*       accuracy, lo, hi, n, longer_wins, finished_wins
    answers/A/*   mean_tokens, median_tokens, p90_tokens, ended, reward, rules;  check/CHECK
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import fsum, isfinite
from pathlib import Path

from trimtab.report.health import stage_health
from trimtab.report.read import Evaluation, Interval, RunRecord, read_run
from trimtab.report.reading import Reading, curve, worst
from trimtab.report.words import health_sentences, init_of, judge_sentences, result_sentences, roles, training_sentences

Value = str | int | float | bool | None
Summary = dict[str, Value]

KEYS: Mapping[str, str] = {
    r"run/(name|seed|revision|started|seconds|peak_rss_gb|finished)": "the run",
    r"said/\d+": "a sentence of the short summary",
    r"stage/.+/(type|seconds|peak_rss_gb|skipped|finished)": "one stage",
    r"curve/.+/.+/(start|end)": "mean of the first or last fifth of a metric's steps",
    r"metric/.+/.+": "a metric of a stage's manifest",
    r"health/worst": "the worst reading of the run",
    r"health/.+/.+": "one health reading: ok, watch or bad",
    r"role/(final|start|base)": "the name of an evaluated model",
    r"win/.+/.+/(rate|lo|hi|n|always_valid_(lo|hi)|matched_(rate|lo|hi|n))": "how often the first beats the second",
    r"judge/(accuracy|lo|hi|n|longer_wins|finished_wins)": "the judge on pairs with a known better answer",
    r"answers/.+/(mean_tokens|median_tokens|p90_tokens|ended|reward|rules|check/.+)": "a model's answers",
}


def run_health(run: RunRecord) -> dict[str, list[Reading]]:
    """Return the readings of every stage that has any, by the stage's name."""
    found = {}
    for record in run.stages:
        start = init_of(run, record)
        match = run.evaluation.versus(record.name, start) if run.evaluation and start else None
        readings = stage_health(
            record,
            versus_start=match.rate if match else None,
            matched=match.length_matched if match else None,
        )
        if readings:
            found[record.name] = readings
    return found


def summarise(run_dir: Path) -> Summary:
    """Return the summary of a run folder; see the module for its keys.

    Errors: `DataError` when it is not a run folder, or a file in it is broken.
    """
    run = read_run(run_dir)
    return summary_of(run, run_health(run))


def summary_of(run: RunRecord, health: Mapping[str, Sequence[Reading]]) -> Summary:
    """Return the summary of a run that was read, with its readings."""
    seconds = [record.seconds for record in run.stages if isfinite(record.seconds)]
    peaks = [record.peak_rss_gb for record in run.stages if isfinite(record.peak_rss_gb)]
    summary: Summary = {
        "run/name": run.name,
        "run/seed": run.seed,
        "run/revision": run.revision,
        "run/started": run.started,
        "run/seconds": fsum(seconds),
        "run/peak_rss_gb": max(peaks, default=None),
        "run/finished": all(record.finished for record in run.stages),
    }
    summary |= {f"said/{i}": sentence for i, sentence in enumerate(_said(run, health), start=1)}
    for record in run.stages:
        at = f"stage/{record.name}"
        summary[f"{at}/type"] = record.stage
        summary[f"{at}/seconds"] = record.seconds
        summary[f"{at}/peak_rss_gb"] = record.peak_rss_gb
        summary[f"{at}/skipped"] = record.skipped
        summary[f"{at}/finished"] = record.finished
        for metric in sorted({name for row in record.rows for name in row if name != "step"}):
            course = curve(record.rows, metric)
            summary[f"curve/{record.name}/{metric}/start"] = course.start if course else None
            summary[f"curve/{record.name}/{metric}/end"] = course.end if course else None
        summary |= {f"metric/{record.name}/{metric}": value for metric, value in record.metrics.items()}
    for name, readings in health.items():
        summary |= {f"health/{name}/{reading.name}": reading.level for reading in readings}
    summary["health/worst"] = worst(reading for readings in health.values() for reading in readings)
    if run.evaluation:
        role = roles(run)
        summary |= {"role/final": role.final, "role/start": role.start, "role/base": role.base}
        summary |= _evaluation(run.evaluation)
    return {key: _plain(value) for key, value in summary.items()}


def sentences(summary: Mapping[str, Value]) -> list[str]:
    """Return the short summary for the terminal: what was decided, by whom, what to look at."""
    found: list[str] = []
    while (sentence := summary.get(f"said/{len(found) + 1}")) is not None:
        found.append(str(sentence))
    return found


def write_report(run_dir: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` into the run folder and return the page's path.

    Each is written under a temporary name and renamed, so that a reader sees the old file or the new one, never half.
    """
    from trimtab.report.page import render  # the page needs matplotlib and jinja2; a summary does not

    run = read_run(run_dir)
    health = run_health(run)
    summary = summary_of(run, health)
    _publish(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    page = run_dir / "report.html"
    _publish(page, render(run, health))
    return page


def _said(run: RunRecord, health: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Choose the sentences of the short summary; the page has them all."""
    judge = judge_sentences(run.evaluation.judge)[:1] if run.evaluation and run.evaluation.head_to_head else []
    return [*result_sentences(run), *judge, *training_sentences(run), *health_sentences(health)]


def _evaluation(evaluation: Evaluation) -> Summary:
    found: Summary = {}
    for match in evaluation.head_to_head:
        at = f"win/{match.a}/{match.b}"
        found |= {f"{at}/{key}": value for key, value in _bounds(match.rate, "rate").items()}
        if match.always_valid:
            found |= {f"{at}/always_valid_lo": match.always_valid.lo, f"{at}/always_valid_hi": match.always_valid.hi}
        if match.length_matched:
            found |= {f"{at}/matched_{key}": value for key, value in _bounds(match.length_matched, "rate").items()}
    judge = evaluation.judge
    if judge.accuracy:
        found |= {f"judge/{key}": value for key, value in _bounds(judge.accuracy, "accuracy").items()}
    found |= {"judge/longer_wins": judge.longer_wins, "judge/finished_wins": judge.finished_wins}
    for model in evaluation.models:
        at = f"answers/{model}"
        for key, value in evaluation.lengths.get(model, {}).items():
            if key in ("mean", "median", "p90"):
                found[f"{at}/{key}_tokens"] = value
        found[f"{at}/ended"] = evaluation.ended.get(model)
        found[f"{at}/reward"] = evaluation.reward_model.get(model)
        found[f"{at}/rules"] = evaluation.rules.get(model)
        found |= {f"{at}/check/{check}": rates.get(model) for check, rates in evaluation.checks.items()}
    return found


def _bounds(interval: Interval, mean: str) -> dict[str, float]:
    return {mean: interval.mean, "lo": interval.lo, "hi": interval.hi, "n": interval.n}


def _plain(value: Value) -> Value:
    """Return what JSON can hold: a number that is not finite becomes null."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _publish(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it into place; lone surrogates become question marks."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(text.encode("utf-8", errors="replace"))
    temporary.replace(path)
