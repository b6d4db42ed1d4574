"""Decode steps on fixed buffers, replayed eagerly in place of a CUDA graph, give what plain steps give."""

import logging

import pytest
import torch

import phyla
from phyla.generation import captured

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
KINDS = {
    "rotary": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "biased": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "normed-heads": ("Qwen3ForCausalLM", "Qwen3Config", WIDE),
    "sliding": ("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 64}),
    "sliding-in-turn": ("Gemma2ForCausalLM", "Gemma2Config", {**WIDE, "sliding_window": 64}),
    "scaled": ("GemmaForCausalLM", "GemmaConfig", WIDE),
    "learned-places": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "learned-by-mask": (
        "OPTForCausalLM", "OPTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
         "word_embed_proj_dim": 32},
    ),
    "parallel": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES),
    "pairs": ("GPTJForCausalLM", "GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
}  # fmt: skip
NOT_PLAIN = {
    "linear-bias": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "state-space": (
        "MambaForCausalLM", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    ),
    "length-dependent": (
        "LlamaForCausalLM", "LlamaConfig", {**GROUPED, **DYNAMIC}
    ),
    "languages": (
        "XmodForCausalLM", "XmodConfig",
        {**SIZES, "is_decoder": True, "languages": ["de_DE", "en_XX"], "default_language": "en_XX"},
    ),
    "encoder-decoder": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 2},
    ),
}  # fmt: skip
PROMPT = torch.tensor([[0, 0, 7, 9, 11], [4, 5, 6, 7, 8]])  # the first row has padding in front


def made(kind):
    name, config, sizes = {**KINDS, **NOT_PLAIN}[kind]
    torch.manual_seed(3)
    model = getattr(phyla, name)(
        getattr(phyla, config)(vocab_size=60, pad_token_id=0, bos_token_id=2, eos_token_id=1, **sizes)
    ).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.35)
    return model


def generated(model, ids=PROMPT, **more):
    asked = {"attention_mask": (ids != 0).long(), "max_new_tokens": 24, "pad_token_id": 0}
    asked["eos_token_id"] = None
    return model.generate(ids, **asked, **more)


class Counting:
    """The eager recorder, and how many steps it recorded and ran."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, step):
        self.recorded += 1
        run = captured.record_nothing(step)

        def replay():
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorder(monkeypatch):
    counting = Counting()
    monkeypatch.setitem(captured.RECORDERS, "cpu", counting)
    return counting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_replayed_steps_give_the_tokens_of_plain_ones(kind, do_sample, monkeypatch):
    model = made(kind)
    asked = {"do_sample": do_sample, "seed": 5, "return_dict_in_generate": True, "output_logits": True}
    plain = generated(model, **asked)
    counting = Counting()
    monkeypatch.setitem(captured.RECORDERS, "cpu", counting)
    found = generated(model, **asked)
    assert (counting.recorded, counting.replayed) == (1, 23)
    assert torch.equal(found.sequences, plain.sequences)
    for ours, theirs in zip(found.logits, plain.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # the memory that comes out is an ordinary one
    for ours, theirs in zip(found.past_key_values.key_cache, plain.past_key_values.key_cache, strict=True):
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
    ours, theirs = (model(o.sequences[:, -1:], past_key_values=o.past_key_values) for o in (found, plain))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_other_models_run_as_ever(kind, recorder):
    generated(made(kind))
    assert not recorder.recorded


def test_later_calls_replay_the_step_of_an_earlier_one(recorder):
    model = made("rotary")
    first, other = generated(model), generated(model, PROMPT.flip(1)[:, :3])
    assert recorder.recorded == 1
    assert torch.equal(generated(model), first)
    captured._kept.clear()
    assert torch.equal(generated(model, PROMPT.flip(1)[:, :3]), other)
    assert recorder.recorded == 2
    generated(model, torch.tensor([[4, 5, 6]]))  # another number of rows
    assert recorder.recorded == 3


def test_a_step_serves_calls_in_and_outside_of_inference_mode(recorder):
    model = made("rotary")
    wanted = generated(model, return_dict_in_generate=True, output_scores=True).sequences
    assert torch.equal(generated(model), wanted)
    with torch.inference_mode():
        assert torch.equal(generated(model), wanted)
    assert torch.equal(generated(model, return_dict_in_generate=True, output_scores=True).sequences, wanted)
    assert recorder.recorded == 2  # the memory of the first call went to its caller


@pytest.mark.parametrize("change", ["weights", "module"])
def test_a_changed_model_is_recorded_anew(change, recorder):
    model = made("rotary")
    generated(model)
    if change == "weights":
        for p in model.parameters():
            p.data = p.data * 1.01
    else:
        model.backbone.layers[0].ffn = model.backbone.layers[1].ffn
    found = generated(model)
    assert recorder.recorded == 2
    assert torch.equal(found, generated(model, disable_compile=True))


def test_several_sequences_of_a_prompt(recorder):
    model = made("rotary")
    asked = {"do_sample": True, "num_return_sequences": 3, "seed": 7}
    found = generated(model, **asked)
    again = generated(model, **asked)
    assert recorder.replayed == 46
    assert torch.equal(found, again)
    assert torch.equal(found, generated(model, disable_compile=True, **asked))


def test_a_step_that_cannot_be_recorded_is_run_as_ever(monkeypatch, caplog):
    model = made("rotary")
    wanted = generated(model)

    def broken(step):
        step()
        raise RuntimeError("operation not permitted")

    monkeypatch.setitem(captured.RECORDERS, "cpu", broken)
    with caplog.at_level(logging.DEBUG, logger="phyla.generation.captured"):
        assert torch.equal(generated(model), wanted)
        assert torch.equal(generated(model), wanted)  # which does not try again
    told = "the decode step of LlamaForCausalLM was not recorded: operation not permitted"
    assert [r.getMessage() for r in caplog.records] == [told]


WHYS = ("setting", "environment", "hook", "beams", "few tokens", "a cache given", "draft")


@pytest.mark.parametrize("why", WHYS)
def test_what_is_not_recorded(why, recorder, monkeypatch):
    model, more = made("rotary"), {}
    if why == "setting":
        more = {"disable_compile": True}
    elif why == "environment":
        monkeypatch.setenv("PHYLA_CAPTURE", "0")
    elif why == "hook":
        model.backbone.layers[0].register_forward_hook(lambda *_: None)
    elif why == "beams":
        more = {"num_beams": 2}
    elif why == "draft":
        more = {"prompt_lookup_num_tokens": 3}
    elif why == "a cache given":
        more = {"past_key_values": phyla.DynamicCache()}
    if why == "few tokens":
        model.generate(PROMPT, attention_mask=(PROMPT != 0).long(), max_new_tokens=4, pad_token_id=0)
    else:
        generated(model, **more)
    assert not recorder.recorded


def test_a_static_cache_and_adapters_are_recorded(recorder):
    model = made("rotary")
    wanted = generated(model, disable_compile=True)
    assert torch.equal(generated(model, cache_implementation="static"), wanted)
    model.add_adapter("one", config="lora", set_active=True)
    for name, p in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(p, std=0.1)
    plain = generated(model, disable_compile=True)
    assert recorder.recorded == 1
    for _ in range(2):  # which adapter is active is no part of the model: recorded for each call
        assert torch.equal(generated(model), plain)
    assert recorder.recorded == 3


def test_flash_attention_is_taken_where_it_is_installed(monkeypatch):
    import sys
    import types

    from phyla.blocks import attention
    from phyla.fast import flash

    monkeypatch.setattr(attention, "kernels", table := {})
    monkeypatch.setattr(flash, "kernels", table)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    config = phyla.LlamaConfig(vocab_size=60, **GROUPED, attn_implementation="flash_attention_2")
    with pytest.raises(phyla.errors.MissingExtraError, match=r"phyla\[flash\]"):
        phyla.LlamaForCausalLM(config)

    calls = []

    def flash_attn_func(q, k, v, dropout_p, softmax_scale, causal):  # (batch, positions, heads, width)
        calls.append((tuple(q.shape), tuple(k.shape), dropout_p, causal))
        y = torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        return y.transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    monkeypatch.setattr(flash, "DEVICES", {"cpu"})
    model = phyla.LlamaForCausalLM(config).bfloat16().eval()
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    found = model(ids).logits
    assert calls == [((1, 5, 4, 8), (1, 5, 2, 8), 0.0, True)] * 2
    model(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))  # padding: the fused call
    assert len(calls) == 2
    model.implementation = "sdpa"
    torch.testing.assert_close(found, model(ids).logits, rtol=2e-2, atol=2e-2)
