"""Training by the fast products, kernels and look-ups: gradients are torch's, or torch computes them."""

import pytest
import torch
import torch.nn.functional as F
from native_kernels import BUILT
from torch import nn
from torch.utils.checkpoint import checkpoint

from phyla import AutoModelForCausalLM, LlamaConfig
from phyla.blocks import gradient, pages, parts
from phyla.blocks.context import Context
from phyla.blocks.conv import BatchNorm, ConvNorm, ConvResidual
from phyla.blocks.embed import Tokens
from phyla.blocks.linear import Linear
from phyla.blocks.norm import RMSNorm
from phyla.blocks.spec import make
from phyla.fast import native
from phyla.heads.loss import IGNORED, cross_entropy, next_token_loss

needs_compiler = pytest.mark.skipif(not BUILT, reason="there is no compiler to build the kernels with")
needs_product = pytest.mark.skipif(not gradient.HAS_PRODUCT, reason="torch was built without oneDNN")


@pytest.fixture(scope="module")
def library():
    """All kernels, from the user's cache where they were built before."""
    found = native.load()
    assert found is not None
    return found


@pytest.fixture
def kernels(library):
    """Those of products and losses."""
    return library.gradient


@pytest.fixture(params=["torch", "kernels"])
def fast(request, monkeypatch):
    """Products wherever the rules allow them, on any processor, with and without kernels."""
    monkeypatch.setattr(gradient, "is_foreign_to_blas", lambda: True)
    monkeypatch.setattr(gradient, "LEAST_WORK", 1)
    monkeypatch.setattr(gradient, "LEAST", 1)
    monkeypatch.setattr(pages, "LEAST", 1)
    monkeypatch.setattr(gradient, "keep_freed", lambda: False)
    monkeypatch.setattr(parts, "LEAST", 1)
    # without a compiler both ways are torch's
    found = request.getfixturevalue("library") if request.param == "kernels" and BUILT else None
    monkeypatch.setattr(gradient, "native", None if found is None else found.gradient)
    monkeypatch.setattr(parts, "native", None if found is None else found.parts)
    monkeypatch.setattr(gradient, "wanted", False)


def linear(outs: int, width: int, bias: bool = True) -> Linear:
    made = Linear(width, outs, bias=bias)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def assert_as_exact(found: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """Within float32's rounding of sums of `terms` products."""
    bound = 4e-7 * max(terms, 1) ** 0.5 * float(exact.abs().max()) + 1e-30
    assert float((found.detach().double() - exact).abs().max()) <= bound


@needs_product
@pytest.mark.parametrize(
    "shape, outs", [((1, 7), 5), ((3, 50, 33), 70), ((300, 64), 12), ((2, 13, 100), 1), ((1100, 48), 3)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_in_float64(fast, shape, outs, bias):
    torch.manual_seed(0)
    layer = linear(outs, shape[-1], bias)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_LinearBackward"
    change = torch.randn_like(y)
    y.backward(change)
    exact = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    wanted = F.linear(*exact)
    wanted.backward(change.double())
    assert_as_exact(y, wanted.detach(), shape[-1])
    rows = x.numel() // shape[-1]
    for found, right, terms in zip((x, *layer.parameters()), exact, (outs, rows, rows), strict=False):
        assert_as_exact(found.grad, right.grad, terms)


@needs_product
def test_only_what_is_asked_for_is_computed(fast, monkeypatch):
    layer = linear(30, 20)
    x = torch.randn(9, 20, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and x.grad is not None
    layer.requires_grad_(False)
    layer(x.detach().requires_grad_()).sum().backward()
    assert not layer(x.detach()).requires_grad
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(30, 20))


@needs_product
def test_views_and_expanded_gradients(fast):
    torch.manual_seed(0)
    layer = linear(24, 32)
    base = torch.randn(16, 2, 40, requires_grad=True)
    strided = base.transpose(0, 1)[..., 4:36]  # (2, 16, 32), no dimension contiguous with the next
    layer(strided).sum().backward()  # the gradient is one number, expanded
    wanted = torch.autograd.grad(
        F.linear(strided, layer.weight, layer.bias).sum(), [base, *layer.parameters()]
    )
    for found, right in zip((base, *layer.parameters()), wanted, strict=True):
        torch.testing.assert_close(found.grad, right, rtol=1e-5, atol=1e-5)
    assert layer.weight.grad.is_contiguous()


@needs_product
def test_gradients_add_up_and_hooks_see_them(fast):
    layer = linear(24, 32)
    x = torch.randn(8, 32)
    seen = []
    layer.weight.register_hook(seen.append)
    layer(x).sum().backward()
    once = layer.weight.grad.clone()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)
    assert len(seen) == 2


@needs_product
def test_second_derivatives(fast):
    torch.manual_seed(0)
    layer = linear(6, 5)
    x = torch.randn(4, 5, requires_grad=True)

    def penalty(product):
        y = torch.tanh(product(x))
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, layer.weight, layer.bias])

    found = penalty(layer)
    wanted = penalty(lambda z: F.linear(z, layer.weight, layer.bias))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_product
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(fast, reentrant):
    torch.manual_seed(0)
    layers = nn.Sequential(linear(32, 16), nn.GELU(), linear(16, 32))
    x = torch.randn(10, 16, requires_grad=True)
    wanted = torch.autograd.grad(layers(x).square().sum(), [x, *layers.parameters()])
    checkpoint(layers, x, use_reentrant=reentrant).square().sum().backward()
    for found, right in zip((x, *layers.parameters()), wanted, strict=True):
        torch.testing.assert_close(found.grad, right)


@needs_product
def test_a_changed_weight_is_noticed(fast):
    layer = linear(8, 8)
    y = layer(torch.randn(4, 8, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_product
def test_what_watches_torch_sees_torchs_products(fast):
    layer = linear(8, 8)
    x = torch.randn(4, 8)
    assert torch.func.vmap(layer)(x).shape == (4, 8)
    gradients = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(
        dict(layer.named_parameters())
    )
    assert gradients["weight"].shape == (8, 8)
    _, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, layer.weight.detach().sum(1).expand(4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.compile(layer, fullgraph=True, backend="eager")(x).shape == (4, 8)
    basis = torch.eye(8)
    y = layer(x[:1].requires_grad_())[0]
    (rows,) = torch.autograd.grad(y, layer.weight, basis, is_grads_batched=True)
    assert rows.shape == (8, 8, 8)


@needs_product
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_no_rows_are_torchs(fast, dtype):
    layer = linear(8, 8)
    assert layer(torch.zeros(0, 8)).shape == (0, 8)
    y = layer.to(dtype)(torch.randn(4, 8, dtype=dtype))
    assert y.dtype == dtype and type(y.grad_fn).__name__ != "_LinearBackward"


@pytest.mark.parametrize("padding", [None, 3, -1])
def test_token_tables(fast, padding):
    torch.manual_seed(0)
    table = Tokens(400, 6, padding)
    nn.init.normal_(table.weight)
    ids = torch.randint(0, 400, (4, 20))
    ids[0, :4], ids[1, :2] = 3, 399
    y = table(ids)
    assert type(y.grad_fn).__name__ == "_LookupBackward"
    change = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, table.weight, change, retain_graph=True)
    (wanted,) = torch.autograd.grad(F.embedding(ids, table.weight, padding), table.weight, change)
    torch.testing.assert_close(found, wanted)
    change.requires_grad_()
    (again,) = torch.autograd.grad(y, table.weight, change, create_graph=True)
    torch.testing.assert_close(again, wanted)
    (back,) = torch.autograd.grad(again.square().sum(), change)
    assert back.shape == change.shape


def test_a_tied_table_gets_both_gradients(fast):
    torch.manual_seed(0)
    table, out = Tokens(400, 6), Linear(6, 400, bias=False)
    nn.init.normal_(table.weight)
    out.weight = table.weight
    ids = torch.randint(0, 400, (2, 9))
    out(table(ids)).square().mean().backward()
    wanted = torch.autograd.grad(
        F.linear(F.embedding(ids, table.weight), table.weight).square().mean(), table.weight
    )[0]
    torch.testing.assert_close(table.weight.grad, wanted, rtol=1e-4, atol=1e-6)


def losses_of(scores, labels, total):
    mean = "mean" if total is None else "sum"
    loss = F.cross_entropy(scores.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction=mean)
    return loss if total is None else loss / total


@pytest.mark.parametrize("total", [None, 7])
@pytest.mark.parametrize("classes", [1024, 1500, 5003])
def test_cross_entropy_over_a_vocabulary(fast, classes, total):
    torch.manual_seed(0)
    scores = (torch.randn(2, 9, classes) * 6).requires_grad_()
    labels = torch.randint(0, classes, (2, 9))
    labels[0, 2] = labels[1, 8] = IGNORED
    with torch.no_grad():
        scores[0, 1, :7], scores[0, 3, 5] = -torch.inf, 80.0
    labels[0, 1] = 9
    exact = scores.detach().double().requires_grad_()
    loss, wanted = cross_entropy(scores, labels, total), losses_of(exact, labels, total)
    loss.backward()
    wanted.backward()
    assert float((loss.double() - wanted).detach()) == pytest.approx(0, abs=1e-5)
    assert_as_exact(scores.grad, exact.grad, 10)
    assert not scores.grad[0, 2].any()


def test_losses_of_the_next_token(fast):
    torch.manual_seed(0)
    scores = torch.randn(2, 9, 1100, requires_grad=True)
    labels = torch.randint(0, 1100, (2, 9))
    wanted = losses_of(scores[:, :-1], labels[:, 1:], None)
    torch.testing.assert_close(next_token_loss(scores, labels), wanted)
    assert next_token_loss(scores, torch.full((2, 9), IGNORED)).isnan()


def test_labels_that_name_no_class(fast):
    with pytest.raises(IndexError, match="2000"):
        cross_entropy(torch.zeros(2, 1024, requires_grad=True), torch.tensor([1, 2000]))
    with pytest.raises(IndexError):
        cross_entropy(torch.zeros(2, 1024, requires_grad=True), torch.tensor([-3, 1]))


def test_second_derivatives_of_the_loss(fast):
    torch.manual_seed(0)
    scores = torch.randn(3, 1024, requires_grad=True)
    labels = torch.tensor([4, IGNORED, 8])

    def curvature(loss):
        (first,) = torch.autograd.grad(loss, scores, create_graph=True)
        return torch.autograd.grad(first.square().sum(), scores)[0]

    torch.testing.assert_close(
        curvature(cross_entropy(scores, labels)),
        curvature(losses_of(scores, labels, None)),
        rtol=1e-3,
        atol=1e-9,
    )


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_pass_on_what_is_not_finite(kernels, value):
    scores = torch.zeros(1, 1024)
    scores[0, 5] = value
    losses, _, bad = kernels.losses(scores, torch.tensor([9]), IGNORED)
    assert bad is None and not losses.isfinite().any()


@needs_compiler
def test_sums_do_not_depend_on_threads(kernels):
    torch.manual_seed(0)
    dy, x = torch.randn(700, 130), torch.randn(700, 3100)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kernels.weight_gradient(dy, x, True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_zeros_from_the_system(monkeypatch):
    monkeypatch.setattr(pages, "LEAST", 1)
    made = pages.zeros(3, 1000)
    assert made.shape == (3, 1000) and not made.any()
    made.add_(1)
    assert float(made.sum()) == 3000 and not pages.zeros(3, 1000).any()


def test_chosen_memory_settings_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    pages.keep_freed.cache_clear()
    try:
        assert pages.keep_freed() is False
    finally:
        pages.keep_freed.cache_clear()


def test_chosen_allocator_is_left_alone(monkeypatch):
    monkeypatch.setenv("PHYLA_KEEP_FREED", "0")
    pages.keep_freed.cache_clear()
    try:
        assert pages.keep_freed() is False
    finally:
        pages.keep_freed.cache_clear()


PARTS = {
    "norm": (
        lambda x, w: parts.rms_norm_in_training(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
    ),
    "gate": (parts.silu_gate_in_training, lambda gate, up: F.silu(gate) * up),
}


def operands(name, shape):
    x = torch.randn(shape) * 4
    return [t.requires_grad_() for t in (x, torch.randn(shape[-1] if name == "norm" else shape))]


@pytest.mark.parametrize("shape", [(1, 5), (3, 16), (2, 33, 100), (70, 7), (200, 96)])
@pytest.mark.parametrize("name", PARTS)
def test_norms_and_gates_are_those_in_float64(fast, name, shape):
    torch.manual_seed(0)
    quick, plain = PARTS[name]
    given = operands(name, shape)
    y, change = quick(*given), torch.randn(shape)
    exact = [t.detach().double().requires_grad_() for t in given]
    wanted = plain(*exact)
    found, right = torch.autograd.grad(y, given, change), torch.autograd.grad(wanted, exact, change.double())
    assert_as_exact(y, wanted.detach(), 1)
    for a, b in zip(found, right, strict=True):
        assert_as_exact(a, b, 8)


@pytest.mark.parametrize("name", PARTS)
def test_norms_and_gates_twice_differentiated(fast, name):
    torch.manual_seed(0)
    given = operands(name, (5, 24))

    def penalty(function):
        found = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in found), given)

    for a, b in zip(*(penalty(function) for function in PARTS[name]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@needs_compiler
def test_kernels_that_come_before_a_checkpoint_runs_again(library, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(parts, "LEAST", 1)
    monkeypatch.setattr(parts, "native", None)
    norm = make(RMSNorm(24))
    nn.init.normal_(norm.weight)
    x = torch.randn(40, 24, requires_grad=True)
    y = checkpoint(lambda t: parts.silu_gate_in_training(norm(t), t), x, use_reentrant=False)
    monkeypatch.setattr(parts, "native", library.parts)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    z = F.rms_norm(x, (24,), norm.weight, 1e-6)
    (wanted,) = torch.autograd.grad((F.silu(z) * x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_product
def test_a_plain_training_loop_asks_for_kernels(monkeypatch):
    monkeypatch.setattr(gradient, "is_foreign_to_blas", lambda: True)
    monkeypatch.setattr(gradient, "LEAST_WORK", 1)
    monkeypatch.setattr(gradient, "native", None)
    monkeypatch.setattr(gradient, "wanted", False)
    asked = []
    monkeypatch.setattr(native, "enable", lambda: asked.append(1))
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    )
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        model(ids)
    model.train()
    model(ids, labels=ids).loss.backward()
    assert gradient.wanted and not asked  # nothing changes within a step
    with torch.no_grad():
        model(ids)
    assert not asked
    model(ids, labels=ids).loss.backward()
    assert asked


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("last", [None, "relu"])
def test_maps_are_changed_in_place_only_where_nobody_sees_it(hooked, last):
    torch.manual_seed(0)
    convs = [ConvNorm(6, 6, norm=BatchNorm(6), act=act) for act in ("relu", last)]
    block = make(ConvResidual(convs))
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    seen = []
    if hooked:
        for conv in block.convs:
            conv.norm.register_forward_hook(lambda module, given, y: seen.append((y, y.detach().clone())))
    found = block.train()(x, Context(torch.zeros(1, 1, dtype=torch.long), 1))

    y = x
    for conv, act in zip(block.convs, ("relu", last), strict=True):
        y = F.conv2d(y, conv.conv.weight, padding=1)
        y = F.batch_norm(y, None, None, conv.norm.weight, conv.norm.bias, training=True)
        y = y if act is None else F.relu(y)
    wanted = F.relu(y + x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    given = [x, *block.parameters()]
    for a, b in zip(*(torch.autograd.grad(z.square().sum(), given) for z in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    assert len(seen) == 2 * hooked and all(torch.equal(y, before) for y, before in seen)
