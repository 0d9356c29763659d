"""AdamW over float32 masters, one learning-rate schedule, clipping by group.

Live parameters may be bf16; their masters, gradients sums and moments are float32 (float64 stays float64), so small
steps are not rounded away and the number of micro-batches does not change the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.errors import InvariantError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and are clipped together.

    ``rates`` are factors on the learning rate, one for each parameter (``None``: all 1).
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    rates: Sequence[float] | None = None


def schedule(step: int, steps: int, *, warmup: float = 0.03, floor: float = 0.1) -> float:
    """Factor on the learning rate at 0-based ``step``: linear warm-up, then cosine down to ``floor``.

        warm-up of w = ceil(warmup * steps) steps:   (step + 1) / w
        after it, p = (step - w) / (steps - 1 - w):  floor + (1 - floor) (1 + cos(pi p)) / 2

    Never 0. The last step has exactly ``floor`` when two steps or more follow the warm-up; a single one has 1.
    """
    w = math.ceil(warmup * steps)
    if step < w:
        return (step + 1) / w
    rest = steps - 1 - w
    p = (step - w) / rest if rest > 0 else 0.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * p)) / 2


class Optimiser:
    """AdamW with masters. One ``accumulate`` after each backward, one ``step`` per update."""

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.0, max_grad_norm: float = 1.0,
    ) -> None:  # fmt: skip
        self.groups = {group.name: group for group in groups}
        self.max_grad_norm = max_grad_norm
        self.masters: dict[str, list[Tensor]] = {}
        self.adam: dict[str, torch.optim.AdamW] = {}
        for group in groups:
            half = (torch.bfloat16, torch.float16)
            masters = [p.detach().clone().float() if p.dtype in half else p.detach().clone() for p in group.parameters]
            self.masters[group.name] = masters
            rates = [1.0] * len(masters) if group.rates is None else group.rates
            alike: dict[float, list[Tensor]] = {}
            for master, rate in zip(masters, rates, strict=True):
                alike.setdefault(rate, []).append(master)
            self.adam[group.name] = torch.optim.AdamW(
                [{"params": own, "rate": rate} for rate, own in alike.items()],
                lr=group.lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True,
            )  # fmt: skip

    def accumulate(self) -> None:
        """Move the live parameters' gradients into the masters' sums."""
        for name, group in self.groups.items():
            for live, master in zip(group.parameters, self.masters[name], strict=True):
                if live.grad is None:
                    continue
                if master.grad is None:
                    master.grad = live.grad.to(master.dtype, copy=True)
                else:
                    master.grad += live.grad
                live.grad = None

    def step(self, factor: float, groups: Sequence[str] | None = None) -> dict[str, float]:
        """Clip, step and copy back; return each group's gradient norm before clipping.

        Groups without a gradient are left alone; a group that is not named loses the gradient it has gathered. Raises
        InvariantError when any gradient is not finite, before any weight or moment has changed.
        """
        norms: dict[str, float] = {}
        for name in groups if groups is not None else self.groups:
            masters = self.masters[name]
            if all(master.grad is None for master in masters):
                continue
            norms[name] = float(torch.nn.utils.clip_grad_norm_(masters, self.max_grad_norm))
            if not math.isfinite(norms[name]):
                raise InvariantError(
                    f"the gradient of {name!r} is not finite ({norms[name]}); nothing was changed by this step"
                )
        for name in norms:
            for parameter_group in self.adam[name].param_groups:
                parameter_group["lr"] = self.groups[name].lr * factor * parameter_group["rate"]
            self.adam[name].step()
            with torch.no_grad():
                torch._foreach_copy_(list(self.groups[name].parameters), self.masters[name])
        for adam in self.adam.values():  # also of groups not stepped: what they gathered would be lost by a kill
            adam.zero_grad(set_to_none=True)
        return norms

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on to the same bits: masters, moments, step counts."""
        out: dict[str, Tensor] = {}
        for name, masters in self.masters.items():
            for i, master in enumerate(masters):
                out[f"{name}/{i}/master"] = master.detach()
                for key, value in self.adam[name].state.get(master, {}).items():
                    out[f"{name}/{i}/{key}"] = value
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state back, into masters and live parameters."""
        for name, masters in self.masters.items():
            for i, master in enumerate(masters):
                with torch.no_grad():
                    master.copy_(state[f"{name}/{i}/master"])
                    self.groups[name].parameters[i].copy_(master)
                keys = ("step", "exp_avg", "exp_avg_sq")
                found = {key: state[f"{name}/{i}/{key}"].clone() for key in keys if f"{name}/{i}/{key}" in state}
                found |= {key: found[key].to(master.device) for key in keys[1:] if key in found}  # not the step count
                self.adam[name].state.pop(master, None)
                if found:
                    self.adam[name].state[master] = found
