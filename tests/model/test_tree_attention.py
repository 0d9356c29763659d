"""The engine's law: a TreeBatch gives the log-probabilities of each prompt + answer run alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from trimtab.errors import ModelError
from trimtab.model.attention import NAME, FlexView, TreeView
from trimtab.model.forward import check_head, decoder_of, head_of, hidden_states, run_decoder, target_logps
from trimtab.tensors.tree import TokenGroup, pack

VOCAB = 97
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": None},
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma": SMALL,
    "gemma3_text": {**SMALL, "sliding_window": 64, "query_pre_attn_scalar": 8},
    "phi3": SMALL,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
GROUPS = (
    TokenGroup(prompt=(5, 6, 7, 8, 9), answers=((10, 11, 12), (13,), (14, 15, 16, 17, 18, 19))),
    TokenGroup(prompt=(20, 21), answers=((22, 23),)),
    TokenGroup(prompt=(), answers=((30, 31, 32, 33),)),
    TokenGroup(prompt=(40, 41, 42), answers=((43, 44), ())),
)


def build(kind: str, *, sliding_window: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    settings = dict(ARCHITECTURES[kind])
    if sliding_window is not None:
        settings["sliding_window"] = sliding_window
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # larger weights than the initialiser's, so that attention has something to say
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def alone(model: nn.Module, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of one answer by the plain model, its own attention, no packing."""
    ids = torch.tensor([[*prompt, *answer]])
    logps = torch.log_softmax(model(ids, use_cache=False).logits[0].double(), -1)
    first = max(len(prompt), 1)
    return torch.stack([logps[t - 1, ids[0, t]] for t in range(first, ids.shape[1])])


def reference(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        rows = [alone(model, g.prompt, a) for g in GROUPS for a in g.answers if len(a) > (0 if g.prompt else 1)]
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tree_logps_equal_one_by_one(kind: str) -> None:
    model = build(kind)
    expected = reference(model)
    model.set_attn_implementation(NAME)
    batch = pack(GROUPS)
    with torch.no_grad():
        hidden = hidden_states(decoder_of(model), batch)
        logps, _ = target_logps(head_of(model), hidden[batch.predictor], batch.target)
    torch.testing.assert_close(logps.double(), expected, atol=2e-5, rtol=0)


def test_sliding_window_shorter_than_the_tree() -> None:
    model = build("mistral", sliding_window=4)
    expected = reference(model)
    assert (expected - reference(build("mistral"))).abs().max() > 1e-3  # the window matters in this test
    model.set_attn_implementation(NAME)
    batch = pack(GROUPS)
    with torch.no_grad():
        logps, _ = target_logps(head_of(model), hidden_states(decoder_of(model), batch)[batch.predictor], batch.target)
    torch.testing.assert_close(logps.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_equal_one_by_one(kind: str) -> None:
    model = build(kind)
    torch.stack([alone(model, g.prompt, a).sum() for g in GROUPS for a in g.answers if len(a) > 1]).sum().backward()
    name, weight = next(
        (n, p) for n, p in model.named_parameters() if p.dim() > 1 and "wte" not in n and "embed" not in n
    )
    expected = weight.grad.clone()
    model.zero_grad()
    model.set_attn_implementation(NAME)
    batch = pack([TokenGroup(prompt=g.prompt, answers=tuple(a for a in g.answers if len(a) > 1)) for g in GROUPS])
    logps, _ = target_logps(head_of(model), hidden_states(decoder_of(model), batch)[batch.predictor], batch.target)
    logps.sum().backward()
    torch.testing.assert_close(weight.grad, expected, atol=2e-4, rtol=1e-3, msg=lambda m: f"{name}: {m}")


def test_order_and_company_of_groups_change_nothing() -> None:
    model = build("llama")
    model.set_attn_implementation(NAME)

    def by_answer(groups: tuple[TokenGroup, ...]) -> dict[tuple[int, ...], float]:
        batch = pack(groups)
        with torch.no_grad():
            hidden = hidden_states(decoder_of(model), batch)
            logps, _ = target_logps(head_of(model), hidden[batch.predictor], batch.target)
        answers = [a for g in groups for a in g.answers]
        return dict(zip(answers, batch.sum_by_answer(logps).tolist(), strict=True))

    together = by_answer(GROUPS)
    for group in GROUPS:
        for answer, value in by_answer((group,)).items():
            assert together[answer] == pytest.approx(value, abs=1e-4)
    assert by_answer(GROUPS[::-1]) == pytest.approx(together, abs=1e-4)


def test_flex_view_sees_what_tree_view_sees() -> None:
    batch = pack(GROUPS)
    flex = FlexView(batch)
    total = batch.ids.numel()
    i = torch.arange(total)
    seen = flex.sees(i[:, None], i[None, :], None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, total, 8) for _ in range(3))
    by_mask = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3)
    by_segment = TreeView(batch).attend(0, q, k, v, scale=0.3, window=None)
    torch.testing.assert_close(by_segment, by_mask)


def test_a_head_that_does_more_is_refused() -> None:
    model = build("llama")
    model.set_attn_implementation(NAME)
    check_head(model, head_of(model))
    model.lm_head.register_forward_hook(lambda _module, _args, out: out * 0.5)
    with pytest.raises(ModelError, match="changes its logits after the head"):
        check_head(model, head_of(model))


def test_forward_without_a_view_is_refused() -> None:
    model = build("llama")
    model.set_attn_implementation(NAME)
    with pytest.raises(ModelError, match="tree attention"):
        model(torch.tensor([[1, 2, 3]]))


def test_padding_of_positions_changes_nothing() -> None:
    """Two rows side by side under the cache view of one token equal the tree's last tokens."""
    from trimtab.model.sampler import CacheView

    model = build("llama")
    model.set_attn_implementation(NAME)
    prompts = ((5, 6, 7, 8, 9), (20, 21))
    with torch.no_grad():
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        batch = pack([TokenGroup(prompt=p, answers=()) for p in prompts])
        hidden_states(decoder_of(model), batch, kept)
        cache = CacheView(2, 16)
        for slot, span in enumerate(batch.spans):
            cache.put(slot, kept, span.start, span.prompt)
        cache.begin_step()
        step = run_decoder(decoder_of(model), torch.tensor([[50], [51]]), cache.lengths[:, None], cache)[:, 0]
        whole = pack([TokenGroup(prompt=p, answers=((t,),)) for p, t in zip(prompts, (50, 51), strict=True)])
        expected = hidden_states(decoder_of(model), whole)[whole.last]
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-4)
