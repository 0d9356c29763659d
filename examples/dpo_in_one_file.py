"""DPO for a language model in one file, from top to bottom: a tutorial, and an oracle for the `preference` stage.

Nothing but torch, transformers and peft: padded batches, an attention mask, `for` loops. From the same model, pairs,
seed and settings it draws the same curves as the stage does in float32 and ends with the same adapter; a test compares
the two. It starts from a bare model, or from an adapter on one (what `trimtab run` leaves in a folder of SFT).

    python examples/dpo_in_one_file.py --model runs/quickstart/sft --batch 4 --out runs/dpo

Letters: P pairs of a prompt, R rows (2P: one for each answer), T the longest row, V vocabulary. Papers: Rafailov et al.
2023 (arXiv:2305.18290), the loss; Hu et al. 2021 (arXiv:2106.09685), the adapter.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

PAIRS = Path(__file__).parents[1] / "src" / "trimtab" / "data" / "quickstart" / "preferences.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the `preference` stage, laid flat; each is an option of the command line."""

    epochs: float = 1.0  # passes over the prompts; DPO overfits after two or three
    batch: int = 16  # prompts an update
    lr: float = 5e-5
    beta: float = 0.1  # what a nat away from the reference must earn; the smaller, the further the policy may go
    rank: int = 16  # of a fresh adapter; one that is there keeps its own
    alpha: float = 32.0
    max_length: int = 1024  # tokens of a prompt and its longest answer
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and its pairs of answers as tokens: which was preferred, and how sure that is."""

    tokens: list[int]
    better: list[list[int]]  # P of them
    worse: list[list[int]]
    sure: Tensor  # (P,) the probability that the better one is better; 1 unless the file says otherwise


def derive(seed: int, *words: str | int) -> int:
    """Seed for one purpose. Every draw depends on (seed, purpose, place) alone, so any step can be repeated."""
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """Order of `count` things in one epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(seed, "order", epoch))).tolist()


class Models:
    """Policy and reference: the same frozen base, with the trained adapter on it and without (or with its copy)."""

    def __init__(self, start: str, s: Settings) -> None:
        config = Path(start) / "adapter_config.json"
        base = json.loads(config.read_text())["base_model_name_or_path"] if config.is_file() else start
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if config.is_file():  # go on with this adapter; a copy of it is the reference
            self.trunk = PeftModel.from_pretrained(model, start, is_trainable=True)
            self.trunk.load_adapter(start, "reference")
        else:
            torch.manual_seed(derive(s.seed, "lora"))  # the adapter adds B A, where A is drawn here and B is 0
            lora = LoraConfig(r=s.rank, lora_alpha=s.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
            self.trunk = get_peft_model(model, lora)
        self.trunk.eval()  # trap: with dropout on, policy and reference would differ before the first step

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Be the reference for a while: what training starts from, whatever the adapter has learned since."""
        if "reference" in self.trunk.peft_config:  # trap: switched off, the SFT would be undone too
            self.trunk.set_adapter("reference")
            yield
            self.trunk.set_adapter("default")
        else:
            with self.trunk.disable_adapter():
                yield

    def logps(self, prompt: Prompt) -> Tensor:
        """log pi(y | x) = sum_t log pi(y_t | x, y_<t) in nats, of the better and the worse answers: (2, P)."""
        answers = prompt.better + prompt.worse
        before, longest, pad = len(prompt.tokens), max(map(len, answers)), self.tokenizer.pad_token_id
        rests = [longest - len(answer) for answer in answers]
        ids = torch.tensor([prompt.tokens + y + [pad] * rest for y, rest in zip(answers, rests, strict=True)])  # (R, T)
        # Trap: masks come from lengths, never from `ids != pad`. Where pad is EOS, that would mask the answers' ends.
        real = torch.tensor([[1] * (before + longest - rest) + [0] * rest for rest in rests])
        answered = torch.tensor([[0] * before + [1] * (longest - rest) + [0] * rest for rest in rests])
        logits = self.trunk(ids, attention_mask=real, use_cache=False).logits.float()  # (R, T, V)
        # Trap: the state at place i predicts token i+1, hence the two shifts.
        each = F.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        return (each * answered[:, 1:]).sum(1).view(2, -1)  # trap: a sum, where IPO and SimPO want means


def read(source: Path, models: Models, s: Settings) -> list[Prompt]:
    """All prompts with a pair in the file; those with a longer answer than `max_length` allows are left out whole."""
    found: list[Prompt] = []
    lines = source.read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        text = models.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        texts = [text, *(answer["text"] for answer in row["answers"])]
        # Tokenised apart, so no token reaches over the border; the template brings its own BOS.
        tokens, *answers = models.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for answer, tail in zip(row["answers"], answers, strict=True):
            if answer.get("finish") != "length":  # trap: without its end, how to stop is not learned, or unlearned
                tail.append(models.tokenizer.eos_token_id)
        pairs = [v for v in row["verdicts"] if v["kind"] == "pair" and v.get("tie") is None]
        better, worse = ([answers[v[side]] for v in pairs] for side in ("better", "worse"))
        if pairs and len(tokens) + max(map(len, better + worse)) <= s.max_length:
            sure = torch.tensor([float(v.get("probability", 1)) for v in pairs])
            found.append(Prompt(tokens=tokens, better=better, worse=worse, sure=sure))
    print(f"{source.name}: {len(found)} of {len(lines)} prompts, {sum(len(p.better) for p in found)} pairs")
    return found


def train(models: Models, prompts: list[Prompt], s: Settings) -> list[dict[str, float]]:
    """Train the adapter in place; return a line of numbers a step, under the names of the stage's metrics.jsonl."""
    # 1. The reference never changes, so it reads everything once.
    with torch.no_grad(), models.reference():
        reference = [models.logps(prompt) for prompt in prompts]
    weights = [weight for weight in models.trunk.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, s.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    steps = max(1, round(len(prompts) * s.epochs / s.batch))
    ramp = math.ceil(0.03 * steps)
    curve: list[dict[str, float]] = []
    for step in range(steps):
        log: dict[str, list[Tensor]] = defaultdict(list)
        # 2. The batch is the next stretch of shuffled epochs laid end to end.
        for place in range(step * s.batch, (step + 1) * s.batch):
            i = shuffled(len(prompts), s.seed, place // len(prompts))[place % len(prompts)]
            logps = models.logps(prompts[i])  # (2, P)
            reward_w, reward_l = s.beta * (logps - reference[i])  # implicit: what a reward model would have said
            # 3. Rafailov et al., eq. 7:  -log sigmoid(beta (log-ratio of the better - log-ratio of the worse))
            margin = reward_w - reward_l  # (P,)
            assert step > 0 or margin.abs().max() < 1e-3, "the policy must start as the reference"
            sure = prompts[i].sure
            loss = (-sure * F.logsigmoid(margin) - (1 - sure) * F.logsigmoid(-margin)).mean()
            # Every prompt counts the same, however many pairs it has. Gradients add up over the batch, prompt by
            # prompt, which saves memory. Trap: each is a share of the whole batch; means of means are another loss.
            (loss / s.batch).backward()
            told = {
                "train/loss": loss[None], "train/accuracy": (margin > 0).float(), "rewards/chosen": reward_w,
                "rewards/rejected": reward_l, "rewards/margin": margin, "logps/chosen": logps[0],
                "logps/rejected": logps[1],
            }  # fmt: skip
            for name, found in told.items():
                log[name].append(found.detach())
        # 4. Step. The rate goes up over 3 % of the steps, and down a cosine to a tenth.
        log["train/grad_norm"] = [nn.utils.clip_grad_norm_(weights, 1.0)[None]]
        cosine = (1 + math.cos(math.pi * (step - ramp) / max(steps - 1 - ramp, 1))) / 2
        optimiser.param_groups[0]["lr"] = s.lr * ((step + 1) / ramp if step < ramp else 0.1 + 0.9 * cosine)
        optimiser.step()
        optimiser.zero_grad()
        # 5. Tell. The first loss is ln 2. Watch logps/chosen: the margin also grows where both answers become less
        # likely, the worse one faster; what becomes likely instead is nobody's choice.
        curve.append({name: float(torch.cat(found).double().mean()) for name, found in log.items()})
        print(json.dumps({"step": step, **curve[-1]}))
    return curve


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Read a model and a file of preferences; train; write the adapter."""
    parser = argparse.ArgumentParser(description="DPO in one file")
    parser.add_argument("--model", required=True, help="a model's folder or hub id, or the folder of an adapter on one")
    parser.add_argument("--data", type=Path, default=PAIRS, help='JSON lines with "prompt", "answers" and "verdicts"')
    parser.add_argument("--out", type=Path, help="folder for the adapter")
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args(arguments))
    start, source, out = (options.pop(name) for name in ("model", "data", "out"))
    settings = Settings(**options)
    models = Models(start, settings)
    curve = train(models, read(source, models, settings), settings)
    if out is not None:
        models.trunk.save_pretrained(str(out), selected_adapters=["default"])
    return curve


if __name__ == "__main__":
    main()
