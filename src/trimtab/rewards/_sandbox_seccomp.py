"""The system calls that an answer may make: what computing needs, and nothing that reaches another process.

An allow-list, as a classic BPF program. Not on it are sockets, new processes and programs, signals to others, tracing,
mounts, namespaces, changes of owners, modes and times of files, System V memory, io_uring, bpf, keys, and whatever a
later kernel brings. A call that is not on it fails with EPERM; one made through another machine's table (32-bit calls
on a 64-bit kernel) kills the process.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; the numbers are the kernel's ABI and do not change.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from trimtab.rewards._sandbox_kernel import check, prctl

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (x86_64, aarch64); -1 where the machine has no such call
ALLOWED = {
    "access": (21, -1), "alarm": (37, -1), "brk": (12, 214), "chdir": (80, 49), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "close": (3, 57), "dup": (32, 23), "dup2": (33, -1),
    "dup3": (292, 24), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439),
    "fchdir": (81, 50), "fdatasync": (75, 83), "fstat": (5, 80), "fstatfs": (138, 44), "fsync": (74, 82),
    "ftruncate": (77, 46), "futex": (202, 98), "getcwd": (79, 17), "getdents": (78, -1), "getdents64": (217, 61),
    "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176), "getgroups": (115, 158),
    "getitimer": (36, 102), "getpgrp": (111, -1), "getpid": (39, 172), "getppid": (110, 173), "getrandom": (318, 278),
    "getrlimit": (97, 163), "getrusage": (98, 165), "gettid": (186, 178), "gettimeofday": (96, 169),
    "getuid": (102, 174), "lseek": (8, 62), "lstat": (6, -1), "madvise": (28, 233), "mkdir": (83, -1),
    "mkdirat": (258, 34), "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215),
    "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, -1), "openat": (257, 56), "pause": (34, -1),
    "pipe": (22, -1), "pipe2": (293, 59), "poll": (7, -1), "ppoll": (271, 73), "pread64": (17, 67),
    "pselect6": (270, 72), "pwrite64": (18, 68), "read": (0, 63), "readlink": (89, -1), "readlinkat": (267, 78),
    "readv": (19, 65), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    "restart_syscall": (219, 128), "rmdir": (84, -1), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigtimedwait": (128, 137),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "select": (23, -1), "sendfile": (40, 71),
    "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setitimer": (38, 103), "sigaltstack": (131, 132),
    "stat": (4, -1), "statfs": (137, 43), "statx": (332, 291), "sysinfo": (99, 179), "time": (201, -1),
    "times": (100, 153), "umask": (95, 166), "uname": (63, 160), "unlink": (87, -1), "unlinkat": (263, 35),
    "write": (1, 64), "writev": (20, 66),
}  # fmt: skip
CLONE, CLONE3, FCNTL, IOCTL, PRLIMIT64 = (56, 220), (435, 435), (72, 25), (16, 29), (302, 261)

CLONE_THREAD, CLONE_NEW = 0x00010000, 0x7E020080  # a thread; any new namespace
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # descriptors, flags, locks; not F_SETOWN, which sends signals
IOCTL_COMMANDS = (0x5401, 0x5421, 0x5450, 0x5451)  # TCGETS (isatty), FIONBIO, FIONCLEX, FIOCLEX

ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY, NO_SUCH_CALL = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, ARCH, FIRST, FIRST_HIGH, SECOND = 0, 4, 16, 20, 24  # offsets in struct seccomp_data, little-endian

Step = tuple[int, int, int, int]  # code, jump when true, jump when false, operand


def _return(value: int) -> Step:
    return (RETURN, 0, 0, value)


def _only(values: tuple[int, ...], offset: int) -> list[Step]:
    """Allow the call when a 32-bit argument is one of the values."""
    allow = [step for value in values for step in ((EQUAL, 0, 1, value), _return(ALLOW))]
    return [(LOAD, 0, 0, offset), *allow, _return(DENY)]


def program(machine: str) -> bytes:
    """Return the filter for a machine, as an array of ``struct sock_filter``."""
    column = list(AUDIT_ARCH).index(machine)
    threads = [(LOAD, 0, 0, FIRST), (ANY_BIT, 0, 1, CLONE_NEW), _return(DENY), (ANY_BIT, 0, 1, CLONE_THREAD)]
    looked_at: list[tuple[tuple[int, int], list[Step]]] = [
        (CLONE, [*threads, _return(ALLOW), _return(DENY)]),
        (CLONE3, [_return(NO_SUCH_CALL)]),  # its flags are behind a pointer; the C library then uses clone
        (FCNTL, _only(FCNTL_COMMANDS, SECOND)),
        (IOCTL, _only(IOCTL_COMMANDS, SECOND)),
        (PRLIMIT64, [*_only((0,), FIRST)]),  # its own limits only
    ]
    steps: list[Step] = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, AUDIT_ARCH[machine]), _return(KILL), (LOAD, 0, 0, NUMBER)]
    for numbers, block in looked_at:
        steps += [(EQUAL, 0, len(block), numbers[column]), *block]
    for numbers in ALLOWED.values():
        if numbers[column] >= 0:
            steps += [(EQUAL, 0, 1, numbers[column]), _return(ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, _return(DENY)])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


SET_SECCOMP, MODE_FILTER = 22, 2


def seccomp_is_there() -> bool:
    """Tell whether the kernel takes filters and the machine's table of calls is known here."""
    if os.uname().machine not in AUDIT_ARCH or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    return prctl(SET_SECCOMP, MODE_FILTER, 0) == -errno.EFAULT  # it got as far as reading the filter


def apply_seccomp(filter_: bytes | None = None) -> None:
    """Put the filter on this thread and all that it starts; needs no_new_privs. Raises OSError when it cannot be."""
    code = program(os.uname().machine) if filter_ is None else filter_
    buffer = _Program(len(code) // 8, code)
    check(prctl(SET_SECCOMP, MODE_FILTER, ctypes.addressof(buffer)), "seccomp")
