"""Adapters beside the rest of the house: the native path, packed and half bases, scores, pickles."""

import io
import pickle
import time
from pathlib import Path
from typing import Any

import gguf_models
import pytest
import torch

import phyla
import phyla.adapters as adapters
from phyla.adapters import LoRAConfig, LoReftConfig
from phyla.adapters.peft import LNTuningConfig
from phyla.errors import AdapterError
from phyla.fast import native
from phyla.fast.packed import PackedLinear

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def bert(kind: str = "BertModel", **more: Any) -> Any:
    torch.manual_seed(0)
    config = phyla.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        **more,
    )
    return getattr(phyla, kind)(config).eval()


def llama(kind: str = "LlamaForCausalLM", **more: Any) -> Any:
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(phyla, kind)(config).eval()


@torch.no_grad()
def stir(model: Any, name: str = "a") -> None:
    """Let an adapter change something."""
    for parameter in model.get_submodule("adapters").get(name).parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))


# One base for both kinds of model: the path that plain stacks take.
class Runner:
    """The native runner of stacks, counting what it computes; the modules' own path where there is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from phyla.blocks import stack
        from phyla.fast.plan import Plans

        self.plans, self.taken = Plans(), []
        monkeypatch.setattr(stack, "native", self)

    def __call__(self, stack: Any, x: Any, ctx: Any) -> None:
        self.taken.append(self.plans.of(stack) is not None)

    def asked(self, model: Any) -> bool:
        """Whether a call of the model finds its stack plain and idle."""
        self.taken.clear()
        with torch.inference_mode():
            model(IDS)
        return all(self.taken)


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize(
    "config", ["seq_bn", "double_seq_bn", "lora", "dora", "ia3", "loreft", "prefix_tuning", "unipelt"]
)
def test_inactive_adapters_leave_the_stack_to_the_native_path(
    make: Any, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runner = make(), Runner(monkeypatch)
    bare = model(IDS)[0]
    model.add_adapter("a", config=config, set_active=True)
    stir(model)
    assert not runner.asked(model)  # also where the plan is made while adapters are active
    model.set_active_adapters(None)
    assert runner.asked(model)
    model.train_adapter("a")
    model(IDS)[0].sum().backward()
    model.eval()
    assert not runner.asked(model)
    model.set_active_adapters(None)
    assert runner.asked(model)
    assert torch.equal(model(IDS)[0], bare)
    with torch.inference_mode():
        model(IDS, adapter_names=["a", None])
    assert runner.asked(model)


@pytest.mark.parametrize("config", ["lora", "ia3", "dora", LNTuningConfig()], ids=str)
def test_merged_adapters_leave_the_stack_to_the_native_path(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runner = bert(), Runner(monkeypatch)
    model.add_adapter("a", config=config, set_active=True)
    stir(model)
    changed = model(IDS)[0]
    model.merge_adapter("a")
    assert runner.asked(model)
    torch.testing.assert_close(model(IDS)[0], changed, rtol=1e-4, atol=1e-5)
    model.reset_adapter()
    assert runner.asked(model)


def test_the_native_path_computes_a_base_with_idle_and_merged_adapters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from phyla.blocks import stack

    kernels = native.load()  # None without a compiler: the same holds for the modules
    monkeypatch.setattr(stack, "native", None if kernels is None else kernels.stack)
    model = llama()
    with torch.inference_mode():
        bare = model(IDS).logits
        model.add_adapter("a", config="lora", set_active=True)
        stir(model)
        changed = model(IDS).logits
        model.set_active_adapters(None)
        assert torch.equal(model(IDS).logits, bare)
        model.merge_adapter("a")
        torch.testing.assert_close(model(IDS).logits, changed, rtol=1e-4, atol=1e-5)
        model.reset_adapter()
        assert torch.equal(model(IDS).logits, bare)


@pytest.mark.slow
def test_inactive_adapters_are_not_in_compiled_graphs() -> None:
    counts = []

    def count(graph: Any, _: Any) -> Any:
        counts.append(
            sum(node.op in ("call_function", "call_method", "call_module") for node in graph.graph.nodes)
        )
        return graph.forward

    model = bert()
    torch._dynamo.reset()  # shapes that other tests compiled would make this one's symbolic
    with torch.no_grad():
        torch.compile(model, backend=count, fullgraph=True)(IDS)
        torch._dynamo.reset()
        model.add_adapter("a", config="double_seq_bn")
        torch.compile(model, backend=count, fullgraph=True)(IDS)
    assert counts[0] == counts[1]


def test_switching_takes_less_than_a_millisecond() -> None:
    model = llama(max_position_embeddings=64)
    for name in "ab":
        model.add_adapter(name, config="lora[r=8]|seq_bn[reduction_factor=4]")
        model.set_active_adapters(name)
    times = []
    for turn in range(40):
        began = time.perf_counter()
        model.set_active_adapters("ab"[turn % 2])
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "config", ["seq_bn", "lora", "dora", "vera", "ia3", "loreft", "noreft", "prefix_tuning", "prompt_tuning"]
)
def test_adapters_train_on_half_precision(config: str, dtype: torch.dtype) -> None:
    model = bert("BertForSequenceClassification").to(dtype)
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    entry = model.get_submodule("adapters").get("a")
    stir(model)  # what starts at zero would hide its factor's gradients
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    trained = [p for p in entry.parameters() if p.grad is not None]  # a second ReFT unit may have no place
    assert all(p.grad.isfinite().all() for p in trained if p.grad is not None)
    assert any(p.grad.any() for p in trained if p.grad is not None)
    assert model(IDS).logits.dtype == dtype


@pytest.mark.parametrize(
    "config", [LoRAConfig(dtype="float32"), LoReftConfig(dtype="float32", dropout=0.0)], ids=str
)
def test_the_field_dtype_is_the_parts_own(config: Any, tmp_path: Path) -> None:
    model = bert().to(torch.bfloat16)
    model.add_adapter("a", config=config, set_active=True)
    stir(model)
    entry = model.get_submodule("adapters").get("a")
    assert {p.dtype for p in entry.parameters()} == {torch.float32}
    out = model(IDS)[0]
    assert out.dtype == torch.bfloat16
    model.save_adapter(tmp_path / "a", "a")
    other = bert().to(torch.bfloat16)
    other.load_adapter(tmp_path / "a", set_active=True)
    assert other.get_submodule("adapters").get("a").config.parts()[0].dtype == "float32"
    assert torch.equal(other(IDS)[0], out)


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(AdapterError, match="floating-point"):
        bert().add_adapter("a", config=LoRAConfig(dtype="int8"))


@pytest.mark.parametrize("config", ["mam", "unipelt"])
def test_unions_have_names(config: str) -> None:
    model = bert()
    model.add_adapter("a", config=config, set_active=True)
    model.add_adapter("b", config=config)
    assert model(IDS)[0].isfinite().all()


def test_a_configuration_serves_several_models() -> None:
    config = LNTuningConfig()
    bert().add_adapter("a", config=config)
    assert config.target_modules is None
    flat = adapters.PrefixTuningConfig()
    model = bert()
    model.add_adapter("a", config=flat)
    model.eject_prefix_tuning("a")
    assert not flat.flat


def test_gating_scores_are_told_by_adapter_layer_and_location() -> None:
    model = bert()
    model.add_adapter("a", config="unipelt", set_active=True)
    out = model(IDS, output_adapter_gating_scores=True)
    scores = out["adapter_gating_scores"]["a"]
    assert sorted(scores) == [0, 1]
    assert {at: v.shape for at, v in scores[1].items()} == {
        "output_adapter": (2,), "selfattn_lora": (2, 2), "self_prefix": (2,),
    }  # fmt: skip
    gate = model.get_adapter("a")[0]
    part = next(p for key, p in gate.items() if hasattr(p, "adapter_down"))
    assert all(0 < v < 1 for v in scores[0]["output_adapter"])
    assert not part.gate._forward_hooks
    assert "adapter_gating_scores" not in model(IDS)
    assert torch.equal(model(IDS)[0], out[0])


def test_fusion_attentions_are_told_for_every_position() -> None:
    model = bert()
    for name in "ab":
        model.add_adapter(name, config="double_seq_bn")
    model.add_adapter_fusion(["a", "b"], set_active=True)
    values = model(IDS, output_adapter_fusion_attentions=True, return_dict=False)[-1]
    found = values["a,b"]
    assert {(layer, at) for layer, inside in found.items() for at in inside} == {
        (layer, at) for layer in (0, 1) for at in ("mh_adapter", "output_adapter")
    }
    for inside in found.values():
        for shares in inside.values():
            assert shares.shape == (2, 5, 2)
            assert abs(shares.sum(-1) - 1).max() < 1e-5


def test_calls_have_a_context() -> None:
    model, seen = bert("BertForSequenceClassification"), []
    model.add_adapter("a", set_active=True)
    hook = model.get_submodule("head").register_forward_hook(
        lambda *_: seen.append(adapters.ForwardContext.get_context())
    )
    model(IDS, task_ids=[0, 1])
    hook.remove()
    assert seen[0].task_ids == [0, 1]
    assert adapters.ForwardContext.get_context() is None


def test_wrapped_models_of_ones_own_have_a_context() -> None:
    class Own(torch.nn.Module):
        @adapters.ForwardContext.wrap
        def forward(self, x: torch.Tensor) -> Any:
            return x + adapters.ForwardContext.get_context().task_ids

    assert Own()(torch.ones(1), task_ids=2).item() == 3
    names = adapters.ForwardContext.add_context_args_in_signature(Own.forward).parameters
    assert list(names)[:2] == ["self", "x"] and "task_ids" in names


@pytest.mark.parametrize("make", [bert, llama])
def test_models_with_adapters_pickle(make: Any) -> None:
    model = make()
    model.add_adapter("a", config="lora|seq_bn[reduction_factor=4]", set_active=True)
    stir(model)
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(copy(IDS)[0], model(IDS)[0])
    copy.set_active_adapters(None)
    assert not torch.equal(copy(IDS)[0], model(IDS)[0])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_prompts_keep_the_last_token_of_sequence_classification(side: str) -> None:
    model = llama("LlamaForSequenceClassification")
    model.add_adapter("a", config="prompt_tuning", set_active=True)
    padded, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    place = slice(0, 5) if side == "right" else slice(2, 7)
    padded[:, place], mask[:, place] = IDS, 1
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits, model(IDS).logits, rtol=1e-4, atol=1e-5
    )
    single = torch.cat([model(IDS[i : i + 1]).logits for i in range(2)])
    torch.testing.assert_close(model(IDS).logits, single, rtol=1e-4, atol=1e-5)
    model.set_active_adapters(None)
    assert not torch.allclose(model(IDS).logits, single)


@pytest.mark.parametrize(
    "model", [llama, lambda: bert("BertForMaskedLM"), lambda: bert("BertForTokenClassification")],
    ids=["causal", "masked", "tokens"],
)  # fmt: skip
def test_labels_of_tokens_leave_prompts_out(model: Any) -> None:
    model = model()
    model.add_adapter("a", config="prompt_tuning")
    model.train_adapter("a")
    labels = IDS % 2
    out = model(IDS, labels=labels)
    count = out.logits.shape[1] - 5
    assert count == 10
    scores, due = out.logits[:, count:], labels
    if type(model).__name__.endswith("CausalLM"):
        scores, due = out.logits[:, count - 1 : -1], labels  # the last prompt predicts the first token
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), due.flatten())
    torch.testing.assert_close(out.loss, loss)
    out.loss.backward()


@pytest.mark.parametrize(
    "config", ["seq_bn[reduction_factor=4]", "lora", "loreft", "prefix_tuning", "prompt_tuning"]
)
def test_adapters_train_on_packed_weights(config: str, tmp_path: Path) -> None:
    path = gguf_models.write("llama", tmp_path / "tiny.gguf", quantise="Q4_1")
    model = phyla.AutoModelForCausalLM.from_pretrained(path, quantized=True)
    assert isinstance(model.backbone.layers[0].attn.q, PackedLinear)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    model.add_adapter("a", config=config)
    model.train_adapter("a")
    entry = model.get_submodule("adapters").get("a")
    steps = torch.optim.SGD([p for p in entry.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.item())
        steps.step()
        steps.zero_grad()
    assert losses[-1] < losses[0]
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in base.items())
