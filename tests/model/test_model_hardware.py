from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from trimtab.model import hardware as room
from trimtab.model.hardware import hardware, pin_threads, usable_cores


def test_the_report_fits_the_machine_and_a_manifest(tiny_cache: Path) -> None:
    found = hardware()
    assert 1 <= found.num_cores <= (os.cpu_count() or 1)
    assert 0 < found.free_memory_gib <= found.memory_gib
    assert {"trimtab", "torch", "transformers", "peft"} <= set(found.versions)
    assert found.versions["torch"] == torch.__version__
    assert len(found.cuda) == torch.cuda.device_count()
    assert found.cache == tiny_cache
    assert found.bundled == {"smollm2-135m-instruct": False, "minilm-l6-v2": False, "tiny": True}
    json.dumps(dataclasses.asdict(found), default=str)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="no /proc/cpuinfo to compare with")
def test_bf16_agrees_with_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert room.cpu_has_fast_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_container_quotas(
    files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room._quota_cores() == cores
    assert usable_cores() <= (cores or 10**6)


@pytest.mark.parametrize(("text", "limit"), [("2147483648", 2**31), ("max", None)])
def test_container_memory(text: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(text + "\n")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room._memory_limit_bytes() == limit


def test_pin_threads_sets_what_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert pin_threads() == torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        assert pin_threads() == torch.get_num_threads() == usable_cores()
    finally:
        torch.set_num_threads(before)
