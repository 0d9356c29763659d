"""PPO for a language model in one file, from top to bottom: a tutorial, and an oracle for the `policy` stage.

Nothing but torch, transformers and peft: padded batches, an attention mask, `for` loops. From the same artifacts, seed
and settings it samples the same tokens and draws the same curves as the stage does in float32, with a critic that
learns by gradient from the SFT adapter on; a test compares the two. The reward model must sit on the SFT model's base.

    python examples/ppo_in_one_file.py --run runs/quickstart --steps 3

Letters: B answers of a round, P the longest prompt, T the longest answer, V vocabulary, H hidden size. Papers: Ziegler
et al. 2019 (arXiv:1909.08593), PPO for text; Schulman et al. 2016 (arXiv:1506.02438), the advantages, and 2017
(arXiv:1707.06347), the loss; Huang et al. 2024 (arXiv:2403.17031), the details that make it work.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = Path(__file__).parents[1] / "src" / "trimtab" / "data" / "quickstart" / "prompts.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the `policy` stage, laid flat; each is an option of the command line."""

    steps: int = 16  # rounds of: sample, read, shape, update
    critic_warmup: int = 4  # rounds before those, which train the critic alone: a blind critic only adds noise
    batch: int = 8  # prompts a round
    answers: int = 4  # to each prompt
    epochs: int = 1  # passes over a round's answers
    minibatches: int = 1  # updates a pass
    lr: float = 1e-4
    critic_lr: float = 3e-4
    beta: float = 0.05  # the price of a nat of KL
    clip: float = 0.2  # of the ratio
    value_clip: float = 0.2  # in units of the score; with scores of size 10 this would freeze the critic
    score_clip: float = 5.0
    penalty: float = 1.0  # what an answer gets that the cap cut, times -1
    gamma: float = 1.0  # below 1, a score at the end is worth less the longer the answer: it would pay to be short
    lam: float = 0.95
    temperature: float = 1.0
    max_tokens: int = 64
    seed: int = 0


def derive(seed: int, *words: str | int) -> int:
    """Seed for one purpose. Every draw depends on (seed, purpose, place) alone, so any round can be repeated."""
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Order of `count` things in one epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, "order", epoch))).tolist()


class Models:
    """Actor, reference, critic and reward model: four adapters on one frozen base that is in memory once."""

    def __init__(self, sft: Path, reward: Path) -> None:
        base = json.loads((sft / "adapter_config.json").read_text())["base_model_name_or_path"]
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        # The reference is the SFT model. Trap: with adapters switched off it would be the base model.
        self.trunk = PeftModel.from_pretrained(model, str(sft), adapter_name="reference")
        self.trunk.load_adapter(str(sft), "actor")  # the same weights: the KL starts at 0
        self.trunk.load_adapter(str(sft), "critic")
        self.trunk.load_adapter(str(reward), "reward")
        self.trunk.eval()  # trap: with dropout on, the first ratio is not 1 and the first KL not 0
        self.score_head: dict[str, Tensor] = load_file(reward / "score_head.safetensors")  # weight (H,), bias ()
        # A critic that says 0 until it has learned something (Ziegler et al.).
        self.value_head = {name: nn.Parameter(torch.zeros_like(x)) for name, x in self.score_head.items()}

    def hidden(self, adapter: str, ids: Tensor, real: Tensor) -> Tensor:
        """Hidden states under an adapter, (B, P+T) -> (B, P+T, H). Trap: padding on the left must not count as text."""
        self.trunk.set_adapter(adapter)  # and let gradients into this adapter alone
        places = (real.cumsum(1) - 1).clamp(min=0)
        decoder = self.trunk.get_base_model().get_decoder()
        hidden: Tensor = decoder(input_ids=ids, attention_mask=real, position_ids=places, use_cache=False)[0]
        return hidden

    def logps(self, adapter: str, ids: Tensor, real: Tensor, width: int, temperature: float) -> Tensor:
        """log pi(y_t | x, y_<t), (B, P+T) -> (B, T). Trap: the state at place i predicts token i+1, hence -1."""
        states = self.hidden(adapter, ids, real)[:, -width - 1 : -1]
        logits = self.trunk.get_output_embeddings()(states).float() / temperature  # trap: the sampler's, in every role
        return F.log_softmax(logits, dim=-1).gather(-1, ids[:, -width:, None])[..., 0]

    def values(self, ids: Tensor, real: Tensor, width: int) -> Tensor:
        """V_t, (B, P+T) -> (B, T): what is still to come *before* token t is seen, so at the same states as logps."""
        states = self.hidden("critic", ids, real)[:, -width - 1 : -1]
        return states @ self.value_head["weight"] + self.value_head["bias"]

    def scores(self, ids: Tensor, real: Tensor, mask: Tensor) -> Tensor:
        """r(x, y), (B, P+T) -> (B,): at the answer's last token. Trap: the row's last token may be padding."""
        last = ids.shape[1] - mask.shape[1] + mask.sum(1) - 1
        states = self.hidden("reward", ids, real)[range(len(ids)), last]
        return states @ self.score_head["weight"] + self.score_head["bias"]


@torch.no_grad()
def sample(models: Models, prompts: list[list[int]], seed: int, s: Settings) -> tuple[Tensor, Tensor, int]:
    """Answers: ids and which of them are real, (B, P+T), and T. Prompts are padded on their left, answers right."""
    pad, end = models.tokenizer.pad_token_id, models.tokenizer.eos_token_id  # eos: how the chat template ends a turn
    seeds = [derive(seed, i, j) for i in range(len(prompts)) for j in range(s.answers)]
    uniform = torch.stack([torch.rand(s.max_tokens, generator=torch.Generator().manual_seed(x)) for x in seeds])
    rows = [prompt for prompt in prompts for _ in range(s.answers)]
    longest = max(map(len, rows))
    new = ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    alive, cache = torch.ones(len(rows), dtype=torch.bool), None
    models.trunk.set_adapter("actor")
    while alive.any() and ids.shape[1] < longest + s.max_tokens:
        places = (real.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = models.trunk(new, attention_mask=real, position_ids=places, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        cumulative = F.softmax(out.logits[:, -1].float() / s.temperature, dim=-1).cumsum(-1)  # (B, V)
        # The first token whose cumulative probability exceeds the uniform number.
        below = cumulative <= uniform[:, ids.shape[1] - longest, None] * cumulative[:, -1:]
        token = below.sum(-1).clamp(max=cumulative.shape[1] - 1)
        new = torch.where(alive, token, pad)[:, None]  # after its end an answer is padding, whatever was drawn
        ids = torch.cat([ids, new], dim=1)
        # Trap: masks come from where answers end, never from `ids != pad`. Where pad is EOS, that would mask the end
        # token; it would get no gradient, and the model would forget how to stop. The end belongs to the answer.
        real = torch.cat([real, alive[:, None].long()], dim=1)
        alive = alive & (token != end)
    return ids, real, ids.shape[1] - longest


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al. 2016, eq. 16)."""
    advantages = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        next_value = next_advantage = 0.0  # trap: nothing comes after the end; a value read at padding is garbage
        for t in reversed(range(int(mask[i].sum()))):
            delta = float(rewards[i, t]) + gamma * next_value - float(values[i, t])
            advantages[i, t] = next_advantage = delta + gamma * lam * next_advantage
            next_value = float(values[i, t])
    return advantages


def train(models: Models, prompts: list[list[int]], s: Settings) -> list[dict[str, float]]:
    """Train the actor in place; return a line of numbers a round, under the names of the stage's metrics.jsonl."""
    # These two share no weight that learns. A bfloat16 model would want float32 copies: it rounds small steps away.
    actor, critic = ([w for n, w in models.trunk.named_parameters() if f".{own}." in n] for own in ("actor", "critic"))
    groups = [([*critic, *models.value_head.values()], s.critic_lr), (actor, s.lr)]
    optimisers = [torch.optim.AdamW(own, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0) for own, lr in groups]
    rounds: list[dict[str, float]] = []
    for step in range(s.critic_warmup + s.steps):
        # 1. Sample. The prompts are the next stretch of shuffled epochs laid end to end.
        stretch = range(step * s.batch, (step + 1) * s.batch)
        chosen = [prompts[shuffled(len(prompts), s.seed, i // len(prompts))[i % len(prompts)]] for i in stretch]
        ids, real, width = sample(models, chosen, derive(s.seed, "rollout", step), s)
        mask = real[:, -width:].bool()  # (B, T)
        ends, rows = mask.sum(1) - 1, torch.arange(len(ids))  # (B,) the place of each answer's last token
        ended = ids[:, -width:][rows, ends] == models.tokenizer.eos_token_id

        # 2. Read with all four models. Trap: log pi_old comes from the code that trains, not from the sampler, whose
        # kernels (and top-p) differ: the first ratio would not be 1. All of this is constant from here on.
        with torch.no_grad():
            old_logps = models.logps("actor", ids, real, width, s.temperature)
            ref_logps = models.logps("reference", ids, real, width, s.temperature)
            old_values = models.values(ids, real, width)
            scores = models.scores(ids, real, mask)
        kl = (old_logps - ref_logps) * mask  # (B, T) k1; trap: an answer's KL is the sum over its tokens, no mean
        assert step > 0 or not kl.any(), "the actor must start as the reference"

        # 3. Shape. An answer that did not end has not earned its score (Huang et al.); the KL is paid token by token
        # (Ziegler et al.) and never clipped; the score comes with the answer's last token. Trap: not the padded row's.
        rewards = -s.beta * kl
        rewards[rows, ends] += torch.where(ended, scores.clamp(-s.score_clip, s.score_clip), -s.penalty)
        advantages = gae(rewards, old_values, mask, s.gamma, s.lam)
        targets = advantages + old_values  # trap: before the advantages are whitened
        # Whiten over all tokens of the round, not of a minibatch, nor padding; the variance divides by n, not n - 1.
        deviation = torch.sqrt(advantages[mask].var(correction=0) + 1e-8)
        advantages = (advantages - advantages[mask].mean()) / deviation

        # 4. Update: passes over shuffled minibatches; all answers to a prompt stay together.
        log: dict[str, list[Tensor]] = defaultdict(list)
        parts = rows.split(-(-s.batch // s.minibatches) * s.answers)
        # Full rates while the critic warms up; then up over 3 % of the rounds, and down a cosine to a tenth.
        turn, ramp = step - s.critic_warmup, math.ceil(0.03 * s.steps)
        cosine = (1 + math.cos(math.pi * (turn - ramp) / max(s.steps - 1 - ramp, 1))) / 2
        factor = 1.0 if turn < 0 else (turn + 1) / ramp if turn < ramp else 0.1 + 0.9 * cosine
        order = [i for e in range(s.epochs) for i in shuffled(len(parts), derive(s.seed, "minibatches", step), e)]
        for part in [parts[i] for i in order]:
            on = mask[part]  # from here on, one number for each real token of the part: (N,)
            lp_old, a, v_old, target = (x[part][on] for x in (old_logps, advantages, old_values, targets))
            # Critic, Ziegler et al.:  1/2 max((V - target)^2, (clip(V, V_old - c, V_old + c) - target)^2)
            values = models.values(ids[part], real[part], width)[on]
            held = values.clamp(v_old - s.value_clip, v_old + s.value_clip)
            losses = torch.maximum((values - target) ** 2, (held - target) ** 2) / 2
            losses.mean().backward()  # over tokens. Trap: a mean of the means of smaller batches is another loss
            log["value/loss"].append(losses.detach())
            if turn >= 0:
                # Actor, Schulman et al. 2017, eq. 7:  max(-A rho, -A clip(rho, 1 - c, 1 + c)),  rho = pi / pi_old
                ratio = (models.logps("actor", ids[part], real[part], width, s.temperature)[on] - lp_old).exp()
                assert "policy/loss" in log or (ratio - 1).abs().max() < 1e-3, "the first ratio of a round must be 1"
                losses = torch.maximum(-a * ratio, -a * ratio.clamp(1 - s.clip, 1 + s.clip))
                losses.mean().backward()
                log["policy/loss"].append(losses.detach())
                log["policy/ratio"].append(ratio.detach())
            for optimiser, (own, lr) in zip(optimisers, groups, strict=True):  # what has no gradient stays
                nn.utils.clip_grad_norm_(own, 1.0)  # each role by its own norm
                optimiser.param_groups[0]["lr"] = lr * factor
                optimiser.step()
                optimiser.zero_grad()

        # 5. Tell. Watch the KL: a score that rises while the KL runs away is a reward model that is being fooled.
        log |= {"rollout/score": [scores], "rollout/reward": [rewards.sum(1)], "rollout/kl": [kl.sum(1)]}
        log |= {"rollout/length": [ends + 1], "rollout/ended": [ended], "value/mean": [old_values[mask]]}
        rounds.append({name: float(torch.cat(found).double().mean()) for name, found in log.items()})
        print(json.dumps({"step": step, **rounds[-1]}))
    return rounds


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Read a run's SFT adapter and reward model, and prompts; train; write the actor's adapter."""
    parser = argparse.ArgumentParser(description="PPO in one file")
    parser.add_argument("--run", type=Path, required=True, help="what `trimtab run` left; with sft/ and reward/ in it")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help='JSON lines, each with a "prompt" of messages')
    parser.add_argument("--out", type=Path, help="folder for the actor's adapter")
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args(arguments))
    run, source, out = (options.pop(name) for name in ("run", "prompts", "out"))
    models = Models(run / "sft", run / "reward")
    # Prompts are tokenised apart from answers, so no token reaches over the border; the template brings its own BOS.
    rows = [json.loads(line)["prompt"] for line in source.read_text(encoding="utf-8").splitlines()]
    texts = [models.tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in rows]
    rounds = train(models, models.tokenizer(texts, add_special_tokens=False)["input_ids"], Settings(**options))
    if out is not None:
        models.trunk.save_pretrained(str(out), selected_adapters=["actor"])
    return rounds


if __name__ == "__main__":
    main()
