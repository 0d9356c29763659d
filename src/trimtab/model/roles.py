"""PPO's four models as roles: (trunk, adapter, head).

    shared     one trunk carries actor, reference, critic and reward: four models for the memory of one
    paired     actor + reference on one trunk, critic + reward on another
    separate   four trunks

A reward model on another base (or with another tokenizer) always has a trunk of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from trimtab.config import ModelRef
from trimtab.errors import ConfigError
from trimtab.model.trunk import Lora, ScalarHead, Trunk

Layout = Literal["shared", "paired", "separate"]
CriticStart = Literal["policy", "reward"]


@dataclass(frozen=True, slots=True)
class Role:
    """One model: an adapter on a trunk, and a scalar head when it gives numbers. ``lora`` says how fast it learns."""

    trunk: Trunk
    adapter: str | None
    head: ScalarHead | None = None
    lora: Lora = Lora()  # noqa: RUF009 - frozen

    def parameters(self) -> list[nn.Parameter]:
        """What is trained of it by gradient: its adapter, and its head."""
        assert self.adapter is not None
        own = self.trunk.train_adapter(self.adapter)
        return own if self.head is None else [*own, *self.head.parameters()]

    def rates(self) -> list[float] | None:
        """The parameters' factors on the learning rate; a head's are 1 (``None``: all are)."""
        assert self.adapter is not None
        own = self.trunk.rates(self.adapter, self.lora)
        return own if own is None or self.head is None else [*own, *(1.0 for _ in self.head.parameters())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The models of a policy stage; ``reward_trunk`` is where a reward model on the same base should go."""

    actor: Role
    reference: Role
    critic: Role | None
    reward_trunk: Trunk | None

    def trunks(self) -> list[Trunk]:
        """The different trunks in use (each counted once)."""
        roles = [self.actor, self.reference, *([self.critic] if self.critic else [])]
        found = [role.trunk for role in roles] + ([self.reward_trunk] if self.reward_trunk else [])
        return list({id(trunk): trunk for trunk in found}.values())


def build_roles(
    init: ModelRef, reward: ModelRef | None, *, layout: Layout, critic: CriticStart | None, frozen: bool = False,
    lora: Lora, seed: int, dtype: str = "auto",
) -> Roles:  # fmt: skip
    """Lay the roles out.

    The actor starts as a copy of ``init``'s adapter (fresh when it has none) and the reference *is* that adapter, so
    KL(actor, reference) is 0 at the start. ``critic`` names the adapter that the critic starts from, under a zero head:
    the policy's or the reward model's (``None``: no critic). A ``frozen`` critic *is* that adapter, and has no head:
    somebody else reads its hidden states.

    Errors: ConfigError for a critic that starts from a reward model on another base.
    """
    trunk, start = Trunk.open(init, dtype=dtype)
    trunk.derive_adapter("actor", start, lora, seed=seed)

    def another() -> tuple[Trunk, str | None]:
        return (trunk, start) if layout == "shared" else Trunk.open(init, dtype=dtype)

    reference_trunk = another()[0] if layout == "separate" else trunk
    value: Role | None = None
    critic_trunk = trunk
    if critic is not None:
        critic_trunk, critic_start = another()
        if critic == "reward":
            if reward is None:
                raise ConfigError("a critic that starts from the reward model needs one, and there are only rules")
            if reward.base != init.base:
                raise ConfigError(
                    f"a critic that starts from the reward model needs one on the policy's base ({init.base}), "
                    f"but {reward.name!r} is on {reward.base}"
                )
            critic_start = critic_trunk.adopt(reward)
        if not frozen:
            critic_trunk.derive_adapter("critic", critic_start, lora, seed=seed + 1)
        value = Role(critic_trunk, critic_start)
        if not frozen:
            value = Role(critic_trunk, "critic", critic_trunk.scalar_head(), lora)
    return Roles(
        actor=Role(trunk, "actor", lora=lora),
        reference=Role(reference_trunk, start),
        critic=value,
        reward_trunk=critic_trunk if layout != "separate" and reward is not None and reward.base == init.base else None,
    )
