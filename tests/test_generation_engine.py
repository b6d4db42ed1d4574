"""The engine: each text's tokens are those that it has alone, and memory is always given back."""

import asyncio
import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_generation_caches import FAMILIES, tiny

import phyla
from phyla.errors import (
    ArgumentError,
    GenerationError,
    NonFiniteLogitsError,
    QueueFull,
    UnknownArgumentError,
)
from phyla.generation.engine.pages import PagePool, page_keys

EXAMPLES = int(os.environ.get("PHYLA_EXAMPLES", "15"))


def prompts(count, seed=0, longest=40):
    numbers = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=numbers).tolist()
    return [torch.randint(2, 60, (n,), generator=numbers).tolist() for n in lengths]


def is_clean(engine):
    return engine.pool.available == engine.pool.count and not any(engine.pool.owners) and not engine.open


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_generate(family):
    model, given_prompts = tiny(family), prompts(7)
    want = [model.generate(torch.tensor([p]), max_new_tokens=9)[0, -9:].tolist() for p in given_prompts]
    ways = [{"max_batch_tokens": 20, "page_size": 16, "max_requests": 3}, {"page_size": 8}]
    for way in ways:
        with phyla.Engine(model, **way) as engine:
            found = list(engine.generate(given_prompts, max_new_tokens=9))
            assert [o.generated_tokens for o in found] == want
            assert [o.prompt_ids for o in found][:1] != [[]]
            assert all(o.is_finished() and o.finish_reason == "length" for o in found)
            assert is_clean(engine)


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "mamba"])
def alone(request):
    """A model, and what texts give by themselves: (tokens, logprobs) of a prompt's number."""
    model, known, pool = tiny(request.param), {}, prompts(12, seed=3)

    def tokens(number, length):
        if (number, length) not in known:
            with phyla.Engine(model, page_size=16) as engine:
                out = engine.submit(pool[number], max_new_tokens=length, output_scores=True).result()
            known[number, length] = (out.generated_tokens, out.logprobs)
        return known[number, length]

    return model, pool, tokens


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_a_text_never_sees_its_neighbours(alone, data):
    model, pool, tokens = alone
    asked = data.draw(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), min_size=1, max_size=9))
    way = {
        "max_batch_tokens": data.draw(st.integers(1, 90)), "max_requests": data.draw(st.integers(1, 9)),
        "page_size": 16, "share_prefixes": data.draw(st.booleans()),
    }  # fmt: skip
    with phyla.Engine(model, **way) as engine:
        if (
            data.draw(st.booleans()) and engine.scheduler.paged
        ):  # so few pages that texts send each other away
            engine.pool = engine.scheduler.pool = PagePool(data.draw(st.integers(4, 8)), 16)
        handles = [engine.submit(pool[n], max_new_tokens=k, output_scores=True) for n, k in asked]
        for (number, length), handle in zip(asked, handles, strict=True):
            out = handle.result()
            assert (out.generated_tokens, out.logprobs) == tokens(number, length)
        assert is_clean(engine)


def test_texts_make_room_for_older_ones():
    model, given_prompts = tiny("llama"), prompts(6, longest=12)
    with phyla.Engine(model, page_size=4) as engine:
        want = [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=30)]
    with phyla.Engine(model, page_size=4) as engine:
        engine.pool = engine.scheduler.pool = PagePool(14, 4)
        found = [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=30)]
        assert engine.scheduler.preempted > 0
        assert found == want
        assert is_clean(engine)
        with pytest.raises(GenerationError, match="14 pages of 4 positions"):
            engine.submit(list(range(2, 50)), max_new_tokens=20)


def test_equal_beginnings_are_read_once():
    model, begin = tiny("llama"), prompts(1, longest=1)[0] * 33
    given_prompts = [begin + p for p in prompts(5, longest=6)]
    with phyla.Engine(model, page_size=8) as engine:
        found = [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=6)]
        assert engine.scheduler.shared == 4 * 32
        read = engine.tokens_read
        assert [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=6)] == found
        assert engine.tokens_read - read < 5 * 8 + 5 * 6
    with phyla.Engine(model, page_size=8, share_prefixes=False) as engine:
        assert [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=6)] == found
        assert engine.scheduler.shared == 0


def test_keys_of_pages_tell_what_came_before():
    one, two = page_keys(b"", [1, 2, 3, 4], 2), page_keys(b"", [9, 2, 3, 4], 2)
    assert len(one) == 2
    assert not set(one) & set(two)
    assert page_keys(b"", [1, 2, 3], 2) == one[:1]


@pytest.mark.parametrize("family", ["llama", "mamba", "t5"])
def test_several_texts_of_one_prompt(family):
    model, prompt = tiny(family), prompts(1, seed=5)[0]
    with phyla.Engine(model, page_size=8) as engine:
        asked = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 4, "top_k": 0}
        handle = engine.submit(prompt, seed=7, **asked)
        texts = [o.generated_tokens for o in handle.results()]
        assert len(texts) == 4
        assert len({tuple(t) for t in texts}) > 1
        again = engine.submit(prompt, seed=7, **asked)
        other = engine.submit(prompts(1, seed=6)[0], max_new_tokens=9)
        assert [o.generated_tokens for o in again.results()] == texts
        assert len(other.result().generated_tokens) == 9
        assert is_clean(engine)


def test_settings_of_single_requests():
    model, given_prompts = tiny("llama"), prompts(4)
    ways = [{}, {"do_sample": True, "temperature": 0.7, "top_k": 5}, {"repetition_penalty": 1.5},
            {"suppress_tokens": [3, 4], "min_new_tokens": 3}]  # fmt: skip
    with phyla.Engine(model) as engine:
        handles = [
            engine.submit(p, max_new_tokens=8, seed=i, **way)
            for i, (p, way) in enumerate(zip(given_prompts, ways, strict=True))
        ]
        for i, (p, way, handle) in enumerate(zip(given_prompts, ways, handles, strict=True)):
            want = model.generate(torch.tensor([p]), max_new_tokens=8, seed=[i], **way)[0, len(p) :].tolist()
            assert handle.result().generated_tokens == want
        end = handles[0].tokens[2]
        out = engine.submit(given_prompts[0], max_new_tokens=8, eos_token_id=end).result()
        assert out.finish_reason == "eos"
        assert out.generated_tokens[-1] == end
        told = engine.submit(
            given_prompts[0], max_new_tokens=8, stopping_criteria=[lambda ids, scores: ids.shape[1] > 4]
        ).result()
        assert told.finish_reason == "stop"
        torch.manual_seed(3)
        sampled = engine.submit(given_prompts[1], max_new_tokens=8, do_sample=True).result().generated_tokens
        torch.manual_seed(3)
        once_more = engine.submit(given_prompts[1], max_new_tokens=8, do_sample=True).result()
        assert once_more.generated_tokens == sampled


def test_queue_and_cancel():
    model, prompt = tiny("llama"), prompts(1)[0]
    with phyla.Engine(model, max_requests=1, max_queue_size=2) as engine:
        first, second = (engine.submit(prompt, max_new_tokens=20) for _ in range(2))
        with pytest.raises(QueueFull, match="max_queue_size"):
            engine.submit(prompt, max_new_tokens=20)
        engine.step()
        second.cancel()
        first.cancel()
        first.cancel()
        assert first.result().finish_reason == "cancelled"
        assert len(first.tokens) == 1
        assert is_clean(engine)
        endless = engine.generate(([2 + i % 7] for i in itertools.count()), max_new_tokens=3)
        assert len([next(endless) for _ in range(9)]) == 9
        endless.close()
        assert is_clean(engine)
        left = engine.submit(prompt, max_new_tokens=4)
    assert left.result().finish_reason == "cancelled"


def test_streams_side_by_side():
    model, given_prompts = tiny("llama"), prompts(4)
    with phyla.Engine(model) as engine:
        want = [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=7)]
        assert list(engine.submit(given_prompts[0], max_new_tokens=7)) == want[0]
        steps = engine.steps

        async def read(prompt, most):
            tokens = []
            stream = engine.stream(prompt, max_new_tokens=7)
            async for token in stream:
                tokens.append(token)
                if len(tokens) == most:
                    await stream.aclose()
                    break
            return tokens

        async def everything():
            counts = (7, 7, 7, 3)
            return await asyncio.gather(*(read(p, n) for p, n in zip(given_prompts, counts, strict=True)))

        found = asyncio.run(everything())
        assert found == [*want[:3], want[3][:3]]
        assert engine.steps - steps < 4 * 7
        assert is_clean(engine)


def test_an_interrupt_leaves_nothing_behind(monkeypatch):
    model, given_prompts = tiny("llama"), prompts(5)
    with phyla.Engine(model, page_size=4, max_batch_tokens=16) as engine:
        want = [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=6)]
        engine.pool.clear()
        run, calls = engine._run, itertools.count()

        def interrupted(*given):
            if next(calls) == 3:
                raise KeyboardInterrupt
            return run(*given)

        monkeypatch.setattr(engine, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate(given_prompts, max_new_tokens=6))
        assert is_clean(engine)
        assert [o.generated_tokens for o in engine.generate(given_prompts, max_new_tokens=6)] == want


def test_one_bad_text_does_not_hurt_others():
    model, prompt = tiny("llama"), prompts(1)[0]
    with phyla.Engine(model) as engine:
        bad = engine.submit(
            prompt, max_new_tokens=4, logits_processor=[lambda ids, scores: scores * float("nan")]
        )
        good = engine.submit(prompt, max_new_tokens=4)
        assert len(good.result().generated_tokens) == 4
        with pytest.raises((GenerationError, NonFiniteLogitsError), match="finite"):
            bad.result()
        assert is_clean(engine)


def test_generate_batch_keeps_the_order():
    model, given_prompts = tiny("llama"), prompts(5)
    found = model.generate_batch(given_prompts, max_new_tokens=5)
    assert [o.prompt_ids for o in found.values()] == given_prompts
    assert all(len(o.generated_tokens) == 5 and o.first_token_time for o in found.values())
    assert list(found) == [o.request_id for o in found.values()]


def test_what_the_engine_lacks_is_said():
    model = tiny("llama")
    with phyla.Engine(model) as engine:
        with pytest.raises(GenerationError, match="diversity_penalty above 0"):
            engine.submit([3, 4], num_beams=2, num_beam_groups=2, max_new_tokens=2)
        with pytest.raises(GenerationError, match="goes with greedy"):
            engine.submit([3, 4], num_beams=2, prompt_lookup_num_tokens=2, max_new_tokens=2)
        with pytest.raises(UnknownArgumentError, match="neither a setting"):
            engine.submit([3, 4], max_new_token=2)
        with pytest.raises(ArgumentError, match="one list of token ids"):
            engine.submit([[3, 4], [5, 6]], max_new_tokens=2)
    with pytest.raises(ArgumentError, match="page_size"):
        phyla.Engine(model, page_size=0)
    with pytest.raises(ArgumentError, match="at least one page"):
        phyla.Engine(model, max_memory=10)
    with pytest.raises(GenerationError, match="AutoModelForCausalLM"):
        config = phyla.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
        phyla.Engine(phyla.BertModel(config))


def test_progress_is_counted(capsys):
    model = tiny("llama")
    found = model.generate_batch(prompts(3), progress_bar=True, max_new_tokens=2)
    assert len(found) == 3
    assert "3 of 3 done" in capsys.readouterr().err
