"""Caches as newer public releases read and make them; 8-bit floats; memory that comes and goes; own kinds."""

import queue
import threading

import pytest
import torch

import phyla
from phyla.errors import ArgumentError, CorruptFileError
from phyla.generation.caches import load_cache, save_cache
from phyla.generation.caches import offloaded as offloading
from phyla.generation.caches.float8 import packed, whole

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": None,
         "pad_token_id": None}  # fmt: skip
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def tiny(kind="Llama", **changes):
    torch.manual_seed(0)
    config = getattr(phyla, f"{kind}Config")(**{**SIZES, **changes})
    return randomised(getattr(phyla, f"{kind}ForCausalLM")(config))


def randomised(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def prompt(rows=2, length=11):
    return torch.randint(2, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_layers_read_as_in_newer_releases() -> None:
    model, cache = tiny(), phyla.DynamicCache(config=None)
    assert (cache.batch_size, len(cache.layers), cache.is_initialized) == (-1, 0, False)
    assert cache.get_mask_sizes(5, 0) == (5, 0)
    model(prompt(), past_key_values=cache)
    layer = cache.layers[1]
    assert layer.keys.shape == layer.values.shape == (2, 2, 11, 8)
    assert torch.equal(layer.keys, cache.key_cache[1])
    assert torch.equal(layer.values, cache[1][1])
    assert (layer.get_seq_length(), layer.get_max_length(), layer.get_mask_sizes(3)) == (11, -1, (14, 0))
    assert cache.get_mask_sizes(torch.arange(11, 14), 0) == (14, 0)  # as releases before passed it
    assert (layer.is_initialized, layer.is_sliding, layer.is_linear) == (True, False, False)
    assert (cache.get_max_length(), cache.batch_size, cache.is_compileable) == (-1, 2, False)
    assert cache.is_sliding == [False] * 4
    assert cache.is_croppable
    assert [each.dtype for each in cache.layers[:2]] == [torch.float32] * 2
    layer.reorder_cache(torch.tensor([1, 0]))
    assert not torch.equal(cache.layers[1].keys[0], cache.layers[0].keys[0])
    layer.crop(-2)
    assert layer.keys.shape[2] == 9
    with pytest.raises(IndexError, match="4 layers"):
        cache.layers[4]
    cache.reset()
    assert len(cache.layers) == 0


@torch.no_grad()
def test_sizes_of_masks_are_those_of_the_keys_that_come() -> None:
    model = tiny("Gemma2", sliding_window=5)
    cache = phyla.StaticCache(model.config, max_cache_len=40)
    ids = prompt(1, 30)
    done = 0
    for step in (4, 1, 7, 1, 1, 9, 2):
        model(ids[:, done : done + step], past_key_values=cache) if done else cache.bind(model, 1, 40)
        if not done:
            model(ids[:, :step], past_key_values=cache)
        done += step
        wanted = [layer.get_mask_sizes(3) for layer in cache.fork().layers]
        seen, fork = [], cache.fork()
        for slot in fork.slots:
            fresh = torch.zeros(1, 2, 3, 8)
            keys, _, first = slot.update(fresh, fresh)
            seen.append((keys.shape[2], first))
        assert wanted == seen
    assert cache.is_sliding == [True, False, True, False]
    assert [layer.get_max_length() for layer in cache.layers] == [5, 40, 5, 40]
    assert (cache.get_max_length(), cache.is_compileable) == (40, True)


@torch.no_grad()
def test_both_halves_and_states_have_layers() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    model = randomised(phyla.T5ForConditionalGeneration(phyla.T5Config(**sizes)))
    cache = phyla.EncoderDecoderCache(phyla.DynamicCache(), phyla.DynamicCache())
    model(prompt(), decoder_input_ids=prompt(2, 3), past_key_values=cache)
    own, crossed = cache.self_attention_cache, cache.cross_attention_cache
    assert [layer.keys.shape[2] for layer in own.layers] == [3, 3]
    assert [layer.keys.shape[2] for layer in crossed.layers] == [11, 11]
    assert crossed.layers[1].get_mask_sizes(3) == (11, 0)
    assert crossed.layers[1].get_seq_length() == 11
    fields = {"vocab_size": 61, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    mamba = randomised(phyla.MambaForCausalLM(phyla.MambaConfig(**fields)))
    states = phyla.DynamicCache()
    states.bind(mamba, 2, 9)
    assert states.is_linear == [True, True]
    assert not states.has_previous_state()
    mamba(prompt(), past_key_values=states)
    assert states.has_previous_state(0)
    assert states.layers[0].conv_states.shape[0] == states.layers[0].recurrent_states.shape[0] == 2
    assert not states.is_croppable
    with pytest.raises(ArgumentError, match="no positions"):
        states.get_mask_sizes(1, 0)


def test_numbers_in_a_byte_each() -> None:
    numbers = torch.randn(3, 2, 5, 16) * torch.logspace(-3, 3, 5)[:, None]
    codes, scale = packed(numbers)
    assert (codes.dtype, scale.shape) == (torch.uint8, (3, 2, 5, 1))
    near = whole(codes, scale, torch.float32)
    largest = numbers.abs().amax(-1, keepdim=True)
    assert ((near - numbers).abs() <= numbers.abs() / 16 + largest / 2**15).all()  # 3 bits behind the point
    assert torch.equal(packed(near)[0], codes)
    assert torch.equal(whole(*packed(torch.zeros(2, 4)), torch.float32), torch.zeros(2, 4))


@torch.no_grad()
def test_a_cache_of_8_bit_floats(tmp_path) -> None:
    model, ids = tiny(), prompt()
    for p in model.parameters():
        p.mul_(0.4)  # scores that do not stand out: small errors stay small
    wanted = model(torch.cat((ids, prompt(2, 3)), 1)).logits[:, -3:]
    for made in (phyla.QuantizedCache("fp8", model.config), phyla.QuantizedCache({"backend": "fp8"})):
        model(ids, past_key_values=made)
        found = model(prompt(2, 3), past_key_values=made.fork()).logits
        assert 0 < (found - wanted).abs().mean() < 0.03 * wanted.abs().mean()
    assert made.slots[0].codes.keys.dtype == torch.uint8
    row = made.fork(torch.tensor([1]))  # which depends on no other row
    alone = phyla.QuantizedCache("fp8", model.config)
    model(ids[1:], past_key_values=alone)
    for one, other in zip(row.layers, alone.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
    save_cache(made, tmp_path)
    back = load_cache(tmp_path, model)
    assert torch.equal(back.layers[2].values, made.layers[2].values)
    made.truncate(4)
    assert made.layers[0].keys.shape[2] == 4
    plain = model.generate(ids, **GREEDY)
    settings = {"backend": "fp8"}
    for extra in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        found = model.generate(
            ids, cache_implementation="quantized", cache_config=settings, **extra, **GREEDY
        )
        assert found.shape == plain.shape
    old = phyla.QuantizedCache("quanto", model.config, nbits=2, residual_length=4)
    assert (old.config.nbits, old.config.residual_length) == (2, 4)
    with pytest.raises(ArgumentError, match="name of a backend"):
        phyla.QuantizedCache(None, nbits=2)


class Thread:
    """A carrier that copies in a thread of its own, only when it is let, and says what it did when."""

    pinned = False

    def __init__(self, device):
        self.jobs, self.gate = queue.Queue(), threading.Event()
        self.gate.set()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            copies, over = self.jobs.get()
            self.gate.wait()
            with torch.inference_mode():  # as the caller's thread may be
                for source, target in copies:
                    target.copy_(source)
            over.set()

    def start(self, copies):
        assert all(s.shape == t.shape and t.is_contiguous() for s, t in copies)
        over = threading.Event()
        self.jobs.put((copies, over))
        return Over(over)


class Over:
    def __init__(self, event):
        self.event = event

    def before_use(self):
        assert self.event.wait(10)

    wait = before_use


@pytest.fixture
def carried(monkeypatch):
    """Offloading on a CPU as on a device; the order of what happens."""
    monkeypatch.setitem(offloading.CARRIERS, "cpu", Thread)
    said = []
    update, fetch = offloading.OffloadedKV.update, offloading.OffloadedKV._fetched

    def number(slot):
        return next(i for i, s in enumerate(slot.ring.slots) if s is slot)

    def updated(slot, k, v):
        ready = slot.visit is not None
        found = update(slot, k, v)
        said.append((f"layer {number(slot)}", ready))
        return found

    def fetched(slot):
        said.append((f"fetch {number(slot)}", True))
        return fetch(slot)

    monkeypatch.setattr(offloading.OffloadedKV, "update", updated)
    monkeypatch.setattr(offloading.OffloadedKV, "_fetched", fetched)
    return said


@torch.no_grad()
def test_the_next_layer_is_fetched_while_one_computes(carried) -> None:
    model, ids = tiny(), prompt()
    cache = phyla.OffloadedCache()
    model(ids, past_key_values=cache)
    # nothing to fetch for the first call, but the first layer for the next one
    layers = [("layer 0", False), ("layer 1", False), ("layer 2", False), ("layer 3", False)]
    assert carried == [*layers[:3], ("fetch 0", True), layers[3]]
    carried.clear()
    wanted = model(torch.cat((ids, ids[:, :1]), 1)).logits[:, -1:]
    found = model(ids[:, :1], past_key_values=cache).logits
    assert carried == [
        step for i in range(4) for step in ((f"fetch {(i + 1) % 4}", True), (f"layer {i}", True))
    ]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert cache.layers[2].keys.shape[2] == 12
    assert cache.slots[2].keys.movedim(2, 0).is_contiguous()


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.6, "top_k": 3},
     {"cache_implementation": "offloaded_static"}],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_offloaded_tokens_are_those_of_the_model(carried, kind, options) -> None:
    model = tiny(kind, **({"sliding_window": 6} if kind == "Gemma2" else {}))
    wanted = model.generate(prompt(), **{**options, "cache_implementation": None}, **GREEDY)
    found = model.generate(prompt(), **{"cache_implementation": "offloaded", **options}, **GREEDY)
    assert torch.equal(found, wanted)
    assert any(ready for what, ready in carried if what == "layer 1")


@torch.no_grad()
def test_copies_are_waited_for_before_memory_is_read_or_changed(carried) -> None:
    model, ids = tiny(), prompt()
    cache = phyla.DynamicCache(offloading=True)
    model(ids, past_key_values=cache)
    carrier = cache.slots[0].ring.carrier
    carrier.gate.clear()  # copies hang
    reader = threading.Thread(target=lambda: got.append(cache.fork(2)), daemon=True)
    got: list = []
    model.generate  # noqa: B018  (imported before the thread runs)
    cache.slots[0].visit = None
    cache.slots[0].fetch()
    reader.start()
    reader.join(0.2)
    assert not got
    carrier.gate.set()
    reader.join(10)
    fork = got[0]
    assert fork.slots[0].ring is not cache.slots[0].ring
    assert fork.slots[0].ring.slots == fork.slots
    torch.testing.assert_close(fork.layers[0].keys[::2], cache.layers[0].keys)
    fork.truncate(5)
    model(prompt(4, 2), past_key_values=fork)
    assert (fork.length, cache.length) == (7, 11)
    half = phyla.StaticCache(model.config, max_cache_len=30, offloading=True)
    half.bind(tiny("Gemma2", sliding_window=6), 1, 10)
    kinds = [type(slot).__name__ for slot in half.slots]
    assert kinds == ["KVCache", "OffloadedKV"] * 2  # layers that slide are small, and stay


XLNET = {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "mem_len": 20}
REFORMER = {"vocab_size": 61, "is_decoder": True, "hidden_size": 32, "attention_head_size": 8,
            "num_attention_heads": 4, "feed_forward_size": 64, "attn_layers": ["local", "lsh"],
            "num_hidden_layers": 2, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
            "num_buckets": 4, "hash_seed": 0, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
            "max_position_embeddings": 64, "local_num_chunks_after": 0, "lsh_num_chunks_after": 0,
            "num_hashes": 2, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
QWEN = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "image_token_id": 50, "video_token_id": 51,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
                          "mlp_ratio": 2}}  # fmt: skip
OWN = {
    "xlnet": lambda: phyla.XLNetLMHeadModel(phyla.XLNetConfig(**XLNET)),
    "reformer": lambda: phyla.ReformerModelWithLMHead(phyla.ReformerConfig(**REFORMER)),
    "qwen2_vl": lambda: phyla.Qwen2VLForConditionalGeneration(phyla.Qwen2VLConfig(**QWEN)),
}


@pytest.mark.parametrize("family", OWN)
@torch.no_grad()
def test_memory_of_a_familys_own_kind_is_stored_and_copied(family, tmp_path) -> None:
    torch.manual_seed(0)
    model = randomised(OWN[family]())
    inputs = {"input_ids": prompt(2, 11) % 45}
    if family == "qwen2_vl":  # whose positions lag behind the count of tokens
        inputs["input_ids"][:, 2:6] = 50
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        inputs["pixel_values"] = torch.randn(32, 3 * 2 * 4 * 4)
    cache = model.new_cache(2, 30)
    model(**inputs, past_key_values=cache)
    save_cache(cache, tmp_path)
    loaded, swapped, one = (
        load_cache(tmp_path, model), cache.fork(torch.tensor([1, 0])), cache.fork(torch.tensor([1]))
    )  # fmt: skip
    new = torch.tensor([[7], [9]])
    wanted = model(input_ids=new, past_key_values=cache).logits
    assert torch.equal(model(input_ids=new, past_key_values=loaded).logits, wanted)
    found = model(input_ids=new.flip(0), past_key_values=swapped).logits
    torch.testing.assert_close(found.flip(0), wanted, rtol=1e-5, atol=1e-5)
    found = model(input_ids=new[1:], past_key_values=one).logits
    torch.testing.assert_close(found, wanted[1:], rtol=1e-5, atol=1e-5)
    if family == "xlnet":
        table = (tmp_path / "cache.json").read_text()
        (tmp_path / "cache.json").write_text(table.replace('"most"', '"must"'))
        with pytest.raises(CorruptFileError, match="must hold"):
            load_cache(tmp_path, model)


@pytest.mark.parametrize("rows", [1, 2])
def test_speculation_of_reformer_gives_its_greedy_tokens(rows) -> None:
    torch.manual_seed(0)
    model = randomised(OWN["reformer"]())
    ids = prompt(rows, 13)
    ids[:, 6:] = ids[:, :7].clone()
    wanted = model.generate(ids, max_new_tokens=16, do_sample=False)
    for draft in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": model}):
        assert torch.equal(model.generate(ids, max_new_tokens=16, do_sample=False, **draft), wanted)


def test_proportional_rotation_of_newer_files() -> None:
    said = {"rope_type": "proportional", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "factor": 2.0}
    model = tiny(rope_parameters=said)
    table = model.backbone.layers[0].attn.position.frequencies
    torch.testing.assert_close(table, torch.tensor([0.5, 0.5 * 100.0**-0.25, 0.0, 0.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloading_on_cuda_gives_the_same_tokens(kind) -> None:
    for family in ("Llama", "Gemma2"):
        model = tiny(family, **({"sliding_window": 6} if family == "Gemma2" else {})).cuda()
        ids = prompt().cuda()
        for options in ({}, {"num_beams": 3}):
            wanted = model.generate(ids, **options, **GREEDY)
            assert torch.equal(model.generate(ids, cache_implementation=kind, **options, **GREEDY), wanted)


@pytest.mark.gpu
@torch.no_grad()
def test_copies_of_an_offloaded_cache_run_beside_the_computation() -> None:
    import time

    model = tiny(hidden_size=2048, intermediate_size=8192, num_hidden_layers=8, head_dim=64,
                 num_attention_heads=32, num_key_value_heads=32).half().cuda()  # fmt: skip
    ids = torch.randint(2, 60, (8, 2048), device="cuda")

    def seconds(ahead: bool) -> float:
        cache = phyla.OffloadedCache()
        model(ids, past_key_values=cache, logits_to_keep=1)
        times = []
        for _ in range(6):
            if not ahead:
                for slot in cache.slots:
                    slot.settle()
                    slot.ring = offloading.Ring([slot])
            torch.cuda.synchronize()
            began = time.perf_counter()
            model(ids[:, :64], past_key_values=cache, logits_to_keep=1)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(True) < seconds(False)
