"""Weights kept as codes of four and eight bits: products, passes over whole stacks, the engine, and files."""

import copy
import pickle
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import BUILT, alone_as_together, counted, kernels
from test_generation_engine import prompts
from test_native_step import CHUNKS, CONFIGS, case, model_of, stepwise
from test_quantization import (
    FORMATS,
    IDS,
    MADE,
    MATRICES,
    awq_parts,
    dense,
    fp8_parts,
    goldens,
    gptq_parts,
    logits,
    packed_maps,
    parts_of,
)

import phyla
from phyla.blocks import stack
from phyla.blocks.matmul import rows_alike
from phyla.blocks.memory import Room
from phyla.errors import ShapeMismatchError
from phyla.fast import codes, native
from phyla.fast.codes import CodeMatrix, concatenate
from phyla.fast.packed import PackedWeight
from phyla.quantization.hqq import HQQ
from phyla.quantization.methods import maker_of, reader_of
from phyla.quantization.numbers import Numbers
from phyla.quantization.quanto import Quanto

__all__ = ["counted", "dense", "goldens", "kernels"]  # fixtures
HALVES = (torch.float32, torch.float16, torch.bfloat16)


def numbers_of(kind, rows, width, group, zeros, dtype, ordered, seed) -> tuple[Numbers, torch.Tensor]:
    """Random numbers of a kind, and the weight that they stand for, in float64."""
    torch.manual_seed(seed)
    groups, table = -(-width // group), None
    if kind == "table":
        made, table = torch.randint(0, 16, (rows, width), dtype=torch.uint8), torch.randn(16)
        values = table[made.int()]
    elif kind in ("steps", "halves"):
        made = torch.randint(0, 16, (rows, width), dtype=torch.uint8)
        table = torch.arange(16.0) - (8 if kind == "steps" else 7.5)
        values = table[made.int()]
    elif kind == "int8":
        made = torch.randint(-128, 128, (rows, width), dtype=torch.int8)
        values = made.float()
    else:
        made = torch.randn(rows, width).mul_(20).to(torch.float8_e4m3fn)
        made.view(torch.uint8)[:, ::5] &= 135  # subnormal numbers and zeros of both signs
        values = made.float()
    scale = (torch.rand(rows, groups) + 0.1).to(dtype)
    zero = None if zeros == "none" else torch.randn(rows, groups).to(dtype)
    relative, order = zeros == "relative", None
    index = torch.arange(width) // group
    if ordered:
        order = torch.randperm(width)
        index = torch.empty_like(index).index_copy_(0, order, index)
    weight, wide = values.double(), scale.double()[:, index]
    if zero is None:
        weight = weight * wide
    else:
        shift = zero.double()[:, index]
        weight = (weight - shift) * wide if relative else weight * wide + shift
    return Numbers(made, scale, group, table, zero, relative, order), weight


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["table", "steps", "halves", "int8", "float8"]),
    rows=st.integers(1, 80), width=st.integers(1, 200),
    group=st.sampled_from([1, 7, 16, 32, 128, 1000]), zeros=st.sampled_from(["none", "added", "relative"]),
    dtype=st.sampled_from(HALVES), ordered=st.booleans(), count=st.integers(1, 40), half=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_products_of_any_shape(
    kernels, kind, rows, width, group, zeros, dtype, ordered, count, half, seed
) -> None:
    if kind == "float8" and zeros == "relative":
        zeros = "none"
    group = min(group, width)
    numbers, weight = numbers_of(kind, rows, width, group, zeros, dtype, ordered, seed)
    matrix = CodeMatrix.build(numbers)
    assert torch.equal(matrix.numbers().view(torch.uint8), numbers.codes.view(torch.uint8))
    x = torch.randn(count, width).to(torch.bfloat16 if half else torch.float32)
    bias = torch.randn(rows).to(x.dtype)
    want, size = x.double() @ weight.t() + bias.double(), x.double().abs() @ weight.abs().t() + 1
    if zeros != "none":  # values and zeros may cancel
        size = size + 20 * x.double().abs().sum(1, keepdim=True)
    for coder in (None, kernels.codes if BUILT else None):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(codes, "native", coder)
            patch.setattr(codes, "keeps_rows", bool(seed % 2))
            whole = matrix.dense()
            torch.testing.assert_close(whole.double(), weight, rtol=2e-6, atol=2e-6)
            picked = torch.randint(0, rows, (2, 3))
            torch.testing.assert_close(
                matrix.rows(picked, torch.float32), whole[picked], rtol=2e-6, atol=2e-6
            )
            y = matrix.matmul(x, bias)
            assert y.dtype == x.dtype
            assert ((y.double() - want).abs() <= (2e-2 if half else 4e-6) * size).all()
            if coder is None:
                continue
            assert torch.equal(matrix.dense(torch.bfloat16), whole.bfloat16())
            strided = torch.cat((x, x), 1)[:, :width]
            assert torch.equal(coder.product(matrix, strided, bias), coder.product(matrix, x, bias))
            for few in {1, 2, 3, 5, 8, 9} & set(range(count + 1)):
                part = coder.product(matrix, x[count - few :], bias)
                assert torch.equal(part, coder.product(matrix, x, bias)[count - few :])


def test_slow_products_are_told_once(monkeypatch, caplog) -> None:
    matrix = CodeMatrix.build(numbers_of("int4", 32, 64, 32, "none", torch.float32, False, 0)[0])
    monkeypatch.setattr(codes, "native", None)
    monkeypatch.setattr(codes, "missing", "no compiler was found")
    for _ in range(2):
        matrix.matmul(torch.randn(1, 64))
    assert [r.getMessage() for r in caplog.records if "without native kernels" in r.getMessage()] == [
        "packed weights are multiplied without native kernels, ten times slower: no compiler was found"
    ]


@pytest.mark.parametrize("rows", [1, 17, 300])
@torch.no_grad()
def test_rows_have_the_same_bits_among_any_others_where_that_is_asked(counted, rows) -> None:
    numbers, _ = numbers_of("table", 96, 640, 64, "none", torch.float32, False, 0)
    matrix, x = CodeMatrix.build(numbers), torch.randn(300, 640)
    with rows_alike():
        assert torch.equal(matrix.matmul(x)[:rows], matrix.matmul(x[:rows].contiguous()))


@pytest.mark.parametrize("kind", ["table", "steps", "int8", "float8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_what_is_not_finite_is_passed_on(counted, kind, value) -> None:
    matrix = CodeMatrix.build(numbers_of(kind, 40, 64, 32, "none", torch.float32, False, 1)[0])
    x = torch.randn(9, 64)
    want = matrix.matmul(x)
    x[3, 7] = value
    y = matrix.matmul(x)
    assert not y[3].isfinite().any()
    assert torch.equal(y[:3], want[:3]) and torch.equal(y[4:], want[4:])


@pytest.mark.skipif(not BUILT, reason="no compiler")
@pytest.mark.parametrize("kind", ["steps", "halves", "int8"])
@pytest.mark.parametrize("group", [32, 72, 576])
@torch.no_grad()
def test_whole_numbers_are_as_exact_as_float32(kernels, kind, group) -> None:
    numbers, weight = numbers_of(kind, 96, 576, group, "none", torch.float16, False, 2)
    matrix = CodeMatrix.build(numbers)
    # A column by itself is exact where its scale is that of its group.
    for size in (1.0, -3.0, 2.0**-60, 2.0**60):
        one = torch.eye(576)[:8] * size
        assert torch.equal(kernels.codes.product(matrix, one, None).double(), (one.double() @ weight.t()))
    x = torch.randn(8, 576) * torch.randn(8, 576).exp()  # of many sizes
    bound = 3e-7 * x.abs().amax(1, keepdim=True).double() * weight.abs().sum(1)
    assert ((kernels.codes.product(matrix, x, None).double() - x.double() @ weight.t()).abs() <= bound).all()
    assert not kernels.codes.product(matrix, torch.zeros(2, 576), None).any()
    tiny = torch.full((1, 576), 1e-40)
    assert kernels.codes.product(matrix, tiny, None).abs().max() < 1e-33


@torch.no_grad()
def test_a_matrix_lies_in_the_rooms_given_and_parts_side_by_side_are_joined_in_place() -> None:
    rooms = defaultdict(Room)
    made = [numbers_of("steps", n, 64, 32, "added", torch.float16, False, n)[0] for n in (64, 32, 96)]
    parts = [CodeMatrix.build(numbers, rooms) for numbers in made]
    whole = concatenate(parts)
    for name in ("codes", "scale", "zero"):
        assert getattr(whole, name).data_ptr() == getattr(parts[0], name).data_ptr()
    apart = concatenate([CodeMatrix.build(numbers) for numbers in made])
    assert torch.equal(whole.dense(), apart.dense())
    kept = PackedWeight(parts[1])
    assert len(pickle.dumps(kept)) < 1 << 16
    assert torch.equal(pickle.loads(pickle.dumps(kept)).dense(), parts[1].dense())  # noqa: S301
    assert torch.equal(copy.deepcopy(kept).dense(), parts[1].dense())


@torch.no_grad()
def test_rows_side_by_side_are_split_and_joined() -> None:
    made = [numbers_of("int8", n, 64, 32, "added", torch.float16, False, n)[0] for n in (64, 32, 96)]
    parts = [CodeMatrix.build(numbers) for numbers in made]
    whole = concatenate(parts)
    x = torch.randn(3, 64)
    apart = torch.cat([p.matmul(x) for p in parts], 1)
    torch.testing.assert_close(whole.matmul(x), apart, rtol=1e-4, atol=1e-3)
    for part, again in zip(parts, whole.split([64, 32, 96]), strict=True):
        assert torch.equal(part.dense(), again.dense())
    odd = CodeMatrix.build(numbers_of("int8", 40, 64, 32, "added", torch.float16, False, 0)[0])
    other = CodeMatrix.build(numbers_of("int8", 64, 64, 16, "added", torch.float16, False, 0)[0])
    turned = CodeMatrix.build(numbers_of("int8", 64, 64, 32, "added", torch.float16, True, 0)[0])
    for unlike in (odd, other, turned):
        assert concatenate([parts[0], unlike]) is None


def test_what_does_not_fit_is_named(counted) -> None:
    numbers, _ = numbers_of("int8", 40, 64, 32, "added", torch.float16, False, 0)
    with pytest.raises(ShapeMismatchError, match=r"the scale must have shape \(40, 2\)"):
        CodeMatrix.build(numbers._replace(scale=numbers.scale[:, :1]))
    with pytest.raises(ShapeMismatchError, match="the zero must have shape"):
        CodeMatrix.build(numbers._replace(zero=numbers.zero[1:]))
    matrix = CodeMatrix.build(numbers)
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match=r"0\.\.39"):
            matrix.rows(torch.tensor([wrong]), torch.float32)
    x = torch.randn(2, 64)
    assert matrix.matmul(x[:0]).shape == (0, 40)
    for dtype in (torch.float64, torch.float16):
        y = matrix.matmul(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), matrix.matmul(x), rtol=2e-2, atol=0.5)
    if BUILT:
        assert codes.native.product(matrix, x.double(), None) is None
        assert codes.native.product(matrix, x, torch.ones(40, dtype=torch.bfloat16)) is None


def formats(goldens):
    """(name, scheme, parts) of every format that is read."""
    for name in MATRICES:
        settings = goldens[1][f"matrix-{name}"]["quantization_config"]
        yield name, reader_of(settings, ""), parts_of(goldens, f"matrix-{name}")
    weight = torch.randn(32, 96, generator=torch.manual_seed(1))
    for bits in (2, 3, 4, 8):
        for shuffled in (False, True):
            settings = {"quant_method": "gptq", "bits": bits, "group_size": 32}
            yield f"gptq{bits}", reader_of(settings, ""), gptq_parts(weight, bits, 32, True, shuffled)[0]
    for name in MADE:
        scheme = maker_of(MADE[name], torch.float32).one(name, {}, tuple(weight.shape))
        yield name, scheme, scheme.quantise(weight)
    for kind in ("int4", "int2", "float8"):
        yield f"quanto {kind}", Quanto(kind), Quanto(kind).quantise(torch.randn(48, 64))
    for bits in (1, 2, 4, 8):
        yield f"hqq{bits}", HQQ(bits, 32), HQQ(bits, 32).quantise(weight)
    yield "awq", reader_of(FORMATS["awq"][1], ""), awq_parts(weight, 16)[0]
    yield "fp8", reader_of(FORMATS["fp8"][1], ""), fp8_parts(weight)[0]


@torch.no_grad()
def test_every_format_becomes_codes_and_comes_back(goldens, counted) -> None:
    for name, scheme, parts in formats(goldens):
        facts = scheme.check(parts)
        weight, leaf = scheme.dense(parts, facts), scheme.bulk(parts)
        matrix = CodeMatrix.build(scheme.numbers(parts, facts))
        assert torch.equal(matrix.dense(), weight), name
        back = scheme.stored(matrix.numbers(), torch.empty_like(parts[leaf], device="meta"), facts)
        assert back.dtype == parts[leaf].dtype and back.shape == parts[leaf].shape, name
        assert torch.equal(back.view(torch.uint8), parts[leaf].contiguous().view(torch.uint8)), name
        x = torch.randn(3, weight.shape[1])
        torch.testing.assert_close(matrix.matmul(x), x @ weight.t(), rtol=1e-5, atol=5e-5)


def test_what_no_kernel_takes_is_left_as_it_is() -> None:
    weight = torch.randn(32, 96)
    parts, _ = fp8_parts(weight)
    scheme = reader_of(FORMATS["fp8"][1], "")
    for change in (parts["weight"].to(torch.float8_e5m2), parts["weight"].clone()):
        change.view(torch.uint8)[3, 5] = 0x7F
        assert scheme.numbers({**parts, "weight": change}, scheme.check(parts)) is None
    parts, _ = gptq_parts(weight, 4, 32, True, True)
    parts["g_idx"][0] = (parts["g_idx"][0] + 1) % 3  # groups of 31, 32 and 33
    scheme = reader_of(FORMATS["gptq"][1], "")
    assert scheme.numbers(parts, scheme.check(parts)) is None


@pytest.fixture
def pairs(dense, counted):
    """A function: a model made in a format and packed, and the same one as it was before."""

    def make(family, kind, **asked):
        load = phyla.AutoModelForCausalLM.from_pretrained
        model, plain = (load(dense[family], quantization_config=MADE[kind], **asked) for _ in range(2))
        model.pack()
        assert all((m.coded is not None) == BUILT for m in packed_maps(model).values())
        return model, plain

    return make


def same_state(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[k].reshape(-1).view(torch.uint8), v.reshape(-1).view(torch.uint8))
               for k, v in second.items())  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8", "torchao", "groups"])
def test_models_put_into_codes_keep_values_names_and_files(pairs, kind, family, tmp_path) -> None:
    model, plain = pairs(family, kind)
    want = logits(plain)
    torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(copy.deepcopy(model)), want, rtol=1e-5, atol=1e-5)
    assert same_state(model, plain)
    room = model.get_memory_footprint() - plain.get_memory_footprint()
    assert room <= 0.3 * plain.get_memory_footprint()  # scales stand there twice; small maps are filled up
    model.save_pretrained(tmp_path / "m")
    again = phyla.AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantized=True)
    assert torch.equal(logits(again), want) and same_state(again, plain)
    for path, module in packed_maps(model).items():
        assert torch.equal(module.weight, plain.get_submodule(path).weight)
    torch.testing.assert_close(logits(model.dequantize()), want, rtol=1e-5, atol=1e-5)
    plain.dequantize()
    assert same_state(model, plain)


def test_other_weights_are_taken_and_casts_leave_codes(pairs) -> None:
    model, plain = pairs("llama", "nf4")
    other, _ = pairs("llama", "nf4")
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    for key, value in state.items():
        if key.endswith("packed.weight"):
            value.bitwise_not_()
    plain.load_state_dict(state)
    model.load_state_dict(state)
    assert torch.equal(logits(model), logits(plain))  # as parts again
    model.pack()
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    half = logits(other.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and other.pack() is other
    torch.testing.assert_close(half, logits(other))


def test_adapters_train_on_codes(pairs) -> None:
    model, plain = pairs("llama", "int8")
    for each in (model, plain):
        torch.manual_seed(0)
        each.add_adapter("a", config="lora")
        each.train_adapter("a")
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.1, generator=torch.manual_seed(len(name)))
        each(IDS, labels=IDS).loss.backward()
    found = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert found
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "torchao"])
def test_models_in_codes_compile_to_one_graph(pairs, kind) -> None:
    model, plain = pairs("llama", kind)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="eager")(input_ids=IDS).logits
    torch.testing.assert_close(got, logits(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["int8", "groups"])
@pytest.mark.parametrize("name", CONFIGS)
def test_stacks_of_codes_go_through_one_pass(counted, monkeypatch, tmp_path, name, kind, dtype) -> None:
    model_of(name).save_pretrained(tmp_path / "m")
    load = phyla.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "m", quantization_config=MADE[kind], torch_dtype=dtype).eval()
    ids, mask = case(2, sum(CHUNKS))
    with monkeypatch.context() as patch:
        patch.setattr(stack, "native", None)
        want = stepwise(model, ids, mask, CHUNKS)
    model.pack()
    counted.clear()
    found = stepwise(model, ids, mask, CHUNKS)
    assert counted == [BUILT] * len(CHUNKS)
    bound = 3e-6 if dtype == torch.float32 else 0.05
    assert (found - want).norm() <= bound * want.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_engine_gives_a_text_the_same_bits_in_any_batch(counted, tmp_path, kind) -> None:
    config = CONFIGS["rotary, groups"].to_dict()
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    torch.manual_seed(0)
    phyla.AutoModelForCausalLM.from_config(phyla.LlamaConfig(**config)).save_pretrained(tmp_path / "m")
    model = phyla.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=MADE[kind]
    ).eval()  # fmt: skip
    given = prompts(8, seed=4, longest=60)
    alone = alone_as_together(model, given)
    assert any(counted) == BUILT
    tokens = model.generate(torch.tensor([given[0]]), max_new_tokens=8, eos_token_id=None)
    assert tokens[0, len(given[0]) :].tolist() == alone[0][0]


def test_without_kernels_packed_maps_stay_as_they_are(dense, monkeypatch) -> None:
    monkeypatch.setattr(codes, "native", None)
    monkeypatch.setattr(native, "_started", True)
    model = phyla.AutoModelForCausalLM.from_pretrained(dense["llama"], quantization_config=MADE["nf4"])
    want = logits(model)
    assert all(m.coded is None for m in packed_maps(model.pack()).values())
    assert torch.equal(logits(model), want)


def test_a_weight_in_codes_is_copied_and_pickled() -> None:
    numbers, _ = numbers_of("table", 40, 64, 32, "none", torch.float16, True, 0)
    first = PackedWeight(CodeMatrix.build(numbers))
    first.matrix.struct  # noqa: B018 - the kernel has seen it
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):  # noqa: S301
        assert torch.equal(twin.dense(), first.dense())
        assert twin.codes.data_ptr() != first.codes.data_ptr()
