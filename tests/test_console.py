"""What reaches the terminal: the bar, the plain lines, and text that is only ever text."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trimtab.console import LINE_SECONDS, Live, words
from trimtab.data.inspect import visible

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
NASTY = "[bold red]x[/] [/INST] :smile: \x1b[31mred\x1b]0;title\x07 \r\x08 a\u202eb\nline \ud800"


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, record=True, color_system="truecolor")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_with_stage_step_values_and_time_left() -> None:
    console = terminal()
    live = Live(console)
    live.begin("sft", 40, "step")
    live.advance(0, {})
    live.advance(10, {"train/loss": 2.34567, "train/accuracy": 0.5})
    assert live.progress is not None
    (task,) = live.progress.tasks
    assert (task.description, task.completed, task.total) == ("sft", 10, 40)
    live.advance(11, {})  # values stay until there are new ones
    live.note("3 of 40 rows are [too] long")
    live.progress.refresh()
    live.close()
    assert live.progress is None
    text = ESCAPES.sub("", written(console))
    assert re.search(r"sft .*11/40 step loss 2\.35  accuracy 0\.5 \S+ left", text)
    assert "· 3 of 40 rows are [too] long" in text


def test_the_cursor_comes_back_when_the_bar_is_taken_down_and_closing_twice_is_no_harm() -> None:
    console = terminal()
    live = Live(console)
    live.begin("one", 1, "step")
    live.begin("two", 1, "step")  # takes the first one down
    live.close()
    live.close()
    text = written(console)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(
        [0.0, 1.0, LINE_SECONDS, LINE_SECONDS, 2 * LINE_SECONDS - 1, 2 * LINE_SECONDS + 1, 2 * LINE_SECONDS + 1]
    )
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=120)
    live = Live(console)
    live.begin("policy", 7, "step")  # 0 s
    live.advance(2, {})  # 1 s: a run that goes on after step 2
    live.advance(5, {"reward/mean": 0.125})  # 15 s: three steps, two are left
    live.advance(6, {"reward/mean": 0.25})  # 29 s: too soon
    live.advance(7, {"reward/mean": 0.5})  # the last step is always said
    live.note("done [well]")
    live.close()
    assert written(console).splitlines() == [
        "policy: step 5 of 7, 10 s left  mean 0.125",
        "policy: step 7 of 7  mean 0.5",
        "· done [well]",
    ]


def test_foreign_text_is_neither_markup_nor_escape_codes() -> None:
    console = terminal()
    console.print(words(NASTY))
    shown = written(console)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert (
        shown.rstrip("\n") == r"[bold red]x[/] [/INST] :smile: \x1b[31mred\x1b]0;title\x07 \r\x08 a\u202eb"
        "\n"
        r"line \ud800"
    )


@given(st.text(st.characters(), max_size=50))
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = visible(text, keep="\n")
    assert all(c == "\n" or ord(c) >= 32 for c in shown)
    shown.encode()
    assert visible(shown, keep="\n") == shown


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["C"]), max_size=50))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text
