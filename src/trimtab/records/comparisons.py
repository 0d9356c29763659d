"""Readers of rows in which one of two answers is better: chosen and rejected, transcripts, votes of several raters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from trimtab.records.fields import PROMPTS, FieldError, Fields, answer_from, as_list, as_object, as_text, take_prompt
from trimtab.records.transcripts import parse_transcript
from trimtab.records.types import Answer, Group, Message, Pair, Score, Tie, Verdict

Choice = Literal["first", "second", "tie", "both_good", "both_bad"]
CHOICES: Mapping[str, Choice] = {
    **dict.fromkeys(("1", "a", "model_a", "response_a", "response_1", "first", "left"), "first"),
    **dict.fromkeys(("2", "b", "model_b", "response_b", "response_2", "second", "right"), "second"),
    **dict.fromkeys(("0", "n", "tie", "equal", "neither", "none"), "tie"),
    **dict.fromkeys(("both_bad", "bothbad", "tie (bothbad)"), "both_bad"),
    **dict.fromkeys(("both_good", "bothgood"), "both_good"),
}
PAIR_KEYS = (("response_1", "response_2"), ("response_a", "response_b"), ("conversation_a", "conversation_b"))
OVERALL = ("overall", "quality_overall", "overall_quality", "preference", "quality")
TIES: tuple[Tie, ...] = ("tie", "both_good", "both_bad")


def preference(fields: Fields) -> Group:
    """``prompt``, ``chosen`` and ``rejected``, each text or messages; the prompt may be the beginning both share.

    Honoured besides: ``strength``, ``probability``, ``tie``, ``rater`` (or ``annotator``), ``reason``, ``time``,
    ``seconds``, ``chosen_model`` / ``rejected_model``, and the scores ``score_chosen`` / ``score_rejected``.
    """
    sides = [_side(fields, key) for key in ("chosen", "rejected")]
    if fields.first(*PROMPTS) is not None:
        prompt, rests = _given_prompt(take_prompt(fields), sides)
    else:
        prompt, rests = _shared_prompt(sides)
    models = [fields.optional_text(f"{side}_model", f"model_{side}") for side in ("chosen", "rejected")]
    answers = tuple(
        answer_from(rest, key, model=model)
        for rest, key, model in zip(rests, ("chosen", "rejected"), models, strict=True)
    )
    scores = [
        Score(answer=i, values={"score": score})
        for i, side in enumerate(("chosen", "rejected"))
        if (score := fields.optional_number(f"score_{side}", f"{side}_score", f"{side}_rating")) is not None
    ]
    verdicts: tuple[Verdict, ...] = (_chosen_pair(fields), *scores)
    return Group(id=fields.id(), prompt=prompt, answers=answers, verdicts=verdicts, meta=fields.rest())


def transcripts(fields: Fields) -> Group:
    """HH-RLHF: two whole transcripts in ``chosen`` and ``rejected``; the turns they share are the prompt."""
    sides = []
    for key in ("chosen", "rejected"):
        turns = parse_transcript(fields.text(key))
        if not turns:
            raise FieldError(
                fields.name(key), "no transcript: expected turns that begin with 'Human:' and 'Assistant:'"
            )
        sides.append(turns)
    prompt, rests = _shared_prompt(sides)
    answers = tuple(answer_from(rest, key) for rest, key in zip(rests, ("chosen", "rejected"), strict=True))
    verdicts = (Pair(better=0, worse=1),)
    return Group(id=fields.id(), prompt=prompt, answers=answers, verdicts=verdicts, meta=fields.rest())


def votes(fields: Fields) -> Group:
    """Two answers and what several raters said: one Pair verdict for each person and judge that the row names.

    ``human`` and ``judge`` are labels (a list, or an object by rater), or votes by attribute; then the overall
    attribute gives the Pair, and every attribute a Score of 1 (won), 1/2 (tie) or 0 for both answers. ``winner`` is one
    label (Chatbot Arena). A null label is no verdict. Aggregates of the votes stay in ``meta``.
    """
    keys = next((keys for keys in PAIR_KEYS if fields.has(*keys)), None)
    if keys is None:
        keys = next((keys for keys in PAIR_KEYS if fields.first(*keys)), PAIR_KEYS[0])
        raise FieldError(next(key for key in keys if not fields.has(key)), "is missing")
    models = _models(fields)
    if keys == PAIR_KEYS[2]:
        prompt, rests = _shared_prompt([fields.messages(key) for key in keys])
        answers = tuple(answer_from(r, k, model=m) for r, k, m in zip(rests, keys, models, strict=True))
    else:
        prompt = take_prompt(fields)
        answers = tuple(Answer(text=fields.text(k), model=m) for k, m in zip(keys, models, strict=True))
    verdicts = (*_winner(fields), *_human_votes(fields), *_judge_votes(fields))
    return Group(id=fields.id(), prompt=prompt, answers=answers, verdicts=verdicts, meta=fields.rest())


def choice_of(value: object, field: str) -> Choice:
    """Return what a label says of two answers: the first, the second, or a kind of tie."""
    word = str(value).lower() if isinstance(value, str | int) and not isinstance(value, bool) else None
    if word is None or word not in CHOICES:
        raise FieldError(field, f"no label {value!r}: expected 1, 2, a, b, 0 or tie, both_good, both_bad")
    return CHOICES[word]


def pair_of(
    choice: Choice, *, rater: str | None = None, reason: str | None = None, answers: tuple[int, int] = (0, 1)
) -> Pair:
    """Return the Pair that a label makes of two answers."""
    first, second = answers
    if choice == "first":
        return Pair(better=first, worse=second, rater=rater, reason=reason)
    if choice == "second":
        return Pair(better=second, worse=first, rater=rater, reason=reason)
    return Pair(better=first, worse=second, tie=choice, rater=rater, reason=reason)


# --- chosen and rejected ----------------------------------------------------------------------------------------------


def _side(fields: Fields, key: str) -> tuple[Message, ...]:
    """Take one side as turns; a text is one turn of the assistant."""
    if isinstance(fields.row.get(key), str):
        return (Message(role="assistant", content=fields.text(key)),)
    fields.one_of(key)
    turns = fields.messages(key)
    if not turns:
        raise FieldError(fields.name(key), "holds no turns, so there is no answer")
    return turns


def _given_prompt(
    prompt: tuple[Message, ...], sides: Sequence[tuple[Message, ...]]
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Return the prompt and each side without it, where the sides repeat it.

    A prompt of one text may be repeated with a system message before it, or more turns: then the longer one counts.
    """
    if all(turn.role != "user" for side in sides for turn in side):
        return prompt, list(sides)
    if all(side[: len(prompt)] == prompt for side in sides):
        return prompt, [side[len(prompt) :] for side in sides]
    shared, rests = _shared_prompt(sides)
    said = [turn.content for turn in shared if turn.role == "user"]
    if prompt and said and prompt[-1].content in (said[0], said[-1]):
        return shared, rests
    raise FieldError("chosen", "holds turns of the user, but does not begin with the prompt")


def _shared_prompt(sides: Sequence[tuple[Message, ...]]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Split two conversations before the assistant's turn in which they part (the last one, when they do not)."""
    first, second = sides
    shortest = min(len(first), len(second))
    parting = next((i for i in range(shortest) if first[i] != second[i]), shortest - 1)
    at = next((i for i in range(parting, -1, -1) if first[i].role == second[i].role == "assistant"), None)
    if at is None:
        raise FieldError("rejected", "shares no prompt with 'chosen' that an assistant's turn follows in both")
    return first[:at], [first[at:], second[at:]]


def _chosen_pair(fields: Fields) -> Pair:
    rater = fields.optional_text("rater")
    annotator = None if rater else fields.first("annotator", "annotator_id", "worker", "worker_id")
    if annotator:
        rater = f"human:{fields.take(annotator)}"
    probability = fields.optional_number("probability")
    if probability is not None and not 0 <= probability <= 1:
        raise FieldError("probability", f"expected a probability from 0 to 1, found {probability}")
    return Pair(
        better=0,
        worse=1,
        strength=fields.optional_number("strength"),
        probability=probability,
        tie=_tie(fields),
        rater=rater,
        reason=fields.optional_text("reason"),
        time=fields.optional_text("time"),
        seconds=fields.optional_number("seconds"),
    )


def _tie(fields: Fields) -> Tie | None:
    if not fields.has("tie"):
        return None
    value = fields.take("tie")
    if isinstance(value, bool):
        return "tie" if value else None
    for tie in TIES:
        if value == tie:
            return tie
    raise FieldError(fields.name("tie"), f"expected true, false or one of {', '.join(TIES)}, found {value!r}")


# --- votes ------------------------------------------------------------------------------------------------------------


def _models(fields: Fields) -> tuple[str | None, str | None]:
    """Take who wrote the answers: ``model_a`` and ``model_b``, a list, or ``one_other`` under ``models``."""
    if fields.has("model_a", "model_b"):
        return fields.text("model_a"), fields.text("model_b")
    key = fields.first("models", "author", "authors")
    if key is None:
        return None, None
    value = fields.row[key]
    if isinstance(value, str):
        both: Sequence[object] = value.split("_") if key == "models" else ()
    else:
        both = as_list(value, fields.name(key))
    if len(both) != 2:
        return None, None  # not understood: it stays in meta
    fields.take(key)
    return as_text(both[0], f"{key}[0]"), as_text(both[1], f"{key}[1]")


def _winner(fields: Fields) -> Iterator[Pair]:
    """Chatbot Arena: ``winner``, and in ``judge`` the one who said so."""
    if not fields.has("winner"):
        return
    rater = fields.optional_text("judge") if isinstance(fields.row.get("judge"), str) else None
    if rater is not None:
        human = rater.startswith(("arena_user", "expert", "author"))
        rater = f"{'human' if human else 'judge'}:{rater}"
    yield pair_of(choice_of(fields.take("winner"), "winner"), rater=rater)


def _human_votes(fields: Fields) -> Iterator[Verdict]:
    """``human``: ``[label, ...]``, ``{rater: label}`` or ``{attribute: {"votes": [label, ...]}}``."""
    if not fields.has("human"):
        return
    value = fields.take("human")
    if not isinstance(value, Mapping):
        for i, label in enumerate(as_list(value, "human")):
            if label is not None:
                yield pair_of(choice_of(label, f"human[{i}]"), rater=f"human:{i + 1}")
        return
    if not any(isinstance(item, Mapping) for item in value.values()):
        for name, label in value.items():
            if label is not None:
                yield pair_of(choice_of(label, f"human.{name}"), rater=f"human:{name}")
        return
    fields.put_back("human")  # gold labels and shares beside the votes
    raters = [str(r) for r in as_list(fields.take("annotators"), "annotators")] if fields.has("annotators") else []
    for i, labels in enumerate(_by_rater(value, len(raters))):
        yield from _attribute_votes(labels, f"human:{raters[i] if raters else i + 1}", f"human, vote {i + 1}")


def _by_rater(human: Mapping[str, object], raters: int) -> list[dict[str, object]]:
    """Turn ``{attribute: {"votes": [...]}}`` into one ``{attribute: label}`` for each rater."""
    found: list[dict[str, object]] = []
    for attribute, value in human.items():
        at = f"human.{attribute}"
        cast = as_list(as_object(value, at).get("votes"), f"{at}.votes")
        if raters and len(cast) != raters:
            raise FieldError(f"{at}.votes", f"{len(cast)} votes, but {raters} annotators")
        found.extend({} for _ in range(len(cast) - len(found)))
        for labels, label in zip(found, cast, strict=False):
            labels[attribute] = label
    return found


def _judge_votes(fields: Fields) -> Iterator[Verdict]:
    """``judge``: ``{name: label}`` with ``judge_reason: {name: text}``, or ``{name: {attribute: label}}``."""
    if not isinstance(fields.row.get("judge"), Mapping):
        return
    judges = as_object(fields.take("judge"), "judge")
    reasons: Mapping[str, object] = {}
    if isinstance(fields.row.get("judge_reason"), Mapping):
        reasons = as_object(fields.take("judge_reason"), "judge_reason")
    for name, label in judges.items():
        reason = reasons.get(name)
        said = as_text(reason, f"judge_reason.{name}") if reason else None
        if isinstance(label, Mapping):
            yield from _attribute_votes(label, f"judge:{name}", f"judge.{name}")
        elif label is not None:
            yield pair_of(choice_of(label, f"judge.{name}"), rater=f"judge:{name}", reason=said)
        elif said:
            fields.put_back("judge_reason")  # a reason without a label has no verdict to stand in


def _attribute_votes(labels: Mapping[str, object], rater: str, at: str) -> Iterator[Verdict]:
    """Yield the Pair of the overall attribute, and both answers' Scores for all attributes."""
    choices = {name: choice_of(label, f"{at}.{name}") for name, label in labels.items() if label is not None}
    overall = next(
        (name for name in OVERALL if name in choices), next(iter(choices), None) if len(choices) == 1 else None
    )
    if overall is not None:
        yield pair_of(choices[overall], rater=rater)
    if choices:
        first = {name: {"first": 1.0, "second": 0.0}.get(choice, 0.5) for name, choice in choices.items()}
        yield Score(answer=0, values=first, rater=rater)
        yield Score(answer=1, values={name: 1.0 - share for name, share in first.items()}, rater=rater)
