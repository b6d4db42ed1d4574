"""Name maps: total, order-free, invertible; tensor operations and their inverses."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phyla.checkpoints.names import NameMap, modern, split, stack
from phyla.checkpoints.ops import Reshape, Same, Split, Stack, Transpose
from phyla.errors import NameMapError, ShapeMismatchError

SHAPES = {
    "embed.tokens.weight": torch.Size((5, 4)),
    "layers.0.attn.q.weight": torch.Size((4, 4)),
    "layers.0.attn.k.weight": torch.Size((2, 4)),
    "layers.10.attn.q.weight": torch.Size((4, 4)),
    "layers.10.attn.k.weight": torch.Size((2, 4)),
    "norm.weight": torch.Size((4,)),
    "norm.bias": torch.Size((4,)),
}
LINES = {"embed.tokens": "wte", "layers.{i}.attn.q|k": split("h.{i}.qk"), "norm": "ln_f"}


def test_leaves_ride_along_and_numbers_carry_over() -> None:
    bound = NameMap(LINES).bind(SHAPES)
    assert set(bound.public()) == {
        "wte.weight",
        "h.0.qk.weight",
        "h.10.qk.weight",
        "ln_f.weight",
        "ln_f.bias",
    }
    assert not bound.unused


def test_the_order_of_lines_does_not_matter() -> None:
    items = list(LINES.items())
    random.Random(1).shuffle(items)
    assert set(NameMap(dict(items)).bind(SHAPES).public()) == set(NameMap(LINES).bind(SHAPES).public())


def test_a_parameter_without_a_line_is_named() -> None:
    lines = {k: v for k, v in LINES.items() if k != "norm"}
    with pytest.raises(NameMapError, match=r"norm\.weight"):
        NameMap(lines).bind(SHAPES)


def test_two_parameters_with_one_public_name_are_refused() -> None:
    with pytest.raises(NameMapError, match="same public name"):
        NameMap({**LINES, "norm": "wte"}).bind(SHAPES)


def test_two_lines_for_one_module_are_refused() -> None:
    with pytest.raises(NameMapError, match="two lines"):
        NameMap({"layers.{i}.attn.q": "a.{i}", "layers.{j}.attn.q": "b.{j}"}).bind(SHAPES)


def test_a_stale_line_is_reported() -> None:
    assert NameMap({**LINES, "pool": "pooler"}).bind(SHAPES).unused == ["pool"]


def test_parts_bring_their_own_maps() -> None:
    whole = NameMap(
        {"scale": "logit_scale"}, parts={"text": ("text_model.", NameMap({"norm": "ln"}, prefix="inner"))}
    )
    public = whole.bind({"scale": torch.Size(()), "text.norm.weight": torch.Size((2,))}).public()
    assert set(public) == {"logit_scale", "text_model.inner.ln.weight"}


def test_experts_become_one_public_tensor_each() -> None:
    bound = NameMap({"ffn.up": stack("experts.{e}.w1.weight")}).bind({"ffn.up": torch.Size((3, 2, 2))})
    assert bound.public() == [f"experts.{e}.w1.weight" for e in range(3)]


def test_old_spellings_of_norms() -> None:
    assert modern("bert.LayerNorm.gamma") == "bert.LayerNorm.weight"
    assert modern("bert.LayerNorm.beta") == "bert.LayerNorm.bias"
    assert modern("gamma") == "gamma"


def tensors(draw_shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(draw_shape, generator=torch.Generator().manual_seed(seed))


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    groups=st.integers(1, 4),
    width=st.integers(1, 5),
    transpose=st.booleans(),
    vector=st.booleans(),
)
def test_split_inverts(sizes: list[int], groups: int, width: int, transpose: bool, vector: bool) -> None:
    op = Split(groups, transpose)
    ours = [tensors((s * groups,) if vector else (s * groups, width), i) for i, s in enumerate(sizes)]
    fused = op.save(ours)
    assert len(fused) == 1
    back = op.load(fused, [t.shape for t in ours])
    assert all(torch.equal(a, b) for a, b in zip(ours, back, strict=True))


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), seed=st.integers(0, 99))
def test_single_operations_invert(shape: tuple[int, ...], seed: int) -> None:
    value = tensors(shape, seed)
    for op in (Same(), Transpose(), Reshape((1, *shape))):
        back = op.load(op.save([value]), [value.shape])
        assert torch.equal(back[0], value)
    if len(shape) > 1:
        parts = Stack().save([value])
        assert len(parts) == shape[0] and torch.equal(Stack().load(parts, [value.shape])[0], value)


def test_a_fused_tensor_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="6 rows"):
        Split().load([torch.zeros(5, 2)], [torch.Size((4, 2)), torch.Size((2, 2))])


def test_interleaved_heads_come_apart() -> None:
    fused = torch.arange(12.0)[:, None]  # two heads of q, k, v, each two rows
    q, k, v = Split(groups=2).load([fused], [torch.Size((4, 1))] * 3)
    assert q.flatten().tolist() == [0, 1, 6, 7]
    assert k.flatten().tolist() == [2, 3, 8, 9]
    assert v.flatten().tolist() == [4, 5, 10, 11]
