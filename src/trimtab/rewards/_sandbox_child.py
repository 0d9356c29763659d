"""The sandbox's own processes. Nothing here runs in the process that asks for a reward.

    launcher     leaves the host's namespaces, and waits
      supervisor   process 1 in there: locks the doors, then for each test starts two processes and ends all of them
        answer       runs the answer's code and does what the judge asks; it has never held a test
        judge        reads one test, runs it on what the answer hands out, says how it went

The supervisor reads the answer's code as text and no test. A judge reads its test from the pipe that the answer's
process has closed before it ran anything. So the tests, and the verdict, are where the answer's code is not.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import operator
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import Any, NoReturn

from trimtab.rewards import _sandbox_kernel as kernel
from trimtab.rewards import _sandbox_seccomp as seccomp
from trimtab.rewards._sandbox_wire import TWO, Gone, Link, Remote, Unsendable, read_exactly, write_all

READY, PASSED, FAILED, BROKEN, LATE = b"r", b"r1", b"r0", b"!", b"late"
POLL_SECONDS = 0.1


def main() -> NoReturn:
    """Run the job on standard input; write a line that names the layers, then a line a test, to standard output."""
    status = 1
    try:
        kernel.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 of a namespace hears nothing it has no handler for
        job = {**read_frame(), "nothing": os.open(os.devnull, os.O_RDWR)}
        layers = ["rlimits"]
        supervisor = leave_namespaces(layers)
        if supervisor:
            signal.signal(signal.SIGTERM, lambda *_: os.kill(supervisor, signal.SIGKILL))
            os._exit(1 if os.waitpid(supervisor, 0)[1] else 0)
        kernel.die_with_parent()
        lock(layers, job["folder"])
        say({"layers": layers})
        if job["weaker"] or enough(layers):
            supervise(job, layers)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


def leave_namespaces(layers: list[str]) -> int:
    """Start process 1 of new namespaces and return its number; 0 in it, and where they are not permitted."""
    if not kernel.LINUX:
        return 0
    try:
        kernel.enter_namespaces()
    except OSError:  # the other layers must do
        return 0
    layers.append("namespaces")
    return os.fork()


def enough(layers: list[str]) -> bool:
    """Tell whether the layers that the sandbox needs are there."""
    return {"rlimits", "no_new_privs", "seccomp"} <= {*layers} and bool({"landlock", "private root"} & {*layers})


def lock(layers: list[str], folder: str) -> None:
    """Put on what the supervisor, the judges and the answers have in common, and note it in ``layers``."""
    if not kernel.LINUX:
        return
    if "namespaces" in layers:
        try:
            kernel.enter_private_root(folder)
            layers.append("private root")
        except OSError:  # a system that gives user namespaces no rights: Landlock must do
            os.chdir("/")
    else:
        os.chdir("/")
    kernel.leave_root_user()
    kernel.die_with_parent()  # the kernel forgets it when the user changes
    kernel.no_new_privs()
    layers.append("no_new_privs")
    if kernel.landlock_version():
        kernel.apply_landlock(scratch="private root" in layers)
        layers.append("landlock")
    if seccomp.seccomp_is_there():
        layers.append("seccomp")  # put on by the answer and the judge themselves: the supervisor starts processes


def supervise(job: dict[str, Any], layers: list[str]) -> None:
    """Run the tests one after another, each with a fresh process of the answer, until the time is up."""
    deadline = time.monotonic() + job["wall"]
    for _ in range(job["tests"]):
        said = one_test(job, layers, deadline)
        began, mark, why = said.partition(BROKEN)
        if mark or began not in (READY, PASSED, FAILED, LATE):
            say({"broken": why.decode(errors="replace") or "a judge ended before its test began"})
            return
        passed = said == PASSED  # an end without a word is a failure: values that took too much memory, say
        say({"passed": passed, "late": said == LATE})
        if said == LATE or not (passed or job["all"]):
            return


def one_test(job: dict[str, Any], layers: list[str], deadline: float) -> bytes:
    """Start an answer and a judge that are joined by two pipes, return what the judge says, and leave no process."""
    to_answer, from_answer = os.pipe(), os.pipe()
    answer = fork(lambda: run_answer(job, layers, to_answer[0], from_answer[1]))
    verdict = os.pipe()  # not there when the answer's process began
    judge = fork(lambda: run_judge(job, layers, from_answer[0], to_answer[1], verdict[1]))
    for descriptor in (*to_answer, *from_answer, verdict[1]):
        os.close(descriptor)
    said = listen(verdict[0], deadline, job["seconds"], (answer, judge))
    os.close(verdict[0])
    end(answer, judge)
    return said


def fork(run: Callable[[], None]) -> int:
    """Start a process that does one thing and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
    finally:
        os._exit(1)


def listen(descriptor: int, deadline: float, seconds: float, running: tuple[int, int]) -> bytes:
    """Read what a judge says until it ends; ``LATE`` after the deadline, or so many seconds of the processor's time."""
    said = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or spent(running) > seconds:
            return LATE
        if not select.select([descriptor], [], [], min(left, POLL_SECONDS))[0]:
            continue
        part = os.read(descriptor, 4096)
        if not part:
            return said
        said += part


def spent(running: tuple[int, int]) -> float:
    """Return the processor time of all answers and judges so far, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    if kernel.LINUX:
        for pid in running:
            with suppress(OSError):  # it has ended, and is counted when it is waited for
                total += time.clock_gettime((~pid << 3) | 2)  # the kernel's number for a process's own clock
    return total


def end(answer: int, judge: int) -> None:
    """Kill both and whatever they started, and wait until they are gone."""
    if os.getpid() == 1:
        _kill(os.kill, -1)  # all of this namespace but its process 1
    else:
        _kill(os.killpg, answer)
        _kill(os.kill, answer)
        _kill(os.kill, judge)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill(how: Callable[[int, int], None], number: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended by itself
        how(number, signal.SIGKILL)


def lock_self(job: dict[str, Any], layers: list[str], keep: tuple[int, ...]) -> None:
    """Put on what the supervisor cannot wear, limits and the filter of system calls; keep no other descriptors."""
    for standard in (0, 1, 2):
        os.dup2(job["nothing"], standard)
    start = 3
    for kept in sorted(keep):
        os.closerange(start, kept)
        start = kept + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
    kernel.die_with_parent()
    kernel.limit(job["seconds"], job["memory"])
    if "seccomp" in layers:
        seccomp.apply_seccomp()


def run_answer(job: dict[str, Any], layers: list[str], read: int, write: int) -> None:
    """Be the answer: run its code when told to, then do what the judge asks. Ends with the judge."""
    space: dict[str, Any] = {"__name__": "__answer__"}

    def run() -> None:
        exec(compile(job["code"], "<answer>", "exec", dont_inherit=True), space)

    def names(wanted: list[str]) -> dict[str, Any]:
        return {name: space[name] for name in wanted if name in space}

    link = Link(read, write, {"run": run, "names": names, **OPERATIONS}, _callback)
    os.setpgid(0, 0)  # where there are no namespaces, the group is what is ended
    try:
        lock_self(job, layers, (read, write))
    except OSError as error:
        link.send(["broken", str(error)])
        return
    link.send(["ready"])
    while True:
        link.answer(link.receive())


def _callback(link: Link, number: int) -> Any:
    """Stand, for the answer, for a function that a test handed it."""

    def call(*arguments: Any, **options: Any) -> Any:
        return link.ask("call", call, *arguments, **options)

    vars(call)["_trimtab_number"] = number
    return call


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **options: function(*arguments, **options),
    **{kind.__name__: kind for kind in (bool, int, float, str)},
    **{function.__name__: function for function in (abs, getattr, setattr, isinstance, iter, len, next, repr)},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "index", "neg", "eq", *TWO)},
}


def run_judge(job: dict[str, Any], layers: list[str], read: int, write: int, verdict: int) -> None:
    """Be the judge of one test: take it from standard input, and say how it went."""
    try:
        frame = read_frame()
        lock_self(job, layers, (read, write, verdict))
        setup, test = parse(frame["setup"], "the setup"), parse(frame["test"], "the test")
        if not any(isinstance(node, ast.Assert) for node in ast.walk(test)):
            raise BrokenTestError("the test asserts nothing")
        link = Link(read, write, {"call": OPERATIONS["call"]}, Remote, callable)
        hello = link.receive()
        if hello != ["ready"]:
            raise BrokenTestError(f"an answer could not be locked in: {hello[-1]}")
        write_all(verdict, READY)
        write_all(verdict, b"1" if passes(link, setup, test) else b"0")
    except (BrokenTestError, Unsendable, OSError) as error:
        what = "the test hands over what cannot leave it, " if isinstance(error, Unsendable) else ""
        write_all(verdict, BROKEN + f"{what}{error}".encode(errors="replace")[:1000])


class BrokenTestError(Exception):
    """A test that cannot be run as it is written."""


def parse(source: str, what: str) -> ast.Module:
    """Parse a part of a test. Raises BrokenTestError, also for imports from outside the standard library."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenTestError(f"{what} cannot be read: {type(error).__name__}: {error}") from None
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] not in sys.stdlib_module_names:
                raise BrokenTestError(f"{what} imports {name!r}; only the standard library is there")
    return tree


def passes(link: Link, setup: ast.Module, test: ast.Module) -> bool:
    """Tell whether a test holds of the answer.

    Its names are, in this order: what the setup defines; Python's own; a module of the standard library, when it is
    used with a dot; what the answer defines. A test that uses no name of the answer's but has names of Python's own
    gets those from the answer where it defines them (``assert sum(10, 15) == 6`` asks for the answer's ``sum``).
    """
    own = vars(builtins).keys()
    space: dict[str, Any] = {"__name__": "__test__"}
    in_setup, in_test = loaded(setup), loaded(test)
    modules = {name for name in dotted(setup) | dotted(test) if name in sys.stdlib_module_names}
    for name in modules:
        with suppress(ImportError):  # tkinter and others are not on every machine
            space[name] = importlib.import_module(name)
    setup_code, test_code = (compile(tree, "<test>", "exec", dont_inherit=True) for tree in (setup, test))
    leans = in_setup - own - modules - defined(setup)  # on the answer
    if not leans:
        run_setup(setup_code, space)
    try:
        link.ask("run")
        answers = fetch(link, leans | (in_test - own - space.keys()))
        space.update(answers)
        if leans:
            exec(setup_code, space)
        if not any(name in in_test and space[name] is value for name, value in answers.items()):
            space.update(fetch(link, (in_test & own) - space.keys()))
        exec(test_code, space)
    except Unsendable:
        raise
    except BaseException:  # a test and an answer may raise anything; that is no pass, and no failure of ours
        return False
    return True


def run_setup(code: CodeType, space: dict[str, Any]) -> None:
    """Run a setup that asks the answer for nothing, so that whatever it raises is its own fault: BrokenTestError."""
    try:
        exec(code, space)
    except Exception as error:  # it may raise anything
        raise BrokenTestError(f"its setup raises {type(error).__name__}: {error}") from None


def fetch(link: Link, names: set[str]) -> dict[str, Any]:
    """Ask the answer for what it calls by these names; what it has not is not there."""
    found = link.ask("names", sorted(names))
    if not isinstance(found, dict) or not names >= found.keys():
        raise Gone("names that were not asked for")
    for value in found.values():
        if isinstance(value, Remote):
            vars(value)["_trimtab_named"] = True
    return found


def loaded(tree: ast.Module) -> set[str]:
    """Return the names that a tree reads and does not set."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {n.id for n in names if isinstance(n.ctx, ast.Load)} - {n.id for n in names if isinstance(n.ctx, ast.Store)}


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a tree sets, at any depth: as variables, arguments, functions, classes, imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def dotted(tree: ast.Module) -> set[str]:
    """Return the names among them that are used with a dot."""
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {value.id for value in values if isinstance(value, ast.Name)} & loaded(tree)


def say(line: dict[str, Any]) -> None:
    """Tell the process that asked."""
    write_all(1, json.dumps(line).encode() + b"\n")


def read_frame() -> dict[str, Any]:
    """Read one object from standard input and not a byte more: what follows is for others."""
    (size,) = struct.unpack("<I", read_exactly(0, 4))
    frame: dict[str, Any] = json.loads(read_exactly(0, size))
    return frame
