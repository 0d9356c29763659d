"""What a data set holds, before anything is trained on it: counts, lengths, biases, repeats, rows that would be lost.

inspection = inspect(read_groups("data/", on_bad="skip"), count_tokens, window=2048, max_answer=512)
rich.print(render(inspection))
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.records.read import Reading
from trimtab.records.types import Answer, Group, Pair, Said, pairs

CountTokens = Callable[[Group], tuple[int, tuple[int, ...]]]
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
SHOWN = 12
BAR = 40
_CJK = "぀-ヿ㐀-䶿一-鿿豈-﫿가-힯"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of lengths: ``quantiles`` by probability (nearest rank), ``bins`` as (from, to, count)."""

    count: int
    quantiles: Mapping[float, int]
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """``hits`` of ``count``."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """The share, ``None`` where nothing was counted."""
        return self.hits / self.count if self.count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFacts:
    """What the preferences (pairs, and the pairs that rankings imply) have in common.

    ``longer_wins`` counts the pairs of unequal length; ``finished_wins`` those in which one answer was cut by a cap and
    the other was not; ``identical`` are strict preferences between two answers with the same text; ``ties`` are the
    Pair verdicts that say so.
    """

    strict: int
    ties: int
    identical: int
    longer_wins: Share
    finished_wins: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A row that is or would be lost or cut: where it stands, and why."""

    place: str
    kind: Literal["refused", "too long", "empty"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What ``inspect`` found; ``unit`` says whether lengths are tokens or, without a tokenizer, words.

    ``duplicates`` counts the Groups whose prompt (or text, where there is no prompt) stood in an earlier Group already.
    """

    format: str
    digest: str
    groups: int
    answers: int
    verdicts: Mapping[str, int]
    raters: Mapping[str, int]
    turns: Mapping[int, int]
    unit: Literal["tokens", "words"]
    prompt_lengths: Lengths
    answer_lengths: Lengths
    pairs: PairFacts
    duplicates: int
    repeated_ids: int
    problems: tuple[Problem, ...]
    window: int | None
    max_answer: int | None


def inspect(
    reading: Reading, count_tokens: CountTokens | None, *, window: int | None = None, max_answer: int | None = None
) -> Inspection:
    """Count what a reading holds.

    ``count_tokens`` gives a Group's prompt length and its answers' lengths in tokens, as training would see them;
    without it lengths are words (a Chinese, Japanese or Korean character is one) and ``window`` and ``max_answer``, in
    tokens, are not checked. Groups with an empty answer are named, since a model learns silence from them.
    """
    groups = reading.groups
    lengths = [(count_tokens or count_words)(group) for group in groups]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    checked = (window, max_answer) if count_tokens else (None, None)
    return Inspection(
        format=reading.format,
        digest=reading.digest,
        groups=len(groups),
        answers=sum(len(group.answers) for group in groups),
        verdicts=_counted(type(verdict).__name__.lower() for verdict in verdicts),
        raters=_counted(_rater(verdict) for verdict in verdicts),
        turns=dict(sorted(Counter(len(group.prompt) for group in groups).items())),
        unit="tokens" if count_tokens else "words",
        prompt_lengths=measure([prompt for prompt, _ in lengths]),
        answer_lengths=measure([answer for _, answers in lengths for answer in answers]),
        pairs=pair_facts(groups, [answers for _, answers in lengths]),
        duplicates=_extra(_said_first(group) for group in groups),
        repeated_ids=_extra(group.id for group in groups),
        problems=tuple(_problems(reading, lengths, *checked)),
        window=checked[0],
        max_answer=checked[1],
    )


def count_words(group: Group) -> tuple[int, tuple[int, ...]]:
    """Return the words of a Group's prompt and of each answer; each ideograph, kana or syllable block is one."""
    prompt = sum(len(_WORD.findall(message.content)) for message in group.prompt)
    return prompt, tuple(len(_WORD.findall(_whole(answer))) for answer in group.answers)


def measure(lengths: Sequence[int]) -> Lengths:
    """Return the nearest-rank quantiles and a histogram with doubling bins (0, 1, 2-3, 4-7, ...) of some lengths."""
    ordered = sorted(lengths)
    rank = {q: max(math.ceil(q * len(ordered)), 1) - 1 for q in QUANTILES}
    counts = Counter(length.bit_length() for length in ordered)
    used = range(min(counts), max(counts) + 1) if counts else range(0)
    return Lengths(
        count=len(ordered),
        quantiles={q: ordered[at] for q, at in rank.items()} if ordered else {},
        bins=tuple((2**bits // 2, max(2**bits - 1, 0), counts[bits]) for bits in used),
    )


def pair_facts(groups: Sequence[Group], lengths: Sequence[tuple[int, ...]]) -> PairFacts:
    """Return what the preferences in these Groups favour; ``lengths`` are each Group's answer lengths."""
    longer = longer_of = finished = finished_of = identical = strict = ties = 0
    for group, length in zip(groups, lengths, strict=True):
        ties += sum(isinstance(verdict, Pair) and verdict.tie is not None for verdict in group.verdicts)
        for pair in pairs(group):
            better, worse = group.answers[pair.better], group.answers[pair.worse]
            strict += 1
            identical += _whole(better) == _whole(worse)
            longer += length[pair.better] > length[pair.worse]
            longer_of += length[pair.better] != length[pair.worse]
            finished += better.finish != "length" and worse.finish == "length"
            finished_of += (better.finish == "length") != (worse.finish == "length")
    return PairFacts(
        strict=strict,
        ties=ties,
        identical=identical,
        longer_wins=Share(hits=longer, count=longer_of),
        finished_wins=Share(hits=finished, count=finished_of),
    )


def _whole(answer: Answer) -> str:
    return "\n".join(message.content for message in answer.messages) if answer.messages else answer.text


def _rater(verdict: Said) -> str:
    return verdict.rater or "(not named)"


def _counted(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _extra(keys: Iterator[object]) -> int:
    return sum(count - 1 for count in Counter(keys).values())


def _said_first(group: Group) -> object:
    """Return what makes two Groups duplicates: the prompt, or the text of Groups that have none."""
    return group.prompt or tuple(_whole(answer) for answer in group.answers)


def _problems(
    reading: Reading, lengths: Sequence[tuple[int, tuple[int, ...]]], window: int | None, max_answer: int | None
) -> Iterator[Problem]:
    for refused in reading.refused:
        reason = f"field {refused.field!r}: {refused.reason}" if refused.field else refused.reason
        yield Problem(place=str(refused.place), kind="refused", reason=reason)
    for i, (group, (prompt, answers)) in enumerate(zip(reading.groups, lengths, strict=True)):
        place = str(reading.places[i]) if reading.places else f"group {group.id}"
        if not answers and window is not None and prompt > window:
            yield Problem(
                place=place, kind="too long", reason=f"the prompt has {prompt:,} tokens, the window {window:,}"
            )
        for j, (answer, count) in enumerate(zip(group.answers, answers, strict=True)):
            if not _whole(answer).strip():
                yield Problem(place=place, kind="empty", reason=f"answer {j} is empty")
            if max_answer is not None and count > max_answer:
                reason = f"answer {j} has {count:,} tokens, an answer may have {max_answer:,}"
                yield Problem(place=place, kind="too long", reason=reason)
            elif window is not None and prompt + count > window:
                reason = f"the prompt and answer {j} have {prompt + count:,} tokens, the window {window:,}"
                yield Problem(place=place, kind="too long", reason=reason)


# --- for people -------------------------------------------------------------------------------------------------------


def render(inspection: Inspection) -> RenderableType:
    """Return an inspection as tables and text histograms for a terminal, with control characters shown, not sent."""
    parts: list[RenderableType] = [_overview(inspection), Text()]
    for name, lengths in (("prompts", inspection.prompt_lengths), ("answers", inspection.answer_lengths)):
        if lengths.count:
            parts += [*_histogram(f"{name}, in {inspection.unit}", lengths), Text()]
    if inspection.problems:
        parts.append(_problem_table(inspection.problems))
    return Stack(*parts)


def _overview(found: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def line(name: str, text: str) -> None:
        table.add_row(name, Text(visible(text)))

    line("format", f"{found.format}  (sha256 {found.digest[:16]})" if found.digest else found.format)
    line("groups", f"{found.groups:,} with {found.answers:,} answers")
    line("turns in a prompt", _listing(found.turns))
    line("verdicts", _listing(found.verdicts))
    line("raters", _listing(found.raters))
    facts = found.pairs
    if facts.strict or facts.ties:
        line(
            "preferences",
            f"{facts.strict:,} strict, {facts.ties:,} ties, {facts.identical:,} between identical answers",
        )
        line("the longer wins", _share(facts.longer_wins))
        line("the finished wins", _share(facts.finished_wins))
    line("repeated prompts", f"{found.duplicates:,}")
    line("repeated ids", f"{found.repeated_ids:,}")
    if found.unit == "words":
        line("note", "lengths are words, and nothing was checked against a window: name a model to count its tokens")
    return table


def _listing(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    shown = [f"{name}: {count:,}" for name, count in list(counts.items())[:SHOWN]]
    more = [f"and {len(counts) - SHOWN:,} more"] if len(counts) > SHOWN else []
    return ", ".join(shown + more) or "none"


def _share(share: Share) -> str:
    if share.value is None:
        return "no such pairs"
    return f"{share.value:.1%} of {share.count:,} pairs that differ in it"


def _histogram(title: str, lengths: Lengths) -> Iterator[Text]:
    marks = ("least", "25%", "median", "75%", "95%", "most")
    yield Text(title, style="bold")
    yield Text("  " + "  ".join(f"{m} {lengths.quantiles[q]:,}" for m, q in zip(marks, QUANTILES, strict=True)))
    names = [f"{low:,}" if low == high else f"{low:,}-{high:,}" for low, high, _ in lengths.bins]
    highest = max(count for _, _, count in lengths.bins)
    for name, (_, _, count) in zip(names, lengths.bins, strict=True):
        bar = "█" * math.ceil(BAR * count / highest)
        yield Text(f"  {name:>{max(map(len, names))}}  {bar:<{BAR}}  {count:,}".rstrip())


def _problem_table(problems: Sequence[Problem]) -> RenderableType:
    counts = Counter(problem.kind for problem in problems)
    title = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    table = Table.grid(padding=(0, 2))
    for kind in counts:
        for problem in [p for p in problems if p.kind == kind][:SHOWN]:
            table.add_row(Text(kind), Text(visible(problem.place)), Text(visible(problem.reason)))
        if counts[kind] > SHOWN:
            table.add_row(Text(kind), Text(f"... and {counts[kind] - SHOWN:,} more"), Text())
    return Stack(Text(f"rows to look at: {title}", style="bold"), table)


def visible(text: str, *, keep: str = "") -> str:
    """Show control and direction characters (but those in ``keep``) as escapes.

    So neither a data file nor a model can move the cursor, colour or rename the terminal, or turn a line around.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)
