"""Online reinforcement learning from a reward: sample, score, shape, update. PPO and its relatives."""

from __future__ import annotations

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.errors import ConfigError, did_you_mean
from trimtab.model.roles import Layout, build_roles
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Lora
from trimtab.records.read import read_groups
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._methods import METHODS
from trimtab.stages._online import KL, Clip, Critic, Online, Shaping
from trimtab.stages._rollout import Roller
from trimtab.tensors.tree import TokenGroup
from trimtab.train.loop import Pace, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run


def policy(
    run: Run,
    *,
    reward: ModelRef,
    prompts: DataRef,
    init: ModelRef = BASE,
    method: str = "ppo",
    steps: int = 16,
    batch: int = 8,
    answers: int = 4,
    epochs: int = 1,
    minibatches: int = 1,
    lr: float = 1e-4,
    critic: Critic = Critic(),  # noqa: B008 - frozen
    kl: KL = KL(),  # noqa: B008
    clip: Clip = Clip(),  # noqa: B008
    shaping: Shaping = Shaping(),  # noqa: B008
    gamma: float = 1.0,
    lam: float = 0.95,
    ptx: DataRef | None = None,
    ptx_weight: float = 1.0,
    ptx_batch: int = 8,
    roles: Layout = "shared",
    lora: Lora = Lora(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
    max_length: int = 1024,
    micro_tokens: int = 2048,
) -> Result:
    """Improve a policy against a reward by sampling from it (PPO: Schulman et al., 2017; Ziegler et al., 2019).

    Each step samples ``answers`` to each of ``batch`` prompts, then makes ``epochs`` x ``minibatches`` updates.
    ``method`` is a line of a table: advantage x loss x aggregation. ``roles`` says how many trunks carry the four
    models. ``ptx`` mixes next-token learning on other texts into every update (PPO-ptx; InstructGPT, eq. 2).
    """
    if method not in METHODS:
        raise ConfigError(f"stages.{run.name}.method: no method {method!r}{did_you_mean(method, METHODS)}")
    if not sampling.temperature > 0:
        raise ConfigError(
            f"stages.{run.name}.sampling.temperature: a policy learns from what it samples, so it must be above 0, "
            f"not {sampling.temperature}"
        )
    row = METHODS[method]
    layout = build_roles(
        init, reward, layout=roles, critic=critic.start if row.critic else None, frozen=critic.fit == "ridge",
        lora=lora, seed=derive(run.seed, "lora"), dtype=run.dtype,
    )  # fmt: skip
    actor = layout.actor
    trunk = actor.trunk
    scorer = RewardModel.open(reward, trunk=layout.reward_trunk, dtype=run.dtype)
    groups, tokens = encode(
        [group.with_answers(()) for group in read_groups(prompts.source).groups],
        trunk.chat, max_length=max_length - sampling.max_tokens, run=run, what="prompts",
    )  # fmt: skip
    mixed: list[TokenGroup] = []
    if ptx is not None:
        _, mixed = encode(
            read_groups(ptx.source).groups, trunk.chat, max_length=max_length, run=run, what="texts to mix in"
        )
    roller = Roller(
        layout, TorchSampler(trunk, actor.adapter, stop=trunk.chat.stop), scorer, groups, tokens, k=answers,
        sampling=sampling, minibatches=minibatches, micro_tokens=micro_tokens, seed=run.seed,
    )  # fmt: skip
    task = Online(
        run, layout, roller, row, num_prompts=len(tokens), batch=batch, epochs=epochs, kl=kl, clip=clip,
        shaping=shaping, critic=critic, gamma=gamma, lam=lam, ptx=mixed, ptx_weight=ptx_weight, ptx_batch=ptx_batch,
    )  # fmt: skip
    optimiser_groups = [ParameterGroup(name="actor", parameters=actor.parameters(), lr=lr)]
    if layout.critic is not None and task.ridge is None:
        optimiser_groups.append(ParameterGroup(name="critic", parameters=layout.critic.parameters(), lr=critic.lr))
    pace = Pace(steps=steps + task.warmup)
    shown = ("rollout/score", "rollout/kl", "rollout/ended")
    fit(run, task, Optimiser(optimiser_groups), pace, show=shown)
    assert actor.adapter is not None
    trunk.save_adapter(actor.adapter, run.folder)
    trunks = {id(t) for t in (*layout.trunks(), scorer.trunk)}
    return Result(base=init.base, metrics={"data/prompts": len(tokens), "memory/trunks": len(trunks)})
