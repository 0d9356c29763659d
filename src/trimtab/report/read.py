"""Read a run folder into frozen records; whatever a recipe does not have is empty, never an error.

runs/NAME/run.json, <stage>/manifest.json, <stage>/metrics.jsonl, <evaluate stage>/evaluation.json
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import DataError

Row = Mapping[str, float]
Json = Mapping[str, Any]
"""A JSON object as it was read; its fields are checked where they become a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage instance: what it was asked, what it measured, what it cost.

    ``metrics`` are the manifest's (the end of the stage), ``rows`` one mapping a step, step numbers rising.
    ``finished`` is false when there is no manifest yet.
    """

    name: str
    stage: str
    config: Json = field(default_factory=dict)
    key: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    metrics: Row = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: bool = False
    finished: bool = True
    seconds: float = nan
    peak_rss_gb: float = nan

    @property
    def init(self) -> str | None:
        """The stage or model that this one started from, when its config names one."""
        start = self.config.get("init")
        return start if isinstance(start, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share of ``n`` prompts or pairs with its 95 % interval."""

    mean: float
    lo: float
    hi: float
    n: int

    def flipped(self) -> Interval:
        """Return the share of the other side."""
        return Interval(mean=1 - self.mean, lo=1 - self.hi, hi=1 - self.lo, n=self.n)

    @property
    def verdict(self) -> int:
        """+1 when the whole interval lies above one half, -1 below, 0 when it includes one half."""
        return 1 if self.lo > 0.5 else -1 if self.hi < 0.5 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadToHead:
    """How often model ``a``'s answer is judged better than ``b``'s; ties count one half."""

    a: str
    b: str
    rate: Interval
    always_valid: Interval | None = None
    length_matched: Interval | None = None

    def flipped(self) -> HeadToHead:
        """Return the same comparison seen from b."""
        return HeadToHead(
            a=self.b,
            b=self.a,
            rate=self.rate.flipped(),
            always_valid=self.always_valid.flipped() if self.always_valid else None,
            length_matched=self.length_matched.flipped() if self.length_matched else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """One model's answer to one prompt of the evaluation, and the judge's score of it (NaN when there is none)."""

    text: str
    tokens: float = nan
    finish: str | None = None
    score: float = nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One prompt of the evaluation with the answers of all models."""

    id: str
    prompt: str
    answers: Mapping[str, ModelAnswer]
    topic: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Who judged, how good it is on pairs that people decided, and what it cannot see."""

    accuracy: Interval | None = None
    longer_wins: float = nan
    finished_wins: float = nan
    limits: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the evaluate stage left: answers, verdicts (judge's, reward model's, rules'), simple measures by model."""

    models: tuple[str, ...]
    prompts: tuple[PromptRow, ...] = ()
    judge: Judge = field(default_factory=Judge)
    head_to_head: tuple[HeadToHead, ...] = ()
    by_reward: tuple[HeadToHead, ...] = ()
    by_rules: tuple[HeadToHead, ...] = ()
    checks: Mapping[str, Row] = field(default_factory=dict)
    lengths: Mapping[str, Row] = field(default_factory=dict)
    ended: Row = field(default_factory=dict)
    reward_model: Row = field(default_factory=dict)
    rules: Row = field(default_factory=dict)

    def versus(
        self, a: str, b: str, *, by: Literal["head_to_head", "by_reward", "by_rules"] = "head_to_head"
    ) -> HeadToHead | None:
        """Return the comparison of a with b, turned round when it was stored as b with a."""
        matches: tuple[HeadToHead, ...] = getattr(self, by)
        for found in matches:
            if (found.a, found.b) == (a, b):
                return found
            if (found.a, found.b) == (b, a):
                return found.flipped()
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A whole run, stages in their order."""

    name: str
    recipe: Json = field(default_factory=dict)
    seed: int | None = None
    revision: str = ""
    started: str = ""
    hardware: Json = field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()
    evaluation: Evaluation | None = None

    def of_type(self, stage: str) -> tuple[StageRecord, ...]:
        """Return the stages of one type."""
        return tuple(record for record in self.stages if record.stage == stage)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Errors: `DataError` when there is no ``run.json``, or a file is not the JSON it should be.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise DataError(f"{folder}: no run.json, so this is not a run folder")
    run = _load(path)
    stages, evaluation = [], None
    for entry in _objects(run.get("stages")):
        place = _stage_folder(folder, entry)
        stages.append(_stage(place, entry))
        if (place / "evaluation.json").is_file():  # the last one, when there are several
            evaluation = _evaluation(_load(place / "evaluation.json"))
    return RunRecord(
        name=_text(run.get("name")) or folder.name,
        recipe=_object(run.get("recipe")),
        seed=run.get("seed") if isinstance(run.get("seed"), int) else None,
        revision=_text(run.get("revision")),
        started=_text(run.get("started")),
        hardware=_object(run.get("hardware")),
        stages=tuple(stages),
        evaluation=evaluation,
    )


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read ``metrics.jsonl``: one mapping a step, in order of steps; no file gives no rows.

    A step that was logged twice (a resumed run) keeps its last line. A torn last line (a killed run) is left out;
    any other broken line is a `DataError`. Null becomes NaN.
    """
    if not path.is_file():
        return ()
    rows: dict[float, Row] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a step is a JSON object, not {type(row).__name__}")
        values = _numbers(row)
        rows[values.get("step", float(number))] = values
    return tuple(rows[step] for step in sorted(rows))


def _stage_folder(run: Path, entry: Json) -> Path:
    """Return where a stage lies: the folder that run.json names, else the one of its name."""
    folder = _text(entry.get("folder"))
    named = run / folder
    return named if folder and named.is_dir() else run / _text(entry.get("name"))


def _stage(place: Path, entry: Json) -> StageRecord:
    manifest_path = place / "manifest.json"
    manifest = _load(manifest_path) if manifest_path.is_file() else {}
    name = _text(entry.get("name"))
    seconds = _number(entry.get("seconds"))
    return StageRecord(
        name=name,
        stage=_text(entry.get("stage")) or _text(manifest.get("stage")) or name,
        config=_object(manifest.get("config")),
        key=_text(manifest.get("key")),
        inputs={str(k): _text(v) for k, v in _object(manifest.get("inputs")).items()},
        metrics=_numbers(_object(manifest.get("metrics"))),
        rows=read_rows(place / "metrics.jsonl"),
        notes=tuple(_text(note) for note in _list(manifest.get("notes"))),
        skipped=bool(entry.get("skipped", False)),
        finished=manifest_path.is_file(),
        seconds=seconds if isfinite(seconds) else _number(manifest.get("seconds")),
        peak_rss_gb=_number(entry.get("peak_rss_gb")),
    )


def _evaluation(raw: Json) -> Evaluation:
    judge = _object(raw.get("judge"))
    scores = {str(model): [_number(s) for s in _list(of)] for model, of in _object(judge.get("scores")).items()}
    return Evaluation(
        models=tuple(_text(model) for model in _list(raw.get("models"))),
        prompts=tuple(_prompt(i, row, scores) for i, row in enumerate(_objects(raw.get("prompts")))),
        judge=Judge(
            accuracy=_interval(judge, "accuracy", "accuracy_lo", "accuracy_hi"),
            longer_wins=_number(judge.get("longer_wins")),
            finished_wins=_number(judge.get("finished_wins")),
            limits=_text(judge.get("limits")),
            name=_text(judge.get("name")),
        ),
        head_to_head=tuple(_head_to_head(row) for row in _objects(raw.get("head_to_head"))),
        by_reward=tuple(_head_to_head(row) for row in _objects(raw.get("by_reward"))),
        by_rules=tuple(_head_to_head(row) for row in _objects(raw.get("by_rules"))),
        checks={str(name): _numbers(_object(rates)) for name, rates in _object(raw.get("checks")).items()},
        lengths={str(model): _numbers(_object(of)) for model, of in _object(raw.get("lengths")).items()},
        ended=_numbers(_object(raw.get("ended"))),
        reward_model=_numbers(_object(raw.get("reward_model"))),
        rules=_numbers(_object(raw.get("rules"))),
    )


def _prompt(index: int, row: Json, scores: Mapping[str, Sequence[float]]) -> PromptRow:
    answers = {}
    for model, answer in _object(row.get("answers")).items():
        fields = _object(answer)
        of_model = scores.get(model, ())
        answers[str(model)] = ModelAnswer(
            text=_text(fields.get("text")),
            tokens=_number(fields.get("tokens")),
            finish=_text(fields.get("finish")) or None,
            score=of_model[index] if index < len(of_model) else nan,
        )
    return PromptRow(
        id=_text(row.get("id")) or str(index),
        prompt=_conversation(row.get("prompt")),
        answers=answers,
        topic=_text(row.get("topic")) or None,
    )


def _head_to_head(row: Json) -> HeadToHead:
    rate = _interval(row, "win_rate", "lo", "hi") or Interval(mean=nan, lo=0.0, hi=1.0, n=0)
    matched = row.get("length_matched")
    lo, hi = _number(row.get("always_valid_lo")), _number(row.get("always_valid_hi"))
    known = isfinite(lo) and isfinite(hi)
    return HeadToHead(
        a=_text(row.get("a")),
        b=_text(row.get("b")),
        rate=rate,
        always_valid=Interval(mean=rate.mean, lo=lo, hi=hi, n=rate.n) if known else None,
        length_matched=_interval(_object(matched), "win_rate", "lo", "hi"),
    )


def _interval(row: Json, mean: str, lo: str, hi: str) -> Interval | None:
    """Return the interval, or nothing when its mean is missing; missing bounds know nothing (0 to 1)."""
    value, low, high, n = (_number(row.get(key)) for key in (mean, lo, hi, "n"))
    if not isfinite(value):
        return None
    return Interval(
        mean=value,
        lo=low if isfinite(low) else 0.0,
        hi=high if isfinite(high) else 1.0,
        n=int(n) if isfinite(n) else 0,
    )


def _conversation(prompt: object) -> str:
    """Return a prompt as one text; several messages are shown with their roles."""
    if not isinstance(prompt, list):
        return _text(prompt)
    turns = [(_text(m.get("role")), _text(m.get("content"))) for m in _objects(prompt)]
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)


def _load(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else nan


def _numbers(row: Json) -> dict[str, float]:
    return {str(k): _number(v) for k, v in row.items() if v is None or isinstance(v, int | float)}


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _objects(value: object) -> Iterable[Json]:
    return [item for item in _list(value) if isinstance(item, dict)]
