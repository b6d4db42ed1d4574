"""compile_config: with a static cache the decode step is one compiled graph, made once."""

import pytest
import torch

import phyla
from phyla.errors import GenerationError
from phyla.generation import captured

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
ASKED = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False, "max_new_tokens": 12}


class Counting:
    """A backend that runs graphs as they are; how many it was given, and how often they ran."""

    def __init__(self):
        self.graphs, self.runs = [], 0

    def __call__(self, graph, inputs):
        self.graphs.append(graph)

        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture(autouse=True)
def clean():
    yield
    torch._dynamo.reset()
    captured._kept.clear()
    captured._refused.clear()


def tiny(kind="Llama", **changes):
    torch.manual_seed(0)
    model = getattr(phyla, f"{kind}ForCausalLM")(getattr(phyla, f"{kind}Config")(**{**SIZES, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.3)
    return model.eval()


def prompt(rows=2, length=7):
    ids = torch.randint(2, 60, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_steps_are_one_graph_without_recompiling(kind) -> None:
    model, backend = tiny(kind), Counting()
    wanted = model.generate(**prompt(), **ASKED)
    asked = {"cache_implementation": "static", "compile_config": phyla.CompileConfig(backend=backend)}
    assert torch.equal(model.generate(**prompt(), **asked, **ASKED), wanted)
    assert (len(backend.graphs), backend.runs) == (1, 12)  # when it was made, and 11 tokens behind the first
    # another call of as many rows has it ready; one with longer memory makes its own
    assert torch.equal(model.generate(**prompt(), **asked, **ASKED), wanted)
    assert (len(backend.graphs), backend.runs) == (1, 23)
    model.generate(**prompt(2, 251), **asked, **ASKED)
    assert len(backend.graphs) == 2
    model.generate(**prompt(), **{**asked, "cache_implementation": "hybrid"}, **ASKED)
    assert len(backend.graphs) == 2


def test_sampling_scores_and_streams_come_from_compiled_steps() -> None:
    model, backend = tiny(), Counting()
    asked = {**ASKED, "do_sample": True, "seed": 3, "output_logits": True, "return_dict_in_generate": True}
    wanted = model.generate(**prompt(), **asked)
    found = model.generate(
        **prompt(), **asked, cache_implementation="static",
        compile_config={"backend": backend, "mode": "default"},
    )  # fmt: skip
    assert torch.equal(found.sequences, wanted.sequences)
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert len(backend.graphs) == 1


def test_what_is_not_compiled(caplog) -> None:
    model, backend = tiny(), Counting()
    asked = {"cache_implementation": "static", "compile_config": phyla.CompileConfig(backend=backend)}
    wanted = model.generate(**prompt(), **ASKED)
    for changes in ({"disable_compile": True}, {"cache_implementation": "dynamic"}, {"num_beams": 2}):
        model.generate(**prompt(), **{**asked, **changes}, **ASKED)
    slopes = tiny("Falcon", alibi=True, new_decoder_architecture=False)
    slopes.generate(**prompt(), **asked, **ASKED)  # slopes: another work at every length
    assert not backend.graphs

    def broken(graph, inputs):
        raise RuntimeError("no such target")

    found = model.generate(
        **prompt(), cache_implementation="static", compile_config=phyla.CompileConfig(backend=broken), **ASKED
    )
    assert torch.equal(found, wanted)
    assert "compile_config is without effect" in caplog.text
    for wrong in (3, {"backendd": "eager"}):
        with pytest.raises(GenerationError, match="compile_config must be"):
            model.generate(**prompt(), cache_implementation="static", compile_config=wrong, **ASKED)


def test_inductor_and_aot_backends_are_given_their_options() -> None:
    model = tiny()
    wanted = model.generate(**prompt(), **ASKED)
    config = phyla.CompileConfig(backend="aot_eager", fullgraph=True, dynamic=False)
    found = model.generate(**prompt(), cache_implementation="static", compile_config=config, **ASKED)
    assert torch.equal(found, wanted)
    assert len(captured._kept[model]) == 1
    from phyla.generation.compiled import _arguments

    named = _arguments(phyla.CompileConfig())
    assert (named["backend"], named["mode"], named["fullgraph"]) == ("inductor", "reduce-overhead", True)
    named = _arguments(phyla.CompileConfig(options={"max_autotune": True}))
    assert named["options"] == {"max_autotune": True}
    assert "mode" not in named


@pytest.mark.gpu
def test_compiled_steps_on_cuda() -> None:
    model = tiny(hidden_size=256, num_hidden_layers=4).cuda()
    inputs = {name: t.cuda() for name, t in prompt().items()}
    wanted = model.generate(**inputs, disable_compile=True, **ASKED)
    found = model.generate(
        **inputs, cache_implementation="static", compile_config=phyla.CompileConfig(), **ASKED
    )
    assert torch.equal(found, wanted)
    assert len(captured._kept[model]) == 1
