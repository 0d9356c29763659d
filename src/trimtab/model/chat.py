"""From messages to tokens and back, with any model's chat template.

Prompt and answer are tokenised apart and joined, so no merge ever reaches over their border; the answer ends with the
template's own end-of-turn token exactly when its writer ended it. The same function serves SFT, reward models, sampling
and scoring, so that all of them see the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from trimtab.errors import DataError, ModelError
from trimtab.records.types import Answer, Group, Message
from trimtab.tensors.tree import TokenGroup

# For models that bring no chat template of their own (base models).
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ '### ' + m['role'] | capitalize + ':\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)

REWRITTEN = (
    "the model's chat template changes earlier turns as a conversation goes on, so its assistant turns cannot be "
    "trained together; keep one assistant turn a row"
)


class Chat:
    """One tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._template: str | None = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self.end = self._end_of_turn()
        self._end_text: str = tokenizer.convert_ids_to_tokens(self.end)
        self.stop = frozenset({self.end, *({tokenizer.eos_token_id} - {None})})

    def render(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The conversation as text; with ``generate``, up to where the assistant begins to speak."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generate, chat_template=self._template
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from None
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of text, without special tokens added around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer's tokens, without the end-of-turn token and without other special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _end_of_turn(self) -> int:
        """The token that the template writes right after an assistant's words."""
        probe = (Message(role="user", content="a"), Message(role="assistant", content="zq"))
        text = self.render(probe, generate=False)
        if "zq" not in text:
            raise ModelError("the tokenizer's chat template leaves out what the assistant says")
        after = self.encode(text[text.rindex("zq") + 2 :])
        special = set(self.tokenizer.all_special_ids)
        for token in after:
            if token in special:
                return token
        eos: int | None = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError("the tokenizer has neither an end-of-turn token in its chat template nor an EOS token")
        return eos

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of a prompt, ready for the assistant to speak. No messages: no tokens (plain text)."""
        return self.encode(self.render(messages, generate=True)) if messages else ()

    def answer(self, answer: Answer, prompt: Sequence[Message]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of an answer and which of them are the assistant's own (its end-of-turn token among them)."""
        if answer.messages:
            return self._turns(answer, prompt)
        tokens = self.encode(answer.text)
        if answer.finish != "length":
            tokens = (*tokens, self.end)
        return tokens, (True,) * len(tokens)

    def _turns(self, answer: Answer, prompt: Sequence[Message]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The rest of a conversation: assistant turns are trained, the others only stand there."""
        tokens: list[int] = []
        trained: list[bool] = []
        messages = [*prompt, *answer.messages]
        written = self.render(prompt, generate=True)
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        for i in range(len(prompt), last + 1):
            if messages[i].role != "assistant":
                continue
            before = self.render(messages[:i], generate=True)
            if not before.startswith(written):
                raise DataError(REWRITTEN)
            words = self._words(messages[: i + 1], before)
            cut = i == last and answer.finish == "length"
            between = self.encode(before[len(written) :])
            own = self.encode(words) if cut else (*self.encode(words), self.end)
            tokens += [*between, *own]
            trained += [False] * len(between) + [True] * len(own)
            written = before + words + self._end_text
        return tuple(tokens), tuple(trained)

    def _words(self, messages: Sequence[Message], before: str) -> str:
        """The last message as the template writes it (some trim it) between ``before`` and its end-of-turn token."""
        whole = self.render(messages, generate=False)
        words = messages[-1].content
        for form in (words, words.strip()):
            if whole.startswith(before + form + self._end_text):
                return form
        raise DataError(REWRITTEN)

    def group(self, group: Group) -> TokenGroup:
        """A Group as tokens."""
        encoded = [self.answer(answer, group.prompt) for answer in group.answers]
        return TokenGroup(
            prompt=self.prompt(group.prompt),
            answers=tuple(tokens for tokens, _ in encoded),
            trained=None if all(all(t) for _, t in encoded) else tuple(t for _, t in encoded),
        )
