"""A second opinion on a policy in training: the gold scorer, and when to stop.

The reward that is learned from is a proxy. Past some point it keeps rising while what it stands for falls (Gao et al.
2023, arXiv:2210.10760). A scorer that took no part in the reward sees the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.rewards.scorer import Scorer
from trimtab.stages._online_settings import Guard
from trimtab.stages._rollout import Roller, Sample
from trimtab.train.run import Means, Run


class Watch:
    """Scores every round by the gold scorer, keeps the weights of the best round, and says when to stop.

    A round's answers were written by the weights from before it, so these are kept: in a file of the stage's folder,
    so that they outlive a kill. Rounds are compared by the mean over ``guard.window`` of them; the first ``warmup``
    teach a critic alone, and are not compared.
    """

    def __init__(
        self, run: Run, roller: Roller, guard: Guard, gold: Scorer | None, parameters: Sequence[nn.Parameter], *,
        warmup: int = 0,
    ) -> None:  # fmt: skip
        self.run, self.roller, self.guard, self.gold, self.parameters = run, roller, guard, gold, parameters
        self.seen: list[float] = []  # gold scores by round
        self.best: float | None = None
        self.at = 0  # the best round
        self.warmup = warmup
        self.stopped = ""
        self.turned = False  # it was the gold score that stopped the run

    @property
    def path(self) -> Path:
        """Where the best weights stand."""
        return self.run.folder / "checkpoints" / "best.safetensors"

    def look(self, step: int, sample: Sample, log: Means) -> None:
        """Look at what was sampled in a round, before it is learned from."""
        if self.gold is not None and sample.flat:
            scores = self.roller.score_by(self.gold, sample)
            log.add({"rollout/gold": scores})
            if step < self.warmup:
                return
            self.seen.append(float(scores.mean()))
            recent = self.seen[-self.guard.window :]
            mean = sum(recent) / len(recent)
            if len(recent) == self.guard.window and (self.best is None or mean > self.best):
                self.best, self.at = mean, step
                self._keep()
            elif self.best is not None and self.guard.patience and step - self.at >= self.guard.patience:
                self.turned = True
                self.stopped = (
                    f"stopped after step {step}: the gold score was best at step {self.at} "
                    f"({self.best:.3g}, now {mean:.3g}); the weights of that step are kept"
                )

    def measure(self, step: int, kl: Tensor) -> None:
        """Look at how far the policy is from the reference, by the answers (B,) that were read."""
        far = float(kl.mean()) if len(kl) else 0.0
        if self.guard.kl is not None and far > self.guard.kl:
            self.stopped = (
                f"stopped after step {step}: KL {far:.3g} nats an answer, beyond the {self.guard.kl:g} allowed"
            )

    def settle(self) -> None:
        """After training: put the best round's weights back, if the run was stopped because the gold score turned."""
        if self.stopped:
            self.run.note(self.stopped)
        if self.turned:
            kept = load_file(self.path)
            with torch.no_grad():
                for i, parameter in enumerate(self.parameters):
                    parameter.copy_(kept[str(i)])

    def _keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        save_file({str(i): p.detach().contiguous().cpu() for i, p in enumerate(self.parameters)}, fresh)
        fresh.replace(self.path)

    def state(self) -> dict[str, Any]:
        """What was seen."""
        return {"seen": self.seen, "best": self.best, "at": self.at, "stopped": self.stopped, "turned": self.turned}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.seen, self.best = list(state["seen"]), state["best"]
        self.at, self.stopped, self.turned = int(state["at"]), str(state["stopped"]), bool(state["turned"])
