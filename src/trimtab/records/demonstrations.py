"""Readers of rows with one answer and no verdict, or with none: demonstrations, tasks, plain text, prompts.

Each reader takes a row's ``Fields`` and returns its Group; what it does not take goes to ``meta``.
"""

from __future__ import annotations

from trimtab.records.fields import CONVERSATIONS, FieldError, Fields, answer_from, split_conversation, take_prompt
from trimtab.records.types import Answer, Group, Message

ANSWER_KEYS = ("completion", "response", "output", "answer", "solution")


def alpaca(fields: Fields) -> Group:
    """``instruction``, ``input`` (joined to it after a blank line) and ``output``; ``system`` and ``history`` too."""
    prompt = take_prompt(fields)
    return _group(fields, prompt, Answer(text=fields.text("output", "response")))


def conversation(fields: Fields) -> Group:
    """OpenAI ``messages`` or ShareGPT ``conversations``: the prompt ends where the assistant first speaks.

    What follows is the answer, of one turn or several. With no assistant turn at all the Group is a prompt to sample
    from; a conversation that ends with another's turn has no answer and is refused.
    """
    key = fields.one_of(*CONVERSATIONS)
    prompt, rest = split_conversation(take_prompt(fields))
    answers = (answer_from(rest, fields.name(key)),) if rest else ()
    return Group(id=fields.id(), prompt=prompt, answers=answers, meta=fields.rest())


def prompt_completion(fields: Fields) -> Group:
    """``prompt`` and ``completion`` (or ``response``, ``output``, ``answer``), each text or messages."""
    return _group(fields, take_prompt(fields), take_answer(fields, *ANSWER_KEYS))


def question_answer(fields: Fields) -> Group:
    """A question with its worked answer, its final answer, or both.

    The final answer becomes ``meta["final"]``, as text, for rule rewards: from ``final``, or from after the ``####`` of
    a gsm8k solution.
    """
    prompt = take_prompt(fields)
    key = fields.first("solution", "answer", "output", "response")
    worked = None
    if key is not None:
        value = fields.take(key)
        worked = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else fields.text(key)
    meta = {"final": _final(fields, worked)}
    answers = () if worked is None else (Answer(text=worked),)
    found = fields.id()
    return Group(
        id=found, prompt=prompt, answers=answers, meta=fields.rest() | {k: v for k, v in meta.items() if v is not None}
    )


def code_task(fields: Fields) -> Group:
    """A programming task with its reference solution; the tests stay in ``meta`` (``test_list`` or ``test``)."""
    return _group(fields, take_prompt(fields), Answer(text=fields.text("code", "canonical_solution")))


def text(fields: Fields) -> Group:
    """Plain ``text``: an empty prompt and the text as the one answer."""
    return _group(fields, (), Answer(text=fields.text("text")))


def prompts(fields: Fields) -> Group:
    """A prompt alone, to sample answers for."""
    prompt = take_prompt(fields)
    return Group(id=fields.id(), prompt=prompt, meta=fields.rest())


def take_answer(fields: Fields, *keys: str, model: str | None = None) -> Answer:
    """Take an answer that is text, messages, or one message."""
    key = fields.one_of(*keys)
    if isinstance(fields.row[key], str):
        return Answer(text=fields.text(key), model=model)
    return answer_from(fields.messages(key), fields.name(key), model=model)


def _group(fields: Fields, prompt: tuple[Message, ...], answer: Answer) -> Group:
    return Group(id=fields.id(), prompt=prompt, answers=(answer,), meta=fields.rest())


def _final(fields: Fields, worked: str | None) -> str | None:
    if fields.has("final"):
        value = fields.take("final")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise FieldError(fields.name("final"), "expected text or a number")
        return str(value)
    if worked is not None and "####" in worked:
        return worked.rsplit("####", 1)[1].strip()
    return None
