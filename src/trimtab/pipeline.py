"""Run a recipe: resolve references, skip what is done, run what is not, write the report."""

from __future__ import annotations

import dataclasses
import os
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.artifacts import Artifact, Store, digest_of, read_artifact, revision, write_json
from trimtab.config import DataRef, ModelRef, Recipe, StageConfig, own_methods, references, schema
from trimtab.errors import ConfigError, DataError, did_you_mean
from trimtab.model.hardware import hardware, pin_threads
from trimtab.model.source import resolve
from trimtab.records import sources
from trimtab.records.read import source_digest
from trimtab.registry import STAGES, use_plugins
from trimtab.report.summary import write_report
from trimtab.stages import Result
from trimtab.train.run import Reporter, Run, Silent, peak_rss_gb, release_memory

FORMAT = 1  # raise when an artifact's layout or a stage's meaning changes: old artifacts are then made again


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One stage of a finished run."""

    artifact: Artifact
    skipped: bool


def run_recipe(recipe: Recipe, reporter: Reporter | None = None) -> Path:
    """Run every stage in order and return the run folder, with ``report.html`` and ``summary.json`` in it.

    A stage whose artifact with the same key exists is skipped; one that was killed goes on where it was.
    """
    use_plugins(recipe.plugins)  # another recipe may have been checked since
    _check_references(recipe)
    pin_threads()
    store = Store(Path(recipe.output) / recipe.name)
    with store.lock():
        return _run(recipe, store, reporter or Silent())


def _check_references(recipe: Recipe) -> None:
    """Find (and fetch) every model and file that a recipe names before its first stage runs, not hours later."""
    names = tuple(recipe.stages)
    for config in recipe.stages.values():
        for option, kind, word in references(config):
            where = f"stages.{config.name}.{option}"
            if kind is DataRef:
                try:
                    sources.resolve(word)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from None
            elif word not in names:
                find_model(recipe.model if word == "base" else word, word, None, names, where)


def _run(recipe: Recipe, store: Store, reporter: Reporter) -> Path:
    root = store.root
    started = datetime.now(UTC).isoformat(timespec="seconds")
    done: dict[str, Done] = {}
    for config in recipe.stages.values():
        done[config.name] = _run_stage(recipe, config, store, done, reporter)
    write_json(
        root / "run.json",
        {
            "name": recipe.name,
            "recipe": dataclasses.asdict(recipe),
            "seed": recipe.seed,
            "revision": revision(),
            "started": started,
            "hardware": dataclasses.asdict(hardware()),
            "stages": [
                {
                    "name": name,
                    "stage": d.artifact.stage,
                    "folder": os.path.relpath(d.artifact.folder, root),
                    "skipped": d.skipped,
                    "seconds": d.artifact.manifest["seconds"],
                    "peak_rss_gb": d.artifact.manifest["peak_rss_gb"],
                }
                for name, d in done.items()
            ],
        },
    )
    write_report(root)
    return root


def _run_stage(recipe: Recipe, config: StageConfig, store: Store, done: Mapping[str, Done], reporter: Reporter) -> Done:
    entry = STAGES[config.stage]
    known = schema(entry, config.settings)
    arguments: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for name, value in config.settings.items():
        where = f"stages.{config.name}.{name}"
        arguments[name] = _resolve(known[name][0], value, recipe, done, inputs, where)
    own = own_methods(config)
    inputs |= {f"{name}: {method.name}": method.digest for name, method in own.items()}
    key = digest_of(
        {
            "format": FORMAT,
            "stage": config.stage,
            "settings": {k: _plain(v) for k, v in config.settings.items()},
            "inputs": inputs,
            "seed": recipe.seed,
            "dtype": recipe.dtype,
        }
    )
    found = store.find(config.name, key)
    if found is not None:
        store.link(config.name, found.folder)
        reporter.note(f"{config.name}: done before, skipped")
        return Done(artifact=found, skipped=True)
    began = time.monotonic()
    folder = store.work(config.name, key)
    run = Run(
        name=config.name, folder=folder, seed=recipe.seed, dtype=recipe.dtype,
        checkpoint_seconds=recipe.checkpoint_seconds, reporter=reporter,
    )  # fmt: skip
    function: Callable[..., Result] = entry.function
    result = function(run, **arguments)
    release_memory(collect=True)  # this stage's models, before the next stage loads its own
    seconds = time.monotonic() - began
    artifact = store.publish(
        config.name,
        key,
        {
            "stage": config.stage,
            "config": {k: _plain(v) for k, v in config.settings.items()},
            "inputs": inputs,
            **({"plugins": {name: method.columns for name, method in own.items()}} if own else {}),
            "base": result.base,
            "model": recipe.model,
            "metrics": result.metrics,
            "notes": run.notes,
            "seed": recipe.seed,
            "revision": revision(),
            "seconds": round(seconds, 1),
            "peak_rss_gb": round(peak_rss_gb(), 2),
        },
    )
    return Done(artifact=artifact, skipped=False)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _resolve(
    hint: Any, value: Any, recipe: Recipe, done: Mapping[str, Done], inputs: dict[str, str], where: str
) -> Any:
    """Turn words into references, noting the digest of each."""
    if hint is DataRef or (DataRef in typing.get_args(hint) and isinstance(value, str)):
        inputs[value] = source_digest(value)
        return DataRef(value)
    if hint is ModelRef or (ModelRef in typing.get_args(hint) and isinstance(value, str)):
        return _resolve_model(value, recipe, done, inputs, where)
    if ModelRef in typing.get_args(hint) and isinstance(value, (tuple, list)):
        return tuple(_resolve_model(word, recipe, done, inputs, where) for word in value)
    return value


def _resolve_model(word: str, recipe: Recipe, done: Mapping[str, Done], inputs: dict[str, str], where: str) -> ModelRef:
    """``base``, an earlier stage, or any model: hub id, folder, GGUF file, bundled name, artifact folder."""
    if word in done:
        artifact = done[word].artifact
        if artifact.base is None:
            raise ConfigError(f"{where}: stage {word!r} makes no model")
        inputs[word] = artifact.key
        return ModelRef(word, artifact.base, artifact)
    if word in recipe.stages:
        raise ConfigError(f"{where}: stage {word!r} comes later in the recipe; move it up")
    return find_model(recipe.model if word == "base" else word, word, inputs, tuple(recipe.stages), where)


def find_model(
    ref: str, name: str, inputs: dict[str, str] | None = None, stages: tuple[str, ...] = (), where: str = "model"
) -> ModelRef:
    """Find a model by what a user may write: an artifact folder of ours, or whatever ``model.source`` resolves."""
    artifact = read_artifact(Path(ref)) if Path(ref).is_dir() else None
    if artifact is not None and artifact.base is not None:
        if inputs is not None:
            inputs[name] = artifact.key
        return ModelRef(name, artifact.base, artifact)
    if stages and "/" not in ref and not Path(ref).exists():
        hint = did_you_mean(ref, stages)
        if hint.startswith("; did"):
            raise ConfigError(f"{where}: no stage or model {ref!r}{hint}")
    source = resolve(ref)
    if inputs is not None:
        inputs[name] = source.digest
    return ModelRef(name, ref)


def find_trained(model: str) -> ModelRef:
    """Find a model by what a user wrote on the command line: one of ``find_model``'s, or a stage's folder in a run.

    Raises ``ConfigError`` for a whole run, with the stages to choose from, and for a stage that makes no model.
    """
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    if (folder / "artifacts").is_dir():
        found = {inside.name: read_artifact(inside) for inside in sorted(folder.iterdir()) if inside.is_symlink()}
        names = [name for name, artifact in found.items() if artifact is not None and artifact.base is not None]
        if path.is_dir():
            stages = ", ".join(str(path / name) for name in names)
            raise ConfigError(f"{model}: this is a whole run; name one of its models: {stages}")
        raise ConfigError(f"{model}: the run has no such stage{did_you_mean(path.name, names)}")
    artifact = read_artifact(path) if path.is_dir() else None
    if artifact is not None and artifact.base is None:
        raise ConfigError(f"{model}: stage {artifact.name!r} makes no model")
    return find_model(model, artifact.name if artifact is not None else model)
