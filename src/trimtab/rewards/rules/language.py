"""The answer is in the language that was asked for."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator

from trimtab.errors import did_you_mean
from trimtab.rewards.rules._package import package
from trimtab.rewards.rules._text import CJK_LETTER, final, sentences

ENOUGH = 40  # letters
_COMMON = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu hy id it ja ka ko lt lv ms nl no pl pt ro ru sk sl sq sr sv "
    "sw ta te th tl tr uk ur vi zh"
)
COMMON = frozenset(_COMMON.split())


def _known(code: str) -> str:
    labels = [label for label in _identifier().labels if label != "zxx"]
    if code not in labels:
        raise ValueError(f"no language {code!r}{did_you_mean(code, labels)}")
    return code


def language(text: str, *, language: Annotated[str, AfterValidator(_known)]) -> float:
    """How surely the answer is in ``language``, a code of ISO 639 such as *en* or *zh*.

        sum over pieces of letters x P / letters, then 1/2 + (that - 1/2) min(1, letters / 40)

    A piece is as many sentences as make 40 letters, so a text in two languages gets about the share of the asked one. P
    is ``py3langid``'s probability among some fifty common languages and the asked one. Fewer than 40 letters say little
    (*Hallo* is German, Dutch and Danish) and pull the answer towards 1/2; a Chinese or Japanese character is worth
    three. What counts is the last <answer> section, or what follows </think>.

    Range: 0 to 1. An answer without letters gets 1/2. Close languages (Norwegian and Danish, Malay and Indonesian) are
    often confused. Does not hold against nonsense in the right language, and names, code and formulae count as text.

    Source: Lui and Baldwin 2012 (ACL, P12-3005), no arXiv number, as the package py3langid
    """
    known = COMMON | {language}
    pieces: list[str] = [""]
    for sentence in sentences(final(text)):
        if _letters(pieces[-1]) >= ENOUGH:
            pieces.append("")
        pieces[-1] += f" {sentence}"
    if len(pieces) > 1 and _letters(pieces[-1]) < ENOUGH:
        pieces[-2:] = ["".join(pieces[-2:])]
    letters = [_letters(piece) for piece in pieces]
    if not sum(letters):
        return 0.5
    mean = sum(n * _probability(piece, language, known) for n, piece in zip(letters, pieces, strict=True)) / sum(
        letters
    )
    return 0.5 + (mean - 0.5) * min(1.0, sum(letters) / ENOUGH)


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text)) + 2 * len(CJK_LETTER.findall(text))


def _probability(text: str, language: str, known: frozenset[str]) -> float:
    found = {code: float(p) for code, p in _identifier().rank(text) if code in known}
    return found[language] / sum(found.values())


@cache
def _identifier() -> Any:
    with package("py3langid", "language"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
