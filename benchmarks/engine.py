"""Seconds and peak memory of a training step: a TreeBatch with shared prompts against the same rows padded.

Both sides train the same LoRA on the same weights in the same precision, and start from the same loss (checked). The
tree side is Trimtab's; the padded side is plain transformers and peft: one row a prompt + answer, padded to the
longest, logits of every token, torch's AdamW. Every measurement is a process of its own (its peak memory is its own);
they alternate A B A B, so that a busy machine slows both, and the ratio is that of the fastest steps, which it slows
least.  python benchmarks/engine.py [MODEL ...]
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "engine.jsonl"
ROUNDS, STEPS = 2, 3  # A B A B; timed steps in each, after one that warms up
PROMPTS, ANSWERS = 2, 4  # Groups, and answers of each
LR = 1e-4


def work(vocab: int) -> list[tuple[list[int], list[list[int]]]]:
    """Random prompts of 64-160 tokens with answers of 16-64: the same on both sides."""
    draw = random.Random(0)

    def words(low: int, high: int) -> list[int]:
        return [draw.randrange(3, min(vocab, 250)) for _ in range(draw.randint(low, high))]

    return [(words(64, 160), [words(16, 64) for _ in range(ANSWERS)]) for _ in range(PROMPTS)]


def tree(ref: str) -> Callable[[], float]:
    """Prepare Trimtab's step."""
    from trimtab.model.trunk import Lora, Trunk
    from trimtab.tensors.tree import TokenGroup, pack
    from trimtab.train.optim import Optimiser, ParameterGroup

    trunk = Trunk.load(ref)
    trunk.add_adapter("bench", Lora(), seed=0)
    optimiser = Optimiser([ParameterGroup(name="bench", parameters=trunk.train_adapter("bench"), lr=LR)])
    groups = [
        TokenGroup(prompt=tuple(p), answers=tuple(map(tuple, a))) for p, a in work(trunk.loaded.model.config.vocab_size)
    ]
    trunk.use("bench")

    def step() -> float:
        batch = pack(groups).to(trunk.device)
        loss = -trunk.logps(batch)[0].sum() / batch.num_targets
        loss.backward()
        optimiser.accumulate()
        optimiser.step(1.0)
        return loss.item()

    return step


def padded(ref: str) -> Callable[[], float]:
    """Prepare the plain step."""
    import torch
    from peft import LoraConfig, get_peft_model

    from trimtab.model.load import load

    base = load(ref, attention="sdpa").model
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    rows = [(prompt, answer) for prompt, answers in work(base.config.vocab_size) for answer in answers]
    width = max(len(p) + len(a) for p, a in rows)

    def step() -> float:
        ids = torch.tensor([[*p, *a] + [0] * (width - len(p) - len(a)) for p, a in rows])
        place = torch.arange(width)
        ends = torch.tensor([[len(p), len(p) + len(a)] for p, a in rows])
        target = (place >= ends[:, :1]) & (place < ends[:, 1:])
        logits = model(input_ids=ids, attention_mask=(place < ends[:, 1:]).long(), use_cache=False).logits
        logps = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
        loss = -logps[target[:, 1:]].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()
        return loss.item()

    return step


def measure(side: str, ref: str) -> dict[str, Any]:
    """One process: load, warm up, time."""
    from trimtab.model.hardware import pin_threads

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
    pin_threads()
    step = {"tree": tree, "padded": padded}[side](ref)
    first, seconds = step(), []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "loss": first,
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
    }


def compare(ref: str) -> dict[str, Any]:
    """Alternate the two sides; return the line for the record."""
    from trimtab.artifacts import revision

    runs: dict[str, list[dict[str, Any]]] = {"tree": [], "padded": []}
    for _ in range(ROUNDS):
        for side, kept in runs.items():
            out = subprocess.run([sys.executable, __file__, side, ref], stdout=subprocess.PIPE, text=True, check=True)
            kept.append(json.loads(out.stdout.splitlines()[-1]))
    row: dict[str, Any] = {
        "model": ref,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
    }
    seconds = {side: [s for run in kept for s in run["seconds"]] for side, kept in runs.items()}
    peaks = {side: max(run["peak_gb"] for run in kept) for side, kept in runs.items()}
    losses = {side: kept[0]["loss"] for side, kept in runs.items()}
    if abs(losses["tree"] - losses["padded"]) > 0.02 * abs(losses["padded"]):
        sys.exit(f"{ref}: the two sides do not do the same work: first losses {losses}")
    print(f"{'model':24}{'side':10}{'median s':>9}{'fastest':>9}{'slowest':>9}{'peak GB':>9}{'loss':>9}")
    for side, times in seconds.items():
        numbers = f"{median(times):9.3f}{min(times):9.3f}{max(times):9.3f}{peaks[side]:9.2f}{losses[side]:9.4f}"
        print(f"{ref:24}{side:10}{numbers}")
    faster = min(seconds["padded"]) / min(seconds["tree"])
    smaller = peaks["padded"] / peaks["tree"]
    print(f"{ref:24}padded / tree: {faster:.2f} x the time, {smaller:.2f} x the peak memory\n")
    return row | {
        "seconds": seconds,
        "peak_gb": peaks,
        "first_loss": losses,
        "time_ratio": faster,
        "peak_ratio": smaller,
    }


def main() -> None:
    """Measure the models named, or the tiny one and the bundled one if it is in the cache."""
    if sys.argv[1:2] and sys.argv[1] in {"tree", "padded"}:
        print(json.dumps(measure(*sys.argv[1:3])))
        return
    from dataclasses import asdict

    from trimtab.model.bundled import is_cached
    from trimtab.model.hardware import hardware

    refs = sys.argv[1:] or ["tiny", *(name for name in ["smollm2-135m-instruct"] if is_cached(name))]
    machine = {
        k: v for k, v in asdict(hardware()).items() if k in {"cpu", "num_cores", "num_threads", "cpu_bf16", "versions"}
    }
    RESULTS.parent.mkdir(exist_ok=True)
    for ref in refs:
        row = compare(ref) | {"machine": machine}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(f"recorded in {RESULTS}")


if __name__ == "__main__":
    main()
