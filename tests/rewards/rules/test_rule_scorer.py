from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.errors import ConfigError, RewardError
from trimtab.records.types import Answer, Group, Message
from trimtab.registry import RULES
from trimtab.rewards.rule_scorer import RuleScorer

if TYPE_CHECKING:
    from trimtab.rewards.scorer import Scorer


def group(*texts: str, id: str = "g7", **meta: Any) -> Group:
    answers = tuple(Answer(text=text) for text in texts)
    return Group(id=id, prompt=(Message(role="user", content="?"),), answers=answers, meta=meta)


@pytest.fixture
def own_rule(tmp_path: Path) -> Iterator[Any]:
    """Write a rule named ``own`` with a body, and use it."""

    def write(body: str, columns: str = "text") -> None:
        (tmp_path / "own.py").write_text(f'def own({columns}):\n    """Own."""\n    {body}\n')
        RULES.add(tmp_path)

    yield write
    RULES.clear_added()


def test_the_score_is_the_weighted_sum_of_the_parts() -> None:
    rules = {"number": {"weight": 2}, "length": {"most": 2, "weight": 0.2}, "short": {"rule": "length", "most": 1}}
    scorer = RuleScorer.of(rules, "stages.policy.rules")
    groups = [group("72", "is it 72", truth="72"), group(id="none", truth="5"), group("no", truth=5)]
    assert scorer.parts(groups) == {
        "number": [[1.0, 1.0], [], [0.0]],
        "length": [[1.0, 0.5], [], [1.0]],
        "short": [[1.0, 0.0], [], [1.0]],
    }
    assert scorer.weights == {"number": 2.0, "length": 0.2, "short": 1.0}
    assert scorer.score(groups) == [[3.2, pytest.approx(2.1)], [], [1.2]]
    assert scorer.weigh(scorer.parts(groups)) == scorer.score(groups)
    assert scorer.score([]) == []


@pytest.mark.parametrize("truth", ["72", 72, 72.0, ["5", "72"], [5, 72], ("72",)])
def test_a_truth_is_text_a_number_or_several(truth: Any) -> None:
    scorer = RuleScorer.of({"number": None}, "w")
    assert scorer.score([group("72", "73", truth=truth)]) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"final": None}, "meta['final'] must be text, a number"),
        ({}, "it needs the right answer in meta['truth'], and there is none"),
        ({"truth": None}, "must be text, a number or a list of these, not None"),
        ({"truth": True}, "not True"),
        ({"truth": [{"a": 1}]}, "not {'a': 1}"),
        ({"truth": []}, "meta['truth'] is an empty list"),
        ({"truth": "Paris"}, "needs a number as truth, not 'Paris'; the answer: 'maybe 72'"),
        ({"truth": float("nan")}, "needs a number as truth, not 'nan'"),
    ],
)
def test_a_truth_that_cannot_be_used_names_rule_and_group(meta: dict[str, Any], reason: str) -> None:
    with pytest.raises(RewardError) as error:
        RuleScorer.of({"sum": {"rule": "number"}}, "w").score([group("maybe 72", **meta)])
    assert str(error.value).startswith("rule 'sum', group 'g7': ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return float('nan')", "it gave nan, which is not a finite number"),
        ("return float('inf')", "it gave inf, which is not a finite number"),
        ("return None", "it gave None, which is not a finite number"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return {}['key']", "KeyError: 'key'"),
    ],
)
def test_a_rule_that_fails_names_itself_the_group_and_the_answer(own_rule: Any, body: str, reason: str) -> None:
    own_rule(body)
    scorer = RuleScorer.of({"own": None}, "w")
    for score in (scorer.score, scorer.parts):
        with pytest.raises(RewardError) as error:
            score([group("an answer")])
        assert str(error.value) == f"rule 'own', group 'g7': {reason}; the answer: 'an answer'"


def test_a_rule_is_handed_the_columns_that_it_asks_for(own_rule: Any) -> None:
    own_rule(
        "return len(prompt) + 10 * ended + 100 * meta['more'] + 1000 * (truth == '5')",
        "prompt, ended, meta, truth, text",
    )
    cut = Group(id="c", answers=(Answer(text="a", finish="length"), Answer(text="a")), meta={"more": 2, "truth": 5})
    assert RuleScorer.of({"own": None}, "w").score([cut]) == [[1200.0, 1210.0]]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, "w: no rule is named"),
        ({"numbr": {}}, "w.numbr: no rule 'numbr'; did you mean 'number'?"),
        ({"a": {"rule": "numbr"}}, "w.a: no rule 'numbr'; did you mean 'number'?"),
        ({"number": {"tolerence": 1}}, "w.number: no option 'tolerence'; did you mean 'tolerance'?"),
        ({"number": {"tolerance": -1}}, "w.number.tolerance=-1: "),
        ({"number": {"weight": "much"}}, "w.number: weight='much': "),
        ({"number": {"weight": float("nan")}}, "w.number: weight=nan: "),
        ({"number": {"weight": True}}, "w.number: weight=true: "),
        ({"number": 1.0}, "w.number=1.0: a rule has options"),
        ({"regex": {}}, "w.regex: option 'pattern' is missing"),
        ({"length": {"unit": "tokens"}}, "w.length.unit='tokens': "),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(rules: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        RuleScorer.of(rules, "w")
    assert str(error.value).startswith(said)


def test_options_that_contradict_each_other_are_the_recipes_fault() -> None:
    with pytest.raises(ConfigError, match="below least"):
        RuleScorer.of({"length": {"least": 5, "most": 2}}, "w").score([group("a")])


def test_it_has_the_shape_of_a_scorer() -> None:
    rules = RuleScorer.of({"number": None}, "w")
    scorer: Scorer = rules
    assert scorer.trunks == ()
    assert not scorer.reads(None)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="text and not tokens"):
        scorer.score_batch(None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        rules.rules = {}  # type: ignore[misc]
