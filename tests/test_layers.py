"""Layers import downwards only; what people and files see imports nothing heavy.

Read from the syntax tree, so an import inside a function or under ``TYPE_CHECKING`` counts too. The registry names its
folders as strings and imports them when asked: that is the one way up, and it is not an import statement.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab

ROOT = Path(trimtab.__file__).parent

LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in (
        "trimtab errors seeds",
        "registry records",
        "artifacts tensors stats",
        "config feedback",
        "losses advantages laws",
        "model",
        "rewards data train environments",
        "serving",
        "stages report",
        "pipeline",
        "bakeoff listing console",
        "cli_data",
        "cli",
        "__main__",
    )
)
PEERS = frozenset({"rewards", "data", "train"})  # the one layer whose rooms may use each other
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}

HEAVY = frozenset({"torch", "transformers", "peft"})
LIGHT = (
    "trimtab.errors", "trimtab.seeds", "trimtab.registry", "trimtab.records", "trimtab.stats", "trimtab.artifacts",
    "trimtab.config", "trimtab.report", "trimtab.console", "trimtab.cli", "trimtab.data.inspect",
    "trimtab.environments.grid", "trimtab.environments.text", "trimtab.environments.tasks", "trimtab.feedback",
)  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(module: str, source: str, *, package: bool = False) -> Iterator[str]:
    """Every module that a source names in an import statement, at any depth, in full."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + package] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            # `from trimtab import stages` names a room; `from trimtab import __version__` names the package itself
            yield from (f"{start}.{a.name}" if start == "trimtab" and a.name in HEIGHT else start for a in node.names)


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    found: list[str] = []
    here = room(module)
    light = any(module == name or module.startswith(f"{name}.") for name in LIGHT)
    for name in imports(module, source, package=package):
        top = name.split(".")[0]
        if light and top in HEAVY:
            found.append(f"{module} imports {top}")
        if top != "trimtab" or room(name) == here:
            continue
        there = room(name)
        same = {here, there} <= PEERS
        if there not in HEIGHT or (HEIGHT[there] >= HEIGHT[here] and not same):
            found.append(f"{module} imports {name}")
    return found


def test_every_room_has_a_layer() -> None:
    assert {room(module) for module, _ in modules()} == set(HEIGHT)
    assert sum(map(len, LAYERS)) == len(HEIGHT)


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_imports_go_downwards(module: str, path: Path) -> None:
    assert violations(module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trimtab.losses.lm", "from trimtab.model.trunk import Trunk"),
        ("trimtab.losses.lm", "def f():\n    import trimtab.train.loop"),
        (
            "trimtab.losses.lm",
            "if TYPE_CHECKING:\n    from trimtab.config import Recipe\n    import trimtab.stages.sft",
        ),
        ("trimtab.train.loop", "from ..stages import sft"),
        ("trimtab.train.loop", "from trimtab import pipeline"),
        ("trimtab.report.page", "from trimtab.stages import Result"),
        ("trimtab.losses.lm", "from trimtab.advantages.gae import gae"),
        ("trimtab.model.load", "from trimtab.basement import anything"),
        ("trimtab.records.types", "import torch"),
        ("trimtab.report.charts", "def draw():\n    from torch.nn import functional"),
        ("trimtab.data.inspect", "import transformers.models"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trimtab.stages.sft", "from trimtab.losses.lm import next_token"),
        ("trimtab.data.encode", "import torch\nfrom trimtab.train.run import Run"),
        ("trimtab.losses.policy.ppo", "from ._terms import PolicyTerms\nimport torch"),
        ("trimtab.artifacts", "from trimtab import __version__"),
        ("trimtab.report.charts", "import matplotlib"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("names", "kept_out"),
    [
        ("trimtab.records.read, trimtab.stats.winrate, trimtab.config", {"torch", "transformers", "peft"}),
        ("trimtab.report.summary, trimtab.data.inspect", {"torch", "transformers", "peft", "matplotlib"}),
        ("trimtab.cli", {"torch", "transformers", "datasets", "matplotlib", "scipy"}),
    ],
)
def test_a_light_path_stays_light(names: str, kept_out: set[str]) -> None:
    program = f"import sys, {names}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert set(names.split(", ")) <= loaded
    assert not loaded & kept_out
