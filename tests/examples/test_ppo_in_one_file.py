"""`examples/ppo_in_one_file.py` and the `policy` stage are written apart; on the same artifacts they do the same.

Both run the same rounds of PPO on the same SFT adapter and reward model with the same seed. The example knows none of
the stage's machinery (trees, slots, merged adapters, micro-batches, masters), so a mistake would have to be made twice.
"""

from __future__ import annotations

import ast
import sys
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
from trimtab.model.sampler import TorchSampler
from trimtab.model.tiny import make_tiny
from trimtab.pipeline import run_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo_in_one_file.py"
WARMUP, ROUNDS = 1, 5
SEED = 2
TOLERANCE = 5e-5  # measured: 3e-6; up to 1e-4 with other seeds, since Adam blows up roundings of 1e-7
LORA = {"rank": 4, "alpha": 8}
POLICY = {
    "init": "sft",
    "reward": "reward",
    "method": "ppo",
    "steps": ROUNDS - WARMUP,
    "batch": 4,
    "answers": 2,
    "epochs": 2,
    "minibatches": 2,
    "lr": 1e-3,
    "critic": {"fit": "gradient", "start": "policy", "warmup": WARMUP, "lr": 2e-3},
    "kl": {"beta": 0.3, "target": None},
    "clip": {"low": 0.03, "high": 0.03, "value": 0.1, "dual": None, "importance": None},
    "shaping": {"eos": "replace", "penalty": 1.5, "normalise": "none", "clip": 0.6, "whiten": False},
    "gamma": 0.98,
    "lam": 0.9,
    "roles": "shared",
    "lora": LORA,
    "sampling": {"max_tokens": 12, "temperature": 0.8, "top_p": 1.0, "top_k": 0},
}
ARGUMENTS = f"""
    --steps {ROUNDS - WARMUP} --critic_warmup {WARMUP} --batch 4 --answers 2 --epochs 2 --minibatches 2 --lr 1e-3
    --critic_lr 2e-3 --beta 0.3 --clip 0.03 --value_clip 0.1 --score_clip 0.6 --penalty 1.5 --gamma 0.98 --lam 0.9
    --temperature 0.8 --max_tokens 12 --seed {SEED}
""".split()


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a training did: sampled tokens by round and answer, a line of numbers a round, and the trained adapter."""

    tokens: list[list[list[int]]]
    rows: list[dict[str, float]]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def sharp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with four times the embeddings: its own logits are so flat that no KL would be worth comparing."""
    folder = tmp_path_factory.mktemp("sharp") / "model"
    make_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 4
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sharp_model: Path) -> tuple[Path, Story]:
    """A run of SFT, reward model and PPO by recipe: its folder, and what the policy stage did."""
    folder = tmp_path_factory.mktemp("work")
    adapter = {"batch": 3, "lr": 1e-2, "lora": LORA}
    stages = {
        "sft": {"data": tiny.demonstrations(folder).source, "epochs": 30, **adapter},
        "reward": {"init": "sft", "data": tiny.preferences(folder).source, "epochs": 6, "head_lr": 1e-2, **adapter},
        "policy": {"prompts": tiny.prompts(folder).source, **POLICY},
    }
    raw = {"model": str(sharp_model), "dtype": "float32", "seed": SEED, "output": str(folder), "stages": stages}
    tokens: list[list[list[int]]] = []
    sample = TorchSampler.sample

    def overheard(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        found = sample(self, *args, **kwargs)
        tokens.append([list(answer.tokens) for answers in found for answer in answers])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchSampler, "sample", overheard)
        root = run_recipe(check_recipe(raw, "recipe", name="run"))
    policy = root / "policy"
    return root, Story(
        tokens=tokens[-ROUNDS:], rows=tiny.metrics(policy), weights=load_file(policy / "adapter_model.safetensors")
    )


def load_example(source: str) -> ModuleType:
    """The example as a module, from its source or from a changed one."""
    module = ModuleType("ppo_in_one_file")
    module.__file__ = str(EXAMPLE)
    sys.modules[module.__name__] = module  # its dataclass looks itself up
    try:
        exec(compile(source, str(EXAMPLE), "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


def run_example(root: Path, out: Path, source: str) -> Story:
    module = load_example(source)
    tokens: list[list[list[int]]] = []
    sample = module.sample

    def overheard(*args):  # type: ignore[no-untyped-def]
        ids, real, width = sample(*args)
        rows = zip(ids[:, -width:], real[:, -width:].bool(), strict=True)
        tokens.append([row[on].tolist() for row, on in rows])
        return ids, real, width

    module.sample = overheard  # type: ignore[attr-defined]
    prompts = root.parent / "prompts.jsonl"
    rows = module.main(["--run", str(root), "--prompts", str(prompts), "--out", str(out), *ARGUMENTS])
    return Story(tokens=tokens, rows=rows, weights=load_file(out / "actor" / "adapter_model.safetensors"))


def difference(stage: Story, example: Story) -> str | None:
    """Where the two part, if anywhere in the example's rounds; numbers below 0.1 are compared as if they were 0.1."""
    for step, theirs in enumerate(example.rows):
        mine = stage.rows[step]
        if stage.tokens[step] != example.tokens[step]:
            return f"round {step}: other tokens"
        if unknown := theirs.keys() - mine.keys():
            return f"round {step}: the stage did not learn {', '.join(sorted(unknown))}"
        for name, value in theirs.items():
            if abs(mine[name] - value) > TOLERANCE * max(abs(mine[name]), 0.1):
                return f"round {step}: {name} is {mine[name]} and {value}"
    return None


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def example(run: tuple[Path, Story], tmp_path_factory: pytest.TempPathFactory) -> Story:
    return run_example(run[0], tmp_path_factory.mktemp("example"), EXAMPLE.read_text(encoding="utf-8"))


def test_the_same_story(run: tuple[Path, Story], example: Story) -> None:
    root, stage = run
    assert len(stage.rows) == len(example.rows) == len(example.tokens) == ROUNDS
    assert difference(stage, example) is None
    start = load_file(root / "sft" / "adapter_model.safetensors")
    assert distance(stage.weights, example.weights) < 1e-3 * distance(stage.weights, start)


def test_the_story_has_a_plot(run: tuple[Path, Story], example: Story) -> None:
    _, stage = run
    compared = {"policy/loss", "policy/ratio", "value/loss", "value/mean", "rollout/score", "rollout/reward"}
    compared |= {"rollout/kl", "rollout/length", "rollout/ended"}
    assert example.rows[-1].keys() == compared
    assert "policy/loss" not in example.rows[WARMUP - 1]
    assert abs(stage.rows[-1]["rollout/kl"]) > 0.1
    learned = stage.rows[WARMUP:]
    assert all(0 < row["rollout/ended"] < 1 for row in learned)  # some answers end, some are cut
    assert max(row["policy/clip_fraction"] for row in learned) > 0.05
    assert max(row["value/clip_fraction"] for row in stage.rows) > 0.05
    assert max(row["train/grad_norm/actor"] for row in learned) > 1  # gradients are clipped
    assert max(row["train/grad_norm/critic"] for row in stage.rows) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("gamma * lam * next_advantage", "gamma * next_advantage"),
        ("delta = float(rewards[i, t]) + gamma * next_value", "delta = float(rewards[i, t]) + next_value"),
        ("range(int(mask[i].sum()))", "range(mask.shape[1])"),
        ("rewards = -s.beta * kl", "rewards = 0.0 * kl"),
        ("rewards[rows, ends] +=", "rewards[:, -1] +="),
        ("torch.where(ended, scores.clamp(", "torch.where(scores > -9, scores.clamp("),
        ("scores.clamp(-s.score_clip, s.score_clip)", "scores"),
        ("targets = advantages + old_values", "targets = (advantages - advantages[mask].mean()) + old_values"),
        ("var(correction=0)", "var(correction=1)"),
        ("(advantages - advantages[mask].mean()) / deviation", "advantages / deviation"),
        ('("critic", ids, real)[:, -width - 1 : -1]', '("critic", ids, real)[:, -width:]'),
        ('("reward", ids, real)[range(len(ids)), last]', '("reward", ids, real)[range(len(ids)), -1]'),
        ("(states).float() / temperature", "(states).float()"),
        ("values.clamp(v_old - s.value_clip, v_old + s.value_clip)", "values"),
        ("ratio.clamp(1 - s.clip, 1 + s.clip)", "ratio"),
        ("betas=(0.9, 0.95)", "betas=(0.9, 0.999)"),
        ("clip_grad_norm_(own, 1.0)", "clip_grad_norm_(own, 10.0)"),
        ("lr * factor", "lr"),
        ("0.1 + 0.9 * cosine", "cosine"),
        ('derive(s.seed, "minibatches", step)', 'derive(s.seed, "minibatches")'),
        ("if turn >= 0", "if turn >= -1"),
        ('load_adapter(str(reward), "reward")', 'load_adapter(str(sft), "reward")'),
        ("losses.mean().backward()  # over tokens", "losses.sum().backward()  # over tokens"),
    ],
)
def test_a_changed_detail_is_seen(run: tuple[Path, Story], tmp_path: Path, right: str, wrong: str) -> None:
    root, stage = run
    source = EXAMPLE.read_text(encoding="utf-8").replace("range(s.critic_warmup + s.steps)", "range(4)")
    assert source.count(right) == source.count("range(4)") == 1
    changed = run_example(root, tmp_path, source.replace(right, wrong))
    assert len(changed.rows) == 4
    assert difference(stage, changed) is not None


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('load_adapter(str(sft), "actor")', 'load_adapter(str(reward), "actor")', "must start as the reference"),
        ("- lp_old).exp()", "- lp_old + 0.01).exp()", "must be 1"),
    ],
)
def test_the_example_checks_its_own_start(
    run: tuple[Path, Story], tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert source.count(right) == 1
    with pytest.raises(AssertionError, match=said):
        run_example(run[0], tmp_path, source.replace(right, wrong))


def test_it_stands_alone_and_is_short() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "trimtab" for name in names)
    assert len(source.splitlines()) < 250
    assert load_example(source).PROMPTS.is_file()
