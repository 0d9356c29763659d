"""How far a model has gone from its start: the KL that the evaluate stage measures on each model's own answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import ConfigError
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.tiny import tiny_tokenizer
from trimtab.model.trunk import Trunk
from trimtab.records.read import read_groups
from trimtab.seeds import derive
from trimtab.stages.evaluate import evaluate

SAMPLING = Sampling(max_tokens=5, temperature=0.7)


def measure(folder: Path, source: DataRef, *models: ModelRef, start: ModelRef | None) -> tuple[Any, Any]:
    """The report and the metrics of an evaluation without a judge."""
    run = tiny.make_run(folder, "evaluate")
    result = evaluate(run, prompts=source, models=models, start=start, sampling=SAMPLING, base_max_tokens=5)
    return json.loads((folder / "evaluation.json").read_text()), result.metrics


def kl_of(report: Any, name: str) -> list[float]:
    return [prompt["answers"][name]["kl"] for prompt in report["prompts"]]


def plain_logp(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """The log-probability of an answer at the sampling temperature, by plain transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
    logps = (logits / SAMPLING.temperature).log_softmax(-1)
    return sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def test_the_start_is_no_way_from_itself(tmp_path: Path, tiny_model: Path, tuned: ModelRef, source: DataRef) -> None:
    base = tiny.base(tiny_model)
    for place, start in enumerate((base, tuned)):
        report, metrics = measure(tmp_path / str(place), source, base, tuned, start=start)
        other = (tuned, base)[place]
        assert kl_of(report, start.name) == [0.0] * 6
        assert metrics[f"kl/{start.name}"] == report["kl"][start.name] == 0.0
        assert all(kl != 0 for kl in kl_of(report, other.name))
        assert metrics[f"kl/{other.name}"] == pytest.approx(sum(kl_of(report, other.name)) / 6)


def test_the_kl_is_the_log_ratio_of_what_was_sampled(
    tmp_path: Path, tiny_model: Path, tuned: ModelRef, source: DataRef
) -> None:
    report, _ = measure(tmp_path / "run", source, tuned, start=tiny.base(tiny_model))
    trunk, adapter = Trunk.open(tuned)
    prompts = [trunk.chat.prompt(group.prompt) for group in read_groups(source.source).groups]
    sampler = TorchSampler(trunk, adapter, stop=trunk.chat.stop)
    sampled = sampler.sample(prompts, k=1, sampling=SAMPLING, seed=derive(0, "evaluate"))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert tuned.artifact is not None
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tuned.artifact.folder)
    expected = [
        plain_logp(policy, prompt, answer.tokens) - plain_logp(base, prompt, answer.tokens)
        for prompt, (answer,) in zip(prompts, sampled, strict=True)
    ]
    assert kl_of(report, "sft") == pytest.approx(expected, abs=1e-4)


def test_without_a_start_no_kl_is_said(tmp_path: Path, tiny_model: Path, source: DataRef) -> None:
    report, metrics = measure(tmp_path, source, tiny.base(tiny_model), start=None)
    assert "kl" not in report
    assert all("kl" not in prompt["answers"]["base"] for prompt in report["prompts"])
    assert not any(name.startswith("kl/") for name in metrics)


def other_model(folder: Path, tiny_model: Path, *, template: str = "", token: str = "") -> ModelRef:
    """The tiny model with something appended to its chat template, or with one more token in its vocabulary."""
    shutil.copytree(tiny_model, folder)
    tokenizer = tiny_tokenizer()
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template += template
    if token:
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.save_pretrained(folder)
    return ModelRef("other", str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"template": "{{ ' ' }}"},
        {"template": "{% if 'tower' in messages[-1].content %}{{ ' ' }}{% endif %}"},  # only the third prompt
        {"token": "<|more|>"},  # no prompt, but an answer may hold it
    ],
)
def test_a_start_with_other_tokens_is_refused_before_anything_is_sampled(
    tmp_path: Path, tiny_model: Path, tuned: ModelRef, source: DataRef, change: dict[str, str]
) -> None:
    other = other_model(tmp_path / "other", tiny_model, **change)
    with pytest.raises(ConfigError, match=r"^stages\.evaluate\.start: it reads text as other tokens than 'sft' does$"):
        measure(tmp_path / "run", source, other, tuned, start=other)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(
        ConfigError, match=r"^stages\.evaluate\.start: it reads text as other tokens than 'other' does$"
    ):
        measure(tmp_path / "run", source, tuned, other, start=tuned)


def test_a_start_on_another_base_with_the_same_tokens_will_do(
    tmp_path: Path, tiny_model: Path, tuned: ModelRef, source: DataRef
) -> None:
    """Another folder with the same model in it."""
    report, _ = measure(tmp_path / "run", source, tuned, start=other_model(tmp_path / "other", tiny_model))
    plain, _ = measure(tmp_path / "plain", source, tuned, start=tiny.base(tiny_model))
    assert kl_of(report, "sft") == pytest.approx(kl_of(plain, "sft"))


def test_a_prompt_that_stands_there_twice_is_answered_once(tmp_path: Path, tiny_model: Path) -> None:
    rows = [tiny.row(f"r{i}", f"Why {i % 3}?", ["Because"]) for i in range(7)]
    run = tiny.make_run(tmp_path, "evaluate")
    evaluate(
        run, prompts=tiny.write_rows(tmp_path / "rows.jsonl", rows), models=(tiny.base(tiny_model),), sampling=SAMPLING,
        base_max_tokens=5,
    )  # fmt: skip
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert [prompt["id"] for prompt in report["prompts"]] == ["r0", "r1", "r2"]
    assert [note for note in run.notes if "7 rows hold 3 different prompts" in note]
