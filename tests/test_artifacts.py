"""Publishing, killed between any two of its lines: the next start of the same command leaves nothing lying about."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.artifacts import ITSELF, Store, read_artifact

KEY = "5" * 64
PUBLISH = """
import os, pathlib, shutil, signal, sys
from trimtab.artifacts import ITSELF, Store, read_artifact

def watch(owner, name):
    whole = getattr(owner, name)
    def stop_before(*arguments, **options):
        if sys.argv[2] in f"{name} {arguments[0]}":
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)
    setattr(owner, name, stop_before)

watch(shutil, "rmtree")
watch(pathlib.Path, "rename")
watch(pathlib.Path, "replace")
watch(pathlib.Path, "symlink_to")
store = Store(pathlib.Path(sys.argv[1]))
(store.work("sft", "5" * 64) / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
store.publish("sft", "5" * 64, {"stage": "sft"})
"""


def publish(root: Path, stop_before: str) -> int:
    """Publish in a process that kills itself before the call that is named, say ``rename`` or ``rmtree .../x``."""
    return subprocess.run([sys.executable, "-c", PUBLISH, str(root), stop_before], check=False).returncode


@pytest.mark.parametrize(
    ("stop_before", "published"),
    [
        (".manifest.json.partial", False),
        ("rmtree {root}/artifacts/sft-555555555555", False),
        ("rename {root}/.work/sft-555555555555", False),
        ("rmtree {root}/artifacts/sft-555555555555/checkpoints", True),
        ("symlink_to {root}/.link-sft", True),
        ("replace {root}/.link-sft", True),
    ],
)
def test_killed_while_publishing_leaves_nothing_behind(tmp_path: Path, stop_before: str, published: bool) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert publish(whole, "never") == 0
    # The folder's own removal and that of its checkpoints begin alike: the longer name is the later call.
    assert publish(killed, stop_before.format(root=killed)) == -signal.SIGKILL
    store = Store(killed)
    found = store.find("sft", KEY)
    assert (found is not None) == published
    if found is not None:
        store.link("sft", found.folder)  # what the pipeline does with a finished stage
    else:
        assert list(killed.glob(".work/sft-*/checkpoints/step-*"))  # what it goes on from
        assert publish(killed, "never") == 0
    assert listing(killed) == listing(whole)
    assert (killed / "sft" / "manifest.json").is_file()


def test_whole_models_and_what_lies_on_them_move_with_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    whole = store.publish("whole", "1" * 64, {"stage": "sft", "base": ITSELF})
    above = store.publish("above", "2" * 64, {"stage": "sft", "base": whole.base})
    elsewhere = Store(tmp_path / "other").publish("above", "3" * 64, {"stage": "sft", "base": whole.base})
    named = store.publish("named", "4" * 64, {"stage": "sft", "base": "tiny"})
    none = store.publish("none", "5" * 64, {"stage": "evaluate", "base": None})
    assert [artifact.whole for artifact in (whole, above, elsewhere, named, none)] == [True, *[False] * 4]
    assert whole.base == above.base == elsewhere.base == str(tmp_path / "run/artifacts/whole-111111111111")
    assert (named.base, none.base) == ("tiny", None)
    assert whole.manifest["base"] == "artifact:."
    assert above.manifest["base"] == "artifact:../whole-111111111111"
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("whole", "above"):
        artifact = read_artifact(tmp_path / "moved" / name)
        assert artifact is not None
        assert artifact.base == str(tmp_path / "moved/artifacts/whole-111111111111")


def listing(root: Path) -> list[str]:
    """Every file, folder and link."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
