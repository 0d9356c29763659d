"""The folder is the registry: a method is one module whose function bears the module's name.

``losses/preference/dpo.py`` with a function ``dpo`` makes ``method: dpo`` work, lists it, and puts it under the laws.
A folder of the user's own (``plugins`` in a recipe) works the same way, for the kinds that ``OPEN`` names.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

from trimtab.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered function: its name, the function, the file it came from, and what its docstring says.

    ``digest`` is the SHA-256 of a user's own file as it was read; a file of ours has none.
    """

    name: str
    function: Callable[..., Any]
    path: Path | None = None
    digest: str = ""

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self._said.split("\n", 1)[0]

    @property
    def paper(self) -> str:
        """What stands after ``Source:`` in the docstring, on one line; empty when it is not there."""
        return self._note("Source:")

    @property
    def confirmed(self) -> str:
        """What stands after ``Confirmed by:`` in the docstring, on one line; empty when it is not there."""
        return self._note("Confirmed by:")

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The keyword-only parameters: the schema."""
        parameters = inspect.signature(self.function).parameters
        return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def columns(self) -> tuple[str, ...]:
        """All other parameters: what it is handed."""
        return tuple(name for name in inspect.signature(self.function).parameters if name not in self.options)

    @property
    def _said(self) -> str:
        return inspect.getdoc(self.function) or ""

    def _note(self, label: str) -> str:
        """Return the text after a label: to the next empty line, the other label, or the end."""
        found = re.search(
            rf"^{label}(.*?)(?=\n\s*\n|\nSource:|\nConfirmed by:|\Z)", self._said, re.DOTALL | re.MULTILINE
        )
        return " ".join(found[1].split()) if found else ""


class Folder(Mapping[str, Entry]):
    """The methods in one package, imported when first asked for, and those in folders that were added to it.

    ``columns`` says which columns a method may ask for: all of one item, by the column that decides what the item is.
    Where it asks by ``place`` and not by name, it takes all of them, in their order. Without ``columns``: anything.
    """

    def __init__(
        self, package: str, what: str, columns: Mapping[str, tuple[str, ...]] | None = None, *, place: bool = False
    ) -> None:
        self.package = package
        self.what = what
        self.columns = columns or {}
        self.place = place
        self._added: dict[Path, dict[str, Entry]] = {}  # by folder

    def add(self, folder: Path) -> tuple[str, ...]:
        """Take in a folder of the user's own and return the names of its methods.

        Every ``name.py`` in it is one, unless it starts with ``_`` or a dot, and holds a function ``name``. The files
        are loaded by their path, at once: ``sys.path`` stays as it is, nothing is written beside them, and they cannot
        import one another. All of them come in, or none. A folder that is added again is read anew.

        Raises ``ConfigError`` for a folder that is not there, a name that exists already, a file that cannot be
        imported (with the original error as its cause), one without a function of its name, and a function that asks
        for what is no column.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder, so there is no {self.what} to add")
        folder = folder.resolve()
        others = {name for at, entries in self._added.items() if at != folder for name in entries}
        files = {file.stem: file for file in sorted(folder.glob("*.py")) if not file.name.startswith(("_", "."))}
        for name, file in files.items():  # before anything is loaded
            if name in others or name in self._built_in():
                raise ConfigError(f"{file}: there is a {self.what} {name!r} already; give the file another name")
        found: dict[str, Entry] = {}
        for name, file in files.items():
            module, digest = _load(file)
            found[name] = Entry(name, self._function(module, name), file, digest)
            if self.columns:
                self.item(found[name])
        self._added[folder] = found
        return tuple(found)

    def clear_added(self) -> None:
        """Forget every folder that was added."""
        self._added = {}

    @property
    def added(self) -> tuple[Entry, ...]:
        """The methods of the user's own, by name."""
        return tuple(sorted((e for own in self._added.values() for e in own.values()), key=lambda e: e.name))

    def item(self, entry: Entry) -> str:
        """Return the column that decides what a method's items are.

        Raises ``ConfigError``, with the file, for columns that are not there, or not together.
        """
        where, parameters = f"{entry.path}: {self.what} {entry.name!r}", inspect.signature(entry.function).parameters
        known = sorted({column for columns in self.columns.values() for column in columns})
        for name in entry.columns:
            if parameters[name].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise ConfigError(f"{where}: {name!r}: columns are asked for by name, without '/', '*args' or '**more'")
            if name not in known:
                raise ConfigError(f"{where}: no column {name!r}{did_you_mean(name, known)} (options stand after '*')")
        deciding = [name for name in self.columns if name in entry.columns]
        if len(deciding) != 1:
            raise ConfigError(
                f"{where}: exactly one of {', '.join(self.columns)} must be asked for: it says what an item is"
            )
        columns = self.columns[deciding[0]]
        if self.place and entry.columns != columns:
            raise ConfigError(f"{where}: its columns must be {', '.join(columns)}, in this order")
        for name in entry.columns:
            if name not in columns:
                raise ConfigError(f"{where}: beside {deciding[0]!r} there is no {name!r}; known: {', '.join(columns)}")
        return deciding[0]

    def _built_in(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]

    def _names(self) -> list[str]:
        return sorted([*self._built_in(), *(name for entries in self._added.values() for name in entries)])

    def _function(self, module: ModuleType, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(module, name, None)
        if not inspect.isfunction(function):
            raise ConfigError(f"{module.__file__}: the {self.what} {name!r} needs a function of that name")
        return function

    def __getitem__(self, name: str) -> Entry:
        """Return the entry, or say which name was probably meant."""
        for entries in self._added.values():
            if name in entries:
                return entries[name]
        if name not in self._names():
            raise ConfigError(f"no {self.what} {name!r}{did_you_mean(name, self._names())}")
        module = importlib.import_module(f"{self.package}.{name}")
        return Entry(name, self._function(module, name), Path(module.__file__) if module.__file__ else None)

    def __contains__(self, name: object) -> bool:
        """Tell whether a module of that name is there."""
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self._names())

    def __len__(self) -> int:
        """Count the methods."""
        return len(self._names())


class Row(Protocol):
    """A method that is put together from others; ``defaults`` are what it has the stage's options be by default."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings of the stage, as a recipe would have them."""
        ...


R = TypeVar("R", bound=Row)


class Table(Mapping[str, R], Generic[R]):
    """Methods that need no file of their own: rows of a table.

    An option of a stage that names one bears the table: ``method: Annotated[str, METHODS]``.
    """

    def __init__(self, what: str, rows: Callable[[], Mapping[str, R]]) -> None:
        self.what = what
        self._rows = rows

    def __getitem__(self, name: str) -> R:
        """Return the row, or say which name was probably meant."""
        rows = self._rows()
        if name not in rows:
            raise ConfigError(f"no {self.what} {name!r}{did_you_mean(str(name), rows)}")
        return rows[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a row of that name."""
        return isinstance(name, str) and name in self._rows()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the table's order."""
        return iter(self._rows())

    def __len__(self) -> int:
        """Count the methods."""
        return len(self._rows())


def _load(file: Path) -> tuple[ModuleType, str]:
    """Run a file as a module under a name that is its own, and digest it; no bytecode is read or written."""
    name = f"trimtab_added_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert isinstance(spec.loader, SourceFileLoader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up by name
    try:
        source = spec.loader.get_data(str(file))
        exec(spec.loader.source_to_code(source, str(file)), module.__dict__)
    except Exception as error:  # the file is the user's, and may raise anything; nothing is swallowed
        del sys.modules[name]
        raise ConfigError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module, hashlib.sha256(source).hexdigest()


@dataclass(frozen=True, slots=True)
class Named:
    """A mark on an option that is a mapping: ``Annotated[Mapping[str, Any] | None, Named(TASKS, "task")]``.

    Under ``key`` the mapping names a method of ``folder``, and the method's own options stand beside that. ``each``: it
    is a mapping of such mappings, and a name is the method's too where ``key`` is missing. ``beside`` is a dataclass of
    options that are not the method's.
    """

    folder: Folder
    key: str
    each: bool = False
    beside: type | None = None

    @property
    def ours(self) -> frozenset[str]:
        """The names of the options that are not the method's."""
        return frozenset({self.key, *(() if self.beside is None else (f.name for f in fields(self.beside)))})


STAGES = Folder("trimtab.stages", "stage")
ADVANTAGES = Folder("trimtab.advantages", "advantage estimator")
POLICY_LOSSES = Folder("trimtab.losses.policy", "policy loss")
PREFERENCE_LOSSES = Folder(
    "trimtab.losses.preference",
    "preference loss",
    {
        "chosen": (
            "chosen", "rejected", "ref_chosen", "ref_rejected",
            "chosen_tokens", "rejected_tokens", "chosen_kl", "rejected_kl",
        ),
        "desirable": ("logps", "ref_logps", "desirable", "baseline"),
        "scores": ("logps", "tokens", "scores", "mask"),
    },
)  # fmt: skip
REWARD_LOSSES = Folder(
    "trimtab.losses.reward",
    "reward loss",
    {
        "better": ("better", "worse", "margin", "probability"),
        "ranks": ("scores", "ranks", "mask"),
        "labels": ("scores", "labels", "mask"),
    },
    place=True,
)
TASKS = Folder("trimtab.environments.tasks", "text environment")
RULES = Folder("trimtab.rewards.rules", "rule", {"text": ("text", "prompt", "truth", "meta", "ended")})
OPEN: Mapping[str, Folder] = {"preference": PREFERENCE_LOSSES, "reward": REWARD_LOSSES}  # to losses of the user's own
PLUGINS: Mapping[str, Folder] = {**OPEN, "rules": RULES, "tasks": TASKS}  # all that a user's folder may hold


def use_plugins(folders: Sequence[str | Path], where: str = "") -> None:
    """Add the losses, rules and tasks of a user's folders, read anew, and forget those of any others.

    A folder holds ``preference/NAME.py`` and ``reward/NAME.py``, as ``trimtab/losses`` does, ``rules/NAME.py``, as
    ``trimtab/rewards``, and ``tasks/NAME.py``, as ``trimtab/environments``.

    Raises ``ConfigError``, after ``where``, for a folder that is not there or holds none; and see ``Folder.add``.
    """
    for known in PLUGINS.values():
        known.clear_added()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"{where}plugins: no folder {str(folder)!r}")
        kinds = [kind for kind in PLUGINS if (folder / kind).is_dir()]
        if not [name for kind in kinds for name in PLUGINS[kind].add(folder / kind)]:
            files = " and no ".join(f"{kind}/NAME.py" for kind in PLUGINS)
            raise ConfigError(f"{where}plugins: there is no {files} in {str(folder)!r}")
