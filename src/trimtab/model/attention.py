"""Tree attention: one attention function for every Hugging Face causal model.

The function is registered with transformers as ``"trimtab"``; what a token may see is decided by the *view* handed to
the model's forward as the keyword ``view``. Nothing else of the model is touched.

    TreeView    training and prefill: packed Groups; scaled dot-product attention segment by segment
    FlexView    the same for CUDA: one FlexAttention call with a block mask (the mask is tested; not yet run on a GPU)
    CacheView   sampling: one new token per row against that row's keys and values (see ``sampler``)

Letters: B rows, H heads, K key-value heads, T tokens, D head size.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.errors import ModelError
from trimtab.tensors.tree import TreeBatch

NAME = "trimtab"


class View(Protocol):
    """Decides what each query sees."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Attend; q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D)."""
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    view: View | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention in the shape that transformers' interface wants: (B, T, H, D) and no weights."""
    if view is None:
        raise ModelError(
            "this model was loaded for tree attention; call it through trimtab.model, or load it with another"
        )
    for feature in ("softcap", "s_aux"):
        if extra.get(feature) is not None:
            raise ModelError(
                f"{type(module).__name__} uses attention with {feature!r}, which tree attention does not do"
            )
    if dropout:
        raise ModelError("attention dropout is on; Trimtab trains with dropout off, so that old and new ratios agree")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = view.attend(layer, query, key, value, scale=scale, window=sliding_window)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)


class TreeView:
    """Attention over packed Groups, segment by segment.

    ``keep`` collects every layer's keys and values, for a sampler that goes on from the prompts.
    """

    def __init__(self, batch: TreeBatch, keep: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.spans = batch.spans
        self.segments = batch.segments
        self.keep = keep
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}

    def _mask(self, before: int, length: int, window: int | None) -> Tensor | None:
        """Which keys (before + length) each of ``length`` queries sees; None where causal masking says the same."""
        if window is not None and before + length <= window:
            window = None
        if window is None and before == 0:
            return None
        key = (before, length, window)
        if key not in self._masks:
            distance = torch.arange(before, before + length)[:, None] - torch.arange(before + length)[None, :]
            seen = distance >= 0
            self._masks[key] = seen if window is None else seen & (distance < window)
        return self._masks[key]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Run each prompt causally, then each answer against its prompt and itself."""
        if self.keep is not None:
            self.keep[layer] = (k, v)
        grouped = q.shape[1] != k.shape[1]
        # One split (its backward is one concatenation) instead of slices (the backward of each fills a whole zero row).
        qs, ks, vs = (list(x.split(self.segments, dim=2)) for x in (q, k, v))
        out: list[Tensor] = []
        at = 0
        for span in self.spans:
            if len(span.answers) == 1:  # a plain sequence: one causal call
                whole = [torch.cat(x[at : at + 2], dim=2) for x in (qs, ks, vs)]
                out.append(self._call(whole[0], whole[1], whole[2], 0, scale, window, grouped))
            else:
                for i in range(1 + len(span.answers)):
                    here = at + i
                    if not qs[here].shape[2]:
                        continue
                    if i == 0 or not span.prompt:
                        out.append(self._call(qs[here], ks[here], vs[here], 0, scale, window, grouped))
                    else:
                        k_i, v_i = (torch.cat((x[at], x[here]), dim=2) for x in (ks, vs))
                        out.append(self._call(qs[here], k_i, v_i, span.prompt, scale, window, grouped))
            at += 1 + len(span.answers)
        return torch.cat(out, dim=2)

    def _call(
        self, q: Tensor, k: Tensor, v: Tensor, before: int, scale: float, window: int | None, grouped: bool
    ) -> Tensor:
        mask = self._mask(before, q.shape[2], window)
        if mask is not None:
            mask = mask.to(q.device)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )


class FlexView:
    """The same visibility as TreeView in one FlexAttention call with a block mask, for CUDA."""

    def __init__(self, batch: TreeBatch, keep: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.keep = keep
        self.position = batch.position
        sizes = torch.tensor(batch.segments)
        group = torch.tensor([g for g, span in enumerate(batch.spans) for _ in range(1 + len(span.answers))])
        branch = torch.tensor([i for span in batch.spans for i in range(1 + len(span.answers))])
        device = batch.ids.device
        self.group = group.repeat_interleave(sizes).to(device)  # (T,)
        self.branch = branch.repeat_interleave(sizes).to(device)  # (T,) 0 is the prompt
        self._masks: dict[int | None, Any] = {}

    @cached_property
    def _flex(self) -> Any:
        from torch.nn.attention import flex_attention as flex

        compiled = torch.compile(flex.flex_attention) if self.group.is_cuda else flex.flex_attention
        return compiled, flex.create_block_mask

    def sees(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """Tell whether the token at index q sees the token at index k."""
        position, branch = self.position, self.branch
        distance = position[q] - position[k]
        seen = (self.group[q] == self.group[k]) & ((branch[k] == 0) | (branch[k] == branch[q])) & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """One block-masked call over the whole row."""
        if self.keep is not None:
            self.keep[layer] = (k, v)
        flex, create_block_mask = self._flex
        if window not in self._masks:
            total = len(self.group)
            self._masks[window] = create_block_mask(
                lambda b, h, i, j: self.sees(i, j, window), None, None, total, total, device=str(q.device)
            )
        grouped = q.shape[1] != k.shape[1]
        out: Tensor = flex(q, k, v, block_mask=self._masks[window], scale=scale, enable_gqa=grouped)
        return out


def tree_view(batch: TreeBatch, keep: dict[int, tuple[Tensor, Tensor]] | None = None) -> View:
    """Choose the view for the batch's device."""
    return FlexView(batch, keep) if batch.ids.is_cuda else TreeView(batch, keep)
