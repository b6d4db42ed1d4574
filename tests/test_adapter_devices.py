"""Adapters have the devices and dtypes of their sites: models spread out, layers of several dtypes."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import phyla
from phyla.adapters import Fuse, Stack
from phyla.adapters.peft import LNTuningConfig, LoHaConfig, LoraConfig
from phyla.blocks.context import Context

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
METHODS = [
    "double_seq_bn[reduction_factor=4]", "par_bn", "compacter[reduction_factor=4]",
    "adapter_plus[reduction_factor=4]", "seq_bn_inv[reduction_factor=4]", "lora[r=2]", "ia3", "dora[r=2]",
    "vera[r=2]", "mtl_lora[r=2]", "loreft", "noreft",
    "prefix_tuning[bottleneck_size=4]", "prefix_tuning[flat=true,use_gating=true]", "prompt_tuning",
    "unipelt", LoraConfig(r=2), LoraConfig(r=2, use_dora=True, target_modules="all-linear"), LoHaConfig(r=2),
    LNTuningConfig(),
]  # fmt: skip


def llama(kind: str = "LlamaForCausalLM") -> Any:
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, pad_token_id=0,
    )  # fmt: skip
    return getattr(phyla, kind)(config).eval()


def parts_at(entry: Any, path: str) -> Iterator[Tensor]:
    """The tensors of the parts below one layer."""
    for place, part in entry.items():
        if place.path.startswith(path):
            yield from part.parameters()
    for parameter, (module, _) in zip(entry.replaced, entry.targets, strict=True):
        if any(m is module for m in entry.host.get_submodule(path).modules()):
            yield parameter


def add(model: Any, config: Any) -> Any:
    model.add_adapter("a", config=config)
    entry = model.adapters.get("a")
    object.__setattr__(entry, "host", model)
    return entry


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_parts_are_made_on_the_device_of_their_site(config: Any) -> None:
    model = llama()
    model.backbone.layers[1].to("meta")  # a device that this machine has
    entry = add(model, config)
    for index, device in enumerate(("cpu", "meta", "cpu")):
        found = {p.device.type for p in parts_at(entry, f"backbone.layers.{index}")}
        assert found <= {device}, index
    if config not in ("prompt_tuning", "prefix_tuning[bottleneck_size=4]"):  # made at one place for all
        assert any(p.is_meta for p in entry.parameters())


def test_parts_have_the_dtype_of_their_layer() -> None:
    model = llama()
    model.backbone.layers[1].to(torch.bfloat16)
    entry = add(model, "double_seq_bn[reduction_factor=4]|lora[r=2]|loreft")
    for index, dtype in enumerate((torch.float32, torch.bfloat16, torch.float32)):
        parts = [
            part
            for place, part in entry.items()
            if place.layer == index and "Reft" not in type(part).__name__
        ]
        assert parts and {p.dtype for part in parts for p in part.parameters()} == {dtype}


def test_fusions_stand_with_their_branches() -> None:
    model = llama()
    model.backbone.layers[1].to("meta")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(["a", "b"], set_active=True)
    layers = next(iter(model.adapters.fusions.values()))
    assert [{p.device.type for p in layer.parameters()} for layer in layers.values()] == [
        {"cpu"},
        {"meta"},
        {"cpu"},
    ]


def test_moving_the_model_moves_its_adapters() -> None:
    model = llama()
    model.add_adapter("a", config="unipelt|loreft", set_active=True)
    model.to("meta")
    assert all(p.is_meta for p in model.adapters.parameters())
    assert model(torch.empty(2, 5, dtype=torch.long, device="meta")).logits.is_meta


class Carried:
    """Brings what a layer is called with to the layer's device, as tools that spread models do."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __call__(self, module: Any, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(self.moved, args)), {k: self.moved(v) for k, v in named.items()}

    def moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, Context):
            return replace(value, memo={}, **{
                f.name: getattr(value, f.name).to(self.device) for f in fields(value)
                if isinstance(getattr(value, f.name), Tensor)
            })  # fmt: skip
        return value


def spread(model: Any, devices: list[Any]) -> Any:
    """The model with its layers on several devices; embedding, norm and head stay on the first."""
    for layer, device in zip(model.backbone.layers, devices, strict=True):
        layer.to(device).register_forward_pre_hook(Carried(device), with_kwargs=True)
    first = next(model.backbone.embed.parameters()).device
    model.backbone.norm.register_forward_pre_hook(Carried(first), with_kwargs=True)
    return model


def check_spread(config: Any, devices: list[Any], folder: Path) -> None:
    """A spread model with an adapter computes what a whole one does, is trained, saved and loaded."""
    whole, model = llama(), spread(llama(), devices)
    whole.add_adapter("a", config=config)
    with torch.no_grad():
        for parameter in whole.adapters.get("a").parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    whole.save_adapter(folder, "a")
    model.load_adapter(folder, load_as="a", set_active=True)
    whole.set_active_adapters("a")
    assert not torch.equal(whole(IDS).logits, llama()(IDS).logits)
    torch.testing.assert_close(
        model(IDS, use_cache=False).logits.cpu(), whole(IDS).logits, rtol=1e-3, atol=1e-4
    )
    names = ["a", None]
    torch.testing.assert_close(
        model(IDS, adapter_names=names, use_cache=False).logits.cpu(), whole(IDS, adapter_names=names).logits,
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip
    model.train_adapter("a")
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    got = [p for p in model.adapters.get("a").parameters() if p.grad is not None]
    assert got and all(p.grad.device == p.device for p in got)


@pytest.mark.parametrize("config", ["lora[r=2]", "prefix_tuning[bottleneck_size=4]", "vera[r=2]"])
def test_hooks_that_carry_states_leave_results_alone(config: str, tmp_path: Path) -> None:
    check_spread(config, ["cpu", "cpu", "cpu"], tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [m for m in METHODS if isinstance(m, str)])
def test_adapters_on_two_devices(config: str, tmp_path: Path) -> None:
    check_spread(config, ["cpu", "cuda:0", "cpu"], tmp_path)


@pytest.mark.gpu
def test_stacks_and_fusions_on_two_devices() -> None:
    model = spread(llama(), ["cpu", "cuda:0", "cpu"])
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(["a", "b"])
    for setup in (Stack("a", "b"), Fuse("a", "b")):
        model.set_active_adapters(setup)
        assert model(IDS, use_cache=False).logits.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("config", METHODS, ids=str)
def test_moved_to_the_device_adapters_compute_alike(config: Any) -> None:
    model = llama()
    model.add_adapter("a", config=config, set_active=True)
    wanted = model(IDS).logits
    found = model.to("cuda")(IDS.cuda()).logits
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-4)
    assert {p.device.type for p in model.adapters.parameters()} == {"cuda"}


@pytest.mark.parametrize("config", [m for m in METHODS if isinstance(m, str)])
def test_streams_wider_than_the_weights(config: str) -> None:
    """Mamba's stream is float32 in models of any dtype; adapters have the weights' dtype."""
    torch.manual_seed(0)
    made = phyla.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4)
    model: Any = phyla.MambaForCausalLM(made).eval().to(torch.bfloat16)
    if "prefix" in config or "unipelt" in config:
        with pytest.raises(phyla.errors.AdapterError):
            model.add_adapter("a", config=config)
        return
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    model(IDS, labels=IDS).loss.backward()
    assert any(p.grad is not None and p.grad.isfinite().all() for p in model.adapters.parameters())


@pytest.mark.parametrize("config", METHODS[:-1], ids=str)  # the last one stands in for parameters of the base
def test_parts_may_have_a_dtype_of_their_own(config: Any) -> None:
    model = llama().to(torch.bfloat16)
    model.add_adapter("a", config=config)
    model.adapter_to("a", dtype=torch.float32)
    model.train_adapter("a")
    out = model(IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    grads = [p.grad for p in model.adapters.get("a").parameters() if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
