"""Text tasks as Gymnasium environments: the observation is the conversation, the action is the text of an answer.

    env = OneTurn(groups, lambda group, text: float(text.strip() == group.meta["truth"]))
    conversation, info = env.reset(seed=0)              # a tuple of Messages; info["group"] is the Group behind it
    conversation, reward, terminated, truncated, info = env.step("Paris")

    TextEnvironment    the interface: say what an answer earns and what the other side replies
    OneTurn            Groups and any function (group, text) -> float; a scorer becomes one with ``by_scorer``
    Dialogue           the same with a simulated user, a function of the conversation

A bandit over prompts, then, when there is one turn; with several, what was said before is part of the state. No torch
here. What a policy played becomes a Group again (``play``), so it can be stored, judged and trained on like any other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trimtab.environments._gymnasium import Env, InvalidAction, ResetNeeded, Space
from trimtab.errors import ConfigError, DataError, RewardError, TrimtabError, did_you_mean
from trimtab.records.types import Answer, Group, Message, Score

Conversation = tuple[Message, ...]
Reward = Callable[[Group, str], float]
"""What an answer to a Group's prompt is worth."""
DialogueReward = Callable[[Group, Conversation, bool], float]
"""What the answer that ends a conversation is worth, and whether the conversation is over with it."""
User = Callable[[Conversation], str | None]
"""The next turn of somebody who has read a conversation; None when there is nothing more to say."""
Draw = Callable[[np.random.Generator], Group]
"""Makes up a Group; everything random in it comes from the generator."""

PRINTABLE = "".join(map(chr, range(32, 127)))


class Texts(Space[str]):
    """Every text of at most ``max_length`` characters, the empty one included.

    Gymnasium's own ``Text`` holds a list of all characters that may occur, which for Unicode is a million. ``sample``
    draws up to 32 printable ASCII characters: it serves checkers, not exploration.
    """

    def __init__(self, max_length: int = 100_000, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.max_length = max_length

    @property
    def is_np_flattenable(self) -> bool:
        """Texts are no arrays."""
        return False

    def sample(self, mask: object = None, probability: object = None) -> str:
        """Draw a short text; there is nothing to mask."""
        if mask is not None or probability is not None:
            raise ConfigError("texts are drawn without a mask")
        length = self.np_random.integers(min(32, self.max_length) + 1)
        return "".join(PRINTABLE[i] for i in self.np_random.integers(len(PRINTABLE), size=length))

    def contains(self, x: object) -> bool:
        """Tell whether it is a text and not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and other.max_length == self.max_length

    def __repr__(self) -> str:
        return f"Texts({self.max_length})"


class Conversations(Space[Conversation]):
    """Every tuple of Messages. ``sample`` draws a single user turn."""

    def __init__(self, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self._texts = Texts()

    @property
    def is_np_flattenable(self) -> bool:
        """Conversations are no arrays."""
        return False

    def seed(self, seed: int | None = None) -> Any:
        """Seed the turns that are drawn."""
        self._texts = Texts(seed=seed)
        return super().seed(seed)

    def sample(self, mask: object = None, probability: object = None) -> Conversation:
        """Draw a conversation of one short turn; there is nothing to mask."""
        return (Message(role="user", content=self._texts.sample(mask, probability)),)

    def contains(self, x: object) -> bool:
        """Tell whether it is a tuple of Messages."""
        return isinstance(x, tuple) and all(isinstance(message, Message) for message in x)

    def to_jsonable(self, sample_n: Sequence[Conversation]) -> list[Any]:  # type: ignore[override]
        """Write conversations as lists of ``{"role": ..., "content": ...}``."""
        return [[{"role": turn.role, "content": turn.content} for turn in conversation] for conversation in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[Conversation]:
        """Read what ``to_jsonable`` wrote."""
        return [tuple(Message(**turn) for turn in conversation) for conversation in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversations)

    def __repr__(self) -> str:
        return "Conversations()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an answer led to: what it earned, and the other side's next turn; None ends the conversation."""

    reward: float
    reply: str | None = None


class TextEnvironment(Env[Conversation, str], ABC):
    """Conversations that start with a Group's prompt; a subclass says what an answer leads to (``answered``).

    ``groups`` are the prompts, one drawn for every episode, or a function that makes one up. ``terminated`` says that
    the other side has nothing more to say, ``truncated`` that ``max_turns`` answers were given before that.

    ``info["group"]`` is the Group, from the first step on with the answer so far, and ``info["turn"]`` counts the
    answers. ``reset(options={"index": i})`` takes the i-th Group instead of a drawn one, and ``{"group": group}`` any
    Group at all; the seed then decides on what else is random.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium reads it from the class

    def __init__(self, groups: Sequence[Group] | Draw, *, max_turns: int = 1, render_mode: str | None = None) -> None:
        if not callable(groups) and not groups:
            raise DataError("a text environment needs at least one Group to start from, and was given none")
        if max_turns < 1:
            raise ConfigError(f"max_turns counts the answers of an episode, so it is at least 1, not {max_turns}")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"a conversation is drawn as text only (render_mode 'ansi'), not as {render_mode!r}")
        self.groups = groups if callable(groups) else tuple(groups)
        self.max_turns, self.render_mode = max_turns, render_mode
        self.observation_space = Conversations()
        self.action_space = Texts()
        self._group: Group | None = None
        self._conversation: Conversation = ()
        self._turn = 0
        self._over = True

    @abstractmethod
    def answered(self, group: Group, conversation: Conversation, last: bool) -> Outcome:
        """Judge the answer that a conversation ends with, and reply; ``last`` says that no other answer is let in."""

    def starts(self, seeds: Iterable[int]) -> tuple[Group, ...]:
        """Return the Groups that episodes start from: all there are, or one made up from each seed."""
        if not callable(self.groups):
            return self.groups
        return tuple(self.groups(np.random.default_rng(seed)) for seed in seeds)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Conversation, dict[str, Any]]:
        """Start a conversation; the same seed starts the same ones, in the same order."""
        super().reset(seed=seed)
        self._group = self._chosen(options or {})
        self._conversation, self._turn, self._over = self._group.prompt, 0, False
        return self._conversation, self._info()

    def step(self, action: str) -> tuple[Conversation, float, bool, bool, dict[str, Any]]:
        """Give an answer.

        Raises ``RewardError``, with the Group, for a reward that fails or is no finite number; Gymnasium's
        ``ResetNeeded`` once the conversation is over and ``InvalidAction`` for what is no text.
        """
        if self._over or self._group is None:
            raise ResetNeeded("the conversation is over (or has not begun): call reset")
        if not self.action_space.contains(action):
            raise InvalidAction(f"an answer is a text in {self.action_space}, not {action!r:.60}")
        self._conversation = (*self._conversation, Message(role="assistant", content=action))
        self._turn += 1
        outcome = self._outcome(self._group)
        terminated = outcome.reply is None
        truncated = not terminated and self._turn >= self.max_turns
        if outcome.reply is not None:
            self._conversation = (*self._conversation, Message(role="user", content=outcome.reply))
        self._over = terminated or truncated
        return self._conversation, outcome.reward, terminated, truncated, self._info()

    def render(self) -> str | None:
        """Write the conversation down, if ``render_mode`` says so."""
        if self.render_mode is None:
            return None
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self._conversation)

    def _chosen(self, options: dict[str, Any]) -> Group:
        unknown = sorted(set(options) - {"index", "group"})
        if unknown:
            raise ConfigError(f"reset has no option {unknown[0]!r}{did_you_mean(unknown[0], ['index', 'group'])}")
        if "group" in options:
            group = options["group"]
            if not isinstance(group, Group) or len(options) > 1:
                raise ConfigError(f"a conversation starts from one Group, not from {options!r:.80}")
            return group
        if callable(self.groups):
            if options:
                raise ConfigError("these prompts are made up one by one, so there is none to choose by its index")
            return self.groups(self.np_random)
        index = options.get("index")
        if index is None:
            index = int(self.np_random.integers(len(self.groups)))
        if not (isinstance(index, int) and 0 <= index < len(self.groups)):
            raise ConfigError(f"index {index!r}: there are {len(self.groups)} Groups, numbered from 0")
        return self.groups[index]

    def _outcome(self, group: Group) -> Outcome:
        try:
            outcome = self.answered(group, self._conversation, self._turn >= self.max_turns)
            reward = float(outcome.reward)
        except TrimtabError:
            raise
        except Exception as error:  # the functions are the user's, and may raise anything; nothing is swallowed
            raise RewardError(
                f"group {group.id!r}: the answer cannot be judged: {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(reward):
            raise RewardError(f"group {group.id!r}: the reward of the answer is {reward}")
        return Outcome(reward=reward, reply=outcome.reply)

    def _info(self) -> dict[str, Any]:
        assert self._group is not None
        turns = self._conversation[len(self._group.prompt) :]
        while turns and turns[-1].role != "assistant":
            turns = turns[:-1]  # a question that nobody was let answer
        if not turns:
            return {"group": self._group, "turn": self._turn}
        answer = Answer(text=turns[-1].content, messages=turns if len(turns) > 1 else ())
        return {"group": self._group.with_answers((answer,)), "turn": self._turn}


class OneTurn(TextEnvironment):
    """A prompt, an answer, a reward: Groups and any function ``(group, text) -> float``."""

    def __init__(self, groups: Sequence[Group] | Draw, reward: Reward, *, render_mode: str | None = None) -> None:
        super().__init__(groups, render_mode=render_mode)
        self.reward = reward

    def answered(self, group: Group, conversation: Conversation, last: bool) -> Outcome:
        """Judge the answer; nobody replies."""
        return Outcome(reward=self.reward(group, conversation[-1].content))


class Dialogue(TextEnvironment):
    """A conversation with a simulated user.

    ``user(group)`` makes the user who opens with this Group's prompt: a function of the conversation that returns the
    next turn, or None. ``reward(group, conversation, over)`` is asked after every answer, before the user's reply is
    read out: a reward for the whole comes when ``over``, and 0 before.
    """

    def __init__(
        self,
        groups: Sequence[Group] | Draw,
        user: Callable[[Group], User],
        reward: DialogueReward,
        *,
        max_turns: int = 8,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(groups, max_turns=max_turns, render_mode=render_mode)
        self.user, self.reward = user, reward

    def answered(self, group: Group, conversation: Conversation, last: bool) -> Outcome:
        """Ask the user for a reply, and judge the answer."""
        reply = self.user(group)(conversation)
        return Outcome(reward=self.reward(group, conversation, last or reply is None), reply=reply)


class Scores(Protocol):
    """What a scorer does (``trimtab.rewards.scorer``): rules, reward models, ensembles."""

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group."""
        ...


def by_scorer(scorer: Scores) -> Reward:
    """Return a scorer as a reward, asked for one answer at a time."""
    return lambda group, text: scorer.score([group.with_answers((Answer(text=text),))])[0][0]


def play(
    env: TextEnvironment,
    policy: Callable[[Conversation], str],
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
) -> Group:
    """Hold one conversation and return its Group, with the answer and what it earned in all (a Score ``reward``)."""
    (conversation, info), total, over = env.reset(seed=seed, options=options), 0.0, False
    while not over:
        conversation, reward, terminated, truncated, info = env.step(policy(conversation))
        total, over = total + reward, terminated or truncated
    group: Group = info["group"]
    score = Score(answer=0, values={"reward": total}, rater=f"environment:{type(env).__name__}")
    return Group(id=group.id, prompt=group.prompt, answers=group.answers, verdicts=(score,), meta=group.meta)
