"""Every rule in the folder obeys these laws; a new file is tested at once."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
import time
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.config import check_settings
from trimtab.records.types import Message
from trimtab.registry import RULES

# What a rule needs to be asked at all; a rule that is not here needs nothing but a number as truth.
OPTIONS: dict[str, dict[str, Any]] = {
    "regex": {"pattern": r"(?i)\byes\b"},
    "language": {"language": "en"},
    "json_schema": {"fits": {"type": ["object", "array"], "minProperties": 1}},
    "length": {"least": 5, "most": 20},
}
META = {"constraints": [{"kind": "no_comma"}], "tests": ["assert f() == 1"]}
RUNS_PROGRAMS = {"unit_tests"}  # a process for every answer: its own tests are hostile enough
SECONDS = 5.0  # of the processor, for 100,000 characters; what is quadratic takes minutes

every_rule = pytest.mark.parametrize("name", [name for name in RULES if name not in RUNS_PROGRAMS])

HOSTILE = (
    "", " ", "\n\n", "\x00", "\u200b", "🙂", "👩‍👩‍👧‍👦🏳️‍🌈", "שלום עולם 72", "مرحبا ٧٢",
    "\u202e27\u202c", "７２", "e\u0301" * 9, "\ud800",
    "<think>", "</think>", "<think></think><answer></answer>", "\\boxed{", "\\boxed{}", "\\boxed{}}", "####", "#### ",
    "1/0", "1e999999999", "1e-999999999", "NaN", "Infinity", "-", "9" * 5000, "\\frac{1}{0}", "9^{9^{9^9}}",
    "{}", "[]", "[" * 200, '{"a": NaN}', '{"a": 1, "a": 2}', "```json\n```", "1e999", "answer is", "答案是", "%", "½½",
)  # fmt: skip

LONG = {
    "words": "the happy cat but sat on the mat. ",
    "one word": "a",
    "blanks": " ",
    "lines": "\n",
    "blank lines": " \n",
    "emoji": "🙂🙃",
    "Chinese": "你好，世界。",
    "Hebrew": "שלום עולם ",
    "commas": "1,",
    "thousands": "111,",
    "digits": "7",
    "fractions": "1/",
    "mixed": "1 1/2 ",
    "signs": "-",
    "points": "1.",
    "hashes": "####",
    "hashes and blanks": "####  ",
    "cues": "the answer is ",
    "unfinished cues": "answer ",
    "boxes": "\\boxed{",
    "braces": "{",
    "backslashes": "\\",
    "brackets": "[",
    "quotes": '"',
    "fences": "```json\n",
    "tags": "<answer>",
    "thoughts": "<think></think>",
    "exclamation": "!",
    "stars": "**",
    "powers": "9^",
    "texts": "\\text{",
}


@cache
def checked(name: str) -> dict[str, Any]:
    return check_settings(RULES[name], OPTIONS.get(name, {}), "law")


def ask(name: str, text: str, truth: str = "72") -> float:
    entry = RULES[name]
    given = {
        "text": text,
        "prompt": (Message(role="user", content="How many are 70 and 2?"),),
        "truth": truth,
        "meta": META,
        "ended": True,
    }
    columns = {column: given[column] for column in entry.columns}
    return entry.function(**columns, **checked(name))


def bounds(name: str) -> tuple[float, float]:
    said = inspect.getdoc(RULES[name].function) or ""
    found = re.search(r"^Range: (-?\d+) to (-?\d+)[.;]", said, re.MULTILINE)
    assert found is not None, f"{name}: the docstring does not say 'Range: a to b.'"
    return float(found[1]), float(found[2])


def check(name: str, text: str) -> None:
    low, high = bounds(name)
    score = ask(name, text)
    assert type(score) is float
    assert math.isfinite(score)
    assert low <= score <= high
    assert ask(name, text) == score


def test_all_are_there() -> None:
    expected = (
        "exact_match number math regex json_schema length language repetition format sentiment bleu chrf rouge "
        "constraints unit_tests"
    )
    assert set(expected.split()) <= set(RULES)
    assert {*OPTIONS, *RUNS_PROGRAMS} <= set(RULES)


@pytest.mark.parametrize("name", list(RULES))
def test_it_asks_for_known_columns_and_at_most_six_options(name: str) -> None:
    entry = RULES[name]
    assert RULES.item(entry) == "text"
    assert len(entry.options) <= 6
    assert entry.summary.endswith((".", ":"))


@every_rule
def test_hostile_texts_get_a_finite_score_in_the_range(name: str) -> None:
    for text in HOSTILE:
        check(name, text)


@every_rule
@given(text=st.text(max_size=300) | st.from_regex(r"([\\{}#<>/,.\-=%$^ 0-9]|answer is|boxed\{){0,40}", fullmatch=True))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_gets_a_finite_score_in_the_range_twice_the_same(name: str, text: str) -> None:
    check(name, text)


@every_rule
def test_time_grows_no_faster_than_the_text(name: str) -> None:
    slow: dict[str, float] = {}
    low, high = bounds(name)
    ask(name, "warm")
    for kind, piece in LONG.items():
        text = (piece * (100_000 // len(piece) + 1))[:100_000]
        start = time.process_time()
        assert low <= ask(name, text) <= high
        took = time.process_time() - start
        if took > SECONDS:
            slow[kind] = took
    assert not slow


@pytest.mark.parametrize("name", ["exact_match", "number", "math", "bleu", "chrf", "rouge"])
def test_the_truth_itself_gets_the_most_and_no_truth_is_an_error(name: str) -> None:
    from trimtab.errors import RewardError

    for truth in ("72", "3/4", "2.5"):
        assert ask(name, truth, truth) == pytest.approx(bounds(name)[1])
        assert ask(name, "", truth) == bounds(name)[0]
    for empty in ("", " \n"):
        with pytest.raises(RewardError, match="needs a truth"):
            ask(name, "72", empty)


def test_no_rule_loads_torch() -> None:
    program = (
        "import sys; from trimtab.registry import RULES; from trimtab.rewards.rule_scorer import RuleScorer\n"
        "from trimtab.records.types import Answer, Group\n"
        "rules = {name: None for name in ('exact_match', 'number', 'math', 'length', 'repetition', 'format',"
        " 'sentiment', 'bleu', 'chrf', 'rouge')} | {'language': {'language': 'en'}, 'regex': {'pattern': 'a'}}\n"
        "group = Group(id='g', answers=(Answer(text='a \\\\boxed{\\\\sqrt{2}}'),), meta={'truth': '3'})\n"
        "RuleScorer.of(rules, 'here').score([group]); [RULES[name] for name in RULES]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
