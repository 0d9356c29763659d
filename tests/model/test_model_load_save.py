from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.errors import ConfigError, ModelError
from trimtab.model.hardware import has_fast_bf16
from trimtab.model.load import check_four_bits, four_bits, load, load_encoder, resolve_dtype
from trimtab.model.save import save_full, save_tokenizer

IDS = torch.tensor([[256, 72, 105, 257]])


@pytest.fixture
def folder(tiny_cache: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(load("tiny", dtype="float32").source.path, tmp_path / "copy"))


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_loaded_models_are_frozen_without_dropout_and_in_evaluation_mode(folder: Path) -> None:
    edit_config(folder, attention_dropout=0.1)
    model = load(folder, dtype="float32", attention="eager").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "eager"
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}
    model.train()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_every_dropout_of_other_architectures_is_off(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)
    (folder / "model.safetensors").unlink()
    GPT2LMHeadModel(config).save_pretrained(folder)
    model = load(folder, dtype="float32").model
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates
    assert set(rates) == {0.0}
    model.train()
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_dtypes(tiny_cache: Path) -> None:
    assert resolve_dtype("auto") is (torch.bfloat16 if has_fast_bf16() else torch.float32)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", resolve_dtype("auto"))):
        assert {parameter.dtype for parameter in load("tiny", dtype=name).model.parameters()} == {dtype}
    with pytest.raises(ModelError, match=r"^no dtype 'bfloat'; did you mean 'bfloat16'\?$"):
        load("tiny", dtype="bfloat")


def test_weights_in_four_bits_are_refused_where_they_cannot_be_had() -> None:
    check_four_bits(bitsandbytes=True, cuda=True)
    for there, sentence in (
        ({"bitsandbytes": False, "cuda": True}, "the package bitsandbytes is not installed"),
        ({"bitsandbytes": True, "cuda": False}, "there is no CUDA device"),
        (
            {"bitsandbytes": False, "cuda": False},
            "the package bitsandbytes is not installed and there is no CUDA device",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^dtype: weights in 4 bits cannot be had here: {sentence}$"):
            check_four_bits(**there)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_four_bits_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match=r"weights in 4 bits cannot be had here: .*there is no CUDA device$"):
        load("nobody/nothing", dtype="4bit")


def test_four_bits_are_nf4_with_scales_quantised_once_more() -> None:
    config = four_bits(torch.bfloat16)
    assert config.quantization_method() == "nf4"
    assert config.load_in_4bit
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert resolve_dtype("4bit") is resolve_dtype("auto")


def test_what_is_saved_loads_with_plain_transformers_to_equal_logits(tiny_cache: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = load("tiny", dtype="float32")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight.add_(0.01)
        loaded.model.model.embed_tokens.weight.mul_(1.5)
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template + "{# mine #}"
    save_full(loaded, tmp_path / "deep" / "saved")
    assert sorted(path.suffix for path in (tmp_path / "deep" / "saved").iterdir()) == [
        ".jinja",
        *[".json"] * 4,
        ".safetensors",
    ]

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "saved", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "deep" / "saved", local_files_only=True)
    assert torch.equal(model(IDS).logits, loaded.model(IDS).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 257
    assert tokenizer.chat_template.endswith("{# mine #}")
    assert tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert tokenizer("a <|im_end|>é")["input_ids"] == loaded.tokenizer("a <|im_end|>é")["input_ids"]

    again = load(tmp_path / "deep" / "saved", dtype="float32")
    assert torch.equal(again.model(IDS).logits, loaded.model(IDS).logits)
    assert again.source.digest != loaded.source.digest


def test_bfloat16_survives_saving(tiny_cache: Path, tmp_path: Path) -> None:
    loaded = load("tiny", dtype="bfloat16")
    save_full(loaded, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(load(tmp_path, dtype="bfloat16").model(IDS).logits, loaded.model(IDS).logits)


def test_licences_go_along(folder: Path, tmp_path: Path) -> None:
    (folder / "LICENSE").write_text("Apache License")
    save_full(load(folder), tmp_path / "saved")
    assert (tmp_path / "saved" / "LICENSE").read_text() == "Apache License"
    save_full(load(folder), folder)  # onto itself
    assert (folder / "LICENSE").read_text() == "Apache License"


def test_tokenizers_are_saved_alone_for_adapters(tiny_cache: Path, tmp_path: Path) -> None:
    save_tokenizer(load("tiny").tokenizer, tmp_path / "adapter")
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


# transformers deprecates a name that PEFT 0.21 still asks for
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_with_adapters_is_not_saved_as_if_it_were_whole(tiny_cache: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    loaded = load("tiny", dtype="float32")
    get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(
        ModelError, match=r"saved: the model still carries adapters; merge them first, or save the adapters"
    ):
        save_full(loaded, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_missing_weights_are_refused_and_extra_ones_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    extra = weights | {"score.weight": torch.zeros(1, 64)}
    save_file(extra, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(
        UserWarning, match=r"copy: 1 weights have no place in the model, left out \(score\.weight \.\.\.\)$"
    ):
        load(folder)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights are missing in .*copy and would be random \(model\.norm\.weight \.\.\.\)$"
    ):
        load(folder)


def test_damage_is_one_sentence(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"^.*copy: the model in .*copy cannot be loaded \(.+\)$"):
        load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    edit_config(folder, hidden_size=32)
    with pytest.raises(ModelError, match=r"cannot be loaded \(.+\)$"):
        load(folder)
    edit_config(folder, hidden_size=64, model_type="llamma")
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*llamma.*\)$"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot be loaded \(.+\)$"):
        load(folder)


def test_code_from_a_models_folder_is_never_run(folder: Path) -> None:
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        load(folder)


def test_tokenizer_troubles(folder: Path) -> None:
    tokenizer = load(folder).tokenizer
    tokenizer.pad_token = None
    save_tokenizer(tokenizer, folder)
    loaded = load(folder)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 257

    tokenizer.add_tokens(["<new>"])
    save_tokenizer(tokenizer, folder)
    with pytest.raises(
        ModelError, match=r"the tokenizer has 260 tokens but the model only 259 embeddings; they do not"
    ):
        load(folder)

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ModelError, match=r"the tokenizer has no end-of-sequence token, so a model could never learn to stop$"
    ):
        load(folder)

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"the tokenizer in .*copy cannot be loaded \(.+\)$"):
        load(folder)


def test_an_encoder_loads_without_a_head(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    (folder / "model.safetensors").unlink()
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    loaded = load_encoder(folder)
    assert loaded.tokenizer.model_max_length == 99
    model = loaded.model.train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    first, second = (model(input_ids=IDS).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)


def test_loading_says_nothing_and_leaves_the_log_as_it_was(
    tiny_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        save_full(load("tiny"), tmp_path)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, trimtab.model.load, trimtab.model.save, trimtab.model.gguf, trimtab.model.hardware\n"
        "assert not {'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
