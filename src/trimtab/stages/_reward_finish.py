"""From trained heads to a reward model: one number an answer, with mean 0 and deviation 1 on training answers.

Shapes: n training answers at a fixed stride, K attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.rewards.reward_model import Attribute, AttributeHeads, Card, RewardModel
from trimtab.stages._reward_labels import LabelScale
from trimtab.tensors.tree import TokenGroup, pack, split_by_tokens
from trimtab.train.run import invariant

LEARNED_NOTHING = "gives every answer the same score: it has learned nothing"


@torch.no_grad()
def finish_score(
    trunk: Trunk, adapter: str | None, head: ScalarHead, loss: str, tokens: Sequence[TokenGroup], *, limit: int = 64
) -> RewardModel:
    """Fold gain and bias into the head: r' = (r - mean) / std (Ziegler et al., 2019)."""
    found = _outputs(trunk, adapter, head, tokens, limit)  # (n,)
    mean, std = float(found.mean()), float(found.std(correction=0))
    invariant(std > 0 and math.isfinite(std), f"the reward model {LEARNED_NOTHING}")
    head.weight.div_(std)
    head.bias.copy_((head.bias - mean) / std)
    return RewardModel(trunk, adapter, head, card=Card(loss=loss, mean=mean, std=std))


@torch.no_grad()
def finish_attributes(
    trunk: Trunk, adapter: str | None, heads: AttributeHeads, loss: str, tokens: Sequence[TokenGroup], *,
    scale: LabelScale, weights: Mapping[str, float] | None = None, limit: int = 64,
) -> RewardModel:  # fmt: skip
    """Sum the attributes' heads into one score; the heads themselves stay as they are.

        R = sum_k v_k (r_k - mean_k) / std_k,  then R' = R / std(R)

    Each head is standardised on training answers before it is weighted, or the one with the largest scale would win.
    ``weights`` v default to 1/K; an attribute that has none counts 0. A weighted sum of linear heads is one linear
    head, so whoever reads one number an answer needs no other code.
    """
    outputs = _outputs(trunk, adapter, heads, tokens, limit)  # (n, K)
    means, stds = outputs.mean(0), outputs.std(0, correction=0)
    names = scale.attributes
    shares = dict.fromkeys(names, 1 / len(names)) if weights is None else {n: weights.get(n, 0.0) for n in names}
    for name, std in zip(names, stds.tolist(), strict=True):
        alive = shares[name] == 0 or (std > 0 and math.isfinite(std))
        invariant(alive, f"the reward model's head for {name!r} {LEARNED_NOTHING}")
    gains = torch.tensor(
        [shares[name] / std if std > 0 else 0.0 for name, std in zip(names, stds.tolist(), strict=True)]
    )
    total = (outputs - means) @ gains.double()  # (n,), mean 0
    spread = float(total.std(correction=0))
    invariant(spread > 0 and math.isfinite(spread), f"the reward model {LEARNED_NOTHING}")
    gains = gains.double() / spread
    head = ScalarHead(heads.weight.shape[1])
    head.weight.copy_(gains @ heads.weight.double().cpu())
    head.bias.copy_(gains @ (heads.bias.double().cpu() - means))
    attributes = tuple(
        Attribute(
            name=name, weight=float(shares[name]),
            label_mean=scale.pooled[name].mean, label_std=scale.pooled[name].std,
            output_mean=float(means[k]), output_std=float(stds[k]),
        )
        for k, name in enumerate(names)
    )  # fmt: skip
    card = Card(loss=loss, mean=0.0, std=spread, attributes=attributes)
    return RewardModel(trunk, adapter, head.to(trunk.device), card=card, heads=heads)


def _outputs(
    trunk: Trunk,
    adapter: str | None,
    head: nn.Module,
    tokens: Sequence[TokenGroup],
    limit: int,
    micro_tokens: int = 4096,
) -> Tensor:
    """What a head says of the answers of about ``limit`` Groups at a fixed stride: (n,) or (n, K), float64."""
    chosen = tokens[:: max(1, len(tokens) // limit)]
    found: list[Tensor] = []
    for cut in split_by_tokens(chosen, micro_tokens):
        batch = pack([chosen[i] for i in cut]).to(trunk.device)
        with trunk.using(adapter):
            found.append(head(trunk.hidden(batch)[batch.last]).double().cpu())
    return torch.cat(found)
