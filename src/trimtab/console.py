"""What people see in a terminal: progress, errors as one sentence, and text that cannot pass for commands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperGroup

from trimtab.data.inspect import visible
from trimtab.errors import TrimtabError, UserError, Waiting

LINE_SECONDS = 15.0  # how often a log file hears of progress

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def words(text: str, style: str = "") -> Text:
    """Return foreign text (a model's, a file's, a path) for printing: no markup, no control characters but line end."""
    return Text(visible(text, keep="\n\t"), style=style)


class Live:
    """A reporter for people: one bar a stage where there is a terminal, else a plain line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.stage, self.total, self.unit = "", 0, "step"
        self.began, self.said, self.first = 0.0, 0.0, -1

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
        """Move the bar; values that are not given stay as they were."""
        if self.first < 0:
            self.first = done  # a run that goes on did not do these steps in the time that is counted
        said = "  ".join(f"{name.split('/')[-1]} {value:.3g}" for name, value in values.items())
        if self.progress is not None:
            self.progress.update(self.task, completed=done)
            if said:
                self.progress.update(self.task, values=said)
        elif time.monotonic() - self.said >= LINE_SECONDS or done == self.total:
            self.said = time.monotonic()
            pace = (self.said - self.began) / (done - self.first) if done > self.first else 0.0
            left = f", {pace * (self.total - done):.0f} s left" if pace and done < self.total else ""
            line = f"{self.stage}: {self.unit} {done} of {self.total}{left}  {said}"
            self.console.print(words(line.rstrip()))

    def note(self, text: str) -> None:
        """Say something, above the bar."""
        self.console.print(Text("· ", style="dim") + words(text))

    def close(self) -> None:
        """Take the bar down."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class Polite(TyperGroup):
    """Turns what may go wrong into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Waiting as error:
            out.print(Text("waiting: ", style="yellow") + words(str(error)))
            raise typer.Exit(error.exit_code) from None
        except TrimtabError as error:
            code = getattr(error, "exit_code", 3)
            said = "error: " if isinstance(error, UserError) else "stopped: "
            err.print(Text(said, style="red") + words(str(error)))
            raise typer.Exit(code) from None
        except PermissionError as error:
            err.print(Text("error: ", style="red") + words(f"{error.filename}: {error.strerror}"))
            raise typer.Exit(UserError.exit_code) from None
        except KeyboardInterrupt:
            err.print("stopped; the same command goes on where it was", highlight=False)
            raise typer.Exit(130) from None


def warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,
) -> None:  # fmt: skip
    """Show a Python warning as one line, without the place in our code that raised it."""
    err.print(Text("warning: ", style="yellow") + words(str(message)))
