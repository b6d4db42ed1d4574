"""Quantised weights and joined products compute what the plain ones do."""

import copy

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor, nn

from phyla.blocks import Attention, GatedFFN, Heads, make
from phyla.blocks.linear import Linear
from phyla.checkpoints.gguf_quants import dequantize
from phyla.checkpoints.weights import PackedTensor
from phyla.errors import ShapeMismatchError
from phyla.fast.ggml import LOSSLESS, code_matrix
from phyla.fast.pack import join, pack
from phyla.fast.packed import PackedLinear, PackedTokens, PackedWeight

EXACT, ROUNDED, RECODED = 1e-6, 1e-2, 1.5e-2
# Where the float16 numbers of a block stand that gguf cannot write itself.
HALVES = {"IQ4_NL": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,)}


def packed(kind: str, rows: int, width: int, seed: int = 0) -> PackedTensor:
    """Blocks of one ggml type: normally distributed values where gguf can write them, else random bytes."""
    random = np.random.default_rng(seed)
    size, length = quants.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if kind in HALVES:
        raw = random.integers(0, 256, (rows, width // size, length), dtype=np.uint8)
        for at in HALVES[kind]:
            raw[..., at : at + 2] = (
                (random.random((rows, width // size, 1)) * 0.01).astype(np.float16).view(np.uint8)
            )
    else:
        values = random.standard_normal((rows, width)).astype(np.float32)
        raw = quants.quantize(values, GGMLQuantizationType[kind])
    return PackedTensor(torch.from_numpy(raw.reshape(rows, -1).copy()), kind, (rows, width))


def plain(tensor: PackedTensor) -> Tensor:
    return dequantize(tensor.blocks.reshape(-1), tensor.ggml_type).view(tensor.shape)


def difference(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    assert got.shape == wanted.shape
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def product(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() @ weight.double().t()


@pytest.mark.parametrize("kind", sorted(LOSSLESS))
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_products_in_float32_are_those_of_the_expanded_weights(kind: str, rows: int) -> None:
    tensor = packed(kind, 100, 512)
    matrix, x = code_matrix(tensor), torch.randn(rows, 512, generator=torch.manual_seed(1))
    assert torch.equal(matrix.dense(), plain(tensor))
    assert difference(matrix.matmul(x), product(x, plain(tensor))) < 1e-6


@pytest.mark.parametrize("kind", sorted(LOSSLESS))
def test_products_in_bfloat16_are_rounded_to_it_only(kind: str) -> None:
    tensor = packed(kind, 64, 512)
    matrix = code_matrix(tensor)
    for rows in (1, 5, 150):
        x = torch.randn(rows, 512, generator=torch.manual_seed(1)).bfloat16()
        y = matrix.matmul(x)
        assert y.dtype == torch.bfloat16
        assert difference(y, product(x, plain(tensor))) < ROUNDED


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "TQ2_0"])
def test_other_types_are_recoded_within_their_stated_error(kind: str) -> None:
    tensor = packed(kind, 64, 512)
    values = plain(tensor)
    groups = values.view(64, -1, 32)
    span = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    dense = code_matrix(tensor).dense().view_as(groups)
    assert bool(((dense - groups).abs() <= span / 509 + 1e-7).all())
    assert difference(dense, groups) < RECODED


def test_shapes_that_do_not_fit_are_named() -> None:
    tensor = packed("Q8_0", 4, 64)
    with pytest.raises(ShapeMismatchError, match="multiple of 32"):
        code_matrix(PackedTensor(tensor.blocks, "Q8_0", (4, 2, 32)))


class Twice(nn.Module):
    """A site that doubles, and notes what it saw."""

    def forward(self, x: Tensor, y: Tensor, linear: nn.Module) -> Tensor:
        self.seen = (x.shape, linear)
        return 2 * y


def test_a_packed_linear_has_bias_site_and_a_gradient_for_its_input() -> None:
    tensor = packed("Q4_0", 48, 64)
    layer = PackedLinear(PackedWeight.from_ggml(tensor), torch.randn(48, generator=torch.manual_seed(0)))
    x = torch.randn(2, 5, 64, generator=torch.manual_seed(1), requires_grad=True)
    y = layer(x)
    assert difference(y.detach(), product(x.detach(), plain(tensor)) + layer.bias) < EXACT
    y.sum().backward()
    assert difference(x.grad, plain(tensor).sum(0).expand_as(x)) < 1e-5
    assert torch.equal(layer.weight, layer.packed.dense()) and (layer.out_features, layer.in_features) == (
        48,
        64,
    )
    layer.site = Twice()
    with torch.no_grad():
        assert torch.allclose(layer(x), 2 * y)
    assert layer.site.seen == (x.shape, layer)


def test_a_table_and_its_tied_head_share_one_weight() -> None:
    tensor = packed("Q8_0", 200, 64)
    weight = PackedWeight.from_ggml(tensor)
    model = nn.ModuleDict({"tokens": PackedTokens(weight), "head": PackedLinear(weight)})
    ids = torch.tensor([[0, 63, 64], [31, 32, 199]])
    assert torch.equal(model["tokens"](ids), plain(tensor)[ids])
    assert model["tokens"](ids[:, :0]).shape == (2, 0, 64)
    for wrong in (200, -1):
        with pytest.raises((IndexError, RuntimeError)):
            model["tokens"](torch.tensor([wrong]))
    assert len(list(model.buffers())) == 3  # codes, scales and the table's dtype
    twin = copy.deepcopy(model)
    assert twin["tokens"].packed is twin["head"].packed
    model.to(torch.bfloat16)
    assert model["tokens"](ids).dtype == torch.bfloat16 and model["head"].packed is weight
    assert torch.equal(model["tokens"](ids), plain(tensor)[ids].bfloat16())


def attention(bias: bool | str = False) -> Attention:
    module = make(Attention(64, heads=Heads(4, 2, 32), bias=bias))
    return fill(module)


def fill(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def results(joined, x: Tensor, *maps: nn.Module) -> None:
    for got, part in zip(joined(x), maps, strict=True):
        assert difference(got, part(x)) < 1e-5


@pytest.mark.parametrize("bias", [False, True, "qv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 7])
@torch.no_grad()
def test_joined_maps_give_what_each_gives(bias: bool | str, dtype: torch.dtype, length: int) -> None:
    module = attention(bias).to(dtype)
    x = torch.randn(2, length, 64).to(dtype)
    before = [part(x) for part in (module.q, module.k, module.v)]
    assert pack(module) is module
    for got, wanted in zip(module.joined(x), before, strict=True):
        assert difference(got, wanted) < (1e-5 if dtype == torch.float32 else ROUNDED)
    module.k.site = Twice()
    assert difference(module.joined(x)[1], 2 * before[1]) < (1e-5 if dtype == torch.float32 else ROUNDED)


@torch.no_grad()
def test_joined_weights_stay_the_parameters_of_their_parts() -> None:
    ffn = fill(make(GatedFFN(64, 96)))
    names, values = [*ffn.state_dict()], {k: v.clone() for k, v in ffn.state_dict().items()}
    gate = ffn.gate.weight
    pack(ffn)
    assert [*ffn.state_dict()] == names and ffn.gate.weight is gate
    assert all(torch.equal(v, values[k]) for k, v in ffn.state_dict().items())
    x = torch.randn(1, 1, 64)
    gate.mul_(3)
    results(ffn.joined, x, ffn.gate, ffn.up)
    ffn.load_state_dict({k: v + 1 for k, v in values.items()})
    results(ffn.joined, x, ffn.gate, ffn.up)


def test_joined_maps_step_aside_when_they_may_not_run() -> None:
    ffn = pack(fill(make(GatedFFN(64, 96))))
    assert not ffn.joined.ready()  # gradients belong to the parts
    with torch.no_grad():
        assert ffn.joined.ready()
        twin = copy.deepcopy(ffn)
        assert twin.joined.ready() and twin.joined.maps[0] is twin.gate
        ffn.up.weight = nn.Parameter(torch.zeros(96, 64))
        assert not ffn.joined.ready() and twin.joined.ready()
        twin.to(torch.float64)
        assert not twin.joined.ready() and pack(twin).joined.ready()


@torch.no_grad()
def test_packed_maps_join_too() -> None:
    maps = [PackedLinear(PackedWeight.from_ggml(packed("Q4_1", n, 128, n))) for n in (128, 64, 32)]
    x = torch.randn(1, 3, 128)
    before = [m(x) for m in maps]
    joined = join(maps)
    for got, alone, wanted in zip(joined(x), [m(x) for m in maps], before, strict=True):
        assert difference(got, wanted) < EXACT and difference(alone, wanted) < 1e-6
    assert joined.ready() and copy.deepcopy(joined).ready()


def test_what_does_not_fit_is_not_joined() -> None:
    q8 = PackedLinear(PackedWeight.from_ggml(packed("Q8_0", 64, 64)))
    q4 = PackedLinear(PackedWeight.from_ggml(packed("Q4_0", 64, 64)))
    odd = PackedLinear(PackedWeight.from_ggml(packed("Q4_0", 48, 64)))
    dense, wide = fill(Linear(64, 64)), fill(Linear(96, 64))
    for maps in ((q8, q4), (q4, odd), (q4, dense), (dense, wide), (dense, dense)):
        assert join(maps) is None
    assert join((dense, fill(Linear(64, 64)).bfloat16())) is None
