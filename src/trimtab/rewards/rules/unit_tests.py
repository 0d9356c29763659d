"""Code that passes its unit tests."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from trimtab.errors import RewardError
from trimtab.rewards.sandbox import Limits, run_tests

OPENING = re.compile(r"^[ \t]*```(?:python3?|py)[ \t]*$", re.MULTILINE | re.IGNORECASE)
CLOSING = re.compile(r"^[ \t]*```", re.MULTILINE)


def unit_tests(
    text: str,
    meta: Mapping[str, Any],
    *,
    score: Literal["all", "share"] = "all",
    seconds: float = 10.0,
    memory_mib: int = 256,
    weaker_isolation: bool = False,
) -> float:
    """1 for code that passes all of ``meta['tests']``, else 0; or, by ``score: share``, the share that it passes.

    The code is the answer's last Python fence, or the whole answer. The tests are assert statements, with
    ``meta['setup']`` before each where there is one; MBPP's ``test_list`` and ``test_imports`` do as well. ``seconds``
    are of the processor's time, for all tests of an answer together: one that hangs takes those after it with it. By
    the clock there are four times as many. See ``rewards.sandbox`` for what locks the code in and what does not.

    Range: 0 to 1. Raises RewardError for tests that are missing or cannot be run, and where code cannot be locked in.
    """
    tests, setup = meta.get("tests", meta.get("test_list")), meta.get("setup", "\n".join(meta.get("test_imports", ())))
    if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
        raise RewardError("unit_tests: meta.tests must be a list of assert statements, with at least one in it")
    if not isinstance(setup := setup or "", str):
        raise RewardError("unit_tests: meta.setup must be Python code")
    outcome = run_tests(
        code_in(text),
        tests,
        setup=setup,
        limits=Limits(seconds=seconds, memory_mib=memory_mib),
        stop_early=score == "all",
        weaker=weaker_isolation,
    )
    return float(all(outcome.passed)) if score == "all" else sum(outcome.passed) / len(tests)


def code_in(text: str) -> str:
    """Return what is in the last Python fence, to its end or the text's; without a fence, the whole text."""
    openings = list(OPENING.finditer(text))
    if not openings:
        return text
    start = openings[-1].end() + 1
    closing = CLOSING.search(text, start)
    return textwrap.dedent(text[start : closing.start() if closing else len(text)])
