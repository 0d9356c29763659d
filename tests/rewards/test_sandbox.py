"""Code against unit tests: right and wrong answers, hostile ones and what they did not do to the host, and real data.

A hostile answer reports what it managed, so that "it was stopped" is a passed test of its own; and the same code run
bare must manage it, or the attack would prove nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import RewardError
from trimtab.registry import RULES
from trimtab.rewards._sandbox_wire import RAISED, decode, encode
from trimtab.rewards.rules.unit_tests import code_in, unit_tests
from trimtab.rewards.sandbox import Limits, Outcome, run_tests

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox for code needs Linux")

PATIENT = Limits(seconds=60.0)
SQUARE = "def solve(x):\n    return x * x\n"
SQUARE_TESTS = ("assert solve(2) == 4", "assert solve(3) == 9")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After every test: no process of the sandbox's, and no folder of its own, is left."""
    before = set(Path(tempfile.gettempdir()).glob("trimtab-sandbox-*"))
    children = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) == children
    assert orphans() == []
    assert set(Path(tempfile.gettempdir()).glob("trimtab-sandbox-*")) <= before


def orphans() -> list[psutil.Process]:
    """Processes of a sandbox that nobody waits for; those of sessions beside this one have somebody."""

    def of_a_sandbox(process: psutil.Process) -> bool:
        try:
            return any("_sandbox_child" in word for word in process.cmdline())
        except psutil.Error:
            return False

    return [
        process
        for process in psutil.process_iter()
        if of_a_sandbox(process) and not any(p.pid != 1 and not of_a_sandbox(p) for p in process.parents())
    ]


def run(code: str, *tests: str, **options: Any) -> Outcome:
    return run_tests(dedent(code), tests, **options)


def passes(code: str, *tests: str, **options: Any) -> bool:
    return all(run(code, *tests, **options).passed)


# ordinary answers


def test_each_test_is_decided_by_itself() -> None:
    outcome = run(SQUARE, "assert solve(2) == 4", "assert solve(2) == 5", "assert solve(-3) == 9")
    assert outcome.passed == (True, False, True)
    assert not outcome.late


def test_stopping_early_leaves_the_rest_unpassed() -> None:
    outcome = run(SQUARE, "assert solve(2) == 5", "assert solve(2) == 4", stop_early=True)
    assert outcome.passed == (False, False)


@pytest.mark.parametrize(
    "code",
    ["", "def solve(x): return x *", "def other(x): return x", "import numpy", "1 / 0", "def solve(): pass", "\x00"],
)
def test_answers_that_do_not_work_are_wrong(code: str) -> None:
    assert run(code, *SQUARE_TESTS).passed == (False, False)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): return [x, (x, {x}), {'k': None, 2: x / 3}]",
         "assert f(1) == [1, (1, {1}), {'k': None, 2: 1 / 3}]"),
        ("import math\ndef f(n): return math.factorial(n)", "import math\nassert f(2000) == math.factorial(2000)"),
        ("def f(): return float('nan'), float('-inf'), -0.0, 1e-320", "assert str(f()) == '(nan, -inf, -0.0, 1e-320)'"),
        ("def f(x): return x + b'\\xff', 1j, '\\ud800'", "assert f(b'a') == (b'a\\xff', 1j, '\\ud800')"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(xs): return sorted(xs)", "assert f(x for x in (3, 1)) == [1, 3]"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: x + 1, 1) == 3"),
        ("import re\ndef f(s): return re.match('a+', s)", "assert f('aab').group() == 'aa' and not f('b')"),
        ("def f(x): return x", "import math\nassert math.isclose(f(0.1) + f(0.2), 0.3)"),
        ("def f(x): return math.sqrt(x)\nimport math", "assert math.isclose(f(4), 2)"),  # imported by the answer only
        ("def sum(a, b): return a + b + 1", "assert sum(1, 2) == 4"),  # Python's own has the same name
        ("from collections import Counter\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from decimal import Decimal\ndef f(x): return x + 1",
         "from decimal import Decimal\nassert f(Decimal(1)) == 2"),
        ("class P:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return P(s.x + o.x)",
         "assert (P(1) + P(2)).x == 3 and isinstance(P(1), P)"),
        ("class P:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x",
         "assert P(1) == P(1) and P(1) != P(2)"),
        ("print('x' * 10)\nimport sys\nsys.stderr.write('y')\ndef f(): return 1", "assert f() == 1"),
        ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=lambda: out.append(1))\n"
         "    t.start()\n    t.join()\n    return out", "assert f() == [1]"),
        ("import tempfile\ndef f():\n    with tempfile.TemporaryFile() as t:\n        return t.write(b'abc')",
         "assert f() in (3, None)"),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)", "assert f(500) > 0"),
        ("class E(ValueError): pass\ndef f(): raise E('no')",
         "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'\nelse:\n    assert False"),
    ],
)  # fmt: skip
def test_values_of_all_kinds_cross(code: str, test: str) -> None:
    assert passes(code, test) or "tempfile" in code


def test_a_setup_builds_on_the_answers_classes_and_is_not_seen_by_it() -> None:
    code = """
        class Node:
            def __init__(self, value): self.value, self.left = value, None
        def depth(node): return 0 if node is None else 1 + depth(node.left)
        def known(): return 'secret_of_the_setup' in globals()
    """
    setup = "secret_of_the_setup = 1\nroot = Node(1)\nroot.left = Node(2)"
    assert passes(code, "assert depth(root) == 2", "assert known() is False", setup=setup)


def test_a_list_that_a_test_hands_over_is_a_copy() -> None:
    assert passes("def f(xs): xs.append(1)", "xs = []\nf(xs)\nassert xs == []")


def test_answers_are_the_same_in_every_run() -> None:
    words = "assert f() == " + repr(run_for_text())
    assert passes("def f(): return ' '.join({'a', 'b', 'c', 'd', 'e'})", words)


def run_for_text() -> str:
    """The order of a set of words under the hash seed that the sandbox's interpreters have."""
    code = "print(' '.join({'a', 'b', 'c', 'd', 'e'}), end='')"
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True
    ).stdout


# what is the test's fault, or the sandbox's, is an error and never a low score


@pytest.mark.parametrize(
    ("test", "setup", "said"),
    [
        ("assert solve(", "", "the test cannot be read: SyntaxError"),
        ("solve(2)", "", "asserts nothing"),
        ("assert solve(object()) == 1", "", "hands over what cannot leave it, object"),
        ("assert solve(2) == 4", "import numpy", "the setup imports 'numpy'; only the standard library"),
        ("assert solve(2) == 4", "1 / 0", "its setup raises ZeroDivisionError"),
    ],
)
def test_a_broken_test_is_an_error(test: str, setup: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        run(SQUARE, test, setup=setup)


def test_an_answer_cannot_make_a_test_look_broken() -> None:
    code = "class C:\n    def __getitem__(s, k): return s\n    def __getattr__(s, n): return s\n"
    assert run(code + "def solve(x): return C()", "assert solve(1).join(object) == 1").passed == (False,)
    assert run(code + "def solve(x): return C()", "assert solve(1)[object()] == 1").passed == (False,)


def test_limits_that_cannot_work_are_an_error() -> None:
    with pytest.raises(RewardError, match="at least 64 MiB"):
        run(SQUARE, *SQUARE_TESTS, limits=Limits(memory_mib=8))
    with pytest.raises(RewardError, match="more than 0 seconds"):
        run(SQUARE, *SQUARE_TESTS, limits=Limits(seconds=float("nan")))


# fake passes

EQUAL_TO_ALL = "def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __hash__(s): return 0\n"
LINK = """
import os, json, struct, stat
def descriptors():
    for n in range(64):
        try:
            mode = os.fstat(n).st_mode
        except OSError:
            continue
        if stat.S_ISFIFO(mode):
            yield n
def forge(message, raw=None):
    body = json.dumps(message).encode() if raw is None else raw
    for n in descriptors():
        try:
            os.write(n, struct.pack('<I', len(body)) + body)
        except OSError:
            pass
"""
FAKES = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "os._exit when called": "import os\ndef solve(x): os._exit(0)",
    "exit when called": "import sys\ndef solve(x): sys.exit(0)",
    "keyboard interrupt": "def solve(x): raise KeyboardInterrupt",
    "object equal to all": f"class A:\n    {EQUAL_TO_ALL}def solve(x): return A()",
    "int equal to all": f"class A(int):\n    {EQUAL_TO_ALL}def solve(x): return A(5)",
    "float equal to all": f"class A(float):\n    {EQUAL_TO_ALL}def solve(x): return A(5)",
    "list of equal to all": f"class A:\n    {EQUAL_TO_ALL}def solve(x): return [A()]",
    "metaclass equal to all": "class M(type):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
    "class A(metaclass=M): pass\ndef solve(x): return A",
    "numpy-like": "class A:\n    def __eq__(s, o): return s\n"
    "    def __bool__(s): return True\ndef solve(x): return A()",
    "no AssertionError": "import builtins\nbuiltins.AssertionError = KeyError\ndef solve(x): return 5",
    "success markers": "import os, sys\nfor m in ('r1', '1', '{\"passed\": true, \"late\": false}\\n', 'OK'):\n"
    "    print(m)\n    for n in range(64):\n        try:\n            os.write(n, m.encode())\n"
    "        except OSError:\n            pass\ndef solve(x): return 5",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef solve(x): return 5",
    "trace function": "import sys\ndef t(f, e, a):\n    f.f_locals.update(result=4)\n    return t\nsys.settrace(t)\n"
    "def solve(x): return 5",
    "patched judge": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('passes', 'run_judge', 'decode'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\ndef solve(x): return 5",
    "patched json": "import json, operator\njson.loads = lambda *a, **k: 4\noperator.eq = lambda a, b: True\n"
    "def solve(x): return 5",
    "search of memory": "import gc, sys\ndef solve(x):\n    for o in gc.get_objects():\n        for s in ([o] if "
    "isinstance(o, str) else list(o.values()) if type(o) is dict else o if type(o) in (list, tuple) else []):\n"
    "            if isinstance(s, str) and f'solve({x}) == ' in s and 'isinstance' not in s:\n"
    "                return int(s.rsplit('==', 1)[1])",
    "search of frames": "import sys, inspect\ndef solve(x):\n    f = sys._getframe()\n    while f:\n"
    "        for v in f.f_locals.values():\n"
    "            if isinstance(v, str) and 'assert' in v and 'getframe' not in v:\n"
    "                return int(v.rsplit('==', 1)[1])\n        f = f.f_back",
    "standard input": "import sys, os\nraw = sys.stdin.read() + os.read(0, 9999).decode()\n"
    "def solve(x): return int(raw.split(f'solve({x}) == ')[1][0])",
    "forged truth": LINK + "forge(['value', True])\ndef solve(x): return 5",
    "forged nonsense": LINK + "forge(None, b'[' * 100000)\ndef solve(x): return 4",
    "forged length": LINK + "for n in descriptors():\n    try: os.write(n, b'\\xff' * 4)\n    except OSError: pass\n"
    "def solve(x): return 4",
    "forged import": LINK + "def solve(x): forge(['value', ['made', 'os.system', 'true']])",
    "forged reference": LINK + "def solve(x): forge(['value', ['yours', -1]])",
    "forged call": LINK + "def solve(x): forge(['ask', 'call', [['yours', 0], 1], {}])",
    "forged names": LINK + "forge(['value', None])\nforge(['value', ['dict', ['int', 0]]])\ndef solve(x): return 5",
    "deep value": "def solve(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v",
    "stop iteration": "def solve(x): raise StopIteration",
}  # fmt: skip


@pytest.mark.parametrize("name", FAKES)
def test_no_fake_passes(name: str) -> None:
    assert run(FAKES[name], *SQUARE_TESTS).passed == (False, False)


def test_a_search_of_memory_finds_the_answer_and_not_the_test() -> None:
    code = """
        import gc, sys
        def found(start):
            word, seen, todo = start + "_in_memory", {}, [gc.get_objects(), sys._getframe()]
            while todo:
                o = todo.pop()
                if isinstance(o, str) and o is not word and word in o:
                    return True
                if id(o) not in seen:
                    seen[id(o)] = o
                    todo += gc.get_referents(o)
            return False
        # of_the_answer_in_memory
    """
    setup = "of_the_setup_in_memory = 1"
    tests = ("assert found('of_the_answer')", "assert not found('of_the_setup')", "assert not found('of_the_test')")
    assert run(code, *(f"{test}  # of_the_test_in_memory" for test in tests), setup=setup).passed == (True, True, True)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): raise StopIteration", "assert all(map(lambda p: f(p[0]) == p[1], [(1, 2)]))"),
        ("class A:\n    def __sub__(s, o): return 0\n    __rsub__ = __sub__\ndef f(x): return A()",
         "assert abs(f(1) - 5) == 0"),
        ("class A:\n    def __contains__(s, o): return True\n"
         "    def __iter__(s): return iter(())\ndef f(x): return A()",
         "assert 5 in f(1)"),
        ("class A:\n    def __lt__(s, o): return True\n    __gt__ = __le__ = __ge__ = __lt__\ndef f(x): return A()",
         "assert f(1) < 5 or f(1) > 5"),
        ("def set(x): return 1\ndef f(x): return [x]", "assert set(f(1)) == set([2])"),
        ("def abs(x): return 0\ndef f(x): return 1", "assert abs(f(1) - 5) < 1e-6"),
        ("def isinstance(*a): return True\ndef f(x): return 1", "assert isinstance(f(1), str)"),
        ("class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 1", "assert math.isclose(f(1), 5)"),
        ("def eq(a, b): return True\ndef f(x): return 1", "assert eq(f(1), 5)"),  # the setup has one of its own
        ("import os\ndef f(x): os._exit(1)", "assert raises(f, 1)"),  # an end is no exception
    ],
)  # fmt: skip
def test_operators_and_names_are_the_tests_own(code: str, test: str) -> None:
    setup = """
def eq(a, b):
    return a == b
def raises(f, *arguments):
    try:
        f(*arguments)
    except Exception:
        return True
"""
    assert run(code, test, setup=setup).passed == (False,)


# attacks on the host: each says "done" or names the error that stopped it

CALL = """
import ctypes, errno, os
def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), 'stopped')
"""
HARMLESS_BARE = {  # run without the sandbox, all of these say "done"
    "write a file": "open('{folder}/new', 'w').write('x')",
    "change a file": "open('{folder}/secret', 'a').write('x')",
    "read a secret": "assert 'hidden' in open('{folder}/secret').read()",
    "list a folder": "import os; assert os.listdir('{folder}')",
    "read a secret at home": "import os; assert 'hidden' in open(os.path.expanduser('~/secret')).read()",
    "read the users": "open('/etc/passwd').read()",
    "make files unreadable": "import os; os.chmod('{folder}/secret', 0)",
    "change times": "import os; os.utime('{folder}/secret', (1, 1))",
    "remove a file": "import os; os.remove('{folder}/victim')",
    "link a file": "import os; os.link('{folder}/secret', '{folder}/linked')",
    "make a folder": "import os; os.mkdir('{folder}/made')",
    "secret in the environment": "import os; assert os.environ['TRIMTAB_TEST_SECRET'] == 'hidden'",
    "environment of the parent": "import os; assert b'=' in open('/proc/self/environ', 'rb').read()",
    "list processes": "import os; assert os.listdir('/proc')",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), 2).close()",
    "connect to an abstract socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
    "connect to a socket file": "import socket; socket.socket(socket.AF_UNIX).connect('{folder}/socket')",
    "send a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
    "listen": "import socket; socket.create_server(('127.0.0.1', 0)).close()",
    "fork": "import os; p = os.fork(); p or os._exit(0); os.waitpid(p, 0)",
    "double fork and a new session": "import os\np = os.fork()\n"
    "p or (os.setsid(), os.fork(), os._exit(0))\nos.waitpid(p, 0)",
    "run a program": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "run a shell": "import os; assert os.system('touch {folder}/shell') == 0",
    "become a program": "import os; p = os.fork(); p or os.execv('/bin/true', ['true']); os.waitpid(p, 0)",
    "signal the parent": "import os; os.kill(os.getppid(), 0)",
    "signal the caller": "import os; os.kill({pid}, 0)",
    "signals by ownership": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "shared memory": CALL + "call({shmget}, 0, 4096, 0o1600)",
    "memory file": "import os; os.memfd_create('x')",
    "limits of the parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
}  # fmt: skip
OTHERS = {
    "more limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "change the interpreter": "import os; open(os.path.dirname(os.__file__) + '/evil.py', 'w')",
    "kill everybody": "import os; os.kill(-1, 9)",
    "kill process 1": "import os; os.kill(1, 9)",
    "kill the caller": "import os; os.kill({pid}, 9)",
    "trace the parent": CALL + "call({ptrace}, 16, os.getppid(), 0, 0)",
    "read the parent's memory": CALL + "call({process_vm_readv}, os.getppid(), 0, 0, 0, 0, 0)",
    "new namespaces": CALL + "call({unshare}, 0x10000000)",
    "mount": CALL + "call({mount}, b'none', b'/tmp', b'tmpfs', 0, 0)",
    "io_uring": CALL + "call(425, 1, ctypes.create_string_buffer(256))",
    "clone3": CALL + "call(435, ctypes.create_string_buffer(64), 64)",
    "too much memory": "x = bytearray(1 << 30)",
    "too large a file": "f = open('/tmp/large', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20)); f.flush()",
    "too many files": "import os\nfor _ in range(1000): os.dup(0)",
    "shared memory folder": "open('/dev/shm/trimtab-test', 'w')",
    "become root": "import os; os.setuid(0); open('/etc/shadow').read()",
}  # fmt: skip
NUMBERS = {
    "x86_64": {"shmget": 29, "ptrace": 101, "process_vm_readv": 310, "unshare": 272, "mount": 165},
    "aarch64": {"shmget": 194, "ptrace": 117, "process_vm_readv": 270, "unshare": 97, "mount": 40},
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Things that an attack wants: a secret, a victim, three listeners; none of them is touched."""
    monkeypatch.setenv("TRIMTAB_TEST_SECRET", "hidden")
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    monkeypatch.setenv("HOME", str(folder))
    (folder / "secret").write_text("hidden")
    (folder / "victim").write_text("alive")
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    abstract = f"trimtab-test-{os.getpid()}"
    listeners[1].bind("\0" + abstract)
    monkeypatch.chdir(folder)
    listeners[2].bind("socket")
    for listener in listeners[1:]:
        listener.listen()
    for listener in listeners:
        listener.setblocking(False)
    port = listeners[0].getsockname()[1]
    yield {
        "folder": folder, "port": port, "abstract": abstract, "pid": os.getpid(),
        "listeners": listeners, **NUMBERS[os.uname().machine],
    }  # fmt: skip
    for listener in listeners:
        listener.close()


def attack(body: str, host: dict[str, Any]) -> str:
    lines = "\n".join(f"        {line}" for line in fill(body, host).splitlines())
    failed = "    except BaseException as error:\n        return type(error).__name__\n"
    return f"def attack():\n    try:\n{lines}\n{failed}    return 'done'\n"


def fill(body: str, host: dict[str, Any]) -> str:
    for name, value in host.items():
        body = body.replace("{" + name + "}", str(value))
    return body


def touched(host: dict[str, Any]) -> list[str]:
    """What an attack has done to the host; empty when nothing."""
    folder, found = host["folder"], []
    names = sorted(path.name for path in folder.iterdir())
    if names != ["secret", "socket", "victim"]:
        found.append(f"files: {names}")
    if (folder / "secret").read_text() != "hidden" or (folder / "secret").stat().st_mode & 0o777 == 0:
        found.append("the secret was changed")
    if (folder / "secret").stat().st_mtime < 1e9:
        found.append("times were changed")
    for listener in host["listeners"]:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            continue
        found.append("a connection")
    return found


STOPPED = ("PermissionError", "FileNotFoundError", "OSError", "ProcessLookupError", "MemoryError", "KeyError",
           "BlockingIOError", "AssertionError", "ValueError")  # fmt: skip


def attacks(bodies: dict[str, str], host: dict[str, Any]) -> str:
    """The attacks as functions attack0, attack1, ..., each of which tells how it went."""
    return "\n".join(attack(body, host).replace("attack", f"attack{n}", 1) for n, body in enumerate(bodies.values()))


def test_attacks_are_stopped(host: dict[str, Any]) -> None:
    bodies = {**HARMLESS_BARE, **OTHERS}
    tests = [f"assert attack{n}() in {STOPPED}" for n in range(len(bodies))]
    outcome = run_tests(attacks(bodies, host), tests, limits=PATIENT)
    assert [name for name, stopped in zip(bodies, outcome.passed, strict=True) if not stopped] == []
    assert touched(host) == []
    assert not Path("/dev/shm/trimtab-test").exists()


@pytest.mark.parametrize("at", range(0, len(HARMLESS_BARE), 8))
def test_the_same_attacks_succeed_without_a_sandbox(at: int, host: dict[str, Any]) -> None:
    names = list(HARMLESS_BARE)[at : at + 8]
    code = attacks({name: HARMLESS_BARE[name] for name in names}, host)
    code += "".join(f"\nprint(attack{n}())" for n in range(len(names)))
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert dict(zip(names, bare.stdout.splitlines(), strict=True)) == dict.fromkeys(names, "done")


# using things up

SLOW = Limits(seconds=1.0)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import signal\nfor n in (1, 2, 3, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nsignal.pause()",
        "def solve(x):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
        "import threading\nfor _ in range(3): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
        "def solve(x):\n    while True: pass",
        "import sys\nwhile True: sys.stdout.write('x' * 100000)",
        "def solve(x): return (n for n in iter(int, 1))",
        LINK + "def solve(x):\n    while True: forge(['ask', 'call', [['yours', 0]], {}])",
    ],
)
def test_endless_answers_end_in_time(code: str) -> None:
    began = time.monotonic()
    outcome = run(code, "assert list(solve(2)) == 4", "assert solve(3) == 9", limits=SLOW)
    assert outcome.passed == (False, False)
    assert outcome.late
    assert time.monotonic() - began < 4.0 + 30.0  # the rest is starting processes on a busy machine


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: break",
        "import threading\nt = lambda: threading.Event().wait()\nwhile True: threading.Thread(target=t).start()",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 'a'\nwhile True: x += x",
        "import os\nn = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 16))\n    n += 1",
        "def solve(x): return 'x' * (1 << 26)",
        "def solve(x): return list(range(300_000))",
        "import sys\nsys.setrecursionlimit(10**9)\ndef solve(x): return solve(x)",
        "import ctypes\ndef solve(x): return ctypes.string_at(1)",
    ],
)
def test_greedy_answers_get_nothing(code: str) -> None:
    before = psutil.Process().memory_info().rss
    assert run(code, *SQUARE_TESTS, limits=Limits(seconds=4.0)).passed == (False, False)
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_what_is_written_is_bounded_and_gone() -> None:
    code = """
        def solve():
            written = 0
            try:
                for n in range(100):
                    with open(f'/tmp/file{n}', 'wb', buffering=0) as file:
                        for _ in range(8):
                            written += file.write(bytes(1 << 17))
            except OSError:
                pass
            return written >> 20
    """
    assert passes(code, "assert 0 <= solve() <= 16", "assert 0 <= solve() <= 16")
    assert not list(Path("/tmp").glob("file0"))


def test_threads_of_the_caller_share_nothing() -> None:
    results: dict[int, bool] = {}

    def one(n: int) -> None:
        results[n] = passes(f"def f(): return {n}", f"assert f() == {n}") and not passes(
            "def f(): return -1", f"assert f() == {n}"
        )

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_the_sandbox_dies_with_its_caller() -> None:
    code = "from trimtab.rewards.sandbox import run_tests; run_tests('while True: pass', ['assert 1'])"
    caller = subprocess.Popen([sys.executable, "-c", code])
    seen: list[psutil.Process] = []
    until = time.monotonic() + 60
    while len(seen) < 4 and time.monotonic() < until:  # launcher, supervisor, answer, judge
        seen = psutil.Process(caller.pid).children(recursive=True)
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    assert len(seen) == 4
    assert psutil.wait_procs(seen, timeout=30)[1] == []
    for folder in Path(tempfile.gettempdir()).glob(
        "trimtab-sandbox-*"
    ):  # a killed caller cannot remove it; it is empty
        if not list(folder.iterdir()):
            folder.rmdir()


# layers


def test_the_layers_that_are_on_are_named() -> None:
    layers = set(run(SQUARE, "assert solve(2) == 4").layers)
    assert {"rlimits", "no_new_privs", "seccomp"} <= layers
    assert layers & {"landlock", "private root"}


WITHOUT = """
import os, struct, sys
from trimtab.errors import RewardError
from trimtab.rewards import _sandbox_kernel as kernel, _sandbox_seccomp as seccomp
from trimtab.rewards.sandbox import Limits, run_tests
numbers = {{"unshare": (272, 97), "landlock": (444, 444), "seccomp": (157, 167)}}
column = os.uname().machine == "aarch64"
steps = [(seccomp.LOAD, 0, 0, seccomp.NUMBER)]
for name in {missing!r}:
    refuse = [(seccomp.RETURN, 0, 0, 0x00050000 | 1)]
    if name == "seccomp":  # prctl, when it asks for a filter
        refuse = [(seccomp.LOAD, 0, 0, seccomp.FIRST), (seccomp.EQUAL, 0, 1, 22), *refuse]
        refuse.append((seccomp.RETURN, 0, 0, seccomp.ALLOW))
    steps += [(seccomp.EQUAL, 0, len(refuse), numbers[name][column]), *refuse]
steps.append((seccomp.RETURN, 0, 0, seccomp.ALLOW))
kernel.no_new_privs()
seccomp.apply_seccomp(b"".join(struct.pack("HBBI", *step) for step in steps))
try:
    outcome = run_tests({code!r}, {tests!r}, weaker={weaker!r}, limits=Limits(seconds=60.0))
    print(all(outcome.passed) or [n for n, p in enumerate(outcome.passed) if not p], *outcome.layers, sep=",", end="")
except RewardError as error:
    print(error, end="")
"""


def run_without(*missing: str, code: str = SQUARE, tests: tuple[str, ...] = SQUARE_TESTS, weaker: bool = False) -> str:
    """Run in a process whose kernel refuses what is missing, as a container or an old system does."""
    script = WITHOUT.format(missing=missing, code=code, tests=tests, weaker=weaker)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_namespaces_landlock_is_enough(host: dict[str, Any]) -> None:
    assert run_without("unshare") == "True,rlimits,no_new_privs,landlock,seccomp"
    bodies = {**HARMLESS_BARE, **OTHERS}
    tests = tuple(f"assert attack{n}() in {STOPPED}" for n in range(len(bodies)))
    assert run_without("unshare", code=attacks(bodies, host), tests=tests)[:4] == "True"
    assert touched(host) == []


def test_without_landlock_a_private_root_is_enough(host: dict[str, Any]) -> None:
    if "private root" not in run_without("landlock"):
        pytest.skip("namespaces are not permitted here")
    bodies = {**HARMLESS_BARE, **OTHERS}
    tests = tuple(f"assert attack{n}() in {STOPPED}" for n in range(len(bodies)))
    assert run_without("landlock", code=attacks(bodies, host), tests=tests)[:4] == "True"
    assert touched(host) == []


@pytest.mark.parametrize("missing", [("seccomp",), ("unshare", "landlock")])
def test_without_what_is_required_nothing_runs_unless_that_is_accepted(missing: tuple[str, ...]) -> None:
    assert run_without(*missing).startswith("the sandbox for code cannot lock answers in here: it needs seccomp, and")
    said = run_without(*missing, weaker=True)
    assert said.startswith("True,rlimits")
    assert run_without(*missing, code="def solve(x): return x", weaker=True).startswith("[0, 1],")


def test_the_root_user_is_left() -> None:
    if os.geteuid() != 0:
        pytest.skip("not run as root")
    assert passes("import os\ndef f(): return os.getuid(), os.getgid()", "assert f() == (65534, 65534)")


@pytest.mark.parametrize("kept", ["-sys_admin", "-all,+chown", "-all,+setuid,+setgid"])
def test_a_root_with_few_rights_is_served_too(kept: str) -> None:
    """As in a container: root by name, without the right to mount, or to become another user."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("not run as root, or without setpriv")
    code = f"from trimtab.rewards.sandbox import run_tests; print(*run_tests({SQUARE!r}, {SQUARE_TESTS!r}).passed)"
    command = [setpriv, f"--bounding-set={kept}", "--inh-caps=-all", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


# how values cross

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**60, 2**9000) | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.booleans()),
    max_leaves=8,
)  # fmt: skip


def refuse(*_: Any) -> Any:
    raise AssertionError("no data")


@given(plain)
def test_data_come_back_as_they_were(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value, refuse))), refuse)
    assert back == value
    assert type(back) is type(value)


def test_subclasses_come_back_as_what_they_are_made_of() -> None:
    class Loud(int):
        def __index__(self) -> int:
            return 9

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    back = decode(encode(Loud(5), refuse), refuse)
    assert type(back) is int
    assert back == 5
    assert decode(encode(Decimal("1.50"), refuse), refuse) == Decimal("1.5")
    assert decode(encode(Fraction(1, 3), refuse), refuse) == Fraction(1, 3)


@pytest.mark.parametrize(
    "nonsense", [[], {}, ["no"], ["made"], ["made", "os.system", "x"], ["yours", "x"], ["set", ["list"]]]
)
def test_nonsense_is_refused(nonsense: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        decode(nonsense, lambda whose, number: number)


def test_an_answer_cannot_end_a_tests_loop() -> None:
    assert (
        not {"StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit"} & RAISED.keys()
    )


# the rule


def test_the_registry_finds_the_rule() -> None:
    assert RULES["unit_tests"].columns == ("text", "meta")
    assert RULES.item(RULES["unit_tests"]) == "text"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("See:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```Python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nprints\n```\n1\n```", "x = 1\n"),
        ("1. so\n   ```py\n   if x:\n       y\n   ```", "if x:\n    y\n"),
        ("cut off\n```python\nx = 1", "x = 1"),
        ("```python\n```", ""),
    ],
)
def test_the_code_is_in_the_last_fence(text: str, code: str) -> None:
    assert code_in(text) == code


def test_the_score_is_all_or_a_share() -> None:
    answer = "Here:\n```python\ndef f(x):\n    return abs(x)\n```"
    meta = {"tests": ["assert f(1) == 1", "assert f(-1) == -1", "assert f(0) == zero"], "setup": "zero = 0"}
    assert unit_tests(answer, meta) == 0.0
    assert unit_tests(answer, meta, score="share") == 2 / 3
    assert unit_tests(answer, {**meta, "tests": meta["tests"][::2]}) == 1.0


@pytest.mark.parametrize("meta", [{}, {"tests": []}, {"tests": "assert 1"}, {"tests": [1]}])
def test_an_answer_without_tests_is_an_error(meta: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"meta\.tests must be a list"):
        unit_tests("x = 1", meta)


def test_a_call_is_quick() -> None:
    """About 0.1 s of processor time on two slow cores; the bound leaves room for a machine without compiled files."""
    before = os.times()
    for _ in range(3):
        assert passes(SQUARE, *SQUARE_TESTS)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used / 3 < 1.0


def test_real_solutions_pass_their_tests(shared_data: Path) -> None:
    path = shared_data / "code_tests" / "mbpp_train.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"real code with tests is not here ({path})")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file][::27]
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        meta = {"tests": row["test_list"], "setup": "\n".join(row["test_imports"])}
        assert unit_tests(row["code"], meta) == 1.0, row["task_id"]
        assert unit_tests(other["code"], meta) == 0.0, row["task_id"]
