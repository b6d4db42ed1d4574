"""Quantised checkpoints: read as their makers do, kept packed, made at load, saved, trained on, refused.

goldens/quantized.safetensors.xz was written with bitsandbytes 0.50.2, compressed-tensors 0.20.0, Transformers
4.50.3 (gpt-oss blocks: 5.23) and GPTQModel 7.7.0's AWQ packing; GPTQ is packed here, number by number.
"""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import phyla
from phyla.blocks.linear import Linear
from phyla.checkpoints.safetensors_file import SafetensorsFile
from phyla.errors import AdapterError, ArgumentError, ConfigError, MissingWeightsError, ShapeMismatchError
from phyla.quantization.bitsandbytes import EightBits, FourBits
from phyla.quantization.linear import QuantizedLinear
from phyla.quantization.methods import reader_of
from phyla.quantization.tables import dynamic_map
from phyla.quantization.view import QuantizedWeights
from phyla.quantization.words import pack, unpack

PACK = Path(__file__).with_name("goldens") / "quantized.safetensors.xz"
IDS = torch.tensor([[1, 5, 9, 3, 17, 2, 30]])
MODELS = [
    "llama-nf4", "llama-int8", "llama-int4", "gpt_neox-nf4", "gpt_neox-int4", "mixtral-nf4", "mixtral-int4",
]  # fmt: skip
MATRICES = [
    "nf4", "nf4-nested", "fp4", "fp4-nested", "int8", "ct-pack3", "ct-pack3-zeros", "ct-pack4",
    "ct-pack4-zeros",
    "ct-pack8", "ct-pack8-zeros", "ct-int8", "ct-int8-tensor", "ct-fp8", "ct-fp8-tensor", "ct-fp8-block",
    "ct-nvfp4", "ct-mxfp4", "awq",
]  # fmt: skip
MADE = {
    "nf4": phyla.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "fp4": phyla.BitsAndBytesConfig(load_in_4bit=True),
    "int8": phyla.BitsAndBytesConfig(load_in_8bit=True),
    "fp8": phyla.FineGrainedFP8Config(weight_block_size=(32, 48)),
    "fbgemm": phyla.FbgemmFp8Config(),
    "quanto": phyla.QuantoConfig("int8"),
    "float8": phyla.QuantoConfig("float8"),
    "torchao": phyla.TorchAoConfig("int4_weight_only", group_size=16),
    "hqq": phyla.HqqConfig(nbits=3, group_size=16),
    "groups": phyla.CompressedTensorsConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}}},
        format="pack-quantized",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    path = tmp_path_factory.mktemp("quantized") / "all.safetensors"
    path.write_bytes(lzma.decompress(PACK.read_bytes()))
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["configs"])


def parts_of(goldens: tuple[dict, dict], case: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(case + "/"): v.clone()
        for k, v in goldens[0].items()
        if k.startswith(case + "/") and not k.startswith(case + "//")
    }


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def folder_of(goldens: tuple[dict, dict], case: str, tmp_path: Path) -> Path:
    return write(tmp_path / case, parts_of(goldens, case), goldens[1][case])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def packed_maps(model) -> dict[str, QuantizedLinear]:
    return {path: m for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    common = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    made, found = {
        "llama": (phyla.LlamaForCausalLM, phyla.LlamaConfig(
            **common, intermediate_size=96, num_key_value_heads=2)),
        "gpt_neox": (phyla.GPTNeoXForCausalLM, phyla.GPTNeoXConfig(**common, intermediate_size=96)),
        "gpt2": (phyla.GPT2LMHeadModel, phyla.GPT2Config(vocab_size=32, n_embd=64, n_layer=1, n_head=4)),
        "mixtral": (phyla.MixtralForCausalLM, phyla.MixtralConfig(
            **common, intermediate_size=64, num_key_value_heads=2, num_local_experts=2)),
    }, {}  # fmt: skip
    for name, (kind, config) in made.items():
        torch.manual_seed(3)
        model = kind(config)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.15)
        found[name] = tmp_path_factory.mktemp("dense") / name
        model.save_pretrained(found[name])
    return found


@pytest.mark.parametrize("case", MATRICES)
def test_weights_expand_as_their_makers_expand_them(goldens, case: str) -> None:
    tensors, configs = goldens
    case = f"matrix-{case}"
    parts, want = parts_of(goldens, case), tensors[f"{case}//dense"]
    scheme = reader_of(configs[case]["quantization_config"], "a test")
    got = scheme.dense(parts, scheme.check(parts))
    assert got.dtype == torch.float32 and got.shape == want.shape
    if case == "matrix-awq":  # its maker computes in float16
        got = got.half().float()
    # That of NVFP4 rounds the scale and the product to bfloat16.
    torch.testing.assert_close(got, want, rtol=2**-8 if case == "matrix-ct-nvfp4" else 1e-6, atol=1e-8)


def test_blocks_of_experts_expand_as_the_reference_expands_them(goldens, tmp_path: Path) -> None:
    tensors = {f"experts.{k}": v for k, v in parts_of(goldens, "matrix-mxfp4").items()}
    save_file(tensors | {"plain": torch.ones(3)}, tmp_path / "m.safetensors")
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        view = QuantizedWeights(file, reader_of({"quant_method": "mxfp4"}, "a test"))
        assert sorted(view.infos) == ["experts.w", "plain"]
        assert torch.equal(view.read("experts.w"), goldens[0]["matrix-mxfp4//dense"])


@pytest.mark.parametrize("kind", ["nf4", "nf4-nested", "fp4", "int8"])
def test_what_is_made_has_the_codes_of_the_maker(goldens, kind: str) -> None:
    parts = parts_of(goldens, f"matrix-{kind}")
    dense = goldens[0][f"matrix-{kind}//dense"]
    scheme = EightBits() if kind == "int8" else FourBits(kind[:3])
    made = scheme.quantise(dense)
    if kind != "fp4":  # it has two zeros
        assert torch.equal(made["weight"].view(parts["weight"].shape), parts["weight"])
    if kind.endswith("nested"):
        assert torch.equal(dynamic_map(), parts["weight.nested_quant_map"])
        return
    torch.testing.assert_close(scheme.dense(made, scheme.check(made)), dense, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", MODELS)
def test_checkpoints_of_the_makers_load_dense_and_packed_and_are_saved_as_they_were(
    goldens, case: str, tmp_path: Path
) -> None:
    folder = folder_of(goldens, case, tmp_path)
    want = goldens[0][f"{case}//logits"]
    plain, info = phyla.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-4)
    assert not packed_maps(plain) and "quantization_config" not in plain.config.to_dict()
    packed = phyla.AutoModelForCausalLM.from_pretrained(folder, quantized=True)
    assert len(packed_maps(packed)) >= 4
    torch.testing.assert_close(logits(packed), logits(plain), rtol=1e-5, atol=1e-5)
    packed.save_pretrained(tmp_path / "again")
    old, new = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in new.items():
        if name in old and old[name].dtype != torch.bfloat16:
            assert torch.equal(tensor.view(torch.uint8), old[name].view(torch.uint8)), name
    assert set(old) == set(new)
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "again", quantized=True)
    assert torch.equal(logits(again), logits(packed))
    torch.testing.assert_close(logits(packed.dequantize()), logits(plain), rtol=1e-5, atol=1e-5)
    assert not packed_maps(packed)


# GPTQ by the published layout, written out number by number.
def gptq_words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Columns of whole numbers (n, m) as a stream of bits in 32-bit words (n * bits / 32, m)."""
    words = np.zeros((-(-len(numbers) * bits // 32), numbers.shape[1]), dtype=np.uint32)
    for row, values in enumerate(numbers):
        for bit in range(bits):
            place = row * bits + bit
            words[place // 32] |= ((values >> bit & 1) << (place % 32)).astype(np.uint32)
    return words.view(np.int32)


def gptq_parts(weight: torch.Tensor, bits: int, group: int, less_one: bool, by_activity: bool):
    """(parts, dense) of a weight (out, in) rounded to GPTQ's grid; by_activity: groups of shuffled inputs."""
    numbers, top = weight.double().numpy(), 2**bits - 1
    width = numbers.shape[1]
    index = np.arange(width) // group
    if by_activity:
        index = np.random.default_rng(0).permutation(index)
    groups = index.max() + 1
    low = np.stack([numbers[:, index == g].min(1).clip(max=0) for g in range(groups)])  # (groups, out)
    high = np.stack([numbers[:, index == g].max(1).clip(min=0) for g in range(groups)])
    scales = ((high - low) / top).astype(np.float16).astype(np.float64)
    zeros = np.clip(np.round(-low / scales), 1, top).astype(np.int64)
    codes = np.clip(np.round(numbers / scales[index].T) + zeros[index].T, 0, top).astype(np.int64)
    dense = (codes - zeros[index].T) * scales[index].T
    parts = {
        "qweight": torch.from_numpy(gptq_words(codes.T, bits)),
        "qzeros": torch.from_numpy(gptq_words((zeros - less_one).T, bits).T.copy()),
        "scales": torch.from_numpy(scales).half(), "g_idx": torch.from_numpy(index).int(),
    }  # fmt: skip
    return parts, torch.from_numpy(dense).float()


def awq_parts(weight: torch.Tensor, group: int):
    """(parts, dense) of a weight (out, in) on AWQ's grid: eight outputs a word, 0 2 4 6 1 3 5 7 upwards."""
    parts, dense = gptq_parts(weight, 4, group, False, False)
    codes = unpack(parts["qweight"].t().contiguous(), 4, weight.shape[1]).t()  # (in, out)
    zeros = unpack(parts["qzeros"], 4, weight.shape[0])
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    shuffled = [pack(t.unflatten(1, (-1, 8))[:, :, order].flatten(1), 4) for t in (codes, zeros)]
    return {"qweight": shuffled[0], "qzeros": shuffled[1], "scales": parts["scales"]}, dense


def fp8_parts(weight: torch.Tensor, block: tuple[int, int] = (32, 32)):
    out, width = weight.shape
    scale = torch.zeros(-(-out // block[0]), -(-width // block[1]))
    values, dense = torch.zeros(out, width), torch.zeros(out, width)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = weight[at].abs().max() / 448
            values[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn).float()
            dense[at] = values[at] * scale[i, j]
    return {"weight": values.to(torch.float8_e4m3fn), "weight_scale_inv": scale}, dense


FORMATS = {
    "gptq": (
        lambda w: gptq_parts(w, 4, 32, True, True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    ),
    "gptq3": (
        lambda w: gptq_parts(w, 3, 32, False, False),
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (lambda w: awq_parts(w, 16), {"quant_method": "awq", "bits": 4, "group_size": 16}),
    "fp8": (fp8_parts, {"quant_method": "fp8", "weight_block_size": [32, 32]}),
}


def converted(source: Path, kind: str, folder: Path) -> tuple[Path, Path]:
    """(checkpoint in a format, the same with the expanded weights), from a dense one."""
    make, settings = FORMATS[kind]
    config = json.loads((source / "config.json").read_text())
    stored, expanded = {}, {}
    turned = ("c_attn", "c_proj", "c_fc")
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        skip = tensor.dim() != 2 or len(tensor) < 8
        if skip or any(k in name for k in ("embed", "wte", "wpe", "lm_head")):
            stored[name] = expanded[name] = tensor
            continue
        flip = module.rpartition(".")[2] in turned
        parts, value = make(tensor.t().contiguous() if flip else tensor)
        stored |= {f"{module}.{leaf}": part.contiguous() for leaf, part in parts.items()}
        expanded[name] = (value.t() if flip else value).contiguous()
    whole = write(folder / "expanded", expanded, config)
    return write(folder / kind, stored, config | {"quantization_config": settings}), whole


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gpt2"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_family_loads_every_format(dense, kind: str, family: str, tmp_path: Path) -> None:
    folder, whole = converted(dense[family], kind, tmp_path)
    want = logits(phyla.AutoModelForCausalLM.from_pretrained(whole))
    plain, info = phyla.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(plain), want, rtol=1e-5, atol=1e-5)
    packed = phyla.AutoModelForCausalLM.from_pretrained(folder, quantized=True)
    assert packed_maps(packed)
    torch.testing.assert_close(logits(packed), want, rtol=1e-5, atol=1e-5)
    packed.save_pretrained(tmp_path / "again")
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(again), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_activity", [False, True])
@pytest.mark.parametrize("less_one", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_every_kind(bits: int, less_one: bool, by_activity: bool) -> None:
    weight = torch.randn(32, 96, generator=torch.manual_seed(bits))
    parts, want = gptq_parts(weight, bits, 32, less_one, by_activity)
    form = "gptq" if less_one else "gptq_v2"
    scheme = reader_of(
        {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": form}, ""
    )
    torch.testing.assert_close(scheme.dense(parts, scheme.check(parts)), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 70])
def test_numbers_survive_words(bits: int, count: int) -> None:
    values = torch.randint(0, 1 << bits, (3, count), dtype=torch.uint8, generator=torch.manual_seed(count))
    assert torch.equal(unpack(pack(values, bits), bits, count), values)


@pytest.mark.parametrize("kind", MADE)
def test_weights_made_at_load_stay_near_are_saved_and_come_back(dense, kind: str, tmp_path: Path) -> None:
    plain = phyla.AutoModelForCausalLM.from_pretrained(dense["llama"])
    model = phyla.AutoModelForCausalLM.from_pretrained(dense["llama"], quantization_config=MADE[kind])
    assert len(packed_maps(model)) == 7 and type(model.head.out) is Linear
    assert model.num_parameters() == plain.num_parameters()
    assert model.get_memory_footprint() < 0.55 * plain.get_memory_footprint()
    bound = {"int8": 0.01, "quanto": 0.01, "hqq": 0.3}.get(kind, 0.2)
    for path, module in packed_maps(model).items():
        error = module.weight - plain.get_submodule(path).weight
        assert error.abs().max() <= bound * plain.get_submodule(path).weight.abs().max(), path
    got = logits(model)
    model.save_pretrained(tmp_path / "m")
    names = load_file(tmp_path / "m" / "model.safetensors")
    assert "lm_head.weight" in names and not any("outline" in name for name in names)
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantized=True)
    assert torch.equal(logits(again), got) and again.is_quantized
    torch.testing.assert_close(logits(model.dequantize()), got, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral", "gpt2"])
def test_fused_and_turned_maps_are_quantised_as_files_hold_them(dense, family: str, tmp_path: Path) -> None:
    model = phyla.AutoModelForCausalLM.from_pretrained(dense[family], load_in_4bit=True)
    got = logits(model)
    model.save_pretrained(tmp_path / "m")
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantized=True)
    assert torch.equal(logits(again), got) and again.is_loaded_in_4bit
    fused = {"gpt_neox": "query_key_value", "gpt2": "c_attn", "mixtral": "q_proj"}[family]
    state = load_file(tmp_path / "m" / "model.safetensors")
    text = next(v for k, v in state.items() if fused in k and "quant_state" in k)
    assert json.loads(bytes(text.tolist()))["shape"] == ([64, 64] if family == "mixtral" else [192, 64])


def test_what_is_to_be_skipped_is(dense) -> None:
    settings = phyla.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj", "mlp"])
    model = phyla.LlamaForCausalLM.from_pretrained(dense["llama"], quantization_config=settings)
    made = {path.rpartition(".")[2] for path in packed_maps(model)}
    assert made == {"k", "q", "v", "o", "out"}, "a name stands for a whole path or a part followed by a dot"
    settings = phyla.FineGrainedFP8Config(modules_to_not_convert=["mlp", "lm_head"])
    model = phyla.LlamaForCausalLM.from_pretrained(dense["llama"], quantization_config=settings)
    assert {path.rpartition(".")[2] for path in packed_maps(model)} == {"q", "k", "v", "o"}


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8", "groups"])
def test_adapters_train_on_packed_weights(dense, kind: str) -> None:
    model = phyla.AutoModelForCausalLM.from_pretrained(dense["gpt_neox"], quantization_config=MADE[kind])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.add_adapter("a", config="lora")
    model.train_adapter("a")
    trained = [p for p in model.parameters() if p.requires_grad]
    step = torch.optim.SGD(trained, 0.5)
    losses = []
    for _ in range(4):
        step.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and all(p.grad is not None for p in trained)
    after = model.state_dict()
    kept = [k for k in before if ".packed." in k]
    assert kept and all(torch.equal(after[k].view(torch.uint8), before[k].view(torch.uint8)) for k in kept)
    with pytest.raises(AdapterError, match="quantised"):
        model.merge_adapter("a")


def test_gradients_of_the_input_are_those_of_the_expanded_map(dense) -> None:
    model = phyla.LlamaForCausalLM.from_pretrained(dense["llama"], load_in_4bit=True)
    packed = next(iter(packed_maps(model).values()))
    x = torch.randn(2, 3, 64, requires_grad=True)
    packed(x).square().sum().backward()
    got, x.grad = x.grad, None
    torch.nn.functional.linear(x, packed.weight, packed.bias).square().sum().backward()
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8", "torchao"])
def test_packed_models_compile_to_one_graph_and_move(dense, kind: str) -> None:
    model = phyla.LlamaForCausalLM.from_pretrained(dense["llama"], quantization_config=MADE[kind])
    want = logits(model)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="eager")(input_ids=IDS).logits
    torch.testing.assert_close(got, want)
    stored = {k: v.dtype for k, v in model.state_dict().items() if ".packed." in k}
    model.to(torch.bfloat16)
    assert {k: v.dtype for k, v in model.state_dict().items() if ".packed." in k} == stored
    assert logits(model).dtype == torch.bfloat16


def test_a_dtype_for_products_is_kept_to(dense) -> None:
    settings = phyla.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
    model = phyla.LlamaForCausalLM.from_pretrained(dense["llama"], quantization_config=settings)
    module = next(iter(packed_maps(model).values()))
    x = torch.randn(3, 64)
    want = torch.nn.functional.linear(x.bfloat16(), module.dense(torch.bfloat16)).float()
    assert torch.equal(module(x), want)


def broken(goldens, tmp_path: Path, case: str, change) -> Path:
    tensors, config = parts_of(goldens, case), json.loads(json.dumps(goldens[1][case]))
    change(tensors, config)
    return write(tmp_path / "broken", tensors, config)


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("case", "change", "error", "words"),
    [
        ("llama-nf4", lambda t, c: t.update({Q + "weight": t[Q + "weight"][:-9].clone()}),
         ShapeMismatchError, Q + "weight must hold"),
        ("llama-nf4", lambda t, c: t.pop(Q + "weight.absmax"), MissingWeightsError, "q_proj.weight.absmax"),
        ("llama-nf4", lambda t, c: t.pop(Q + "weight.nested_absmax"), ShapeMismatchError,
         Q + "weight.nested_absmax"),
        ("llama-nf4", lambda t, c: t[Q + "weight.quant_state.bitsandbytes__nf4"].fill_(65),
         ShapeMismatchError, Q + "weight.quant_state"),
        ("llama-nf4", lambda t, c: t.update({Q + "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(b'{"shape": [900000000, 900000000], "blocksize": 64}'), dtype=torch.uint8)}),
         ShapeMismatchError, Q + "weight"),
        ("llama-int8", lambda t, c: t.update({Q + "SCB": t[Q + "SCB"][1:].clone()}), ShapeMismatchError,
         Q + "SCB must have shape"),
        ("llama-int8", lambda t, c: t.update({Q + "weight_format": torch.tensor(2, dtype=torch.uint8)}),
         ShapeMismatchError, Q + "weight_format"),
        ("llama-int4", lambda t, c: t.pop(Q + "weight_shape"), ShapeMismatchError, Q + "weight_shape"),
        ("llama-int4", lambda t, c: t.update({Q + "weight_scale": t[Q + "weight_scale"][:, :3].clone()}),
         ShapeMismatchError, Q + "weight_scale must have"),
        ("llama-int4", lambda t, c: t.update({Q + "weight_packed": t[Q + "weight_packed"].float()}),
         ShapeMismatchError, Q + "weight_packed must hold"),
        ("llama-int4", lambda t, c: c["quantization_config"].update(format="marlin-24"), ConfigError,
         "marlin-24"),
        ("llama-int4", lambda t, c: c["quantization_config"].update(quant_method="gptqq"), ConfigError,
         "Did you mean 'gptq'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named(goldens, tmp_path: Path, case: str, change, error, words: str, packed: bool) -> None:
    folder = broken(goldens, tmp_path, case, change)
    with pytest.raises(error) as caught:
        phyla.AutoModelForCausalLM.from_pretrained(folder, quantized=packed)
    assert words in str(caught.value)


def test_wishes_that_cannot_be_are_refused(goldens, dense, tmp_path: Path) -> None:
    load = phyla.AutoModelForCausalLM.from_pretrained
    for settings in (phyla.GPTQConfig(bits=4), phyla.AwqConfig(), phyla.Mxfp4Config()):
        with pytest.raises(ArgumentError, match="only read"):
            load(dense["llama"], quantization_config=settings)
    with pytest.raises(ConfigError, match="both"):
        load(dense["llama"], load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ArgumentError, match="both"):
        load(dense["llama"], load_in_4bit=True, quantization_config=MADE["int8"])
    with pytest.raises(ConfigError, match="quant_method"):
        load(dense["llama"], quantization_config={"quant_method": "aqlm"})
    with pytest.raises(ConfigError, match="must say bits"):
        load(dense["llama"], quantization_config={"quant_method": "gptq"})
    folder = folder_of(goldens, "llama-nf4", tmp_path)
    with pytest.raises(ArgumentError, match="already"):
        load(folder, quantization_config=phyla.QuantoConfig())
    kept = load(folder, quantization_config=MADE["nf4"])
    assert packed_maps(kept) and kept.quantization_method == "bitsandbytes"


@pytest.mark.parametrize("settings", [*MADE.values(), phyla.GPTQConfig(bits=3), phyla.AwqConfig()], ids=repr)
def test_settings_survive_json(settings) -> None:
    data = json.loads(json.dumps(settings.to_dict()))
    assert type(settings).from_dict(data) == settings
    assert data["quant_method"] == settings.quant_method and repr(settings).startswith(
        type(settings).__name__
    )
