"""Text while it is being written: tokens become characters as soon as these are whole, and stop strings end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no character, or not yet
LONGEST_CHARACTER = 4  # bytes of UTF-8
PATIENCE = 16  # tokens without a whole character after which they are taken for garbage


class Detokeniser:
    """Tokens in, text out; what has come out, with ``flush``, is the text of all tokens.

    Decoding is not additive (a space at the beginning may vanish, a character may need several tokens), so each token
    is decoded together with those of the piece before it, and what ends in an unreadable byte waits for the next token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.tokens: list[int] = []
        self._begin = 0  # where the window that is decoded begins
        self._read = 0  # up to where its text was readable
        self._given = 0  # how many of its characters are out

    def feed(self, token: int) -> str:
        """Take one more token; return what can be read now."""
        self.tokens.append(token)
        text = self.decode(self.tokens[self._begin :])
        if not text.endswith(UNREADABLE):
            new = text[self._given :]
            if new:
                self._begin, self._read = self._read, len(self.tokens)
                self._given = len(self.decode(self.tokens[self._begin :]))
            return new
        if len(self.tokens) - self._read <= PATIENCE:
            return ""
        held = min(LONGEST_CHARACTER - 1, len(text) - len(text.rstrip(UNREADABLE)))
        new = text[self._given : len(text) - held]
        self._given += len(new)
        return new

    def flush(self) -> str:
        """There are no more tokens: return what was held back."""
        new = self.decode(self.tokens[self._begin :])[self._given :]
        self._given += len(new)
        return new


class Stops:
    """Text in, text out up to the first stop string, which is left out. It may come in pieces.

    First is the one that is complete first, and of several that end together the longest; so it does not matter how the
    text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop string

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take more text; return what is safe to show, and whether a stop string has come."""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        begun = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        safe = len(text) - max(begun, default=0)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """There is no more text: return what was held back."""
        held, self._held = self._held, ""
        return held
