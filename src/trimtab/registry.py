"""The folder is the registry: a method is one module whose function bears the module's name.

``losses/preference/dpo.py`` with a function ``dpo`` makes ``method: dpo`` work, lists it, and puts it under the laws.
A folder of the user's own works the same way once it is added.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from trimtab.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered function: its name, the function, the file it came from, and what its docstring says."""

    name: str
    function: Callable[..., Any]
    path: Path | None = None

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
    def _said(self) -> str:
        return inspect.getdoc(self.function) or ""

    def _note(self, label: str) -> str:
        """Return the text after a label: to the next empty line, the other label, or the end."""
        found = re.search(
            rf"^{label}(.*?)(?=\n\s*\n|\nSource:|\nConfirmed by:|\Z)", self._said, re.DOTALL | re.MULTILINE
        )
        return " ".join(found[1].split()) if found else ""


class Folder(Mapping[str, Entry]):
    """The methods in one package, imported when first asked for, and those in folders that were added to it."""

    def __init__(self, package: str, what: str) -> None:
        self.package = package
        self.what = what
        self._added: dict[Path, dict[str, Entry]] = {}  # by folder

    def add(self, folder: Path) -> tuple[str, ...]:
        """Take in a folder of the user's own and return the names of its methods.

        Every ``name.py`` in it is one, unless it starts with ``_`` or a dot, and holds a function ``name``. The files
        are loaded by their path, at once: ``sys.path`` stays as it is, nothing is written beside them, and they cannot
        import one another. All of them come in, or none. A folder that is added again is read anew.

        Raises ``ConfigError`` for a folder that is not there, a name that exists already, a file that cannot be
        imported (with the original error as its cause), and one without a function of its name.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder, so there is no {self.what} to add")
        folder = folder.resolve()
        others = {name for at, entries in self._added.items() if at != folder for name in entries}
        files = {file.stem: file for file in sorted(folder.glob("*.py")) if not file.name.startswith(("_", "."))}
        for name, file in files.items():  # before anything is loaded
            if name in others or name in self._built_in():
                raise ConfigError(f"{file}: there is a {self.what} {name!r} already; give the file another name")
        found = {name: Entry(name, self._function(_load(file), name), file) for name, file in files.items()}
        self._added[folder] = found
        return tuple(found)

    def clear_added(self) -> None:
        """Forget every folder that was added."""
        self._added = {}

    def _built_in(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]

    def _names(self) -> list[str]:
        return sorted([*self._built_in(), *(name for entries in self._added.values() for name in entries)])

    def _function(self, module: ModuleType, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(module, name, None)
        if not callable(function):
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


def _load(file: Path) -> ModuleType:
    """Run a file as a module under a name that is its own; no bytecode is read or written."""
    name = f"trimtab_added_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert isinstance(spec.loader, SourceFileLoader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up by name
    try:
        code = spec.loader.source_to_code(spec.loader.get_data(str(file)), str(file))
        exec(code, module.__dict__)
    except Exception as error:  # the file is the user's, and may raise anything; nothing is swallowed
        del sys.modules[name]
        raise ConfigError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


STAGES = Folder("trimtab.stages", "stage")
ADVANTAGES = Folder("trimtab.advantages", "advantage estimator")
POLICY_LOSSES = Folder("trimtab.losses.policy", "policy loss")
PREFERENCE_LOSSES = Folder("trimtab.losses.preference", "preference loss")
REWARD_LOSSES = Folder("trimtab.losses.reward", "reward loss")
