"""Readers of rows whose answers are ranked, scored or given thumbs: K-wise lists, attribute ratings, KTO, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trimtab.errors import did_you_mean
from trimtab.records.comparisons import choice_of, pair_of
from trimtab.records.demonstrations import take_answer
from trimtab.records.fields import (
    FieldError,
    Fields,
    answer_from,
    as_list,
    as_number,
    as_object,
    as_text,
    take_prompt,
)
from trimtab.records.types import Answer, Edit, Group, Pair, Ranking, Score, Thumb, Verdict

LIST_KEYS = ("responses", "completions", "candidates", "answers")
SCORE_DICTS = ("scores", "ratings", "grades", "attributes")
SCORE_NUMBERS = ("score", "overall_score", "reward", "correct")
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
RATER_KEYS = ("annotator", "rater", "worker")
REFUSAL = {"1_full_compliance": 0.0, "3_partial_refusal": 0.5, "2_full_refusal": 1.0}


def thumbs(fields: Fields) -> Group:
    """``completion`` (or ``response``) and ``label``, true for a thumb up: KTO's rows.

    The answer may also be the last turn of ``messages``. A null label is no verdict; whatever counts stand beside it
    stay in ``meta``.
    """
    if fields.first("completion", "response"):
        prompt = take_prompt(fields)
        answer = take_answer(fields, "completion", "response")
    else:
        turns = take_prompt(fields)
        prompt, answer = turns[:-1], answer_from(turns[-1:], "messages")
    key = fields.first("label", "kto_tag")
    thumb = () if key is None else (Thumb(answer=0, up=_up(fields.take(key), key)),)
    verdicts = (*thumb, *_scores(fields, 0))
    return Group(id=fields.id(), prompt=prompt, answers=(answer,), verdicts=verdicts, meta=fields.rest())


def reaction(fields: Fields) -> Group:
    """A dialogue's next answer, and whether it was in error: ``error_response`` with what the user said to it.

    With ``has_error`` the answer is ``error_response`` with a thumb down, and the reaction and the repaired
    ``next_response`` stay in ``meta``; without, it is ``next_response`` with a thumb up.
    """
    prompt = take_prompt(fields)
    wrong = fields.take("has_error")
    if not isinstance(wrong, bool):
        raise FieldError("has_error", "expected true or false")
    answer = Answer(text=fields.text("error_response" if wrong else "next_response"))
    thumb = Thumb(answer=0, up=not wrong, reason=fields.optional_text("error_type"))
    return Group(id=fields.id(), prompt=prompt, answers=(answer,), verdicts=(thumb,), meta=fields.rest())


def rated(fields: Fields) -> Group:
    """One answer and its scores: by several judges (``judge_scores``), by attribute (``scores``, HelpSteer), or one."""
    named = _system_names_model(fields)
    prompt = take_prompt(fields, system=not named)
    model = fields.optional_text("model", "system") if named else fields.optional_text("model")
    answer = take_answer(fields, "response", "completion", "output", "answer", model=model)
    verdicts = (*_judge_scores(fields), *_scores(fields, 0))
    flat = {name: fields.optional_number(name) for name in HELPSTEER}
    values = {name: value for name, value in flat.items() if value is not None}
    verdicts = (*verdicts, Score(answer=0, values=values)) if values else verdicts
    found = _task_id(fields, answer.model)
    return Group(id=found, prompt=prompt, answers=(answer,), verdicts=verdicts, meta=fields.rest())


def refusals(fields: Fields) -> Group:
    """XSTest: people's and judges' labels of one answer, as a Score ``refusal`` from 0 (complied) to 1 (refused).

    A judge's output that is no label is no verdict and stays in ``meta``, as does the final human label.
    """
    prompt = take_prompt(fields, system=False)
    answer = take_answer(fields, "response", model=fields.optional_text("system", "model"))
    verdicts = []
    for i, label in enumerate(as_list(fields.take("human"), "human")):
        if label not in REFUSAL:
            raise FieldError(f"human[{i}]", f"no label {label!r}{did_you_mean(str(label), REFUSAL)}")
        verdicts.append(_refusal(str(label), f"human:{i + 1}"))
    for name, label in as_object(fields.take("judge"), "judge").items():
        if label in REFUSAL:
            verdicts.append(_refusal(str(label), f"{'rule' if name == 'string_match' else 'judge'}:{name}"))
        else:
            fields.put_back("judge")
    found = _task_id(fields, answer.model)
    return Group(id=found, prompt=prompt, answers=(answer,), verdicts=tuple(verdicts), meta=fields.rest())


def labelled_text(fields: Fields) -> Group:
    """Plain ``text`` with a number for a ``label``: an empty prompt, one answer, and the Score ``label``."""
    answer = Answer(text=fields.text("text"))
    label = fields.take("label")
    value = float(label) if isinstance(label, bool) else as_number(label, "label")
    verdicts = (Score(answer=0, values={"label": value}),)
    return Group(id=fields.id(), answers=(answer,), verdicts=verdicts, meta=fields.rest())


def ranked(fields: Fields) -> Group:
    """A list of answers (``responses``) with ranks (1 is best), scores, several raters' ratings, or pairwise labels.

    The list may be Nectar's, ``answers`` with an ``answer`` each. Ranks make a Ranking, numbers make Scores,
    ``pairwise`` makes Pairs, ``feedback_on_response_N.corrected`` an Edit.
    What an answer's object holds besides stays in ``meta["responses"]``, one entry an answer.
    """
    prompt = take_prompt(fields)
    key = fields.one_of(*LIST_KEYS)
    if all(isinstance(item, str) for item in as_list(fields.row[key], key)):
        answers = [Answer(text=as_text(item, f"{key}[{i}]")) for i, item in enumerate(as_list(fields.take(key), key))]
        verdicts, left = [*_listed(fields, len(answers))], list[dict[str, object]]()
    else:
        items = fields.objects(key)
        answers = [_listed_answer(item) for item in items]
        verdicts = [*_ranking(items), *_several_raters(items)]
        for i, item in enumerate(items):
            verdicts.extend(_scores(item, i))
        left = [item.rest() for item in items]
    verdicts = [*verdicts, *_pairwise(fields), *_corrections(fields, answers)]
    found, meta = fields.id(), fields.rest()
    meta = meta | ({key: left} if any(left) else {})
    return Group(id=found, prompt=prompt, answers=tuple(answers), verdicts=tuple(verdicts), meta=meta)


# --- one answer -------------------------------------------------------------------------------------------------------


def _up(value: object, field: str) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise FieldError(field, f"expected true or false, found {value!r}")


def _system_names_model(fields: Fields) -> bool:
    """Tell whether ``system`` is the name of a model (one word) and no system prompt."""
    said = fields.row.get("system")
    return isinstance(said, str) and len(said.split()) == 1


def _task_id(fields: Fields, model: str | None) -> str:
    """Return an id that tells apart several models' answers to one prompt, which stand in rows of their own."""
    parts = [str(fields.row[key]) for key in ("bench", "question_id") if fields.has("bench", "question_id")]
    own = "-".join(parts) if parts else fields.id()
    named = bool(parts) or any(fields.has(key) for key in ("id", "task_id", "uid", "uuid"))
    return f"{own}/{model}" if named and model else own


def _judge_scores(fields: Fields) -> Iterator[Score]:
    if not fields.has("judge_scores"):
        return
    scores = as_list(fields.take("judge_scores"), "judge_scores")
    reasons = (
        as_list(fields.take("judge_feedback"), "judge_feedback")
        if fields.has("judge_feedback")
        else [None] * len(scores)
    )
    if len(reasons) != len(scores):
        raise FieldError("judge_feedback", f"{len(reasons)} texts, but {len(scores)} scores")
    for i, (score, reason) in enumerate(zip(scores, reasons, strict=True)):
        said = None if reason is None else as_text(reason, f"judge_feedback[{i}]")
        yield Score(
            answer=0, values={"score": as_number(score, f"judge_scores[{i}]")}, rater=f"judge:{i + 1}", reason=said
        )


def _refusal(label: str, rater: str) -> Score:
    return Score(answer=0, values={"refusal": REFUSAL[label]}, rater=rater, reason=label)


def _scores(fields: Fields, answer: int) -> Iterator[Score]:
    """Scores by attribute, or single numbers; true/false counts as 1/0."""
    values: dict[str, float] = {}
    for key in SCORE_DICTS:
        if isinstance(fields.row.get(key), Mapping):
            given = as_object(fields.take(key), fields.name(key))
            values |= {k: as_number(v, f"{fields.name(key)}.{k}") for k, v in given.items() if v is not None}
    for key in SCORE_NUMBERS:
        if fields.has(key):
            value = fields.take(key)
            values[key] = float(value) if isinstance(value, bool) else as_number(value, fields.name(key))
    if values:
        yield Score(answer=answer, values=values)


# --- lists of answers -------------------------------------------------------------------------------------------------


def _listed_answer(item: Fields) -> Answer:
    model = item.optional_text("model", "system", "author")
    return Answer(text=item.text("text", "response", "answer", "content", "completion"), model=model)


def _tiers(ranks: Mapping[int, float], **said: str | None) -> Iterator[Ranking]:
    """Yield the Ranking that ranks by answer make, 1 being best; nothing when fewer than two answers have one."""
    if len(ranks) > 1:
        order = tuple(tuple(i for i in ranks if ranks[i] == rank) for rank in sorted(set(ranks.values())))
        yield Ranking(order=order, rater=said.get("rater"))


def _ranking(items: list[Fields]) -> Iterator[Ranking]:
    found = {i: item.optional_number("rank") for i, item in enumerate(items)}
    yield from _tiers({i: rank for i, rank in found.items() if rank is not None})


def _several_raters(items: list[Fields]) -> Iterator[Verdict]:
    """``human``: for each answer a list of ``{"annotator": ..., "x_rating": ..., "overall_rank": ...}``."""
    ranks: dict[str, dict[int, float]] = {}
    for i, item in enumerate(items):
        if not isinstance(item.row.get("human"), list):
            continue
        for said in item.objects("human"):
            key = said.one_of(*RATER_KEYS)
            rater = f"human:{said.take(key)}"
            values = {
                name.removesuffix("_rating"): as_number(said.take(name), said.name(name))
                for name in said.row
                if isinstance(said.row[name], int | float) and name not in RATER_KEYS and not name.endswith("rank")
            }
            if values:
                yield Score(answer=i, values=values, rater=rater)
            rank = said.optional_number("overall_rank", "rank")
            if rank is not None:
                ranks.setdefault(rater, {})[i] = rank
            if said.rest():
                item.put_back("human")  # ranks by single attribute, remarks
    for rater, given in ranks.items():
        yield from _tiers(given, rater=rater)


def _listed(fields: Fields, count: int) -> Iterator[Verdict]:
    """``ranks`` or ``scores`` beside a list of texts."""
    for key in ("ranks", "scores"):
        if not fields.has(key):
            continue
        numbers = as_list(fields.take(key), key)
        if len(numbers) != count:
            raise FieldError(key, f"{len(numbers)} numbers, but {count} answers")
        given = {i: as_number(n, f"{key}[{i}]") for i, n in enumerate(numbers) if n is not None}
        if key == "ranks":
            yield from _tiers(given)
        else:
            yield from (Score(answer=i, values={"score": n}) for i, n in given.items())


def _pairwise(fields: Fields) -> Iterator[Pair]:
    if not fields.has("pairwise"):
        return
    for item in fields.objects("pairwise"):
        a, b = (item.optional_number(key) for key in ("a", "b"))
        if a is None or b is None:
            raise FieldError(item.name("a"), "a pairwise label needs 'a', 'b' and 'label'")
        yield pair_of(choice_of(item.take("label"), item.name("label")), answers=(int(a), int(b)))


def _corrections(fields: Fields, answers: list[Answer]) -> Iterator[Edit]:
    for key in list(fields.row):
        match = re.fullmatch(r"feedback_on_response_(\d+)", key)
        if not match or not isinstance(fields.row[key], Mapping):
            continue
        corrected, answer = as_object(fields.row[key], key).get("corrected"), int(match[1])
        if corrected is not None and answer < len(answers) and corrected != answers[answer].text:
            yield Edit(answer=answer, text=as_text(corrected, f"{key}.corrected"))
