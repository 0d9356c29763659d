from __future__ import annotations

import json
from math import exp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import check_settings
from trimtab.errors import ConfigError, RewardError
from trimtab.registry import RULES
from trimtab.rewards.rules import regex as regex_file
from trimtab.rewards.rules._text import sentences, words
from trimtab.rewards.rules.bleu import bleu
from trimtab.rewards.rules.chrf import chrf
from trimtab.rewards.rules.exact_match import exact_match
from trimtab.rewards.rules.format import format
from trimtab.rewards.rules.json_schema import json_schema
from trimtab.rewards.rules.language import language
from trimtab.rewards.rules.length import length
from trimtab.rewards.rules.regex import regex
from trimtab.rewards.rules.repetition import repetition
from trimtab.rewards.rules.rouge import rouge
from trimtab.rewards.rules.sentiment import sentiment


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        ("Paris", "Paris", 1),
        ("  paris.\n", "Paris", 1),
        ("**Paris**!", "paris", 1),
        ("<think>Rome</think><answer>Paris</answer>", "Paris", 1),
        ("New\nYork", "new york", 1),
        ("Straße", "STRASSE", 1),
        ("e\u0301te\u0301", "\u00e9t\u00e9", 1),
        ("「巴黎」。", "巴黎", 1),
        ("The answer is Paris", "Paris", 0),
        ("Paris, Rome, London", "Paris", 0),
        ("Paris Paris", "Paris", 0),
        ("the Paris", "Paris", 0),
        ("", "Paris", 0),
        ("-5", "5", 0),
        ("35", "3.5", 0),
        ("C", "C#", 0),
        ("C++", "C", 0),
        ("5", "5%", 0),
    ],
)
def test_exact_match_by_hand(text: str, truth: str, score: int) -> None:
    assert exact_match(text, truth) == score


def test_exact_match_ignores_what_it_is_told_to() -> None:
    assert exact_match("paris", "Paris", ignore=()) == 0.0
    assert exact_match("Paris.", "Paris", ignore=("case",)) == 0.0
    assert exact_match(" Paris", "Paris", ignore=("case", "punctuation")) == 0.0
    assert exact_match("the Paris", "Paris", ignore=("articles", "spaces")) == 1.0
    with pytest.raises(RewardError):
        exact_match("", "?!")  # nothing would be left to compare, and an empty answer would be right


def test_regex_by_hand() -> None:
    assert regex("No. Yes!", pattern=r"(?i)\byes\b") == 1.0
    assert regex("No. Yes!", pattern=r"\A(?i:yes)\Z") == 0.0
    assert regex("a, b", pattern=",", should="not_match") == 0.0
    assert regex("", pattern=",", should="not_match") == 1.0


def test_a_pattern_that_cannot_be_read_or_takes_forever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"here\.pattern='\(': .*not a regular expression"):
        check_settings(RULES["regex"], {"pattern": "("}, "here")
    monkeypatch.setattr(regex_file, "SECONDS", 0.2)
    with pytest.raises(RewardError, match=r"takes more than 0\.2 seconds"):
        regex("a" * 40 + "!", pattern=r"(?:a|aa|aaa)+\Z")


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Rose", "age": 7}', 1),
        (' {"name": "Rose"}\n', 1),
        ('```json\n{"name": "Rose"}\n```', 1),
        ('<think>{}</think>{"name": "Rose"}', 1),
        ('{"name": "Rose", "age": "seven"}', 0),
        ('{"name": "Rose", "name": "Ann"}', 0),
        ('{"name": "Rose", "more": 1}', 0),
        ('Here it is: {"name": "Rose"}', 0),
        ('{"name": "Rose"} {"name": "Ann"}', 0),
        ('```\n{"name": "Rose"}\n```\n```\n{"name": "Ann"}\n```', 0),
        ('{"name": NaN}', 0),
        ("{}", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_schema_by_hand(text: str, score: int) -> None:
    assert json_schema(text, {}, fits=PERSON) == score
    assert json_schema(text, {"schema": PERSON}, fits={"type": "null"}) == score


def test_a_schema_that_is_missing_or_cannot_be_used_is_an_error() -> None:
    with pytest.raises(RewardError, match="needs a schema"):
        json_schema("{}", {})
    with pytest.raises(RewardError, match="needs a schema"):
        json_schema("{}", {"schema": "object"})
    with pytest.raises(RewardError, match=r"meta\['schema'\] is not a JSON schema: 'objekt'"):
        json_schema("{}", {"schema": {"type": "objekt"}})
    with pytest.raises(RewardError, match=r"refers to 'https://example\.org/person\.json', which is not in it"):
        json_schema("{}", {}, fits={"$ref": "https://example.org/person.json"})
    with pytest.raises(ConfigError, match=r"here\.fits=.*not a JSON schema"):
        check_settings(RULES["json_schema"], {"fits": {"type": "objekt"}}, "here")


def test_nesting_too_deep_for_a_schema_that_refers_to_itself_does_not_fit() -> None:
    nested: dict[str, Any] = {"properties": {"a": {"$ref": "#"}}, "type": "object"}
    assert json_schema('{"a": {"a": {}}}', {}, fits=nested) == 1.0
    assert json_schema('{"a":' * 400 + "{}" + "}" * 400, {}, fits=nested) in (0.0, 1.0)
    assert json_schema('{"a":' * 20_000 + "{}" + "}" * 20_000, {}, fits=nested) == 0.0


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_any_object_fits_a_schema_that_asks_for_one(value: dict[str, Any]) -> None:
    assert json_schema(json.dumps(value), {}, fits={"type": "object"}) == 1.0


@pytest.mark.parametrize(
    ("num_words", "score"),
    [(0, 0.0), (4, 0.4), (9, 0.9), (10, 1.0), (20, 1.0), (25, 0.75), (30, 0.5), (40, 0), (99, 0)],
)
def test_length_falls_to_nothing_and_to_twice_the_most(num_words: int, score: float) -> None:
    assert length("word " * num_words, least=10, most=20) == pytest.approx(score)


def test_length_with_a_fall_of_its_own_a_step_and_units() -> None:
    assert length("word " * 22, most=20, fall=4) == 0.5
    assert length("word " * 25, most=20, fall=4) == 0.0
    assert length("word " * 8, least=10, fall=4) == 0.5
    assert length("word " * 21, most=20, fall=0) == 0.0
    assert length("word " * 20, most=20, fall=0) == 1.0
    assert length("word", most=0) == 0.0
    assert length("word " * 9999) == 1.0
    assert length(" abc d\n", least=5, most=5, fall=0, unit="characters") == 1.0
    assert length("One. Two! 三。四？ ...", least=4, most=4, fall=0, unit="sentences") == 1.0
    assert length("你好世界 ok", least=5, most=5, fall=0) == 1.0
    assert length("... --- !!!", least=1, fall=0) == 0.0
    with pytest.raises(ConfigError, match="most=5 is below least=10"):
        length("", least=10, most=5)


def test_repetition_by_hand() -> None:
    # ab ba ab ba: two of four were there before
    assert repetition("a b, A b. a", n=2) == -0.5
    assert repetition("no no no no no no") == pytest.approx(-3 / 4)
    assert repetition("你好你好你好") == pytest.approx(-2 / 4)
    assert repetition("one two") == 0.0
    assert repetition("") == 0.0
    assert repetition("hahahahahahaha") == 0.0  # as its docstring says


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("\n<think>\na\n</think>\n\n<answer>b</answer>\n", 1),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b", 0),
        ("<think></think><answer>b</answer>", 0),
        ("<think>a</think><answer> \n</answer>", 0),
        ("a</think><answer>b</answer>", 0),
        ("<THINK>a</THINK><answer>b</answer>", 0),
        ("Sure! <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> 72", 0),
        ("", 0),
    ],
)
def test_format_by_hand(text: str, score: int) -> None:
    assert format(text) == score


def test_format_with_its_options() -> None:
    assert format("a</think><answer>b</answer>", opened=True) == 1.0
    assert format("<think>a</think><answer>b</answer>", opened=True) == 0.0
    assert format("Hm. <plan>a</plan> So: <go>b</go> Done.", sections=("plan", "go"), outside=True) == 1.0
    assert format("<go>b</go><plan>a</plan>", sections=("plan", "go"), outside=True) == 0.0
    with pytest.raises(ConfigError, match=r"here\.sections\.0='a>b'"):
        check_settings(RULES["format"], {"sections": ["a>b"]}, "here")
    with pytest.raises(ConfigError, match=r"here\.sections="):
        check_settings(RULES["format"], {"sections": []}, "here")


def test_sentiment_by_hand() -> None:
    # the example of VADER's own page
    assert sentiment("VADER is smart, handsome, and funny.") == pytest.approx(0.8316)
    assert sentiment("VADER is smart, handsome, and funny. The book is on the table.") == pytest.approx(0.4158)
    assert sentiment("This is a terrible, awful film.") < -0.7
    assert sentiment("") == 0.0
    assert sentiment("love " * 1000) > 0.99  # as its docstring says


CAT = "the cat sat on the mat"


def test_bleu_by_hand() -> None:
    assert bleu(CAT, CAT) == 1.0
    # all precisions 1, brevity exp(1 - 6 / 4)
    assert bleu("the cat sat on", CAT) == pytest.approx(exp(-0.5))
    # clipped: 2 of 6; then 0 of 5, 4 and 3, smoothed to 1/2, 1/4 and 1/8 of a match
    assert bleu("the the the the the the", CAT) == pytest.approx((2 / 6 * 1 / 10 * 1 / 16 * 1 / 24) ** 0.25)
    assert bleu("", CAT) == 0.0
    assert bleu("The Cat Sat On The Mat", CAT) < 0.5
    assert bleu("The Cat Sat On The Mat", CAT, lowercase=True) == 1.0
    assert bleu("猫坐在垫子上", "猫坐在垫子", tokenize="zh") > 0.5
    assert bleu("猫坐在垫子上", "猫坐在垫子") < bleu("猫坐在垫子上", "猫坐在垫子", tokenize="char")


def test_chrf_by_hand() -> None:
    # ab in abc: precision 1 and 1, recall 2/3 and 1/2; F2 of 1 and 7/12 is 7/11
    assert chrf("ab", "abc") == pytest.approx(7 / 11)
    assert chrf(CAT, CAT) == 1.0
    assert chrf("", CAT) == 0.0
    # recall counts more, as its docstring says
    assert chrf(f"{CAT} and then some", CAT) > chrf("the cat sat", CAT)


def test_rouge_by_hand() -> None:
    # shared: the, cat / the-cat / the ... cat; words 3 and 5
    text, truth = "The cat sat.", "the cat ate the mouse"
    assert rouge(text, truth, variant="1") == pytest.approx(2 * 2 / 8)
    assert rouge(text, truth, variant="2") == pytest.approx(2 * 1 / 6)
    assert rouge(text, truth) == pytest.approx(2 * 2 / 8)
    assert rouge("mouse ate cat", truth) == pytest.approx(2 * 1 / 8)
    assert rouge("mouse ate cat", truth, variant="1") == pytest.approx(2 * 3 / 8)
    assert rouge("the " * 100, truth, variant="1") == pytest.approx(2 * 2 / 105)
    assert rouge("巴黎很美", "巴黎美", variant="1") == pytest.approx(2 * 3 / 7)
    assert rouge("", truth) == 0.0
    with pytest.raises(RewardError, match="no n-gram"):
        rouge(text, "cat", variant="2")


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


@settings(deadline=None)
@given(WORDS, WORDS.filter(lambda words: len(words) > 1))
def test_rouge_is_that_of_rouge_score(mine: list[str], theirs: list[str]) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    text, truth = " ".join(mine), " ".join(theirs)
    found = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(truth, text)
    for variant in ("1", "2", "L"):
        assert rouge(text, truth, variant=variant) == pytest.approx(found[f"rouge{variant}"].fmeasure)


GERMAN = "Das Haus ist sehr alt. Mein Vater hat es selbst gebaut, als er jung war. Wir wohnen gern hier."
ENGLISH = "The house is very old. My father built it himself when he was young. We like living here a lot."


@pytest.mark.parametrize(
    ("text", "code", "low", "high"),
    [
        (ENGLISH, "en", 0.95, 1.0),
        (ENGLISH, "de", 0.0, 0.05),
        (GERMAN, "de", 0.95, 1.0),
        (GERMAN, "en", 0.0, 0.05),
        ("巴黎是法国的首都，也是法国最大的城市。", "zh", 0.95, 1.0),
        ("巴黎是法国的首都，也是法国最大的城市。", "ja", 0.0, 0.05),
        (f"{ENGLISH} {GERMAN}", "en", 0.3, 0.7),
        (f"{ENGLISH} {GERMAN}", "de", 0.3, 0.7),
        (f"<think>{GERMAN}</think>{ENGLISH}", "en", 0.95, 1.0),
        ("Hallo", "de", 0.4, 0.6),
        ("Hello", "de", 0.4, 0.6),
        ("42", "en", 0.5, 0.5),
        ("", "en", 0.5, 0.5),
        ("🙂", "en", 0.5, 0.5),
    ],
)
def test_language_by_hand(text: str, code: str, low: float, high: float) -> None:
    assert low <= language(text, language=code) <= high


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ConfigError, match=r"here\.language='eng': .*no language 'eng'; did you mean 'en'\?"):
        check_settings(RULES["language"], {"language": "eng"}, "here")


def test_words_and_sentences_of_scripts_without_spaces() -> None:
    assert words("It's 你好 ok") == ["it's", "你", "好", "ok"]
    assert sentences("你好。再见！ ... \n\nDone") == ["你好.", "再见!", "Done"]
