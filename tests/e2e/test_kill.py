"""kill -9 at any moment: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STEPS = {"sft": 25, "reward": 20, "policy": 10}
KILLS = 5
RECIPE = """
model: tiny
dtype: float32
seed: 3
checkpoint_seconds: 0
output: {output}

stages:
  sft: {{data: {data}/demonstrations.jsonl, epochs: 25, batch: 4, lr: 2e-3, lora: {{rank: 4, alpha: 8}}}}
  reward: {{init: sft, data: {data}/preferences.jsonl, epochs: 20, batch: 4, lr: 2e-3, lora: {{rank: 4, alpha: 8}}}}
  policy:
    init: sft
    reward: reward
    prompts: {data}/prompts.jsonl
    steps: 8
    critic: {{fit: ridge, start: reward, warmup: 2}}
    ptx: {data}/demonstrations.jsonl
    batch: 4
    answers: 2
    epochs: 2
    minibatches: 2
    kl: {{beta: 0.1, target: 0.01, horizon: 100}}
    shaping: {{normalise: mean_std}}
    sampling: {{max_tokens: 24}}
"""

Command = Callable[..., "subprocess.Popen[str]"]


def write_data(folder: Path) -> None:
    folder.mkdir()
    questions = ("What is tea?", "Why?", "How tall is it?", "Who?")
    answers = ("A leaf.", "It rains.", "Forty metres.", "Nobody knows.")
    ask = [[{"role": "user", "content": q}] for q in questions]
    rows = {
        "demonstrations": [{"id": f"d{i}", "prompt": p, "answers": [{"text": answers[i]}]} for i, p in enumerate(ask)],
        "preferences": [
            {
                "id": f"p{i}",
                "prompt": p,
                "answers": [{"text": answers[i]}, {"text": "No" * (i + 1)}],
                "verdicts": [{"kind": "pair", "better": i % 2, "worse": 1 - i % 2}],
            }
            for i, p in enumerate(ask)
        ],
        "prompts": [{"id": f"q{i}", "prompt": p, "answers": []} for i, p in enumerate(ask)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe(folder: Path, name: str, data: Path) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(output=folder / "runs", data=data))
    return path


def progress(root: Path) -> tuple[str, int] | None:
    """The stage in work and its last whole checkpoint (0: none yet)."""
    for folder in (root / ".work").glob("*"):
        steps = [int(path.name[5:]) for path in folder.glob("checkpoints/step-*")]
        return folder.name.rsplit("-", 1)[0], max(steps, default=0)
    return None


def stages_of(root: Path) -> dict[str, dict[str, object]]:
    """The files that count, byte for byte; of the log all but the seconds."""
    found: dict[str, dict[str, object]] = {}
    for name in STEPS:
        lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]
        files = {path.name: path.read_bytes() for path in (root / name).glob("*.safetensors")}
        found[name] = {"metrics.jsonl": json.dumps(kept), **files}
    return found


def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path, trimtab: Command) -> None:
    write_data(tmp_path / "data")
    whole = trimtab("run", str(recipe(tmp_path, "whole", tmp_path / "data")))
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output

    dice = random.Random(7)
    path, root = recipe(tmp_path, "cut", tmp_path / "data"), tmp_path / "runs" / "cut"
    goals = [("sft", dice.randint(1, 8)), ("sft", dice.randint(12, 20)), ("reward", dice.randint(1, 15))]
    goals += [("policy", dice.randint(1, 3)), ("policy", dice.randint(5, 8))]
    assert len(goals) == KILLS
    killed: list[tuple[str, int]] = []
    for goal in goals:
        process = trimtab("run", str(path))
        while process.poll() is None and (progress(root) or ("", 0))[0] != goal[0]:
            time.sleep(0.002)
        while process.poll() is None and (progress(root) or goal) < goal:
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.02))  # anywhere: in a step, in the log, in a checkpoint
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, output
        found = progress(root)
        assert found is not None
        killed.append(found)
    # They fell in the middle of stages, where something was done and something was left.
    inside = [(stage, step) for stage, step in killed if 0 < step < STEPS[stage]]
    assert len(inside) >= 4, killed
    assert {stage for stage, _ in inside} == set(STEPS), killed

    last = trimtab("run", str(path))
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    expected, got = stages_of(tmp_path / "runs" / "whole"), stages_of(root)
    for name, steps in STEPS.items():
        assert expected[name].keys() == got[name].keys()
        assert expected[name].keys() >= {"adapter_model.safetensors", "metrics.jsonl"}
        assert len(json.loads(str(expected[name]["metrics.jsonl"]))) == steps
        for file in expected[name]:
            assert expected[name][file] == got[name][file], f"{name}/{file} differs after kills at {killed}"
    assert "score_head.safetensors" in got["reward"]
    for name in ("sft", "reward", "policy"):
        manifest = json.loads((root / name / "manifest.json").read_text())
        assert any("resumed after step" in note for note in manifest["notes"])
        assert not (root / name / "checkpoints").exists()
    assert not list((root / ".work").iterdir())
