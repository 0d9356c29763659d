"""Whatever gives an answer a number, behind one call: a reward model, a gated one, an ensemble, a policy's own reward.

    reward          w . h + b at the answer's last token                       reward_model.py
    gated_reward    attributes, mixed by a gate that reads the prompt          gated.py
    ensemble        several scorers as one                                     ensemble.py
    preference      beta log(policy / reference), or log p a token             implicit.py
    sft             log p a token                                              implicit.py
    judge           how often a language model finds it the better of two      ai_judge.py

``trimtab score``, ``generate --best-of``, the policy stage's and evaluate's ``reward`` take any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from trimtab.config import ModelRef
from trimtab.errors import ModelError
from trimtab.model.trunk import SCORE_HEAD, Trunk
from trimtab.records.types import Group
from trimtab.rewards.ai_judge import AIJudge
from trimtab.rewards.gated import GatedReward
from trimtab.rewards.implicit import STAGES as IMPLICIT
from trimtab.rewards.implicit import ImplicitReward
from trimtab.rewards.reward_model import RewardModel
from trimtab.tensors.tree import TreeBatch


class Scorer(Protocol):
    """One number an answer, higher is better; only differences between answers to one prompt need mean anything."""

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """The models that it reads with, each once."""
        ...

    def reads(self, trunk: Trunk) -> bool:
        """Tell whether it can be handed this trunk's tokens; otherwise it is handed text."""
        ...

    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Scores (A,) of a batch of tokens that it reads, without a gradient."""
        ...

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Scores of every answer of every Group; a Group without answers gets an empty list."""
        ...


def open_scorer(model: ModelRef, *, trunk: Trunk | None = None, dtype: str = "auto") -> Scorer:
    """Open what a stage has left as a scorer, on a given trunk when that is its base.

    Errors: ModelError for a model that is no stage's, and for stages that leave nothing to score with.
    """
    from trimtab.rewards.ensemble import Ensemble  # it opens scorers itself

    if model.artifact is None:
        raise ModelError(f"{model.name!r} is not a reward model: name a 'reward' stage or the folder of one")
    stage = model.artifact.stage
    if stage == "judge":
        return AIJudge.open(model)
    if stage == "ensemble":
        return Ensemble.open(model, trunk=trunk, dtype=dtype)
    if stage == "gated_reward":
        return GatedReward.open(model, trunk=trunk, dtype=dtype)
    if stage in IMPLICIT and not (model.artifact.folder / SCORE_HEAD).is_file():
        return ImplicitReward.open(model, trunk=trunk, dtype=dtype)
    return RewardModel.open(model, trunk=trunk, dtype=dtype)


def only_compares(scorer: Scorer) -> bool:
    """Tell whether a scorer says no more than which of several answers to a prompt is better.

    Then one answer alone has no score, and the mean over the answers to a prompt is always the same: no curve of such
    scores can rise.
    """
    from trimtab.rewards.ensemble import Ensemble

    if isinstance(scorer, Ensemble):
        return any(map(only_compares, scorer.scorers))
    return isinstance(scorer, AIJudge) and scorer.against is None
