from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from trimtab.errors import ModelError
from trimtab.model.source import folder_digest, resolve


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that cannot be reached, and an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder_is_its_own_path(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    source = resolve(str(folder))
    assert (source.ref, source.path, source.kind) == (str(folder), folder, "folder")
    assert source.digest == resolve(folder).digest
    # worked out by the rule in the docstring
    lines = "".join(
        f"{name} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"))
    )
    assert source.digest == hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_follows_what_makes_the_model_and_nothing_else(tmp_path: Path) -> None:
    digest = folder_digest(model_folder(tmp_path / "a"))
    assert folder_digest(model_folder(tmp_path / "b")) == digest
    assert folder_digest(model_folder(tmp_path / "c", b"weightz")) != digest
    for name in ("manifest.json", "metrics.jsonl", "README.md", "optimizer.pt", "trimtab-cache.json"):
        (tmp_path / "b" / name).write_text("noise")
        assert folder_digest(tmp_path / "b") == digest, name
    for name in ("chat_template.jinja", "tokenizer.json", "model-00002-of-00002.safetensors"):
        (tmp_path / "b" / name).write_text("signal")
        changed = folder_digest(tmp_path / "b")
        assert changed != digest, name
        digest = changed


def test_a_bundled_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_cache: Path
) -> None:
    model_folder(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny").kind == "bundled"
    assert resolve("./tiny").kind == "folder"
    assert resolve(Path("tiny")).kind == "folder"


def says(ref: str | Path, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(ref)
    assert str(caught.value) == sentence


def test_errors_say_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = "(a model is a bundled name, a local folder, a .gguf file, or a Hugging Face id 'owner/name')"
    says("smollm-135m-instruct", f"no model 'smollm-135m-instruct'; did you mean 'smollm2-135m-instruct'? {kinds}")
    says("x", f"no model 'x'; known: minilm-l6-v2, smollm2-135m-instruct, tiny {kinds}")
    says("runs/sft/model", "no model folder 'runs/sft/model'")
    says("./sft", "no model folder './sft'")
    says(Path("sft"), "no model folder 'sft'")
    says("model.gguf", "no GGUF file 'model.gguf'")


def test_errors_say_what_the_folder_is_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    says("empty", "empty: no config.json, so this is not a Hugging Face model folder")
    model_folder(Path("run/model"))
    says("run", "run: no config.json, so this is not a Hugging Face model folder; did you mean 'run/model'?")
    says(
        "run/model/model.safetensors",
        "run/model/model.safetensors: a model file must be .gguf; for safetensors name the folder that holds them",
    )
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    says("adapter", "adapter: this is an adapter of 'tiny', not a whole model; name its base model here")
    Path("adapter/adapter_config.json").write_text("{}")
    says("adapter", "adapter: this is an adapter, not a whole model; name its base model here")


def test_pickled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(Path("m"))
    Path("m/pytorch_model.bin").write_bytes(b"")
    resolve("m")  # safetensors are there too, and only they are read
    Path("m/model.safetensors").unlink()
    says(
        "m",
        "m: the weights are only there as pytorch_model.bin, a format that can run code when it is opened; "
        "convert them to safetensors first",
    )
    Path("m/pytorch_model.bin").unlink()
    says("m", "m: no *.safetensors file, so there are no weights to load")


def test_a_hub_id_without_network_says_what_to_do(offline: Path) -> None:
    says(
        "owner/name",
        "owner/name: no such local folder, and the hub cannot be reached or has no such revision; download the model "
        "where there is a network (`hf download owner/name`) and give its folder, or use a bundled model "
        "(smollm2-135m-instruct, minilm-l6-v2, tiny)",
    )
    says(
        "owner/a--b",
        "owner/a--b: neither a local folder nor a model on the hub; the bundled models are smollm2-135m-instruct, "
        "minilm-l6-v2, tiny",
    )


@pytest.mark.parametrize("ref", ["owner/name", "owner/name@v1"])
def test_a_hub_model_in_the_hubs_cache_needs_no_network(offline: Path, ref: str) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = offline / "models--owner--name"
    snapshot = model_folder(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / ("v1" if "@" in ref else "main")).write_text(commit)
    source = resolve(ref)
    assert (source.ref, source.path, source.kind) == (ref, snapshot, "hub")
    assert source.digest == hashlib.sha256(f"owner/name@{commit}".encode()).hexdigest()
