"""Recipes: YAML in, checked settings out. A stage's keyword-only parameters are its schema; nothing is declared twice."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import yaml

from trimtab.artifacts import Artifact
from trimtab.errors import ConfigError, did_you_mean
from trimtab.registry import STAGES, Entry


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a recipe names it: ``base`` (the recipe's model), an earlier stage, or any model.

    The pipeline fills ``base`` (what to load) and ``artifact`` (the earlier stage's folder).
    """

    name: str
    base: str = ""
    artifact: Artifact | None = None


@dataclass(frozen=True, slots=True)
class DataRef:
    """Data as a recipe names it: a file, a folder, a hub id, or ``quickstart/NAME``."""

    source: str


BASE = ModelRef("base")
REFERENCES = (ModelRef, DataRef)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage instance of a recipe: its name, its type, its checked settings (references still as words)."""

    name: str
    stage: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole recipe."""

    name: str
    model: str = "smollm2-135m-instruct"
    seed: int = 0
    dtype: str = "auto"
    output: str = "runs"
    checkpoint_seconds: float = 60.0
    stages: Mapping[str, StageConfig] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as text; a learning rate is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; a syntax error names the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with one more number format
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def find_recipe(name: str) -> Path:
    """Find a recipe: a path, or the name of one that comes with Trimtab."""
    path = Path(name)
    if path.is_file():
        return path
    here = Path(__file__).resolve()
    folders = [Path("recipes"), here.parent / "recipes", here.parents[2] / "recipes"]
    known: set[str] = set()
    for folder in folders:
        known |= {found.stem for found in folder.glob("*.yaml")}
        candidate = folder / f"{path.name}.yaml"
        if not path.suffix and path.parent == Path() and candidate.is_file():
            return candidate
    raise ConfigError(f"no recipe {name!r}: no such file, and no recipe of that name{did_you_mean(path.stem, known)}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``key=value`` overrides, check everything.

    Raises ConfigError with the place (``recipes/x.yaml: stages.sft``), what is wrong, and what was probably meant.
    """
    raw = read_yaml(path.read_text(), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the key 'stages'")
    return check_recipe(raw, str(path), overrides, name=path.stem)


def check_recipe(raw: Mapping[str, Any], where: str, overrides: Sequence[str] = (), *, name: str = "run") -> Recipe:
    """Check a recipe that is already parsed."""
    tree: dict[str, Any] = {"name": name, **raw}
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{where}: 'stages' is missing or empty")
    tree["stages"] = {k: dict(v or {}) for k, v in stages.items()}
    for override in overrides:
        _apply(tree, override)
    fields = {f.name: f.type for f in dataclasses.fields(Recipe)}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"{where}: no key {key!r}{did_you_mean(key, fields)}")
    top = {k: v for k, v in tree.items() if k != "stages"}
    model = _model_of({k: (t, ...) for k, t in typing.get_type_hints(Recipe).items() if k in top})
    settings = _validate(model, top, where)
    checked = {k: _check_stage(k, v, f"{where}: stages.{k}") for k, v in tree["stages"].items()}
    return Recipe(**settings, stages=checked)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Apply one ``key=value``: a top-level key, or ``stage.key`` (also ``stages.stage.key``)."""
    key, eq, text = override.partition("=")
    if not eq:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    value = read_yaml(text, f"override {override!r}")
    parts = key.strip().split(".")
    if parts[0] == "stages":
        parts = parts[1:]
    if len(parts) == 1:
        known = {f.name for f in dataclasses.fields(Recipe)} - {"stages"}
        if parts[0] not in known:
            raise ConfigError(
                f"override {override!r}: no key {parts[0]!r}{did_you_mean(parts[0], known | set(tree['stages']))}"
            )
        tree[parts[0]] = value
        return
    node = tree["stages"]
    if parts[0] not in node:
        raise ConfigError(f"override {override!r}: no stage {parts[0]!r} in this recipe{did_you_mean(parts[0], node)}")
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, it has no keys below it")
    node[parts[-1]] = value


def _check_stage(name: str, raw: Mapping[str, Any], where: str) -> StageConfig:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "base":
        raise ConfigError(f"{where}: a stage's name is made of letters, digits, '_' and '-', and is not 'base'")
    settings = dict(raw)
    stage = settings.pop("stage", name)
    if stage not in STAGES:
        raise ConfigError(f"{where}: no stage {stage!r}{did_you_mean(str(stage), STAGES)}")
    return StageConfig(name=name, stage=stage, settings=check_settings(STAGES[stage], settings, where))


def check_settings(entry: Entry, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate settings against a function's keyword-only parameters; fill in defaults."""
    for key in settings:
        if key not in entry.options:
            raise ConfigError(f"{where}: no option {key!r}{did_you_mean(key, entry.options)}")
    hints = typing.get_type_hints(entry.function, include_extras=True)
    fields = {name: (_plain(hints[name]), _default(parameter)) for name, parameter in entry.options.items()}
    return _validate(_model_of(fields), settings, where)


def _plain(hint: Any) -> Any:
    """A reference is a word in a recipe."""
    if hint in REFERENCES:
        return str
    args = typing.get_args(hint)
    if any(a in REFERENCES for a in args):
        origin = typing.get_origin(hint)
        plain = tuple(str if a in REFERENCES else a for a in args)
        return typing.Union[plain] if origin in (typing.Union, type(int | str)) else origin[plain]  # type: ignore[index]
    return hint


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return ...
    default = parameter.default
    if isinstance(default, ModelRef):
        return default.name
    return default.source if isinstance(default, DataRef) else default


def _model_of(fields: Mapping[str, Any]) -> type[pydantic.BaseModel]:
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)
    build: Callable[..., type[pydantic.BaseModel]] = pydantic.create_model
    return build("Settings", __config__=config, **fields)


def _validate(model: type[pydantic.BaseModel], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        checked = model(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise ConfigError(f"{where}: no option {place!r}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{where}: option {place!r} is missing") from None
        given = first["input"]
        raise ConfigError(f"{where}: {place}={given!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return {name: getattr(checked, name) for name in type(checked).model_fields}
