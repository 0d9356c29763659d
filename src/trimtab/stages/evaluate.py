"""Compare models on prompts that nothing was trained on: samples, a judge, plain checks, win rates with intervals."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trimtab.artifacts import write_json
from trimtab.config import BASE, DataRef, ModelRef
from trimtab.errors import ConfigError
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Trunk
from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Group
from trimtab.rewards.checks import CHECKS
from trimtab.rewards.encoder import encoder
from trimtab.rewards.encoder_judge import EncoderJudge
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stats.sequential import always_valid
from trimtab.stats.winrate import WinRate, length_matched, outcomes, win_rate
from trimtab.train.run import Run

ENCODER = ModelRef("minilm-l6-v2")
Samples = dict[str, list[dict[str, Any]]]


def evaluate(
    run: Run,
    *,
    prompts: DataRef,
    models: tuple[ModelRef, ...] = (BASE,),
    judge: DataRef | None = None,
    judge_heldout: DataRef | None = None,
    encoder_model: ModelRef = ENCODER,
    reward: ModelRef | None = None,
    limit: int = 100,
    sampling: Sampling = Sampling(temperature=0.7),  # noqa: B008 - frozen
    base_max_tokens: int = 192,
) -> Result:
    """Answer ``limit`` prompts (a fixed stride of them) with every model and compare the answers head to head.

    The judge is never the reward model: it is a small encoder fitted on ``judge`` pairs that nothing else has seen, and
    its own accuracy on ``judge_heldout`` is reported. A bare base gets ``base_max_tokens``, so that it can finish: a
    model that is always cut off loses for that alone. One outcome a prompt; intervals over prompts.
    """
    if len({model.name for model in models}) < len(models):
        raise ConfigError(f"stages.{run.name}.models: a model is named twice")
    groups = list(read_groups(prompts.source).groups)
    groups = [g.with_answers(()) for g in groups[:: max(1, len(groups) // limit)][:limit]]
    answers = _answers(run, models, groups, sampling, base_max_tokens)
    report: dict[str, Any] = {
        "models": [model.name for model in models],
        "prompts": [
            {
                "id": group.id,
                "prompt": group.prompt[-1].content,
                "topic": group.meta.get("topic"),
                "answers": {name: rows[i] for name, rows in answers.items()},
            }
            for i, group in enumerate(groups)
        ],
        "lengths": {name: _lengths(rows) for name, rows in answers.items()},
        "ended": {name: _mean([row["finish"] == "stop" for row in rows]) for name, rows in answers.items()},
        "checks": {
            check: {name: _mean([good(row["text"], row["finish"]) for row in rows]) for name, rows in answers.items()}
            for check, good in CHECKS.items()
        },
    }
    metrics: dict[str, float] = {f"ended/{name}": share for name, share in report["ended"].items()}
    if reward is not None:
        report["reward_model"] = _reward_means(run, reward, groups, answers)
        metrics |= {f"reward_model/{name}": mean for name, mean in report["reward_model"].items()}
    if judge is not None:
        report["judge"], scores = _judge(run, judge, judge_heldout, encoder_model.base, groups, answers)
        report["head_to_head"] = _head_to_head(answers, scores)
        metrics["judge/accuracy"] = report["judge"]["accuracy"]
        metrics |= {f"win/{row['a']}_over_{row['b']}": row["win_rate"] for row in report["head_to_head"]}
    write_json(run.folder / "evaluation.json", report)
    return Result(metrics=metrics)


def _answers(
    run: Run, models: Sequence[ModelRef], groups: Sequence[Group], sampling: Sampling, base_max_tokens: int
) -> Samples:
    """Sample one answer a prompt from every model; what a killed try has finished is read back."""
    trunks: dict[str, Trunk] = {}
    found: Samples = {}
    run.reporter.begin(run.name, len(models) * len(groups), "answer")
    for place, model in enumerate(models):
        plain = re.sub(r"[^A-Za-z0-9-]", "_", model.name)  # a path or a hub id may stand there
        path = run.folder / f"answers-{place}-{plain}.json"
        if not path.exists():
            if model.base not in trunks:
                trunks[model.base] = Trunk.load(model.base, dtype=run.dtype)
            own = sampling if model.artifact is not None else dataclasses.replace(sampling, max_tokens=base_max_tokens)
            write_json(path, _sample(run, trunks[model.base], model, groups, own, place * len(groups)))
        found[model.name] = json.loads(path.read_text())
        run.reporter.advance((place + 1) * len(groups), {})
    return found


def _sample(
    run: Run, trunk: Trunk, model: ModelRef, groups: Sequence[Group], sampling: Sampling, before: int
) -> list[dict[str, Any]]:
    """One answer a prompt. All models draw from the same random numbers."""
    sampler = TorchSampler(trunk, trunk.adopt(model), stop=trunk.chat.stop)
    prompts = [trunk.chat.prompt(group.prompt) for group in groups]
    sampled = sampler.sample(
        prompts, k=1, sampling=sampling, seed=derive(run.seed, "evaluate"),
        progress=lambda done: run.reporter.advance(before + done, {}),
    )  # fmt: skip
    return [
        {"text": trunk.chat.decode(a.tokens), "tokens": len(a.tokens), "finish": a.finish}
        for own in sampled
        for a in own
    ]


def _lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    return {"mean": float(tokens.mean()), "median": float(np.median(tokens)), "p90": float(np.quantile(tokens, 0.9))}


def _mean(values: Sequence[bool]) -> float:
    return sum(map(float, values)) / max(1, len(values))


def _reward_means(run: Run, reward: ModelRef, groups: Sequence[Group], answers: Samples) -> dict[str, float]:
    """What the reward model thinks of each model's answers: high here and level at the judge is over-optimisation."""
    model = RewardModel.open(reward, dtype=run.dtype)
    means: dict[str, float] = {}
    for name, rows in answers.items():
        judged = [
            group.with_answers((Answer(text=row["text"], finish=row["finish"]),))
            for group, row in zip(groups, rows, strict=True)
        ]
        scores = [row[0] for row in model.score(judged)]
        means[name] = sum(scores) / len(scores)
    return means


def _judge(
    run: Run, judge: DataRef, heldout: DataRef | None, ref: str, groups: Sequence[Group], answers: Samples
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the judge, measure it, and score every answer."""
    fitted = EncoderJudge.fit(read_groups(judge.source).groups, encoder(ref), seed=run.seed)
    texts = [group.prompt[-1].content for group in groups]
    scores = {name: fitted.score(texts, [row["text"] for row in rows]) for name, rows in answers.items()}
    said: dict[str, Any] = {
        "scores": {name: values.tolist() for name, values in scores.items()},
        "accuracy": float("nan"),
    }
    if heldout is not None:
        card = fitted.accuracy(read_groups(heldout.source).groups)
        by_flaw = {flaw: dataclasses.asdict(share) for flaw, share in card.by_flaw.items()}
        facts = dataclasses.asdict(card) | {"by_flaw": by_flaw}
        said |= {"accuracy_lo": facts.pop("lo"), "accuracy_hi": facts.pop("hi"), **facts}
    return said, scores


def _head_to_head(answers: Samples, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every later model against every earlier one."""
    rows: list[dict[str, Any]] = []
    for b, a in combinations(answers, 2):
        won = outcomes(scores[a], scores[b])
        valid = always_valid(won)
        tokens = {name: [row["tokens"] for row in answers[name]] for name in (a, b)}
        matched = length_matched(won, tokens[a], tokens[b])
        rate = win_rate(won)
        rows.append(
            {
                "a": a, "b": b, **_interval(rate), "always_valid_lo": valid.lo, "always_valid_hi": valid.hi,
                "length_matched": _interval(matched) if matched is not None else None,
            }
        )  # fmt: skip
    return rows


def _interval(rate: WinRate) -> dict[str, float]:
    return {"n": rate.n, "win_rate": rate.mean, "lo": rate.lo, "hi": rate.hi}
