"""What this machine has: cores, memory, bf16, CUDA devices, versions, bundled models. ``trimtab doctor`` prints it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PACKAGES = ("trimtab", "torch", "transformers", "peft", "tokenizers", "safetensors", "gguf")
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuda:
    """One CUDA device."""

    name: str
    memory_gib: float
    bf16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What ``trimtab doctor`` reports. ``bundled`` says of each bundled model whether it is in the cache already.

    ``num_cores`` is what this process may use (see ``usable_cores``), ``memory_gib`` the machine's or the container's.
    ``cpu_bf16`` says that the CPU multiplies bfloat16 matrices in hardware.
    """

    python: str
    system: str
    cpu: str
    num_cores: int
    num_threads: int
    memory_gib: float
    free_memory_gib: float
    cpu_bf16: bool
    cuda: tuple[Cuda, ...]
    versions: Mapping[str, str]
    cache: Path
    bundled: Mapping[str, bool]


def hardware() -> Hardware:
    """Look at this machine; nothing is fetched or changed."""
    import psutil
    import torch

    from trimtab.model.bundled import BUNDLED, is_cached
    from trimtab.model.cache import cache_folder

    memory = psutil.virtual_memory()
    limit = _memory_limit_bytes() or memory.total
    return Hardware(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor()),
        num_cores=usable_cores(),
        num_threads=torch.get_num_threads(),
        memory_gib=min(memory.total, limit) / GIB,
        free_memory_gib=min(memory.available, limit) / GIB,
        cpu_bf16=cpu_has_fast_bf16(),
        cuda=tuple(_cuda(index) for index in range(torch.cuda.device_count())),
        versions={package: version for package in PACKAGES if (version := _version(package))},
        cache=cache_folder(),
        bundled={name: is_cached(name) for name in BUNDLED},
    )


def cpu_has_fast_bf16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware: AVX512-BF16 or AMX-BF16.

    Without it torch computes bfloat16 through float32, slower than float32 itself.
    """
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def has_fast_bf16() -> bool:
    """Tell whether bfloat16 is computed in hardware where training would run: the CUDA device if any, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_fast_bf16()


def usable_cores() -> int:
    """Return how many cores this process may keep busy: physical cores, CPU affinity and container quota, the least.

    torch looks at the whole machine, and in a container with a quota of 2 CPUs out of 64 starts 32 threads that fight.
    """
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical, _quota_cores() or allowed))


def pin_threads() -> int:
    """Set torch's threads to ``$OMP_NUM_THREADS`` if set, else to the usable cores, and return the number.

    A fixed number of threads keeps sums in the same order, so a run repeats to the same bits on the same machine.
    """
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "")
    num_threads = int(asked) if asked.isdigit() and int(asked) > 0 else usable_cores()
    torch.set_num_threads(num_threads)
    return num_threads


def _quota_cores() -> int | None:
    """Return the container's CPU quota in whole cores, rounded up; ``None`` without one (cgroup v2, then v1)."""
    if words := _words(CGROUP / "cpu.max"):
        quota, period = words[0], words[-1]
    else:
        quota = "".join(_words(CGROUP / "cpu" / "cpu.cfs_quota_us"))
        period = "".join(_words(CGROUP / "cpu" / "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period):
        return math.ceil(int(quota) / int(period))
    return None


def _memory_limit_bytes() -> int | None:
    for path in (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes"):
        words = _words(path)
        if words and words[0].isdigit():
            return int(words[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def _cuda(index: int) -> Cuda:
    import torch

    properties = torch.cuda.get_device_properties(index)
    # bf16 matrix units came with compute capability 8.0 (Ampere)
    return Cuda(name=properties.name, memory_gib=properties.total_memory / GIB, bf16=properties.major >= 8)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
