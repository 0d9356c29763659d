from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import write_run

from trimtab.report.read import Evaluation, HeadToHead, Interval, Judge, RunRecord, StageRecord, read_run
from trimtab.report.reading import Reading
from trimtab.report.words import (
    Roles,
    always_valid_note,
    base_note,
    coin_note,
    health_sentences,
    judge_sentences,
    matched_note,
    opening,
    result_sentences,
    roles,
    story,
    training_sentences,
    verdict,
)


def match(
    mean: float, *, half: float = 0.06, matched: Interval | None = None, always: tuple[float, float] | None = None
) -> HeadToHead:
    return HeadToHead(
        a="policy",
        b="sft",
        rate=Interval(mean=mean, lo=mean - half, hi=mean + half, n=200),
        length_matched=matched,
        always_valid=Interval(mean=mean, lo=always[0], hi=always[1], n=200) if always else None,
    )


def run_of(models: tuple[str, ...], *stages: StageRecord, **recipe: object) -> RunRecord:
    return RunRecord(name="r", recipe=recipe, stages=stages, evaluation=Evaluation(models=models))


SFT = StageRecord(name="sft", stage="sft", config={"init": "base"})
PPO = StageRecord(name="policy", stage="policy", config={"init": "sft"})


def test_a_win_a_loss_and_no_decision() -> None:
    assert verdict(match(0.61)) == "The judge prefers policy to sft on 61% of 200 prompts (95% interval 55% to 67%)."
    assert verdict(match(0.39)) == "The judge prefers sft to policy on 61% of 200 prompts (95% interval 55% to 67%)."
    undecided = verdict(match(0.53))
    assert "no clear winner" in undecided
    assert "(47% to 59%) includes one half" in undecided


@pytest.mark.parametrize(
    ("matched", "says"),
    [
        (Interval(mean=0.6, lo=0.52, hi=0.68, n=150), "length alone does not explain it"),
        (Interval(mean=0.55, lo=0.45, hi=0.65, n=150), "which includes one half."),
        (Interval(mean=0.55, lo=0.3, hi=0.8, n=20), "few prompts to tell"),
        (Interval(mean=0.3, lo=0.2, hi=0.4, n=150), "length plays a part"),
    ],
)
def test_what_is_left_at_equal_length(matched: Interval, says: str) -> None:
    assert says in (matched_note(match(0.61, matched=matched)) or "")


def test_nothing_at_equal_length() -> None:
    assert matched_note(match(0.61)) is None


def test_a_win_that_early_stopping_would_not_survive() -> None:
    assert "includes one half" in (always_valid_note(match(0.58, always=(0.48, 0.66))) or "")
    assert always_valid_note(match(0.65, always=(0.52, 0.75))) is None
    assert always_valid_note(match(0.53, always=(0.4, 0.6))) is None, "the plain interval decides nothing either"


def test_beating_the_base_is_not_put_down_to_feedback() -> None:
    role = Roles(final="policy", start="sft", base="base", feedback=True)
    win = HeadToHead(a="policy", b="base", rate=Interval(mean=0.9, lo=0.85, hi=0.94, n=200))
    note = base_note(role, Evaluation(models=("base", "sft", "policy"), head_to_head=(win,)))
    assert note is not None
    assert "fine-tuning (sft)" in note
    assert "comparison with sft" in note
    lost = HeadToHead(a="policy", b="base", rate=win.rate.flipped())
    loss = Evaluation(models=("base", "policy"), head_to_head=(lost,))
    assert base_note(role, loss) is None
    assert base_note(Roles(final="sft", base="base"), Evaluation(models=(), head_to_head=(win,))) is None


def test_roles() -> None:
    assert roles(run_of(("base", "sft", "policy"), SFT, PPO)) == Roles(
        final="policy", start="sft", base="base", feedback=True
    )
    assert roles(run_of(("base", "sft"), SFT)) == Roles(final="sft", base="base")
    bare = StageRecord(name="policy", stage="policy")
    stages = {"policy": {"init": "sft"}}
    assert roles(run_of(("base", "sft", "policy"), SFT, bare, stages=stages)).start == "sft"
    assert roles(run_of(("base", "policy"), SFT, PPO)).rival == "base", "the start was not evaluated"
    assert roles(run_of(("a", "b"))) == Roles(final="b", base="a")
    assert roles(RunRecord(name="r")) == Roles()


def test_the_judge_is_said_to_be_one() -> None:
    accuracy = Interval(mean=0.8, lo=0.74, hi=0.85, n=200)
    said = judge_sentences(Judge(accuracy=accuracy, longer_wins=0.6, limits="It cannot check facts"))
    assert said[0] == (
        "The judge is a model, not people: on 200 held-out pairs with a known better answer it is right on 80% "
        "(95% interval 74% to 85%)."
    )
    assert said[-1] == "It cannot check facts."
    assert len(said) == 2
    weak = judge_sentences(Judge(accuracy=accuracy, longer_wins=0.22, name="encoder"))
    assert "The judge (encoder)" in weak[0]
    assert "nothing but length is right on 78%" in weak[1]
    assert "not tested" in judge_sentences(Judge())[0]


def test_a_judge_no_better_than_a_coin_is_said_first(tmp_path: Path) -> None:
    assert coin_note(Judge()) is None
    assert coin_note(Judge(accuracy=Interval(mean=0.6, lo=0.51, hi=0.7, n=90))) is None
    said = coin_note(Judge(accuracy=Interval(mean=0.47, lo=0.42, hi=0.52, n=433)))
    assert said is not None
    assert "right on 47% of 433 held-out pairs (95% interval 42% to 52%)" in said
    write_run(tmp_path)
    run = read_run(tmp_path)
    assert run.evaluation is not None
    trusted = result_sentences(run)
    coin = replace(run.evaluation, judge=Judge(accuracy=Interval(mean=0.5, lo=0.4, hi=0.6, n=9)))
    assert result_sentences(replace(run, evaluation=coin)) == [coin_note(coin.judge), *trusted]


def test_no_comparison_is_said() -> None:
    assert "does not show" in result_sentences(RunRecord(name="r"))[0]
    assert "was not compared with sft" in result_sentences(run_of(("base", "sft", "policy"), SFT, PPO))[0]


def test_without_a_judge_the_reward_model_speaks_and_is_not_trusted() -> None:
    run = run_of(("base", "sft", "policy"), SFT, PPO)
    assert run.evaluation is not None
    scored = replace(run, evaluation=replace(run.evaluation, by_reward=(match(0.61),)))
    (said,) = result_sentences(scored)
    assert said.startswith(
        "No judge compared the models. The reward model scores policy above sft on 61% of 200 prompts "
        "(95% interval 55% to 67%): "
    )
    assert "raised this very score" in said
    (open_one,) = result_sentences(replace(run, evaluation=replace(run.evaluation, by_reward=(match(0.5),))))
    assert "which decides nothing" in open_one
    both = replace(run.evaluation, by_reward=(match(0.61),), head_to_head=(match(0.39),))
    assert result_sentences(replace(run, evaluation=both))[0] == verdict(match(0.39)), "the judge goes first"


def test_health_in_words() -> None:
    def reading(name: str, level: str) -> Reading:
        return Reading(name=name, level=level, value="", sentence="")  # type: ignore[arg-type]

    readings = {"sft": [reading("Loss", "watch")], "policy": [reading("KL", "bad"), reading("Entropy", "bad")]}
    assert health_sentences(readings) == ["Bad in policy: kl, entropy.", "To watch in sft: loss."]
    assert health_sentences({"sft": [reading("Loss", "ok")]}) == ["All health readings are fine."]
    assert health_sentences({}) == []


def test_opening() -> None:
    assert opening(RunRecord(name="r")) == "Nothing has been run yet."
    done = RunRecord(name="r", recipe={"model": "m"}, stages=(SFT,))
    assert opening(done) == "This run took m through supervised fine-tuning (sft)."
    half = RunRecord(name="r", stages=(SFT, StageRecord(name="odd", stage="newcomer", finished=False)))
    assert opening(half) == (
        "This run went through supervised fine-tuning (sft) and newcomer (odd). Not finished yet: odd."
    )


def test_the_story_of_a_real_win_and_of_none(tmp_path: Path) -> None:
    won = read_run(write_run(tmp_path / "won", steps=12, gain=0.9))
    text = " ".join(story(won, {}))
    assert "The judge prefers policy to sft" in text
    assert "shows fine-tuning (sft) at work" in text
    lost = read_run(write_run(tmp_path / "even", steps=12, gain=0.0))
    text = " ".join(story(lost, {}))
    assert "no clear winner between policy and sft" in text
    assert "includes one half" in text


def test_training_in_words(tmp_path: Path) -> None:
    said = training_sentences(read_run(write_run(tmp_path, steps=40)))
    assert len(said) == 3
    assert said[0].startswith("In sft the loss went from 2.")
    assert said[1] == "The reward model (reward) orders 76% of held-out pairs rightly."
    assert "KL of" in said[2]


def test_what_the_rules_say_comes_first() -> None:
    run = run_of(("base", "sft", "policy"), SFT, PPO)
    assert run.evaluation is not None
    checked = replace(run.evaluation, by_rules=(match(0.8),), rules={"policy": 0.62, "sft": 0.25})
    (alone,) = result_sentences(replace(run, evaluation=checked))
    assert alone.startswith(
        "By the rules an answer of policy gets 0.62 on average, one of sft 0.25; policy gets more on 80% of 200 prompts"
    )
    judged = replace(checked, head_to_head=(match(0.39),))
    assert result_sentences(replace(run, evaluation=judged))[:2] == [alone, verdict(match(0.39))]
    even = replace(checked, by_rules=(match(0.5),))
    assert "which decides nothing" in result_sentences(replace(run, evaluation=even))[0]
