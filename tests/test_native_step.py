"""The native pass over all layers against the modules, and everything that must make it stay away."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import BUILT, counted, kernels

import phyla
from phyla.blocks import Experts, matmul, stack
from phyla.fast import products

__all__ = ["counted", "kernels"]  # fixtures

SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
CONFIGS = {
    "rotary, groups": phyla.LlamaConfig(**SMALL, intermediate_size=80, num_key_value_heads=2),
    "biases": phyla.Qwen2Config(**SMALL, intermediate_size=72, num_key_value_heads=3),
    "window": phyla.MistralConfig(**SMALL, intermediate_size=80, num_key_value_heads=2, sliding_window=9),
    "norms on both sides": phyla.Gemma2Config(
        **SMALL, intermediate_size=80, num_key_value_heads=2, head_dim=20, sliding_window=7,
        query_pre_attn_scalar=20,
    ),
    "part of the head turns": phyla.Phi3Config(
        **SMALL, intermediate_size=80, num_key_value_heads=2, partial_rotary_factor=0.5, pad_token_id=0,
    ),
    "layer norms": phyla.GPT2Config(vocab_size=99, n_embd=48, n_layer=2, n_head=4),
    "relu": phyla.OPTConfig(
        **SMALL, ffn_dim=70, word_embed_proj_dim=48, do_layer_norm_before=False, max_position_embeddings=128
    ),
    "norms by head": phyla.Qwen3Config(
        **SMALL, intermediate_size=80, num_key_value_heads=2, head_dim=20, max_position_embeddings=256
    ),
    "norms by head, two kinds of rotary": phyla.Gemma3TextConfig(
        **SMALL, intermediate_size=80, num_key_value_heads=2, head_dim=20, sliding_window=7,
        sliding_window_pattern=2, query_pre_attn_scalar=20,
    ),
    "side by side, two norms": phyla.GPTNeoXConfig(
        **SMALL, intermediate_size=80, max_position_embeddings=256
    ),
    "side by side, pairs turn": phyla.GPTJConfig(vocab_size=99, n_embd=48, n_layer=2, n_head=6, rotary_dim=4),
    "side by side, layer norms by head": phyla.PhiConfig(
        **SMALL, intermediate_size=80, qk_layernorm=True, max_position_embeddings=256
    ),
    "side by side, one key head": phyla.FalconConfig(**SMALL),
    "experts": phyla.MixtralConfig(
        **SMALL, intermediate_size=40, num_key_value_heads=2, num_local_experts=5
    ),
    "experts in some layers": phyla.Qwen3MoeConfig(
        **SMALL, intermediate_size=80, num_key_value_heads=2, num_experts=12, num_experts_per_tok=3,
        moe_intermediate_size=24, head_dim=16, mlp_only_layers=[1],
    ),
    "experts by a norm, clips": phyla.DbrxConfig(
        vocab_size=99, d_model=48, n_heads=6, n_layers=2, attn_config={"clip_qkv": 0.7, "kv_n_heads": 2},
        ffn_config={
            "ffn_hidden_size": 40, "moe_num_experts": 6, "moe_top_k": 3, "moe_normalize_expert_weights": 2.0
        },
    ),
}  # fmt: skip


# Outside the engine, whose pages have no bias.
BIASED = {
    "falling with distance": phyla.BloomConfig(vocab_size=99, hidden_size=48, n_layer=2, n_head=6),
    "falling, rounded": phyla.FalconConfig(**SMALL, alibi=True, parallel_attn=False, multi_query=False),
    "sums from the norm": phyla.BloomConfig(
        vocab_size=99, hidden_size=48, n_layer=2, n_head=6, apply_residual_connection_post_layernorm=True
    ),
}


def model_of(kind: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return filled(phyla.AutoModelForCausalLM.from_config((CONFIGS | BIASED)[kind]), dtype)


def filled(model, dtype: torch.dtype):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(parameter.mean().item(), 0.3 if parameter.dim() == 1 else 0.2)
    if dtype != torch.float32:  # rounding may choose other experts, so that errors say nothing
        for module in model.modules():
            if isinstance(module, Experts):
                module.chosen = module.experts
    return model.to(dtype).eval()


def stepwise(model, ids, mask, chunks, room=8):
    cache, at, found = model.new_cache(len(ids), room), 0, []
    with torch.inference_mode():
        for size in chunks:
            out = model(
                ids[:, at : at + size], attention_mask=mask[:, : at + size], past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            at += size
            found.append(out.logits.float())
    return torch.cat(found, 1)


def case(rows: int, total: int):
    ids = torch.randint(3, 99, (rows, total), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, :4] = 0  # padding on the left
    return ids, mask


CHUNKS = (11, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", CONFIGS | BIASED)
def test_equals_the_modules(counted, monkeypatch, kind, rows, dtype):
    model = model_of(kind, dtype)
    ids, mask = case(rows, sum(CHUNKS))
    found = stepwise(model, ids, mask, CHUNKS)
    assert counted == [BUILT] * len(CHUNKS)
    monkeypatch.setattr(stack, "native", None)
    monkeypatch.setattr(matmul, "native", None)
    wanted = stepwise(model, ids, mask, CHUNKS)
    real = mask.bool()
    if dtype == torch.float32:
        assert (found - wanted)[real].abs().max() < 3e-6 * wanted[real].abs().max()
        return
    exact = stepwise(model.float(), ids, mask, CHUNKS)
    mine, theirs = ((y - exact)[real].norm() for y in (found, wanted))
    assert mine < 1.2 * theirs  # rounded less often than the modules round


def test_a_row_has_the_bits_it_has_alone_whatever_the_threads(counted):
    model = model_of("rotary, groups")
    ids, _ = case(3, 150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "native", None)
        cache = model.new_cache(3, 150)
        with torch.inference_mode():
            model(ids[:, :140], past_key_values=cache, use_cache=True)
    counted.clear()
    before = torch.get_num_threads()
    # The modules promise equal values, the kernels equal bits.
    same = torch.equal if BUILT else partial(torch.allclose, rtol=1e-4, atol=1e-5)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            cache.truncate(140)
            with torch.inference_mode():
                together = model.backbone(*call(model, ids[:, 140:141], cache)).last_hidden_state
            results.append(together)
            cache.truncate(140)
            alone = model.new_cache(3, 150)
            for mine, theirs in zip(alone.slots, cache.slots, strict=True):
                mine.update(theirs.keys[:, :, :140], theirs.values[:, :, :140])
            alone.length = 140
            alone.reorder(torch.tensor([2]))
            with torch.inference_mode():
                one = model.backbone(*call(model, ids[2:, 140:141], alone)).last_hidden_state
            assert same(one[0], together[2])
    finally:
        torch.set_num_threads(before)
    assert all(same(results[0], y) for y in results)
    assert counted == [BUILT] * 6


def call(model, ids, cache):
    from phyla.skeletons.base import context_for

    return context_for(model, ids.shape, ids.device, None, None, cache, False, False), ids


def test_what_must_be_seen_is_not_passed_over(counted):
    """Sites, hooks, recordings, gradients and moved weights go through the modules."""
    model = model_of("rotary, groups")
    ids, _ = case(1, 12)

    def step(**asked):
        cache = model.new_cache(1, 12)
        with torch.inference_mode():
            model(ids[:, :9], past_key_values=cache, use_cache=True)
            counted.clear()
            out = model(ids[:, 9:10], past_key_values=cache, use_cache=True, **asked)
        return out, counted == [True]

    def taken_whole():
        counted.clear()
        with torch.inference_mode():
            model(ids)
        return counted == [True]

    plain, taken = step()
    assert taken == BUILT
    assert taken_whole() == BUILT
    for asked in ({"output_attentions": True}, {"output_hidden_states": True}):
        assert not step(**asked)[1]
    q = model.backbone.layers[1].attn.q
    calls = []
    handle = q.register_forward_hook(lambda *parts: calls.append(1))
    assert not step()[1]
    assert calls
    handle.remove()
    q.site = Twice()
    changed, taken = step()
    assert not taken
    assert not taken_whole()
    assert not torch.allclose(changed.logits, plain.logits)
    q.site = None
    again, taken = step()
    assert taken == BUILT
    assert torch.equal(again.logits, plain.logits)
    q.weight = torch.nn.Parameter(q.weight.detach() * 2)
    moved, taken = step()
    assert taken == BUILT
    torch.testing.assert_close(moved.logits, changed.logits, rtol=1e-4, atol=1e-4)
    model.train()
    assert not step()[1]


class Twice(torch.nn.Module):
    def forward(self, x, y, linear):
        return 2 * y


def test_a_family_of_another_form_is_left_alone(counted):
    torch.manual_seed(0)
    config = phyla.JetMoeConfig(
        **{**SMALL, "num_attention_heads": 4}, num_key_value_heads=2, kv_channels=12, intermediate_size=40
    )
    model = phyla.AutoModelForCausalLM.from_config(config).eval()
    ids, mask = case(2, 10)
    stepwise(model, ids, mask, (7, 1, 1, 1))
    assert counted == [False] * 4


WHOLE = {
    **CONFIGS,
    **BIASED,
    "norms after": phyla.BertConfig(**SMALL, intermediate_size=80, max_position_embeddings=256),
    "norms after, tokens counted": phyla.RobertaConfig(
        **SMALL, intermediate_size=80, max_position_embeddings=256
    ),
    "windows on both sides, two kinds of rotary": phyla.ModernBertConfig(
        **SMALL,
        intermediate_size=80,
        local_attention=12,
        max_position_embeddings=256,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [9, 33, 200])
@pytest.mark.parametrize("kind", WHOLE)
def test_whole_texts_equal_the_modules(counted, monkeypatch, kind, length, dtype):
    torch.manual_seed(0)
    config = WHOLE[kind]
    if getattr(config, "max_position_embeddings", 1 << 20) < length:
        config = type(config)(**{**config.to_dict(), "max_position_embeddings": 256})
    model = filled(phyla.AutoModel.from_config(config), dtype)
    ids, mask = case(3, length)
    mask[2, -5:] = 0

    def states():
        with torch.inference_mode():
            return model(ids, attention_mask=mask).last_hidden_state.float()

    found = states()
    assert counted == [BUILT]
    monkeypatch.setattr(stack, "native", None)
    monkeypatch.setattr(matmul, "native", None)
    wanted, real = states(), mask.bool()
    if dtype == torch.float32:
        assert (found - wanted)[real].abs().max() < 5e-6 * wanted[real].abs().max()
        return
    model.float()
    exact = states()
    mine, theirs = ((y - exact)[real].norm() for y in (found, wanted))
    assert mine < 1.2 * theirs


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(9, 90),
    outs=st.integers(1, 120),
    width=st.integers(1, 200),
    half=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_many_rows_of_any_shape(kernels, rows, outs, width, half, with_bias, seed):
    dtype = torch.bfloat16 if half else torch.float32
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, width), (outs, width), (outs,))
    )
    used = bias if with_bias else None
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(products, "LEAST_WORK", 0)
        y = kernels[0](x, weight, used)
        strided = kernels[0](torch.cat((x, x), 1)[:, :width], weight, used)
    if y is None:
        assert not BUILT or (half and width % 2) or rows > products.most_rows()[dtype]
        return
    assert torch.equal(y, strided)
    wide = [None if t is None else t.double() for t in (x, weight, used)]
    expected = F.linear(*wide)
    scale = F.linear(wide[0].abs(), wide[1].abs(), None if used is None else wide[2].abs())
    assert ((y.double() - expected).abs() <= (5e-3 if half else 4e-6) * scale + 1e-30).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_many_rows_pass_on_what_is_not_finite(kernels, value):
    x, weight = torch.ones(20, 64), torch.ones(300, 64)
    x[3, 5] = value
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LEAST_WORK", 0)
        for dtype in (torch.float32, torch.bfloat16):
            y = kernels[0](x.to(dtype), weight.to(dtype), None)
            assert (y is not None) == BUILT
            y = F.linear(x.to(dtype), weight.to(dtype)) if y is None else y
            assert not y[3].isfinite().any()
            assert y[4:].eq(64).all()
            assert y[:3].eq(64).all()


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static", "static", "hybrid", "quantized"])
def test_every_kind_of_cache_gives_the_same_tokens(counted, monkeypatch, kind):
    model = model_of("rotary, groups").eval()
    ids, _ = case(2, 20)
    found = model.generate(ids, max_new_tokens=8, cache_implementation=kind)
    monkeypatch.setattr(stack, "native", None)
    assert torch.equal(found, model.generate(ids, max_new_tokens=8))
