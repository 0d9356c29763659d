"""Laws that every loss obeys, ours and a user's own: ``tests/laws`` and ``trimtab list losses --check`` hold them up.

A law is a function of a registered loss that raises ``AssertionError`` when it is broken; ``LAWS`` in the module of the
kind (``preference``, ``reward``) lists them.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trimtab.registry import Entry

Law = Callable[[Entry], None]


def laws_of(kind: str) -> tuple[Law, ...]:
    """The laws of a kind of ``registry.OPEN``."""
    laws: tuple[Law, ...] = importlib.import_module(f"{__name__}.{kind}").LAWS
    return laws


def broken(kind: str, entry: Entry) -> dict[str, str]:
    """Hold a loss against the laws of its kind; return what was found, by the name of the law that is broken."""
    found: dict[str, str] = {}
    for law in laws_of(kind):
        try:
            law(entry)
        except Exception as error:  # the loss is the user's, and may raise anything; nothing is swallowed
            said = (str(error) or type(error).__name__).strip().split("\n")[0]
            found[name_of(law)] = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
    return found


def name_of(law: Law) -> str:
    """A law's name in words."""
    return law.__name__.replace("_", " ")


def hold(condition: object, found: str) -> None:
    """Raise ``AssertionError`` with what was found unless a condition is true."""
    if not condition:
        raise AssertionError(found)


def close(found: Tensor, expected: Tensor, what: str, *, rtol: float = 0.0, atol: float = 1e-12) -> None:
    """Hold two tensors to be equal within a tolerance."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda said: f"{what}: {found} {said}")


def its_options_are_numbers_and_switches_and_are_documented(entry: Entry) -> None:
    """They come from a recipe, and ``trimtab list`` shows them."""
    said, hints = inspect.getdoc(entry.function) or "", typing.get_type_hints(entry.function)
    for name, parameter in entry.options.items():
        hold(hints[name] in (float, bool), f"option {name!r} is neither float nor bool")
        hold(type(parameter.default) is hints[name], f"the default of option {name!r} is not of its type")
        hold(f"``{name}``" in said, f"the docstring does not speak of ``{name}``")


def it_says_where_it_comes_from_and_what_confirmed_it(entry: Entry) -> None:
    """The docstring has a first sentence, a line ``Source:`` and a line ``Confirmed by:``."""
    hold(entry.summary.endswith("."), "the docstring's first line is no sentence")
    hold(entry.paper, "the docstring has no line 'Source: ...'")
    hold(entry.confirmed, "the docstring has no line 'Confirmed by: ...'")


def cast(columns: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same numbers in another precision; whole numbers and masks stay."""
    return {name: x.to(dtype) if x.is_floating_point() else x.clone() for name, x in columns.items()}
