"""What rules and a reward model give to every answer, beside the means: so that bake-offs can pair them by prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.model.sampler import Sampling
from trimtab.stages.evaluate import evaluate


def test_a_score_for_every_prompt(
    tmp_path: Path, tiny_model: Path, tuned: ModelRef, toy_reward: ModelRef, source: DataRef
) -> None:
    evaluate(
        tiny.make_run(tmp_path, "evaluate"), prompts=source, models=(tiny.base(tiny_model), tuned), reward=toy_reward,
        rules={"vowel": {"rule": "regex", "pattern": "[aeiou]"}, "e": {"rule": "regex", "pattern": "e", "weight": 2.0}},
        sampling=Sampling(max_tokens=8), base_max_tokens=8,
    )  # fmt: skip
    report = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("base", tuned.name):
        texts = [prompt["answers"][name]["text"] for prompt in report["prompts"]]
        assert report["rule_scores"][name] == [
            float(any(vowel in text for vowel in "aeiou")) + 2.0 * ("e" in text) for text in texts
        ]
        assert report["rules"][name] == pytest.approx(sum(report["rule_scores"][name]) / 6)
        assert report["reward_model"][name] == pytest.approx(sum(report["reward_scores"][name]) / 6)
    assert len({score for own in report["rule_scores"].values() for score in own}) > 1
