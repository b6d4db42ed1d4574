"""Files of torchao, quanto, HQQ, GPTQModel and AutoAWQ: read as the tools do, written as the tools write.

goldens/quantized_tools.safetensors.xz was written with torchao 0.18.0 through Transformers 5.23.0 and torchao
0.9.0 (pickles) through 4.50.3, optimum-quanto 0.2.7, hqq 0.2.8.post1 (through 4.50.3, and its own qmodel.pt),
GPTQModel 7.7.0's torch layer and AutoAWQ 0.2.9's layers; logits are of the tools' own expanded weights. What
phyla writes was loaded by the same tools with equal logits; here it must equal what they wrote themselves.
"""

import json
import lzma
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import phyla
from phyla.checkpoints.weights import open_weights
from phyla.errors import (
    CheckpointError,
    ConfigError,
    CorruptFileError,
    MissingWeightsError,
    ShapeMismatchError,
    UnsafeFormatError,
)
from phyla.quantization.halfquadratic import search_zeros
from phyla.quantization.hqq import flattened
from phyla.quantization.linear import QuantizedLinear
from phyla.quantization.methods import reader_of
from phyla.quantization.torchao import TorchAO, untiled
from phyla.quantization.view import QuantizedWeights

PACK = Path(__file__).with_name("goldens") / "quantized_tools.safetensors.xz"
IDS = torch.tensor([[1, 5, 9, 3, 17, 2, 30]])
Q = "model.layers.0.self_attn.q_proj"
CASES = [
    "torchao-int8", "torchao-float8", "torchao-dynamic8", "torchao-intx4", "torchao-old-int8",
    "torchao-old-dynamic8", "quanto-int8", "quanto-int4", "quanto-int2", "quanto-float8", "hqq-8-1",
    "hqq-4-1", "hqq-4-0", "hqq-3-0", "hqq-2-1", "hqq-1-0", "hqq-4-1-view", "hqq-own-4", "hqq-own-3", "gptq-4",
    "gptq-3",
]  # fmt: skip
# What is written, by settings, and the tool's own file of the same weights.
WRITTEN = {
    "torchao-int8": phyla.TorchAoConfig("int8_weight_only"),
    "torchao-float8": phyla.TorchAoConfig("float8_weight_only"),
    "quanto-int8": phyla.QuantoConfig("int8"),
    "quanto-int4": phyla.QuantoConfig("int4"),
    "quanto-int2": phyla.QuantoConfig("int2"),
    "quanto-float8": phyla.QuantoConfig("float8"),
    "hqq-8-1": phyla.HqqConfig(nbits=8),
    "hqq-4-0": phyla.HqqConfig(nbits=4, axis=0),
    "hqq-3-0": phyla.HqqConfig(nbits=3, group_size=16, axis=0),
    "hqq-2-1": phyla.HqqConfig(nbits=2),
    "hqq-1-0": phyla.HqqConfig(nbits=1, axis=0),
}


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    path = tmp_path_factory.mktemp("tools") / "all.safetensors"
    path.write_bytes(lzma.decompress(PACK.read_bytes()))
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["meta"])


def tensors_of(goldens: tuple[dict, dict], case: str) -> dict[str, torch.Tensor]:
    tensors, meta = goldens
    own = {k.removeprefix(case + "/"): v for k, v in tensors.items() if k.startswith(case + "/")}
    own = {k: v.clone() for k, v in own.items() if not k.startswith("/")}
    if "dense" in meta[case]:  # what all of them hold is there once
        modules = {k.rpartition(".")[0] for k in own} | {k.rpartition(".weight.")[0] for k in own}
        whole = tensors_of(goldens, meta[case]["dense"])
        own |= {k: v for k, v in whole.items() if k.removesuffix(".weight") not in modules}
    return own


def folder_of(goldens: tuple[dict, dict], case: str, folder: Path, tensors: dict | None = None) -> Path:
    meta = goldens[1][case]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(meta["config"]))
    for name, text in meta.get("files", {}).items():
        (folder / name).write_text(text)
    tensors = tensors_of(goldens, case) if tensors is None else tensors
    if "bytes" in meta:
        (folder / meta["bytes"]).write_bytes(bytes(tensors["bytes"].tolist()))
    else:
        save_file(tensors, folder / "model.safetensors", metadata=meta.get("notes"))
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def packed_maps(model) -> list[QuantizedLinear]:
    return [m for m in model.modules() if isinstance(m, QuantizedLinear)]


@pytest.mark.parametrize("case", CASES)
def test_files_of_the_tools_are_read_and_saved_again(goldens, case: str, tmp_path: Path) -> None:
    folder, want = folder_of(goldens, case, tmp_path / case), goldens[0][f"{case}//logits"]
    plain, info = phyla.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-4)
    packed = phyla.AutoModelForCausalLM.from_pretrained(folder, quantized=True)
    assert len(packed_maps(packed)) >= 4 and packed.is_quantized
    assert packed.quantization_method == case.partition("-")[0]
    torch.testing.assert_close(logits(packed), logits(plain), rtol=1e-5, atol=1e-5)
    packed.save_pretrained(tmp_path / "again")
    new = load_file(tmp_path / "again" / "model.safetensors")
    if "bytes" not in goldens[1][case]:
        old = load_file(folder / "model.safetensors")
        assert set(old) == set(new)
        for name, tensor in new.items():
            same = tensor.dtype == old[name].dtype and tensor.shape == old[name].shape
            assert same and bits_of(tensor).equal(bits_of(old[name])), name
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "again", quantized=True)
    assert torch.equal(logits(again), logits(packed))


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


@pytest.mark.parametrize("case", WRITTEN)
def test_what_is_made_and_written_is_what_the_tool_writes(goldens, case: str, tmp_path: Path) -> None:
    meta = goldens[1][case]
    source = folder_of(goldens, meta["dense"], tmp_path / "dense")
    model = phyla.AutoModelForCausalLM.from_pretrained(source, quantization_config=WRITTEN[case])
    model.save_pretrained(tmp_path / "made")
    theirs = tensors_of(goldens, case)
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        notes = file.metadata()
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert set(made) == set(theirs)
    for name, tensor in made.items():
        want = theirs[name]
        assert (tensor.dtype, tensor.shape) == (want.dtype, want.shape), name
        if not case.startswith("hqq"):
            close = (tensor.float() - want.float()).abs()
            # A number in the middle of two may go either way.
            assert close.amax() <= (1 if want.dtype == torch.int8 else 1e-6 * want.float().abs().amax()) or (
                want.dtype in (torch.uint8, torch.float8_e4m3fn) and (close > 0).float().mean() < 0.01
            ), name
        elif name.rpartition(".")[2] not in ("W_q", "scale", "zero"):
            assert torch.equal(tensor, want), name  # sizes and flags; the search for zeros is our own
    mine = json.loads((tmp_path / "made" / "config.json").read_text()).get("quantization_config", {})
    told = meta["config"].get("quantization_config", {})
    for key in ("quant_method", "quant_type", "quant_config"):
        assert mine.get(key) == told.get(key)
    for name, text in meta["files"].items():
        assert json.loads((tmp_path / "made" / name).read_text()) == json.loads(text)
    if case.startswith("torchao"):
        told, wanted = json.loads(notes[f"{Q}.weight"]), json.loads(meta["notes"][f"{Q}.weight"])
        assert {**told, "_tensor_data_names": set(told["_tensor_data_names"])} == {
            **wanted, "_tensor_data_names": set(wanted["_tensor_data_names"])
        }  # fmt: skip
        assert sorted(json.loads(notes["tensor_names"])) == sorted(json.loads(meta["notes"]["tensor_names"]))
        assert json.loads(notes["model.norm.weight"]) == {"_type": "Tensor"}


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_the_search_for_zeros_beats_rounding_to_nearest(goldens, bits: int) -> None:
    draw = torch.distributions.StudentT(torch.tensor(4.0))
    torch.manual_seed(0)
    groups, top = draw.sample((512, 64)) * 0.03, (1 << bits) - 1
    codes, scale, zero = search_zeros(groups, bits)
    assert codes.amin() >= 0 and codes.amax() <= top and torch.equal(codes, codes.round())
    error = (groups - (codes - zero) * scale).abs().mean(1)
    least, most = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (most - least) / top
    nearest = ((groups - least) / step).round_().clamp_(0, top) * step + least
    plain = (groups - nearest).abs().mean(1)
    assert (error <= plain * (1 + 1e-5)).all()
    assert error.mean() < {8: 0.97, 4: 0.97, 3: 0.97, 2: 0.92, 1: 0.4}[bits] * plain.mean()


@pytest.mark.parametrize("case", ["hqq-4-1", "hqq-2-1", "hqq-3-0", "hqq-1-0"])
def test_the_search_for_zeros_is_as_good_as_the_tools(goldens, case: str) -> None:
    tensors, scheme = tensors_of(goldens, case), reader_of({"quant_method": "hqq"}, "")
    dense = tensors_of(goldens, "dense48")[f"{Q}.weight"].float()
    theirs = {leaf: tensors[f"{Q}.{leaf}"] for leaf in scheme.leaves}
    made = reader_of(goldens[1][case]["config"]["quantization_config"], "").quantise(dense)
    errors = [(scheme.dense(parts, scheme.check(parts)) - dense).abs().mean() for parts in (made, theirs)]
    assert errors[0] <= errors[1] * 1.001


@pytest.mark.parametrize("case", ["gemv", "gemv-wide", "gemv_fast", "marlin", "marlin-one"])
def test_layouts_of_single_kernels_expand_as_their_makers_fill_them(goldens, case: str) -> None:
    parts, want = tensors_of(goldens, f"matrix-{case}"), goldens[0][f"matrix-{case}//dense"]
    group, version = goldens[1][f"matrix-{case}"]["group_size"], case.partition("-")[0]
    scheme = reader_of({"quant_method": "awq", "bits": 4, "group_size": group, "version": version}, "")
    # gemv_fast keeps scale * zero in half precision.
    bound = 2**-11 * 2 if case == "gemv_fast" else 1e-6
    torch.testing.assert_close(scheme.dense(parts, scheme.check(parts)), want, rtol=1e-6, atol=bound)
    if version == "marlin":
        gptq = reader_of({"quant_method": "gptq", "bits": 4, "group_size": group, "is_marlin_format": 1}, "")
        again = {"B": parts["qweight"], "s": parts["scales"]}
        assert torch.equal(gptq.dense(again, gptq.check(again)), scheme.dense(parts, scheme.check(parts)))


@pytest.mark.parametrize(
    ("case", "leaf", "change"),
    [
        ("gemv", "scales", lambda t: t[1:]), ("gemv", "qzeros", lambda t: t.float()),
        ("gemv", "qweight", lambda t: t[:, :-1]), ("gemv_fast", "qweight", lambda t: t[:, :-1]),
        ("gemv_fast", "qzeros", lambda t: t[1:]), ("gemv_fast", "scales", lambda t: t[:1]),
        ("marlin", "scales", lambda t: t[1:]), ("marlin", "qweight", lambda t: t[:, :-1]),
    ],
)  # fmt: skip
def test_damage_in_layouts_of_single_kernels_is_named(goldens, case: str, leaf: str, change) -> None:
    parts = tensors_of(goldens, f"matrix-{case}")
    group = goldens[1][f"matrix-{case}"]["group_size"]
    scheme = reader_of({"quant_method": "awq", "bits": 4, "group_size": group, "version": case}, "")
    with pytest.raises(ShapeMismatchError, match=leaf):
        scheme.check(parts | {leaf: change(parts[leaf])})
    with pytest.raises(ConfigError, match="bits"):
        reader_of({"quant_method": "awq", "bits": 8, "version": case}, "")


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", ["quanto-int4", "hqq-3-0", "torchao-int8"])
def test_fused_turned_and_many_maps_come_back(kind: str, family: str, tmp_path: Path) -> None:
    common = {"vocab_size": 32, "hidden_size": 160, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = {
        "gpt_neox": lambda: phyla.GPTNeoXForCausalLM(phyla.GPTNeoXConfig(**common, intermediate_size=96)),
        "gpt2": lambda: phyla.GPT2LMHeadModel(
            phyla.GPT2Config(vocab_size=32, n_embd=160, n_layer=1, n_head=4)
        ),
        "mixtral": lambda: phyla.MixtralForCausalLM(
            phyla.MixtralConfig(**common, intermediate_size=64, num_key_value_heads=2, num_local_experts=2)
        ),
    }[family]()
    model.save_pretrained(tmp_path / "dense")
    load = phyla.AutoModelForCausalLM.from_pretrained
    made = load(tmp_path / "dense", quantization_config=WRITTEN[kind])
    assert len(packed_maps(made)) >= 4
    made.save_pretrained(tmp_path / "made")
    again = load(tmp_path / "made", quantized=True)
    assert len(packed_maps(again)) == len(packed_maps(made)) and torch.equal(logits(again), logits(made))
    torch.testing.assert_close(logits(load(tmp_path / "made")), logits(made), rtol=1e-5, atol=1e-5)


def noted(kind: str, shape: tuple[int, int]) -> TorchAO:
    told = {"_type": kind, "_data": {"block_size": [1, 32], "shape": shape}}
    return TorchAO().one("w.weight", {"w.weight": json.dumps(told)}, None)


def test_four_bits_in_tiles_expand_number_by_number() -> None:
    # PyTorch's int4mm.cu: eight outputs and 16 inputs a tile; a word holds values of two tiles.
    codes = torch.randint(0, 16, (16, 256), generator=torch.manual_seed(0))
    words = torch.zeros(2, 2, 32, 4, dtype=torch.int64)
    for tile in range(2):
        for outer in range(2):
            for thread in range(32):
                for pair in range(4):
                    at = (outer * 8 + 2 * pair) * 16 + thread % 4 * 2
                    places = [at, at + 8, at + 16, at + 24, at + 1, at + 9, at + 17, at + 25]
                    for nibble, place in enumerate(places):
                        words[tile, outer, thread, pair] |= codes[tile * 8 + thread // 4, place] << 4 * nibble
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    assert torch.equal(untiled(words).long(), codes)
    told = torch.randn(8, 16, 2, generator=torch.manual_seed(1)).bfloat16()
    scheme = noted("Int4TilePackedTo4dTensor", (15, 250))
    parts = {"_weight_qdata": words, "_weight_scale_and_zero": told}
    scale, zero = (told[..., i].float().t().repeat_interleave(32, 1) for i in (0, 1))
    want = ((codes - 8) * scale + zero)[:15, :250]
    torch.testing.assert_close(scheme.dense(parts, scheme.check(parts)), want)


def fake_torchao(monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], **state):
    """A tensor of a class that a pickle takes for torchao's, with attributes."""
    module = types.ModuleType("torchao.dtypes")
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    module = sys.modules.get("torchao.dtypes", module)
    monkeypatch.setitem(sys.modules, "torchao.dtypes", module)

    def dispatch(cls, func, *given):
        return given[1][0]

    kind = type(name, (torch.Tensor,), {"__module__": module.__name__})
    kind.__torch_dispatch__ = classmethod(dispatch)
    setattr(module, name, kind)
    made = torch.Tensor._make_wrapper_subclass(kind, shape, dtype=torch.bfloat16)
    made.__dict__.update(state)
    return made


def test_old_pickles_of_tiles_are_read(tmp_path: Path, monkeypatch) -> None:
    words = torch.arange(2 * 2 * 32 * 4, dtype=torch.int32).view(2, 2, 32, 4) * 40503
    told = torch.randn(8, 16, 2, generator=torch.manual_seed(1)).bfloat16()
    inner = fake_torchao(
        monkeypatch, "TensorCoreTiledAQTTensorImpl", (16, 256), packed_weight=words, scale_and_zero=told
    )
    outer = fake_torchao(
        monkeypatch, "AffineQuantizedTensor", (15, 250), tensor_impl=inner, block_size=(1, 32)
    )
    torch.save({"w.weight": outer, "plain": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    monkeypatch.undo()
    with open_weights(tmp_path) as file:
        view = QuantizedWeights(file, reader_of({"quant_method": "torchao"}, ""))
        want = noted("Int4TilePackedTo4dTensor", (15, 250))
        parts = {"_weight_qdata": words, "_weight_scale_and_zero": told}
        assert torch.equal(view.read("w.weight"), want.dense(parts, want.check(parts)))
        assert torch.equal(view.read("plain"), torch.ones(2))


def test_old_pickles_that_name_others_are_refused(tmp_path: Path, monkeypatch) -> None:
    held = fake_torchao(monkeypatch, "AffineQuantizedTensor", (4, 4), tensor_impl=Path("/"))
    torch.save({"w.weight": held}, tmp_path / "pytorch_model.bin")
    monkeypatch.undo()
    with pytest.raises(UnsafeFormatError, match="pathlib"):
        open_weights(tmp_path)


def test_zeros_and_scales_that_hqq_once_quantised_are_expanded() -> None:
    codes = torch.arange(32, dtype=torch.uint8).view(8, 4) * 7
    meta = {"nbits": 8, "group_size": 4, "axis": 1, "shape": torch.Size((32, 1))}
    meta |= {"zero": torch.full((8, 1), 3.0), "scale": torch.full((8, 1), 0.5)}
    state = {"W_q": torch.zeros(16, 64, dtype=torch.uint8), "bias": torch.ones(32), "meta": {
        "nbits": 4, "group_size": 64, "axis": 1, "shape": torch.Size((32, 64)), "packing": "4bit_u8",
        "scale": torch.ones(32, 1), "zero_q": codes, "meta_zero": meta, "quant_zero": True}}  # fmt: skip
    flat = flattened({"a.b": state, "c": {"weight": torch.ones(3)}})
    assert torch.equal(flat["a.b.zero"], ((codes.float() - 3) / 2).view(32, 1))
    assert torch.equal(flat["c.weight"], torch.ones(3)) and torch.equal(flat["a.b.bias"], torch.ones(32))
    scheme = reader_of({"quant_method": "hqq"}, "")
    parts = {leaf: flat[f"a.b.{leaf}"] for leaf in scheme.leaves if f"a.b.{leaf}" in flat}
    assert torch.equal(scheme.dense(parts, scheme.check(parts)), -flat["a.b.zero"].expand(32, 64))


def test_plain_four_bits_of_torchao() -> None:
    weight = torch.randn(6, 64, generator=torch.manual_seed(0))
    grouped = weight.unflatten(1, (-1, 32))
    least = grouped.amin(2)
    scale = (grouped.amax(2) - least) / 15
    zero = least + 8 * scale
    codes = ((grouped - least[:, :, None]) / scale[:, :, None]).round().clamp(0, 15).flatten(1).int() - 8
    octets = (codes[:, ::2] & 15 | (codes[:, 1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    scheme = noted("Int4Tensor", (6, 64))
    parts = {
        "_weight_qdata": octets, "_weight_scale": scale.t().contiguous(),
        "_weight_zero_point": zero.t().contiguous(), "_weight_act_pre_scale": torch.full((64,), 2.0),
    }  # fmt: skip
    want = 2 * (codes * scale.repeat_interleave(32, 1) + zero.repeat_interleave(32, 1))
    torch.testing.assert_close(scheme.dense(parts, scheme.check(parts)), want)


@pytest.mark.parametrize(
    ("case", "change", "error", "words"),
    [
        ("torchao-int8", lambda t, m: t.pop(f"{Q}._weight_scale"), CheckpointError, f"{Q}._weight_scale"),
        ("torchao-int8", lambda t, m: t.update({f"{Q}._weight_scale": torch.ones(3, 1)}), CheckpointError,
         f"{Q}._weight_scale must have shape"),
        ("torchao-int8", lambda t, m: m["notes"].pop(f"{Q}.weight"), CorruptFileError, Q),
        ("torchao-int8", lambda t, m: m["notes"].update({f"{Q}.weight": "[1"}), CorruptFileError, Q),
        ("torchao-int8", lambda t, m: m["notes"].update({f"{Q}.weight": '{"_type": "MXTensor"}'}),
         ConfigError, "MXTensor"),
        ("quanto-int8", lambda t, m: t.pop(f"{Q}.weight._scale"), MissingWeightsError, f"{Q}.weight._scale"),
        ("quanto-int4", lambda t, m: t.pop(f"{Q}.weight._shift"), CheckpointError, f"{Q}.weight._shift"),
        ("quanto-int4", lambda t, m: t.update({f"{Q}.weight._data._data": torch.ones(7, 32).byte()}),
         CheckpointError, f"{Q}.weight._data._data must have"),
        ("quanto-int8", lambda t, m: m["files"].update({"quanto_qmap.json": "{"}), CorruptFileError,
         "quanto_qmap"),
        ("hqq-4-1", lambda t, m: t.pop(f"{Q}.zero"), MissingWeightsError, f"{Q}.zero"),
        ("hqq-4-1", lambda t, m: t.update({f"{Q}.W_q": t[f"{Q}.W_q"][:3].clone()}), CheckpointError,
         f"{Q}.W_q must hold"),
        ("hqq-4-1", lambda t, m: t.update({f"{Q}.shape": torch.tensor([1 << 40, 1 << 40])}), CheckpointError,
         f"{Q}.shape must be"),
        ("hqq-4-1", lambda t, m: t.update({f"{Q}.nbits": torch.tensor(7)}), CheckpointError, f"{Q}.nbits"),
        ("hqq-3-0", lambda t, m: t.update({f"{Q}.scale": torch.ones(4)}), CheckpointError,
         f"{Q}.scale must have"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named(goldens, tmp_path: Path, case: str, change, error, words: str, packed: bool) -> None:
    tensors, meta = tensors_of(goldens, case), json.loads(json.dumps(goldens[1]))
    change(tensors, meta[case])
    folder = folder_of((goldens[0], meta), case, tmp_path, tensors)
    with pytest.raises(error) as caught:
        phyla.AutoModelForCausalLM.from_pretrained(folder, quantized=packed)
    assert words in str(caught.value)
