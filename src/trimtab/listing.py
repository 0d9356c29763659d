"""What ``trimtab list`` shows: read from the registries, so it cannot be out of date."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.config import ModelRef, as_word, method_folders
from trimtab.model.bundled import BUNDLED
from trimtab.model.hardware import Hardware
from trimtab.records.formats import FORMATS
from trimtab.records.writers import WRITERS
from trimtab.registry import (
    ADVANTAGES,
    OPEN,
    POLICY_LOSSES,
    PREFERENCE_LOSSES,
    REWARD_LOSSES,
    RULES,
    STAGES,
    TASKS,
    Entry,
)
from trimtab.stages._methods import METHODS


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=Text(title) if title else None, title_justify="left", title_style="bold", box=None, header_style="dim"
    )
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "option")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def options(function: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (option, default, meaning) of a stage; the options of a nested dataclass stand as ``lora.rank``."""
    said = inspect.getdoc(function) or ""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        default = parameter.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type | ModelRef):
            inner = inspect.getdoc(type(default)) or ""
            for field in dataclasses.fields(default):
                yield f"{name}.{field.name}", _shown(getattr(default, field.name)), meaning(field.name, inner)
        else:
            yield name, _shown(default), meaning(name, said)


def meaning(name: str, docstring: str) -> str:
    """Return the part of a docstring (a sentence, or what stands between semicolons) that speaks of a name."""
    parts = re.split(r"(?<=[.;])\s+(?=[A-Z`])", " ".join(docstring.split()))
    found = " ".join(part for part in parts if f"``{name}``" in part)
    return found.removeprefix(f"``{name}``: ").rstrip(";.").replace("``", "")


def _shown(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "(needed)"
    value = as_word(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if value is None:
        return "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def stages() -> RenderableType:
    """Every stage with its options, their defaults and what they mean."""
    parts: list[RenderableType] = []
    for entry in STAGES.values():
        table = _table(f"{entry.name}: {entry.summary.replace('``', '')}", "option", "default", "what")
        for option in options(entry.function):
            _row(table, *option)
        parts += [table, *_beside(entry), Text()]
    return Lines(*parts[:-1])


def _beside(entry: Entry) -> Iterator[Text]:
    """Say of each option that names a method whose options stand beside the stage's own (see ``config.schema``)."""
    for name, folder in method_folders(entry).items():
        yield Text(f" and the options of its {name} (a {folder.what}): see 'trimtab list losses'", style="dim")


def methods() -> RenderableType:
    """Online methods, and the losses and estimators they are made of."""
    table = _table("online methods (policy.method)", "name", "", "what")
    for name, row in METHODS.items():
        made_of = f"{row.advantage} x {row.loss} x {row.aggregation}" if row.advantage else ""
        kl = f", {row.kl_loss} in the loss" if row.kl_loss else ", KL in the reward" if row.advantage else ""
        told = {
            "": row.summary,
            "made of": made_of + kl,
            "defaults": ", ".join(f"{key}={_flat(value)}" for key, value in row.defaults.items()),
            "paper": row.paper,
        }
        for label, cell in told.items():
            if cell:
                _row(table, "" if label else name, label, cell)
    parts: list[RenderableType] = [table]
    for title, folder in {"advantages": ADVANTAGES, "policy losses": POLICY_LOSSES}.items():
        rows = _table(title, "name", "what", "paper", "confirmed")
        for entry in folder.values():
            _row(rows, entry.name, entry.summary, entry.paper, entry.confirmed)
        parts.append(rows)
    return Lines(*parts)


def rules() -> RenderableType:
    """Rules that a policy can be paid by: their options with their defaults, and their papers."""
    table = _table("rules (policy.rules)", "name", "", "what")
    for entry in RULES.values():
        told = {
            "": entry.summary,
            "options": ", ".join(f"{name}={default}" for name, default, _ in options(entry.function)),
            "reads": ", ".join(column for column in entry.columns if column != "text"),
            "paper": entry.paper,
        }
        for label, cell in told.items():
            if cell:
                _row(table, "" if label else entry.name, label, cell.replace("``", ""))
    return table


def tasks() -> RenderableType:
    """Text environments that a policy can play: their options with their defaults."""
    table = _table("tasks (policy.environment)", "name", "", "what")
    for entry in TASKS.values():
        _row(table, entry.name, "", entry.summary)
        if told := ", ".join(f"{name}={default}" for name, default, _ in options(entry.function)):
            _row(table, "", "options", told)
    return table


def _flat(value: Any) -> str:
    """A setting as one would write it in a recipe."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flat(inside)}" for key, inside in value.items()) + "}"
    return _shown(value)


def losses() -> RenderableType:
    """Every preference and reward loss: its options with their defaults, its paper, its file, what confirmed it."""
    parts: list[RenderableType] = []
    folders = {"preference losses (preference.method)": PREFERENCE_LOSSES, "reward losses (reward.loss)": REWARD_LOSSES}
    for title, folder in folders.items():
        table = _table(title, "name", "", "what")
        for entry in folder.values():
            told = {
                "": entry.summary,
                "options": ", ".join(f"{name}={default}" for name, default, _ in options(entry.function)),
                "paper": entry.paper,
                "confirmed": entry.confirmed,
                "file": str(entry.path)
                if entry in folder.added
                else f"{folder.package}.{entry.name}".replace(".", "/") + ".py",
            }
            for label, cell in told.items():
                if cell:
                    _row(table, "" if label else entry.name, label, cell.replace("``", ""))
        parts.append(table)
    return Lines(*parts)


def hold_own_losses() -> tuple[RenderableType, int]:
    """Hold the losses of the user's own against the laws: what was found, and how many laws are broken."""
    from trimtab.laws import broken, laws_of  # torch is needed to compute, not to list

    table, count = _table("laws", "name", "law", "found"), 0
    for kind, folder in OPEN.items():
        for entry in folder.added:
            found = broken(kind, entry)
            count += len(found)
            for law, said in found.items():
                _row(table, entry.name, law, said)
            if not found:
                _row(table, entry.name, f"all {len(laws_of(kind))}", "they hold")
    return table, count


def models() -> RenderableType:
    """Bundled models; any Hugging Face id, local folder or GGUF file works in the same place."""
    table = _table("bundled models (also: a hub id, a local folder, a .gguf file)", "name", "what")
    for name, model in BUNDLED.items():
        _row(table, name, model.summary)
    return table


def formats() -> RenderableType:
    """Data formats that are detected when read, and which of them can be written."""
    table = _table("data formats (detected; --format NAME insists on one)", "name", "fields", "written by convert")
    for known in FORMATS:
        _row(table, known.name, known.fields, f"--to {known.name}" if known.name in WRITERS else "")
    return table


def run_table(summary: Mapping[str, object]) -> Table:
    """Return a run's stages with time and memory, out of its summary; what is not known is a dash."""
    table = _table("", "stage", "seconds", "peak GB")
    for key in summary:
        if found := re.fullmatch(r"stage/(.+)/type", key):
            seconds, peak = (summary.get(f"stage/{found[1]}/{name}") for name in ("seconds", "peak_rss_gb"))
            shown = [f"{x:.{n}f}" if isinstance(x, int | float) else "-" for x, n in ((seconds, 0), (peak, 2))]
            _row(table, found[1], *shown)
    return table


def hardware_table(found: Hardware) -> Table:
    """Return what a machine has, and which bundled models it would still have to fetch."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    devices = [f"{c.name}, {c.memory_gib:.0f} GiB{', bf16' if c.bf16 else ''}" for c in found.cuda]
    rows = {
        "python": f"{found.python} on {found.system}",
        "cpu": f"{found.cpu}, {found.num_cores} cores ({found.num_threads} threads)",
        "memory": f"{found.memory_gib:.1f} GiB, {found.free_memory_gib:.1f} GiB free",
        "precision": "bfloat16" if found.cpu_bf16 else "float32 (the CPU has no bfloat16 of its own)",
        "gpu": "; ".join(devices) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "cache": str(found.cache),
        **{
            f"model {name}": "in the cache" if there else "not here yet: fetched or made at its first use"
            for name, there in found.bundled.items()
        },
    }
    for name, value in rows.items():
        _row(table, name, value)
    return table


LISTINGS: Mapping[str, Callable[[], RenderableType]] = {
    "stages": stages,
    "methods": methods,
    "losses": losses,
    "rules": rules,
    "tasks": tasks,
    "models": models,
    "formats": formats,
}
