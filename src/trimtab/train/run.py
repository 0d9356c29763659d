"""What a stage is given besides its inputs: a folder to work in, a seed, and somebody to report to."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from trimtab.errors import InvariantError

Row = Mapping[str, float | int]


class Reporter(Protocol):
    """Shows a run while it goes; the terminal has one, tests and servers may have none."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """A stage (or a part of one) of ``total`` units starts."""
        ...

    def advance(self, done: int, values: Row) -> None:
        """``done`` units are through; the latest values."""
        ...

    def note(self, text: str) -> None:
        """Say something in words."""
        ...


class Silent:
    """A reporter that says nothing."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, done: int, values: Row) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


@dataclass(slots=True, kw_only=True)
class Run:
    """The surroundings of one stage."""

    name: str
    folder: Path
    seed: int = 0
    dtype: str = "auto"
    checkpoint_seconds: float = 60.0
    reporter: Reporter = field(default_factory=Silent)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something in words, now and in the manifest."""
        self.notes.append(text)
        self.reporter.note(text)

    @property
    def metrics_path(self) -> Path:
        """One JSON line a step."""
        return self.folder / "metrics.jsonl"

    def log(self, row: Row) -> None:
        """Append one line to metrics.jsonl. Not-finite numbers are written as null."""
        clean = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(clean) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop lines of steps that will be done again (and half a line that a kill left behind)."""
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text().splitlines(keepends=True):
            try:
                if line.endswith("\n") and json.loads(line)["step"] < step:
                    kept.append(line)
            except json.JSONDecodeError:
                break
        partial = self.metrics_path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(self.metrics_path)  # at once: a kill here loses no line


class Means:
    """Means over all items of a step, whatever micro-batches they came in."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add per-item tensors (every item counts once) or single numbers."""
        for name, value in values.items():
            x = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._sums[name] = self._sums.get(name, 0.0) + float(x.double().sum())
            self._counts[name] = self._counts.get(name, 0.0) + x.numel()

    def result(self) -> dict[str, float]:
        """The means; a metric without items is left out."""
        return {name: self._sums[name] / n for name, n in self._counts.items() if n}


def invariant(holds: bool, sentence: str) -> None:
    """Stop the run when a step-zero check fails: going on would train on wrong numbers."""
    if not holds:
        raise InvariantError(sentence)


def release_memory(*, collect: bool = False) -> None:
    """Give freed memory back to the system: batches of many shapes leave holes that the C allocator keeps.

    ``collect`` also frees what refers to itself (whole models): a tenth of a second, so not for every step.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def peak_rss_gb() -> float:
    """The process's peak resident memory so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
