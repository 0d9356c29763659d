"""How a test and an answer, in two processes, speak: values cross as data, everything else stays where it was made.

Data are None, bool, int, float, complex, str, bytes, lists, tuples, sets, dictionaries (their subclasses too), ranges
and a few types of the standard library. Anything else that an answer hands out is a ``Remote`` for the test: using it
asks the answer's process. Comparisons with data never do, so an object of the answer's cannot claim to equal anything.

What arrives from an answer is hostile: it is JSON of bounded size, read strictly, and only these types come out of it.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

LARGEST = 8 << 20  # bytes of one message
EXACT = 1 << 53  # JSON numbers up to here are read back as they were

# types by name, each with the arguments that make an equal one
MADE: dict[str, Callable[[Any], list[Any]]] = {
    "collections.deque": lambda value: [list(value)],
    "collections.Counter": lambda value: [dict(value)],
    "collections.OrderedDict": lambda value: [list(value.items())],
    "decimal.Decimal": lambda value: [str(value)],
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "array.array": lambda value: [value.typecode, list(value)],
    "builtins.range": lambda value: [value.start, value.stop, value.step],
    "builtins.slice": lambda value: [value.start, value.stop, value.step],
    "builtins.iter": list,  # no type: what stands for the iterators of a test
}
SEQUENCES: dict[str, type[Any]] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
# what an answer may raise in a test; no StopIteration, which would end a test's loop as if all of it had been run
_NOT_RAISED = (StopIteration, StopAsyncIteration, UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError)
RAISED = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (*_NOT_RAISED, ExceptionGroup))
}


class Gone(BaseException):
    """The answer's process ended, or spoke no sense; no test can take it for an exception that it expects."""


class Unsendable(BaseException):
    """A test hands the answer something that cannot cross: the test's fault, not the answer's."""


def encode(value: Any, refer: Callable[[Any], list[Any]]) -> Any:
    """Turn a value into JSON; ``refer`` says what to write for what is no data."""
    kind = type(value)
    if value is None or kind in (bool, str, float) or (kind is int and -EXACT < value < EXACT):
        return value
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in MADE:
        return ["made", name, *(encode(item, refer) for item in MADE[name](value))]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        exact = int.__index__(value)
        return exact if -EXACT < exact < EXACT else ["int", f"{exact:x}"]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
    for word, base in SEQUENCES.items():
        if isinstance(value, base):
            return [word, *(encode(item, refer) for item in base.__iter__(value))]
    if isinstance(value, dict):
        return ["dict", *([encode(k, refer), encode(v, refer)] for k, v in dict.items(value))]
    return refer(value)


def decode(data: Any, resolve: Callable[[str, int], Any]) -> Any:
    """Turn JSON back into a value; ``resolve`` finds what was referred to. Nonsense raises ValueError or TypeError."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    word, *rest = data
    if word in SEQUENCES:
        return SEQUENCES[word](decode(item, resolve) for item in rest)
    if word == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in rest}
    if word == "int":
        return int(rest[0], 16)
    if word == "complex":
        return complex(float(rest[0]), float(rest[1]))
    if word in ("bytes", "bytearray"):
        return bytes.fromhex(rest[0]) if word == "bytes" else bytearray.fromhex(rest[0])
    if word == "made" and rest[0] in MADE:
        module, name = rest[0].split(".")
        return getattr(importlib.import_module(module), name)(*(decode(item, resolve) for item in rest[1:]))
    if word in ("mine", "yours") and isinstance(rest[0], int):
        return resolve(word, rest[0])
    raise ValueError(f"no value: {word!r}")


class Link:
    """One end of two pipes, on which either side asks and the other answers, one thing at a time.

    ``operations`` are what the other side may ask for, ``proxy`` makes what stands for an object of the other side's.
    """

    def __init__(
        self,
        read: int,
        write: int,
        operations: dict[str, Callable[..., Any]],
        proxy: Callable[[Link, int], Any],
        exported: Callable[[Any], bool] = lambda value: True,
    ) -> None:
        self._read, self._write = read, write
        self._operations, self._proxy, self._exported = operations, proxy, exported
        self._held: list[Any] = []

    def ask(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """Have the other side do something, and return what comes of it or raise what it raised."""
        encoded = [self._encode(argument) for argument in arguments]
        self.send(["ask", operation, encoded, {name: self._encode(value) for name, value in options.items()}])
        while True:
            message = self.receive()
            try:
                word, *rest = message
                if word == "value":
                    return decode(rest[0], self._resolve)
                if word == "ask":
                    self.answer(message)
                    continue
                names, text = list(map(str, rest[0])), str(rest[1])
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
                raise Gone(f"no sense in a message: {type(error).__name__}") from None
            if operation == "next" and names[:1] == ["StopIteration"]:
                raise StopIteration
            raise next((RAISED[name] for name in names if name in RAISED), RuntimeError)(text)

    def answer(self, message: Any) -> None:
        """Do what the other side asks for, and send what came of it."""
        _, operation, arguments, options = message
        try:
            decoded = [decode(argument, self._resolve) for argument in arguments]
            named = {name: decode(value, self._resolve) for name, value in options.items()}
            reply = ["value", self._encode(self._operations[operation](*decoded, **named))]
        except (Gone, Unsendable):
            raise
        except BaseException as error:  # whatever the code of the answer or of the test raises is the reply
            reply = ["raise", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]]
        self.send(reply)

    def send(self, message: Any) -> None:
        """Send one message of JSON."""
        body = json.dumps(message).encode()
        write_all(self._write, struct.pack("<I", len(body)) + body)

    def receive(self) -> Any:
        """Receive one message. Raises Gone at the end, and for one that is too large or no JSON."""
        (size,) = struct.unpack("<I", read_exactly(self._read, 4))
        if size > LARGEST:
            raise Gone(f"a message of {size} bytes")
        try:
            return json.loads(read_exactly(self._read, size))
        except (ValueError, RecursionError):
            raise Gone("a message that is no JSON") from None

    def _encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, Remote) or hasattr(value, "_trimtab_number"):
            return ["yours", value._trimtab_number]
        if not self._exported(value):
            if isinstance(value, Iterable):
                return ["made", "builtins.iter", self._encode(list(value))]
            raise Unsendable(f"{type(value).__name__} {value!r}"[:200])
        self._held.append(value)
        return ["mine", len(self._held) - 1]

    def _resolve(self, whose: str, number: int) -> Any:
        if whose == "mine":
            return self._proxy(self, number)
        if number < 0:
            raise ValueError("a negative number")
        return self._held[number]


class Remote:
    """An object in the answer's process, used from a test's.

    It is asked for its items, attributes, length, truth and text, and called. Operators and comparisons are passed on
    only between two such objects: with data on the other side that would tell the answer what is expected of it.
    """

    def __init__(self, link: Link, number: int) -> None:
        vars(self).update(_trimtab_link=link, _trimtab_number=number, _trimtab_named=False)

    def _trimtab_ask(self, operation: str, *arguments: Any, **options: Any) -> Any:
        try:
            return self._trimtab_link.ask(operation, self, *arguments, **options)
        except Unsendable:
            if self._trimtab_named:  # a function that the test calls by its name: it is the test that is wrong
                raise
            raise TypeError("an object of the answer's stands where the test needs data") from None

    def __getattr__(self, name: str) -> Any:
        return self._trimtab_ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._trimtab_ask("setattr", name, value)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Remote):
            return self is other
        return self._trimtab_ask("eq", other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and instance._trimtab_ask("isinstance", self) is True


def _asks(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments, **options: self._trimtab_ask(operation, *arguments, **options)


def _asks_two(operation: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return self._trimtab_ask(operation, other) if isinstance(other, Remote) else NotImplemented

    return method


ONE = (
    "call",
    "iter",
    "next",
    "len",
    "bool",
    "str",
    "repr",
    "float",
    "int",
    "index",
    "abs",
    "neg",
    "getitem",
    "setitem",
)
TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "lt", "le", "gt", "ge", "and_", "or_", "xor")
for _name in ONE:
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in TWO:
    setattr(Remote, f"__{_name.rstrip('_')}__", _asks_two(_name))


def read_exactly(descriptor: int, size: int) -> bytes:
    """Read so many bytes. Raises Gone when there are fewer."""
    parts: list[bytes] = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise Gone("the end of its pipe")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises Gone when nobody reads."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        raise Gone("its pipe is closed") from None
