"""Roles on one trunk: adapters that do not disturb each other, merged = applied, saved = loaded by plain PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from trimtab.artifacts import Artifact
from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.roles import build_roles
from trimtab.model.trunk import Lora, ScalarHead, Trunk
from trimtab.records.types import Answer, Group, Message
from trimtab.tensors.tree import TreeBatch, pack

LORA = Lora(rank=4, alpha=8)


@pytest.fixture
def trunk() -> Trunk:
    return Trunk.load("tiny", dtype="float32")


def batch_of(trunk: Trunk) -> TreeBatch:
    group = Group(
        id="g",
        prompt=(Message(role="user", content="Where do ducks go in winter?"),),
        answers=(Answer(text="South."), Answer(text="Some stay", finish="length")),
    )
    return pack([trunk.chat.group(group)])


def shake(trunk: Trunk, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in trunk.adapter_parameters(name):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logps(trunk: Trunk, name: str | None) -> torch.Tensor:
    with torch.no_grad(), trunk.using(name):
        return trunk.logps(batch_of(trunk))[0]


def test_a_fresh_adapter_changes_nothing(trunk: Trunk) -> None:
    before = logps(trunk, None)
    trunk.add_adapter("one", LORA, seed=0)
    assert torch.equal(logps(trunk, "one"), before)
    assert torch.equal(logps(trunk, None), before)


def test_adapters_do_not_disturb_each_other(trunk: Trunk) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    shake(trunk, "one")
    trunk.copy_adapter("one", "two")
    assert torch.equal(logps(trunk, "one"), logps(trunk, "two"))
    reference = logps(trunk, "one")
    parameters = trunk.train_adapter("two")
    optimiser = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(10):
        optimiser.zero_grad()
        with trunk.using("two"):
            trunk.logps(batch_of(trunk))[0].sum().backward()
        optimiser.step()
    assert torch.equal(logps(trunk, "one"), reference)  # the reference, ten actor steps later: the same bits
    assert not torch.equal(logps(trunk, "two"), reference)


def test_only_the_trained_adapter_gets_gradients(trunk: Trunk) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    trunk.add_adapter("two", LORA, seed=1)
    shake(trunk, "two")
    trunk.train_adapter("two")
    base = {name: p.clone() for name, p in trunk.base.named_parameters() if "lora" not in name}
    with trunk.using("two"):
        trunk.logps(batch_of(trunk))[0].sum().backward()
    with_gradient = {name for name, p in trunk.base.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all(".two." in name for name in with_gradient)
    for name, parameter in trunk.base.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_merged_is_applied_and_leaves_no_trace(trunk: Trunk) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    shake(trunk, "one")
    applied, bare = logps(trunk, "one"), logps(trunk, None)
    with trunk.merged("one"), torch.no_grad():
        merged = trunk.logps(batch_of(trunk))[0]
    torch.testing.assert_close(merged, applied, atol=1e-5, rtol=1e-5)
    assert torch.equal(logps(trunk, None), bare)
    assert torch.equal(logps(trunk, "one"), applied)


def test_merged_restores_after_an_error(trunk: Trunk) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    shake(trunk, "one")
    bare = logps(trunk, None)
    with pytest.raises(RuntimeError, match="stop"), trunk.merged("one"):
        raise RuntimeError("stop")
    assert torch.equal(logps(trunk, None), bare)


def test_plain_peft_loads_a_saved_adapter(trunk: Trunk, tmp_path: Path) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    shake(trunk, "one")
    trunk.save_adapter("one", tmp_path)
    batch = batch_of(trunk)
    span = batch.spans[0]
    ids = batch.ids[: span.prompt + span.answers[0]]
    model = AutoModelForCausalLM.from_pretrained(trunk.loaded.source.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path)
    with torch.no_grad():
        full = torch.log_softmax(model(ids[None]).logits[0], -1)
    theirs = torch.stack([full[t - 1, ids[t]] for t in range(span.prompt, len(ids))])
    ours = logps(trunk, "one")[: span.answers[0]]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_adapter_round_trip(trunk: Trunk, tmp_path: Path) -> None:
    trunk.add_adapter("one", LORA, seed=0)
    shake(trunk, "one")
    trunk.save_adapter("one", tmp_path)
    other = Trunk.load("tiny", dtype="float32")
    other.load_adapter("elsewhere", tmp_path)
    assert torch.equal(logps(other, "elsewhere"), logps(trunk, "one"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # the tiny model's ends are tied
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_an_adapter_of_more_than_lora_matrices_is_refused(
    trunk: Trunk, tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trunk.loaded.source.path, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, **settings)).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ModelError, match=rf"{key}.*merge_and_unload"):
        trunk.load_adapter("theirs", tmp_path)
    assert trunk.adapters == []


def test_scalar_head_round_trip_and_refusal(tmp_path: Path) -> None:
    head = ScalarHead(8, std=0.5, seed=3)
    head.save(tmp_path)
    hidden = torch.randn(4, 8)
    assert torch.equal(ScalarHead.read(tmp_path)(hidden), head(hidden))
    assert not ScalarHead(8)(hidden).any()
    with pytest.raises(ModelError, match="not a reward model"):
        ScalarHead.read(tmp_path / "nowhere")


@pytest.mark.parametrize(("layout", "trunks"), [("shared", 1), ("paired", 2), ("separate", 3)])
def test_role_layouts(tmp_path: Path, layout: str, trunks: int) -> None:
    trunk = Trunk.load("tiny", dtype="float32")
    trunk.add_adapter("sft", LORA, seed=0)
    shake(trunk, "sft")
    trunk.save_adapter("sft", tmp_path)
    init = ModelRef("sft", "tiny", Artifact(tmp_path, {"name": "sft", "key": "k", "base": "tiny"}))
    roles = build_roles(init, init, layout=layout, critic=True, lora=LORA, seed=0, dtype="float32")  # type: ignore[arg-type]
    assert len(roles.trunks()) == trunks  # the reward model adds its own trunk in the separate layout
    assert (roles.reward_trunk is None) == (layout == "separate")
    assert torch.equal(logps(roles.actor.trunk, "actor"), logps(roles.reference.trunk, roles.reference.adapter))
    assert roles.critic is not None
    assert len(roles.actor.parameters()) + 2 == len(roles.critic.parameters())
