"""Judged Groups that can be learned from; whatever is wrong with the others is counted and named.

    read_judged(source, with_pairs, run=run)      every strict preference, as Pairs
    read_judged(source, with_orders, run=run)     every order of answers, as Rankings
    read_judged(source, with_labels(), run=run)   every number given to an answer, as Scores

A *check* looks at one Group. It returns the Group with only what can be used of it, and what is wrong with the rest:

    empty          an answer without text, and what was said of it
    identical      a preference between two answers of the same text
    tie            a tie, where a strict preference is wanted
    not finite     a number that is NaN or infinite
    out of range   a number outside the bounds that it must keep
    unjudged       nothing of the wanted kind was said

``bad="skip"`` leaves out what is wrong and goes on; a Group of which nothing is left is gone, and so are answers that
no verdict names any more. ``bad="stop"`` stops at the first row that the reader refuses, that has a defect, or of which
nothing is left. A tie beside strict preferences is no defect: it is left out and counted either way. No torch here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from trimtab.errors import DataError
from trimtab.records.read import Reading, read_groups
from trimtab.records.types import (
    Answer,
    Group,
    Pair,
    Ranking,
    Score,
    Thumb,
    Verdict,
    answers_named,
    best_only,
    pairs,
)  # fmt: skip

if TYPE_CHECKING:
    from trimtab.train.run import Run

Bad = Literal["skip", "stop"]
Trouble = Literal["refused", "empty", "identical", "tie", "not finite", "out of range", "unjudged"]
Check = Callable[[Group], tuple[Group, list[Trouble]]]

WORDS: Mapping[Trouble, str] = {
    "refused": "cannot be read",
    "empty": "hold an empty answer",
    "identical": "prefer an answer to one of the same text",
    "tie": "hold a tie",
    "not finite": "hold a number that is NaN or infinite",
    "out of range": "hold a number outside 0 to 1",
    "unjudged": "hold no {what}",
}
MILD: frozenset[Trouble] = frozenset({"tie"})

MAIN_ATTRIBUTES = ("overall", "quality_overall", "overall_quality", "preference", "quality", "score", "reward")
"""Attributes that speak of an answer as a whole; without one of them only a single attribute implies an order."""

THUMB = "thumb"
"""The attribute that a thumb is a label of: 1 up, 0 down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Something that was left out: where it stands, what is wrong with it, and whether the whole Group is gone."""

    place: str
    trouble: Trouble
    reason: str
    gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Groups with only what can be used of them, where each stood, and everything that was left out."""

    groups: tuple[Group, ...]
    places: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = field(default=())

    @property
    def rows(self) -> int:
        """Rows looked at."""
        return len(self.groups) + self.gone

    @property
    def gone(self) -> int:
        """Rows of which nothing is left."""
        return len({item.place for item in self.left_out if item.gone})

    def counts(self) -> dict[Trouble, int]:
        """Rows by what is wrong with them; a row with two kinds of trouble counts for both."""
        once = dict.fromkeys((item.trouble, item.place) for item in self.left_out)
        return dict(Counter(trouble for trouble, _ in once))


def read_judged(source: str, check: Check, *, run: Run, bad: Bad = "skip", what: str = "strict preference") -> Judged:
    """Read a source and keep what can be used of it; the run is told what was left out, with the first place of each.

    ``what`` names the wanted kind of verdict. Raises DataError when nothing is left, or at the first bad row when
    ``bad`` is ``"stop"``.
    """
    reading = read_groups(source, on_bad=bad)
    refused = _refused(reading)
    found = usable(reading.groups, check, places=[str(place) for place in reading.places], what=what)
    judged = replace(found, left_out=(*refused, *found.left_out))
    if bad == "stop":
        stop_at_first(judged.left_out)
    for sentence in sentences(judged, source, what):
        run.note(sentence)
    if not judged.groups:
        first = f"; the first row: {judged.left_out[0].reason}" if judged.left_out else ""
        raise DataError(f"{source}: no {what} in it that could be learned from{first}")
    return judged


def read_unjudged(source: str, *, run: Run, bad: Bad = "skip") -> tuple[Group, ...]:
    """Read a source whose rows need no verdict; the run is told which cannot be read (``bad="stop"``: DataError)."""
    reading = read_groups(source, on_bad=bad)
    for sentence in sentences(Judged(groups=reading.groups, places=(), left_out=_refused(reading)), source, ""):
        run.note(sentence)
    return reading.groups


def read_demonstrations(source: str, *, run: Run, what: str, bad: Bad = "skip") -> list[Group]:
    """Read what next-token learning learns from: answers that lost to none and that nobody disliked.

    Groups without such an answer are left out, and the run is told. Raises DataError when nothing is left.
    """
    groups = read_unjudged(source, run=run, bad=bad)
    kept = [group for group in map(best_only, groups) if group.answers]
    if not kept:
        raise DataError(f"{source}: there is no answer in it to learn from")
    if len(kept) < len(groups):
        left = len(groups) - len(kept)
        run.note(f"{left} of {len(groups)} {what} were left out: without an answer, or all lost or were disliked")
    return kept


def _refused(reading: Reading) -> tuple[LeftOut, ...]:
    return tuple(
        LeftOut(place=str(row.place), trouble="refused", reason=str(row), gone=True) for row in reading.refused
    )


def usable(
    groups: Sequence[Group], check: Check, *, places: Sequence[str] | None = None, what: str = "strict preference"
) -> Judged:
    """Keep of some Groups what a check can use; without ``places`` they are named by their ids."""
    where = [f"group {group.id!r}" for group in groups] if places is None else places
    kept: list[tuple[Group, str]] = []
    left_out: list[LeftOut] = []
    for group, place in zip(groups, where, strict=True):
        found, troubles = check(group)
        gone = not found.verdicts
        if gone and not troubles:
            troubles = ["unjudged"]
        if not gone:
            kept.append((_only_named(found), place))
        left_out += [
            LeftOut(place=place, trouble=trouble, reason=f"{place}: {_singular(trouble, what)}", gone=gone)
            for trouble in dict.fromkeys(troubles)
        ]
    return Judged(groups=tuple(g for g, _ in kept), places=tuple(p for _, p in kept), left_out=tuple(left_out))


def stop_at_first(left_out: Iterable[LeftOut]) -> None:
    """Raise DataError for the first that is a defect or a whole Group."""
    for item in left_out:
        if item.gone or item.trouble not in MILD:
            raise DataError(f"{item.reason} (bad: skip goes on without it)")


def sentences(judged: Judged, source: str, what: str) -> Iterator[str]:
    """Say what was left out: a sentence for each kind of trouble, and how many whole rows it cost."""
    for trouble, count in judged.counts().items():
        first = next(item for item in judged.left_out if item.trouble == trouble)
        example = first.reason if trouble == "refused" else first.place
        yield f"{source}: {count} of {judged.rows} rows {WORDS[trouble].format(what=what)} (the first: {example})"
    if judged.gone:
        yield f"{source}: {judged.gone} of {judged.rows} rows were left out"


def _only_named(group: Group) -> Group:
    """Leave out answers that no verdict names: nothing is learned from them."""
    named = sorted({index for verdict in group.verdicts for index in answers_named(verdict)})
    if len(named) == len(group.answers):
        return group
    place = {old: new for new, old in enumerate(named)}

    def moved(verdict: Verdict) -> Verdict:
        match verdict:
            case Pair():
                return replace(verdict, better=place[verdict.better], worse=place[verdict.worse])
            case Ranking():
                return replace(verdict, order=tuple(tuple(place[index] for index in tier) for tier in verdict.order))
            case _:
                return replace(verdict, answer=place[verdict.answer])

    answers = tuple(group.answers[index] for index in named)
    return replace(group, answers=answers, verdicts=tuple(map(moved, group.verdicts)))


def _singular(trouble: Trouble, what: str) -> str:
    """``holds an empty answer``, out of ``hold an empty answer``."""
    verb, _, rest = WORDS[trouble].format(what=what).partition(" ")
    return f"{verb}s {rest}"


# --- checks -----------------------------------------------------------------------------------------------------------


def with_pairs(group: Group) -> tuple[Group, list[Trouble]]:
    """Keep every strict preference, those of rankings too, as Pairs.

    A soft label names the likelier answer first: P(better beats worse) is at least 1/2.
    """
    troubles: list[Trouble] = ["tie" for verdict in group.verdicts if _ties(verdict)]
    kept: list[Verdict] = []
    for pair in pairs(group):
        trouble = _trouble_of(group, pair)
        if trouble is None:
            kept.append(_likelier_first(pair))
        else:
            troubles.append(trouble)
    return replace(group, verdicts=tuple(kept)), troubles


def with_orders(group: Group) -> tuple[Group, list[Trouble]]:
    """Keep every order of answers as Rankings: rankings, pairs, and scores of raters who said nothing else.

    A rater's scores imply an order when they have an attribute that speaks of the whole (``MAIN_ATTRIBUTES``) or only
    one. Of a soft label only the likelier side counts (1/2: a tie). Of two answers of the same text in one ranking, the
    first is kept.
    """
    troubles: list[Trouble] = []
    orders: list[Ranking] = []
    said = {verdict.rater for verdict in group.verdicts if isinstance(verdict, Pair | Ranking)}
    for verdict in group.verdicts:
        match verdict:
            case Ranking():
                orders.append(verdict)
            case Pair(tie=None):
                trouble = _trouble_of(group, verdict)
                if trouble is None:
                    orders.append(_order_of_pair(verdict))
                else:
                    troubles.append(trouble)
            case Pair():
                troubles.append("tie")
    scores = [v for v in group.verdicts if isinstance(v, Score) and v.rater not in said]
    if any(not math.isfinite(value) for verdict in scores for value in verdict.values.values()):
        troubles.append("not finite")
    kept: list[Verdict] = []
    for order in (*orders, *_orders_of_scores(scores)):
        cleaned, found = _cleaned(group, order)
        troubles += found
        if len(cleaned.order) > 1:
            kept.append(cleaned)
    return replace(group, verdicts=tuple(kept)), troubles


def with_labels(attributes: Sequence[str] = (), *, chances: bool = False) -> Check:
    """Return a check that keeps numbers given to answers as Scores; a thumb is the attribute ``thumb``.

    ``attributes``: only these (none: all). ``chances``: a number must lie between 0 and 1.
    """

    def check(group: Group) -> tuple[Group, list[Trouble]]:
        kept: list[Verdict] = []
        troubles: list[Trouble] = []
        for verdict in group.verdicts:
            match verdict:
                case Score():
                    values = dict(verdict.values)
                case Thumb():
                    values = {THUMB: float(verdict.up)}
                case _:
                    continue
            values = {name: value for name, value in values.items() if not attributes or name in attributes}
            if values and _is_empty(group.answers[verdict.answer]):
                troubles.append("empty")
                continue
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            fitting = {name: value for name, value in finite.items() if not chances or 0 <= value <= 1}
            if len(finite) < len(values):
                troubles.append("not finite")
            if len(fitting) < len(finite):
                troubles.append("out of range")
            if fitting:
                kept.append(Score(answer=verdict.answer, values=fitting, rater=verdict.rater))
        return replace(group, verdicts=tuple(kept)), troubles

    return check


def with_thumbs(group: Group) -> tuple[Group, list[Trouble]]:
    """Keep thumbs; where there are none, the strict preferences, from which likes and dislikes can be told."""
    thumbs = [verdict for verdict in group.verdicts if isinstance(verdict, Thumb)]
    if not thumbs:
        return with_pairs(group)
    kept = tuple(verdict for verdict in thumbs if not _is_empty(group.answers[verdict.answer]))
    troubles: list[Trouble] = ["empty"] * (len(thumbs) - len(kept))
    return replace(group, verdicts=kept), troubles


def _is_empty(answer: Answer) -> bool:
    return not answer.text.strip()


def _same(a: Answer, b: Answer) -> bool:
    """Tell whether two answers read the same: spaces around them, and whether they were cut, do not count."""
    return a.text.strip() == b.text.strip() and a.messages[:-1] == b.messages[:-1]


def _ties(verdict: Verdict) -> bool:
    """Tell whether a verdict calls answers equal."""
    match verdict:
        case Pair():
            return verdict.tie is not None
        case Ranking():
            return any(len(tier) > 1 for tier in verdict.order)
        case _:
            return False


def _trouble_of(group: Group, pair: Pair) -> Trouble | None:
    """What is wrong with a strict preference, if anything."""
    better, worse = group.answers[pair.better], group.answers[pair.worse]
    numbers = [number for number in (pair.strength, pair.probability) if number is not None]
    if _is_empty(better) or _is_empty(worse):
        return "empty"
    if _same(better, worse):
        return "identical"
    if not all(math.isfinite(number) for number in numbers):
        return "not finite"
    if pair.probability is not None and not 0 <= pair.probability <= 1:
        return "out of range"
    return None


def _likelier_first(pair: Pair) -> Pair:
    """The same preference with the likelier answer as the better one."""
    if pair.probability is None or pair.probability >= 0.5:
        return pair
    return replace(pair, better=pair.worse, worse=pair.better, probability=1 - pair.probability)


def _order_of_pair(pair: Pair) -> Ranking:
    """The order that a strict preference is; of a soft label, the likelier one."""
    pair = _likelier_first(pair)
    tiers = ((pair.better, pair.worse),) if pair.probability == 0.5 else ((pair.better,), (pair.worse,))
    return Ranking(order=tiers, rater=pair.rater)


def _cleaned(group: Group, ranking: Ranking) -> tuple[Ranking, list[Trouble]]:
    """A ranking without empty answers and without a text that stands there twice."""
    troubles: list[Trouble] = ["tie"] if _ties(ranking) else []
    kept: list[int] = []
    for index in answers_named(ranking):
        if _is_empty(group.answers[index]):
            troubles.append("empty")
        elif any(_same(group.answers[index], group.answers[other]) for other in kept):
            troubles.append("identical")
        else:
            kept.append(index)
    tiers = (tuple(index for index in tier if index in kept) for tier in ranking.order)
    return replace(ranking, order=tuple(tier for tier in tiers if tier)), troubles


def _orders_of_scores(scores: Sequence[Score]) -> Iterator[Ranking]:
    """The order that each rater's numbers imply, if they imply one."""
    for rater in dict.fromkeys(verdict.rater for verdict in scores):
        own = [verdict for verdict in scores if verdict.rater == rater]
        names = list(dict.fromkeys(name for verdict in own for name in verdict.values))
        main = next((name for name in MAIN_ATTRIBUTES if name in names), names[0] if len(names) == 1 else None)
        given: dict[int, list[float]] = {}
        for verdict in own:
            number = math.nan if main is None else verdict.values.get(main, math.nan)
            if math.isfinite(number):
                given.setdefault(verdict.answer, []).append(number)
        means = {answer: sum(numbers) / len(numbers) for answer, numbers in given.items()}
        if len(means) > 1:
            levels = sorted(set(means.values()), reverse=True)
            yield Ranking(order=tuple(tuple(a for a in means if means[a] == level) for level in levels), rater=rater)
