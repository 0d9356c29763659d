"""Conversations as answers: which tokens are the policy's own, who paid for what, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.environments.text import Conversation, Dialogue, OneTurn, Outcome, TextEnvironment
from trimtab.errors import ConfigError, RewardError
from trimtab.model.chat import Chat
from trimtab.model.sampler import Sampled, Sampling
from trimtab.model.trunk import Trunk
from trimtab.records.types import Finish, Group, Message
from trimtab.stages._episodes import (
    Episode,
    Episodes,
    Turn,
    as_answer,
    as_item,
    between,
    credit_turns,
    environment_of,
    own_words,
)
from trimtab.stages._imitate import _demonstrations
from trimtab.stages._rollout import Sample
from trimtab.tensors.tree import pack

START, END = 256, 257  # the tiny model's tokens are bytes, and these
SHORT = Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Trunk.load(tiny_model, dtype="float32").chat


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def say(text: str, finish: Finish = "stop") -> Sampled:
    tokens = (*text.encode(), *([END] if finish == "stop" else []))
    return Sampled(tokens=tokens, logps=tuple(-0.5 - i for i in range(len(tokens))), finish=finish)


class Scripted:
    """A sampler that says what it is told, all answers of a turn at a time, and remembers what it was asked."""

    def __init__(self, *turns: Sequence[Sampled]) -> None:
        self.turns = list(turns)
        self.asked: list[tuple[tuple[tuple[int, ...], ...], int, int]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], *, k: int, sampling: Sampling, seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sampled]]:  # fmt: skip
        self.asked.append((tuple(map(tuple, prompts)), k, seed))
        said = list(self.turns[len(self.asked) - 1])
        assert len(said) == len(prompts) * k
        return [said[i * k : i * k + k] for i in range(len(prompts))]


def insisting(groups: Sequence[Group], *, turns: int = 2, max_turns: int = 8) -> Dialogue:
    """A user who says "More?" until there were so many answers; each earns its number of characters."""

    def reward(group: Group, conversation: Conversation, over: bool) -> float:
        return float(len(conversation[-1].content))

    def reply(conversation: Conversation) -> str | None:
        said = [turn.content for turn in conversation if turn.role == "assistant"]
        return "More?" if len(said) < turns and said[-1] != "bye" else None

    return Dialogue(groups, lambda group: reply, reward, max_turns=max_turns)


HI, YO = (Group(id=text, prompt=ask(text)) for text in ("Hi", "Yo"))
MORE = (10, START, *b"user\nMore?", END, 10, START, *b"assistant\n")  # what the template writes in between


def play(
    chat: Chat, make: Callable[[], TextEnvironment], groups: Sequence[Group], sampler: Scripted, *, k: int = 1,
    max_length: int = 512,
) -> list[list[Episode]]:  # fmt: skip
    episodes = Episodes(make, chat, max_length=max_length)
    prompts = [chat.prompt(group.prompt) for group in groups]
    found = episodes.play(sampler, groups, prompts, k=k, sampling=SHORT, seed=7)
    assert all(isinstance(answer, Episode) for own in found for answer in own)
    return found  # type: ignore[return-value]


# --- what is in an answer ---------------------------------------------------------------------------------------------


def test_two_turns_by_hand(chat: Chat) -> None:
    sampler = Scripted([say("ab")], [say("c")])
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], sampler)
    assert found.tokens == (97, 98, END, *MORE, 99, END)
    assert found.trained == (True,) * 3 + (False,) * len(MORE) + (True,) * 2
    assert found.logps == (-0.5, -1.5, -2.5, *[0.0] * len(MORE), -0.5, -1.5)
    last = 2 + len(MORE) + 2
    assert found.turns == (Turn(last=2, reward=2.0, finish="stop"), Turn(last=last, reward=1.0, finish="stop"))
    assert (found.finish, found.reward, found.no_room) == ("stop", 3.0, False)
    assert [(m.role, m.content) for m in found.messages] == [
        ("assistant", "ab"), ("user", "More?"), ("assistant", "c")
    ]  # fmt: skip
    prompt = chat.prompt(HI.prompt)
    (first, second) = sampler.asked
    assert (first[:2], second[:2]) == (((prompt,), 1), (((*prompt, 97, 98, END, *MORE),), 1))
    assert first[2] == 7 != second[2]


def test_what_is_learned_from_are_the_own_tokens_in_their_places(chat: Chat) -> None:
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted([say("ab")], [say("c")]))
    item = as_item(chat.prompt(HI.prompt), [found, say("xyz")])
    batch = pack([item])
    assert batch.target.tolist() == [97, 98, END, 99, END, *b"xyz", END]
    assert batch.mask[0].tolist() == list(found.trained)
    assert batch.pad(batch.target)[0][batch.mask[0]].tolist() == [97, 98, END, 99, END]
    # Each is predicted at the token before it: the second turn's first at the template's last.
    assert batch.ids[batch.predictor[3]] == ord("\n")
    assert int(batch.ids[batch.last[0]]) == END
    assert as_item((1,), [say("a"), say("b")]).trained is None


@pytest.mark.parametrize("texts", [("ab", "c"), ("", ""), (" two words ", "\n"), ("é ✓", "<x> {{ y }} {% z %}")])
def test_the_template_would_write_the_same(chat: Chat, texts: tuple[str, str]) -> None:
    """Law: where text and tokens say the same, an answer's tokens are those of its conversation, and so is the mask."""
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted(*([say(text)] for text in texts)))
    assert chat.group(HI.with_answers((as_answer(found, chat),))) == as_item(chat.prompt(HI.prompt), [found])


def test_sampled_tokens_are_kept_whatever_text_they_make(chat: Chat) -> None:
    odd = Sampled(tokens=(255, START, 97, END), logps=(-1.0,) * 4, finish="stop")  # no UTF-8, a token out of place
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted([odd], [odd]))
    assert found.tokens == (255, START, 97, END, *MORE, 255, START, 97, END)
    assert chat.encode(found.messages[0].content) != (255, START, 97)  # text would have lost them


def test_a_turn_that_is_cut_is_ended_by_the_template(chat: Chat) -> None:
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted([say("abcd", "length")], [say("c")]))
    assert found.tokens == (*b"abcd", END, *MORE, 99, END)
    assert found.trained == (True,) * 4 + (False,) * (1 + len(MORE)) + (True,) * 2  # the end is not the policy's
    assert found.finish == "length"
    assert as_answer(found, chat).finish == "stop"  # of the last turn: the record's text ends with its end
    written = chat.group(HI.with_answers((as_answer(found, chat),)))
    assert written.answers == (found.tokens,)
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted([say("a")], [say("cccc", "length")]))
    assert found.tokens[-5:] == (10, *b"cccc")
    assert (found.finish, as_answer(found, chat).finish) == ("length", "length")


def test_each_conversation_goes_on_by_itself(chat: Chat) -> None:
    sampler = Scripted(
        [say("bye"), say("a"), say("b"), say("bye")],
        [say("cc"), say("bye")],
        [say("ddd")],
    )
    first, second = play(chat, lambda: insisting([HI, YO], turns=3), [HI, YO], sampler, k=2)
    assert [len(e.turns) for e in (*first, *second)] == [1, 3, 2, 1]
    assert [e.reward for e in (*first, *second)] == [3.0, 6.0, 4.0, 3.0]
    hi, yo = chat.prompt(HI.prompt), chat.prompt(YO.prompt)
    assert sampler.asked[0][:2] == ((hi, yo), 2)
    assert sampler.asked[1][:2] == (((*hi, 97, END, *MORE), (*yo, 98, END, *MORE)), 1)
    assert len(sampler.asked[2][0]) == 1
    assert len({seed for _, _, seed in sampler.asked}) == 3
    assert first[0].tokens == (*b"bye", END)


def test_the_last_reply_is_no_part_when_no_answer_is_let_in(chat: Chat) -> None:
    make = lambda: insisting([HI], turns=9, max_turns=2)  # noqa: E731
    ((found,),) = play(chat, make, [HI], Scripted([say("a")], [say("b")]))
    assert found.messages[-1] == Message(role="assistant", content="b")
    assert found.tokens[-1] == END


def test_the_window_ends_a_conversation(chat: Chat) -> None:
    room = len(chat.prompt(HI.prompt)) + 2 + len(MORE) + SHORT.max_tokens
    for length, turns, no_room in ((room, 2, False), (room - 1, 1, True)):
        sampler = Scripted([say("a")], [say("b")])
        ((found,),) = play(chat, lambda: insisting([HI]), [HI], sampler, max_length=length)
        assert (len(found.turns), found.no_room, len(sampler.asked)) == (turns, no_room, turns)
        assert found.tokens[-1] == END
        assert len(found.messages) == 2 * turns - 1


class Moody(TextEnvironment):
    """A user whose reply is drawn."""

    def answered(self, group: Group, conversation: Conversation, last: bool) -> Outcome:
        return Outcome(reward=0.0, reply=str(self.np_random.integers(10**9)))


def test_conversations_from_one_start_meet_the_same_luck(chat: Chat) -> None:
    def replies(seed: int) -> list[list[str]]:
        episodes = Episodes(lambda: Moody([HI, YO], max_turns=2), chat, max_length=512)
        sampler = Scripted([say(str(i)) for i in range(6)], [say("b")] * 6)
        prompts = [chat.prompt(g.prompt) for g in (HI, YO)]
        found = episodes.play(sampler, [HI, YO], prompts, k=3, sampling=SHORT, seed=seed)
        return [[e.messages[1].content for e in own if isinstance(e, Episode)] for own in found]

    first, second = replies(1)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    assert replies(1) == [first, second] != replies(2)


def test_what_the_policy_said(chat: Chat) -> None:
    ((found,),) = play(chat, lambda: insisting([HI]), [HI], Scripted([say("ab")], [say("c")]))
    assert own_words(found, chat) == "ab\nc"
    assert own_words(say("ab"), chat) == "ab"
    record = as_answer(found, chat)
    assert (record.text, record.messages) == ("c", found.messages)
    assert record.logprob == pytest.approx(-6.5)
    single = as_answer(say("ab"), chat)
    assert (single.text, single.messages, single.finish) == ("ab", (), "stop")


def test_what_is_counted_is_the_policys_own(chat: Chat) -> None:
    ((a, b),) = play(
        chat, lambda: insisting([HI]), [HI], Scripted([say("ab"), say("bye")], [say("c")]), k=2
    )  # fmt: skip
    sample = Sample(prompts=(0,), answers=((a, b),), items=(as_item((1,), [a, b]),))
    assert sample.lengths.tolist() == [5.0, 4.0]
    assert sample.ended.tolist() == [True, True]
    (shown,) = _demonstrations(sample, [0])
    assert shown == replace(sample.items[0], answers=(a.tokens,), trained=(a.trained,))


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_what_a_turn_earned_goes_to_its_end() -> None:
    turns = (Turn(last=1, reward=2.0, finish="stop"), Turn(last=4, reward=1.0, finish="stop"))
    own = (True, True, False, True, True)
    talk = Episode(tokens=(5,) * 5, logps=(0.0,) * 5, finish="stop", trained=own, turns=turns, messages=())
    rewards = torch.tensor([[-0.1, -0.2, 0.0, -0.3, 2.6], [0.0, 0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    plain = torch.tensor([True, False, True])
    found = credit_turns(rewards, [talk, talk, Sampled(tokens=(5, 5), logps=(0.0, 0.0), finish="stop")], plain)
    torch.testing.assert_close(found[0], torch.tensor([-0.1, 1.8, 0.0, -0.3, 0.6]))
    assert torch.equal(found[1:], rewards[1:])  # a score that was scaled, and an answer of one turn


def test_a_failing_environment_names_its_group(chat: Chat) -> None:
    def reward(group: Group, conversation: Conversation, over: bool) -> float:
        raise ValueError("no idea")

    def make() -> Dialogue:
        return Dialogue([HI], lambda group: lambda conversation: None, reward, max_turns=2)

    with pytest.raises(RewardError, match=r"group 'Hi': .*no idea"):
        play(chat, make, [HI], Scripted([say("a")]))


# --- environments that do not fit -------------------------------------------------------------------------------------


class Liar(TextEnvironment):
    """Changes what was said."""

    def answered(self, group: Group, conversation: Conversation, last: bool) -> Outcome:
        self._conversation = (*conversation[:-1], Message(role="assistant", content="never"))
        return Outcome(reward=0.0, reply="More?")


class Early(OneTurn):
    """Begins with words of its own."""

    def reset(self, **options: object) -> tuple[Conversation, dict[str, object]]:
        conversation, info = super().reset(**options)  # type: ignore[arg-type]
        return (Message(role="system", content="Be good."), *conversation), info


def test_an_environment_that_says_something_else_is_refused(chat: Chat) -> None:
    with pytest.raises(ConfigError, match="'Hi': the environment begins with other words"):
        play(chat, lambda: Early([HI], lambda group, text: 0.0), [HI], Scripted([say("a")]))
    with pytest.raises(ConfigError, match="Liar changes what was said before"):
        play(chat, lambda: Liar([HI], max_turns=2), [HI], Scripted([say("a")], [say("b")]))


FORGETFUL = (
    "{% for m in messages %}{% if not (m.role == 'assistant' and not loop.last) %}"
    "{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_refused_where_there_are_several(tiny_model: Path) -> None:
    tokenizer = Trunk.load(tiny_model, dtype="float32").chat.tokenizer
    tokenizer.chat_template = FORGETFUL
    chat = Chat(tokenizer)
    Episodes(lambda: insisting([HI], max_turns=1), chat, max_length=512)
    with pytest.raises(ConfigError, match=r"^here: conversations of several turns: .*changes earlier turns"):
        Episodes(lambda: insisting([HI]), chat, max_length=512, where="here")


def test_between_two_turns(chat: Chat) -> None:
    said = (*ask("Hi"), Message(role="assistant", content="ab"))
    assert between(chat, said, ask("More?")) == MORE
    assert between(chat, (*said, *ask("More?"), said[-1]), ask("More?")) == MORE


def test_the_environment_of_a_recipe() -> None:
    for paid in (False, True):
        env = environment_of({"task": "arithmetic", "difficulty": 3}, "w", paid=paid)()
        env.reset(seed=0)
        assert "*" in env.reset(seed=0)[0][0].content
    env = environment_of({"task": "summarisation"}, "w", paid=True)()
    _, info = env.reset(seed=0)
    assert env.step(info["group"].meta["truth"])[1] == 0.0  # the stage judges instead
    env = environment_of({"task": "summarisation"}, "w", paid=False)()
    _, info = env.reset(seed=0)
    assert env.step(info["group"].meta["truth"])[1] == 1.0
    for settings, said in (
        ({"task": "sentiment"}, "w: task 'sentiment' leaves the judging to you"),
        ({"task": "arithmetics"}, "no text environment 'arithmetics'; did you mean 'arithmetic'"),
        ({"task": "arithmetic", "dificulty": 2}, "w: no option 'dificulty'; did you mean 'difficulty'"),
        ({"difficulty": 2}, "w: option 'task' is missing"),
    ):
        with pytest.raises(ConfigError, match=said):
            environment_of(settings, "w", paid=False)
