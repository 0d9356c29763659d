"""From what the user wrote to a folder that transformers can load.

smollm2-135m-instruct, minilm-l6-v2, tiny      a bundled name (wins over a folder of that name; write ./tiny for that)
runs/sft/model, ./tiny, ~/models/x             a local Hugging Face folder
model.gguf                                     a local GGUF file, converted once
owner/name, owner/name@revision                a Hugging Face id; its files come from the hub or the hub's own cache
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.errors import ModelError, did_you_mean
from trimtab.model.bundled import BUNDLED, bundled_folder
from trimtab.model.cache import file_digest

Kind = Literal["bundled", "folder", "gguf", "hub"]

HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
HUB_SKIPPED = ["*/*", "consolidated*"]  # the weights once more, in other formats
IDENTITY = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "sentence_bert_config.json",
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "vocab.*", "merges.txt",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model comes from: what the user wrote, a loadable Hugging Face folder, the kind, and an identity.

    ``digest`` is 64 hexadecimal digits; equal digests mean the same model. Bundled: of the wheel's SHA-256 and our
    edition. Folder: of the names and digests of its weights, configuration and tokenizer files (``folder_digest``).
    GGUF: of the file (``file_digest``). Hub: of the id and the commit.
    """

    ref: str
    path: Path
    kind: Kind
    digest: str


def resolve(ref: str | Path) -> Source:
    """Find a model, fetching or converting it when that has not been done yet; ``path`` is then a folder that loads.

    Raises ModelError saying what was meant (a misspelt bundled name), what is missing (no such folder; only pickled
    weights; an adapter in place of a model) or what to do (offline).
    """
    text = str(ref)
    if isinstance(ref, str) and ref in BUNDLED:
        return Source(ref=ref, path=bundled_folder(ref), kind="bundled", digest=BUNDLED[ref].digest)
    path = Path(ref).expanduser()
    if path.is_dir():
        check_folder(path)
        return Source(ref=text, path=path, kind="folder", digest=folder_digest(path))
    if path.is_file():
        return _resolve_file(text, path)
    if path.suffix == ".gguf":
        raise ModelError(f"no GGUF file {text!r}")
    if isinstance(ref, str) and (match := HUB_ID.fullmatch(ref)) and not ref.startswith("."):
        return _resolve_hub(ref, match["id"], match["revision"])
    if isinstance(ref, Path) or "/" in text or "\\" in text:
        raise ModelError(f"no model folder {text!r}")
    raise ModelError(
        f"no model {text!r}{did_you_mean(text, BUNDLED)} (a model is a bundled name, a local folder, a .gguf file, or "
        "a Hugging Face id 'owner/name')"
    )


def folder_digest(folder: Path) -> str:
    """Return the identity of a Hugging Face folder: SHA-256 over names and digests of the files that make the model.

    Counted are weights, configuration, tokenizer and chat template (``IDENTITY``), not manifests, metrics or what lies
    in folders below. Weights up to 512 MiB a file are hashed whole (0.2 s for SmolLM2), larger ones by samples.
    """
    names = sorted({path.name for pattern in IDENTITY for path in folder.glob(pattern)})
    lines = (f"{name} {file_digest(folder / name)}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a whole model in safetensors, saying what it is instead."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: this is an adapter{_base_of(folder)}, not a whole model; name its base model here")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is not a Hugging Face model folder{_nearby(folder)}")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder}: the weights are only there as {pickled[0]}, a format that can run code when it is opened; "
            "convert them to safetensors first"
        )
    raise ModelError(f"{folder}: no *.safetensors file, so there are no weights to load")


def _resolve_file(ref: str, path: Path) -> Source:
    if path.suffix != ".gguf":
        raise ModelError(f"{ref}: a model file must be .gguf; for safetensors name the folder that holds them")
    from trimtab.model.gguf import folder_of_gguf

    folder, digest = folder_of_gguf(path)
    return Source(ref=ref, path=folder, kind="gguf", digest=digest)


def _resolve_hub(ref: str, repo: str, revision: str | None) -> Source:
    """Fetch a hub model's files; the hub's own cache serves them when there is no network."""
    from huggingface_hub import errors, snapshot_download

    from trimtab.model.quiet import quiet

    try:
        with quiet():
            folder = Path(
                snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPPED)
            )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{ref}: the hub gives this model only to those who accepted its terms; do so and log in"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"{ref}: neither a local folder nor a model on the hub; the bundled models are {', '.join(BUNDLED)}"
        ) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        errors.HTTPError,  # type: ignore[attr-defined] # of whichever HTTP library the hub's client uses
        ConnectionError,
    ) as error:
        raise ModelError(
            f"{ref}: no such local folder, and the hub cannot be reached or has no such revision; download the model "
            f"where there is a network (`hf download {repo}`) and give its folder, or use a bundled model "
            f"({', '.join(BUNDLED)})"
        ) from error
    check_folder(folder)
    return Source(ref=ref, path=folder, kind="hub", digest=hashlib.sha256(f"{repo}@{folder.name}".encode()).hexdigest())


def _base_of(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" of {base!r}" if base else ""


def _nearby(folder: Path) -> str:
    """Name a model folder or GGUF file that lies inside, for the common slip of naming its parent."""
    inside = sorted([*folder.glob("*/config.json"), *folder.glob("*.gguf")])
    if not inside:
        return ""
    found = inside[0].parent if inside[0].name == "config.json" else inside[0]
    return f"; did you mean {str(found)!r}?"
