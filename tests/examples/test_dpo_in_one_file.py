"""`examples/dpo_in_one_file.py` and the `preference` stage are written apart; on the same pairs they do the same.

Both learn from the same file with the same seed, from a bare model and from an SFT adapter. The example knows none of
the stage's machinery (trees, reference cache, micro-batches, masters), so a mistake would have to be made twice.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
from trimtab.config import check_recipe
from trimtab.model.tiny import make_tiny
from trimtab.pipeline import run_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "dpo_in_one_file.py"
SEED = 3
STEPS = 10
TOLERANCE = 1e-4  # measured: 3e-5, with four seeds
LORA = {"rank": 4, "alpha": 8}
STARTS = ("base", "sft")
# Four prompts a step and seven prompts: the batches run over the ends of epochs.
PREFERENCE = {"method": "dpo", "beta": 0.5, "lr": 3e-3, "batch": 4, "epochs": 5.7, "max_length": 90, "lora": LORA}
ARGUMENTS = f"""
    --beta 0.5 --lr 3e-3 --batch 4 --epochs 5.7 --max_length 90 --rank 4 --alpha 8 --seed {SEED}
""".split()


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a training did: a line of numbers a step, and the trained adapter."""

    rows: list[dict[str, float]]
    weights: dict[str, Tensor]


def pair(better: int, worse: int, **more: object) -> dict[str, object]:
    return {"kind": "pair", "better": better, "worse": worse, **more}


def preferences(folder: Path) -> Path:
    """Seven prompts to learn from: several pairs, a soft label, an answer cut, a long one unjudged; and three more."""
    rows = [
        tiny.row(f"p{i}", tiny.QUESTIONS[i], [tiny.ANSWERS[i], "No" * (i + 1)], [pair(i % 2, 1 - i % 2)])
        for i in range(4)
    ]
    rows[3]["answers"][1]["finish"] = "length"
    rows += [
        tiny.row("three", "Rank!", ["one", "two two", "3"], [pair(2, 0), pair(2, 1), pair(0, 1)]),
        tiny.row("soft", "Which?", ["this one", "of the two " * 9, "that"], [pair(0, 2, probability=0.8)]),
        tiny.row("some tie", "How?", ["so", "like this", "no"], [pair(0, 1, tie="tie"), pair(1, 2)]),
        tiny.row("all tie", "When?", ["now", "then"], [pair(0, 1, tie="both_bad")]),
        tiny.row("unjudged", "Where?", ["here", "there"]),
        tiny.row("long", "Tell me a story", ["Once", "upon a time " * 9], [pair(0, 1)]),
    ]
    return Path(tiny.write_rows(folder / "preferences.jsonl", rows).source)


@pytest.fixture(scope="module")
def sharp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with four times the embeddings: its own logits are so flat that all answers look alike."""
    folder = tmp_path_factory.mktemp("sharp") / "model"
    make_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 4
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, sharp_model: Path) -> Iterator[Path]:
    """A run by recipe: SFT, and DPO from the bare model and from the SFT model."""
    folder = tmp_path_factory.mktemp("work")
    stages: dict[str, object] = {
        "sft": {"data": tiny.demonstrations(folder).source, "epochs": 6, "batch": 3, "lr": 5e-3, "lora": LORA},
    }
    data = str(preferences(folder))
    for start in STARTS:
        stages[f"from_{start}"] = {"stage": "preference", "init": start, "data": data, **PREFERENCE}
    raw = {"model": str(sharp_model), "dtype": "float32", "seed": SEED, "output": str(folder), "stages": stages}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield run_recipe(check_recipe(raw, "recipe", name="run"))


def stage(root: Path, start: str) -> Story:
    folder = root / f"from_{start}"
    return Story(rows=tiny.metrics(folder), weights=load_file(folder / "adapter_model.safetensors"))


def load_example(source: str) -> ModuleType:
    """The example as a module, from its source or from a changed one."""
    module = ModuleType("dpo_in_one_file")
    module.__file__ = str(EXAMPLE)
    sys.modules[module.__name__] = module  # its dataclasses look themselves up
    try:
        exec(compile(source, str(EXAMPLE), "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


def run_example(root: Path, start: str, model: Path, out: Path, source: str) -> Story:
    from_ = str(model if start == "base" else root / start)
    data = str(root.parent / "preferences.jsonl")
    rows = load_example(source).main(["--model", from_, "--data", data, "--out", str(out), *ARGUMENTS])
    return Story(rows=rows, weights=load_file(out / "adapter_model.safetensors"))


def difference(stage: Story, example: Story) -> str | None:
    """Where the two part, if anywhere in the example's steps; numbers below 0.1 are compared as if they were 0.1."""
    for step, theirs in enumerate(example.rows):
        mine = stage.rows[step]
        if unknown := theirs.keys() - mine.keys():
            return f"step {step}: the stage did not learn {', '.join(sorted(unknown))}"
        for name, value in theirs.items():
            if abs(mine[name] - value) > TOLERANCE * max(abs(mine[name]), 0.1):
                return f"step {step}: {name} is {mine[name]} and {value}"
    return None


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("start", STARTS)
def test_the_same_story(
    root: Path, sharp_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str
) -> None:
    wanted = stage(root, start)
    found = run_example(root, start, sharp_model, tmp_path, EXAMPLE.read_text(encoding="utf-8"))
    assert len(found.rows) == len(wanted.rows) == STEPS
    assert difference(wanted, found) is None
    assert distance(wanted.weights, found.weights) < 1e-3 * distance(wanted.weights, beginning(root, start))
    manifest = json.loads((root / f"from_{start}" / "manifest.json").read_text())
    assert (manifest["metrics"]["data/prompts"], manifest["metrics"]["data/items"]) == (7, 9)
    assert "preferences.jsonl: 7 of 10 prompts, 9 pairs" in capsys.readouterr().out
    # Both leave a PEFT adapter of one shape on the same base.
    mine, theirs = (json.loads((x / "adapter_config.json").read_text()) for x in (tmp_path, root / f"from_{start}"))
    for name in ("base_model_name_or_path", "r", "lora_alpha", "peft_type"):
        assert mine[name] == theirs[name]


def beginning(root: Path, start: str) -> dict[str, Tensor]:
    """The weights that training began with; of a fresh adapter's A, which is drawn, zeros."""
    if start == "sft":
        before: dict[str, Tensor] = load_file(root / "sft" / "adapter_model.safetensors")
        return before
    return {name: torch.zeros_like(weight) for name, weight in stage(root, start).weights.items()}


@pytest.mark.parametrize("start", STARTS)
def test_the_story_has_a_plot(root: Path, start: str) -> None:
    rows = stage(root, start).rows
    assert rows[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.15
    assert rows[0]["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["rewards/margin"] > 0.3
    assert rows[-1]["train/accuracy"] > 0.9
    assert max(row["train/grad_norm"] for row in rows) > 1  # gradients are clipped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(each * answered[:, 1:])", "(each * real[:, 1:])"),
        (".sum(1).view(2, -1)", ".mean(1).view(2, -1)"),
        ("(-1, ids[:, 1:, None])", "(-1, ids[:, :-1, None])"),
        ("[1] * (longest - rest)", "[1] * (longest - rest - 1) + [0]"),
        ('answer.get("finish") != "length"', "True"),
        (' and v.get("tie") is None', ""),
        ('v.get("probability", 1)', "1"),
        ("<= s.max_length", "<= 999"),
        ("s.beta * (logps - reference[i])", "0.1 * (logps - reference[i])"),
        ("-sure * F.logsigmoid(margin) - (1 - sure) * F.logsigmoid(-margin)", "-F.logsigmoid(margin)"),
        ("F.logsigmoid(-margin)).mean()", "F.logsigmoid(-margin)).sum()"),
        ("(loss / s.batch)", "loss"),
        ("s.seed, place // len(prompts))", "s.seed, 0)"),
        ("betas=(0.9, 0.95)", "betas=(0.9, 0.999)"),
        ("clip_grad_norm_(weights, 1.0)", "clip_grad_norm_(weights, 10.0)"),
        ("0.1 + 0.9 * cosine", "cosine"),
    ],
)
def test_a_changed_detail_is_seen(root: Path, sharp_model: Path, tmp_path: Path, right: str, wrong: str) -> None:
    changed = change(right, wrong)
    found = run_example(root, "sft", sharp_model, tmp_path, changed)
    assert difference(stage(root, "sft"), found) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('derive(s.seed, "lora")', 'derive(s.seed, "adapter")'),
        ("lora_alpha=s.alpha", "lora_alpha=s.rank"),
        ('"all-linear"', '["q_proj", "v_proj"]'),
    ],
)
def test_a_changed_detail_of_a_fresh_adapter_is_seen(
    root: Path, sharp_model: Path, tmp_path: Path, right: str, wrong: str
) -> None:
    found = run_example(root, "base", sharp_model, tmp_path, change(right, wrong))
    assert difference(stage(root, "base"), found) is not None


def change(right: str, wrong: str) -> str:
    """The example with one detail changed, and only its first steps."""
    source = EXAMPLE.read_text(encoding="utf-8").replace("range(steps)", "range(4)")
    assert source.count(right) == source.count("range(4)") == 1
    return source.replace(right, wrong)


def test_the_example_checks_its_own_start(root: Path, sharp_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="must start as the reference"):
        run_example(root, "sft", sharp_model, tmp_path, change('if "reference" in self.trunk.peft_config', "if False"))


def test_it_stands_alone_and_is_short() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"torch", "transformers", "peft"}
    assert len(source.splitlines()) < 200
    assert load_example(source).PAIRS.is_file()
