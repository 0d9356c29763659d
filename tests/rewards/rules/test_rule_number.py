from __future__ import annotations

import gzip
import json
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import RewardError
from trimtab.rewards.rules._number import numbers, plain, whole
from trimtab.rewards.rules.math import math
from trimtab.rewards.rules.number import number


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("-3,600.5", ["-7201/2"]),
        ("it is .5 or 0.25", ["1/2", "1/4"]),
        ("3/4", ["3/4"]),
        ("1 1/2", ["3/2"]),
        ("½ and 2½", ["1/2", "5/2"]),
        (r"-\dfrac{1}{2}", ["-1/2"]),
        (r"1\frac{1}{2}", ["3/2"]),
        ("2.20906e+07", ["22090600"]),
        ("2.2 × 10^7", ["22000000"]),
        (r"2.2 \times 10^{-1}", ["11/50"]),
        ("$3,600 and -$5 and $-5", ["3600", "-5", "-5"]),
        (r"\$3{,}600", ["3600"]),
        ("３，６００元", ["3600"]),
        ("共２８个，３个", ["28", "3"]),
        ("٣٤", ["34"]),
        ("−7", ["-7"]),
        ("12-5", ["12", "5"]),
        ("3 million", ["3000000"]),
        ("3.6万元", ["36000"]),
        ("wait...42", ["42"]),
        ("5kg, 3rd, (8)", ["5", "3", "8"]),
        ("7.", ["7"]),
        # no numerals
        ("10:30", []),
        ("1,2 and 3,5 and 1,2345", []),
        ("3/4/2026", []),
        ("1.2.3", []),
        ("10^2 or 10²", []),
        ("x5 m2 x_1", []),
        ("12/0", []),
        ("1e999999999", []),
        ("9" * 2000, []),
        ("twelve 十二", []),
    ],
)
def test_numbers_in_text(text: str, values: list[str]) -> None:
    assert [found.value for found in numbers(plain(text))] == [Fraction(value) for value in values]


@given(st.fractions(-(10**6), 10**6, max_denominator=10**6))
def test_a_fraction_is_read_as_it_is_written(value: Fraction) -> None:
    sign = "-" if value < 0 else ""
    written = f"{sign}{abs(value.numerator)}/{value.denominator}"
    assert [found.value for found in numbers(written)] == [value]
    assert number(rf"so \boxed{{{written}}}", written) == 1.0
    assert number(written, str(value + 1)) == 0.0


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_thousands_and_decimals_are_read_as_python_writes_them(value: int, places: int) -> None:
    shifted = Fraction(value, 10**places)
    text = f"{value // 10**places if value >= 0 else -(-value // 10**places):,}"
    if value < 0 and text == "0":
        text = "-0"
    if places:
        text += f".{abs(value) % 10**places:0{places}d}"
    assert [found.value for found in numbers(text)] == [shifted]


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        # what is marked
        ("3 + 4\n#### 72", "72", 1),
        ("#### Step 3: add 4\n#### 72 apples, or 5", "72", 1),
        ("The answer is 3,600.", "3600", 1),
        ("The answer is $72$.", "72", 1),
        ("**Final Answer:**\n\n**42** of 50", "42", 1),
        ("The answer is 12 - 5 = 7.", "7", 1),
        ("The answer is 5. Check: 5 * 3 = 15", "5", 1),
        ("The answer to how many apples 3 kids have is 12", "12", 1),
        ("答案是２８，因为有3个", "28", 1),
        ("答：28个", "28", 1),
        (r"\boxed{5 \text{ apples}}", "5", 1),
        (r"\boxed{10 \text{ cm}^2}", "10", 1),
        (r"\boxed{90^\circ}", "90", 1),
        (r"\boxed{x = 5}", "5", 1),
        (r"\[ \boxed{\dfrac{1}{2}} \]", "0.5", 1),
        ("She has 72 apples", "72", 1),
        ("answer: five. So 3 + 2 = 5", "5", 1),
        # where the answer is
        ("<think>The answer is 5</think><answer>6</answer>", "6", 1),
        ("<think>The answer is 5</think><answer>6</answer>", "5", 0),
        ("<think>The answer is 5", "5", 0),
        (r"\boxed{1} no, \boxed{72}", "72", 1),
        # several answers, the truth in a list
        (r"\boxed{5, 6}", "5", 0),
        (r"\boxed{5 or 6}", "6", 0),
        ("the answer is 1, 2, 3, 4, 72", "72", 0),
        (" ".join(map(str, range(100))), "72", 0),
        ("72 apples out of 80", "72", 0),
        # no plain number
        (r"\boxed{\sqrt{3}}", "3", 0),
        (r"\boxed{2\sqrt{3}}", "3", 0),
        (r"\boxed{10 \text{ cm}^2}", "2", 0),
        ("", "0", 0),
        ("none", "0", 0),
        # equality
        ("50%", "0.5", 1),
        ("50%", "50", 1),
        ("50", "50%", 1),
        ("0.5", "50%", 1),
        ("0.5%", "50%", 0),
        ("22090600", "2.20906e+07", 1),
        ("2/3", "6/9", 1),
        ("0.333333", "1/3", 0),
        ("-5", "5", 0),
        ("0.30000000000000004", "0.3", 1),
        ("1000000000001", "1000000000000", 1),  # the relative tolerance, 1e-12
        ("100000001", "100000000", 0),
    ],
)
def test_the_number_that_counts(text: str, truth: str, score: int) -> None:
    assert number(text, truth) == score


def test_a_tolerance_is_relative_and_reaches_its_bound() -> None:
    assert number("101", "100", tolerance=0.01) == 1.0
    assert number("102", "100", tolerance=0.01) == 0.0
    assert number("0.333333", "1/3", tolerance=1e-5) == 1.0
    assert number("0.001", "0", tolerance=0.5) == 0.0


def test_only_a_marked_number_may_be_asked_for() -> None:
    assert number("She has 72", "72", only_marked=True) == 0.0
    assert number("The answer is 72", "72", only_marked=True) == 1.0


def test_a_whole_solution_may_be_the_truth() -> None:
    assert number("72", "48/2 = 24\n48+24 = 72\n#### 72") == 1.0


@pytest.mark.parametrize("truth", ["Paris", "5 or 6", "x = y", r"\sqrt{2}", "10:30"])
def test_a_truth_that_is_no_number_is_an_error(truth: str) -> None:
    with pytest.raises(RewardError, match="needs a number as truth"):
        number("5", truth)


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\sqrt{3}/2", 1),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        (r"\boxed{x^2y^2}", "(xy)^2", 1),
        (r"The answer is $3\pi$.", r"3\pi", 1),
        (r"\boxed{6, 5}", "5, 6", 1),
        (r"\boxed{5, 6}", "5", 0),
        (r"\boxed{1} \boxed{2}", "1", 0),
        (r"\boxed{3,600}", "3600", 1),
        (r"\boxed{2^{10}}", "1024", 1),
        (r"\boxed{9^{9^{9}}}", "3", 0),
        (r"\boxed{9^{ {9 ^9} }}", "3", 0),
        (r"\boxed{10000!}", "3", 0),
        (r"\boxed{-\infty}", r"\infty", 0),
        ("", "x", 0),
        ("x" * 1000, "x", 0),
    ],
)
def test_math_by_hand(text: str, truth: str, score: int) -> None:
    assert math(text, truth) == score


def test_math_works_in_another_thread_and_refuses_what_it_cannot_read() -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(math(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")))
    thread.start()
    thread.join()
    assert found == [1.0]
    with pytest.raises(RewardError, match="cannot read the truth"):
        math("x", "🙂")


def rows(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_gsm8k_solutions_give_their_final_number(shared_data: Path) -> None:
    found = rows(shared_data / "gsm8k" / "train.jsonl.gz")[::10]
    assert len(found) > 700
    wrong = [row["id"] for row in found if not number(row["solution"], row["final"], only_marked=True)]
    assert not wrong
    # without the mark the last number is the answer in 97 of 100: "8 for 3 gallons of milk and 5 boxes"
    last = [number(row["solution"].partition("####")[0], row["final"]) for row in found]
    assert 0.95 < sum(last) / len(last) < 1


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        "答案是{}。",
        "The answer is ${}.",
        r"\boxed{{{}}}",
        "#### {}",
        "3+4 = {}",
        "**Answer:** {} apples",
        "共{}个",
    ],
)
def test_small_problems_accept_their_truth_however_it_is_said(shared_data: Path, said: str) -> None:
    found = [
        row for name in ("cmath_zh", "svamp") for row in rows(shared_data / "math_small" / f"{name}_train.jsonl.gz")
    ]
    assert [row["id"] for row in found if not number(said.format(row["final"]), row["final"])] == []
    assert not any(number(said.format(f"1{row['final']}"), row["final"]) for row in found)


def test_whole_wants_one_number_and_words_only() -> None:
    assert whole("5 apples") is not None
    assert whole("5 + 6") is None
    assert whole("5^2") is None
