"""Laws that every policy loss in the folder obeys; a new file is tested the moment it exists.

Arguments are handed in by the loss's own parameter names. Advantages are constant over an answer, so that losses with a
ratio per answer come under the same laws.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from trimtab.losses.policy._terms import PolicyTerms
from trimtab.registry import POLICY_LOSSES
from trimtab.tensors.masked import masked_mean

LENGTHS = torch.tensor([6, 1, 4, 3])
MASK = torch.arange(6) < LENGTHS.unsqueeze(1)

every_loss = pytest.mark.parametrize("name", sorted(POLICY_LOSSES))


def batch(drift: float) -> dict[str, Tensor]:
    """Four ragged answers whose policy has moved by about ``drift`` nats per token since the rollout."""
    generator = torch.Generator().manual_seed(11)
    old_logps = -torch.rand(4, 6, generator=generator, dtype=torch.float64) - 0.5
    moved = drift * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, 0.7, -1.2], dtype=torch.float64).unsqueeze(1).expand(4, 6).clone()
    return {"logps": old_logps + moved, "old_logps": old_logps, "advantages": advantages, "mask": MASK}


def run(name: str, given: dict[str, Tensor]) -> PolicyTerms:
    entry = POLICY_LOSSES[name]
    wanted = [p for p in inspect.signature(entry.function).parameters if p not in entry.options]
    unknown = set(wanted) - set(given)
    assert not unknown, f"{name} wants {unknown}: teach the laws what that is"
    terms = entry.function(*(given[parameter] for parameter in wanted))
    assert isinstance(terms, PolicyTerms)
    return terms


def test_the_folder_is_not_empty() -> None:
    assert "ppo" in POLICY_LOSSES
    assert not any(name.startswith("_") for name in POLICY_LOSSES)


@every_loss
def test_documented_with_a_source(name: str) -> None:
    entry = POLICY_LOSSES[name]
    assert entry.summary.endswith(".")
    assert "Source:" in (entry.function.__doc__ or "")


@every_loss
def test_first_update(name: str) -> None:
    """Nothing has moved: ratio 1, clip fraction 0, and the gradient is REINFORCE's, -A per answer token."""
    given = batch(drift=0.0)
    given["logps"] = given["logps"].clone().requires_grad_()
    terms = run(name, given)
    torch.testing.assert_close(terms.ratio[MASK], torch.ones_like(terms.ratio[MASK]), rtol=0, atol=0)
    assert masked_mean(terms.clipped, MASK).item() == 0.0
    (gradient,) = torch.autograd.grad(terms.loss[MASK].sum(), given["logps"])
    torch.testing.assert_close(gradient[MASK], -given["advantages"][MASK])


@every_loss
def test_one_number_per_token_and_metrics_detached(name: str) -> None:
    given = batch(drift=0.3)
    given["logps"] = given["logps"].clone().requires_grad_()
    terms = run(name, given)
    for field in (terms.loss, terms.ratio, terms.clipped):
        assert field.shape == (4, 6)
        assert field.dtype == torch.float64
    assert terms.loss.requires_grad
    assert not terms.ratio.requires_grad
    assert not terms.clipped.requires_grad
    assert ((terms.clipped == 0) | (terms.clipped == 1)).all()


@every_loss
def test_permuting_answers_permutes_losses(name: str) -> None:
    given = batch(drift=0.5)
    order = torch.tensor([2, 0, 3, 1])
    here, there = run(name, given), run(name, {key: value[order] for key, value in given.items()})
    mask = MASK[order]
    for field in ("loss", "ratio", "clipped"):
        torch.testing.assert_close(getattr(there, field)[mask], getattr(here, field)[order][mask], rtol=0, atol=0)


@every_loss
def test_an_answer_does_not_depend_on_its_neighbours(name: str) -> None:
    given = batch(drift=0.5)
    whole = run(name, given)
    for i in range(4):
        alone = run(name, {key: value[i : i + 1] for key, value in given.items()})
        torch.testing.assert_close(alone.loss[0, MASK[i]], whole.loss[i, MASK[i]])


@every_loss
def test_what_stands_off_the_answer_does_not_matter(name: str) -> None:
    given = batch(drift=0.5)
    clean = run(name, given)
    dirty = {**given, "logps": given["logps"].masked_fill(~MASK, -7.0), "old_logps": given["old_logps"] * 1.0}
    dirty["advantages"] = given["advantages"].masked_fill(~MASK, 40.0)
    torch.testing.assert_close(run(name, dirty).loss[MASK], clean.loss[MASK])


@every_loss
def test_rollout_and_advantages_get_no_gradient(name: str) -> None:
    given = {key: value if key == "mask" else value.clone().requires_grad_() for key, value in batch(0.3).items()}
    run(name, given).loss[MASK].sum().backward()
    assert given["logps"].grad is not None
    assert given["old_logps"].grad is None
    assert given["advantages"].grad is None


@every_loss
def test_no_advantage_no_gradient(name: str) -> None:
    given = batch(drift=0.5)
    given["logps"] = given["logps"].clone().requires_grad_()
    given["advantages"] = torch.zeros_like(given["advantages"])
    (gradient,) = torch.autograd.grad(run(name, given).loss.sum(), given["logps"])
    assert not gradient.any()


@every_loss
@pytest.mark.parametrize("drift", [1e4, -1e4])
def test_finite_far_out_in_float32(name: str, drift: float) -> None:
    given = {key: value if key == "mask" else value.float() for key, value in batch(0.0).items()}
    given["logps"] = (given["old_logps"] + drift).requires_grad_()
    terms = run(name, given)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), given["logps"])
    assert terms.loss.isfinite().all()
    assert terms.ratio.isfinite().all()
    assert gradient.isfinite().all()
