"""Numbers in text, exactly: which there are, and whether two are equal.

A numeral is ``-3,600.5``, ``.5``, ``3/4``, ``1 1/2``, ``½``, ``\\frac{3}{4}``, ``2.2e+07`` or ``2.2 × 10^7``, in digits
of any script. The comma stands between thousands and never before decimals; a sign right after a digit, a letter or a
bracket subtracts. A per cent sign after it belongs to it, and so do *thousand, million, billion, trillion*, 万 and 亿.
No numerals: a power, a time (10:30), a list or date without spaces (1,2 and 3/4/2026), words (*twelve*, 十二).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# No answer can ask for an integer that takes forever.
MAX_DIGITS = 1000
MAX_EXPONENT = 300

_SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip

# Every repetition is possessive: the time is linear in the text.
_NUMERAL = re.compile(
    rf"""(?<![A-Za-z0-9_^]) (?<!\^\{{) (?<![0-9][.,:/])
    (?P<sign>(?<![A-Za-z0-9)\]}}%])[-+])?+ (?:\\?[$£€¥])?+ (?P<after>-)?+
    (?:(?P<whole>[0-9]++)[ ](?=[0-9]++/[0-9]))?+
    (?P<top>[0-9]{{1,3}}(?:,[0-9]{{3}})++(?!,?[0-9])(?:\.[0-9]++)?+ | [0-9]++(?:\.[0-9]++)?+ | (?<![.\w])\.[0-9]++)
    (?: e(?P<exponent>[-+]?[0-9]++)
      | \s?+(?:[x×*·]|\\times|\\cdot)\s?+10\s?+\^\s?+\{{?(?P<power>[-+]?[0-9]++)\}}?+
      | \s?+/\s?+(?P<bottom>[0-9]++(?:,[0-9]{{3}})*+(?:\.[0-9]++)?+)
    )?+
    (?![0-9] | [.,:][0-9] | \s?/\s?[0-9] | \s?[\^²³⁰¹⁴-⁹])
    (?:\s?+(?P<scale>{"|".join(_SCALES)}))?+
    (?P<percent>\s?+(?:\\?%|per\s?cent\b))?+""",
    re.VERBOSE | re.IGNORECASE,
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_MARKS = str.maketrans({"−": "-", "，": "; ", "、": "; ", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
_FULL_WIDTH_COMMA = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_FRACTION = re.compile(r"\\[dt]?frac ?\{([0-9.,]+)\} ?\{([0-9.,]+)\}|([¼-¾⅐-⅞])")
_UNIT = re.compile(r"\\(?:text|mathrm|mbox) ?\{[^{}]*\}(?:\^\{?[23]\}?)?|\^\{?\\circ\}?|[a-z][²³]|\\[()\[\]]", re.I)
_CALCULATION = re.compile(r"[\\^_*+/<>|²³]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """An exact number, and whether it was written as so many per cent (its value is then that many)."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Number, tolerance: float) -> bool:
        """Tell whether the two differ by at most ``tolerance`` times the other; 50 % equals 50 and 0.5."""
        mine = {self.value} if self.percent == other.percent else {self.value, self.value / 100**self.percent}
        theirs = {other.value} if self.percent == other.percent else {other.value, other.value / 100**other.percent}
        return any(abs(a - b) <= Fraction(repr(tolerance)) * abs(b) for a in mine for b in theirs)


def plain(text: str) -> str:
    """Return the text with ASCII digits and marks, fractions as a/b, and without LaTeX spaces and emphasis."""
    text = _FULL_WIDTH_COMMA.sub(",", text).translate(_MARKS).translate(_FULL_WIDTH)
    text = re.sub(r"[^\x00-\x7f]", lambda c: str(unicodedata.decimal(c[0], c[0])), text)
    text = re.sub(r"\*\*|__|\\[,;!]", "", text.replace("{,}", ","))
    return _FRACTION.sub(_as_ratio, text)


def numbers(text: str) -> list[Number]:
    """Return the numbers in a plain text, in their order; those too large to handle are left out."""
    return [number for found in _NUMERAL.finditer(text) if (number := _read(found)) is not None]


def whole(text: str) -> Number | None:
    """Return the number that a plain text is, with nothing but words around it; else None. Of an equation, its end."""
    text = _UNIT.sub(" ", text.rpartition("=")[2]).strip().strip("*")
    found = numbers(text)
    return None if len(found) != 1 or _CALCULATION.search(_NUMERAL.sub("", text)) else found[0]


def _as_ratio(found: re.Match[str]) -> str:
    """Return a/b, with a space between it and a digit before it: a mixed number."""
    ratio = unicodedata.normalize("NFKC", found[3]).replace("⁄", "/") if found[3] else f"{found[1]}/{found[2]}"
    return f" {ratio}" if found.string[found.start() - 1 : found.start()].isdigit() else ratio


def _read(found: re.Match[str]) -> Number | None:
    exponent = found["exponent"] or found["power"] or "0"
    if len(found[0]) > MAX_DIGITS or len(exponent) > MAX_DIGITS or abs(int(exponent)) > MAX_EXPONENT:
        return None
    value = Fraction(found["top"].replace(",", "")) * Fraction(10) ** int(exponent)
    if found["bottom"] is not None:
        below = Fraction(found["bottom"].replace(",", ""))
        if not below:
            return None
        value /= below
    value += Fraction(found["whole"] or 0)
    value *= _SCALES.get((found["scale"] or "").lower(), 1)
    minus = found["sign"] == "-" or found["after"] is not None
    return Number(value=-value if minus else value, percent=found["percent"] is not None)
