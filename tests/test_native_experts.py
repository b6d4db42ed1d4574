"""Mixtures of experts: packed weights of every kind, only what tokens choose, the same bits in any batch."""

import copy
import random

import gguf_models
import pytest
import torch
from native_kernels import BUILT, counted, kernels
from test_generation_engine import prompts
from test_generation_invariant import ASKED, batch_of
from test_native_step import stepwise
from test_quantization import FORMATS, MADE, converted

import phyla
from phyla.adapters.peft import LoraConfig
from phyla.blocks import Context, Experts, matmul, stack
from phyla.errors import AdapterError
from phyla.fast import codes
from phyla.quantization.experts import PackedExperts

__all__ = ["counted", "kernels"]  # fixtures

SMALL = {"vocab_size": 64, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "all layers": phyla.MixtralConfig(
        **SMALL, num_hidden_layers=2, intermediate_size=64, num_local_experts=5, num_experts_per_tok=2
    ),
    "some layers": phyla.Qwen3MoeConfig(
        **SMALL, num_hidden_layers=3, intermediate_size=128, num_experts=9, num_experts_per_tok=5,
        moe_intermediate_size=64, head_dim=16, mlp_only_layers=[1], norm_topk_prob=True,
    ),
    "odd width": phyla.MixtralConfig(
        **SMALL, num_hidden_layers=2, intermediate_size=48, num_local_experts=3, num_experts_per_tok=2
    ),
    "by a norm": phyla.DbrxConfig(
        vocab_size=64, d_model=64, n_heads=4, n_layers=2, attn_config={"clip_qkv": 0.7, "kv_n_heads": 2},
        ffn_config={
            "ffn_hidden_size": 64, "moe_num_experts": 6, "moe_top_k": 3, "moe_normalize_expert_weights": 2.0
        },
    ),
}  # fmt: skip
CHUNKS = (7, 1, 2, 1, 1)


def made(name: str):
    torch.manual_seed(0)
    model = phyla.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(p.mean().item(), 0.3 if p.dim() == 1 else 0.15)
    return model


def packed(model) -> list[PackedExperts]:
    return [m for m in model.modules() if isinstance(m, PackedExperts)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict:
    found = {}
    for name in ("all layers", "some layers", "odd width"):
        found[name] = tmp_path_factory.mktemp("dense") / "m"
        made(name).save_pretrained(found[name])
    return found


def steps(model, ids):
    return stepwise(model, ids, torch.ones_like(ids), CHUNKS)


def ids_of(rows: int):
    return torch.randint(2, 60, (rows, sum(CHUNKS)), generator=torch.Generator().manual_seed(rows))


def without_kernels(monkeypatch, *asked):
    with monkeypatch.context() as patch:
        for owner, name in ((stack, "native"), (matmul, "native"), (codes, "native")):
            patch.setattr(owner, name, None)
        return steps(*asked)


def check(model, expanded, counted, monkeypatch):
    """The same scores packed, with and without kernels, as expanded; the parts come back from the codes."""
    for rows in (1, 3):
        ids = ids_of(rows)
        want = without_kernels(monkeypatch, expanded, ids)
        plain = without_kernels(monkeypatch, model, ids)
        torch.testing.assert_close(plain, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    before = {name: part.clone() for name, part in model.state_dict().items()}
    model.pack()
    assert all((m.coded is not None) == BUILT for m in packed(model))
    for rows in (1, 3):
        ids = ids_of(rows)
        want = without_kernels(monkeypatch, expanded, ids)
        counted.clear()
        found = steps(model, ids)
        assert counted == [BUILT] * len(CHUNKS)
        assert (found - want).abs().max() < 5e-6 * want.abs().max()
    assert torch.equal(steps(copy.deepcopy(model), ids), found)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(octets(after[name]), octets(part)) for name, part in before.items())
    model.load_state_dict(before)
    assert not any(m.coded is not None for m in packed(model)) or not packed(model)[0].parts


def octets(t):
    return t if not t.dim() else t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ["all layers", "some layers", "odd width"])
def test_experts_packed_at_load(folders, counted, monkeypatch, name, kind):
    if name != "all layers" and kind not in ("nf4", "int8"):
        return
    load = phyla.AutoModelForCausalLM.from_pretrained
    model = load(folders[name], quantization_config=MADE[kind]).eval()
    layers = {"some layers": 2, "all layers": 2, "odd width": 2}[name]
    assert len(packed(model)) == 3 * layers
    assert model.num_parameters() == load(folders[name]).num_parameters()
    check(model, copy.deepcopy(model).dequantize(), counted, monkeypatch)


@pytest.mark.parametrize("kind", FORMATS)
def test_experts_of_quantised_files(folders, counted, monkeypatch, kind, tmp_path):
    folder, whole = converted(folders["all layers"], kind, tmp_path)
    load = phyla.AutoModelForCausalLM.from_pretrained
    model = load(folder, quantized=True).eval()
    assert len(packed(model)) == 6
    model.pack()
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", quantized=True).eval()
    assert len(packed(again)) == 6
    check(again, load(whole).eval(), counted, monkeypatch)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3moe"])
def test_experts_of_gguf_files(counted, monkeypatch, tmp_path, family, kind):
    monkeypatch.setattr(gguf_models, "INNER", 64)
    path = gguf_models.write(family, tmp_path / "tiny.gguf", quantise=kind)
    load = phyla.AutoModelForCausalLM.from_pretrained
    model, expanded = load(path, quantized=True).eval(), load(path).eval()
    assert len(packed(model)) == 6
    ids = ids_of(2) % 20
    want = without_kernels(monkeypatch, expanded, ids)
    counted.clear()
    found = steps(model.pack(), ids)
    assert counted == [BUILT] * len(CHUNKS)
    assert (found - want).abs().max() < 5e-6 * want.abs().max()
    model.save_pretrained(tmp_path / "saved")
    for name, value in expanded.state_dict().items():
        torch.testing.assert_close(load(tmp_path / "saved").state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_what_is_left_out_stays_dense(folders):
    skip = phyla.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["experts", "lm_head"])
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], quantization_config=skip)
    assert not packed(model)
    one = phyla.FineGrainedFP8Config(modules_to_not_convert=["model.layers.0.block_sparse_moe.experts.3.w1"])
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], quantization_config=one)
    assert len(packed(model)) == 5
    assert isinstance(model.backbone.layers[0].ffn.gate, torch.nn.Parameter)


@pytest.mark.parametrize("coded", [False, True])
def test_only_what_tokens_choose_is_expanded(folders, kernels, monkeypatch, coded):
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], load_in_4bit=True).eval()
    monkeypatch.setattr(codes, "native", kernels.codes if coded and BUILT else None)
    if coded:
        model.pack()
    asked: list[int] = []
    product = PackedExperts.forward
    monkeypatch.setattr(PackedExperts, "forward", lambda s, x, e: asked.append(e) or product(s, x, e))
    ffn, x = model.backbone.layers[0].ffn, torch.randn(1, 1, 64)
    with torch.no_grad():
        _, index = ffn.route(x[0], Context.of(x))
        ffn.mix(x, Context.of(x))
    assert sorted(asked) == sorted(index.flatten().tolist() * 3)


def test_gradients_go_through_packed_experts(folders):
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], load_in_8bit=True)
    whole = copy.deepcopy(model).dequantize()
    found = []
    for m in (model.pack(), whole):
        x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        m.backbone.layers[1].ffn(x, Context.of(x)).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_packed_experts_are_compiled(folders):
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], load_in_8bit=True).eval()
    ffn, x = model.backbone.layers[1].ffn, torch.randn(1, 6, 64)
    run = torch.compile(lambda x: ffn(x, Context.of(x)), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(run(x), ffn(x, Context.of(x)))


def test_adapters_on_the_numbers_of_packed_experts_are_refused(folders):
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], load_in_8bit=True)
    config = LoraConfig(r=2, target_parameters=["down_proj"], target_modules=[])
    with pytest.raises(AdapterError, match="quantised"):
        model.add_adapter("a", config, set_active=True)


def test_adapters_on_packed_experts_learn_as_on_expanded_ones(folders, tmp_path):
    model = phyla.AutoModelForCausalLM.from_pretrained(folders["all layers"], load_in_4bit=True)
    whole, ids = copy.deepcopy(model).dequantize(), ids_of(2)
    config = LoraConfig(r=2, target_modules=["w1", "w2"], init_lora_weights=False, use_dora=True)
    model.add_adapter("a", config, set_active=True)
    model.save_adapter(tmp_path, "a")
    whole.load_adapter(tmp_path, load_as="a", set_active=True)
    gradients = []
    for m in (model.pack(), whole):
        m.train_adapter("a")
        out = m(ids).logits
        out.square().mean().backward()
        gradients.append({n: p.grad for n, p in m.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)
    assert len(gradients[0]) > 9
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, whole.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="quantised"):
        model.merge_adapter("a")
    model.set_active_adapters(None)
    with torch.no_grad():
        plain = copy.deepcopy(model).dequantize()(ids).logits
        torch.testing.assert_close(model(ids).logits, plain, rtol=1e-4, atol=1e-5)


def test_adapters_on_dense_experts_are_heard(counted):
    model, ids = made("all layers"), ids_of(1)
    steps(model, ids)
    assert all(counted) == BUILT
    config = LoraConfig(r=2, target_parameters=["down_proj"], target_modules=[], init_lora_weights=False)
    model.add_adapter("a", config, set_active=True)
    counted.clear()
    with torch.inference_mode():
        want = model(ids).logits
    torch.testing.assert_close(steps(model, ids), want, rtol=1e-4, atol=1e-4)
    assert not any(counted)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["all layers", "some layers", "by a norm"])
def test_a_text_has_the_same_bits_in_any_company(counted, monkeypatch, name, native):
    model, pool = made(name), prompts(6, seed=4, longest=30)
    model.generation_config.eos_token_id = None
    if not native:
        for owner, slot in ((stack, "native"), (matmul, "native"), (matmul, "native_alike")):
            monkeypatch.setattr(owner, slot, None)
    alone = []
    for prompt in pool:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=5, **ASKED)
        alone.append((out.sequences[0, -5:], torch.cat(out.logits)))
    choose = random.Random(1)
    for _ in range(4):
        numbers = [choose.randrange(6) for _ in range(choose.randint(1, 5))]
        ids, mask = batch_of([pool[n] for n in numbers], choose.choice(["left", "right"]))
        out = model.generate(ids, attention_mask=mask, max_new_tokens=5, **ASKED)
        logits = torch.stack(out.logits, 1)
        for row, number in enumerate(numbers):
            assert torch.equal(out.sequences[row, -5:], alone[number][0])
            assert torch.equal(logits[row], alone[number][1])
    assert any(counted) == (native and BUILT)


def test_the_step_gives_a_row_the_bits_it_has_alone(counted):
    model, ids = made("some layers"), ids_of(4)
    same = torch.equal if BUILT else torch.allclose
    with torch.inference_mode():
        cache = model.new_cache(4, 20)
        model(ids[:, :8], past_key_values=cache, use_cache=True)
        before = [(s.keys.clone(), s.values.clone()) for s in cache.slots]
        together = model(ids[:, 8:9], past_key_values=cache, use_cache=True).logits
        for row in range(4):
            single = model.new_cache(1, 20)
            for slot, (keys, values) in zip(single.slots, before, strict=True):
                slot.update(keys[row : row + 1, :, :8], values[row : row + 1, :, :8])
            single.length = 8
            one = model(ids[row : row + 1, 8:9], past_key_values=single, use_cache=True).logits
            assert same(one[0], together[row])
    assert any(counted) == BUILT


def test_experts_that_no_row_chose_are_never_read(counted):
    model = made("all layers")
    poisoned = copy.deepcopy(model)
    ids = ids_of(1)
    with torch.inference_mode():
        used = [set() for _ in model.backbone.layers]
        for layer, seen in zip(model.backbone.layers, used, strict=True):
            route = layer.ffn.route
            layer.ffn.route = lambda t, c, route=route, seen=seen: (
                (found := route(t, c)), seen.update(found[1].flatten().tolist())
            )[0]  # fmt: skip
        want = model(ids).logits[:, -1:]
        for layer, seen in zip(poisoned.backbone.layers, used, strict=True):
            for expert in set(range(5)) - seen:
                layer.ffn.gate[expert] = layer.ffn.down[expert] = float("nan")
        found = steps(poisoned, ids)[:, -1:]
    assert any(isinstance(m, Experts) for m in poisoned.modules())
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
