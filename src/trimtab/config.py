"""Recipes: YAML in, checked settings out.

A stage's keyword-only parameters are its schema; nothing is declared twice.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from trimtab.artifacts import Artifact
from trimtab.errors import ConfigError, did_you_mean
from trimtab.registry import STAGES, Entry, Folder, Named, Table, use_plugins


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
    """A whole recipe; ``plugins`` are folders with losses of the user's own (``registry.use_plugins``)."""

    name: str
    model: str = "smollm2-135m-instruct"
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32", "4bit"] = "auto"
    output: str = "runs"
    checkpoint_seconds: float = 60.0
    plugins: tuple[str, ...] = ()
    stages: Mapping[str, StageConfig] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-5`` is a number, as it is not in YAML 1.1, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; PyYAML itself would let the last of two equal keys win in silence."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; a syntax error names the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def read_setting(setting: str) -> tuple[str, Any]:
    """Split ``key=value`` and parse the value as YAML: ``lr=1e-5`` is a number, ``models=[base, sft]`` a list."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{setting!r} is not of the form key=value")
    return key.strip(), read_yaml(text, repr(setting))


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
    return check_recipe(read_recipe(path), str(path), overrides, name=path.stem)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe's file as it stands, unchecked."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a recipe: it is not UTF-8 text") from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the key 'stages'")
    return raw


def check_recipe(raw: Mapping[str, Any], where: str, overrides: Sequence[str] = (), *, name: str = "run") -> Recipe:
    """Check a recipe that is already parsed. From here on its plugins are known, and those of no other recipe."""
    if "bakeoff" in raw:
        raise ConfigError(f"{where}: this recipe holds a bake-off: run it with 'trimtab bakeoff'")
    tree = override_recipe({"name": name, **raw}, where, overrides)
    hints = typing.get_type_hints(Recipe)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"{where}: no key {key!r}{did_you_mean(str(key), hints)}")
    top = {k: v for k, v in tree.items() if k not in ("stages", "plugins")}
    settings = _validate({k: (hints[k], ...) for k in top}, top, f"{where}: ")
    settings["plugins"] = read_plugins(tree.get("plugins", ()), f"{where}: ")
    checked = {k: check_stage(k, v, f"{where}: stages.{k}") for k, v in tree["stages"].items()}
    for k, config in checked.items():
        _check_order(config, list(checked), f"{where}: stages.{k}")
    return Recipe(**settings, stages=checked)


def read_plugins(value: Any, where: str = "") -> tuple[str, ...]:
    """Check the key ``plugins``, a folder or a list of them, and make the losses in them known; no others are."""
    given = {"plugins": [value] if isinstance(value, str) else value}
    folders: tuple[str, ...] = _validate({"plugins": (tuple[str, ...], ...)}, given, where)["plugins"]
    use_plugins(folders, where)
    return folders


def override_recipe(raw: Mapping[str, Any], where: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a parsed recipe with overrides applied; every stage is a mapping, nothing else is checked."""
    tree: dict[str, Any] = copy.deepcopy(dict(raw))
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{where}: 'stages' is missing or empty")
    for key, settings in stages.items():
        if settings is not None and not isinstance(settings, dict):
            raise ConfigError(f"{where}: stages.{key}={_short(settings)}: a stage is a mapping of options to values")
    tree["stages"] = {str(key): settings or {} for key, settings in stages.items()}
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Apply one ``key=value``: a top-level key, or ``stage.key`` (also ``stages.stage.key``)."""
    key, value = read_setting(override)
    stages = tree["stages"]
    parts = key.removeprefix("stages.").split(".")
    if len(parts) == 1:
        known = {f.name for f in dataclasses.fields(Recipe)} - {"stages"}
        if parts[0] in known:
            tree[parts[0]] = value
            return
        if parts[0] in stages:
            raise ConfigError(f"override {override!r}: {parts[0]!r} is a stage; set its options: {parts[0]}.OPTION=...")
        raise ConfigError(f"override {override!r}: no key {key!r}{did_you_mean(key, known)}")
    if parts[0] not in stages:
        meant = did_you_mean(parts[0], stages)
        raise ConfigError(f"override {override!r}: no stage {parts[0]!r} in this recipe{meant}")
    put(stages, parts, value, override)


def put(node: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    """Put a value into nested mappings under ``parts``, making those that are not there."""
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, it has no keys below it")
    node[parts[-1]] = value


def check_stage(name: str, raw: Mapping[str, Any], where: str) -> StageConfig:
    """Check one stage's settings, those of its method among them, and fill in defaults."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "base":
        raise ConfigError(f"{where}: a stage's name is made of letters, digits, '_' and '-', and is not 'base'")
    settings = dict(raw)
    stage = settings.pop("stage", name)
    if stage not in STAGES:
        hint = "" if "stage" in raw else "; a stage under a name of its own says which with 'stage: ...'"
        raise ConfigError(f"{where}: no stage {stage!r}{did_you_mean(str(stage), STAGES)}{hint}")
    return StageConfig(name=name, stage=stage, settings=check_settings(STAGES[stage], settings, where))


def references(config: StageConfig) -> Iterator[tuple[str, type[ModelRef] | type[DataRef], str]]:
    """Yield a stage's references, still as words: (option, ``ModelRef`` or ``DataRef``, word)."""
    known = schema(STAGES[config.stage], config.settings)
    for option, value in config.settings.items():
        hint, _ = known[option]
        kind = next((kind for kind in REFERENCES if kind is hint or kind in typing.get_args(hint)), None)
        if kind is not None:
            words = value if isinstance(value, (tuple, list)) else [value]
            yield from ((option, kind, word) for word in words if isinstance(word, str))


def _check_order(config: StageConfig, names: Sequence[str], where: str) -> None:
    """Refuse a reference to the stage itself or a later one before anything has run."""
    for option, kind, word in references(config):
        if kind is ModelRef and word in names[names.index(config.name) :]:
            later = "is this stage itself" if word == config.name else "comes later in the recipe; move it up"
            raise ConfigError(f"{where}.{option}: stage {word!r} {later}")


def method_folders(entry: Entry) -> dict[str, Folder]:
    """A stage's options that name a method, each with the folder where it is looked up.

    Their type bears the folder: ``method: Annotated[str, PREFERENCE_LOSSES]``.
    """
    hints = typing.get_type_hints(entry.function, include_extras=True)
    marks = ((name, mark) for name, hint in hints.items() for mark in getattr(hint, "__metadata__", ()))
    return {name: mark for name, mark in marks if isinstance(mark, Folder)}


def with_defaults(entry: Entry, settings: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Put what the rows that a stage's settings name (``Annotated[str, METHODS]``) have as defaults under the settings.

    Options inside an option come together one by one.
    """
    hints = typing.get_type_hints(entry.function, include_extras=True)
    marks = ((name, mark) for name, hint in hints.items() for mark in getattr(hint, "__metadata__", ()))
    for name, table in marks:
        if isinstance(table, Table):
            chosen = settings.get(name, entry.options[name].default)
            if chosen not in table:
                raise ConfigError(f"{where}.{name}: no {table.what} {chosen!r}{did_you_mean(str(chosen), table)}")
            settings = _over(settings, table[chosen].defaults)
    return settings


def _over(mine: Any, theirs: Any) -> Any:
    """Settings over defaults: what both have is taken from the settings, mappings key by key."""
    if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
        return mine
    return {**theirs, **{key: _over(value, theirs.get(key)) for key, value in mine.items()}}


def schema(entry: Entry, settings: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, inspect.Parameter]]:
    """A stage's options, as (type, parameter); after them those of the methods that the settings name."""
    hints = typing.get_type_hints(entry.function, include_extras=True)
    found = {name: (hints[name], parameter) for name, parameter in entry.options.items()}
    for name, folder in method_folders(entry).items():
        chosen = settings.get(name, entry.options[name].default)
        if chosen not in folder:
            raise ConfigError(f"{where}.{name}: no {folder.what} {chosen!r}{did_you_mean(str(chosen), folder)}")
        found |= _beside(folder[chosen], entry)
    return found


def _beside(method: Entry, stage: Entry) -> dict[str, tuple[Any, inspect.Parameter]]:
    """A method's options, which stand beside those of its stage; a user's own may not get in their way."""
    try:
        hints = typing.get_type_hints(method.function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{method.path}: a type in {method.name!r} cannot be read: {error}") from error
    taken = {"stage", *inspect.signature(stage.function).parameters}
    for name in method.options:
        if name not in hints:
            raise ConfigError(f"{method.path}: option {name!r} has no type; write {name}: float, for instance")
        if name in taken or name.startswith("_"):
            raise ConfigError(f"{method.path}: stage {stage.name!r} takes no option {name!r} of a loss; rename it")
    return {name: (hints[name], option) for name, option in method.options.items()}


def nested_methods(
    entry: Entry, settings: Mapping[str, Any], where: str = ""
) -> dict[tuple[str, ...], tuple[Named, Entry]]:
    """The methods that options which are mappings name (``registry.Named``), by place, for those that are given."""
    hints = typing.get_type_hints(entry.function, include_extras=True)
    found: dict[tuple[str, ...], tuple[Named, Entry]] = {}
    for name, hint in hints.items():
        given = settings.get(name)
        for mark in getattr(hint, "__metadata__", ()):
            if not isinstance(mark, Named) or not isinstance(given, Mapping):
                continue
            inside: dict[tuple[str, ...], Any] = {(name,): given}
            if mark.each:
                wrong = [key for key in given if not isinstance(key, str)]
                if wrong:
                    raise ConfigError(f"{where}.{name}: the name {wrong[0]!r} must be text; put it in quotes")
                inside = {(name, key): own or {} for key, own in given.items()}
            for place, own in inside.items():
                if isinstance(own, Mapping):  # what is none is refused by whoever reads it
                    found[place] = (mark, _nested(mark, place, own, where))
    return found


def _nested(mark: Named, place: tuple[str, ...], own: Mapping[str, Any], where: str) -> Entry:
    chosen = own.get(mark.key) or (place[-1] if mark.each else None)
    if chosen is None or chosen not in mark.folder:
        said = f"no {mark.folder.what} {chosen!r}" if chosen is not None else f"option {mark.key!r} is missing"
        raise ConfigError(f"{'.'.join((where, *place))}: {said}{did_you_mean(str(chosen or ''), mark.folder)}")
    method = mark.folder[chosen]
    for name in sorted(mark.ours):
        if name in method.options:
            raise ConfigError(f"{method.path}: {method.name!r} cannot have an option {name!r}; rename it")
    return method


def _check_nested(entry: Entry, settings: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Check what stands beside the name of a method in an option that is a mapping, and fill in defaults."""
    found = dict(settings)
    for place, (mark, method) in nested_methods(entry, settings, where).items():
        given = settings[place[0]][place[1]] or {} if mark.each else settings[place[0]]
        at = ".".join((where, *place))
        ours = {key: value for key, value in given.items() if key in mark.ours}
        if mark.beside is not None:
            ours = check_options(mark.beside, ours, at)
        own = {key: value for key, value in given.items() if key not in mark.ours}
        checked = {**ours, mark.key: method.name, **check_settings(method, own, at)}
        found[place[0]] = {**found[place[0]], place[1]: checked} if mark.each else checked
    return found


def own_methods(config: StageConfig) -> dict[str, Entry]:
    """The user's own methods among those that a stage's settings name, by option."""
    stage = STAGES[config.stage]
    named = {name: folder[config.settings[name]] for name, folder in method_folders(stage).items()}
    named |= {".".join(place): method for place, (_, method) in nested_methods(stage, config.settings).items()}
    return {name: method for name, method in named.items() if method.digest}


def check_settings(entry: Entry, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate settings against a function's keyword-only parameters; fill in defaults."""
    settings = with_defaults(entry, settings, where)
    known = schema(entry, settings, where)
    for key in settings:
        if key not in known:
            raise ConfigError(f"{where}: no option {key!r}{did_you_mean(str(key), known)}")
    for key, (_, parameter) in known.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            raise ConfigError(f"{where}: option {key!r} is missing")
    settings = _check_nested(entry, settings, where)
    fields = {name: (_plain(hint), _default(parameter)) for name, (hint, parameter) in known.items()}
    return _validate(fields, settings, f"{where}.")


def check_options(kind: type, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate settings against a dataclass's fields; only those that are given come back."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in settings:
        if key not in hints:
            raise ConfigError(f"{where}: no option {key!r}{did_you_mean(str(key), hints)}")
    return _validate({key: (hints[key], ...) for key in settings}, settings, f"{where}: ")


def _plain(hint: Any) -> Any:
    """A reference is a word in a recipe."""
    if hint in REFERENCES:
        return str
    args = typing.get_args(hint)
    if any(a in REFERENCES for a in args):
        plain = tuple(str if a in REFERENCES else a for a in args)
        origin: Any = typing.get_origin(hint)
        return functools.reduce(operator.or_, plain) if origin in (typing.Union, types.UnionType) else origin[plain]
    return hint


def _default(parameter: inspect.Parameter) -> Any:
    """A parameter's default as a recipe would write it."""
    if parameter.default is inspect.Parameter.empty:
        return ...
    return as_word(parameter.default)


def as_word(value: Any) -> Any:
    """A reference (or a tuple of them) as the word that a recipe has for it; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(as_word(item) for item in value)
    if isinstance(value, ModelRef):
        return value.name
    return value.source if isinstance(value, DataRef) else value


def _validate(fields: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check values by pydantic; the first thing wrong becomes one sentence with its full place."""
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)
    build: Callable[..., type[pydantic.BaseModel]] = pydantic.create_model
    try:
        checked = build("Settings", __config__=config, **fields)(**values)
    except pydantic.ValidationError as error:
        raise ConfigError(_sentence(error.errors()[0], {k: f[0] for k, f in fields.items()}, where)) from None
    found = {name: getattr(checked, name) for name in fields}
    for place, given, taken in _leaves(values, found, ()):
        if isinstance(given, bool) and not isinstance(taken, bool) and not isinstance(taken, str):
            raise ConfigError(f"{where}{place}={str(given).lower()}: input should be a number, not true or false")
    return found


def _sentence(error: Any, hints: Mapping[str, Any], where: str) -> str:
    """Say what pydantic found: the place from the recipe's top, what stands there, what was expected or meant."""
    *above, last = error["loc"]
    place = where + ".".join(str(part) for part in error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parent = where + ".".join(str(part) for part in above)
        known = _fields_at(hints, above)
        return f"{parent.rstrip(': ')}: no option {last!r}{did_you_mean(str(last), known)}"
    if error["type"] == "missing":
        return f"{place}: this option is missing"
    if error["type"] in ("dataclass_type", "dataclass_exact_type"):
        names = ", ".join(_fields_at(hints, error["loc"]))
        return f"{place}={_short(error['input'])}: here stand options of their own: {names}"
    message = error["msg"]
    return f"{place}={_short(error['input'])}: {message[0].lower()}{message[1:]}"


def _fields_at(hints: Mapping[str, Any], place: Sequence[Any]) -> list[str]:
    """The options of the nested dataclass that a place leads to."""
    for part in place:
        if part in hints:  # a union's member or a list's index is no key
            options = (hints[part], *typing.get_args(hints[part]))
            kind = next((option for option in options if dataclasses.is_dataclass(option)), None)
            hints = typing.get_type_hints(kind) if kind is not None else {}
    return list(hints)


def _leaves(given: Any, taken: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Walk what was given beside what was made of it: (place, given, taken)."""
    if isinstance(given, Mapping) and (isinstance(taken, Mapping) or dataclasses.is_dataclass(taken)):
        for key, value in given.items():
            inside = taken.get(key) if isinstance(taken, Mapping) else getattr(taken, key, None)
            yield from _leaves(value, inside, (*place, str(key)))
    else:
        yield ".".join(place), given, taken


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
