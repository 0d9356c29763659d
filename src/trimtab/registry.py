"""The folder is the registry: a method is one module whose function bears the module's name.

``losses/preference/dpo.py`` with a function ``dpo`` makes ``method: dpo`` work, lists it, and puts it under the laws.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered function: its name, the function, and the first line of its docstring."""

    name: str
    function: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The keyword-only parameters: the schema."""
        parameters = inspect.signature(self.function).parameters
        return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


class Folder(Mapping[str, Entry]):
    """The methods in one package, imported when first asked for."""

    def __init__(self, package: str, what: str) -> None:
        self.package = package
        self.what = what

    def _names(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))

    def __getitem__(self, name: str) -> Entry:
        """Return the entry, or say which name was probably meant."""
        if name not in self._names():
            raise ConfigError(f"no {self.what} {name!r}{did_you_mean(name, self._names())}")
        module = importlib.import_module(f"{self.package}.{name}")
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError(f"{module.__file__}: the {self.what} {name!r} needs a function of that name")
        return Entry(name, function)

    def __contains__(self, name: object) -> bool:
        """Tell whether a module of that name is there."""
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self._names())

    def __len__(self) -> int:
        """Count the methods."""
        return len(self._names())


STAGES = Folder("trimtab.stages", "stage")
ADVANTAGES = Folder("trimtab.advantages", "advantage estimator")
POLICY_LOSSES = Folder("trimtab.losses.policy", "policy loss")
PREFERENCE_LOSSES = Folder("trimtab.losses.preference", "preference loss")
