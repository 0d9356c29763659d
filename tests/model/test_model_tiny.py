from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from trimtab.model.chatml import CHATML
from trimtab.model.load import load
from trimtab.model.tiny import byte_letters, make_tiny, tiny_tokenizer

TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "{{ 'no' }} <b>é</b>"},
]
WRITTEN = (
    "<|im_start|>system\n Be brief. <|im_end|>\n"
    "<|im_start|>user\nHi\n<|im_end|>\n"
    "<|im_start|>assistant\nYo<|im_end|>\n"
    "<|im_start|>user\n{{ 'no' }} <b>é</b><|im_end|>\n"
)
TOKENIZER = tiny_tokenizer()


def weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_weights_are_the_same_bits_each_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_tiny(tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers are the caller's"
    torch.manual_seed(1)
    make_tiny(tmp_path / "b")
    # of the weights and not of the file, whose header is up to the libraries
    assert {weights_digest(tmp_path / name) for name in "ab"} == {
        "fe5fc5c08208801606e072e416ba43211c1fa11f279a74089a04917dc2457968"
    }


def test_sizes_and_first_loss(tiny_cache: Path) -> None:
    loaded = load("tiny", dtype="float32")
    model = loaded.model
    # embeddings 259 x 64; a layer: q, o 64 x 64, k, v 64 x 32, three of 64 x 128, two norms; the last norm
    assert model.num_parameters() == 259 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.model.embed_tokens.weight.abs().max().item() <= 0.02 * 3**0.5
    ids = torch.tensor([loaded.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss == pytest.approx(torch.tensor(259.0).log().item(), abs=0.1)


def test_token_ids_are_bytes() -> None:
    assert TOKENIZER("Aé\n")["input_ids"] == [0x41, 0xC3, 0xA9, 0x0A]
    assert TOKENIZER("<|im_start|><|im_end|><|pad|>")["input_ids"] == [256, 257, 258]
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (256, 257, 258)
    assert len(set(byte_letters())) == 256
    assert byte_letters()[ord(" ")] == "Ġ"
    assert byte_letters()[ord("\n")] == "Ċ"


@given(st.text())
def test_any_text_decodes_to_itself(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if "<|" not in text:
        assert ids == list(text.encode("utf-8", "surrogatepass"))


def test_the_template_writes_chatml() -> None:
    assert TOKENIZER.chat_template == CHATML
    assert TOKENIZER.apply_chat_template(TALK, tokenize=False) == WRITTEN
    asked = TOKENIZER.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert asked == WRITTEN + "<|im_start|>assistant\n"
    alone = TOKENIZER.apply_chat_template(TALK[1:2], tokenize=False)
    assert alone == "<|im_start|>user\nHi\n<|im_end|>\n", "no system turn that nobody wrote"


turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=9)), min_size=1, max_size=4
)


@given(turns, st.text(max_size=9))
def test_a_prompt_is_a_prefix_of_the_conversation(before: list[tuple[str, str]], answer: str) -> None:
    prompt = [{"role": role, "content": content} for role, content in before]
    asked = TOKENIZER.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = TOKENIZER.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    assert whole == f"{asked}{answer}<|im_end|>\n"
