"""What ``trimtab list`` shows: read from the registries, so it cannot be out of date."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from trimtab.model.bundled import BUNDLED
from trimtab.records.formats import FORMATS
from trimtab.registry import ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES, STAGES, Folder
from trimtab.stages._methods import METHODS


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, header_style="dim")


def _default(parameter: inspect.Parameter) -> str:
    value: Any = parameter.default
    if value is inspect.Parameter.empty:
        return "(needed)"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.asdict(value)
        return (
            str(fields["name"])
            if set(fields) >= {"name", "artifact"}
            else ", ".join(f"{k}: {v}" for k, v in fields.items())
        )
    return str(value)


def stages() -> RenderableType:
    """Every stage with its options and their defaults."""
    parts: list[RenderableType] = []
    for entry in STAGES.values():
        table = _table(f"{entry.name}: {entry.summary}", "option", "default")
        for name, parameter in entry.options.items():
            table.add_row(name, _default(parameter))
        parts.append(table)
    return Lines(*parts)


def methods() -> RenderableType:
    """Online methods, and the losses and estimators they are made of."""
    table = _table("online methods (policy.method)", "method", "advantage", "loss", "aggregation", "what", "paper")
    for name, row in METHODS.items():
        table.add_row(name, row.advantage, row.loss, row.aggregation, row.summary, row.paper)
    parts: list[RenderableType] = [table]
    folders: Mapping[str, Folder] = {
        "advantages": ADVANTAGES, "policy losses": POLICY_LOSSES, "preference losses": PREFERENCE_LOSSES,
    }  # fmt: skip
    for title, folder in folders.items():
        if len(folder):
            rows = _table(title, "name", "what")
            for entry in folder.values():
                rows.add_row(entry.name, entry.summary)
            parts.append(rows)
    return Lines(*parts)


def models() -> RenderableType:
    """Bundled models; any Hugging Face id, local folder or GGUF file works in the same place."""
    table = _table("bundled models (also: a hub id, a local folder, a .gguf file)", "name", "what")
    for name, model in BUNDLED.items():
        table.add_row(name, model.summary)
    return table


def formats() -> RenderableType:
    """Data formats that are detected."""
    table = _table("data formats", "name", "what")
    for known in FORMATS:
        table.add_row(known.name, known.summary)
    return table


LISTINGS: Mapping[str, Callable[[], RenderableType]] = {
    "stages": stages,
    "methods": methods,
    "models": models,
    "formats": formats,
}
