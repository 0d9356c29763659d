"""What a row rests on: settings with their defaults, the bytes of data and models, and the code that decides results.

Settings and inputs are kept as they are, so that two rows can be told apart in words. The code is one digest: of the
package's own files, installed or not, that the recipe's stages import, directly or not, without comments and
docstrings. Of the methods' files only those count that the recipe names, so that a new method, and a new stage, leave
the others' rows as they are.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import json
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab import registry
from trimtab.artifacts import digest_of
from trimtab.bakeoff.plan import Bakeoff
from trimtab.config import DataRef, Recipe, StageConfig, check_recipe, method_folders, references
from trimtab.model.bundled import BUNDLED
from trimtab.pipeline import find_model
from trimtab.records import sources
from trimtab.records.read import source_digest
from trimtab.registry import STAGES

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = (
    "advantages", "data", "environments", "losses", "model", "records", "rewards", "stages", "stats", "tensors",
    "train",
)  # fmt: skip
ELSEWHERE = frozenset(  # told otherwise, or of no matter
    {"name", "seed", "output", "checkpoint_seconds", "model", "stages", "plugins"}
)
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What one method's rows rest on, whatever the seed: ``asked`` as JSON has it, and the code."""

    asked: Mapping[str, Any]
    code: str

    @property
    def key(self) -> str:
        """The digest of what was asked."""
        return digest_of(self.asked)


def identify(plan: Bakeoff, method: str) -> Identity:
    """Say what a method's rows rest on.

    Errors: those of reading a recipe, and ``DataError`` or ``ModelError`` when data or a model is not there.
    """
    recipe = check_recipe(plan.recipe(method, 0), plan.where)
    contest = plan.contest
    budget = {} if method == contest.start else {"minutes": contest.minutes, "tokens": contest.tokens}
    top = [field.name for field in dataclasses.fields(Recipe) if field.name not in ELSEWHERE]
    asked = {
        **{name: getattr(recipe, name) for name in top},
        "model": _model(recipe.model),
        "budget": budget,
        "stages": {config.name: _told(config, recipe) for config in recipe.stages.values()},
    }  # fmt: skip
    return Identity(asked=_set(json.loads(json.dumps(asked, default=str))), code=digest_of_code(deciding(recipe)))


def all_code() -> str:
    """The digest of all code that may decide results, whatever a recipe names of it."""
    return digest_of_code([PACKAGE / "seeds.py", *(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))])


def differences(theirs: Any, mine: Any, place: str = "") -> Iterator[str]:
    """Say where two settings differ, theirs first: ``stages.dpo.beta 0.1, not 0.2``."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in dict.fromkeys([*theirs, *mine]):
            yield from differences(theirs.get(key), mine.get(key), f"{place}.{key}".lstrip("."))
    elif theirs != mine:
        contents = all(str(value).startswith("sha256:") for value in (theirs, mine))
        yield f"other contents of {place}" if contents else f"{place} {_short(theirs)}, not {_short(mine)}"


def digest_of_code(paths: Iterable[Path]) -> str:
    """The digest of Python files by their names (from the package, or the file's alone) and ``bare`` text."""
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
        seen = path.stat()
        digest.update(f"{name}\n{_bare_file(path, seen.st_mtime_ns, seen.st_size)}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _bare_file(path: Path, changed_ns: int, size: int) -> str:
    """``bare`` of a file, read again when it was changed."""
    return bare(path.read_text(encoding="utf-8"))


def bare(source: str) -> str:
    """Python without comments, docstrings and empty lines. The same under every version of Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            said = node.body[0]
            if not lines[said.lineno - 1][: said.col_offset].strip():  # else it shares its line with the head
                lines[said.lineno - 1 : said.end_lineno] = [""] * ((said.end_lineno or said.lineno) - said.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def deciding(recipe: Recipe) -> set[Path]:
    """The files whose code decides what a recipe gives: its stages, the methods that it names, and all they import.

    A registry counts with all its files where it is imported, unless some stage has an option that names one of them.
    """
    entries = [STAGES[config.stage] for config in recipe.stages.values()]
    for config in recipe.stages.values():
        folders = method_folders(STAGES[config.stage])
        entries += [folder[config.settings[option]] for option, folder in folders.items()]
    named = {f"{folder.package}.*" for stage in STAGES.values() for folder in (STAGES, *method_folders(stage).values())}
    found: set[Path] = set()
    ahead = [entry.path.resolve() for entry in entries if entry.path is not None]
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            seen = path.stat()
            modules = _imported(path, seen.st_mtime_ns, seen.st_size) - named
            ahead += [file for module in modules for file in _files_of(module)]
    return found


@cache
def _imported(path: Path, changed_ns: int, size: int) -> frozenset[str]:
    """What a file imports, dotted; of a registry (``registry.STAGES``) its folder (``trimtab.stages.*``)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    folders = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Folder)}
    places = {f"trimtab.registry.{name}": f"{folder.package}.*" for name, folder in folders.items()}
    return frozenset(places.get(name, name) for name in names)


def _files_of(module: str) -> Iterator[Path]:
    """The files of a module, or of all modules in a folder, of the rooms whose code decides results."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    if package == "trimtab" and room in (*ROOMS, "seeds"):
        place = rest.replace(".", "/")
        yield from PACKAGE.glob(f"{place}.py")
        if (init := PACKAGE / place / "__init__.py").is_file():
            yield init


def _told(config: StageConfig, recipe: Recipe) -> dict[str, Any]:
    """What a stage is told: references to data and models of elsewhere by contents, wherever they lie."""
    words = {}
    for _, kind, word in references(config):
        if kind is DataRef:
            words[word] = _data(word)
        elif word not in recipe.stages and word != "base":
            words[word] = _model(word)
    told: dict[str, Any] = {"stage": config.stage}
    by_reference = {option for option, _, _ in references(config)}
    for option, value in config.settings.items():
        if option in by_reference:
            value = (
                [words.get(word, word) for word in value]
                if isinstance(value, (list, tuple))
                else words.get(value, value)
            )
        told[option] = (
            dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        )
    return told


def _set(value: Any) -> Any:
    """Settings without those that are not set: a new option that does nothing unless it is asked for changes no row."""
    if not isinstance(value, Mapping):
        return value
    return {key: _set(inside) for key, inside in value.items() if inside is not None}


def _data(word: str) -> str:
    """The contents of data, and which split and share of them."""
    found = sources.resolve(word)
    split = f":{found.split}" if found.split else ""
    share = "@{:g}:{:g}".format(*found.share) if found.share != (0.0, 1.0) else ""
    return f"sha256:{source_digest(word)[:16]}{split}{share}"


def _model(ref: str) -> str:
    """A model's contents; a bundled one need not be fetched for it."""
    inputs: dict[str, str] = {}
    if ref in BUNDLED:
        inputs["model"] = BUNDLED[ref].digest
    else:
        find_model(ref, "model", inputs)
    return f"sha256:{inputs['model'][:16]}"


def _short(value: Any) -> str:
    """A value in few words."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
