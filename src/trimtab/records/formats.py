"""The formats that rows come in: one table, from the most telling fields to the least.

A format is a name, a test on a row's fields, and a reader ``Fields -> Group``. The first row of a file decides; a later
row that another format would claim is refused rather than misread.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trimtab.errors import DataError, did_you_mean
from trimtab.records import comparisons, demonstrations, ratings
from trimtab.records.codec import GROUP_KEYS, decode_group
from trimtab.records.fields import CONVERSATIONS, PROMPTS, QUESTIONS, FieldError, Fields, names
from trimtab.records.transcripts import is_transcript
from trimtab.records.types import Group

Keys = Mapping[str, object]
_ANSWER_FIELDS = (
    "answers",
    "verdicts",
    "completion",
    "response",
    "responses",
    "output",
    "chosen",
    "rejected",
    "answer",
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what its rows look like in a few words, how they are known, how one is read."""

    name: str
    fields: str
    claims: Callable[[Keys], bool]
    read: Callable[[Fields], Group]


def _any(row: Keys, *keys: str) -> bool:
    return any(key in row for key in keys)


def _all(row: Keys, *keys: str) -> bool:
    return all(key in row for key in keys)


def _is_group(row: Keys) -> bool:
    answers = row.get("answers")
    if isinstance(answers, list) and not _are_ranked(answers):
        return "prompt" in row or all(isinstance(answer, Mapping) and "text" in answer for answer in answers)
    return set(row) <= set(GROUP_KEYS) and _any(row, "meta", "verdicts") and isinstance(row.get("prompt"), list)


def _are_ranked(answers: object) -> bool:
    """Tell whether ``answers`` are Nectar's (each has an ``answer`` and a rank) and not our own, which have a text."""
    return isinstance(answers, list) and any(isinstance(item, Mapping) and "answer" in item for item in answers)


def _is_ranked(row: Keys) -> bool:
    listed = _any(row, "responses", "completions", "candidates") or _are_ranked(row.get("answers"))
    return listed and _any(row, *PROMPTS)


def _read_group(fields: Fields) -> Group:
    return decode_group(fields.row, default_id=fields.default_id)


def _is_thumbs(row: Keys) -> bool:
    label = row.get("label", row.get("kto_tag"))
    is_label = _any(row, "label", "kto_tag") and (label is None or isinstance(label, bool) or label in (0, 1))
    return is_label and _any(row, "completion", "response", *CONVERSATIONS)


def _is_rated(row: Keys) -> bool:
    scored = isinstance(row.get("scores"), Mapping) or isinstance(row.get("ratings"), Mapping)
    scored = scored or _any(row, "judge_scores", "score", "reward", "correct", "helpfulness")
    return scored and _any(row, "response", "completion", "output") and _any(row, *PROMPTS)


def _is_question(row: Keys) -> bool:
    question = _any(row, "question", "query", "problem")
    return (question and _any(row, "answer", "solution", "response", "output")) or (
        "final" in row and _any(row, *PROMPTS)
    )


def _is_votes(row: Keys) -> bool:
    return any(_any(row, *keys) for keys in comparisons.PAIR_KEYS)


def _is_transcripts(row: Keys) -> bool:
    return "prompt" not in row and is_transcript(str(row.get("chosen"))) and isinstance(row.get("rejected"), str)


def _is_code(row: Keys) -> bool:
    return _any(row, "code", "canonical_solution") and _any(row, "test_list", "test")


def _is_labelled(row: Keys) -> bool:
    return "text" in row and isinstance(row.get("label"), int | float) and not _any(row, *PROMPTS)


FORMATS: tuple[Format, ...] = (
    Format("group", "Trimtab's own: prompt, answers, verdicts, meta", _is_group, _read_group),
    Format(
        "refusals",
        "response, human, judge with refusal labels",
        lambda row: _all(row, "response", "human_final", "judge"),
        ratings.refusals,
    ),
    Format(
        "reaction",
        "prompt, error_response, next_response, has_error",
        lambda row: _all(row, "error_response", "has_error"),
        ratings.reaction,
    ),
    Format("votes", "two answers (response_a, response_b) and raters' labels", _is_votes, comparisons.votes),
    Format(
        "ranked",
        "prompt, responses with ranks or scores",
        _is_ranked,
        ratings.ranked,
    ),
    Format("transcripts", "HH-RLHF: chosen, rejected", _is_transcripts, comparisons.transcripts),
    Format(
        "preference", "prompt, chosen, rejected", lambda row: _any(row, "chosen", "rejected"), comparisons.preference
    ),
    Format("thumbs", "prompt, completion or response, label", _is_thumbs, ratings.thumbs),
    Format("rated", "prompt, response, scores", _is_rated, ratings.rated),
    Format("code", "prompt, code, tests", _is_code, demonstrations.code_task),
    Format("question_answer", "question, answer or solution, final", _is_question, demonstrations.question_answer),
    Format(
        "alpaca",
        "instruction, input, output",
        lambda row: "instruction" in row and _any(row, "output", "response"),
        demonstrations.alpaca,
    ),
    Format(
        "prompt_completion",
        "prompt, completion or response",
        lambda row: _any(row, "prompt", *QUESTIONS) and _any(row, *demonstrations.ANSWER_KEYS),
        demonstrations.prompt_completion,
    ),
    Format(
        "messages",
        "messages of role and content, or conversations of from and value",
        lambda row: _any(row, *CONVERSATIONS) and "prompt" not in row,
        demonstrations.conversation,
    ),
    Format("labelled_text", "text, label", _is_labelled, ratings.labelled_text),
    Format("text", "text", lambda row: "text" in row and not _any(row, *PROMPTS), demonstrations.text),
    Format("prompts", "prompt, question or instruction", lambda row: _any(row, *PROMPTS), demonstrations.prompts),
)


def named(name: str) -> Format:
    """Return the format of that name, or say which was probably meant."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise DataError(f"no format {name!r}{did_you_mean(name, [known.name for known in FORMATS])}")


def detect(row: Keys) -> Format:
    """Return the format that a row's fields tell of; raise ``FieldError`` that names them and the known formats."""
    found = next((known for known in FORMATS if known.claims(row)), None)
    if found is None:
        known = "; ".join(f"{f.name} ({f.fields})" for f in FORMATS)
        raise FieldError(None, f"no known format has the fields {names(row)}; known formats: {known}")
    if found.name == "prompts":
        for key, value in row.items():  # a prompt is so little to go by that a misspelt answer would pass for meta
            near = [] if value is None else difflib.get_close_matches(key, _ANSWER_FIELDS, n=1, cutoff=0.8)
            if near:
                meant = "" if near[0] == key else f"; did you mean {near[0]!r}?"
                raise FieldError(key, f"is not understood beside a prompt alone{meant}")
    return found
