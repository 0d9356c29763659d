"""Conversations as answers: the policy plays a text environment, and all that it said is one answer to be learned from.

An answer is then several turns laid end to end. The policy's own tokens stand as they were sampled; what the other side
said, and what the chat template writes between the turns, stands in its place and is not trained. Whatever is summed or
averaged over an answer's tokens is so over the policy's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trimtab.config import check_settings
from trimtab.data.encode import encode
from trimtab.data.judged import Bad
from trimtab.errors import ConfigError, DataError
from trimtab.model.chat import Chat
from trimtab.model.sampler import Sampled, Sampler, Sampling
from trimtab.records.types import Answer, Finish, Group, Message
from trimtab.registry import TASKS
from trimtab.seeds import derive
from trimtab.tensors.tree import TokenGroup
from trimtab.train.run import Run

if TYPE_CHECKING:
    from trimtab.environments.text import TextEnvironment

MADE_UP = 4096
"""At most so many prompts are taken from an environment that makes them up; a longer run goes round them again."""

Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the policy's: the place of its last token in the answer, what it earned, how it ended."""

    last: int
    reward: float
    finish: Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Sampled):
    """A conversation as one answer.

    ``tokens`` run from the policy's first to its last; ``trained`` tells which are its own, and ``logps`` are 0 where
    they are not. ``finish`` is ``"stop"`` when the policy ended all of its turns by itself. ``messages`` go from its
    first to its last. ``no_room``: the window ended the conversation, not the environment.
    """

    trained: tuple[bool, ...]
    turns: tuple[Turn, ...]
    messages: Conversation
    no_room: bool = False

    @property
    def reward(self) -> float:
        """What the turns earned in all."""
        return sum(turn.reward for turn in self.turns)


def own_tokens(answer: Sampled) -> tuple[bool, ...]:
    """Which tokens of an answer are the policy's own: all, but in a conversation."""
    return answer.trained if isinstance(answer, Episode) else (True,) * len(answer.tokens)


def as_item(prompt: tuple[int, ...], answers: Sequence[Sampled]) -> TokenGroup:
    """Answers to one prompt as tokens to be read and learned from."""
    own = tuple(map(own_tokens, answers))
    whole = all(all(trained) for trained in own)
    return TokenGroup(prompt=prompt, answers=tuple(a.tokens for a in answers), trained=None if whole else own)


def as_answer(answer: Sampled, chat: Chat) -> Answer:
    """An answer as a record; of a conversation, its text is that of the last turn."""
    logprob = sum(answer.logps)
    if not isinstance(answer, Episode):
        return Answer(text=chat.decode(answer.tokens), finish=answer.finish, logprob=logprob)
    said = answer.messages if len(answer.messages) > 1 else ()
    return Answer(
        text=answer.messages[-1].content, messages=said, finish=answer.turns[-1].finish, logprob=logprob
    )  # fmt: skip


def own_words(answer: Sampled, chat: Chat) -> str:
    """All that the policy said, a turn after the other."""
    if not isinstance(answer, Episode):
        return chat.decode(answer.tokens)
    return "\n".join(message.content for message in answer.messages if message.role == "assistant")


def credit_turns(rewards: Tensor, answers: Sequence[Sampled], plain: Tensor) -> Tensor:
    """Move what earlier turns earned from an answer's last token to the end of its turn, (B, T) -> (B, T).

    An answer's sum stays. ``plain`` (B,) bool: its score is what the turns earned, neither scaled nor replaced; the
    score of any other answer stays at its end, since nothing says how to share it out.
    """
    moved = rewards.clone()
    for row, answer in enumerate(answers):
        if isinstance(answer, Episode) and plain[row]:
            for turn in answer.turns[:-1]:
                moved[row, turn.last] += turn.reward
                moved[row, answer.turns[-1].last] -= turn.reward
    return moved


def environment_of(settings: Mapping[str, Any], where: str, *, paid: bool) -> Callable[[], TextEnvironment]:
    """How to make the environment that a recipe names, ``{task: NAME, ...}``, anew.

    ``paid``: the stage pays by itself. A task that asks for a ``reward`` function then gets one that pays nothing, and
    the stage judges all answers of a round at once.

    Errors: ``ConfigError``, after ``where``, for settings that do not fit, a task that leaves the judging to a stage
    that does not pay, and a function that makes no text environment.
    """
    from trimtab.environments.text import TextEnvironment

    name = settings.get("task")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: option 'task' is missing: which text environment is it?")
    entry = TASKS[name]
    options = check_settings(entry, {key: value for key, value in settings.items() if key != "task"}, where)
    asked = [signature(entry.function).parameters[column] for column in entry.columns]
    if [column.name for column in asked] not in ([], ["reward"]):
        raise ConfigError(f"{where}: task {name!r} may ask for 'reward', a function, and nothing else before its '*'")
    if asked and asked[0].default is Parameter.empty and not paid:
        raise ConfigError(f"{where}: task {name!r} leaves the judging to you: give the stage a 'reward' or 'rules'")
    make = partial(entry.function, *([_nothing] if asked and paid else []), **options)
    if not isinstance(make(), TextEnvironment):
        raise ConfigError(f"{where}: task {name!r} makes no TextEnvironment")
    return make


def _nothing(*_: object) -> float:
    """What a task's own judge pays where the stage pays."""
    return 0.0


class Episodes:
    """Plays an environment: k conversations from each start, each in an environment of its own."""

    def __init__(self, make: Callable[[], TextEnvironment], chat: Chat, *, max_length: int, where: str = "") -> None:
        self.make, self.chat, self.max_length = make, chat, max_length
        self.max_turns = make().max_turns
        if self.max_turns > 1:
            self._check_template(where)

    def starts(self, run: Run, *, count: int, max_tokens: int, bad: Bad) -> tuple[list[Group], list[TokenGroup]]:
        """The Groups that conversations start from, with the tokens of their prompts; too long ones are named.

        ``count``: how many are made up, where they are.
        """
        groups = self.make().starts(derive(run.seed, "start", i) for i in range(min(count, MADE_UP)))
        bare = [group.with_answers(()) for group in groups]  # what else a Group holds is for the environment
        kept, tokens = encode(
            bare, self.chat, max_length=self.max_length - max_tokens, run=run, what="prompts", bad=bad
        )
        places = {id(group) for group in kept}
        return [group for group, prompt in zip(groups, bare, strict=True) if id(prompt) in places], tokens

    def play(
        self, sampler: Sampler, groups: Sequence[Group], prompts: Sequence[tuple[int, ...]], *, k: int,
        sampling: Sampling, seed: int,
    ) -> list[list[Sampled]]:  # fmt: skip
        """Hold k conversations from each Group, all of them side by side, a turn at a time.

        The k conversations from one Group meet the same luck (the environment's generator has the same seed), so they
        differ by what the policy said. ``sampling.max_tokens`` caps a turn. A turn that is cut by it is ended by the
        template, and the conversation goes on. Each later turn reads the whole conversation anew.
        """
        table = [
            [_Talk(self, group, prompt, seed=derive(seed, "environment", g)) for _ in range(k)]
            for g, (group, prompt) in enumerate(zip(groups, prompts, strict=True))
        ]
        talks = [talk for own in table for talk in own]
        first = sampler.sample(prompts, k=k, sampling=sampling, seed=seed)
        heard = [answer for own in first for answer in own]
        waiting, turn = talks, 0
        while waiting:
            for talk, answer in zip(waiting, heard, strict=True):
                talk.say(answer, cap=sampling.max_tokens)
            waiting, turn = [talk for talk in waiting if not talk.over], turn + 1
            so_far = [(*talk.prompt, *talk.tokens) for talk in waiting]
            found = sampler.sample(so_far, k=1, sampling=sampling, seed=derive(seed, "turn", turn)) if waiting else []
            heard = [answer for (answer,) in found]
        return [[talk.episode() for talk in own] for own in table]

    def _check_template(self, where: str) -> None:
        """Refuse a template that writes an earlier turn otherwise once the conversation has gone on."""
        asked, said = (Message(role=role, content="a") for role in ("user", "assistant"))
        try:
            between(self.chat, (asked, said), (asked,))
        except DataError as error:
            raise ConfigError(f"{where}: conversations of several turns: {error}") from None


def between(chat: Chat, said: Conversation, replies: Conversation) -> tuple[int, ...]:
    """What the template writes after the end of the assistant's turn that ``said`` ends with, up to its next word.

    The assistant's own words do not matter for that, and another stands for them: a template that strips an earlier
    turn's reasoning would find none to strip. What was said stays as it was said.

    Errors: ``DataError`` for a template that rewrites any earlier turn.
    """
    said = tuple(Message(role=m.role, content="a") if m.role == "assistant" else m for m in said)
    next_turn = Message(role="assistant", content="a")
    answer = Answer(text="a", messages=(said[-1], *replies, next_turn))
    tokens, trained = chat.answer(answer, said[:-1])
    end = len(tokens) - len(chat.encode("a")) - 1
    begin = end
    while begin and not trained[begin - 1]:
        begin -= 1
    return tokens[begin:end]


class _Talk:
    """A conversation in the making."""

    def __init__(self, episodes: Episodes, group: Group, prompt: tuple[int, ...], *, seed: int) -> None:
        self.chat, self.max_length, self.prompt = episodes.chat, episodes.max_length, prompt
        self.env = episodes.make()
        self.conversation, _ = self.env.reset(seed=seed, options={"group": group})
        if self.conversation != group.prompt:
            raise ConfigError(f"group {group.id!r}: the environment begins with other words than the Group's prompt")
        self.begin = len(self.conversation)
        self.tokens: list[int] = []
        self.logps: list[float] = []
        self.trained: list[bool] = []
        self.turns: list[Turn] = []
        self.spoken = self.begin  # messages up to the policy's last
        self.over = self.no_room = False

    def say(self, answer: Sampled, *, cap: int) -> None:
        """Take the policy's turn, have the environment judge it and reply, and get ready for the next."""
        self._write(answer.tokens, answer.logps, own=True)
        said = (*self.conversation, Message(role="assistant", content=self.chat.decode(answer.tokens)))
        self.conversation, reward, terminated, truncated, _ = self.env.step(said[-1].content)
        if self.conversation[: len(said)] != said:
            raise ConfigError(f"the environment {type(self.env).__name__} changes what was said before")
        self.turns.append(Turn(last=len(self.tokens) - 1, reward=float(reward), finish=answer.finish))
        self.spoken = len(said)
        self.over = terminated or truncated
        if self.over:
            return
        theirs = between(self.chat, said, self.conversation[len(said) :])
        if answer.finish == "length":
            theirs = (self.chat.end, *theirs)
        self.over = self.no_room = len(self.prompt) + len(self.tokens) + len(theirs) + cap > self.max_length
        if not self.over:
            self._write(theirs, (0.0,) * len(theirs), own=False)

    def _write(self, tokens: Sequence[int], logps: Sequence[float], *, own: bool) -> None:
        self.tokens += tokens
        self.logps += logps
        self.trained += [own] * len(tokens)

    def episode(self) -> Episode:
        """The conversation, now that it is over."""
        return Episode(
            tokens=tuple(self.tokens), logps=tuple(self.logps), trained=tuple(self.trained), turns=tuple(self.turns),
            finish="stop" if all(turn.finish == "stop" for turn in self.turns) else "length",
            messages=self.conversation[self.begin : self.spoken], no_room=self.no_room,
        )  # fmt: skip
