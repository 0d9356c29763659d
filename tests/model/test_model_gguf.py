from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file

from trimtab.errors import ModelError
from trimtab.model import gguf as room
from trimtab.model.load import Loaded, load
from trimtab.model.source import resolve
from trimtab.model.tiny import byte_letters

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
TEXT = "Hi\n\n1 two  2"


@pytest.fixture
def tiny(tiny_cache: Path) -> Loaded:
    return load("tiny", dtype="float32")


def tensors(loaded: Loaded) -> Iterator[tuple[str, np.ndarray]]:
    """The tiny Llama's weights under llama.cpp's names; its q and k keep a head's two rotary halves interleaved."""
    heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
    state = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(2):
        for hf, gguf in NAMES.items():
            weight = state[f"model.layers.{layer}.{hf}.weight"]
            if n := heads.get(hf):
                weight = weight.reshape(n, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            yield f"blk.{layer}.{gguf}.weight", weight


def write_gguf(
    path: Path, loaded: Loaded, *, architecture: str = "llama", splits: str = "gpt-2", quant: bool = False
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(loaded.model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list([*byte_letters(), *SPECIALS, "ĊĊ"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(257)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in tensors(loaded):
        if name == "token_embd.weight":
            weight = np.concatenate([weight, weight[10:11]])  # the merged line feeds look like one
        if quant and weight.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_plain_folder_with_equal_logits(
    tiny: Loaded, tiny_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(write_gguf(tmp_path / "model.gguf", tiny))
    assert source.kind == "gguf"
    assert source.path.parent == tiny_cache / "models"
    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    capfd.readouterr()
    loaded = load(source, dtype="float32")
    assert capfd.readouterr() == ("", "")

    plain = AutoModelForCausalLM.from_pretrained(source.path, local_files_only=True)
    assert plain.dtype == torch.float32
    ids = torch.tensor([tiny.tokenizer("Hello\n\nworld")["input_ids"]])
    assert torch.equal(plain(ids).logits, loaded.model(ids).logits)
    assert torch.equal(plain(ids).logits[..., :259], tiny.model(ids).logits)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert getattr(plain.config, "quantization_config", None) is None
    assert plain.generation_config.eos_token_id == 257
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 2048
    assert len(tokenizer) == 260
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_moved_file_is_not_converted_again(
    tiny: Loaded, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny)
    first = resolve(path)
    assert capfd.readouterr() == ("", ""), "converting says nothing, not even a progress bar"
    monkeypatch.delattr(room, "convert_gguf")
    second = resolve(path.rename(tmp_path / "b.gguf"))
    assert (second.path, second.digest) == (first.path, first.digest)


def test_quantised_weights_are_unpacked_to_bfloat16(tiny: Loaded, tmp_path: Path) -> None:
    source = resolve(write_gguf(tmp_path / "q8.gguf", tiny, quant=True))
    stored = load_file(source.path / "model.safetensors")
    original = dict(tiny.model.named_parameters())
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored.keys() == original.keys()
    kind = GGMLQuantizationType.Q8_0
    for name, weight in stored.items():
        expected = original[name].detach().numpy()
        if expected.ndim == 2:  # blocks run along a row, so swapping q's and k's rows changes nothing in them
            expected = dequantize(quantize(expected, kind), kind)
        assert torch.equal(weight[:259], torch.from_numpy(expected).bfloat16()), name


@pytest.mark.parametrize(
    ("splits", "tokens"),
    [
        ("gpt-2", ["H", "i", "Ċ", "Ċ", "1", "Ġ", "t", "w", "o", "Ġ", "Ġ", "2"]),
        ("smollm", ["H", "i", "ĊĊ", "1", "Ġ", "t", "w", "o", "Ġ", "Ġ", "2"]),
    ],
)
def test_text_is_split_as_the_file_says(tiny: Loaded, tmp_path: Path, splits: str, tokens: list[str]) -> None:
    """Splitting off digits first leaves two line feeds together, so their merge applies; GPT-2's rule parts them."""
    tokenizer = load(write_gguf(tmp_path / "m.gguf", tiny, splits=splits)).tokenizer
    assert tokenizer.tokenize(TEXT) == tokens
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_what_cannot_be_rebuilt_is_refused(tiny: Loaded, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny, splits="falcon")
    with pytest.raises(
        ModelError, match=r"m\.gguf: the GGUF file's tokenizer splits text by 'falcon', which cannot be"
    ):
        resolve(path)
    path = write_gguf(tmp_path / "m.gguf", tiny, architecture="rwkv7")
    with pytest.raises(
        ModelError, match=r"GGUF architecture 'rwkv7' is not one that transformers can read; give .*llama"
    ):
        resolve(path)


def test_files_that_are_not_whole_are_refused(tiny: Loaded, tiny_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny)
    whole = path.read_bytes()
    before = sorted((tiny_cache / "models").iterdir())
    for length in (5, 100, 3000):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"m\.gguf: the GGUF file cannot be read, it may be cut short \(.+\)$"):
            resolve(path)
    path.write_bytes(whole[:-5000])
    with pytest.raises(ModelError, match=r"m\.gguf: this GGUF file \(llama\) cannot be converted \(.+\); give"):
        resolve(path)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match=r"m\.gguf: not a GGUF file \(it does not begin with 'GGUF'\)$"):
        resolve(path)
    assert sorted((tiny_cache / "models").iterdir()) == before
