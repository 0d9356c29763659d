"""One forward pass over a TreeBatch: hidden states, and log-probabilities of the answer tokens only.

Letters as in ``tensors.tree``: T tokens, N targets, A answers; H hidden size, V vocabulary.

The head meets answer tokens only, ``CHUNK`` rows at a time, so that no (tokens x vocabulary) float32 table ever stands
in memory. Logits are computed in float32: a bf16 logit of size 20 is rounded by up to 0.06, which alone would be the
sampler-trainer gap that PPO's ratio sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.model.attention import tree_view
from trimtab.tensors.kl import exact_kl
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack

CHUNK = 256


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision for logits, sums and losses: float32 for half precisions, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The language-model head: logits = softcap(hidden @ weight.T + bias).

    ``weight`` (V, H) is the model's own.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    _copies: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def precise(self) -> Tensor:
        """The weight (V, H) for logits, outside any graph: itself, or a float32 copy where it is in half precision.

        The copy is made once, and anew after the weight has changed: after every update when the head is trained. (A
        change through ``weight.data`` in place is the one that cannot be seen.)
        """
        if wide(self.weight.dtype) == self.weight.dtype:
            return self.weight.detach()
        now = (self.weight._version, self.weight.data_ptr())
        if now not in self._copies:
            self._copies.clear()
            with torch.inference_mode(False), torch.no_grad():  # the sampler's copy must do for training too
                self._copies[now] = self.weight.to(wide(self.weight.dtype))
        return self._copies[now]

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """(n, H) -> (n, V), at least float32, divided by the temperature."""
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        precise = self.weight.to(wide(self.weight.dtype)) if learns else self.precise
        bias = None if self.bias is None else self.bias.to(precise.dtype)
        out = F.linear(hidden.to(precise.dtype), precise, bias)
        if self.softcap is not None:
            out = self.softcap * torch.tanh(out / self.softcap)
        return out if temperature == 1.0 else out / temperature


def head_of(model: nn.Module) -> Head:
    """Read a causal model's head. Its equality with the model's own logits is checked once, by ``check_head``."""
    embeddings: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    if embeddings is None:
        raise ModelError(f"{type(model).__name__} has no language-model head")
    weight: Tensor = embeddings.weight  # type: ignore[assignment]
    bias: Tensor | None = getattr(embeddings, "bias", None)
    softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
    return Head(weight=weight, bias=bias, softcap=softcap)


def decoder_of(model: nn.Module) -> nn.Module:
    """The model without its head (PEFT's wrapper included: adapters are inside)."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder


def run_decoder(decoder: nn.Module, ids: Tensor, position: Tensor, view: Any) -> Tensor:
    """Hidden states (B, T, H) of token ids (B, T) under a view."""
    out = decoder(input_ids=ids, position_ids=position, view=view, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


def hidden_states(decoder: nn.Module, batch: TreeBatch, keep: dict[int, tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Hidden states (T, H) of a TreeBatch; ``keep`` collects keys and values by layer."""
    return run_decoder(decoder, batch.ids[None], batch.position[None], tree_view(batch, keep))[0]


@torch.no_grad()
def check_head(model: nn.Module, head: Head, tolerance: float = 2e-2) -> None:
    """Stop when the model does something to its logits that ``Head`` does not know (scaling, say).

    Compared on a few tokens, relative to the logits' size; the tolerance is that of bf16.
    """
    batch = pack([TokenGroup(prompt=(1, 2, 3, 4), answers=((5,),))])
    device = head.weight.device
    batch = batch.to(device)
    ours = head.logits(hidden_states(decoder_of(model), batch))
    theirs: Tensor = model(
        input_ids=batch.ids[None], position_ids=batch.position[None], view=tree_view(batch), use_cache=False
    ).logits[0]
    gap = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)
    if not gap < tolerance:
        raise ModelError(
            f"{type(model).__name__} changes its logits after the head in a way Trimtab does not know "
            f"(relative difference {float(gap):.3g})"
        )


class _TargetLogps(torch.autograd.Function):
    """log softmax(head(hidden))[target] and entropy, in chunks; keeps probabilities in the model's precision.

    Keeping them beats computing the logits again in the backward pass, which is 27-49 % slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, head: Head, temperature: float) -> Any:
        kept: list[Tensor] = []
        logps, entropies = [], []
        keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        for rows, wanted in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            logits = head.logits(rows, temperature)
            logits -= torch.logsumexp(logits, dim=-1, keepdim=True)
            logps.append(logits.gather(-1, wanted[:, None])[:, 0])
            probability = logits.exp()
            entropies.append(-torch.linalg.vecdot(probability, logits))
            if keep:
                kept.append(probability.to(hidden.dtype))
        ctx.kept, ctx.temperature, ctx.head = kept, temperature, head
        entropy = torch.cat(entropies)
        ctx.save_for_backward(hidden, weight, target, entropy)
        return torch.cat(logps), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, target, entropy = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=wide(weight.dtype)) if need_weight else None
        use_entropy = bool(grad_entropy.any())
        begin = 0
        for p in ctx.kept:
            end = begin + p.shape[0]
            g = grad_logp[begin:end].to(p.dtype)
            grad = p * -g[:, None]
            grad.scatter_add_(1, target[begin:end, None], g[:, None])
            if use_entropy:  # dH/dz = -p (log p + H)
                inner = torch.xlogy(p, p) + p * entropy[begin:end, None].to(p.dtype)
                grad -= inner * grad_entropy[begin:end, None].to(p.dtype)
            grad /= ctx.temperature
            if need_hidden:
                grad_hidden.append(grad @ weight)
            if grad_weight is not None:
                grad_weight += (grad.T @ hidden[begin:end]).to(grad_weight.dtype)
            begin = end
        ctx.kept = []
        return (
            torch.cat(grad_hidden) if need_hidden else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            None, None, None,
        )  # fmt: skip


def target_logps(head: Head, hidden: Tensor, target: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of target tokens.

    hidden (N, H) at the predictors, target (N,) -> (N,), (N,); float32 at least, in nats, of
    softmax(logits / temperature). Both are differentiable. No targets give two empty tensors.
    """
    if not target.numel():
        empty = hidden.sum() * torch.zeros(0, dtype=wide(hidden.dtype), device=hidden.device)
        return empty, empty
    if head.softcap is not None or head.bias is not None:
        return _target_logps_plain(head, hidden, target, temperature)
    logps, entropy = _TargetLogps.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, target, head, temperature
    )
    return logps, entropy


def _target_logps_plain(head: Head, hidden: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same by plain autograd, for heads with a bias or a soft cap."""
    logps, entropies = [], []
    for rows, wanted in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
        full = F.log_softmax(head.logits(rows, temperature), dim=-1)
        logps.append(full.gather(-1, wanted[:, None])[:, 0])
        entropies.append(-(full.exp() * full).sum(-1))
    return torch.cat(logps), torch.cat(entropies)


def full_log_softmax(head: Head, hidden: Tensor, *, temperature: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, log-softmax over the vocabulary (n, V)) chunk by chunk: for exact KL and its relatives."""
    for begin in range(0, hidden.shape[0], CHUNK):
        rows = slice(begin, min(begin + CHUNK, hidden.shape[0]))
        yield rows, F.log_softmax(head.logits(hidden[rows], temperature), dim=-1)


def full_kl(head: Head, hidden: Tensor, other: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(p || q) over the whole vocabulary at each of N places: hidden, other (N, H) -> (N,), in nats.

    p comes from ``hidden`` and q from ``other`` through the same head (two adapters on one trunk).
    """
    parts = []
    for rows, p in full_log_softmax(head, hidden, temperature=temperature):
        q = F.log_softmax(head.logits(other[rows], temperature), dim=-1)
        parts.append(exact_kl(p, q))
    return torch.cat(parts) if parts else hidden.new_zeros(0)


class _ReferenceKL(torch.autograd.Function):
    """KL(reference || policy) over the vocabulary, in chunks; its gradient in the policy's logits is p - q."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, head: Head, ref_head: Head, ref_hidden: Tensor) -> Tensor:
        keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        kept: list[Tensor] = []
        parts = []
        for rows, theirs in zip(hidden.split(CHUNK), ref_hidden.split(CHUNK), strict=True):
            p, q = F.log_softmax(head.logits(rows), dim=-1), F.log_softmax(ref_head.logits(theirs), dim=-1)
            parts.append(exact_kl(q, p))
            if keep:
                kept.append((p.exp() - q.exp()).to(hidden.dtype))
        ctx.kept = kept
        ctx.save_for_backward(hidden, weight)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden, grad_weight = [], torch.zeros_like(weight, dtype=wide(weight.dtype)) if need_weight else None
        for difference, rows, grad in zip(ctx.kept, hidden.split(CHUNK), grads[0].split(CHUNK), strict=True):
            scaled = difference * grad[:, None].to(difference.dtype)
            if need_hidden:
                grad_hidden.append(scaled @ weight)
            if grad_weight is not None:
                grad_weight += (scaled.T @ rows).to(grad_weight.dtype)
        ctx.kept = []
        return (
            torch.cat(grad_hidden) if need_hidden else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            None, None, None,
        )  # fmt: skip


def reference_kl(head: Head, hidden: Tensor, ref_head: Head, ref_hidden: Tensor) -> Tensor:
    """KL(reference || policy) over the whole vocabulary at each of N places, in nats.

    hidden, ref_hidden (N, H) through their heads -> (N,), float32 at least, differentiable in the policy's ``hidden``
    and head. No places give an empty tensor.
    """
    if not hidden.shape[0]:
        return hidden.sum() * torch.zeros(0, dtype=wide(hidden.dtype), device=hidden.device)
    if head.softcap is not None or head.bias is not None:
        rows = zip(hidden.split(CHUNK), ref_hidden.split(CHUNK), strict=True)
        parts = [(F.log_softmax(ref_head.logits(r), dim=-1), F.log_softmax(head.logits(h), dim=-1)) for h, r in rows]
        return torch.cat([exact_kl(q, p) for q, p in parts])
    out: Tensor = _ReferenceKL.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head, ref_head, ref_hidden.detach()
    )
    return out
