"""What the reference thinks of answers: the numbers, and the cache that keeps them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
from trimtab.model.trunk import Trunk
from trimtab.tensors.tree import TokenGroup
from trimtab.train.reference import answer_logps, reference_logps
from trimtab.train.run import Run

GROUPS = [
    TokenGroup(prompt=(256, 65, 66), answers=((67, 68, 257), (69,))),
    TokenGroup(prompt=(256, 70), answers=((71, 72, 73, 257),)),
    TokenGroup(prompt=(256, 74, 75, 76), answers=((77, 257), (), (78, 79))),
]
ANSWERS = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: the folder that holds what references said."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def trunk_with(model: Path, *, seed: int = 1, alpha: float = 8, dtype: str = "float32") -> Trunk:
    """A trunk with an adapter ``start`` that changes what the base says."""
    trunk = Trunk.load(model, dtype=dtype)
    trunk.add_adapter("start", dataclasses.replace(tiny.LORA, alpha=alpha), seed=0)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.adapter_parameters("start"):
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return trunk


def ask(trunk: Trunk, run: Run, groups: list[TokenGroup] = GROUPS, adapter: str | None = "start") -> list[list[float]]:
    found = reference_logps(run, trunk, adapter, groups, micro_tokens=64)
    assert all(isinstance(x, torch.Tensor) and not x.requires_grad for x in found)
    return [x.tolist() for x in found]


def by_hand(model: nn.Module, group: TokenGroup) -> list[float]:
    """Each answer's sum over its trained tokens, from plain logits, one answer at a time."""
    found = []
    for i, answer in enumerate(group.answers):
        trained = (True,) * len(answer) if group.trained is None else group.trained[i]
        with torch.no_grad():
            logps = model(torch.tensor([[*group.prompt, *answer]])).logits[0].double().log_softmax(-1)
        first = len(group.prompt) - 1
        found.append(sum(float(logps[first + t, token]) for t, token in enumerate(answer) if trained[t]))
    return found


@pytest.mark.parametrize("adapter", [None, "start"])
def test_numbers_are_those_of_the_plain_model(tmp_path: Path, tiny_model: Path, adapter: str | None) -> None:
    trunk = trunk_with(tiny_model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    if adapter is not None:
        trunk.save_adapter(adapter, tmp_path / "saved")
        plain = PeftModel.from_pretrained(plain, str(tmp_path / "saved"))
    marked = TokenGroup(prompt=(256, 65), answers=((66, 67, 257),), trained=((True, False, True),))
    groups = [*GROUPS, marked]
    wanted = [pytest.approx(by_hand(plain, group), abs=1e-4) for group in groups]
    for micro_tokens in (1, 12, 4096):
        found = answer_logps(trunk, adapter, groups, micro_tokens=micro_tokens)
        assert [x.tolist() for x in found] == wanted
        assert all(x.dtype is torch.float32 and not x.requires_grad for x in found)
    assert ask(trunk, tiny.make_run(tmp_path, "dpo"), groups, adapter) == wanted
    assert found[2][1] == 0.0  # an empty answer


def test_the_adapter_in_use_stays_in_use(tiny_model: Path) -> None:
    trunk = trunk_with(tiny_model)
    trunk.use("start")
    (first,) = answer_logps(trunk, None, GROUPS[1:2], micro_tokens=64)
    with trunk.using(None):
        (second,) = answer_logps(trunk, "start", GROUPS[1:2], micro_tokens=64)
    (third,) = answer_logps(trunk, trunk._active, GROUPS[1:2], micro_tokens=64)
    assert not torch.equal(first, second)
    assert torch.equal(second, third)


def test_read_once(tmp_path: Path, tiny_model: Path, cache: Path) -> None:
    run = tiny.make_run(tmp_path, "dpo")
    first = ask(trunk_with(tiny_model), run)
    assert run.notes == [f"the reference reads {ANSWERS} answers, once"]
    # Another run, another process's trunk, another name for the same adapter, another cut: the same bits, unread.
    trunk = trunk_with(tiny_model)
    trunk.copy_adapter("start", "another-name")
    other = tiny.make_run(tmp_path / "other", "ipo", seed=5)
    assert ask(trunk, other, adapter="another-name") == first
    assert other.notes == []
    assert len(list(cache.iterdir())) == 1


def test_anything_that_changes_the_numbers_is_another_key(tmp_path: Path, tiny_model: Path, cache: Path) -> None:
    trunk = trunk_with(tiny_model)
    moved = trunk_with(tiny_model)
    with torch.no_grad():
        moved.adapter_parameters("start")[3].view(-1)[0] += 1e-6
    first = GROUPS[0]
    other_groups = [
        [dataclasses.replace(first, prompt=(256, 65, 67)), *GROUPS[1:]],
        [dataclasses.replace(first, answers=((67, 68, 257), (70,))), *GROUPS[1:]],
        [dataclasses.replace(first, answers=((67, 68), (257, 69))), *GROUPS[1:]],  # the border has moved
        [dataclasses.replace(first, trained=((True, True, False), (True,))), *GROUPS[1:]],
        GROUPS[:2],
        GROUPS[::-1],
    ]
    asked = [(trunk, GROUPS, "start"), (trunk, GROUPS, None), (moved, GROUPS, "start")]
    asked += [(trunk, groups, "start") for groups in other_groups]
    asked += [(trunk_with(tiny_model, dtype="bfloat16"), GROUPS, "start")]
    for count, (model, groups, adapter) in enumerate(asked, start=1):
        run = tiny.make_run(tmp_path, "dpo")
        ask(model, run, groups, adapter)
        assert len(run.notes) == 1
        assert len(list(cache.iterdir())) == count


def test_an_adapters_scale_is_part_of_the_key(tmp_path: Path, tiny_model: Path) -> None:
    """The same weights under another alpha are another model."""
    run = tiny.make_run(tmp_path, "dpo")
    assert ask(trunk_with(tiny_model, alpha=8), run) != ask(trunk_with(tiny_model, alpha=80), run)


def test_an_adapters_whole_configuration_is_part_of_the_key(tmp_path: Path, tiny_model: Path, cache: Path) -> None:
    """The same weights, another scale in some of the layers."""
    trunk_with(tiny_model).save_adapter("start", tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_config.json"
    said = []
    for pattern in ({}, {"q_proj": 80}, {"q_proj": 80, "v_proj": 1}):
        path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": pattern}))
        trunk = Trunk.load(tiny_model, dtype="float32")
        trunk.load_adapter("start", tmp_path / "saved")
        said.append(ask(trunk, tiny.make_run(tmp_path, "dpo")))
        assert len(list(cache.iterdir())) == len(said)
        groups = pytest.approx([x for row in said[-1] for x in row])
        assert [x for row in answer_logps(trunk, "start", GROUPS, micro_tokens=64) for x in row.tolist()] == groups
    assert said[0] != said[1] != said[2] != said[0]


def test_where_an_adapter_lies_is_no_part_of_the_key(tmp_path: Path, tiny_model: Path, cache: Path) -> None:
    trunk_with(tiny_model).save_adapter("start", tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_config.json"
    for place in ("here", "there"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": place}))
        trunk = Trunk.load(tiny_model, dtype="float32")
        trunk.load_adapter(place, tmp_path / "saved")
        ask(trunk, tiny.make_run(tmp_path, "dpo"), adapter=place)
    assert len(list(cache.iterdir())) == 1


def test_weights_in_4_bits_are_another_model(tmp_path: Path, tiny_model: Path, cache: Path) -> None:
    """Their head has the precision that it has in bfloat16."""
    trunk = trunk_with(tiny_model)
    ask(trunk, tiny.make_run(tmp_path, "dpo"))
    trunk.quantised = True
    ask(trunk, tiny.make_run(tmp_path, "dpo"))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_what_a_crash_or_a_full_disk_left_is_made_again(
    tmp_path: Path, tiny_model: Path, cache: Path, damage: str
) -> None:
    run, trunk = tiny.make_run(tmp_path, "dpo"), trunk_with(tiny_model)
    first = ask(trunk, run)
    (path,) = cache.glob("*/*.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    assert ask(trunk, run) == first
    assert len(run.notes) == 2
    assert ask(trunk, run) == first
    assert len(run.notes) == 2
