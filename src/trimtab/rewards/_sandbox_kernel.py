"""The kernel's other locks: limits, capabilities, namespaces with a root of their own, and Landlock. None needs root.

Everything here acts on the calling process and what it starts. It is called in the sandbox's own processes only.

Source: Linux man-pages (namespaces(7), pivot_root(2), landlock(7), capabilities(7), setrlimit(2)).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import suppress

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
SCRATCH = "/tmp"  # inside the private root
SCRATCH_BYTES, SCRATCH_FILES = 16 << 20, 1024
NOBODY = 65534

# numbers that are the same on every 64-bit machine whose table of calls is in _sandbox_seccomp
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, MOUNT_SETATTR = 444, 445, 446, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
NO_SUCH_CALL = 1 << 20
CAPSET = {"x86_64": 126, "aarch64": 91}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NEW_USER, NEW_MOUNT, NEW_OTHERS = 0x10000000, 0x00020000, 0x6C000000  # others: pid, net, ipc, uts
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_RECURSIVE, AT_FDCWD = 2, 0x8000, -100
READ_ONLY_NOSUID_NODEV = 1 | 2 | 4

LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def _call(function: str, *arguments: object) -> int:
    """Call into the C library and return its result, or minus the error number."""
    result = int(getattr(_libc, function)(*arguments))
    return -ctypes.get_errno() if result == -1 else result


def _syscall(number: int, *arguments: object) -> int:
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)]
    return _call("syscall", *longs)


def check(result: int, what: str) -> int:
    """Return a result that is no error, or raise OSError saying what failed."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Call prctl and return its result, or minus the error number."""
    longs = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    return _call("prctl", ctypes.c_int(option), *longs)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    if LINUX:
        check(prctl(PR_SET_PDEATHSIG, 9), "PR_SET_PDEATHSIG")


def no_new_privs() -> None:
    """Promise the kernel that this process will never gain rights, by whatever it starts."""
    check(prctl(PR_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")


def readable_paths() -> tuple[str, ...]:
    """Return what the interpreter needs of the file system: its standard library, and shared libraries."""
    own = [os.path.dirname(os.__file__), os.path.join(sys.base_exec_prefix, "lib")]
    dynamic = [path for path in sys.path if path.endswith("lib-dynload")]
    return tuple(path for path in dict.fromkeys((*own, *dynamic, *LIBRARIES)) if os.path.exists(path))


def limit(seconds: float, memory_mib: int) -> None:
    """Limit this process: address space, processor time, sizes of files, descriptors, threads; no core is dumped."""
    import resource  # not there on Windows, whose users are told so before

    cpu = int(seconds) + 1
    for kind, value in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, SCRATCH_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 256),  # counted over all of a user's processes where there is no user namespace
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def enter_namespaces() -> None:
    """Move to new user, mount, pid, network, IPC and UTS namespaces; the next child is process 1 of the pid namespace.

    Root with its capabilities needs no user namespace. Raises OSError, and nothing has changed, where the system does
    not permit it.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = NEW_MOUNT | NEW_OTHERS
    if uid == 0 and _call("unshare", flags) == 0:
        return
    check(_call("unshare", flags | NEW_USER), "unshare")
    with suppress(OSError):  # a user without a name in there, which is no reason to stop: only private roots need one
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter_private_root(folder: str) -> None:
    """Make a root of memory on a folder, with the interpreter's files in it to read, and leave the old one for good.

    What is written there is kept in memory, up to 16 MiB, and gone with the namespace. Raises OSError.
    """
    _mount(None, "/", MS_REC | MS_PRIVATE)
    options = f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=755"
    _mount("tmpfs", folder, MS_NOSUID | MS_NODEV, kind="tmpfs", options=options)
    for path in readable_paths():
        target = folder + path
        if os.path.exists(target):  # inside one that is there already
            continue
        if os.path.isdir(path):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "x").close()
        _mount(path, target, MS_BIND | MS_REC)
        attributes = struct.pack("=QQQQ", READ_ONLY_NOSUID_NODEV, 0, 0, 0)
        check(_syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, 32), "mount_setattr")
    os.makedirs(folder + SCRATCH, exist_ok=True)
    os.chmod(folder + SCRATCH, 0o1777)
    os.chdir(folder)
    check(_syscall(PIVOT_ROOT.get(os.uname().machine, NO_SUCH_CALL), b".", b"."), "pivot_root")
    check(_call("umount2", b".", MNT_DETACH), "umount2")  # the old root, which lay over the new one
    os.chdir(SCRATCH)


def _mount(source: str | None, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(_call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def leave_root_user() -> None:
    """Root becomes nobody, if nobody can read the interpreter's files; then every capability is dropped."""
    if os.geteuid() == 0:
        with suppress(OSError):  # a root that may not change its user, or has no other in its namespace
            os.setgroups([])
            os.seteuid(NOBODY)
            readable = os.access(os.__file__, os.R_OK, effective_ids=True)
            os.seteuid(0)
            if readable:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
    header, data = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    if os.uname().machine in CAPSET:  # elsewhere seccomp is missing too, and nothing is run unless that is accepted
        check(_syscall(CAPSET[os.uname().machine], header, data), "capset")


def landlock_version() -> int:
    """Return the version of Landlock's interface; 0 where the kernel has none, or has it switched off."""
    return max(0, _syscall(LANDLOCK_CREATE, None, 0, 1)) if LINUX else 0


def apply_landlock(*, scratch: bool) -> None:
    """Forbid the whole file system but reading the interpreter's files, and the scratch folder where there is one.

    Newer kernels also forbid TCP (version 4), and signals and abstract sockets to processes outside (6).
    """
    version = landlock_version()
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("=QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = check(_syscall(LANDLOCK_CREATE, attributes, size, 0), "landlock")
    read_file, read_folder = 1 << 2, 1 << 3
    rules = [(path, read_file | (read_folder if os.path.isdir(path) else 0)) for path in readable_paths()]
    for path, rights in [*rules, *([(SCRATCH, files & ~1)] if scratch else [])]:  # & ~1: nothing there is executed
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, at)
        check(_syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {path}")
        os.close(at)
    check(_syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)
