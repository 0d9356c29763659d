"""kill -9 at random moments: does the same command go on, and end with the same bits?

The tiny model goes through SFT, a reward model, PPO and PPO with a ridge critic once without interruption. Then the
same recipe is run again and again in fresh folders, killed at moments drawn evenly over the length of the uninterrupted
run (so also while the model is made or loaded, checkpoints and artifacts are written; a fifth of the kills strikes a
process that has only just been started again), and started again until it is done. Every artifact must then be the
uninterrupted run's: weights, scalar head and settings byte for byte, the log but for its seconds, the manifest but for
times, memory and the notes about resuming; and nothing may be left lying about.

    python benchmarks/resume.py [--kills N] [--seed S] [--steps SFT REWARD POLICY]

Each start is a process of its own, on one thread. Seconds are the process's own time on a processor, so other work on
the machine moves no kill. The runs checkpoint after every step, every 2 and every 10 seconds by the clock in turn, so
that steps have to be done again. Exit code 1, and an end at once, if anything differs; its files are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results" / "resume.jsonl"
STAGES = ("sft", "reward", "policy", "ridge")
KILLS_A_RUN = 6
TICK = 0.01  # seconds between two looks at a process
EARLY = 0.2  # the share of kills that strike while a process still starts, wherever it goes on
CHECKPOINT_SECONDS = (0.0, 2.0, 10.0)  # in turn: after every step, and so seldom that steps have to be done again
UNEQUAL = {"seconds", "peak_rss_gb"}  # of a manifest: what two runs of the same recipe never share
LORA = {"rank": 4, "alpha": 8}


# --- the work ---------------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Six questions with answers: demonstrations, pairs and prompts."""
    asked = ("What is tea?", "Why?", "How tall is it?", "Who?", "Say a word", "Where is it now?")
    said = ("A leaf.", "Because it rains.", "Forty metres.", "Nobody knows.", "Word", "Here")
    folder.mkdir(parents=True)
    demonstrations, preferences, prompts = [], [], []
    for i, (question, answer) in enumerate(zip(asked, said, strict=True)):
        prompt = [{"role": "user", "content": question}]
        pair = [{"text": answer}, {"text": "No" * (i + 1)}]
        verdict = {"kind": "pair", "better": i % 2, "worse": 1 - i % 2}
        demonstrations.append({"id": f"d{i}", "prompt": prompt, "answers": pair[:1]})
        preferences.append({"id": f"p{i}", "prompt": prompt, "answers": pair, "verdicts": [verdict]})
        prompts.append({"id": f"q{i}", "prompt": prompt, "answers": []})
    for name, rows in {"demonstrations": demonstrations, "preferences": preferences, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(bench: Path, name: str, steps: Sequence[int], checkpoint_seconds: float) -> Path:
    """Everything that a run remembers from one step to the next is switched on."""
    data, batch, rows = bench / "data", 4, 6
    sft, reward, online = steps
    training = {"batch": batch, "lr": 2e-3, "lora": LORA}
    policy = {
        "reward": "reward", "prompts": str(data / "prompts.jsonl"), "steps": online, "batch": batch, "answers": 2,
        "epochs": 2, "minibatches": 2, "kl": {"beta": 0.1, "target": 0.01, "horizon": 100},
        "shaping": {"normalise": "mean_std"}, "sampling": {"max_tokens": 24}, "lora": LORA,
    }  # fmt: skip
    ridge = {"critic": {"fit": "ridge", "start": "reward"}, "ptx": str(data / "demonstrations.jsonl")}
    recipe = {
        "name": name, "model": "tiny", "dtype": "float32", "seed": 3, "output": str(bench / "runs"),
        "checkpoint_seconds": checkpoint_seconds,
        "stages": {
            "sft": {"data": str(data / "demonstrations.jsonl"), "epochs": sft * batch / rows, **training},
            "reward": {
                "init": "sft", "data": str(data / "preferences.jsonl"), "epochs": reward * batch / rows, **training,
            },
            "policy": {"init": "sft", **policy},
            "ridge": {"stage": "policy", "init": "policy", **policy, **ridge},
        },
    }  # fmt: skip
    path = bench / f"{name}.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML too
    return path


def live(
    bench: Path, recipe: Path, seconds: float = math.inf, delay: float = 0.0, watch: Callable[[float], object] = float
) -> tuple[subprocess.Popen[bytes], float]:
    """Run the recipe in a process of its own and kill it ``delay`` after it has had its seconds, unless it is done.

    ``watch`` is told the seconds so far again and again. Returns the dead process and what it had.
    """
    with recipe.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "run", str(recipe)],
            stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRIMTAB_CACHE": str(bench / "cache")},
        )  # fmt: skip
    clock, had = psutil.Process(process.pid), 0.0
    try:
        while process.poll() is None and had < seconds:
            with suppress(psutil.Error):  # it may end at any moment
                times = clock.cpu_times()
                had = times.user + times.system
            watch(had)
            time.sleep(TICK)
        time.sleep(delay)  # the clock ticks; moments between its ticks are moments too
    finally:
        process.kill()  # does nothing to a process that has ended
        process.wait()
    return process, had


def said(recipe: Path, code: int) -> str:
    """How a process ended, and its last words."""
    return f"exit code {code}\n{recipe.with_suffix('.log').read_text()[-2000:]}"


# --- where a run is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far a run has come: stages published, and of the next one the steps that would not be done again."""

    stages: int
    step: int


def work_folder(root: Path, stage: str) -> Path | None:
    """Where an unfinished stage works."""
    return next(root.glob(f".work/{stage}-*"), None)


def published(root: Path) -> int:
    """How many stages are done."""
    return sum(any(root.glob(f"artifacts/{stage}-*/manifest.json")) for stage in STAGES)


def logged_steps(work: Path | None) -> int:
    """Whole lines in the log of the stage in work."""
    log = work / "metrics.jsonl" if work else None
    try:
        return log.read_bytes().count(b"\n") if log else 0
    except FileNotFoundError:
        return 0


def reached(root: Path) -> Place:
    """What was done when a process died, of it the part that stays done."""
    stages = published(root)
    work = work_folder(root, STAGES[stages]) if stages < len(STAGES) else None
    kept = [int(path.name[5:]) for path in work.glob("checkpoints/step-*")] if work else []
    return Place(stages, max(kept, default=0))


def moment(bench: Path, root: Path, place: Place, steps: int, process: subprocess.Popen[bytes], began: float) -> str:
    """What a process was at when it died, as far as its files tell."""
    work = work_folder(root, STAGES[place.stages])
    log = work / "metrics.jsonl" if work else None
    if work is None:
        making = [path for path in bench.glob("cache/models/.making-*") if path.stat().st_mtime >= began]
        return "making the model" if making else "starting"
    if log is None or not log.exists() or log.stat().st_mtime < began:
        return "starting"  # before its first step a process rewrites the log
    if (work / "manifest.json").exists() or (work / ".manifest.json.partial").exists():
        return "publishing"
    if (work / "checkpoints" / f".partial-{process.pid}").exists():
        return "writing a checkpoint"
    if logged_steps(work) >= steps:
        return "saving"
    return "in a step"


# --- the uninterrupted run --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Whole:
    """The uninterrupted run: how long it took, and when it came where."""

    root: Path
    seconds: float
    at: dict[Place, float]

    def steps(self, stage: int) -> int:
        """The lines of a stage's log; a policy has its critic's warm-up besides the steps that are asked for."""
        return logged_steps(self.root / STAGES[stage])

    @property
    def start(self) -> float:
        """Seconds until the first step was done: importing, making and loading the model."""
        return self.seconds_at(Place(0, 1))

    def seconds_at(self, place: Place) -> float:
        """When the run had got so far: at a stage's step 0, when the stage before was published."""
        return max((s for known, s in self.at.items() if known <= place), default=0.0)


def run_whole(bench: Path, steps: Sequence[int]) -> Whole:
    """Run without a kill, and watch."""
    recipe = write_recipe(bench, "whole", steps, 0.0)
    root, at = bench / "runs" / "whole", {Place(0, 0): 0.0}
    process, seconds = live(bench, recipe, watch=lambda had: at.setdefault(reached(root), had))
    if process.returncode != 0:
        sys.exit(f"the uninterrupted run failed: {said(recipe, process.returncode)}")
    return Whole(root, seconds, at)


# --- the killed runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill -9."""

    kill: int
    run: int
    checkpoint_seconds: float
    alive_seconds: float
    stage: str
    step: int  # the steps in the stage's log
    moment: str
    repeated_steps: int
    lost_seconds: float  # it lived so much longer than the uninterrupted run needed for what it left behind


@dataclass(slots=True)
class Outcome:
    """One run that was killed until it was done."""

    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    last_seconds: float = 0.0  # of the start that was left to end

    @property
    def seconds(self) -> float:
        """All starts together."""
        return self.last_seconds + sum(kill.alive_seconds for kill in self.kills)


def run_killed(
    bench: Path, number: int, whole: Whole, steps: Sequence[int], first: int, most: int, seed: int
) -> Outcome:
    """Kill a run at up to ``most`` moments, let it end, and compare."""
    dice = random.Random(f"{seed} {number}")
    pause = CHECKPOINT_SECONDS[number % len(CHECKPOINT_SECONDS)]
    recipe = write_recipe(bench, f"killed-{number}", steps, pause)
    root = bench / "runs" / recipe.stem
    shutil.rmtree(bench / "cache", ignore_errors=True)  # the model is made anew, so that this is hit too
    # One start's time more than the run took: who goes on starts once more before he is where he was.
    longest = whole.seconds + whole.start
    outcome, kept = Outcome(), Place(0, 0)
    for goal in sorted(dice.uniform(0.0, longest) for _ in range(min(KILLS_A_RUN, most))):
        seconds = dice.uniform(0.0, whole.start) if dice.random() < EARLY else goal - whole.seconds_at(kept)
        if seconds <= 0:  # it was faster than the uninterrupted run, and is already past this moment
            continue
        began = time.time()
        process, had = live(bench, recipe, seconds, dice.uniform(0.0, 2 * TICK))
        if process.returncode != -signal.SIGKILL:  # it was done first
            if process.returncode != 0:
                outcome.differences.append(f"run {number} stopped by itself: {said(recipe, process.returncode)}")
            break
        before, kept = kept, reached(root)
        done = kept.stages == len(STAGES)
        logged = 0 if done else logged_steps(work_folder(root, STAGES[kept.stages]))
        at = "report" if done else moment(bench, root, kept, whole.steps(kept.stages), process, began)
        kill = Kill(
            kill=first + len(outcome.kills), run=number, checkpoint_seconds=pause, alive_seconds=round(had, 2),
            stage="all done" if done else STAGES[kept.stages], step=logged,
            moment=at,
            repeated_steps=0 if at == "starting" else max(0, logged - kept.step),  # of an earlier one's: counted there
            lost_seconds=round(max(0.0, had - (whole.seconds_at(kept) - whole.seconds_at(before))), 2),
        )  # fmt: skip
        outcome.kills.append(kill)
        print_kill(kill)
    last, outcome.last_seconds = live(bench, recipe)
    if last.returncode != 0:
        outcome.differences.append(f"run {number} could not go on: {said(recipe, last.returncode)}")
    else:
        outcome.differences += [f"run {number}: {text}" for text in differences(whole.root, root)]
    return outcome


# --- are they the same? -----------------------------------------------------------------------------------------------


def without_times(path: Path) -> object:
    """What must be equal in a file."""
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
    if path.name == "manifest.json":
        manifest = json.loads(path.read_text())
        manifest["notes"] = [note for note in manifest["notes"] if not note.startswith("resumed after step")]
        return {k: v for k, v in manifest.items() if k not in UNEQUAL}
    return path.read_bytes()


def files_of(root: Path) -> set[str]:
    """Every file, folder and link of a run."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """Say what differs: files that are missing or were left behind, links, and contents of artifacts."""
    expected, found = files_of(whole), files_of(killed)
    yield from (f"{name} is missing" for name in sorted(expected - found))
    yield from (f"{name} was left behind" for name in sorted(found - expected))
    for name in sorted(expected & found):
        a, b = whole / name, killed / name
        if a.is_symlink():
            if os.readlink(a) != os.readlink(b):
                yield f"{name} points elsewhere"
        elif name.startswith("artifacts/") and a.is_file() and without_times(a) != without_times(b):
            yield f"{name} differs"
    for name in STAGES:
        if not (killed / name / "adapter_model.safetensors").is_file():
            yield f"{name} has no weights"


# --- the report -------------------------------------------------------------------------------------------------------


def print_head() -> None:
    print(f"{'kill':>4}{'run':>5}{'alive s':>9}  {'stage':10}{'step':>5}  {'moment':22}{'repeated':>9}{'lost s':>8}")


def print_kill(kill: Kill) -> None:
    print(
        f"{kill.kill:4}{kill.run:5}{kill.alive_seconds:9.2f}  {kill.stage:10}{kill.step:5}  {kill.moment:22}"
        f"{kill.repeated_steps:9}{kill.lost_seconds:8.2f}",
        flush=True,
    )


def summary(whole: Whole, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All kills in one line for the record."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    killed_seconds = sum(outcome.seconds for outcome in outcomes)
    run = json.loads((whole.root / "run.json").read_text())
    kept = ("cpu", "num_cores", "cpu_bf16", "versions")
    return {
        "row": "summary",
        "kills": len(kills),
        "runs": len(outcomes),
        "equal": not any(outcome.differences for outcome in outcomes),
        "differences": [text for outcome in outcomes for text in outcome.differences],
        "repeated_steps": sum(kill.repeated_steps for kill in kills),
        "stages": dict(Counter(kill.stage for kill in kills)),
        "moments": dict(Counter(kill.moment for kill in kills)),
        "whole_seconds": round(whole.seconds, 1),
        "start_seconds": round(whole.start, 1),
        "cost_seconds": round((killed_seconds - len(outcomes) * whole.seconds) / len(kills), 1),  # of a kill
        "revision": run["revision"],
        "machine": {"num_threads": 1, **{k: run["hardware"][k] for k in kept}},
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50, help="in all, over several runs (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument(
        "--steps", type=int, nargs=3, default=[120, 80, 24], metavar=("SFT", "REWARD", "POLICY"),
        help="steps of each stage, POLICY for both of its kinds (120 80 24)",
    )  # fmt: skip
    given = parser.parse_args()
    if given.kills < 1 or min(given.steps) < 2:
        parser.error("at least one kill, and two steps a stage")
    return given


def main() -> int:
    """Measure, print, record; return the exit code."""
    given = read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and its files removed
    outcomes: list[Outcome] = []
    bench = Path(tempfile.mkdtemp(prefix="trimtab-resume-"))
    try:
        write_data(bench / "data")
        whole = run_whole(bench, given.steps)
        print(
            f"the uninterrupted run took {whole.seconds:.1f} s of processor time; from here on it is killed", flush=True
        )
        print_head()
        count = 0
        while count < given.kills:
            number = len(outcomes)
            outcomes.append(run_killed(bench, number, whole, given.steps, count + 1, given.kills - count, given.seed))
            count += len(outcomes[-1].kills)
            for text in outcomes[-1].differences:
                print(f"DIFFERENT: {text}", flush=True)
            if outcomes[-1].differences:
                break
            shutil.rmtree(bench / "runs" / f"killed-{number}")
        result = summary(whole, outcomes)
    finally:
        if not any(outcome.differences for outcome in outcomes):
            shutil.rmtree(bench)
    about = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "seed": given.seed, "steps": given.steps}
    rows = [{"row": "kill", **asdict(kill)} for outcome in outcomes for kill in outcome.kills]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**about, **row}) + "\n" for row in [*rows, result])
    print(f"recorded in {RESULTS}")
    verdict = (
        "every artifact ended with the bits of the uninterrupted run"
        if result["equal"]
        else f"{len(result['differences'])} differences from the uninterrupted run (see {bench})"
    )
    print(
        f"{result['kills']} kills in {result['runs']} runs: {verdict}. {result['repeated_steps']} steps were done "
        f"again. A kill cost {result['cost_seconds']:.1f} s of processor time on average; the uninterrupted run needed "
        f"{result['start_seconds']:.1f} s to come to its first step."
    )
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
