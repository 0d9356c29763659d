"""Log-probabilities and entropies of answer tokens: values and gradients against plain autograd, in float64."""

from __future__ import annotations

import pytest
import torch

from trimtab.model import forward
from trimtab.model.forward import Head, full_kl, target_logps

N, H, V = 11, 6, 13


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(N, H, dtype=dtype), torch.randn(V, H, dtype=dtype), torch.randint(0, V, (N,))


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    full = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return full.gather(-1, target[:, None])[:, 0], -(full.exp() * full).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [4, 256])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int) -> None:
    monkeypatch.setattr(forward, "CHUNK", chunk)
    hidden, weight, target = make()
    grads = []
    for function in (plain, None):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if function is None:
            logps, entropy = target_logps(Head(weight=w), h, target, temperature=temperature)
        else:
            logps, entropy = function(h, w, target, temperature)
        scale = torch.linspace(-1, 2, N, dtype=torch.float64)
        ((logps * scale).sum() + 0.3 * (entropy * scale).sum()).backward()
        grads.append((logps.detach(), entropy.detach(), h.grad, w.grad))
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_hot_logits_give_zero_at_the_right_token() -> None:
    weight = torch.eye(V, dtype=torch.float64) * 50
    target = torch.arange(N) % V
    hidden = torch.eye(V, dtype=torch.float64)[target]
    logps, entropy = target_logps(Head(weight=weight), hidden, target)
    assert logps.abs().max() < 1e-12
    assert entropy.abs().max() < 1e-10
    wrong, _ = target_logps(Head(weight=weight), hidden, (target + 1) % V)
    assert wrong.max() == pytest.approx(-50)


def test_half_precision_heads_work_in_float32() -> None:
    hidden, weight, target = make(dtype=torch.bfloat16)
    head = Head(weight=weight)
    logps, _ = target_logps(head, hidden * 8, target)
    exact, _ = plain((hidden * 8).double(), weight.double(), target, 1.0)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), exact, atol=1e-4, rtol=1e-5)


def test_bias_and_softcap() -> None:
    hidden, weight, target = make()
    bias = torch.randn(V, dtype=torch.float64)
    logps, _ = target_logps(Head(weight=weight, bias=bias, softcap=3.0), hidden, target)
    expected = torch.log_softmax(3 * torch.tanh((hidden @ weight.T + bias) / 3), -1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(logps, expected)


def test_no_targets() -> None:
    hidden, weight, target = make()
    logps, entropy = target_logps(Head(weight=weight), hidden[:0].requires_grad_(), target[:0])
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()


def test_full_kl_against_the_definition() -> None:
    hidden, weight, _ = make()
    other = torch.randn_like(hidden)
    head = Head(weight=weight)
    p, q = torch.log_softmax(hidden @ weight.T, -1), torch.log_softmax(other @ weight.T, -1)
    torch.testing.assert_close(full_kl(head, hidden, other), (p.exp() * (p - q)).sum(-1))
    assert full_kl(head, hidden, hidden).abs().max() == 0


def test_the_precise_copy_is_made_once_and_anew_after_a_change() -> None:
    weight = torch.nn.Parameter(make(dtype=torch.bfloat16)[1])
    head = Head(weight=weight)
    first = head.precise
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert head.precise is first
    with torch.no_grad():
        torch._foreach_copy_([weight], [weight.detach() * 2])  # as the optimiser does
    assert torch.equal(head.precise, 2 * first)
    weight.data = weight.data * 2  # as merging does
    assert torch.equal(head.precise, 4 * first)
    weight.data = weight.data / 4
    with torch.inference_mode():
        inside = head.precise
    assert torch.equal(inside, first)
    hidden = torch.ones(N, H, requires_grad=True)  # a copy made by the sampler must do for training too
    torch.nn.functional.linear(hidden, inside).sum().backward()
    exact = make()[1]
    assert Head(weight=exact).precise.data_ptr() == exact.data_ptr()


def test_a_trained_head_learns_by_every_path() -> None:
    hidden, weight, target = make()
    rows = torch.arange(N)
    grads = []
    for path in ("fused", "plain", "full"):
        head = Head(weight=weight.clone().requires_grad_(), softcap=1e9 if path == "plain" else None)
        if path == "full":
            ((_, table),) = forward.full_log_softmax(head, hidden)
            table[rows, target].sum().backward()
        else:
            target_logps(head, hidden, target)[0].sum().backward()
        grads.append(head.weight.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])
