"""The engine, request by request: grammars, adapters of one's own, and pages that windows leave behind."""

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import is_clean, prompts
from test_generation_grammar import ARITHMETIC, PERSON, model, tokenizer

import phyla
from phyla.adapters import AdapterSetup, Average, Fuse, Stack
from phyla.errors import AdapterError, GenerationError, UnknownArgumentError
from phyla.generation import Grammar
from phyla.generation.engine.pages import PagePool

__all__ = ["model", "tokenizer"]  # fixtures
KINDS = ("lora", "seq_bn", "ia3", "prefix_tuning")


def test_grammars_of_single_requests(model, tokenizer):
    grammars = [
        Grammar.json(PERSON),
        Grammar.ebnf(ARITHMETIC),
        Grammar.choices(["yes", "no", "perhaps"]),
        None,
    ]
    ways = [{"max_new_tokens": 90}, {"max_new_tokens": 9, "do_sample": True}, {"max_new_tokens": 7}, {}]
    given = [[40 + i, 41, 42, 43] for i in range(4)]
    with phyla.Engine(model, page_size=8, max_batch_tokens=20) as engine:
        handles = [
            engine.submit(p, grammar=g, tokenizer=tokenizer, seed=3, **{"max_new_tokens": 12, **way})
            for p, g, way in zip(given, grammars, ways, strict=True)
        ]
        found = [h.result().generated_tokens for h in handles]
        for p, g, way, tokens in zip(given, grammars, ways, found, strict=True):
            seed = {"seed": [3]} if way.get("do_sample") else {}
            want = model.generate(
                torch.tensor([p]), grammar=g, tokenizer=tokenizer, **{"max_new_tokens": 12, **way}, **seed
            )
            assert tokens == want[0, 4:].tolist()
        assert tokenizer.decode(found[2], skip_special_tokens=True) in ("yes", "no", "perhaps")
        several = engine.submit(
            given[0], grammar=grammars[1], tokenizer=tokenizer, do_sample=True, seed=1,
            num_return_sequences=3, max_new_tokens=8,
        )  # fmt: skip
        for output in several.results():
            text = tokenizer.decode(output.generated_tokens, skip_special_tokens=True)
            assert text
            assert set(text) <= set("0123456789+-()")
        with pytest.raises(GenerationError, match="tokenizer"):
            engine.submit(given[0], grammar=grammars[0], max_new_tokens=9)
        assert is_clean(engine)


def adapted(family="llama"):
    made = tiny(family)
    for kind in KINDS:
        made.add_adapter(kind, config=kind)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if any(kind in name for kind in KINDS):
                p.add_(torch.randn_like(p) * 0.1)
    made.set_active_adapters(None)
    return made.eval()


def test_adapters_of_single_requests():
    made, given = adapted(), prompts(8, longest=20)
    names = [*KINDS, None, Stack("lora", "ia3"), "lora", "seq_bn"]
    want = [
        made.generate(torch.tensor([p]), max_new_tokens=6, adapter_names=[n])[0, -6:].tolist()
        for p, n in zip(given, names, strict=True)
    ]
    assert want[0] != made.generate(torch.tensor([given[0]]), max_new_tokens=6)[0, -6:].tolist()
    with phyla.Engine(made, page_size=8, max_batch_tokens=40) as engine:
        handles = [
            engine.submit(p, max_new_tokens=6, adapter_names=n) for p, n in zip(given, names, strict=True)
        ]
        assert [h.result().generated_tokens for h in handles] == want
        assert is_clean(engine)
    assert not made.active_adapters


def test_rows_of_other_adapters_go_through_the_model_at_once():
    made, given = adapted(), prompts(6, longest=20)
    names = ["lora", None, "seq_bn", "ia3", Stack("lora", "seq_bn"), "lora"]
    with phyla.Engine(made, page_size=8) as engine:
        alone = [
            engine.submit(p, max_new_tokens=6, adapter_names=n, output_scores=True).result()
            for p, n in zip(given, names, strict=True)
        ]
    calls = []
    made.register_forward_pre_hook(lambda *_: calls.append(1))
    with phyla.Engine(made, page_size=8) as engine:
        handles = [
            engine.submit(p, max_new_tokens=6, adapter_names=n, output_scores=True)
            for p, n in zip(given, names, strict=True)
        ]
        for handle, want in zip(handles, alone, strict=True):
            found = handle.result()
            assert found.generated_tokens == want.generated_tokens
            torch.testing.assert_close(
                torch.tensor(found.logprobs), torch.tensor(want.logprobs), rtol=1e-5, atol=1e-5
            )
        assert len(calls) == engine.steps
        assert is_clean(engine)
        calls.clear()
        steps = engine.steps
        both = [engine.submit(given[0], max_new_tokens=4, adapter_names=n) for n in ("prefix_tuning", "lora")]
        assert all(len(h.result().generated_tokens) == 4 for h in both)
        assert len(calls) > engine.steps - steps  # prefixes stand in keys: they run apart
    assert not made.active_adapters


def test_equal_prompts_of_other_adapters_share_no_pages():
    made, prompt = adapted(), prompts(1, longest=1)[0] * 33
    with phyla.Engine(made, page_size=8) as engine:
        base = engine.submit(prompt, max_new_tokens=4).result().generated_tokens
        one = engine.submit(prompt, max_new_tokens=4, adapter_names="lora").result().generated_tokens
        assert engine.scheduler.shared == 0
        again = engine.submit(prompt, max_new_tokens=4, adapter_names=["lora"]).result().generated_tokens
        assert (one, engine.scheduler.shared) == (again, 32)
        made.set_active_adapters("lora")  # those that are active at its beginning serve a request
        late = engine.submit(prompt, max_new_tokens=4)
        made.set_active_adapters(None)
        with AdapterSetup("ia3"):
            assert late.result().generated_tokens == one
            plain = engine.submit(prompt, max_new_tokens=4, adapter_names="__base__")
        assert plain.result().generated_tokens == base
        assert engine.scheduler.shared == 96
    wants = [
        made.generate(torch.tensor([prompt]), max_new_tokens=4, adapter_names=[n]) for n in (None, "lora")
    ]
    assert [w[0, 33:].tolist() for w in wants] == [base, one]


def test_an_encoder_reads_with_the_adapter():
    made, given = adapted("t5"), prompts(3)
    names = ["lora", None, "seq_bn"]
    want = [
        made.generate(torch.tensor([p]), max_new_tokens=6, adapter_names=[n])[0, 1:].tolist()
        for p, n in zip(given, names, strict=True)
    ]
    with phyla.Engine(made) as engine:
        handles = [
            engine.submit(p, max_new_tokens=6, adapter_names=n) for p, n in zip(given, names, strict=True)
        ]
        assert [h.result().generated_tokens for h in handles] == want


def test_adapters_that_are_not_there_are_named():
    made = adapted()
    with phyla.Engine(made) as engine:
        with pytest.raises(AdapterError, match="nobody"):
            engine.submit([3, 4], max_new_tokens=2, adapter_names="nobody")
        with pytest.raises(AdapterError, match="1 rows"):
            engine.submit([3, 4], max_new_tokens=2, adapter_names=["ia3", "lora"])
        gone, kept = (engine.submit([3, 4], max_new_tokens=2, adapter_names=n) for n in ("ia3", None))
        made.delete_adapter("ia3")
        assert len(kept.result().generated_tokens) == 2
        with pytest.raises(AdapterError, match="ia3"):
            gone.result()
        assert is_clean(engine)
    with phyla.Engine(tiny("llama")) as engine, pytest.raises(GenerationError, match="no adapters"):
        engine.submit([3, 4], max_new_tokens=2, adapter_names="lora")


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_pages_behind_a_window_are_given_back(family):
    made, given = tiny(family), prompts(5, seed=2)
    want = [made.generate(torch.tensor([p]), max_new_tokens=40)[0, -40:].tolist() for p in given]
    with phyla.Engine(made, page_size=4, max_batch_tokens=16) as engine:
        handles = [engine.submit(p, max_new_tokens=40) for p in given]
        most = 0
        while engine.open:
            engine.step()
            most = max([most, *(sum(p >= 0 for p in row.text.pages) for row in engine.scheduler.running)])
        assert [h.result().generated_tokens for h in handles] == want
        assert most <= engine.scheduler.span(1000)
        assert (engine.scheduler.span(1000) == 7) == (family == "mistral")
        assert is_clean(engine)
        again = [o.generated_tokens for o in engine.generate(given, max_new_tokens=40)]
        assert again == want
    if family == "mistral":  # a text that is longer than the memory
        with phyla.Engine(made, page_size=4, max_batch_tokens=16) as engine:
            engine.pool = engine.scheduler.pool = PagePool(7, 4)
            assert engine.submit(given[0], max_new_tokens=40).result().generated_tokens == want[0]
            found = [o.generated_tokens for o in engine.generate(given, max_new_tokens=40)]
            assert found == want
            texts = engine.submit(given[1], max_new_tokens=20, num_return_sequences=2, do_sample=True, seed=1)
            assert [len(o.generated_tokens) for o in texts.results()] == [20, 20]
            assert is_clean(engine)


def test_what_needs_generate_is_named():
    with phyla.Engine(tiny("llama")) as engine:
        for name, told in (("custom_generate", "loop of one's own"), ("row_settings", "settings")):
            with pytest.raises(GenerationError, match=f"no {name}.*{told}"):
                engine.submit([3, 4], max_new_tokens=2, **{name: object()})
        with pytest.raises(UnknownArgumentError, match="pixel_values"):
            engine.submit([3, 4], max_new_tokens=2, pixel_values=torch.zeros(1, 3, 4, 4))


def test_averages_and_fusions_of_single_requests():
    made, given = tiny("llama"), prompts(4, longest=12)
    for name, kind in (("a", "lora"), ("b", "lora"), ("c", "seq_bn"), ("d", "seq_bn")):
        made.add_adapter(name, config=kind)
    made.add_adapter_fusion(["c", "d"])
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "adapters" in name:
                p.add_(torch.randn_like(p) * 0.1)
    made.set_active_adapters(None)
    names = [Average("a", "b", weights=[0.3, 0.7]), Fuse("c", "d"), "a", None]
    want = []
    for p, n in zip(given, names, strict=True):
        made.set_active_adapters(n)
        want.append(made.eval().generate(torch.tensor([p]), max_new_tokens=6)[0, -6:].tolist())
    made.set_active_adapters(None)
    with phyla.Engine(made, page_size=8) as engine:
        handles = [
            engine.submit(p, max_new_tokens=6, adapter_names=n) for p, n in zip(given, names, strict=True)
        ]
        assert [h.result().generated_tokens for h in handles] == want
        assert not engine.parted
        assert is_clean(engine)
