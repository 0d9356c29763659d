"""Text in pieces is the text as a whole: never half a character, stop strings wherever they are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.model.tiny import tiny_tokenizer
from trimtab.serving.text import PATIENCE, UNREADABLE, Detokeniser, Stops

TOKENIZER = tiny_tokenizer()  # a token is a byte; 256, 257 and 258 are special


def decode(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(tokens), skip_special_tokens=True))


def pieces(tokens: Sequence[int]) -> list[str]:
    text = Detokeniser(decode)
    return [*(text.feed(token) for token in tokens), text.flush()]


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces("aé你😀b".encode()) == ["a", "", "é", "", "", "你", "", "", "", "😀", "b", ""]


def test_what_was_cut_comes_at_the_end_and_special_tokens_are_silent() -> None:
    assert pieces([256, 97, *"é".encode()[:1]]) == ["", "a", "", UNREADABLE]
    assert pieces([97, 257]) == ["a", "", ""]
    assert pieces([]) == [""]


def test_a_byte_that_is_no_character_does_not_hold_up_what_follows() -> None:
    assert pieces([0xFF, 97, 98]) == ["", f"{UNREADABLE}a", "b", ""]
    text = Detokeniser(decode)
    shown = "".join(text.feed(0xFF) for _ in range(100))
    assert 100 - PATIENCE <= len(shown) < 100
    assert shown + text.flush() == UNREADABLE * 100


@given(st.lists(st.integers(0, 258), max_size=60))
def test_pieces_of_any_bytes_are_the_whole(tokens: list[int]) -> None:
    assert "".join(pieces(tokens)) == decode(tokens)


@given(st.text(max_size=30).filter(lambda text: UNREADABLE not in text))
def test_readable_text_is_never_shown_unreadable(text: str) -> None:
    shown = pieces(text.encode())
    assert "".join(shown) == text
    assert not any(UNREADABLE in piece for piece in shown)


class Spaces:
    """A decoder that is not additive: words are joined by spaces, as SentencePiece's are."""

    words = ("▁a", "▁b", "c", "▁")

    @classmethod
    def decode(cls, tokens: Sequence[int]) -> str:
        return "".join(cls.words[token] for token in tokens).replace("▁", " ").removeprefix(" ")


@given(st.lists(st.integers(0, 3), max_size=20))
def test_a_decoder_that_drops_the_first_space(tokens: list[int]) -> None:
    text = Detokeniser(Spaces.decode)
    assert "".join(text.feed(token) for token in tokens) + text.flush() == Spaces.decode(tokens)


# --- stop strings -----------------------------------------------------------------------------------------------------


def stopped(parts: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    reader, shown = Stops(stops), ""
    for part in parts:
        text, hit = reader.feed(part)
        shown += text
        if hit:
            return shown, True
    return shown + reader.flush(), False


@pytest.mark.parametrize(
    ("parts", "stops", "shown", "hit"),
    [
        (["Hello wor", "ld"], ["lo"], "Hel", True),
        (["a\n", "\nb"], ["\n\n"], "a", True),
        (["a\n", "b\n"], ["\n\n"], "a\nb\n", False),
        (["ab", "ac", "abd"], ["abd"], "abac", True),
        (["xabcd"], ["abcd", "bc"], "xa", True),  # 'bc' is complete first
        (["xabc"], ["bc", "abc"], "x", True),  # they end together: the longer
        (["END"], ["END"], "", True),
        (["a", "b"], [], "ab", False),
    ],
)
def test_stop_strings(parts: list[str], stops: list[str], shown: str, hit: bool) -> None:
    assert stopped(parts, stops) == (shown, hit)
    assert stopped(list("".join(parts)), stops) == (shown, hit)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    reader = Stops(["stop", "top!"])
    assert [reader.feed(part) for part in ("a s", "t", "o", "x", "sto", "p")] == [
        ("a ", False), ("", False), ("", False), ("stox", False), ("", False), ("", True),
    ]  # fmt: skip


@given(st.text("ab", max_size=25), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_cuts_change_nothing(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    parts = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    by_hand = min(((text.find(s) + len(s), text.find(s)) for s in stops if s in text), default=None)
    assert stopped(parts, stops) == ((text, False) if by_hand is None else (text[: by_hand[1]], True))
