"""Every method with every mechanism: checkpoints of gradients, graphs, autocast, packed weights."""

import copy
import functools
from typing import Any

import gguf_models
import pytest
import torch
from torch import Tensor

import phyla
from phyla.adapters.peft import LNTuningConfig, LoHaConfig, LoraConfig, OFTConfig, PromptTuningConfig

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "pad_token_id": 0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
FAMILIES = {"bert": "BertForMaskedLM", "llama": "LlamaForCausalLM"}
METHODS: dict[str, Any] = {
    "seq_bn": "seq_bn", "par_bn": "par_bn", "scaled_par_bn": "scaled_par_bn",
    "double_seq_bn": "double_seq_bn[ln_before=true,use_gating=true]",
    "compacter": "compacter[reduction_factor=4]",
    "invertible": "seq_bn_inv", "lora": "lora[r=2]", "gated_lora": "lora[r=2,use_gating=true]", "ia3": "ia3",
    "dora": "dora[r=2]", "vera": "vera[r=2]", "dvora": "dvora[r=2]",
    "mtl_lora": "mtl_lora[r=2,n_up_projection=2]",
    "loreft": "loreft[dropout=0]", "direft": "direft[dropout=0]",
    "prefix": "prefix_tuning[bottleneck_size=4]",
    "prefix_flat": "prefix_tuning_flat[prefix_length=3]", "prompt": "prompt_tuning[prompt_length=3]",
    "unipelt": "unipelt",
    "peft_lora": LoraConfig(r=2, target_modules="all-linear"), "peft_dora": LoraConfig(r=2, use_dora=True),
    "loha": LoHaConfig(r=2), "oft": OFTConfig(oft_block_size=4), "ln_tuning": LNTuningConfig(),
    "peft_prompt": PromptTuningConfig(num_virtual_tokens=3),
}  # fmt: skip
PAIRS = [(family, method) for family in FAMILIES for method in METHODS]


@functools.cache
def base(family: str) -> Any:
    torch.manual_seed(0)
    cls = getattr(phyla, FAMILIES[family])
    return cls(cls.config_class.from_dict(SIZES)).eval()


def prepared(family: str, method: str) -> Any:
    """A model with an active adapter that changes something."""
    model = copy.deepcopy(base(family))
    model.add_adapter("a", config=METHODS[method], set_active=True)
    stir(model)
    return model


@torch.no_grad()
def stir(model: Any, name: str = "a") -> None:
    torch.manual_seed(len(name))
    for key, parameter in model.adapters.get(name).named_parameters():
        if "parametrizations" not in key:
            parameter.add_(0.05 * torch.randn_like(parameter))


def learned(model: Any, run: Any = None) -> dict[str, Tensor]:
    """The gradients of one training step, by name."""
    model.zero_grad()
    (model if run is None else run)(IDS, labels=IDS).loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor], **far: float) -> None:
    assert one and one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, **(far or {"rtol": 1e-3, "atol": 1e-5}))


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_calls_without_gradients_and_dropped_layers(family: str, method: str) -> None:
    model = prepared(family, method)
    wanted = model(IDS).logits.detach()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(IDS).logits.float()
    torch.testing.assert_close(half, wanted, rtol=0.1, atol=0.1)
    if not any(place.layer < 0 for place, _ in model.adapters.get("a").items()) and "ln" not in method:
        model.set_active_adapters("a", skip_layers=[0, 1])
        if method != "peft_prompt":
            assert torch.equal(model(IDS).logits, base(family)(IDS).logits)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_training_with_checkpoints_and_autocast(family: str, method: str) -> None:
    model = prepared(family, method)
    with torch.inference_mode():
        model(IDS)  # leaves nothing that training could not use
    model.train_adapter("a")
    plain = learned(model)
    model.gradient_checkpointing_enable()
    assert_alike(plain, learned(model))
    with torch.autocast("cpu", torch.bfloat16):
        half = learned(model)
    assert half.keys() == plain.keys() and all(g.isfinite().all() for g in half.values())
    own = (
        "adapters.",
        "head.",
        *(("backbone.",) if method == "ln_tuning" else ()),
    )  # what stands in for norms
    assert all(key.startswith(own) for key in plain)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "invertible", "prompt", "unipelt"])
def test_compiled_steps(method: str) -> None:
    model = prepared("llama", method)
    model.train_adapter("a")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    assert_alike(learned(model), learned(model, compiled))


EXPORTED = ["par_bn", "compacter", "invertible", "ia3", "dora", "mtl_lora", "direft", "prefix", "prompt",
            "unipelt", "peft_lora", "peft_prompt"]  # fmt: skip


@pytest.mark.parametrize("method", EXPORTED)
def test_exported_graphs(method: str) -> None:
    model = prepared("bert", method)
    with torch.no_grad():
        made = torch.export.export(model, (IDS,)).module()
        torch.testing.assert_close(made(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


PACKED = {
    "nf4": {"quantization_config": phyla.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
    "int8": {"quantization_config": phyla.BitsAndBytesConfig(load_in_8bit=True)},
    "groups": {"quantization_config": phyla.CompressedTensorsConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}}},
        format="pack-quantized")},
    "gguf": {"quantized": True},
}  # fmt: skip
# What stands in for parameters of the base finds norms, which stay as they are; all others stand at sites.
ON_PACKED = [m for m in METHODS if m not in ("seq_bn", "scaled_par_bn", "prefix_flat")]
_packed: dict[str, Any] = {}


def packed(kind: str, folder: Any) -> Any:
    """A model whose projections are packed; loaded once."""
    if kind not in _packed:
        at = folder.mktemp(kind)
        if kind == "gguf":
            path: Any = gguf_models.write("llama", at / "tiny.gguf", quantise="Q4_1")
        else:
            path = at
            base("llama").save_pretrained(at)
        _packed[kind] = phyla.AutoModelForCausalLM.from_pretrained(path, **PACKED[kind]).eval()
    return _packed[kind]


@pytest.mark.parametrize("method", ON_PACKED)
@pytest.mark.parametrize("kind", PACKED)
def test_training_on_packed_weights(kind: str, method: str, tmp_path_factory: Any) -> None:
    model = packed(kind, tmp_path_factory)
    plain = model(IDS).logits.detach()
    assert any(hasattr(module, "packed") for module in model.modules())
    model.add_adapter("a", config=METHODS[method], set_active=True)
    stir(model)
    model.train_adapter("a")
    grads = {k: g for k, g in learned(model).items() if k.startswith(("adapters.", "backbone."))}
    assert grads and all(g.isfinite().all() for g in grads.values()) and any(g.any() for g in grads.values())
    model.eval()
    model.delete_adapter("a")
    assert torch.equal(model(IDS).logits, plain)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "peft_lora", "loha", "oft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_carry_other_adapters(family: str, method: str) -> None:
    """What is merged counts beside what is active, is exported with the base, and comes out again."""
    model, call = prepared(family, "lora"), {"use_cache": False} if family == "llama" else {}
    second = copy.deepcopy(model)
    model.add_adapter("b", config=METHODS[method])
    stir(model, "b")
    model.set_active_adapters(None)
    bare = model(IDS).logits
    model.merge_adapter("a")
    merged = model(IDS).logits
    torch.testing.assert_close(merged, second(IDS).logits, rtol=1e-4, atol=1e-5)
    model.set_active_adapters("b")
    both = model(IDS).logits
    model.train_adapter("b")
    assert not any(k.startswith("adapters.entries._a") for k in learned(model))
    model.eval()
    model.merge_adapter("b")
    torch.testing.assert_close(model(IDS).logits, both, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        made = torch.export.export(model, (IDS,), call).module() if method == "lora" else model
        torch.testing.assert_close(made(IDS, **call).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    model.reset_adapter()
    assert torch.equal(model(IDS).logits, bare)
