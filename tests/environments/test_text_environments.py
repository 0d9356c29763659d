"""Text tasks: Gymnasium's checker, the rules of a turn, and every ready task with answers that are right and wrong."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st

from trimtab.environments import TASKS
from trimtab.environments.tasks._fixtures import fixture, word_overlap
from trimtab.environments.tasks.arithmetic import arithmetic, last_number, make_sum, right, sums
from trimtab.environments.tasks.classification import labelled
from trimtab.environments.tasks.dialogue import asks, dialogue, mentions, simulated_user
from trimtab.environments.tasks.entities import named
from trimtab.environments.tasks.sentiment import sentiment
from trimtab.environments.text import (
    Conversation,
    Conversations,
    Dialogue,
    OneTurn,
    Reward,
    TextEnvironment,
    Texts,
    by_scorer,
    play,
)
from trimtab.errors import ConfigError, DataError, RewardError
from trimtab.records.codec import decode_group, encode_group
from trimtab.records.types import Answer, Group, Message, Score
from trimtab.rewards.rule_scorer import RuleScorer

DATA = ("sentiment", "classification", "entities", "translation", "summarisation", "dialogue")
WITH_TRUTH = ("classification", "entities", "translation", "summarisation")


def length(group: Group, text: str) -> float:
    return float(len(text))


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def always(number: float) -> Reward:
    return lambda asked, text: number


def group(name: str = "g", **meta: Any) -> Group:
    return Group(id=name, prompt=ask(f"Hello {name}"), meta=meta)


def make(name: str, **options: Any) -> TextEnvironment:
    env = TASKS[name].function(*([length] if name == "sentiment" else []), **options)
    assert isinstance(env, TextEnvironment)
    return env


# --- one turn ---------------------------------------------------------------------------------------------------------


def test_the_folder_lists_the_tasks() -> None:
    assert set(TASKS) == {*DATA, "arithmetic"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_gymnasium_accepts_every_task(name: str) -> None:
    def build(**options: Any) -> TextEnvironment:
        return make(name, **options)

    check_env(EnvSpec(id="Task-v0", entry_point=build).make(disable_env_checker=True).unwrapped)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_seed_decides_on_the_prompts(name: str) -> None:
    def prompts(seed: int) -> list[Conversation]:
        env = make(name)
        return [env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(5))]

    assert prompts(3) == prompts(3)
    assert prompts(3) != prompts(4)


def test_one_turn() -> None:
    env = OneTurn([group("a")], lambda asked, text: float(text == asked.id), render_mode="ansi")
    seen, info = env.reset(seed=0)
    assert seen == ask("Hello a")
    assert info == {"group": group("a"), "turn": 0}
    seen, reward, terminated, truncated, info = env.step("a")
    assert seen == (*ask("Hello a"), Message(role="assistant", content="a"))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"group": group("a").with_answers((Answer(text="a"),)), "turn": 1}
    assert env.render() == "user: Hello a\nassistant: a"
    with pytest.raises(ResetNeeded):
        env.step("again")
    env.reset()
    assert env.step("b")[1] == 0.0


def test_what_is_no_answer_is_refused() -> None:
    env = OneTurn([group()], length)
    with pytest.raises(ResetNeeded):
        env.step("too early")
    env.reset()
    for action in (None, 3, b"bytes", "x" * 100_001):
        with pytest.raises(InvalidAction):
            env.step(action)  # type: ignore[arg-type]
    assert env.step("")[1] == 0.0  # silence is an answer


def test_a_failing_reward_stops_and_names_the_group() -> None:
    def broken(asked: Group, text: str) -> float:
        return 1 / len(text)

    env = OneTurn([group("number 7")], broken)
    env.reset()
    with pytest.raises(RewardError, match=r"group 'number 7': .*ZeroDivisionError") as caught:
        env.step("")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    for number in (np.nan, np.inf):
        env = OneTurn([group("number 7")], always(number))
        env.reset()
        with pytest.raises(RewardError, match="group 'number 7': the reward of the answer is"):
            env.step("x")


def test_a_group_can_be_chosen() -> None:
    env = OneTurn([group("a"), group("b")], length)
    assert [env.reset(options={"index": i})[1]["group"].id for i in (1, 0, 1)] == ["b", "a", "b"]
    for wrong in ({"index": 2}, {"index": -1}, {"index": "a"}, {"indx": 0}):
        with pytest.raises(ConfigError, match=r"inde?x"):
            env.reset(options=wrong)
    with pytest.raises(ConfigError, match="made up"):
        arithmetic().reset(options={"index": 0})


def test_a_group_can_be_handed_in() -> None:
    for env in (arithmetic(), OneTurn([group("a")], length)):
        mine = group("b", truth="7")
        for seed in (0, None):
            assert env.reset(seed=seed, options={"group": mine}) == (mine.prompt, {"group": mine, "turn": 0})
        assert env.step("7")[4]["group"] == mine.with_answers((Answer(text="7"),))
        for wrong in ({"group": "b"}, {"group": None}, {"group": group(), "index": 0}):
            with pytest.raises(ConfigError, match="starts from one Group"):
                env.reset(options=wrong)


def test_what_episodes_start_from() -> None:
    assert OneTurn([group("a"), group("b")], length).starts(range(9)) == (group("a"), group("b"))
    made = arithmetic(difficulty=3).starts([5, 6, 5])
    assert made[0] == made[2] != made[1]
    assert made[0] == make_sum(np.random.default_rng(5), difficulty=3)
    assert arithmetic(difficulty=3).reset(seed=5)[1]["group"] == made[0]  # as Gymnasium would have it


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="at least one Group"):
        OneTurn([], length)
    with pytest.raises(ConfigError, match="'human'"):
        OneTurn([group()], length, render_mode="human")
    with pytest.raises(TypeError, match="answered"):
        TextEnvironment([group()])  # type: ignore[abstract]
    with pytest.raises(ConfigError, match="max_turns"):
        dialogue(max_turns=0)
    with pytest.raises(ConfigError, match="difficulty"):
        arithmetic(difficulty=4)


def test_a_scorer_is_a_reward() -> None:
    class Longer:
        def score(self, groups: Sequence[Group]) -> list[list[float]]:
            return [[float(len(answer.text) - len(one.prompt[0].content)) for answer in one.answers] for one in groups]

    env = OneTurn([group("a")], by_scorer(Longer()))
    env.reset()
    assert env.step("Hello you")[1] == 2.0


def test_the_rules_read_the_tasks_truths() -> None:
    for rule, one in (
        ("exact_match", fixture("classification")[0]),
        ("number", sums(1)[0]),
        ("chrf", fixture("translation")[0]),
        ("rouge", fixture("summarisation")[0]),
    ):
        reward = by_scorer(RuleScorer.of({rule: None}, "rules"))
        assert reward(one, one.meta["truth"]) == pytest.approx(1.0)
        assert reward(one, "no") < 0.5


def test_gymnasium_steps_several_at_once() -> None:
    envs = SyncVectorEnv([lambda: OneTurn([group("a")], length)] * 2)
    seen, _ = envs.reset(seed=0)
    assert seen == (ask("Hello a"), ask("Hello a"))
    _, rewards, over, _, _ = envs.step(("xx", "yyy"))
    assert rewards.tolist() == [2.0, 3.0]
    assert over.all()
    envs.close()


# --- spaces -----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=8))
def test_a_text_of_any_characters_is_an_action(text: str) -> None:
    assert Texts(8).contains(text)
    assert Texts(3).contains(text) is (len(text) <= 3)
    assert Conversations().contains(ask(text))
    assert not Texts(8).contains([text])
    assert not Conversations().contains(text)


def test_samples_come_from_the_seed_and_lie_in_the_space() -> None:
    for space in (Texts(5), Conversations()):
        space.seed(1)
        first = [space.sample() for _ in range(20)]
        space.seed(1)
        assert first == [space.sample() for _ in range(20)]
        assert len(set(first)) > 10
        assert all(space.contains(one) for one in first)
    with pytest.raises(ConfigError):
        Texts().sample(mask=1)


def test_conversations_go_through_json() -> None:
    space = Conversations(seed=0)
    some = [space.sample(), (*ask("a"), Message(role="assistant", content="b"))]
    assert space.to_jsonable(some)[1] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert space.from_jsonable(space.to_jsonable(some)) == some
    assert (space, Texts(3)) == (Conversations(), Texts(3))
    assert Texts(3) != Texts(4)


# --- several turns ----------------------------------------------------------------------------------------------------


def counting(asked: Group) -> Any:
    """A user who counts the turns aloud and leaves after the third answer."""
    return lambda conversation: None if len(conversation) >= 6 else f"turn {len(conversation) // 2 + 1}"


def test_a_dialogue_ends_when_the_user_has_nothing_to_say() -> None:
    asked: list[tuple[int, bool]] = []

    def reward(asker: Group, conversation: Conversation, over: bool) -> float:
        asked.append((len(conversation), over))
        return 10.0 * over + len(conversation)

    env = Dialogue([group()], counting, reward)
    env.reset()
    steps = [env.step(text) for text in "abc"]
    assert [step[1:4] for step in steps] == [(2.0, False, False), (4.0, False, False), (16.0, True, False)]
    assert asked == [(2, False), (4, False), (6, True)]
    assert [turn.content for turn in steps[-1][0]] == ["Hello g", "a", "turn 2", "b", "turn 3", "c"]
    answer = steps[-1][4]["group"].answers[0]
    assert (answer.text, [turn.content for turn in answer.messages]) == ("c", ["a", "turn 2", "b", "turn 3", "c"])


def test_the_limit_of_turns_truncates() -> None:
    env = Dialogue([group()], counting, lambda asked, conversation, over: float(over), max_turns=2)
    env.reset()
    assert env.step("a")[1:4] == (0.0, False, False)
    seen, reward, terminated, truncated, info = env.step("b")
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert seen[-1].content == "turn 3"  # the state that is left; the Group keeps no question without an answer
    assert [turn.content for turn in info["group"].answers[0].messages] == ["a", "turn 2", "b"]
    with pytest.raises(ResetNeeded):
        env.step("c")
    # on the last turn that is let in, the user's own end counts as one
    env = Dialogue([group()], counting, lambda asked, conversation, over: 0.0, max_turns=3)
    env.reset()
    assert [env.step(text)[2:4] for text in "abc"] == [(False, False), (False, False), (True, False)]


def test_what_was_played_is_a_group() -> None:
    env = Dialogue([group(topic="x")], counting, lambda asked, conversation, over: 1.5)
    played = play(env, lambda conversation: f"answer {len(conversation)}", seed=0)
    assert played.verdicts == (Score(answer=0, values={"reward": 4.5}, rater="environment:Dialogue"),)
    assert played.answers[0].text == "answer 5"
    assert played.meta == {"topic": "x"}
    assert decode_group(encode_group(played)) == played


# --- the ready tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_the_data_are_whole(name: str) -> None:
    groups = fixture(name)
    assert 20 <= len(groups) <= 40
    assert len({g.id for g in groups}) == len({g.prompt for g in groups}) == len(groups)
    assert all(g.prompt[-1].role == "user" and not g.answers for g in groups)
    assert not [g.id for g in groups if re.search(r"\s$|  ", g.prompt[0].content)]


@pytest.mark.parametrize("name", WITH_TRUTH)
def test_the_truth_earns_everything_and_another_answer_less(name: str) -> None:
    env, groups = make(name), fixture(name)
    for index, one in enumerate(groups):
        for answer, best in ((one.meta["truth"], True), ("I am not sure about that at all.", False), ("", False)):
            env.reset(options={"index": index})
            reward = env.step(answer)[1]
            assert (reward == 1.0) is best
            assert 0 <= reward <= 1
    hits = 0
    for index in range(len(groups)):
        env.reset(options={"index": index})
        hits += env.step(groups[index - 1].meta["truth"])[1] == 1.0
    assert hits == 0  # the truth of the one before


def test_the_topics_are_balanced() -> None:
    assert set(Counter(g.meta["truth"] for g in fixture("classification")).values()) == {8}
    one = fixture("classification")[0]
    assert one.meta["truth"] == "billing"
    assert [labelled(one, text) for text in ("Billing.", " 'billing'\n", "billing, delivery", "bill")] == [1, 1, 0, 0]


def test_names_are_counted_by_line() -> None:
    one = group(truth="person: Ada\nplace: Rome")
    assert named(one, "place:  rome\n\nPERSON: Ada\n") == 1.0
    assert named(one, "person: Ada") == pytest.approx(2 / 3)
    assert named(one, "person: Ada\nperson: Ada") == pytest.approx(2 / 3)
    assert named(one, "Here they are:\nperson: Ada\nplace: Rome") == pytest.approx(4 / 5)
    assert named(one, "place: Ada") == 0.0
    assert named(group(truth="none"), "None") == 1.0
    for one in fixture("entities"):  # every name stands in its sentence
        lines = one.meta["truth"].splitlines()
        names = [re.fullmatch(r"(?:person|place|organisation): (.*)", line) for line in lines if line != "none"]
        assert all(found and found[1] in one.prompt[0].content for found in names)


def test_overlap_by_hand() -> None:
    one = group(truth="The cat sat, the cat slept.")
    assert word_overlap(one, "the CAT") == pytest.approx(2 * 2 / (2 + 6))
    assert word_overlap(one, "cat cat cat the the") == pytest.approx(2 * 4 / (5 + 6))
    assert word_overlap(group(truth="!"), "?") == 1.0
    with pytest.raises(DataError, match="group 'g'"):
        word_overlap(group(), "x")


def test_copying_is_no_summary() -> None:
    for one in fixture("summarisation"):
        text = one.prompt[0].content.split("\n\n")[1]
        assert word_overlap(one, text) < 0.75
        assert len(one.meta["truth"].split()) < len(text.split()) / 1.5


def test_the_tone_is_what_you_hand_in() -> None:
    seen: list[str] = []

    def reward(asked: Group, text: str) -> float:
        seen.append(f"{asked.meta['prefix']} {text}")
        return -1.0

    played = play(sentiment(reward), lambda conversation: "it was fine.", options={"index": 0})
    assert seen == ["The film began slowly, but it was fine."]
    assert played.verdicts[0] == Score(answer=0, values={"reward": -1.0}, rater="environment:OneTurn")


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_sums_are_right(difficulty: int) -> None:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    made = sums(300, difficulty=difficulty, seed=5)
    assert made == sums(300, difficulty=difficulty, seed=5)
    assert made != sums(300, difficulty=difficulty, seed=6)
    for one in made:
        asked = re.fullmatch(r"What is (.*)\? Answer with the number\.", one.prompt[0].content)
        assert asked
        left, *rest = asked[1].split()
        result = int(left)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):  # a product, if any, stands first
            result = signs[sign](result, int(number))
        assert one.meta["truth"] == str(result)
        assert right(one, f"{asked[1]} = {result}") == right(one, f"It is {result}.") == 1.0
        assert right(one, str(result + 1)) == right(one, f"{result} or {result + 1}") == right(one, "no idea") == 0.0
    marks = {"+"} if difficulty == 1 else {"+", "-"}
    assert {one.prompt[0].content.split()[-6] for one in made} == marks


def test_a_made_up_sum_comes_from_the_generator() -> None:
    assert make_sum(np.random.default_rng(1), difficulty=3) == make_sum(np.random.default_rng(1), difficulty=3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"),
        ("It is 12.", "12"),
        ("= -7", "-7"),
        ("−7", "-7"),
        ("5-12", "12"),
        ("3 + 4 = 7", "7"),
        ("1,234.50 euros", "1234.50"),
        ("1,2,3", "3"),
        ("**42**", "42"),
        ("7.0", "7"),
        ("seven", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def knowing(group: Group, *, slips: Sequence[int] = ()) -> Any:
    """A policy that knows what the user wants to hear, but for the turns in ``slips``."""

    def policy(conversation: Conversation) -> str:
        if len(conversation) // 2 in slips:
            return "Hm."
        return next(a.answered_by[0] for a in asks(group) if conversation[-1].content.endswith(a.question))

    return policy


def test_a_dialogue_with_every_user() -> None:
    env = dialogue()
    for index, one in enumerate(fixture("dialogue")):
        assert one.prompt[0].content == asks(one)[0].question
        assert len(asks(one)) == 3
        played = play(env, knowing(one), options={"index": index})
        assert played.verdicts[0].values["reward"] == pytest.approx(1.0)  # type: ignore[union-attr]
        assert len(played.answers[0].messages) == 5
        assert not any(mentions("I am not sure about that at all.", w) for w in asks(one)[0].answered_by if w != "not")


def test_a_user_asks_again_once_and_then_leaves() -> None:
    env, one = dialogue(), fixture("dialogue")[0]
    slow = play(env, knowing(one, slips=[1]), options={"index": 0})
    assert slow.verdicts[0].values["reward"] == pytest.approx(1.0)  # type: ignore[union-attr]
    said = [turn.content for turn in slow.answers[0].messages]
    assert said[1] == f"Thank you. {asks(one)[1].question}"
    assert said[3] == f"That is not what I meant. {asks(one)[1].question}"
    twice = play(env, knowing(one, slips=[1, 3]), options={"index": 0})  # never the same question twice
    assert twice.verdicts[0].values["reward"] == pytest.approx(1.0)  # type: ignore[union-attr]
    rude = play(env, knowing(one, slips=[1, 2]), options={"index": 0})
    assert rude.verdicts[0].values["reward"] == pytest.approx(1 / 3)  # type: ignore[union-attr]
    assert len(rude.answers[0].messages) == 5
    mute = play(env, lambda conversation: "", options={"index": 0})
    assert mute.verdicts[0].values["reward"] == 0.0  # type: ignore[union-attr]
    assert len(mute.answers[0].messages) == 3


def test_the_user_remembers_nothing_but_the_conversation() -> None:
    one = fixture("dialogue")[0]
    talk = (*one.prompt, Message(role="assistant", content="Wheat."))
    assert simulated_user(one)(talk) == simulated_user(one)(talk) == f"Thank you. {asks(one)[1].question}"
    for wrong in (None, [], [{"question": "?"}], 3):
        with pytest.raises(DataError, match="group 'g'"):
            simulated_user(group(asks=wrong))


def test_a_word_is_a_whole_word() -> None:
    assert [mentions(text, "bar") for text in ("2 bar", "2bar!", "Bar", "bark", "a minibar")] == [1, 1, 1, 0, 0]
    assert mentions("at 220°C.", "°c")
