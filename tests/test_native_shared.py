"""Models in several hands: threads, copies, pickles, shared memory, and modules put in place of others."""

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_kernels import counted, kernels
from test_native_crossing import given, of, steps
from test_native_step import filled, model_of, stepwise
from torch import nn

import phyla
from phyla.blocks import matmul, stack
from phyla.blocks.stack import Layer
from phyla.fast import codes

__all__ = ["counted", "kernels"]  # fixtures

CHUNKS = (9, 1, 2, 1)
LLAMA = phyla.LlamaConfig(
    vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
)
MIXTRAL = phyla.MixtralConfig(
    vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=64, num_local_experts=4,
)  # fmt: skip


def ids_of(seed: int, length: int = sum(CHUNKS)) -> torch.Tensor:
    return torch.randint(3, 99, (1, length), generator=torch.Generator().manual_seed(seed))


def run(model: Any, ids: torch.Tensor | None = None, chunks: tuple[int, ...] = CHUNKS) -> torch.Tensor:
    ids = ids_of(0) if ids is None else ids
    return stepwise(model, ids, torch.ones_like(ids), chunks)


def at_once(calls: list[Callable[[], torch.Tensor]]) -> list[list[torch.Tensor]]:
    """What each call gives, five times, beside the others in threads that often take turns."""
    found: list[list[torch.Tensor]] = [[] for _ in calls]

    def work(i: int) -> None:
        found[i] = [calls[i]() for _ in range(5)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return found


@pytest.mark.parametrize("kind", ["rotary, groups", "falling with distance"])
def test_threads_share_a_model(counted, kind) -> None:
    model = model_of(kind)
    ids = [ids_of(i, n + 9) for i, n in enumerate((3, 40, 90, 150))]
    calls = [lambda i=i: run(model, i, (i.shape[1] - 9, *(1,) * 9)) for i in ids]
    wanted = [call() for call in calls]
    for found, want in zip(at_once(calls), wanted, strict=True):
        assert len(found) == 5 and all(torch.equal(y, want) for y in found)


def test_threads_share_a_decoder_that_looks_at_an_encoder(counted) -> None:
    model = of("norms before")
    asked = [given(rows, length) for rows, length in ((1, 20), (2, 150), (1, 70), (2, 50))]
    calls = [lambda a=a: steps(model, *a, (1,) * 9) for a in asked]
    wanted = [call() for call in calls]
    for found, want in zip(at_once(calls), wanted, strict=True):
        assert len(found) == 5 and all(torch.equal(y, want) for y in found)


class Doubled(nn.Module):
    """What other libraries put in the place of a map."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.site, self.bias = inner, None, None
        self.in_features, self.out_features = inner.in_features, inner.out_features

    @property
    def weight(self) -> torch.Tensor:
        return self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def _other_map(layer: Any) -> None:
    layer.attn.k = copy.deepcopy(layer.attn.k)
    layer.attn.k.weight.data.mul_(3)


def _wrapped(layer: Any) -> None:
    layer.ffn.up = Doubled(layer.ffn.up)


def _other_norm(layer: Any) -> None:
    layer.ffn.pre_norm = copy.deepcopy(layer.ffn.pre_norm)
    layer.ffn.pre_norm.weight.data.add_(3)


def _hooked(layer: Any) -> None:
    layer.ffn.gate.register_forward_hook(lambda module, x, y: 2 * y)


def _biased(layer: Any) -> None:
    layer.attn.o.bias = nn.Parameter(torch.ones(64))


def _without_bias(layer: Any) -> None:
    layer.attn.q.bias = None


@pytest.mark.parametrize("change", [_other_map, _wrapped, _other_norm, _hooked, _biased, _without_bias])
def test_what_takes_the_place_of_a_module_is_asked(counted, monkeypatch, change) -> None:
    torch.manual_seed(0)
    config = LLAMA
    if change is _without_bias:
        config = phyla.Qwen2Config(
            vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, intermediate_size=128,
        )  # fmt: skip
    model = filled(phyla.AutoModelForCausalLM.from_config(config), torch.float32).pack()
    before = run(model)
    change([m for m in model.modules() if isinstance(m, Layer)][1])
    found = run(model)
    with monkeypatch.context() as patch:
        patch.setattr(stack, "native", None)
        patch.setattr(matmul, "native", None)
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if getattr(module, "joined", None) is not None:
                module.joined = None
        wanted = run(fresh)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (found - before).abs().max() > 1e-4 * wanted.abs().max()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict:
    torch.manual_seed(0)
    found = {}
    for name, config in (("dense", LLAMA), ("experts", MIXTRAL)):
        found[name] = tmp_path_factory.mktemp(name)
        phyla.AutoModelForCausalLM.from_config(config).save_pretrained(found[name])
    return found


def packed_model(folder: Any) -> Any:
    asked = phyla.BitsAndBytesConfig(load_in_4bit=True)
    model = phyla.AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked).eval()
    return model.pack()


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_packed_models_are_moved_copied_and_pickled(folders, counted, name) -> None:
    model = packed_model(folders[name])
    wanted = run(model)
    data = pickle.dumps(model)
    twin = copy.deepcopy(model)
    for made in (pickle.loads(data), twin):  # noqa: S301
        assert torch.equal(run(made), wanted)
    held = {b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in twin.buffers()}
    assert max(sum(held.values()), len(data)) < 1 << 20
    model.share_memory()
    assert torch.equal(run(model), wanted)


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_dequantized_weights_are_those_that_count(folders, counted, monkeypatch, name) -> None:
    model = packed_model(folders[name])
    before = run(model)
    model.dequantize()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    found = run(model)
    with monkeypatch.context() as patch:
        for owner in (stack, matmul, codes):
            patch.setattr(owner, "native", None)
        wanted = run(model)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (found - before).abs().max() > 0.01 * wanted.abs().max()


def test_a_loaded_model_is_pickled_once(tmp_path) -> None:
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=500, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512
    )
    phyla.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = phyla.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    wanted = run(model)
    for _ in range(2):
        data, saved = pickle.dumps(model), io.BytesIO()
        torch.save(model.state_dict(), saved)
        assert max(len(data), saved.tell()) < 1.1 * size
        assert torch.equal(run(pickle.loads(data)), wanted)  # noqa: S301
        wanted = run(model.pack())  # joined in the same places
    model.share_memory()
    assert torch.allclose(run(model), wanted, rtol=1e-4, atol=1e-5)
