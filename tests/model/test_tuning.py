"""What is trained and how fast: rates worked out by hand, shapes of adapters, all weights of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.artifacts import ITSELF, Artifact
from trimtab.config import ModelRef
from trimtab.errors import ConfigError
from trimtab.model.roles import Role
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora, Tuned, chosen_layers, layer_of, learning_rates, linear_layers
from trimtab.records.types import Answer, Group, Message
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack
from trimtab.train.optim import Optimiser, ParameterGroup

IDS = torch.tensor([[256, 72, 105, 257]])
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.fixture
def trunk(tiny_model: Path) -> Trunk:
    return Trunk.load(tiny_model, dtype="float32")


def batch_of(trunk: Trunk) -> TreeBatch:
    prompt = (Message(role="user", content="Where do ducks go in winter?"),)
    group = Group(id="g", prompt=prompt, answers=(Answer(text="South."), Answer(text="Some stay", finish="length")))
    return pack([trunk.chat.group(group)])


def shake(trunk: Trunk, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in trunk.adapter_parameters(name):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logps(trunk: Trunk, name: str | None) -> torch.Tensor:
    with torch.no_grad(), trunk.using(name):
        return trunk.logps(batch_of(trunk))[0]


def train(trunk: Trunk, tuned: Tuned, *, lr: float, steps: int = 1) -> Optimiser:
    group = ParameterGroup(name="all", parameters=tuned.parameters, lr=lr, rates=tuned.rates)
    optimiser = Optimiser([group])
    for _ in range(steps):
        with trunk.using(tuned.adapter):
            (-trunk.logps(batch_of(trunk))[0].mean()).backward()
        optimiser.accumulate()
        optimiser.step(1.0)
    return optimiser


# --- how fast -------------------------------------------------------------------------------------------------------


def test_layer_decay_by_hand() -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.lora_A.weight" for layer in range(12)]
    rates = learning_rates([*names, "model.norm.weight", "weight"], Lora(layer_decay=0.9), num_layers=12)
    assert rates is not None
    assert 2e-4 * rates[0] == pytest.approx(6.276e-5, abs=5e-9)
    assert 2e-4 * rates[5] == pytest.approx(1.063e-4, abs=5e-8)
    assert rates[11:] == [1.0, 1.0, 1.0]  # the last layer, and what is in none


def test_plus_by_hand() -> None:
    names = [f"layers.{layer}.q_proj.lora_{side}.weight" for layer in range(2) for side in "AB"]
    assert learning_rates(names, Lora(plus=16), num_layers=2) == [1.0, 16.0, 1.0, 16.0]
    assert learning_rates(names, Lora(plus=16, layer_decay=0.5), num_layers=2) == [0.5, 8.0, 1.0, 16.0]
    assert learning_rates(names, Lora(rank=3, rslora=True), num_layers=2) is None


def test_the_layer_is_the_first_number_in_a_name() -> None:
    assert layer_of("base_model.model.model.layers.3.mlp.experts.5.up_proj.lora_B.weight") == 3
    assert layer_of("transformer.h.10.attn.c_attn.weight") == 10
    assert layer_of("model.embed_tokens.weight") is None
    assert layer_of("lm_head2.weight") is None


def test_the_first_step_moves_b_sixteen_times_as_far_as_a(trunk: Trunk) -> None:
    tuned = trunk.trainable("lora", "one", None, Lora(rank=4, alpha=8, plus=16), seed=0)
    shake(trunk, "one")  # beside B = 0 A would have no gradient
    before = [parameter.detach().clone() for parameter in tuned.parameters]
    train(trunk, tuned, lr=1e-4)
    moved = [float((p.detach() - b).abs().median()) for p, b in zip(tuned.parameters, before, strict=True)]
    # Adam's first step is the rate in every place.
    assert moved[0::2] == [pytest.approx(1e-4, rel=1e-2)] * 14
    assert moved[1::2] == [pytest.approx(16e-4, rel=1e-2)] * 14


def test_a_roles_rates_are_its_adapters_and_one_for_its_head(trunk: Trunk) -> None:
    trunk.add_adapter("one", Lora(rank=2), seed=0)
    assert Role(trunk, "one", trunk.scalar_head(), Lora(rank=2)).rates() is None
    critic = Role(trunk, "one", trunk.scalar_head(), Lora(rank=2, plus=4, layer_decay=0.5))
    assert critic.rates() == [*[0.5, 2.0] * 7, *[1.0, 4.0] * 7, 1.0, 1.0]
    assert len(critic.parameters()) == 30


# --- which shape ----------------------------------------------------------------------------------------------------


def test_every_linear_layer_but_the_head_can_carry_an_adapter(trunk: Trunk) -> None:
    every = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR]
    assert linear_layers(trunk.base) == every
    trunk.add_adapter("one", Lora(rank=2), seed=0)
    trunk.add_adapter("two", Lora(rank=2, targets=("mlp.up_proj",)), seed=0)
    assert linear_layers(trunk.base) == every
    carrying = {name.partition(".lora_A.")[0] for name in trunk.named_adapter_parameters("two") if ".lora_A." in name}
    assert carrying == {f"base_model.model.model.layers.{layer}.mlp.up_proj" for layer in range(2)}
    assert len(trunk.adapter_parameters("one")) == 28


def test_targets_that_are_not_there_are_refused(trunk: Trunk) -> None:
    layers = linear_layers(trunk.base)
    assert chosen_layers(None, layers) == frozenset(layers)
    assert chosen_layers(("layers.1.mlp.up_proj", "q_proj"), layers) == {
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"^lora.targets: no linear layer 'q_prj' below the head; did .* 'q_proj'\?$"):
        chosen_layers(("v_proj", "q_prj"), layers)
    with pytest.raises(ConfigError, match=r"no linear layer 'lm_head' below the head; known: down_proj, gate_proj"):
        trunk.add_adapter("one", Lora(targets=("lm_head",)), seed=0)
    assert trunk.adapters == []


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 8.0)])
def test_the_scale_of_rank_16_and_alpha_32(trunk: Trunk, rslora: bool, scale: float) -> None:
    trunk.add_adapter("one", Lora(rank=16, alpha=32, rslora=rslora), seed=0)
    shake(trunk, "one")
    layer = trunk.base.get_submodule("model.layers.1.mlp.up_proj")
    parts = trunk.named_adapter_parameters("one")
    a, b = (parts[f"base_model.model.model.layers.1.mlp.up_proj.lora_{side}.weight"] for side in "AB")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with trunk.using(None):
            bare = layer(x)
        with trunk.using("one"):
            torch.testing.assert_close(layer(x) - bare, scale * x @ a.T @ b.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8, rslora=True), Lora(rank=4, targets=("q_proj", "down_proj"))])
def test_shapes_start_at_the_base_merge_to_the_same_and_load_with_plain_peft(
    trunk: Trunk, tmp_path: Path, lora: Lora
) -> None:
    bare = logps(trunk, None)
    trunk.add_adapter("one", lora, seed=0)
    assert torch.equal(logps(trunk, "one"), bare)
    shake(trunk, "one")
    applied = logps(trunk, "one")
    with trunk.merged("one"), torch.no_grad():
        torch.testing.assert_close(trunk.logps(batch_of(trunk))[0], applied, atol=1e-5, rtol=1e-5)
    assert (applied - bare).abs().max() > 1e-2
    assert trunk.save("one", tmp_path) == str(trunk.loaded.source.path)
    with torch.no_grad(), trunk.merged("one"):
        ours = trunk.head.logits(trunk.hidden(batch_of(trunk)))
    span = batch_of(trunk).spans[0]
    ids = batch_of(trunk).ids[: span.prompt]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trunk.loaded.source.path), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], ours[: span.prompt], atol=1e-5, rtol=1e-4)


def test_an_adapter_that_starts_from_another_has_its_shape_and_any_rates(trunk: Trunk) -> None:
    trunk.add_adapter("start", Lora(rank=4, alpha=8, rslora=True, targets=("q_proj", "up_proj")), seed=0)
    shake(trunk, "start")
    same = Lora(rank=4, alpha=8, rslora=True, targets=("up_proj", "self_attn.q_proj"), plus=16)
    for name, lora in (("fast", Lora(plus=16, layer_decay=0.5)), ("same", same), ("plain", Lora())):
        tuned = trunk.trainable("lora", name, "start", lora, seed=0)
        assert (tuned.rates is None) == (name == "plain")
        assert torch.equal(logps(trunk, name), logps(trunk, "start"))
    sentence = (
        r"^lora: rank 4 and alpha 8 with rslora would change nothing: training goes on from an adapter of rank 4 and "
        r"alpha 8 with rslora on q_proj, up_proj$"
    )
    with pytest.raises(ConfigError, match=sentence):
        trunk.derive_adapter("d", "start", Lora(rank=4, alpha=8, rslora=True), seed=0)
    with pytest.raises(ConfigError, match="lora: rank 4 and alpha 8 on q_proj, up_proj would change nothing"):
        trunk.derive_adapter("d", "start", Lora(rank=4, alpha=8, targets=("q_proj", "up_proj")), seed=0)


def test_an_adapter_that_comes_later_stops_no_training(trunk: Trunk) -> None:
    tuned = trunk.trainable("lora", "one", None, Lora(rank=2), seed=0)
    trunk.add_adapter("two", Lora(rank=2), seed=1)
    assert all(parameter.requires_grad for parameter in tuned.parameters)
    assert sum(parameter.requires_grad for parameter in trunk.base.parameters()) == len(tuned.parameters)


def test_an_adapter_leaves_the_base_bit_for_bit(trunk: Trunk) -> None:
    before = {name: tensor.clone() for name, tensor in trunk.base.state_dict().items()}
    tuned = trunk.trainable("lora", "one", None, Lora(rank=2, plus=16, layer_decay=0.9), seed=0)
    train(trunk, tuned, lr=1e-2, steps=3)
    trunk.absorb(None)
    after = trunk.base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


# --- all weights ----------------------------------------------------------------------------------------------------


def save_and_read(trunk: Trunk, folder: Path) -> nn.Module:
    """Save the whole model, and load it with plain transformers."""
    assert trunk.save(None, folder) == ITSELF
    plain: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=trunk.dtype)
    return plain


def logits(trunk: Trunk, ids: torch.Tensor) -> torch.Tensor:
    """The base's logits of a bare row, by our forward pass."""
    with torch.no_grad():
        return trunk.head.logits(trunk.hidden(pack([TokenGroup(prompt=tuple(ids[0].tolist()), answers=())])))


def same_logits(plain: nn.Module, trunk: Trunk) -> None:
    """Assert that what plain transformers loaded is the model on the trunk."""
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits[0], logits(trunk, IDS), atol=1e-6, rtol=1e-5)
    for (name, theirs), ours in zip(plain.named_parameters(), trunk.base.parameters(), strict=True):
        assert torch.equal(theirs, ours), name


def test_gradients_of_all_weights_are_those_of_plain_transformers(trunk: Trunk, tiny_model: Path) -> None:
    tuned = trunk.trainable("full", "one", None, Lora(), seed=0)
    ids = torch.tensor([256, 72, 105, 10, 72, 101, 121, 257])
    batch = pack([TokenGroup(prompt=tuple(ids[:3].tolist()), answers=(tuple(ids[3:].tolist()),))])
    trunk.logps(batch)[0].sum().backward()
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = torch.log_softmax(plain(ids[None]).logits[0], -1)
    rows[torch.arange(2, 7), ids[3:]].sum().backward()
    for (name, theirs), ours in zip(plain.named_parameters(), tuned.parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_all_weights_move_and_the_head_stays_tied(trunk: Trunk, tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in trunk.base.named_parameters()}
    tuned = trunk.trainable("full", "one", None, Lora(), seed=0)
    assert (tuned.adapter, tuned.rates, trunk.adapters) == (None, None, [])
    # 259 x 64 once, two layers of q, o (64 x 64), k, v (32 x 64), three of 128 x 64 and two norms, the last norm
    assert sum(p.numel() for p in tuned.parameters) == 259 * 64 + 2 * (2 * 4096 + 2 * 2048 + 3 * 8192 + 128) + 64
    start = logps(trunk, None)
    train(trunk, tuned, lr=1e-3, steps=3)
    assert not [name for name, p in trunk.base.named_parameters() if torch.equal(p, before[name])]
    assert logps(trunk, None).mean() > start.mean()

    plain = save_and_read(trunk, tmp_path)
    same_logits(plain, trunk)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight  # type: ignore[union-attr]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    assert torch.equal(logps(Trunk.load(tmp_path, dtype="float32"), None), logps(trunk, None))


def test_a_head_of_its_own_is_trained_too(tiny_model: Path, tmp_path: Path) -> None:
    untied = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=False)
    untied.lm_head.weight = nn.Parameter(untied.model.embed_tokens.weight.detach().clone())
    untied.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "untied")
    trunk = Trunk.load(tmp_path / "untied", dtype="float32")
    tuned = trunk.trainable("full", "one", None, Lora(), seed=0)
    train(trunk, tuned, lr=1e-3)
    same_logits(save_and_read(trunk, tmp_path / "saved"), trunk)
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert not torch.equal(weights["lm_head.weight"], untied.lm_head.weight)


def test_a_half_precision_head_is_never_stale(tiny_model: Path, tmp_path: Path) -> None:
    trunk = Trunk.load(tiny_model, dtype="bfloat16")
    tuned = trunk.trainable("full", "one", None, Lora(), seed=0)
    start = logits(trunk, IDS)  # the float32 copy is made here
    optimiser = train(trunk, tuned, lr=1e-2)
    assert torch.equal(trunk.head.precise, trunk.head.weight.detach().float())
    assert {master.dtype for master in optimiser.masters["all"]} == {torch.float32}
    moved = logits(trunk, IDS)
    for parameter in tuned.parameters:
        parameter.requires_grad_(False)
    assert torch.equal(logits(trunk, IDS), moved)
    plain = save_and_read(trunk, tmp_path)
    with torch.no_grad():
        gap = (plain(IDS).logits[0] - moved).abs().max()
    assert gap < 0.2 * (moved - start).abs().max()


def test_what_training_starts_from_is_merged_first(trunk: Trunk, tmp_path: Path) -> None:
    trunk.add_adapter("start", Lora(rank=4, alpha=8, rslora=True), seed=0)
    trunk.add_adapter("other", Lora(rank=2), seed=1)
    shake(trunk, "start")
    with trunk.merged("start"):
        merged = logps(trunk, None)
    names = [name for name, _ in Trunk.load(trunk.loaded.source.path, dtype="float32").base.named_parameters()]
    tuned = trunk.trainable("full", "one", "start", Lora(), seed=0)
    assert torch.equal(logps(trunk, tuned.adapter), merged)
    assert trunk.adapters == []
    assert [name for name, _ in trunk.base.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in trunk.base.parameters())
    same_logits(save_and_read(trunk, tmp_path), trunk)
    trunk.add_adapter("again", Lora(rank=2), seed=0)  # a trunk like any other
    assert torch.equal(logps(trunk, "again"), merged)


def test_settings_of_an_adapter_and_weights_in_four_bits_do_not_go_with_it(trunk: Trunk) -> None:
    with pytest.raises(ConfigError, match=r"^lora would change nothing: 'tune: full' trains the model's own weights$"):
        trunk.trainable("full", "one", None, Lora(layer_decay=0.9), seed=0)
    assert not trunk.quantised
    trunk.quantised = True
    with pytest.raises(ConfigError, match="'tune: full' needs whole weights"):
        trunk.trainable("full", "one", None, Lora(), seed=0)
    trunk.add_adapter("one", Lora(rank=2), seed=0)
    shake(trunk, "one")
    applied = logps(trunk, "one")
    with trunk.merged("one"), torch.no_grad():
        assert torch.equal(trunk.logps(batch_of(trunk))[0], applied)  # applied, since nothing can be merged


def test_a_whole_model_is_its_own_base_and_has_no_adapter(trunk: Trunk, tmp_path: Path) -> None:
    trunk.trainable("full", "one", None, Lora(), seed=0)
    with torch.no_grad():
        trunk.head.weight.mul_(1.5)
    base = trunk.save(None, tmp_path)
    artifact = Artifact(tmp_path, json.loads(json.dumps({"name": "one", "stage": "sft", "key": "k", "base": base})))
    assert artifact.base is not None
    again, adapter = Trunk.open(ModelRef("one", artifact.base, artifact), dtype="float32")
    assert adapter is None
    assert torch.equal(logps(again, None), logps(trunk, None))
