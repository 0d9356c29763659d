"""Plain checkers of the house taste: pure functions of an answer's text and of how it ended. True is good.

    finishes          ended by the writer, on the end of a sentence
    no_filler         no filler opener ("Great question", "Sure!", "Here is a ...:"), no praise for asking, no closer
                      ("I hope this helps"), at most one exclamation mark
    plain_text        no heading, bullet, numbered item, bold, code, table, link or row of "Label:" fragments
    within_60_words   at most 60 words
    does_not_loop     no sentence twice, and at most 10 % of its runs of three words were there before
    no_ai_talk        does not speak of itself as an AI or a language model

They know English phrases only, and nothing of the prompt: restating the question or answering another one passes.
An answer without words fails `finishes` and passes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from trimtab.records.types import Finish

MAX_WORDS = 60
MAX_REPEATED = 0.1
MIN_LABELS = 3

Check = Callable[[str, Finish | None], bool]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_BREAK = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+")
_END = re.compile(r"[.!?…][\"'”’)\]*_]*$")

_OPENER = re.compile(
    r"""^\W*(?:
        sure(?:\ thing)?\b\s*[,!.:—–-]
      | (?:certainly|absolutely|definitely|of\ course)\s*[,!.:—–-]
      | as\ an?\ (?:ai|(?:large\ )?language\ model)\b
      | i(?:['’](?:d|m|ll)|\ (?:would|am|will))\ (?:be\ )?(?:so\ |very\ |more\ than\ |really\ )?
        (?:happy|glad|delighted)\ to\ (?:help|assist|explain|provide|answer|share)\b
      | (?:(?:that|this)(?:['’]s|\ is)\ )?(?:an?\ )?(?:really\ |very\ )?
        (?:great|good|excellent|interesting|lovely)\ question\b
      | here(?:['’]s|\ is|\ are)\ (?:an?|the|some|your|my|\w+\ \w+)\b[^.!?\n]*:
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_PRAISE = re.compile(
    r"""\b(?:what|(?<!not\ )such)\ an?\ [^.!?]*?
        \b(?:question|topic|subject|idea|thing\ to\ (?:ask|wonder|notice|check|bring|be\ curious))\b
      | \b(?:thanks|thank\ you)\ (?:so\ much\ )?for\ (?:asking|sharing|your\ question|reaching\ out)\b
      | \b(?:happy|glad|pleased)\ (?:that\ )?you(?:['’]ve|\ have)?\ (?:asked|reached\ out)\b
      | !.*!
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_CLOSER = re.compile(
    r"""(?:
        \bhope\ (?:this|that|it|these)\ (?:helps?|clarif)
      | \blet\ me\ know\ (?:if|how|what|when|whether)\ (?:you|i|there)
      | \bfeel\ free\ to\ (?:ask|reach|contact|let|message|share)
      | \bif\ you\ (?:have|need)\ (?:any\ )?(?:other|more|further|additional|specific)
        \ (?:questions?|help|information|assistance|details?)
      | \bis\ there\ anything\ else\b
      | \b(?:do\ not|don['’]t)\ hesitate\ to\b
      | \b(?:happy|glad|here)\ to\ help\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_MARKUP = re.compile(
    r"""^\s{0,3}\#{1,6}\s                  # heading
      | ^\s*[-*•+–]\s+\S                   # bullet
      | \n\s*\(?(?:\d{1,2}|[a-z])[.)]\s    # numbered line after the first
      | (?:^|\s)1[.)]\s[\s\S]*?\s2[.)]\s   # 1. ... 2. ... in one line
      | \*\*\S | (?<!\w)__\S               # bold
      | `                                  # code
      | ^\s*\|.*\|                         # table
      | \[[^\]\n]+\]\([^)\n]+\)            # link
    """,
    re.MULTILINE | re.VERBOSE,
)
_LABEL = re.compile(r"(?:^|[.;!?\n]\s*)[A-Z][\w'’-]*(?:\ [\w'’-]+){0,3}:\s")
_AI = re.compile(
    r"""\b(?:as|i\ am|i['’]m|being)\ (?:just\ |only\ |simply\ )?an?\ (?:
            (?:(?:ai|large)\ )?language\ model
          | (?:(?:ai|virtual|digital)\ )(?:assistant|chatbot|system|model)
          | chatbot | computer\ program
          | (?:ai|artificial\ intelligence)(?=\s*(?:[^\w\s]|$)|\ (?:i|and|so|but|that)\b)
        )
      | \bmy\ (?:training\ data|programming|knowledge\ cutoff)\b
      | \bi\ (?:was|have\ been|am)\ (?:trained|programmed)\ (?:by|on|to)\b
      | \bi\ (?:do\ not|don['’]t)\ have\ (?:
            personal\ (?:experience|opinion|feeling|preference|belief)s?
          | feelings | emotions | a\ physical\ body | real-time
        )
    """,
    re.IGNORECASE | re.VERBOSE,
)


def words(text: str) -> list[str]:
    """Return the words in lower case: runs of letters and digits, apostrophes inside kept."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Split after full stops, exclamation and question marks followed by space, and at line ends.

    Abbreviations ("T. rex") split too. A text without words gives one sentence: itself, stripped.
    """
    parts = [part.strip() for line in text.split("\n") for part in _BREAK.split(line)]
    return [part for part in parts if part] or [text.strip()]


def finishes(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the answer is whole: no cap cut it, and its last character ends a sentence (quotes may follow).

    Both are asked for, since a policy that is paid for stopping alone learns to stop in the middle of a sentence.
    """
    return finish != "length" and bool(words(text)) and _END.search(text.rstrip()) is not None


def no_filler(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the answer opens and closes without a filler phrase, and nowhere praises the asking or gushes.

    Openers are looked for at the very beginning, closers in the last sentence, praise ("what a lovely question",
    "thanks for asking") and a second exclamation mark anywhere.
    """
    if _OPENER.search(text) or _PRAISE.search(text):
        return False
    return _CLOSER.search(sentences(text)[-1]) is None


def plain_text(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the text is prose: no markdown, no list, fewer than three "Label:" fragments."""
    return _MARKUP.search(text) is None and len(_LABEL.findall(text)) < MIN_LABELS


def within_60_words(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the answer has at most 60 words, counted between spaces."""
    return len(text.split()) <= MAX_WORDS


def does_not_loop(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the text goes on: no sentence of three words or more twice, repeated 3-grams at most 10 %.

    The same thing said again in other words passes.
    """
    said = [tuple(words(sentence)) for sentence in sentences(text)]
    long = [sentence for sentence in said if len(sentence) >= 3]
    return len(set(long)) == len(long) and repeated_ngrams(text, 3) <= MAX_REPEATED


def no_ai_talk(text: str, finish: Finish | None = None) -> bool:
    """Tell whether the answer leaves out that an AI wrote it ("As an AI", "I was trained on")."""
    return _AI.search(text) is None


def repeated_ngrams(text: str, n: int) -> float:
    """Return the share of runs of n words that occurred earlier in the text: 1 - distinct / all; 0 without any."""
    found = words(text)
    runs = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


CHECKS: dict[str, Check] = {
    "finishes": finishes,
    "no_filler": no_filler,
    "plain_text": plain_text,
    "within_60_words": within_60_words,
    "does_not_loop": does_not_loop,
    "no_ai_talk": no_ai_talk,
}
"""The checkers by name, in the order of the evaluation's table."""
