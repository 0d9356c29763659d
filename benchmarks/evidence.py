"""Is PPO better than SFT? The whole chain with several seeds, on prompts that nothing was trained on.

For every seed: SFT, reward model, PPO, GRPO for as long, and a head-to-head on 300 test prompts by a judge that made
no labels (recipes/evidence.yaml). Every finished (method, seed) is one line in results/evidence.jsonl, with the
revision of the code it came from; what is there is not run again, and a run that was stopped goes on where it was.

    python benchmarks/evidence.py [--seeds 0 1 2]      run what is missing, then the summary
    python benchmarks/evidence.py --summary            the summary alone

One outcome a prompt: the seeds' outcomes are averaged first, so the interval is over prompts, for these very models;
how much another seed would differ is in the last column. Beside it, the always-valid interval of each prompt's verdict
by most seeds (ties dropped): it may be looked at after every prompt, though not after every seed, since a new seed
changes the verdicts.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.stats.sequential import always_valid
from trimtab.stats.winrate import LENGTH_FRACTION, accuracy, outcomes, win_rate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "evidence.jsonl"
RECIPE = ROOT / "recipes" / "evidence.yaml"
ROOMS = ("advantages", "data", "losses", "model", "records", "rewards", "stages", "stats", "tensors", "train")
DECIDES = ("recipes/evidence.yaml", "src/trimtab/seeds.py", *(f"src/trimtab/{room}" for room in ROOMS))
MODELS = ("sft", "ppo", "grpo")
STRIDE = 60  # every 60th prompt's answers are kept as samples
Row = dict[str, Any]


def revision() -> str:
    """The last commit that changed what decides results; those of an older one are another experiment's."""
    found, changed = (
        subprocess.run(["git", *command, "--", *DECIDES], cwd=ROOT, capture_output=True, text=True, check=True)
        for command in (["log", "-1", "--format=%h"], ["status", "--porcelain"])
    )
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read_rows() -> list[Row]:
    """All rows so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_seed(seed: int, code: str) -> None:
    """Run the chain (what is done is skipped by the run itself) and append its rows."""
    name = f"evidence-{code}-{seed}"  # artifacts of other code are no part of it
    subprocess.run(
        [sys.executable, "-m", "trimtab", "run", str(RECIPE), f"seed={seed}", f"name={name}"], cwd=ROOT, check=True
    )
    folder = ROOT / "runs" / name
    evaluation = json.loads((folder / "evaluate" / "evaluation.json").read_text())
    facts = {
        "seed": seed,
        "revision": code,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
    }
    rows = [{"method": "reward", **facts, **stage_facts(folder / "reward"), "judge": judge_card(evaluation)}]
    rows += [
        {"method": model, **facts, **stage_facts(folder / model), **answers(evaluation, model)} for model in MODELS
    ]
    with RESULTS.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def stage_facts(folder: Path) -> Row:
    """A stage's minutes, its result and the curves' ends."""
    manifest = json.loads((folder / "manifest.json").read_text())
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = (
        "rollout/score", "rollout/kl", "rollout/entropy", "rollout/length", "rollout/ended", "rollout/logp_gap",
        "value/explained_variance", "value/residual_variance", "value/return_variance", "policy/clip_fraction",
        "train/loss",
    )  # fmt: skip
    curves = {name: [round(row[name], 4) for row in log if row.get(name) is not None] for name in names}
    return {
        "seconds": round(sum(row["train/seconds"] for row in log)),
        "metrics": manifest["metrics"],
        "curves": {name: values for name, values in curves.items() if values},
    }


def judge_card(evaluation: Mapping[str, Any]) -> Row:
    """How far the judge can be trusted."""
    return {k: v for k, v in evaluation["judge"].items() if k != "scores"}


def answers(evaluation: Mapping[str, Any], model: str) -> Row:
    """What one model said: a score, a length and an end for every prompt, and some samples."""
    prompts = evaluation["prompts"]
    said = [prompt["answers"][model] for prompt in prompts]
    return {
        "prompts": [prompt["id"] for prompt in prompts],
        "scores": [round(score, 5) for score in evaluation["judge"]["scores"][model]],
        "tokens": [answer["tokens"] for answer in said],
        "ended": [answer["finish"] == "stop" for answer in said],
        "checks": {name: shares[model] for name, shares in evaluation["checks"].items()},
        "reward_model": evaluation.get("reward_model", {}).get(model),
        "samples": [
            {"prompt": prompts[i]["prompt"], "answer": said[i]["text"]} for i in range(0, len(prompts), STRIDE)
        ],
    }


def summary(rows: Sequence[Row], code: str) -> None:
    """Print the tables of one revision."""
    mine = [row for row in rows if row["revision"] == code]
    seeds = sorted({row["seed"] for row in mine if row["method"] == MODELS[-1]})
    if not seeds:
        print(f"no results of revision {code} yet")
        return
    by = {(row["method"], row["seed"]): row for row in mine}
    print(f"revision {code}, seeds {', '.join(map(str, seeds))}\n")
    _reward_table(by, seeds)
    _win_table(by, seeds)
    _model_table(by, seeds)


def _reward_table(by: Mapping[tuple[str, int], Row], seeds: Sequence[int]) -> None:
    print("| seed | reward model | 95 % | always the longer | 95 % | judge | 95 % |\n|---|---|---|---|---|---|---|")
    for seed in seeds:
        row = by["reward", seed]
        found, judge = row["metrics"], row["judge"]
        n = round(found["heldout/n"])
        longer = found["heldout/longer_wins"]
        _, lo, hi = accuracy([1.0] * round(longer * n) + [0.0] * (n - round(longer * n)))
        own = f"{percent(found['heldout/accuracy_lo'])} to {percent(found['heldout/accuracy_hi'])}"
        rule = f"{percent(longer)} | {percent(lo)} to {percent(hi)}"
        card = f"{percent(judge['accuracy'])} | {percent(judge['accuracy_lo'])} to {percent(judge['accuracy_hi'])}"
        print(f"| {seed} | {percent(found['heldout/accuracy'])} | {own} | {rule} | {card} |")
    print()


def _win_table(by: Mapping[tuple[str, int], Row], seeds: Sequence[int]) -> None:
    heads = (
        "",
        "win rate",
        "95 %, by prompt",
        "by most seeds, always valid",
        "at equal length",
        "cut answers lose",
        "each seed",
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for b, a in combinations(MODELS, 2):
        won = np.stack([outcomes(by[a, seed]["scores"], by[b, seed]["scores"]) for seed in seeds], axis=1)  # (N, S)
        rate, valid = win_rate(won.mean(axis=1)), always_valid(won.mean(axis=1))
        lengths = [np.array([by[model, seed]["tokens"] for seed in seeds], dtype=float).T for model in (a, b)]
        near = np.abs(lengths[0] - lengths[1]) <= LENGTH_FRACTION * np.maximum(*lengths)
        prompts = np.repeat(np.arange(len(won))[:, None], len(seeds), axis=1)
        matched = win_rate(won[near], prompts=prompts[near].tolist())
        each = ", ".join(percent(float(won[:, s].mean())) for s in range(len(seeds)))
        finished = win_rate(np.stack([_cut_loses(by[a, seed], by[b, seed]) for seed in seeds], axis=1).mean(axis=1))
        cut = f"{percent(finished.mean)} ({percent(finished.lo)} to {percent(finished.hi)})"
        equal = f"{percent(matched.mean)} ({percent(matched.lo)} to {percent(matched.hi)}), {matched.n} prompts"
        print(
            f"| {a.upper()} over {b.upper()} | **{percent(rate.mean)}** | {percent(rate.lo)} to {percent(rate.hi)} "
            f"| {valid.wins} : {valid.losses}, {percent(valid.lo)} to {percent(valid.hi)} | {equal} | {cut} | {each} |"
        )
    print()


def _cut_loses(a: Row, b: Row) -> np.ndarray:
    """Outcomes (N,) for a reader who takes a finished answer over one that the cap cut; the judge decides the rest."""
    won = outcomes(a["scores"], b["scores"])
    mine, theirs = np.array(a["ended"]), np.array(b["ended"])
    return np.where(mine == theirs, won, mine.astype(float))


def _model_table(by: Mapping[tuple[str, int], Row], seeds: Sequence[int]) -> None:
    print("| | minutes | ended | tokens | reward model | KL | entropy | explained variance |\n|" + "---|" * 8)
    for model in MODELS:
        rows = [by[model, seed] for seed in seeds]
        minutes = mean([row["seconds"] / 60 for row in rows])
        ended = percent(mean([mean(row["ended"]) for row in rows]))
        tokens = mean([mean(row["tokens"]) for row in rows])
        score = mean([row["reward_model"] for row in rows])
        curves = " | ".join([late(rows, "kl"), late(rows, "entropy"), explained(rows)])
        print(f"| {model.upper()} | {minutes:.1f} | {ended} | {tokens:.1f} | {score:+.2f} | {curves} |")


def explained(rows: Sequence[Row]) -> str:
    """What the critics explain over the second half of their runs: 1 - (summed residual / summed return variance)."""
    curves = [row["curves"] for row in rows if "value/return_variance" in row["curves"]]
    if not curves:
        return ""
    left, whole = (
        sum(sum(curve[name][len(curve[name]) // 2 :]) for curve in curves)
        for name in ("value/residual_variance", "value/return_variance")
    )
    return f"{1 - left / whole:.2f}"


def late(rows: Sequence[Row], name: str) -> str:
    """A curve's mean over the last quarter of the run and over the seeds; nothing where no run has it."""
    found = [values for row in rows for key, values in row["curves"].items() if key.endswith(f"/{name}")]
    return f"{mean([mean(values[-max(1, len(values) // 4) :]) for values in found]):.2f}" if found else ""


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def percent(share: float) -> str:
    """0.5 -> 50.0 %."""
    return f"{100 * share:.1f} %"


def main() -> None:
    """Run what is missing and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--revision", help="summarise another revision's rows")
    given = parser.parse_args()
    code = given.revision or revision()
    if not (given.summary or given.revision):
        if code.endswith("+"):
            sys.exit(
                "there are uncommitted changes to what decides results: commit them, so that a row can name its code"
            )
        for seed in given.seeds:
            if not any(row["seed"] == seed and row["revision"] == code for row in read_rows()):
                run_seed(seed, code)
    summary(read_rows(), code)


if __name__ == "__main__":
    main()
