"""KL estimators: numbers by hand, expectations by enumeration on a 5-token vocabulary, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.tensors.kl import KL_KINDS, KLKind, exact_kl, kl_estimate


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("p", "reference", "kind", "expected"),
    [
        (0.5, 0.4, "k1", 0.2231),
        (0.5, 0.4, "k2", 0.0249),
        (0.5, 0.4, "k3", 0.0231),
        (0.5, 0.4, "k3+", 0.0231),
        (0.4, 0.5, "k1", -0.2231),
        (0.4, 0.5, "k2", 0.0249),
        (0.4, 0.5, "k3", 0.0269),
        (0.4, 0.5, "k3+", 0.0269),
    ],
)
def test_numbers_by_hand(p: float, reference: float, kind: KLKind, expected: float) -> None:
    """q = ln(.4/.5) = -.2231: k2 = .0498/2, k3 = .8 - 1 + .2231."""
    assert kl_estimate(logs(p), logs(reference), kind).item() == pytest.approx(expected, abs=5e-5)


def enumerated(kind: KLKind) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return E[k], E[grad k] over the whole vocabulary, and the logits of policy and reference."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(5, generator=generator, dtype=torch.float64)
    logps = logits.log_softmax(-1)
    sampled_with = logps.detach().exp()  # the sampling itself carries no gradient
    expectation = (sampled_with * kl_estimate(logps, reference.log_softmax(-1), kind)).sum()
    (gradient,) = torch.autograd.grad(expectation, logits, retain_graph=True)
    return expectation.detach(), gradient, logits, reference


def forward_and_reverse(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of KL(policy || reference) and of KL(reference || policy)."""
    logps, ref_logps = logits.log_softmax(-1), reference.log_softmax(-1)
    (one,) = torch.autograd.grad(exact_kl(logps, ref_logps), logits)
    (other,) = torch.autograd.grad(exact_kl(ref_logps, logits.log_softmax(-1)), logits)
    return one, other


@pytest.mark.parametrize("kind", ["k1", "k3", "k3+"])
def test_unbiased_values(kind: KLKind) -> None:
    expectation, _, logits, reference = enumerated(kind)
    exact = exact_kl(logits.log_softmax(-1), reference.log_softmax(-1)).detach()
    assert exact > 0.1  # far enough apart to tell
    torch.testing.assert_close(expectation, exact)


def test_k2_is_biased() -> None:
    expectation, _, logits, reference = enumerated("k2")
    q = reference.log_softmax(-1) - logits.log_softmax(-1)
    torch.testing.assert_close(expectation, (logits.softmax(-1) * q**2 / 2).sum().detach())
    assert (expectation - exact_kl(logits.log_softmax(-1), reference.log_softmax(-1))).abs() > 0.01


def test_expected_gradients() -> None:
    """E grad k1 = 0, E grad k2 = grad KL(pi || ref), E grad k3 = grad KL(ref || pi), k3+ as k2."""
    _, _, logits, reference = enumerated("k1")
    ours, reversed_kl = forward_and_reverse(logits, reference)
    assert (ours - reversed_kl).abs().max() > 0.01  # the two directions differ here
    expected = {"k1": torch.zeros_like(ours), "k2": ours, "k3": reversed_kl, "k3+": ours}
    for kind in KL_KINDS:
        torch.testing.assert_close(enumerated(kind)[1], expected[kind], msg=lambda m, kind=kind: f"{kind}: {m}")


@pytest.mark.parametrize(
    ("mean", "kind", "bias", "spread"),
    [
        (0.1, "k1", 0.0, 20.0),
        (0.1, "k2", 0.002, 1.42),
        (0.1, "k3", 0.0, 1.42),
        (1.0, "k1", 0.0, 2.0),
        (1.0, "k2", 0.25, 1.73),
        (1.0, "k3", 0.0, 1.7),
    ],
)
def test_bias_and_spread_of_schulmans_note(mean: float, kind: KLKind, bias: float, spread: float) -> None:
    """Policy N(0, 1), reference N(mean, 1): the true KL is mean^2 / 2; expectations by quadrature."""
    x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    weights = torch.exp(-(x**2) / 2)
    weights /= weights.sum()
    k = kl_estimate(-(x**2) / 2, -((x - mean) ** 2) / 2, kind)
    expectation = (weights * k).sum()
    true = mean**2 / 2
    deviation = (weights * (k - expectation) ** 2).sum().sqrt()
    assert (expectation / true - 1).item() == pytest.approx(bias, abs=1e-3)
    assert (deviation / true).item() == pytest.approx(spread, rel=0.01)


def test_k3_is_never_negative_and_exact_near_zero() -> None:
    """For q = 1e-6 the truth is q^2 / 2 = 5e-13; exp(q) - 1 - q taken literally in float32 gives -4.6e-8."""
    q = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    assert (kl_estimate(-q, torch.zeros_like(q), "k3") >= 0).all()
    tiny = kl_estimate(torch.zeros(1), torch.full((1,), 1e-6), "k3")
    assert tiny.item() == pytest.approx(5e-13, rel=0.3)


@pytest.mark.parametrize("kind", KL_KINDS)
@pytest.mark.parametrize("q", [-1e4, 1e4])
def test_finite_far_out_in_float32(kind: KLKind, q: float) -> None:
    logps = torch.tensor([-q], requires_grad=True)
    k = kl_estimate(logps, torch.zeros(1), kind)
    (gradient,) = torch.autograd.grad(k.sum(), logps)
    assert k.isfinite().all()
    assert gradient.isfinite().all()


def test_where_the_clamp_bites() -> None:
    """q = 30: k1 and k2 are exact, k3 stops at e^20 - 21 and has no gradient, k3+ keeps k2's gradient -q."""
    expected = {"k1": (-30.0, 1.0), "k2": (450.0, -30.0), "k3": (math.exp(20) - 21, 0.0)}
    expected["k3+"] = (math.exp(20) - 21, -30.0)
    for kind in KL_KINDS:
        logps = torch.tensor(-30.0, dtype=torch.float64, requires_grad=True)
        k = kl_estimate(logps, torch.zeros((), dtype=torch.float64), kind)
        (gradient,) = torch.autograd.grad(k, logps)
        assert (k.item(), gradient.item()) == pytest.approx(expected[kind])


@pytest.mark.parametrize("kind", KL_KINDS)
def test_no_gradient_into_the_reference(kind: KLKind) -> None:
    reference = torch.zeros(3, requires_grad=True)
    kl_estimate(torch.ones(3, requires_grad=True), reference, kind).sum().backward()
    assert reference.grad is None


def test_same_policy_is_zero() -> None:
    logps = torch.randn(4, 7, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    for kind in KL_KINDS:
        assert torch.equal(kl_estimate(logps, logps, kind), torch.zeros(4, 7))
    assert torch.equal(exact_kl(logps, logps), torch.zeros(4))


def test_exact_kl_by_hand_and_tokens_never_emitted() -> None:
    """(.5, .5, 0) against (.25, .5, .25): .5 ln 2. The other way round is infinite."""
    policy = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log().requires_grad_()
    reference = logs(0.25, 0.5, 0.25)
    kl = exact_kl(policy, reference)
    assert kl.item() == pytest.approx(0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(kl, policy)
    assert gradient.isfinite().all()
    assert gradient[2].item() == 0.0
    assert exact_kl(policy.detach(), policy.detach()).item() == 0.0
    assert exact_kl(reference, policy.detach()).item() == math.inf


def test_exact_kl_shape() -> None:
    logps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    assert exact_kl(logps, logps.roll(1, -1)).shape == (2, 3)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="no KL estimator 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]
