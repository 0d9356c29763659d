from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InvariantError
from trimtab.train.run import Means, Run, Silent, invariant, peak_rss_gb


def rows(run: Run) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_log_is_one_line_a_step(tmp_path: Path) -> None:
    run = Run(name="sft", folder=tmp_path)
    run.log({"step": 0, "train/loss": 0.1 + 0.2})
    run.log({"step": 1, "train/loss": math.nan, "train/grad_norm": math.inf})
    assert rows(run) == [
        {"step": 0, "train/loss": 0.30000000000000004},
        {"step": 1, "train/loss": None, "train/grad_norm": None},
    ]


def test_rewind_drops_later_steps_and_half_a_line(tmp_path: Path) -> None:
    run = Run(name="sft", folder=tmp_path)
    for step in range(5):
        run.log({"step": step, "train/loss": float(step)})
    whole = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(whole + b'{"step": 5, "train/lo')
    run.rewind_log(5)
    assert run.metrics_path.read_bytes() == whole
    run.rewind_log(2)
    assert rows(run) == [{"step": 0, "train/loss": 0.0}, {"step": 1, "train/loss": 1.0}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewind_drops_a_line_whose_end_alone_is_missing(tmp_path: Path) -> None:
    run = Run(name="sft", folder=tmp_path)
    run.metrics_path.write_text('{"step": 0}\n{"step": 1}')  # the next line would be glued to it
    run.rewind_log(2)
    assert run.metrics_path.read_text() == '{"step": 0}\n'


def test_rewind_stops_at_a_broken_line(tmp_path: Path) -> None:
    run = Run(name="sft", folder=tmp_path)
    run.metrics_path.write_text('{"step": 0}\n{"st\n{"step": 1}\n')
    run.rewind_log(2)
    assert run.metrics_path.read_text() == '{"step": 0}\n'


def test_rewind_of_nothing(tmp_path: Path) -> None:
    run = Run(name="sft", folder=tmp_path)
    run.rewind_log(0)
    assert not run.metrics_path.exists()


def test_a_crash_while_rewinding_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(name="sft", folder=tmp_path)
    run.log({"step": 0})
    run.log({"step": 1})

    def no_space(self: Path, text: str) -> int:
        self.open("w").close()  # what write_text does first
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", no_space)
        with pytest.raises(OSError, match="no space"):
            run.rewind_log(1)
    run.rewind_log(1)
    assert rows(run) == [{"step": 0}]


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_means_do_not_depend_on_the_cut(values: list[float], cuts: list[int]) -> None:
    means = Means()
    bounds = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
    for begin, end in pairwise(bounds):
        means.add({"x": torch.tensor(values[begin:end], dtype=torch.float32)})  # some are empty
    assert means.result() == {"x": pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-9)}


def test_means_over_ragged_micro_batches() -> None:
    # A mean of means would give (1 + 10) / 2 = 5.5; over items it is (1 + 1 + 1 + 1 + 10) / 5 = 2.8.
    means = Means()
    means.add({"x": torch.ones(4), "one": 3.0})
    means.add({"x": torch.tensor([[10.0]]), "flag": torch.tensor([True, False])})
    means.add({"none": torch.zeros(0)})
    assert means.result() == {"x": 2.8, "one": 3.0, "flag": 0.5}


def test_means_hold_no_graph() -> None:
    x = torch.ones(2, requires_grad=True)
    means = Means()
    means.add({"x": x * 2})
    assert means.result() == {"x": 2.0}


def test_invariant() -> None:
    invariant(True, "fine")
    with pytest.raises(InvariantError, match="they must be equal"):
        invariant(False, "they must be equal")


def test_notes_are_said_and_kept(tmp_path: Path) -> None:
    said: list[str] = []

    class Loud(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    run = Run(name="sft", folder=tmp_path, reporter=Loud())
    run.note("two rows were left out")
    assert said == run.notes == ["two rows were left out"]


def test_peak_memory_is_in_gigabytes() -> None:
    assert 0.05 < peak_rss_gb() < 200
