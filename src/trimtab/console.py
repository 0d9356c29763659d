"""The terminal's view of a run: one bar a stage, with step, values and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0  # how often a log file hears of progress


class Live:
    """A reporter for people."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task: int | None = None
        self.stage, self.total, self.unit = "", 0, "step"
        self.began, self.said, self.first = 0.0, 0.0, 0

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Start a bar."""
        self.close()
        self.stage, self.total, self.unit, self.first = stage, total, unit, -1
        self.began = self.said = time.monotonic()
        if self.console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"), TextColumn("{task.fields[values]}"), TimeRemainingColumn(),
                TextColumn("left"), console=self.console,
            )  # fmt: skip
            self.progress.start()
            self.task = self.progress.add_task(stage, total=total, unit=unit, values="")

    def advance(self, done: int, values: Mapping[str, float | int]) -> None:
        """Move the bar."""
        if self.first < 0:
            self.first = done
        said = "  ".join(f"{name.split('/')[-1]} {value:.3g}" for name, value in values.items())
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done)  # type: ignore[arg-type]
            if said:
                self.progress.update(self.task, values=said)  # type: ignore[arg-type]
        elif time.monotonic() - self.said >= LINE_SECONDS or done == self.total:
            self.said = time.monotonic()
            gone = self.said - self.began
            left = f", {gone / (done - self.first) * (self.total - done):.0f} s left" if done > self.first else ""
            self.console.print(f"{self.stage}: {self.unit} {done} of {self.total}{left}  {said}", highlight=False)

    def note(self, text: str) -> None:
        """Say something, above the bar."""
        self.console.print(f"[dim]·[/] {text}", highlight=False)

    def close(self) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
