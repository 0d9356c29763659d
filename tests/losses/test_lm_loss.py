"""The language-model loss."""

from __future__ import annotations

import math

import torch

from trimtab.losses.lm import next_token


def test_uniform_model_costs_ln_v_and_equals_cross_entropy() -> None:
    logits = torch.zeros(3, 7, dtype=torch.float64)
    ids = torch.tensor([0, 3, 6])
    logps = logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(next_token(logps), torch.full((3,), math.log(7), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    logps = logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
    oracle = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    torch.testing.assert_close(next_token(logps), oracle)


def test_gradient_and_emptiness() -> None:
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(next_token(logps).sum(), logps)
    assert gradient.tolist() == [-1.0, -1.0]
    assert next_token(torch.zeros(0)).shape == (0,)
