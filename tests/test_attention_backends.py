"""Attention by name: FlexAttention, flash-attn, functions of the caller's own, parts of a model apart."""

import logging
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import phyla
from phyla.blocks import attending
from phyla.blocks.attention import Attention, Heads
from phyla.blocks.context import Context
from phyla.blocks.flat import Pages
from phyla.errors import ArgumentError, ConfigError, MissingExtraError
from phyla.fast import flash, flex, interface
from phyla.generation import captured
from phyla.testing.goldens import read_pack

PACKS = Path(__file__).parent / "goldens"
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
# class of a golden -> attentions of its forward that FlexAttention computes
GOLDENS = {
    "bert/BertForMaskedLM": 2,  # padding
    "llama/LlamaForCausalLM": 2,  # causal, groups
    "gemma2/Gemma2ForCausalLM": 2,  # caps, windows
    "mistral/MistralForCausalLM": 2,  # windows
    "t5/T5ForConditionalGeneration": 6,  # buckets of distances, cross-attention
    "bloom/BloomForCausalLM": 2,  # slopes
    "falcon/FalconForCausalLM": 2,
    "vit/ViTForImageClassification": 2,
    "whisper/WhisperForConditionalGeneration": 6,
    "wavlm/WavLMModel": 2,  # a bias of the input
    "swin/SwinModel": 3,  # windows of maps
    "gemma3/Gemma3ForConditionalGeneration": 4,  # images that see each other
    "clip/CLIPModel": 4,
    "modernbert/ModernBertForMaskedLM": 2,  # windows on both sides
    "xlnet/XLNetModel": 0,  # an attention of its own
}


@pytest.fixture
def openly(monkeypatch):
    """FlexAttention without its compiler; the list of the calls that reach it."""
    import torch.nn.attention.flex_attention as torch_flex

    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "LEAST", 2)
    monkeypatch.setattr(flex, "broken", [])
    monkeypatch.setattr(flex, "shapes", set())
    calls = []

    def run(q, k, v, **named):
        calls.append(tuple(q.shape))
        return torch_flex.flex_attention(q, k, v, **named)

    monkeypatch.setattr(flex, "run", run)
    return calls


def close(found, wanted, bound=1e-5):
    """Every floating output within `bound` of the largest value wanted."""
    for name in wanted.keys():  # noqa: SIM118  (an output iterates over values)
        if isinstance(wanted[name], torch.Tensor) and wanted[name].is_floating_point():
            largest = max(1.0, float(wanted[name].abs().max()))
            assert float((found[name] - wanted[name]).abs().max()) <= bound * largest, name


def tiny(kind="Llama", **changes):
    torch.manual_seed(0)
    config = getattr(phyla, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(phyla, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.4)
    return model


def batch(rows=2, length=14):
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("case", GOLDENS)
def test_flex_attention_equals_open_attention_on_goldens(case, openly) -> None:
    family, _, name = case.partition("/")
    golden = next(g for g in read_pack(PACKS / f"{family}.tar.xz") if g.class_name == name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        golden.write_checkpoint(Path(folder))
        load = getattr(phyla, name).from_pretrained
        wanted = load(folder, attn_implementation="eager")(**golden.inputs())
        found = load(folder, attn_implementation="flex_attention")(**golden.inputs())
    assert len(openly) == GOLDENS[case]
    close(found, wanted)


@torch.no_grad()
def test_caps_that_the_fused_call_lacks(openly) -> None:
    model = tiny("Gemma2", sliding_window=6, attn_logit_softcapping=2.0)
    real = batch()["attention_mask"].bool()
    logits = {}
    for name in ("eager", "flex_attention", "sdpa"):
        model.set_attn_implementation(name)
        logits[name] = model(**batch()).logits[real]
    assert len(openly) == 2
    torch.testing.assert_close(logits["flex_attention"], logits["eager"], rtol=1e-5, atol=1e-5)
    assert (logits["sdpa"] - logits["eager"]).abs().max() > 0.1  # as published: see docs/differences.md
    for name in ("eager", "flex_attention"):  # single queries have their cap too
        model.set_attn_implementation(name)
        logits[name] = model.generate(**batch(), max_new_tokens=6, pad_token_id=0, eos_token_id=None)
    assert torch.equal(logits["eager"], logits["flex_attention"])


@torch.no_grad()
def test_flex_attention_reads_on_from_a_memory_that_slides(openly) -> None:
    model = tiny("Mistral", sliding_window=5)
    ids = batch(1, 23)["input_ids"]
    wanted = model(ids).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    first = model(ids[:, :9], use_cache=True)
    second = model(ids[:, 9:], past_key_values=first.past_key_values)
    assert len(openly) == 6
    torch.testing.assert_close(second.logits, wanted[:, 9:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_ready_masks_and_prefixes_reach_flex_attention(openly) -> None:
    model = tiny()
    ids = batch()["input_ids"]
    ready = torch.rand(2, 1, 14, 14, generator=torch.Generator().manual_seed(3)) < 0.6
    ready |= torch.eye(14, dtype=torch.bool)
    for mask in (ready, torch.where(ready, 0.0, -1e30)):
        model.set_attn_implementation("eager")
        wanted = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, wanted, rtol=1e-5, atol=1e-5)
    model.add_adapter("p", config="prefix_tuning", set_active=True)
    found = model(**batch()).logits
    assert len(openly) == 6
    model.set_attn_implementation("eager")
    real = batch()["attention_mask"].bool()
    torch.testing.assert_close(found[real], model(**batch()).logits[real], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_masks_of_a_memory_may_change_between_layers(openly) -> None:
    flex.enable()
    torch.manual_seed(0)
    attn = Attention(16, Heads(2), cross=True).make().eval()
    for p in attn.parameters():
        p.normal_(std=0.3)
    x, memory, found = torch.randn(2, 5, 16), torch.randn(2, 7, 16), {}
    for name in ("eager", "flex"):
        ctx = Context.of(x)
        ctx.implementation, ctx.memory, found[name] = name, memory, []
        generator = torch.Generator().manual_seed(4)
        for _ in range(3):
            ctx.memory_mask = torch.rand(2, 1, 5, 7, generator=generator) < 0.5
            ctx.memory_mask[..., 0] = True
            found[name].append(attn(x, ctx))
    torch.testing.assert_close(found["flex"], found["eager"], rtol=1e-5, atol=1e-5)
    assert len(openly) == 3


@torch.no_grad()
def test_windows_by_position_reach_flex_attention(openly) -> None:
    """A draft's windows go by the positions that its caller knows, not by slots."""
    said = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "block_size": 4,
            "target_layer_ids": [0, 1], **{k: v for k, v in SIZES.items() if k != "vocab_size"}}  # fmt: skip
    torch.manual_seed(0)
    draft = phyla.MuseGlimmerAssistantModel(phyla.MuseGlimmerAssistantConfig(**said)).eval()
    blanks, states = torch.randn(2, 4, 32), torch.randn(2, 7, 64)
    places = torch.tensor([[-1, -1, 0, 1, 2, 3, 4, 7, 8, 9, 10], [*range(11)]])
    wanted = draft.fill(blanks, states, places, places >= 0, None)
    draft.set_attn_implementation("flex_attention")
    found = draft.fill(blanks, states, places, places >= 0, None)
    assert len(openly) == 2
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_calls_that_flex_attention_cannot_take_say_so(openly, caplog) -> None:
    caplog.set_level(logging.DEBUG, "phyla.fast.flex")
    model = tiny("Gemma2", sliding_window=6, attn_logit_softcapping=2.0, attention_dropout=0.5)
    model.set_attn_implementation("eager")
    wanted = model(**batch(), output_attentions=True)
    wanted.logits.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation("flex_attention")
    found = model(**batch())  # with its cap, and gradients
    found.logits.sum().backward()
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        weights = model(**batch(), output_attentions=True).attentions
        torch.testing.assert_close(weights, wanted.attentions, rtol=1e-5, atol=1e-5)
        model.train()(**batch())
        model.eval().double()(**batch())
    assert not openly
    said = " ".join(caplog.messages)
    for why in ("gradients on a CPU", "weights are looked at", "dropout of weights", "float64"):
        assert why in said


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@torch.no_grad()
def test_flex_attention_is_a_part_of_a_compiled_graph() -> None:
    model = tiny("Gemma2", sliding_window=6, attn_logit_softcapping=2.0)
    model.set_attn_implementation("eager")
    wanted = model(**batch()).logits
    model.set_attn_implementation("flex_attention")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    found = torch.compile(model, fullgraph=True, backend=backend)(**batch()).logits
    real = batch()["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
    assert str(graphs[0].graph).count("flex_attention") >= 2


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@torch.no_grad()
def test_flex_attention_compiled_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(flex, "LEAST", 16)
    monkeypatch.setattr(flex, "broken", [])
    monkeypatch.setattr(flex, "shapes", shapes := set())
    monkeypatch.setattr(flex, "SHAPES", 1)
    model = tiny("Gemma2", num_hidden_layers=1, attn_logit_softcapping=2.0, sliding_window=None)
    for length in (33, 50):  # the second shape is one too many
        model.set_attn_implementation("eager")
        wanted = model(**batch(2, length)).logits
        model.set_attn_implementation("flex_attention")
        real = batch(2, length)["attention_mask"].bool()
        torch.testing.assert_close(model(**batch(2, length)).logits[real], wanted[real], rtol=1e-4, atol=1e-5)
        assert len(shapes) == 1
    assert not flex.broken


def test_a_compiler_that_fails_is_not_asked_again(monkeypatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def run(*inputs, **named):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(flex, "run", run)
    monkeypatch.setattr(flex, "LEAST", 2)
    monkeypatch.setattr(flex, "broken", [])
    model = tiny()
    wanted = model(**batch()).logits
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits, wanted, rtol=1e-5, atol=1e-5)
    assert len(flex.broken) == 1


def mine(module, query, key, value, attention_mask, scaling, dropout=0.0, **more):
    """A function as users of the public interface write it."""
    groups = module.num_key_value_groups
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), dropout, module.training)
    seen.append((module.layer_idx, module.is_causal, sorted(more)))
    return (weights @ value).transpose(1, 2).contiguous(), weights


seen: list = []


@pytest.fixture
def registered():
    seen.clear()
    phyla.AttentionInterface.register("mine", mine)
    yield "mine"
    del phyla.ALL_ATTENTION_FUNCTIONS["mine"]
    assert "own:mine" not in attending.kernels


@torch.no_grad()
def test_attention_functions_of_the_caller(registered) -> None:
    model = tiny("Mistral", sliding_window=5)
    wanted = model(**batch()).logits
    model.set_attn_implementation(registered)
    found = model(**batch(), output_attentions=True)
    real = batch()["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], wanted[real], rtol=1e-5, atol=1e-5)
    assert found.attentions[1].shape == (2, 4, 14, 14)
    assert seen == [(0, True, ["is_causal", "sliding_window"]), (1, True, ["is_causal", "sliding_window"])]
    assert phyla.ALL_ATTENTION_FUNCTIONS["mine"] is mine
    known = {"eager", "flex_attention", "sdpa", "mine"}
    assert set(phyla.ALL_ATTENTION_FUNCTIONS.valid_keys()) == known
    assert phyla.ALL_ATTENTION_FUNCTIONS.get_interface("mine", None) is mine
    text = phyla.T5EncoderModel(
        phyla.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    text.eval()
    wanted = text(**batch()).last_hidden_state
    text.set_attn_implementation(registered)  # biases are in the mask
    torch.testing.assert_close(text(**batch()).last_hidden_state[real], wanted[real], rtol=1e-5, atol=1e-5)
    model.config._attn_implementation = registered
    assert type(model)(model.config).implementation == "own:mine"


@pytest.mark.parametrize("recorded", [False, True])
def test_the_engine_computes_attention_as_the_model_does(openly, registered, recorded, monkeypatch) -> None:
    if recorded:  # steps on fixed buffers, which have the fused call alone
        monkeypatch.setitem(captured.RECORDERS, "cpu", captured.record_nothing)
        reserve = Pages.reserve

        def zeroed(self, *given):  # as on CUDA
            fresh = self.keys is None
            keys, values = reserve(self, *given)
            return (keys.zero_(), values.zero_()) if fresh else (keys, values)

        monkeypatch.setattr(Pages, "reserve", zeroed)
    model = tiny("Gemma2", sliding_window=30, attn_logit_softcapping=1.0, tie_word_embeddings=False)
    prompts = [list(range(5, 12)), list(range(20, 31))]
    asked = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}

    def tokens(name: str) -> list[list[int]]:
        model.set_attn_implementation(name)
        with phyla.Engine(model, page_size=8, max_memory=1 << 22) as engine:
            return [output.generated_tokens for output in engine.generate(prompts, **asked)]

    wanted = tokens("eager")
    assert tokens("flex_attention") == wanted
    assert len(openly) >= 4
    assert tokens("sdpa") != wanted  # which has no cap
    assert tokens(registered) == tokens("sdpa")  # likewise
    assert len(seen) >= 20


@torch.no_grad()
def test_public_functions_can_be_wrapped(openly) -> None:
    model = tiny("Gemma2", attn_logit_softcapping=2.0)
    table = phyla.ALL_ATTENTION_FUNCTIONS
    wanted = model.set_attn_implementation("eager") or model(**batch()).logits
    for name in ("eager", "flex_attention", "sdpa"):
        table[f"my_{name}"] = lambda *args, name=name, **named: table[name](*args, **named)
        model.set_attn_implementation(f"my_{name}")
        found = model(**batch(), output_attentions=True)
        assert len(found.attentions) == 2  # those that a function does not give, step by step
        if name != "sdpa":
            real = batch()["attention_mask"].bool()
            torch.testing.assert_close(found.logits[real], wanted[real], rtol=1e-5, atol=1e-5)
        assert len(openly) == (0 if name == "eager" else 2)
        model.set_attn_implementation("sdpa")
        del table[f"my_{name}"]
    with pytest.raises(ArgumentError, match="no dropout"):
        table["flex_attention"](None, *torch.ones(3, 1, 1, 4, 16), None, dropout=0.5)


@pytest.mark.parametrize(
    ("asked", "meant"),
    {
        "paged|sdpa": "sdpa", "sdpa_paged": "sdpa", "paged|eager": "eager", "eager_paged": "eager",
        "paged_attention": "sdpa", "flex_attention": "flex", "kernels-community/metal-flash-sdpa": "sdpa",
    }.items(),
)  # fmt: skip
def test_names_that_mean_others(asked, meant) -> None:
    assert (
        phyla.LlamaForCausalLM(phyla.LlamaConfig(**SIZES, attn_implementation=asked)).implementation == meant
    )
    assert phyla.LlamaForCausalLM.from_config(phyla.LlamaConfig(**SIZES), asked).implementation == meant


def test_code_of_repositories_is_not_run(caplog) -> None:
    assert interface.enabled("kernels-community/flash-attn3@v1:flash_attn_func") == "sdpa"
    assert "is not run" in caplog.text
    with pytest.raises(ConfigError, match=r"somebody/kernel.*AttentionInterface\.register"):
        interface.enabled("somebody/kernel")
    with pytest.raises(ConfigError, match="flex_attention"):
        interface.enabled("flex_atention")
    for name in ("sdpa", "a|b", "a/b"):
        with pytest.raises(ArgumentError, match="name of its own"):
            phyla.AttentionInterface.register(name, mine)
    for version in (3, 4):
        with pytest.raises(MissingExtraError, match=f"flash_attention_{version}"):
            tiny().set_attn_implementation(f"flash_attention_{version}")


@torch.no_grad()
def test_parts_of_a_model_have_names_of_their_own(openly) -> None:
    golden = next(g for g in read_pack(PACKS / "llava.tar.xz") if g.class_name.endswith("Generation"))
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        load = phyla.LlavaForConditionalGeneration.from_pretrained
        wanted = load(folder)(**golden.inputs())
        model = load(folder, attn_implementation={"text_config": "flex_attention", "vision_config": "eager"})
    assert model.backbone.text.implementation == "flex"
    close(model(**golden.inputs()), wanted)
    assert [shape[2] for shape in openly] == [24, 24]
    model.set_attn_implementation({"vision_config": {"": "flex_attention"}, "text_config": "sdpa"})
    close(model(**golden.inputs()), wanted)
    assert [shape[2] for shape in openly[2:]] == [17, 17]
    assert model.config.vision_config._attn_implementation == "flex_attention"
    model.set_attn_implementation("sdpa")
    model(**golden.inputs())
    assert len(openly) == 4
    with pytest.raises(ConfigError, match=r"sound_config.*text_config"):
        model.set_attn_implementation({"sound_config": "eager"})


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("eager", {"generator": "eager", "question_encoder": "eager"}),
        ({"generator": "eager"}, {"generator": "eager", "question_encoder": "sdpa"}),
        ("eager", {"encoder": "eager", "decoder": "eager"}),
        ({"encoder": "eager", "": "sdpa"}, {"encoder": "eager", "decoder": "sdpa"}),
    ],
)
def test_models_within_a_model_are_told_when_it_is_loaded(asked, parts) -> None:
    family, name = ("rag", "RagModel") if "generator" in parts else ("encoder-decoder", "EncoderDecoderModel")
    golden = next(g for g in read_pack(PACKS / f"{family}.tar.xz") if g.class_name == name)
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        model = getattr(phyla, name).from_pretrained(folder, attn_implementation=asked)
    assert {part: getattr(model.backbone, part).implementation for part in parts} == parts


def test_flash_attention_with_windows_and_caps(monkeypatch) -> None:
    calls = []

    def flash_attn_func(q, k, v, **named):  # (batch, positions, heads, width)
        calls.append(named)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
        return y.transpose(1, 2), None

    monkeypatch.setattr(attending, "kernels", table := {})
    for module in (flash, sys.modules["phyla.blocks.attention"]):
        monkeypatch.setattr(module, "kernels", table)
    monkeypatch.setitem(
        sys.modules, "flash_attn_interface", types.SimpleNamespace(flash_attn_func=flash_attn_func)
    )
    monkeypatch.setattr(flash, "DEVICES", {"cpu"})
    model = tiny("Gemma2", sliding_window=6, attn_logit_softcapping=2.0).bfloat16()
    model.set_attn_implementation("flash_attention_3")
    ids = batch()["input_ids"]
    out = model(ids, use_cache=True)
    scale = {"softmax_scale": model.config.query_pre_attn_scalar**-0.5, "softcap": 2.0, "causal": True}
    assert calls == [{**scale, "window_size": (5, 0)}, scale]
    model(ids[:, :3], past_key_values=out.past_key_values)  # the last of all keys that are kept
    assert calls[2:] == [{**scale, "window_size": (5, 0)}, scale]
    model(**batch())  # padding: step by step, with the cap
    assert len(calls) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
def test_flex_attention_on_cuda(training) -> None:
    model = tiny("Gemma2", sliding_window=64, attn_logit_softcapping=5.0).cuda()
    inputs = {name: t.cuda() for name, t in batch(2, 300).items()}
    real = inputs["attention_mask"].bool()
    logits, grads = [], []
    for name in ("eager", "flex_attention"):
        model.set_attn_implementation(name)
        with torch.set_grad_enabled(training):
            logits.append(model(**inputs).logits[real])
        if training:
            logits[-1].square().mean().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
            model.zero_grad()
    torch.testing.assert_close(logits[1], logits[0], rtol=2e-3, atol=2e-3)
    for one, other in zip(*grads, strict=True) if training else ():
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
    assert not flex.broken
