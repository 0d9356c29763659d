"""recipes/tiny.yaml through the command line: all stages, then skipping, then one change."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STAGES = ("sft", "reward", "policy", "evaluate")

Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _encoder() -> None:
    """The judge of the evaluate stage reads with a small encoder."""
    from trimtab.errors import ModelError
    from trimtab.model.bundled import bundled_folder

    try:
        bundled_folder("minilm-l6-v2")
    except ModelError as error:
        pytest.skip(f"the encoder cannot be had here: {error}")


def stages(root: Path) -> dict[str, tuple[bool, str]]:
    """Each stage: was it skipped, and where does its link lead?"""
    found = json.loads((root / "run.json").read_text())["stages"]
    return {stage["name"]: (stage["skipped"], stage["folder"]) for stage in found}


def test_the_tiny_recipe(tmp_path: Path, trimtab: Command) -> None:
    command = ("run", str(REPOSITORY / "recipes" / "tiny.yaml"), f"output={tmp_path}")
    root = tmp_path / "tiny"

    def run(*settings: str) -> dict[str, tuple[bool, str]]:
        process = trimtab(*command, *settings, cwd=tmp_path)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        assert str(root / "report.html") in output
        return stages(root)

    first = run()
    assert tuple(first) == STAGES
    assert not any(skipped for skipped, _ in first.values())
    summary = json.loads((root / "summary.json").read_text())
    assert summary
    page = (root / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    for name in STAGES:
        assert (root / name).is_symlink()
        assert json.loads((root / name / "manifest.json").read_text())["stage"] == name
    for name in ("sft", "reward", "policy"):
        assert (root / name / "adapter_model.safetensors").is_file()
        assert (root / name / "metrics.jsonl").is_file()
    assert not list((root / ".work").iterdir())

    second = run()
    assert all(skipped for skipped, _ in second.values())
    assert [folder for _, folder in second.values()] == [folder for _, folder in first.values()]

    third = run("policy.lr=2e-4")  # the stages after it read the policy
    assert [third[name][0] for name in STAGES] == [True, True, False, False]
    assert third["policy"][1] != first["policy"][1]
    assert (root / "policy").resolve().name == Path(third["policy"][1]).name

    back = run()  # what was made before is still there, and the links go back to it
    assert all(skipped for skipped, _ in back.values())
    assert (root / "policy").resolve().name == Path(first["policy"][1]).name
