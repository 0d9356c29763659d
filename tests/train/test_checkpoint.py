from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trimtab.train import checkpoint
from trimtab.train.checkpoint import Checkpoint


def at(step: int, fill: float = 1.5) -> Checkpoint:
    tensors = {
        "a/0/master": torch.full((2, 3), fill + step),
        "a/0/step": torch.tensor(float(step)),
        "b": torch.arange(4.0, dtype=torch.float64).bfloat16(),
        "turned": torch.arange(6.0).view(2, 3).T,  # not contiguous
    }
    return Checkpoint(step=step, tensors=tensors, state={"kl": {"beta": 0.1 + 0.2}, "step": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_saved(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "checkpoints") is None
    assert checkpoint.latest(tmp_path) is None


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = at(7)
    checkpoint.save(tmp_path / "checkpoints", saved)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 7
    assert found.state == {"kl": {"beta": 0.30000000000000004}, "step": 7}
    assert found.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        checkpoint.save(tmp_path, at(step))
        assert names(tmp_path) == [f"step-{step:08d}"]


def test_the_newest_by_number(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", at(9))
    checkpoint.save(tmp_path / "b", at(100))
    (tmp_path / "a" / "step-00000009").rename(tmp_path / "b" / "step-00000009")  # a kill before older ones were dropped
    found = checkpoint.latest(tmp_path / "b")
    assert found is not None
    assert found.step == 100


def test_leftovers_of_a_kill_are_ignored_then_cleaned(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at(3))
    partial = tmp_path / ".partial-12345"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half a file")
    own = tmp_path / f".partial-{os.getpid()}"  # a process number can come round again
    own.mkdir()
    (own / "junk").write_text("junk")
    half_gone = tmp_path / "step-00000002"  # dropped halfway
    half_gone.mkdir()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 3
    checkpoint.save(tmp_path, at(4))
    assert names(tmp_path) == ["step-00000004"]
    assert names(tmp_path / "step-00000004") == ["state.json", "tensors.safetensors"]


def test_only_a_partial_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / ".partial-1").mkdir()
    assert checkpoint.latest(tmp_path) is None


ENDLESS = """
import sys, torch
from pathlib import Path
from trimtab.train import checkpoint
big = torch.arange(300_000.0)
step = 1
while True:
    checkpoint.save(Path(sys.argv[1]), checkpoint.Checkpoint(step=step, tensors={"x": big + step}, state={"n": step}))
    print(step, flush=True)
    step += 1
"""


@pytest.mark.parametrize("wait", [1, 4, 9])
def test_killed_while_saving_a_whole_one_remains(tmp_path: Path, wait: int) -> None:
    folder = tmp_path / "checkpoints"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(wait):
            line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    announced = int(rest[-1] if rest else line)
    found = checkpoint.latest(folder)
    assert found is not None
    assert found.step in (announced, announced + 1)  # published, perhaps not yet announced
    assert found.state == {"n": found.step}
    assert torch.equal(found.tensors["x"], torch.arange(300_000.0) + found.step)


def test_tensors_in_the_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    sums = torch.arange(9.0, dtype=torch.float64).view(3, 3).T / 7
    state = {"kl": {"beta": 0.1}, "ridge": {"sum": sums, "count": torch.tensor(3.0)}, "b": sums[0]}
    checkpoint.save(tmp_path, Checkpoint(step=1, tensors={"b": torch.ones(2)}, state=state))
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert list(found.tensors) == ["b"]
    assert torch.equal(found.tensors["b"], torch.ones(2))
    assert found.state["kl"] == {"beta": 0.1}
    assert found.state["ridge"].keys() == {"sum", "count"}
    assert torch.equal(found.state["ridge"]["sum"], sums)
    assert torch.equal(found.state["b"], sums[0])
