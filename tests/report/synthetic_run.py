"""A made-up run folder with the shape of a real one: SFT, reward model, PPO, evaluation of three models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.stats.sequential import always_valid
from trimtab.stats.winrate import length_matched, outcomes, win_rate

ATTACK = "<script>alert('owned')</script><img src=x onerror=alert(1)> \x07 \u202eevil </textarea>"
TOPICS = ("cooking", "travel", "grammar", "everyday maths")
RECIPE = (
    "To make a simple soup, soften an onion in butter, add the vegetables you have and cover them with stock. "
    "Let it simmer until everything is tender, then taste it and season. Serve with bread."
)
WORDS = RECIPE.split()

Json = dict[str, Any]


def sft_rows(steps: int, rng: np.random.Generator) -> list[Json]:
    rows = []
    for step in range(1, steps + 1):
        loss = 1.45 + 1.4 * np.exp(-step / 12) + 0.05 * rng.normal()
        rows.append(
            {
                "step": step,
                "train/loss": loss,
                "train/accuracy": 0.72 - 0.11 * loss,
                "train/lr": 2e-4 * min(1, step / 5) * (1 - step / (steps + 1)),
                "train/grad_norm": 0.9 + 0.5 * np.exp(-step / 9) + 0.08 * rng.random(),
                "train/tokens": 2048 * step,
                "train/seconds": 4.1,
            }
        )
    return rows


def reward_rows(steps: int, rng: np.random.Generator) -> list[Json]:
    rows = []
    for step in range(1, steps + 1):
        margin = 1.6 * (1 - np.exp(-step / 15)) + 0.1 * rng.normal()
        rows.append(
            {
                "step": step,
                "train/loss": float(np.log1p(np.exp(-margin))) + 0.08,
                "train/accuracy": min(1.0, 0.52 + 0.3 * (1 - np.exp(-step / 12)) + 0.04 * rng.normal()),
                "train/margin": margin,
                "train/lr": 1e-4 * (1 - step / (steps + 1)),
                "train/grad_norm": 2.0 + 0.4 * rng.random(),
            }
        )
    return rows


def policy_rows(steps: int, rng: np.random.Generator) -> list[Json]:
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        score, kl = 0.15 + 0.95 * done + 0.09 * rng.normal(), 7.5 * done**1.3 + 0.2 * rng.random()
        rows.append(
            {
                "step": step,
                "rollout/score": score,
                "rollout/reward": score - 0.05 * kl,
                "rollout/kl": kl,
                "rollout/entropy": 1.65 - 0.35 * done + 0.03 * rng.normal(),
                "rollout/length": 92 + 44 * done + 4 * rng.normal(),
                "rollout/ended": 0.86 + 0.06 * done + 0.02 * rng.normal(),
                "rollout/score_length_correlation": 0.33 + 0.04 * rng.normal(),
                "rollout/logp_gap": 0.011 + 0.002 * rng.random(),
                "rollout/logp_gap_max": 0.19 + 0.05 * rng.random(),
                "policy/loss": -0.01 + 0.006 * rng.normal(),
                "policy/ratio": 1 + 0.002 * rng.normal(),
                "policy/clip_fraction": 0.06 + 0.05 * done + 0.01 * rng.random(),
                "policy/approx_kl": 0.004 + 0.003 * done,
                "value/loss": 0.3 * np.exp(-2 * done) + 0.05 + 0.01 * rng.random(),
                "value/explained_variance": 0.62 - 0.75 * np.exp(-4 * done) + 0.03 * rng.normal(),
                "value/clip_fraction": 0.04 + 0.01 * rng.random(),
                "train/beta": 0.05,
                "train/lr": 1e-5,
                "train/grad_norm": 0.8 + 0.2 * rng.random(),
                "train/seconds": 9.0,
                "rollout/seconds": 14.0,
            }
        )
    return rows


REWARD_METRICS = {
    "heldout/accuracy": 0.765,
    "heldout/accuracy_lo": 0.702,
    "heldout/accuracy_hi": 0.818,
    "heldout/longer_wins": 0.61,
    "heldout/finished_wins": 0.56,
    "heldout/n": 200,
    "heldout/accuracy/wrong fact": 0.71,
    "heldout/accuracy/rude": 0.92,
    "heldout/accuracy/off topic": 0.84,
}


def evaluation(prompts: int, rng: np.random.Generator, *, gain: float = 0.45) -> Json:
    """``gain`` is the policy's advantage over SFT in the judge's score, in standard deviations of one answer."""
    models, shift, cap = ["base", "sft", "policy"], (-0.6, 0.4, 0.4 + gain), 200
    scores = {m: (s + rng.normal(size=prompts)).round(1).tolist() for m, s in zip(models, shift, strict=True)}
    tokens = {
        m: np.clip(rng.normal(mean, 32, prompts), 8, cap).astype(int).tolist()
        for m, mean in zip(models, (170, 95, 130), strict=True)
    }
    rows = []
    for i in range(prompts):
        answers = {
            m: {
                "text": " ".join(np.resize(WORDS, max(4, tokens[m][i] * 3 // 4))),
                "tokens": tokens[m][i],
                "finish": "length" if tokens[m][i] >= cap else "stop",
            }
            for m in models
        }
        prompt = f"How do I make a soup from {2 + i % 5} vegetables for {i + 1} guests?"
        rows.append({"id": f"heldout-{i}", "prompt": prompt, "topic": TOPICS[i % 4], "answers": answers})
    rows[0]["answers"]["policy"]["text"] = ATTACK
    matches = []
    for a, b in (("policy", "sft"), ("policy", "base"), ("sft", "base")):
        won = outcomes(scores[a], scores[b])
        rate, always, near = win_rate(won), always_valid(won), length_matched(won, tokens[a], tokens[b])
        matches.append(
            {
                "a": a,
                "b": b,
                "n": rate.n,
                "win_rate": rate.mean,
                "lo": rate.lo,
                "hi": rate.hi,
                "always_valid_lo": always.lo,
                "always_valid_hi": always.hi,
                "length_matched": near and {"n": near.n, "win_rate": near.mean, "lo": near.lo, "hi": near.hi},
            }
        )
    return {
        "models": models,
        "prompts": rows,
        "judge": {
            "scores": scores,
            "accuracy": 0.805,
            "accuracy_lo": 0.745,
            "accuracy_hi": 0.854,
            "n": 200,
            "longer_wins": 0.61,
            "finished_wins": 0.56,
            "limits": "It was trained on pairs like the reward model's, from other seeds; it cannot check facts",
        },
        "checks": {
            "no repeated sentence": {"base": 0.41, "sft": 0.93, "policy": 0.95},
            "answers in English": {"base": 0.97, "sft": 1.0, "policy": 1.0},
        },
        "head_to_head": matches,
        "lengths": {
            m: {"mean": np.mean(t), "median": np.median(t), "p90": np.quantile(t, 0.9)} for m, t in tokens.items()
        },
        "ended": {m: float(np.mean(np.array(t) < cap)) for m, t in tokens.items()},
        "reward_model": {"base": -0.42, "sft": 0.18, "policy": 1.07},
    }


def write_run(
    folder: Path,
    *,
    stages: tuple[str, ...] = ("sft", "reward", "policy", "evaluate"),
    prompts: int = 200,
    steps: int = 40,
    gain: float = 0.45,
) -> Path:
    """Write a run folder with these stages and return it."""
    rng = np.random.default_rng(7)
    rows = {
        "sft": sft_rows(2 * steps, rng),
        "reward": reward_rows(steps, rng),
        "policy": policy_rows(steps, rng),
        "evaluate": [],
    }
    configs: dict[str, Json] = {
        "sft": {"data": "quickstart/demonstrations", "epochs": 2, "init": "base"},
        "reward": {"init": "sft", "data": "quickstart/preferences"},
        "policy": {"init": "sft", "reward": "reward", "prompts": "quickstart/prompts", "method": "ppo", "steps": steps},
        "evaluate": {"models": ["base", "sft", "policy"], "prompts": "quickstart/heldout"},
    }
    entries = []
    folder.mkdir(parents=True, exist_ok=True)
    for i, stage in enumerate(stages):
        place = folder / stage
        place.mkdir()
        seconds = {"sft": 352.0, "reward": 118.4, "policy": 940.2, "evaluate": 205.0}[stage]
        manifest = {
            "stage": stage,
            "name": stage,
            "config": configs[stage],
            "key": f"{i + 10:x}" * 32,
            "inputs": {"model": "sha256:" + "0f" * 32},
            "metrics": REWARD_METRICS if stage == "reward" else {},
            "notes": ["3 rows were too long and left out (lines 18, 77, 902)"] if stage == "sft" else [],
            "seconds": seconds,
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
        if rows[stage]:
            (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[stage]))
        if stage == "evaluate":
            (place / "evaluation.json").write_text(json.dumps(evaluation(prompts, rng, gain=gain)))
        entries.append(
            {
                "name": stage,
                "stage": stage,
                "folder": stage,
                "skipped": i == 0,
                "seconds": seconds,
                "peak_rss_gb": 2.1 + i / 3,
            }
        )
    run = {
        "name": "quickstart",
        "recipe": {"model": "smollm2-135m-instruct", "stages": {stage: configs[stage] for stage in stages}},
        "seed": 1,
        "revision": "b214224",
        "started": "2026-08-05 10:42",
        "hardware": {"processor": "2 cores", "memory": "24 GB", "torch": "2.13.0"},
        "stages": entries,
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder
