"""What a kind of constraint is, and how its checkers read a text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from random import Random
from typing import Annotated, Any, Literal, get_type_hints

import pydantic

from trimtab.rewards import checks

Relation = Literal["at least", "at most", "exactly"]
Options = Mapping[str, Any]

QUOTES = "\"“”'‘’"
MARKUP = " #*_>" + QUOTES
"""What may stand before the first word of a line that must begin with something."""

_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def words(text: str) -> list[str]:
    """Return the words in lower case: runs of letters and digits, apostrophes inside kept (``rewards.checks``)."""
    return checks.words(text)


def has_words(text: str) -> bool:
    """Tell whether there is a word: a letter or a digit."""
    return _LETTER_OR_DIGIT.search(text) is not None


def lines(text: str) -> list[str]:
    """Return the lines that have words."""
    return [line for line in text.splitlines() if has_words(line)]


def sentences(text: str) -> list[str]:
    """Return the sentences that have words: split as ``rewards.checks.sentences`` does, and at every line's end."""
    # runs of spaces are made one first: they cost the splitter the square of their length
    return [part for line in lines(text) for part in checks.sentences(flat(line)) if has_words(part)]


def paragraphs(text: str) -> list[str]:
    """Return the runs of lines with words; an empty line ends one, and so does a line of marks (``***``)."""
    runs = groupby(text.splitlines(), key=has_words)
    return ["\n".join(run) for with_words, run in runs if with_words]


def flat(text: str) -> str:
    """Return the text with every run of white space made one space."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """Return the text in lower case with straight apostrophes."""
    return text.lower().replace("’", "'")


def found(text: str, *terms: str) -> list[str]:
    """Return every place where a word or phrase stands, whatever its case: no letter or digit may touch it.

    Any white space may part a phrase's words. Where two of them begin at one place, the longer is found.
    """
    parts = sorted({flat(plain(term)) for term in terms}, key=len, reverse=True)
    either = "|".join(re.escape(part).replace(r"\ ", r"\s+") for part in parts)
    return [flat(place) for place in re.findall(rf"(?<![^\W_])(?:{either})(?![^\W_])", plain(text))]


def compare(number: int, relation: Relation, count: int) -> bool:
    """Tell whether a number is at least, at most or exactly another."""
    return number == count or relation == ("at least" if number > count else "at most")


def _with_words(term: str) -> str:
    if not has_words(term):
        raise ValueError("there is no word in it")
    return term


def _one_letter(letter: str) -> str:
    if len(letter) != 1 or not letter.isalpha():
        raise ValueError("it should be one letter")
    return letter


Term = Annotated[str, pydantic.AfterValidator(_with_words)]
Letter = Annotated[str, pydantic.AfterValidator(_one_letter)]
Count = Annotated[int, pydantic.Field(ge=1, strict=True)]
Tally = Annotated[int, pydantic.Field(ge=0, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What every answer that fulfils a constraint has to find room for: a text, and more sentences and words."""

    text: str = ""
    sentences: int = 0
    words: int = 0


def nothing(**options: object) -> Needs:
    """Need no room."""
    return Needs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One kind: its checker, whose keyword-only parameters are its options, and the words that ask for it.

    ``wordings``: sentences with the options in braces; ``{count:word}`` becomes "3 words".
    ``draw(rng, prompt)``: random options that suit a prompt, or None where the kind does not suit it.
    ``needs(**options)``: what it has to find room for; see ``conflicts``.
    ``anywhere``: it suits any prompt, so that it may be drawn without being named.
    """

    check: Callable[..., bool]
    wordings: tuple[str, ...]
    draw: Callable[[Random, str], Options | None] = lambda rng, prompt: {}
    needs: Callable[..., Needs] = nothing
    anywhere: bool = True
    schema: type[pydantic.BaseModel] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the checker's options from its signature."""
        hints = get_type_hints(self.check, include_extras=True)
        names = [n for n, p in inspect.signature(self.check).parameters.items() if p.kind is p.KEYWORD_ONLY]
        build: Callable[..., type[pydantic.BaseModel]] = pydantic.create_model
        fields = {name: (hints[name], ...) for name in names}
        object.__setattr__(self, "schema", build(self.name, __config__=pydantic.ConfigDict(extra="forbid"), **fields))

    @property
    def options(self) -> tuple[str, ...]:
        """The options' names."""
        return tuple(self.schema.model_fields)

    @property
    def name(self) -> str:
        """The checker's name, which is the kind's."""
        return self.check.__name__

    def ask(self, options: Options, seed: int) -> str:
        """Put the constraint into words; the seed chooses among the wordings."""
        wording = self.wordings[seed % len(self.wordings)]
        return wording.format(**{name: _shown(value) for name, value in options.items()})


class _Number(int):
    """A number that can be written with what it counts."""

    def __format__(self, thing: str) -> str:
        return f"{int(self)} {thing}{'' if self == 1 else 's'}" if thing else str(int(self))


def _shown(value: object) -> object:
    """``"a", "b" and "c"`` for a list; numbers know their plural; the rest as it is."""
    if isinstance(value, int):
        return _Number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        *most, last = [f'"{item}"' for item in value]
        return f"{', '.join(most)} and {last}" if most else last
    return value
