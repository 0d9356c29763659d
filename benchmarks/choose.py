"""One change at a time to PPO's settings, judged on the prompts that are there for choosing; never on test prompts.

Starts from a run's SFT and reward models (of recipes/evidence.yaml), takes that recipe's `ppo` settings, applies one
change, trains, and compares 4 answers to each of the 64 `choose` prompts with 4 of the SFT model (16 comparisons a
prompt, averaged; interval over prompts). One line a (variant, seed, revision) in results/choose.jsonl; what is there is
not run again.

    python benchmarks/choose.py --run runs/evidence-0 [--variants base warmup-2 ...] [--seed 0] [--summary]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from evidence import RECIPE, ROOT, Row, explained, late, mean, percent, revision, stage_facts

from trimtab.stats.winrate import win_rate

RESULTS = ROOT / "benchmarks" / "results" / "choose.jsonl"
ANSWERS, TEMPERATURE, PROMPTS = 4, 0.7, "quickstart/choose"
RIDGE = {"fit": "ridge", "start": "reward"}
QUICK: dict[str, Any] = {"steps": 8, "lr": 8e-4, "critic": RIDGE | {"warmup": 3}}  # quickstart.yaml, but for its beta
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "quickstart, lr 8e-4": QUICK,
    "quickstart, 2 epochs": QUICK | {"epochs": 2, "lr": 4e-4},
    "quickstart": QUICK | {"lr": 4e-4},
    "quickstart, lr 8e-4, 2 epochs": QUICK | {"epochs": 2},
    "quick: critic by descent, from the policy": QUICK
    | {"critic": {"fit": "gradient", "start": "policy", "warmup": 3}},
    "quick: critic by descent, from the reward model": QUICK
    | {"critic": {"fit": "gradient", "start": "reward", "warmup": 3}},
    "quick: 1 round of warm-up": QUICK | {"critic": RIDGE | {"warmup": 1}},
    "quick: no penalty for cut answers": QUICK | {"shaping": {"eos": "none"}},
    "quick: scores standardised as they come": QUICK | {"shaping": {"normalise": "mean_std"}},
    "quick: beta 0.1": QUICK | {"kl": {"beta": 0.1}},
    "quick: KL steered to 3 nats": QUICK | {"kl": {"beta": 0.02, "target": 3.0, "horizon": 200}},
    "quick: 3 prompts x 8 answers": QUICK | {"batch": 3, "answers": 8},
    "quick: 2 minibatches": QUICK | {"minibatches": 2},
    "quick: GRPO": QUICK | {"method": "grpo", "steps": 9},
    "critic by descent, from the policy": {"critic": {"fit": "gradient", "start": "policy", "warmup": 6}},
    "critic by descent, from the reward model": {"critic": {"fit": "gradient", "start": "reward", "warmup": 6}},
    "ridge critic on the policy's states": {"critic": {"fit": "ridge", "start": "policy", "warmup": 6}},
    "2 rounds of warm-up": {"critic": RIDGE | {"warmup": 2}},
    "2 epochs": {"epochs": 2, "steps": 12},
    "12 prompts a round": {"batch": 12, "steps": 8, "critic": RIDGE | {"warmup": 3}},
    "3 prompts x 8 answers": {"batch": 3, "answers": 8},
    "no penalty for cut answers": {"shaping": {"eos": "none"}},
    "scores standardised as they come": {"shaping": {"normalise": "mean_std"}},
    "beta 0.1": {"kl": {"beta": 0.1}},
    "KL steered to 3 nats": {"kl": {"beta": 0.02, "target": 3.0, "horizon": 200}},
    "lr 2e-4": {"lr": 2e-4},
    "lr 8e-4": {"lr": 8e-4},
    "lam 1": {"lam": 1.0},
    "temperature 1": {"sampling": {"temperature": 1.0}},
    "GRPO": {"method": "grpo", "steps": 18},
}


def train(variant: str, run: Path, seed: int, out: Path) -> Path:
    """Train one variant from the run's models; return its folder."""
    settings = yaml.safe_load(RECIPE.read_text())["stages"]["ppo"] | VARIANTS[variant]
    if settings["method"] == "grpo":  # has no critic
        settings = {key: value for key, value in settings.items() if key not in ("critic", "lam")}
    settings |= {"init": str((run / "sft").resolve()), "reward": str((run / "reward").resolve())}
    name = f"{variant.replace(' ', '-').replace(',', '').replace(':', '')}-{revision()}"
    model = json.loads((run / "sft" / "manifest.json").read_text())["base"]
    recipe = {"model": model, "seed": seed, "output": str(out / f"{name}-{seed}"), "stages": {"ppo": settings}}
    path = out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    subprocess.run([sys.executable, "-m", "trimtab", "run", str(path)], cwd=ROOT, check=True)
    return out / f"{name}-{seed}" / name / "ppo"


def answers(folder: Path, seed: int) -> Row:
    """Sample a model on the prompts for choosing and judge the answers; kept beside the model."""
    from trimtab.artifacts import read_artifact
    from trimtab.config import ModelRef
    from trimtab.model.sampler import Sampling, TorchSampler
    from trimtab.model.trunk import Trunk
    from trimtab.records.read import read_groups
    from trimtab.rewards.encoder import encoder
    from trimtab.rewards.encoder_judge import EncoderJudge
    from trimtab.stages.evaluate import ENCODER

    kept = folder.resolve() / f"choose-{seed}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    artifact = read_artifact(folder.resolve())
    assert artifact is not None
    assert artifact.base is not None
    trunk, adapter = Trunk.open(ModelRef(artifact.name, artifact.base, artifact))
    groups = read_groups(PROMPTS).groups
    sampled = TorchSampler(trunk, adapter, stop=trunk.chat.stop).sample(
        [trunk.chat.prompt(group.prompt) for group in groups],
        k=ANSWERS, sampling=Sampling(temperature=TEMPERATURE), seed=seed,
    )  # fmt: skip
    judge = EncoderJudge.fit(read_groups("quickstart/judge").groups, encoder(ENCODER.name), seed=0)
    questions = [group.prompt[-1].content for group in groups]
    texts = [[trunk.chat.decode(a.tokens) for a in own] for own in sampled]
    found = {
        "scores": [judge.score(questions, [own[k] for own in texts]).tolist() for k in range(ANSWERS)],  # K x N
        "tokens": [[len(own[k].tokens) for own in sampled] for k in range(ANSWERS)],
        "ended": [[own[k].finish == "stop" for own in sampled] for k in range(ANSWERS)],
    }
    kept.write_text(json.dumps(found))
    return found


def compare(mine: Row, theirs: Row, *, cut_loses: bool) -> np.ndarray:
    """Outcomes (N,): every answer of one model against every one of the other, averaged."""
    a, b = (np.array(side["scores"]).T for side in (mine, theirs))  # (N, K)
    if cut_loses:
        a, b = (np.where(np.array(s["ended"]).T, x, x - 1e6) for s, x in ((mine, a), (theirs, b)))
    more, same = a[:, :, None] > b[:, None, :], a[:, :, None] == b[:, None, :]
    return np.asarray((more + 0.5 * same).mean(axis=(1, 2)))


def run_variant(variant: str, run: Path, seed: int, out: Path, code: str) -> None:
    """Train, judge, and append the row."""
    folder = train(variant, run, seed, out)
    mine, theirs = answers(folder, 11), answers(run / "sft", 11)
    won, finished = (compare(mine, theirs, cut_loses=cut) for cut in (False, True))
    row = {
        "variant": variant, "change": VARIANTS[variant], "seed": seed, "revision": code,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "won": won.round(4).tolist(),
        "won_cut_loses": finished.round(4).tolist(), "ended": float(np.mean(mine["ended"])),
        "tokens": float(np.mean(mine["tokens"])), **stage_facts(folder),
    }  # fmt: skip
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def summary(code: str) -> None:
    """Print one line a variant of this revision, seeds averaged."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    heads = ("change", "seeds", "over SFT", "95 %", "cut answers lose", "ended", "tokens", "score", "KL",
             "explained variance", "minutes")  # fmt: skip
    print(f"revision {code}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant and row["revision"] == code]
        if own:
            keys = ("won", "won_cut_loses")
            won, finished = (win_rate(np.mean([row[key] for row in own], axis=0)) for key in keys)
            shares = (won.mean, finished.mean, mean([row["ended"] for row in own]))
            first, cut, ended = map(percent, shares)
            tokens, minutes = mean([row["tokens"] for row in own]), mean([row["seconds"] / 60 for row in own])
            cells = (
                variant, ", ".join(str(row["seed"]) for row in own), first, f"{percent(won.lo)} to {percent(won.hi)}",
                cut, ended, f"{tokens:.1f}", late(own, "score"), late(own, "kl"), explained(own), f"{minutes:.1f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "evidence-0")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "choose")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true", help="run nothing")
    given = parser.parse_args()
    code = revision()
    done = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    keys = {(row["variant"], row["seed"], row["revision"]) for row in map(json.loads, done)}
    for variant in () if given.summary else given.variants:
        if (variant, given.seed, code) not in keys:
            run_variant(variant, given.run, given.seed, given.out, code)
    summary(code)


if __name__ == "__main__":
    main()
