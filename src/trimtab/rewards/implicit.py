"""A trained policy as a scorer of its own: no reward model, no judge.

A policy that was trained by DPO and its relatives holds a reward, up to a term of the prompt alone:

    r(x, y) = beta (log pi(y|x) - log pi_ref(y|x))       Rafailov et al. 2023 (arXiv:2305.18290), eq. 5

The reference is what training started from. Methods without one rank answers by their mean log-probability a token
(RRHF: Yuan et al. 2023, arXiv:2304.05302, eq. 1), and so does a model that was only fine-tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.artifacts import Artifact, read_artifact
from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.roles import Role
from trimtab.model.source import resolve
from trimtab.model.trunk import Trunk
from trimtab.records.types import Group
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.rewards.reading import adopt, same_tokens, score_groups, unique
from trimtab.tensors.tree import TreeBatch

STAGES = ("preference", "sft")


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """beta times the log-ratio to the reference, or without a reference the mean log-probability a token."""

    policy: Role
    reference: Role | None
    beta: float = 1.0
    micro_tokens: int = 4096

    @classmethod
    def open(cls, model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> ImplicitReward:
        """Open what a preference or sft stage has left, on a given trunk when that is its base.

        Errors: ModelError where the reference is not to be found any more.
        """
        assert model.artifact is not None
        if trunk is None:
            trunk = Trunk.load(model.base, dtype=dtype)
        policy = Role(trunk, adopt(trunk, model))
        beta = reference_beta(model.artifact.manifest)
        if beta is None:
            return cls(policy, None)
        start = find_start(model.artifact)
        theirs = trunk if start.base == model.base else Trunk.load(start.base, dtype=dtype)
        return cls(policy, Role(theirs, adopt(theirs, start)), beta)

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """The policy's, and the reference's where that is another one (all weights were trained)."""
        return unique([self.policy.trunk, *([] if self.reference is None else [self.reference.trunk])])

    def reads(self, trunk: Trunk) -> bool:
        """Tell whether it can be handed this trunk's tokens."""
        return same_tokens(self.policy.trunk, trunk)

    @torch.no_grad()
    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Scores (A,) of a batch of the policy's tokens; an answer without tokens gets 0."""
        mine = _sums(self.policy, batch)
        if self.reference is not None:
            return self.beta * (mine - _sums(self.reference, batch))
        return mine / batch.sum_by_answer(torch.ones_like(batch.target, dtype=mine.dtype)).clamp_min(1)

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group."""
        return score_groups(self.policy.trunk, groups, self.score_batch, micro_tokens=self.micro_tokens)


def _sums(role: Role, batch: TreeBatch) -> Tensor:
    """Log-probability of every answer, (A,)."""
    with role.trunk.using(role.adapter):
        return batch.sum_by_answer(role.trunk.logps(batch)[0])


def reference_beta(manifest: Mapping[str, Any]) -> float | None:
    """What a stage's method multiplies log-ratios by; ``None`` when it has no reference (sft: never).

    Of a loss of the user's own the manifest says which columns it asked for: its file need not be known here.
    """
    config = manifest.get("config", {})
    method, own = config.get("method", "dpo"), manifest.get("plugins", {}).get("method")
    if manifest["stage"] != "preference" or (own is None and method not in PREFERENCE_LOSSES):
        return None
    options = PREFERENCE_LOSSES[method].options if own is None else {}
    columns = PREFERENCE_LOSSES[method].columns if own is None else own
    if not any(name.startswith("ref_") or name.endswith("_kl") or name == "baseline" for name in columns):
        return None
    return float(config.get("beta", options["beta"].default if "beta" in options else 1.0))


def find_start(artifact: Artifact) -> ModelRef:
    """The model that a stage's training started from, which its manifest names by a word and a digest.

    Another stage of the run stands beside this one, so a run that has moved takes it along. Anything else is where it
    was when the stage ran. What is found is the very same model: the digests are compared.

    Errors: ModelError when it is not to be found.
    """
    word = str(artifact.manifest.get("config", {}).get("init", "base"))
    digest = str(artifact.manifest.get("inputs", {}).get(word, ""))
    for folder in (artifact.folder.parent / f"{word}-{digest[:12]}", Path(word)):
        found = read_artifact(folder) if folder.is_dir() else None
        if found is not None and found.key == digest and found.base is not None:
            return ModelRef(word, found.base, found)
    # No stage of ours, then: the model that the adapter sits on, or what the recipe called so.
    places = [None if artifact.whole else artifact.base, _model(artifact) if word == "base" else word]
    for place in places:
        if place is not None and _is(place, digest):
            return ModelRef(word, place)
    raise ModelError(
        f"{artifact.folder}: what its training started from ({word!r}) is not to be found: its reward is measured from "
        "that model; keep the run's folder whole"
    )


def _model(artifact: Artifact) -> str | None:
    """The recipe's model; manifests written before it stood there have it in the run's summary of itself."""
    if (model := artifact.manifest.get("model")) is not None:
        return str(model)
    path = artifact.folder.parent.parent / "run.json"
    return str(json.loads(path.read_text())["recipe"]["model"]) if path.is_file() else None


def _is(place: str, digest: str) -> bool:
    """Tell whether a model is there, and is the one of this digest."""
    try:
        return resolve(place).digest == digest
    except ModelError:
        return False
