"""Caches under their public names: the tokens of the model's own memory; shared, cut, stored, chunked."""

import pytest
import torch

import phyla
from phyla.errors import (
    ArgumentError,
    CorruptFileError,
    GenerationError,
    MissingFileError,
    ShapeMismatchError,
)

SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
FAMILIES = {
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 2, "sliding_window": 6}),
    "gemma2": ("Gemma2ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 6, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
    "falcon": ("FalconForCausalLM", {"alibi": True, "new_decoder_architecture": False}),
    "neox": ("GPTNeoXForCausalLM", {}),
    "mamba": ("MambaForCausalLM", {"state_size": 4}),
    "rwkv": ("RwkvForCausalLM", {"attention_hidden_size": 32}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                                          "num_heads": 4, "decoder_start_token_id": 0}),
    "bart": ("BartForConditionalGeneration", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
             "decoder_ffn_dim": 64, "decoder_start_token_id": 0, "bos_token_id": 0,
             "forced_eos_token_id": None}),
}  # fmt: skip
KINDS = ("dynamic", "static", "sliding_window", "hybrid", "mamba", "offloaded", "offloaded_static")
OBJECTS = {
    "DynamicCache": lambda: phyla.DynamicCache(),
    "StaticCache": lambda: phyla.StaticCache(None, 2, max_cache_len=40),
    "OffloadedCache": lambda: phyla.OffloadedCache(),
    "HybridCache": lambda: phyla.HybridCache(None, 2, 40),
    "EncoderDecoderCache": lambda: phyla.EncoderDecoderCache(phyla.DynamicCache(), phyla.DynamicCache()),
}


def tiny(family, **changes):
    name, fields = FAMILIES[family]
    model = getattr(phyla, name)
    config = model.config_class(**{**SMALL, **fields, **changes})
    config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    made = model(config).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.3) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.1)
    return made


def prompt(rows=2, length=11):
    return torch.randint(2, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_gives_the_same_tokens(family):
    model, ids = tiny(family), prompt()
    asked = {"max_new_tokens": 12, "do_sample": False}
    want = model.generate(ids, **asked)
    for kind in KINDS:
        assert torch.equal(model.generate(ids, cache_implementation=kind, **asked), want), kind
    for name, make in OBJECTS.items():
        assert torch.equal(model.generate(ids, past_key_values=make(), **asked), want), name
    assert torch.equal(model.generate(ids, prefill_chunk_size=4, **asked), want)
    beams = {"num_beams": 2, **asked}
    kept = model.generate(ids, past_key_values=phyla.DynamicCache(), **beams)
    assert torch.equal(kept, model.generate(ids, **beams))


def test_sinks_go_to_files(tmp_path):
    model, ids = tiny("llama"), prompt(length=14)
    cache = phyla.SinkCache(9, 3)
    first = model.generate(ids, past_key_values=cache, max_new_tokens=3)
    phyla.save_cache(cache, tmp_path)
    read = phyla.load_cache(tmp_path, model)
    assert read.get_seq_length() == cache.get_seq_length() == 16
    want = model.generate(first, past_key_values=cache, max_new_tokens=5)
    assert torch.equal(model.generate(first, past_key_values=read, max_new_tokens=5), want)


def test_quantised_layers_slide(tmp_path):
    model, ids = tiny("mistral"), prompt(length=20)
    settings = {"nbits": 8, "residual_length": 2, "q_group_size": 8}
    asked = {"max_new_tokens": 30, "return_dict_in_generate": True, "output_logits": True}
    want = model.generate(ids, **asked)
    out = model.generate(ids, cache_implementation="quantized", cache_config=settings, **asked)
    torch.testing.assert_close(out.logits[0], want.logits[0])
    torch.testing.assert_close(out.logits[1], want.logits[1], rtol=0.1, atol=0.1)
    for slot in out.past_key_values.slots:
        keys, _ = slot.read()
        assert 5 <= keys.shape[2] < 12  # a window of 6, and what is not packed yet
        assert slot.first + keys.shape[2] == 49
    phyla.save_cache(out.past_key_values, tmp_path)
    read = phyla.load_cache(tmp_path, model)
    for slot, own in zip(read.slots, out.past_key_values.slots, strict=True):
        assert slot.first + slot.read()[0].shape[2] == 49
        count = min(slot.read()[0].shape[2], own.read()[0].shape[2])
        torch.testing.assert_close(slot.read()[0][:, :, -count:], own.read()[0][:, :, -count:])
    out.past_key_values.truncate(47)
    with pytest.raises(ArgumentError, match="cut back to"):
        out.past_key_values.truncate(10)
    drafted = model.generate(
        ids, cache_implementation="quantized", cache_config=settings, prompt_lookup_num_tokens=2,
        max_new_tokens=30,
    )  # fmt: skip
    assert drafted.shape == out.sequences.shape


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "t5"])
def test_quantised_is_near(family):
    model, ids = tiny(family), prompt(length=20)
    more = {"decoder_input_ids": prompt(length=20)} if family == "t5" else {}
    asked = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True, **more}
    settings = {"nbits": 8, "residual_length": 4, "q_group_size": 8}
    cache = phyla.QuantoQuantizedCache(phyla.QuantizedCacheConfig(**settings))
    out = model.generate(ids, past_key_values=cache, **asked)
    want = model.generate(ids, **asked)
    assert torch.equal(out.logits[0], want.logits[0])
    far = (out.logits[1] - want.logits[1]).abs().max()
    assert 0 < far < 0.05 * want.logits[1].abs().max()


def test_legacy_tuples_go_both_ways():
    for family in ("llama", "t5"):
        model, ids = tiny(family), prompt()
        asked = {"max_new_tokens": 6, "return_dict_in_generate": True}
        old = model.generate(ids, return_legacy_cache=True, **asked).past_key_values
        assert isinstance(old, tuple)
        assert len(old[0]) == (4 if family == "t5" else 2)
        whole = model.generate(ids, **{**asked, "max_new_tokens": 9}).sequences
        begun = whole[:, : old[0][0].shape[2] + 1]
        given = {"decoder_input_ids": begun, "inputs": ids} if family == "t5" else {"inputs": begun}
        count = whole.shape[1] - begun.shape[1]
        again = model.generate(**given, past_key_values=old, max_new_tokens=count)
        assert torch.equal(again, whole)
        made = phyla.DynamicCache.from_legacy_cache(old)
        assert made.get_seq_length() == old[0][0].shape[2]
        assert all(
            torch.equal(a, b) for x, y in zip(made, old, strict=True) for a, b in zip(x, y, strict=True)
        )


def test_forward_takes_public_caches():
    model, ids = tiny("llama"), prompt()
    want = model(ids).logits
    cache = phyla.DynamicCache()
    first = model(ids[:, :5], past_key_values=cache, use_cache=True).logits
    rest = model(ids[:, 5:], past_key_values=cache, use_cache=True).logits
    assert torch.allclose(torch.cat((first, rest), 1), want, atol=1e-5)
    assert cache.get_seq_length() == 11
    assert len(cache) == 2
    assert cache[0][0].shape == (2, 2, 11, 8)
    assert torch.equal(cache.key_cache[1], cache[1][0])
    cache.crop(-3)
    assert cache.get_seq_length() == 8
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(3)
    out = model(ids[1:, 8:].expand(3, -1), past_key_values=cache)
    assert torch.allclose(out.logits, want[1:, 8:].expand(3, -1, -1), atol=1e-5)
    parts = phyla.DynamicCache.from_legacy_cache(cache.to_legacy_cache()).batch_split(3, 2)
    assert [p.batch for p in parts] == [2, 1]
    grown = phyla.DynamicCache()
    for layer, (k, v) in enumerate(cache):
        grown.update(k, v, layer)
    assert torch.equal(grown[1][1], cache[1][1])


def test_one_prefix_goes_on_many_ways(tmp_path):
    for family in ("llama", "gemma2", "mamba"):
        model, begin = tiny(family), prompt(rows=1, length=9)
        cache = model.new_cache(1, 30)
        model(begin, past_key_values=cache)
        phyla.save_cache(cache, tmp_path / family)
        for seed in range(3):
            ids = torch.cat((begin, prompt(rows=1, length=4 + seed)), 1)
            want = model.generate(ids, max_new_tokens=7)
            stored = phyla.load_cache(tmp_path / family, model)
            for kept in (cache.fork(), stored):
                assert torch.equal(model.generate(ids, past_key_values=kept, max_new_tokens=7), want)
        wide = cache.fork(3)
        assert wide.batch == 3
        assert cache.length == 9
        out = model.generate(ids.expand(3, -1), past_key_values=wide, max_new_tokens=7)
        assert torch.equal(out, want.expand(3, -1))


def test_packed_keys_are_stored(tmp_path):
    model, ids = tiny("llama"), prompt()
    cache = phyla.QuantizedCache({"nbits": 4, "residual_length": 2, "q_group_size": 8})
    model(ids, past_key_values=cache)
    phyla.save_cache(cache, tmp_path)
    again = phyla.load_cache(tmp_path, model)
    assert type(again.slots[0]) is type(cache.slots[0])
    assert torch.allclose(again[0][0], cache[0][0], atol=0.5)


def test_bad_files_say_what_is_wrong(tmp_path):
    model = tiny("llama")
    with pytest.raises(MissingFileError, match="save_cache"):
        phyla.load_cache(tmp_path / "none", model)
    cache = model.new_cache(1, 8)
    model(prompt(1, 4), past_key_values=cache)
    phyla.save_cache(cache, tmp_path)
    with pytest.raises(ShapeMismatchError, match=r"another model|mixers"):
        phyla.load_cache(tmp_path, tiny("llama", num_attention_heads=8, num_key_value_heads=8))
    with pytest.raises(ShapeMismatchError, match="mixers"):
        phyla.load_cache(tmp_path, tiny("llama", num_hidden_layers=3))
    with pytest.raises(ShapeMismatchError):
        phyla.load_cache(tmp_path, tiny("mamba"))
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CorruptFileError, match="JSON"):
        phyla.load_cache(tmp_path, model)
    phyla.save_cache(cache, tmp_path)
    (tmp_path / "cache.safetensors").write_bytes(b"12345678 nothing")
    with pytest.raises(CorruptFileError, match="cannot be read"):
        phyla.load_cache(tmp_path, model)


def test_sinks_keep_the_first_and_the_newest():
    model, ids = tiny("llama"), prompt(rows=1, length=10)
    want = model.generate(ids, max_new_tokens=8)
    roomy = phyla.SinkCache(window_length=30, num_sink_tokens=2)
    assert torch.equal(model.generate(ids, past_key_values=roomy, max_new_tokens=8), want)
    cache = phyla.SinkCache(window_length=8, num_sink_tokens=2)
    states = []
    with torch.no_grad():
        for i in range(10):
            states.append(model(ids[:, i : i + 1], past_key_values=cache).logits[:, -1])
        one = tiny("llama", num_hidden_layers=1)  # with one layer the kept tokens decide alone
        cache = phyla.SinkCache(window_length=8, num_sink_tokens=2)
        for i in range(10):
            got = one(ids[:, i : i + 1], past_key_values=cache).logits[:, -1]
        kept = torch.cat((ids[:, :2], ids[:, 4:]), 1)
        assert torch.allclose(got, one(kept).logits[:, -1], atol=1e-5)
    assert cache[0][0].shape[2] == 8
    with pytest.raises(ArgumentError, match="cannot be cut"):
        cache.crop(4)


@pytest.mark.parametrize(
    ("kind", "settings", "wanted"),
    [
        ("static", {"max_len": 3}, "max_cache_len"),
        ("paged", None, "cache_implementation must be one of"),
    ],
)
def test_wrong_settings(kind, settings, wanted):
    with pytest.raises(GenerationError, match=wanted):
        tiny("llama").generate(prompt(), cache_implementation=kind, cache_config=settings, max_new_tokens=2)


def test_other_layers_are_refused():
    small, large = tiny("llama"), tiny("llama", num_hidden_layers=3)
    past = small(prompt(), use_cache=True).past_key_values.to_legacy_cache()
    with pytest.raises(ArgumentError, match="2 layers, but LlamaForCausalLM has 3"):
        large(prompt(), past_key_values=past)
    with pytest.raises(ArgumentError, match="num_sink_tokens"):
        phyla.SinkCache(4, 4)
