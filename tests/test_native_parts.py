"""What inference on a CPU computes in other ways than modules say: products, recurrences, convolutions."""

import pytest
import torch
import torch.nn.functional as F
from native_kernels import BUILT, kernels
from torch import nn

import phyla
from phyla.blocks import matmul, processor, recurrence, scan
from phyla.blocks.act import activation
from phyla.blocks.conv import BatchNorm, ConvNorm, channels_last
from phyla.blocks.linear import Linear, activated
from phyla.blocks.spec import make
from phyla.fast.pack import join

__all__ = ["kernels"]  # a fixture


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def threads():
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch, length, inner, states", [(1, 130, 48, 16), (3, 7, 37, 5), (2, 1, 16, 3)])
@pytest.mark.parametrize("begun", [False, True])
def test_selective_scan(kernels, drawn, monkeypatch, batch, length, inner, states, begun):
    x, step, a = drawn(batch, length, inner), drawn(batch, length, inner).abs(), -drawn(inner, states).abs()
    b, c, _ = drawn(batch, length, 2 * states + 3).split((states, states, 3), -1)
    parts = (x, step, a, b, c, drawn(batch, inner, states) if begun else None)
    with torch.inference_mode():
        monkeypatch.setattr(scan, "native", None)
        wanted = scan.selective_scan(*(None if t is None else t.double() for t in parts))
        taken = []
        monkeypatch.setattr(scan, "native", lambda *given: taken.append(kernels.scan(*given)) or taken[-1])
        found = [scan.selective_scan(*parts) for _ in threads()]
    assert all((y is not None) == BUILT for y in taken)
    assert len(taken) == 3
    for y, expected in zip(zip(*found, strict=True), wanted, strict=True):
        assert torch.equal(y[0], y[1])
        assert torch.equal(y[0], y[2])
        torch.testing.assert_close(y[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length, batch, width", [(20, 1, 130), (9, 8, 70), (3, 9, 16), (4, 2, 33)])
def test_lstm(kernels, drawn, monkeypatch, length, batch, width):
    x, inner = drawn(length, batch, width), 4 * width
    shapes = [(inner, width), (inner, width), (inner,), (inner,)] * 2
    weights = [drawn(*shape) * 0.3 for shape in shapes]
    with torch.inference_mode():
        monkeypatch.setattr(recurrence, "native", None)
        wanted = recurrence.lstm(x.double(), [w.double() for w in weights])
        taken = []
        monkeypatch.setattr(recurrence, "native", lambda *g: taken.append(kernels.memory(*g)) or taken[-1])
        found = [recurrence.lstm(x, weights) for _ in threads()]
    # More rows than the kernel has room for are left to torch.
    assert all((y is not None) == (BUILT and batch <= 8) for y in taken)
    for y in found:
        torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_new", "silu", "quick_gelu", "tanh"])
def test_activations_behind_a_product(drawn, monkeypatch, act, foreign):
    monkeypatch.setattr(matmul, "is_foreign_to_blas", lambda: foreign)
    monkeypatch.setattr(matmul, "native", None)
    part, x, function = Linear(96, 200), drawn(3, 20, 96), activation(act)
    for parameter in part.parameters():
        parameter.data = drawn(*parameter.shape)
    wanted = function(F.linear(x.double(), part.weight.double(), part.bias.double()))
    asked = {"relu", "gelu", "gelu_new", "silu"} if foreign and matmul.HAS_ONEDNN_PRODUCT else set()
    with torch.inference_mode():
        fused = matmul.linear_act(x, part.weight, part.bias, act)
        assert (fused is not None) == (act in asked)
        torch.testing.assert_close(activated(part, x, act, function).double(), wanted, rtol=1e-4, atol=1e-4)
        seen = []
        handle = part.register_forward_hook(lambda module, given, y: seen.append(y))
        torch.testing.assert_close(activated(part, x, act, function).double(), wanted, rtol=1e-4, atol=1e-4)
        handle.remove()
    assert len(seen) == 1


def test_watched_products_are_torchs_own(drawn, monkeypatch):
    monkeypatch.setattr(matmul, "is_foreign_to_blas", lambda: True)
    monkeypatch.setattr(matmul, "native", None)
    x, weight = drawn(64, 96), drawn(200, 96)

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    with torch.no_grad(), Names():
        matmul.linear(x, weight)
    assert names
    assert not any("pointwise" in name for name in names)
    with torch.no_grad(), torch.autocast("cpu"):
        assert matmul.linear(x, weight).dtype == torch.bfloat16
    with torch.no_grad():
        rows = torch.func.vmap(lambda row: matmul.linear(row, weight))(x[:, None].expand(-1, 20, -1))
    torch.testing.assert_close(rows[:, 3], F.linear(x, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biases", [(True, True, True), (True, False, True), (False, False, False)])
def test_joined_maps_keep_their_biases(drawn, biases):
    maps = [Linear(32, n, bias=b) for n, b in zip((24, 16, 8), biases, strict=True)]
    for m in maps:
        for parameter in m.parameters():
            parameter.data = drawn(*parameter.shape)
    x = drawn(2, 5, 32)
    wanted = [F.linear(x, m.weight, m.bias) for m in maps]
    joined = join(maps)
    with torch.inference_mode():
        for y, expected in zip(joined(x), wanted, strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        maps[1].site = Twice()
        torch.testing.assert_close(joined(x)[1], 2 * wanted[1], rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    def forward(self, x, y, linear):
        return 2 * y


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("act", [None, "relu", "silu"])
@pytest.mark.parametrize(
    "kernel, stride, groups, bias, size",
    [(1, 1, 1, False, 12), (1, 2, 1, True, 13), (3, 1, 1, False, 12), (3, 2, 1, True, 3), (3, 1, 8, False, 7),
     (1, 1, 1, False, 1)],
)  # fmt: skip
def test_convolutions_with_their_norm(drawn, monkeypatch, kernel, stride, groups, bias, size, act, foreign):
    monkeypatch.setattr(matmul, "is_foreign_to_blas", lambda: foreign)
    part = make(ConvNorm(16, 24, kernel, stride, groups=groups, bias=bias, norm=BatchNorm(24), act=act))
    for tensor in (*part.parameters(), part.norm.running_mean):
        tensor.data = drawn(*tensor.shape)
    part.norm.running_var.copy_(drawn(24).abs() + 0.1)
    part.eval()
    x = drawn(2, 16, size, size)
    wanted = part(x).detach()  # gradients are wanted: as the modules say
    with torch.inference_mode():
        for given in (x, channels_last(x)):
            before = given.clone()
            torch.testing.assert_close(part(given), wanted, rtol=1e-4, atol=1e-4)
            assert torch.equal(given, before)
        maps = drawn(2, 24, 5, 5)
        torch.testing.assert_close(part.norm(channels_last(maps)), part.norm(maps), rtol=1e-5, atol=1e-5)


def test_a_convolution_nets_maps_are_the_callers_own():
    """In-place sums inside must not reach maps that hooks or callers hold."""
    torch.manual_seed(0)
    config = phyla.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck"
    )
    model = phyla.AutoModel.from_config(config).eval()
    pixels = torch.randn(2, 3, 40, 40)
    kept: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []

    def keep(module, given, y):
        kept.append(y)
        copies.append(y.clone())

    with torch.inference_mode():
        plain = model(pixels, output_hidden_states=True)
        for module in model.modules():
            if type(module).__name__ == "ConvNorm":
                module.register_forward_hook(keep)
        watched = model(pixels)
    torch.testing.assert_close(watched.last_hidden_state, plain.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert kept
    assert all(torch.equal(y, copy) for y, copy in zip(kept, copies, strict=True))
    with torch.enable_grad():
        learned = model(pixels, output_hidden_states=True)
    for found, wanted in zip(plain.hidden_states, learned.hidden_states, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_processor_is_described_once():
    assert processor.description() is processor.description()
    assert isinstance(processor.is_foreign_to_blas(), bool)
