"""Statistics over the answer's tokens only.

Shapes: B answers, T the longest answer; ``x`` and ``mask`` are (B, T), or any other equal shape. A mask is boolean or a
float of zeros and ones. What stands off the mask never matters, not even ``nan`` or ``inf``: it is filled with zero,
never multiplied by it. Variances are biased (divided by the count), as in OpenAI's code. Sums are taken in the dtype of
``x``: hand in float32 or better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WHITEN_EPSILON = 1e-8


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None, *, keepdim: bool = False) -> Tensor:
    """Sum over the mask: ``sum m x``, over everything or along ``dim``; an empty mask gives 0."""
    return x.masked_fill(~mask.bool(), 0).sum(_dims(x, dim), keepdim=keepdim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None, *, keepdim: bool = False) -> Tensor:
    """Mean over the mask: ``sum m x / sum m``, over everything or along ``dim``; an empty mask gives 0."""
    count = mask.bool().expand(x.shape).sum(_dims(x, dim), keepdim=keepdim)
    return masked_sum(x, mask, dim, keepdim=keepdim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Biased variance over the mask: ``sum m (x - mean)^2 / sum m``.

    Equal numbers give exactly 0, without rounding dust; so does an empty mask.
    """
    return masked_mean(_centred(x, mask, dim).square(), mask, dim)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the whole mask, and shift to mean zero unless the mean is to be kept.

        (x - mean) * rsqrt(var + 1e-8)    [+ mean if not shift_mean]

    Shapes (B, T) -> (B, T), zero off the mask. Zero variance gives zero deviations: 0 everywhere (the mean with
    ``shift_mean=False``), never ``nan`` and never rounding noise blown up. The statistics are those of what is handed
    in, so hand in the whole batch, not a micro-batch.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), code; Huang et al. 2023, "The N implementation details of RLHF
    with PPO".
    """
    centred = _centred(x, mask)  # (B, T)
    white = centred * torch.rsqrt(masked_mean(centred.square(), mask) + WHITEN_EPSILON)
    if not shift_mean:
        white = white + masked_mean(x, mask)
    return white.masked_fill(~mask.bool(), 0)


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Tell how much of the targets' variance a critic explains: ``1 - var(targets - values) / var(targets)``.

    Shapes (B, T) -> (). 1 is perfect, 0 is no better than a constant, negative is worse. Constant targets leave nothing
    to explain and give 0.
    """
    total = masked_var(targets, mask)
    left = masked_var(targets - values, mask)
    return torch.where(total > 0, 1 - left / total.masked_fill(total == 0, 1), torch.zeros_like(total))


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of two lists of numbers, (N,) and (N,) -> (), in [-1, 1].

    0 when a side is constant or there are fewer than two numbers; never ``nan``. Integers (lengths, say) are welcome.
    """
    assert x.shape == y.shape
    x, y = (side if side.is_floating_point() else side.float() for side in (x, y))
    if x.numel() < 2:
        return x.new_zeros(())
    everything = torch.ones_like(x, dtype=torch.bool)
    x, y = (_unit_peak(_centred(side, everything)) for side in (x, y))
    norm = (x.square().sum() * y.square().sum()).sqrt()
    return ((x * y).sum() / norm.masked_fill(norm == 0, 1)).clamp(-1, 1)


def last_true(mask: Tensor) -> Tensor:
    """Return the position of each row's last 1, (B, T) -> (B,) int64; -1 for a row without any."""
    positions = torch.arange(mask.shape[1], device=mask.device).masked_fill(~mask.bool(), -1)  # (B, T)
    return F.pad(positions, (1, 0), value=-1).amax(dim=1)  # padded so that T = 0 works too


def _dims(x: Tensor, dim: int | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if dim is None else (dim,)


def _centred(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return ``x - mean``, zero off the mask, and exactly zero when ``x`` is constant on it.

    The smallest number is taken off first: then equal numbers become exact zeros, and a large common offset costs no
    digits. It is a constant to autograd because it cancels.
    """
    off = ~mask.bool()
    if x.numel() == 0:
        return x
    pivot = x.detach().masked_fill(off, torch.inf).amin(_dims(x, dim), keepdim=True)
    shifted = (x - pivot).masked_fill(off, 0)
    return (shifted - masked_mean(shifted, mask, dim, keepdim=True)).masked_fill(off, 0)


def _unit_peak(x: Tensor) -> Tensor:
    """Scale so that the largest magnitude is 1 and squares neither overflow nor vanish; all zeros stay."""
    peak = x.abs().amax()
    return x / peak.masked_fill(peak == 0, 1)
