"""Peak memory of PPO's four models, against SFT with the same adapter on the same batch.

Every measurement is one run of the real stage in a process of its own: `sft` on N prompts with k answers each, and
`policy` on the same prompts, whose rollouts have as many answers of the same lengths. Sizes are resident memory in GB
(1e9 bytes) above what the imported interpreter holds before anything is loaded; GPUs are not measured.

    sft        the answers are targets
    given      PPO on one trunk, with the very tokens that SFT saw as its rollouts: no sampler
    shared     PPO on one trunk, sampling its own answers (of the same lengths); paired, separate: on two, on four
    ridge      PPO on one trunk, with a head on the frozen reward model for a critic
    flat       PPO on one trunk for many steps, prompts and answers of ragged lengths: does memory creep?

    python benchmarks/memory.py [--model tiny] [--micro-tokens 2048 320] [--flat-steps 20] [--exact] [--help]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TARGET = 1.3  # PPO on one trunk, as a multiple of SFT
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # glibc: larger blocks come from the system and go back when freed
WORDS = ("sea", "calm", "day", "nobody", "knew", "why", "small", "boat", "would", "turn", "far", "from", "home")
Settings = dict[str, Any]
FACTS = ("model", "prompts", "answers", "prompt_tokens", "answer_tokens", "micro_tokens", "rank", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is measured: how many trunks, adapters on them (copied starts included), and adapters that are trained."""

    trunks: int = 1
    adapters: int = 4
    trained: int = 2
    layout: Literal["shared", "paired", "separate"] = "shared"
    critic: Mapping[str, Any] = field(default_factory=dict)
    samples: bool = True


SIDES = {
    "sft": Side(adapters=1, trained=1, samples=False),
    "given": Side(samples=False),
    "shared": Side(),
    "paired": Side(trunks=2, adapters=5, layout="paired"),
    "separate": Side(trunks=4, adapters=6, layout="separate"),
    "ridge": Side(adapters=3, trained=1, critic={"fit": "ridge", "start": "reward"}),
    "flat": Side(),
}


# --- measuring ----------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """The largest resident size since the last ``reset_peak``, or of the whole process where it cannot be reset."""
    if STATUS.exists():
        return 1024 * int(STATUS.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Start the peak anew (Linux); tell whether that was possible."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Meter:
    """Peaks by phase and sizes by step, in GB above the idle interpreter; it is the stage's reporter too."""

    def __init__(self) -> None:
        self.idle = resident_bytes()
        self.by_phase = reset_peak()
        self.peaks: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self._step, self._at = 0.0, 0.0

    def mark(self, phase: str) -> None:
        """End a phase and begin the next."""
        found = (peak_bytes() - self.idle) / 1e9
        self.peaks[phase] = max(self.peaks.get(phase, found), found)
        self._step = max(self._step, found)
        reset_peak()

    def watch(self, owner: type, name: str, before: str, phase: str) -> None:
        """Make a method end a phase when it is entered (``before``) and when it returns (``phase``)."""
        inner = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.mark(before)
            out = inner(*args, **kwargs)
            self.mark(phase)
            return out

        setattr(owner, name, watched)

    def begin(self, stage: str, total: int, unit: str) -> None:
        self.mark("loading")
        self._step, self._at = 0.0, time.process_time()

    def advance(self, done: int, values: object) -> None:
        self.mark("updates")
        if done:
            now, size = time.process_time(), (resident_bytes() - self.idle) / 1e9
            self.steps.append({"resident_gb": size, "peak_gb": self._step, "cpu_seconds": now - self._at})
            self._at = now
        self._step = 0.0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def give_answers(answers: dict[tuple[int, ...], list[tuple[int, ...]]]) -> None:
    """Let the sampler return these answers, by prompt, without running a model."""
    from trimtab.model.sampler import Sampled, TorchSampler

    def sample(self: object, prompts: Sequence[Sequence[int]], **settings: object) -> list[list[Sampled]]:
        return [
            [Sampled(tokens=a, logps=(0.0,) * len(a), finish="stop") for a in answers[tuple(prompt)]]
            for prompt in prompts
        ]

    setattr(TorchSampler, "sample", sample)  # noqa: B010 - mypy refuses the plain assignment


def end_answers(tokens: Iterable[int]) -> None:
    """Let the sampler stop at these tokens instead of the model's own: at none of them, or at one in so many."""
    from trimtab.model.sampler import TorchSampler

    inner, stop = TorchSampler.sample, frozenset(tokens)

    def sample(self: TorchSampler, *args: Any, **kwargs: Any) -> Any:
        self.stop = stop
        return inner(self, *args, **kwargs)

    setattr(TorchSampler, "sample", sample)  # noqa: B010


def measure(s: Settings) -> dict[str, Any]:
    """One run of one stage in this process."""
    import torch

    from trimtab.artifacts import Artifact
    from trimtab.config import DataRef, ModelRef
    from trimtab.model.hardware import pin_threads
    from trimtab.model.sampler import Sampling, TorchSampler
    from trimtab.model.trunk import Lora
    from trimtab.stages._online_settings import Critic
    from trimtab.stages._rollout import Roller
    from trimtab.stages.policy import policy
    from trimtab.stages.sft import sft
    from trimtab.train.run import Run

    pin_threads()
    folder, lora, side = Path(s["folder"]), Lora(rank=s["rank"]), SIDES[s["side"]]

    def finished(name: str) -> ModelRef:
        manifest = {"name": name, "stage": name, "key": name, "base": s["model"]}
        return ModelRef(name, s["model"], Artifact(folder / name, manifest))

    meter = Meter()
    with tempfile.TemporaryDirectory() as work:
        run = Run(name=s["side"], folder=Path(work), dtype=s["dtype"], reporter=meter)
        common: Settings = {"batch": s["prompts"], "lora": lora, "max_length": 2048, "micro_tokens": s["micro_tokens"]}
        if s["side"] == "sft":
            base = ModelRef("base", s["model"])
            data = DataRef(str(folder / "demonstrations.jsonl"))
            result = sft(run, data=data, init=base, epochs=s["steps"], **common)
        else:
            sampling = Sampling(max_tokens=s["answer_tokens"])
            if s["side"] == "given":
                sampling = Sampling(max_tokens=s["answer_tokens"], top_p=0.999)  # no check against a sampler
                give_answers({tuple(p): [tuple(a) for a in own] for p, own in s["tokens"]})
            else:
                end_answers(range(5, s["vocabulary"], 16) if s["side"] == "flat" else ())
            meter.watch(TorchSampler, "sample", "updates", "sampling")
            meter.watch(Roller, "read", "updates", "passes")
            file = "ragged.jsonl" if s["side"] == "flat" else "prompts.jsonl"
            result = policy(
                run, reward=finished("reward"), prompts=DataRef(str(folder / file)), init=finished("sft"),
                steps=s["steps"], answers=s["answers"], roles=side.layout, sampling=sampling,
                critic=Critic(warmup=0, **side.critic), **common,
            )  # fmt: skip
        meter.mark("end")
    peak = max(meter.peaks.values())
    return {
        "peak_gb": peak,
        "idle_gb": meter.idle / 1e9,
        "phases_gb": meter.peaks if meter.by_phase else {},
        "steps": meter.steps,
        "trunks": int(result.metrics.get("memory/trunks", 1)),
        "threads": torch.get_num_threads(),
    }


# --- the work, and the arithmetic ---------------------------------------------------------------------------------


def write_text(count: Callable[[str], int], num_tokens: int, draw: random.Random) -> str:
    """Words that ``count`` to exactly so many tokens."""
    text = ""
    for _ in range(100 * num_tokens):
        missing = num_tokens - count(text)
        if missing == 0:
            return text
        piece = f" {draw.choice(WORDS)}" if missing > 8 else draw.choice([" a", ".", ",", ";", "!"])
        if count((text + piece).strip()) <= num_tokens:
            text = (text + piece).strip()
    sys.exit(f"no text of {num_tokens} tokens found: the chat template alone has {count('')}; ask for longer ones")


def prepare(s: Settings) -> dict[str, Any]:
    """Write prompts, demonstrations and the two adapters that PPO starts from; work out every size that can be."""
    from trimtab.model.chat import Chat
    from trimtab.model.hardware import hardware
    from trimtab.model.trunk import Lora, ScalarHead, Trunk
    from trimtab.records.codec import write_groups
    from trimtab.records.types import Answer, Group, Message

    folder, draw = Path(s["folder"]), random.Random(0)
    trunk = Trunk.load(s["model"], dtype=s["dtype"])
    everything = (*trunk.base.parameters(), *trunk.base.buffers(), trunk.head.precise)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in everything}  # ties count once
    chat: Chat = trunk.chat

    def asked(text: str) -> tuple[Message, ...]:
        return (Message(role="user", content=text),)

    def prompt(num_tokens: int) -> tuple[Message, ...]:
        return asked(write_text(lambda text: len(chat.prompt(asked(text))), num_tokens, draw))

    def answer() -> Answer:  # its end is a token too
        return Answer(text=write_text(lambda text: len(chat.encode(text)) + 1, s["answer_tokens"], draw), finish="stop")

    groups = [
        Group(id=str(i), prompt=prompt(s["prompt_tokens"]), answers=tuple(answer() for _ in range(s["answers"])))
        for i in range(s["prompts"])
    ]
    write_groups(folder / "demonstrations.jsonl", groups)
    write_groups(folder / "prompts.jsonl", [g.with_answers(()) for g in groups])
    low = len(chat.prompt(asked(""))) + 12
    lengths = [draw.randint(low, low + 2 * s["prompt_tokens"]) for _ in range(8 * s["prompts"])]
    write_groups(folder / "ragged.jsonl", [Group(id=str(i), prompt=prompt(n)) for i, n in enumerate(lengths)])
    for seed, name in enumerate(("sft", "reward")):
        trunk.add_adapter(name, Lora(rank=s["rank"]), seed=seed)
        trunk.save_adapter(name, folder / name)
    ScalarHead(trunk.hidden_size, std=0.02).save(folder / "reward")
    tokens = [chat.group(g) for g in groups]
    return {
        "sizes": {"base": sum(storages.values()), **arithmetic(s, trunk, tokens)},
        "dtype": str(trunk.dtype).removeprefix("torch."),
        "vocabulary": int(trunk.head.weight.shape[0]),
        "tokens": [(item.prompt, item.answers) for item in tokens],
        "machine": {key: getattr(hardware(), key) for key in ("system", "cpu", "num_cores", "memory_gib", "versions")},
    }


def arithmetic(s: Settings, trunk: Any, tokens: Sequence[Any]) -> dict[str, int]:
    """Bytes of everything but the base. Activations are counted, not guessed: what autograd saves for one pass."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    from trimtab.tensors.tree import pack, split_by_tokens

    parameters = trunk.train_adapter("sft")
    numbers, own = sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
    config = trunk.base.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slots = min(64, s["prompts"] * s["answers"])
    places = s["prompt_tokens"] + s["answer_tokens"]
    size = trunk.head.weight.itemsize
    weights = {p.untyped_storage().data_ptr() for p in (*trunk.base.parameters(), *trunk.base.buffers())}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    largest = max(
        (pack([tokens[i] for i in cut]) for cut in split_by_tokens(tokens, s["micro_tokens"])),
        key=lambda batch: batch.ids.numel(),
    )
    with trunk.using("sft"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logps, _ = trunk.logps(largest)
    layers = [m for m in trunk.base.modules() if isinstance(m, BaseTunerLayer)]
    sizes = {
        "adapter": own,
        "masters": 4 * numbers,
        "moments": 8 * numbers,
        "gradients": 4 * numbers,
        "activations": sum(kept.values()),
        "probabilities": largest.num_targets * trunk.head.weight.shape[0] * size,
        "merged": sum(layer.get_base_layer().weight.nbytes for layer in layers),
        "cache": 2 * config.num_hidden_layers * slots * config.num_key_value_heads * places * head_size * size,
    }
    assert logps.requires_grad  # only now may the graph, and what it saved, go
    return sizes


def expected(sizes: dict[str, int], side: Side) -> tuple[float, float]:
    """GB by arithmetic: weights and optimisers, which stay, and these with the largest that comes on top of them."""
    state = sizes["masters"] + sizes["moments"] + sizes["gradients"]
    stays = side.trunks * sizes["base"] + side.adapters * sizes["adapter"] + side.trained * state
    update = sizes["activations"] + sizes["probabilities"] + sizes["adapter"]  # live gradients of one adapter
    sampling = sizes["merged"] + sizes["cache"] if side.samples else 0
    return stays / 1e9, (stays + max(update, sampling)) / 1e9


# --- the runs -----------------------------------------------------------------------------------------------------


def child(task: str, settings: Settings) -> dict[str, Any]:
    """Do a task in a fresh process; return what it says."""
    out = subprocess.run(
        [sys.executable, __file__, "--child", task], input=json.dumps(settings), stdout=subprocess.PIPE, text=True,
        check=True, env=os.environ | (EXACT if settings["exact"] else {}),
    )  # fmt: skip
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def compare(s: Settings) -> dict[str, Any]:
    """SFT and every PPO on one batch; print the table."""
    ready = child("prepare", s)
    sizes = ready["sizes"]
    exact = ", blocks above 1 MiB straight from the system" if s["exact"] else ""
    print(f"\n{s['model']}, {ready['dtype']}, {s['prompts']} prompts x {s['answers']} answers,", end=" ")
    print(f"{s['prompt_tokens']} + {s['answer_tokens']} tokens, micro_tokens {s['micro_tokens']}{exact}")
    print("MB: " + ", ".join(f"{name} {n / 1e6:.1f}" for name, n in sizes.items()))
    phases = ("loading", "sampling", "passes", "updates", "end")
    heads = ("trunks", "weights", "expected", "peak", "x SFT", *phases)
    print(f"{'GB':10}" + "".join(f"{head:>9}" for head in heads), flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for name in ("sft", *s["sides"]):
        found = child("measure", {**s, "side": name, "tokens": ready["tokens"], "vocabulary": ready["vocabulary"]})
        found["weights_gb"], found["expected_gb"] = expected(sizes, SIDES[name])
        rows[name] = found
        found["ratio"] = found["peak_gb"] / rows["sft"]["peak_gb"]
        numbers = [found[key] for key in ("weights_gb", "expected_gb", "peak_gb", "ratio")]
        cells = "".join(f"{x:9.3f}" for x in numbers)
        cells += "".join(f"{found['phases_gb'][p]:9.3f}" if p in found["phases_gb"] else f"{'':9}" for p in phases)
        print(f"{name:10}{found['trunks']:9d}{cells}", flush=True)
    if "shared" in rows:
        ratio = rows["shared"]["ratio"]
        print(f"four models on one trunk: {ratio:.2f} x SFT ({'at most' if ratio <= TARGET else 'ABOVE'} {TARGET})")
    facts = {key: s[key] for key in FACTS} | {key: ready[key] for key in ("dtype", "sizes", "machine")}
    return {"kind": "peaks", **facts, "steps": s["steps"], "runs": rows}


def flatness(s: Settings) -> dict[str, Any]:
    """Many ragged steps on one trunk; print the size after each, and fit a line through the second half."""
    from scipy.stats import linregress

    ready = child("prepare", s)
    changes = {"side": "flat", "steps": s["flat_steps"], "tokens": [], "vocabulary": ready["vocabulary"]}
    found = child("measure", {**s, **changes})
    sizes = [step["resident_gb"] for step in found["steps"]]
    peaks = [step["peak_gb"] for step in found["steps"]]
    half = len(sizes) // 2
    fitted = linregress(range(half, len(sizes)), sizes[half:])
    slope, error = float(fitted.slope), float(fitted.stderr)
    print(f"\n{s['model']}, {ready['dtype']}: {len(sizes)} steps of ragged lengths on one trunk; GB after each step")
    print(" ".join(f"{size:.3f}" for size in sizes))
    print(f"slope over the second half: {1e3 * slope:+.2f} +- {1e3 * error:.2f} MB a step (standard error)")
    print(f"peak of the first half {max(peaks[:half]):.3f} GB, of the second {max(peaks[half:]):.3f} GB")
    facts = {key: s[key] for key in FACTS} | {key: ready[key] for key in ("dtype", "machine")}
    measured = {"resident_gb": sizes, "peak_gb": peaks, "slope_mb": 1e3 * slope, "slope_error_mb": 1e3 * error}
    return {"kind": "flat", **facts, **measured}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of PPO's four models against SFT on the same batch.")
    parser.add_argument("--child", choices=("prepare", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--micro-tokens", type=int, nargs="+", default=[2048, 320], help="a table for each")
    parser.add_argument("--steps", type=int, default=2, help="of each run: the second has the optimiser's moments")
    parser.add_argument("--flat-steps", type=int, default=20, help="six at least; 0: leave them out")
    sides = [name for name in SIDES if name not in ("sft", "flat")]
    parser.add_argument("--sides", nargs="*", choices=sides, default=sides, help="none: only the steps of --flat-steps")
    parser.add_argument("--exact", action="store_true", help="freed blocks go back to the system at once (glibc)")
    return parser.parse_args()


def main() -> None:
    """Measure, print, record."""
    options = vars(parse())
    if options["child"]:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
        print(json.dumps({"prepare": prepare, "measure": measure}[options["child"]](json.load(sys.stdin))))
        return
    from trimtab.artifacts import revision  # light: what a parent holds counts in the peak of its children

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    stamp = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "revision": revision()}
    RESULTS.parent.mkdir(exist_ok=True)

    def record(row: dict[str, Any]) -> None:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**stamp, **row}) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        for micro_tokens in options["micro_tokens"] if options["sides"] else []:
            record(compare({**options, "folder": folder, "micro_tokens": micro_tokens}))
        if options["flat_steps"]:
            record(flatness({**options, "folder": folder, "micro_tokens": options["micro_tokens"][0]}))
    print(f"recorded in {RESULTS}")


if __name__ == "__main__":
    main()
