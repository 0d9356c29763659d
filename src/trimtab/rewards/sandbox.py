"""Run a model's code against unit tests in processes that can reach nothing.

**What it protects from.** The code of an answer runs in a process of its own, which

- sees no file but the interpreter's and the system's libraries, to read; where namespaces are permitted it may write
  up to 16 MiB to a scratch folder in memory, elsewhere nothing;
- makes no socket, starts no process and no program, signals, traces and changes no other process;
- has a bounded address space, processor time, wall-clock time, size of files, number of files and threads;
- has an empty environment, no output that anybody reads, and is gone, with all it started, before the call returns.

**What the score rests on.** The tests are in another process, the judge. It asks the answer's process to call a
function with arguments, gets plain data back, and compares them itself. So the answer's code cannot find the tests or
the expected values in memory, cannot overrule ``assert`` or ``==``, and has nothing to print or to exit with that
counts as a pass. Within one interpreter none of this could be kept: code can read and rewrite everything that shares
its process. Arguments and results are copies, so a list that a test changes through the answer stays as it was.

**What it cannot prevent.** An answer sees the arguments and may have learnt what to return for them; a test that hands
the expected value over, asks only for truth, or takes its helpers from the answer can be satisfied without solving
anything. Answers may keep a core busy until their time is up. And everything rests on the kernel: a bug in it is a way
out, and timing tells a little about the machine. This is a fence around the careless code and the reward hacking of a
model in training. For code that somebody writes in order to break out, run the training itself in a container or,
better, a virtual machine that holds nothing of value.

**Layers** (Linux; none needs root). Required: ``rlimits``, ``no_new_privs``, ``seccomp`` (an allow-list; x86-64 and
aarch64), and one of ``landlock`` (Linux 5.13) and ``private root`` (a mount namespace whose root holds only the
libraries). Used where permitted: ``namespaces`` (processes, network, IPC). Without the required ones nothing is run,
unless weaker isolation is accepted; then what is missing protects from nothing.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import RewardError

STARTUP_SECONDS = 60.0  # for a busy machine to start an interpreter and three processes
LEAST_MEMORY_MIB = 64
# trimtab's own package files are heavy to import; the sandbox's modules are all that is needed
BOOTSTRAP = """
import sys, types
for name, path in zip(("trimtab", "trimtab.rewards"), sys.argv[1:]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from trimtab.rewards._sandbox_child import main
main()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an answer may use: seconds for all of its tests together, and MiB of address space a process.

    The seconds are the processor's, so that a busy machine does not change a score; by the clock there are four times
    as many, which only answers that wait use up.
    """

    seconds: float = 10.0
    memory_mib: int = 256

    @property
    def wall_seconds(self) -> float:
        """The time by the clock after which an answer is ended."""
        return 4 * self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an answer did: one entry a test, whether its time ran out, which layers were on, and how long it took.

    Tests that were not reached, after a time-out or (``stop_early``) a failure, count as not passed.
    """

    passed: tuple[bool, ...]
    late: bool
    layers: tuple[str, ...]
    seconds: float


def run_tests(
    code: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    limits: Limits = Limits(),
    stop_early: bool = False,
    weaker: bool = False,
) -> Outcome:
    """Run assert statements on what an answer's code defines, each in fresh processes.

    ``setup`` runs before each test, with the tests and not with the answer, which never sees it. Only data can be
    handed to the answer: numbers, text, bytes, None, lists, tuples, sets, dictionaries, ranges, dates, Decimal,
    Fraction, deque, Counter, array, what the answer itself made, iterators of these, and functions. Either side has
    the standard library and nothing else. ``weaker`` accepts that required layers are missing.

    Raises RewardError where the layers are missing, for a test that cannot be run as it is written, and when the
    sandbox itself fails. A wrong answer, an error in it and a time-out are an outcome.
    """
    if sys.platform == "win32":
        raise RewardError("the sandbox for code needs Linux: run the training in WSL, a container or a virtual machine")
    if not limits.seconds > 0 or limits.memory_mib < LEAST_MEMORY_MIB:
        raise RewardError(f"the sandbox for code needs more than 0 seconds and at least {LEAST_MEMORY_MIB} MiB")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-sandbox-") as folder:
        job = {
            "code": code, "tests": len(tests), "seconds": limits.seconds, "wall": limits.wall_seconds,
            "memory": limits.memory_mib, "all": not stop_early, "weaker": weaker, "folder": folder,
        }  # fmt: skip
        frames = [_frame(job), *(_frame({"setup": setup, "test": test}) for test in tests)]
        layers, *lines = _lines(b"".join(frames), limits.wall_seconds)
    if not lines and tests:
        raise RewardError(
            "the sandbox for code cannot lock answers in here: it needs seccomp, and Landlock or namespaces, and has "
            f"only {', '.join(layers['layers'])}; accept weaker isolation in a container or virtual machine of its own"
        )
    for line, test in zip(lines, tests, strict=False):
        if "broken" in line:
            raise RewardError(f"the sandbox for code could not run the test {test!r}: {line['broken']}")
    passed = [bool(line["passed"]) for line in lines]
    return Outcome(
        passed=tuple(passed + [False] * (len(tests) - len(passed))),
        late=any(line["late"] for line in lines),
        layers=tuple(layers["layers"]),
        seconds=time.monotonic() - began,
    )


def _frame(content: dict[str, object]) -> bytes:
    body = json.dumps(content).encode()
    return struct.pack("<I", len(body)) + body


def _launch() -> subprocess.Popen[bytes]:
    package = Path(__file__).parents[1]
    flags = ["-s", "-S", "-P", *(["-B"] if sys.dont_write_bytecode else [])]
    return subprocess.Popen(
        [sys.executable, *flags, "-c", BOOTSTRAP, str(package), str(package / "rewards")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},  # sets in the same order in every run; nothing of the user's
        start_new_session=True,  # the user's Ctrl-C is for this process, which ends the others in order
    )


def _lines(frames: bytes, seconds: float) -> list[dict[str, Any]]:
    """Start the sandbox's processes, hand them the job, and return what they say; none is left afterwards."""
    try:
        process = _launch()
    except OSError as error:
        raise RewardError(f"the sandbox for code cannot start {sys.executable!r}: {error}") from error
    try:
        said, errors = process.communicate(frames, timeout=seconds + STARTUP_SECONDS)
    except subprocess.TimeoutExpired:
        raise RewardError(f"the sandbox for code did not answer within {seconds + STARTUP_SECONDS:.0f} s") from None
    finally:
        _end(process)
    lines = said.decode().splitlines()
    if process.returncode != 0 or not lines:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2][:500]
        raise RewardError(f"the sandbox for code failed (exit {process.returncode}): {last or 'no reason given'}")
    return [json.loads(line) for line in lines]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the launcher, which ends only after all others; make it end them when it has not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
