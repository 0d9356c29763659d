"""The answer's number is the truth."""

from __future__ import annotations

from trimtab.errors import RewardError
from trimtab.rewards.rules._marked import boxed, marked
from trimtab.rewards.rules._number import Number, numbers, plain, whole
from trimtab.rewards.rules._options import NotNegative
from trimtab.rewards.rules._text import final, need


def number(text: str, truth: str, *, only_marked: bool = False, tolerance: NotNegative = 1e-12) -> float:
    r"""1 when the one number that the answer gives equals the truth, exactly as rationals; else 0.

    Of what follows </think>, or stands in the last <answer> section, one number counts, the first that there is of:

    1. what the last ``\boxed{...}`` holds, which must be one number, with a unit at most
    2. the number right after the last ``####``
    3. the first number after the last "answer is", "answer:" or 答案是 with a number in its sentence, past any "="
    4. the last number, unless ``only_marked``

    Commas between thousands, currency, units, fractions, digits of any script and 1.2e+06 are understood (``_number``);
    powers, roots and number words are not. 50% equals 50 and 0.5. ``tolerance`` is relative to the truth.

    Range: 0 to 1. An empty answer, or one without a number, gets 0. Raises ``RewardError`` when the truth is no number.
    Holds against listing and hedging: however many numbers there are, one counts. Does not hold against a right number
    for wrong reasons, nor, without ``only_marked``, against ending on a number of the prompt that happens to be right.
    """
    right = stated(plain(need("number", truth)), only_marked=True) or whole(plain(truth))
    if right is None:
        raise RewardError(f"the rule 'number' needs a number as truth, not {truth!r}")
    found = stated(plain(final(text)), only_marked=only_marked)
    return float(found is not None and found.equals(right, tolerance))


def stated(text: str, *, only_marked: bool) -> Number | None:
    """Return the number that a plain text gives as its answer."""
    if (content := boxed(text)) is not None:
        return whole(content)
    for found in marked(text):
        if numbers(found):
            return numbers(found)[0]
    rest = [] if only_marked else numbers(text)
    return rest[-1] if rest else None
