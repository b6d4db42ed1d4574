"""What `generate` and the engine must agree on where their paths meet: lengths, endings, full queues."""

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import is_clean

import phyla
from phyla.errors import ArgumentError, GenerationError, UnknownArgumentError

PROMPT = [9, 8, 7, 6, 5, 4, 3]
OWN = {"num_beams": 2, "guidance_scale": 1.5}  # goes on in a call of its own


class Told(list):
    """A streamer that keeps what it gets, and calls back."""

    def __init__(self, then=None):
        super().__init__()
        self.then = then

    def put(self, value):
        self.append(value.tolist())
        if self.then is not None:
            self.then(self)

    def end(self):
        self.append("end")
        if self.then is not None:
            self.then(self)


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_contrastive_search_reads_the_whole_prompt_and_ends_without_a_candidate(family, low_memory):
    model, ids = tiny(family), torch.tensor([PROMPT, PROMPT[::-1]])
    way = {"max_new_tokens": 6, "penalty_alpha": 0.6, "top_k": 4, "eos_token_id": None}
    want = model.generate(ids, low_memory=low_memory, **way)
    for more in ({"prefill_chunk_size": 2}, {"low_memory": not low_memory}):
        assert torch.equal(model.generate(ids, **{"low_memory": low_memory, **way, **more}), want)
    out = model.generate(ids, low_memory=low_memory, return_dict_in_generate=True, **way)
    assert out.past_key_values.length == want.shape[1] - 1
    behind = model(want[:, -1:], past_key_values=out.past_key_values, use_cache=True).logits[:, -1]
    torch.testing.assert_close(behind, model(want).logits[:, -1], atol=1e-5, rtol=1e-4)
    with phyla.Engine(model) as engine:
        assert engine.submit(PROMPT, **way).result().generated_tokens == want[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("own", [{}, OWN])
@pytest.mark.parametrize("when", ["last token", "end"])
def test_a_streamer_may_cancel_a_request_that_is_ending(own, when):
    model = tiny("llama")
    with phyla.Engine(model) as engine:
        asked = {"max_new_tokens": 4, "eos_token_id": None, **own}
        want = engine.submit(PROMPT, **asked).result().generated_tokens

        def cancel(told):
            if (told[-1] == "end") if when == "end" else len(told) == 5:
                handle.cancel()

        streamer = Told(cancel)
        handle = engine.submit(PROMPT, streamer=streamer, **asked)
        while not handle.finished:
            engine.step()
        assert handle.error is None
        assert handle.tokens == want
        assert streamer.count("end") == 1
        assert is_clean(engine)


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 1}])
def test_a_forced_end_stands_where_the_settings_say(way):
    """The caller's own MaxLengthCriteria moves the end of the text, not the place of the forced token."""
    model, asked = tiny("llama"), {"max_new_tokens": 3, "forced_eos_token_id": 4, "eos_token_id": 2, **way}
    longer = [phyla.MaxLengthCriteria(len(PROMPT) + 6)]
    seed = {"seed": [1]} if "seed" in way else {}
    want = model.generate(torch.tensor([PROMPT]), stopping_criteria=longer, **{**asked, **seed})
    assert int(want[0, len(PROMPT) + 2]) == 4
    with phyla.Engine(model) as engine:
        found = engine.submit(PROMPT, stopping_criteria=longer, **asked).result().generated_tokens
    assert found == want[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    "way", [{"num_beams": 2}, {"penalty_alpha": 0.6, "top_k": 3}, {"guidance_scale": 1.5}, OWN]
)
def test_an_interrupt_ends_what_was_choosing_together_and_nothing_else(way):
    model, calls = tiny("llama"), []

    def interrupt(ids, scores):
        calls.append(len(ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores

    with phyla.Engine(model) as engine:
        want = engine.submit([5, 6], max_new_tokens=6).result().generated_tokens
        torn = engine.submit(PROMPT, max_new_tokens=6, logits_processor=[interrupt], **way)
        other = engine.submit([5, 6], max_new_tokens=6)
        with pytest.raises(KeyboardInterrupt):
            other.result()
        assert other.result().generated_tokens == want
        assert torn.finished
        with pytest.raises(KeyboardInterrupt):
            torn.result()
        assert is_clean(engine)


def test_the_engine_waits_where_others_fill_its_queue():
    model = tiny("llama")
    with phyla.Engine(model, max_queue_size=1, max_requests=1) as engine:
        other = engine.submit(PROMPT, max_new_tokens=3)
        found = [o.generated_tokens for o in engine.generate([[5, 6], [7, 8]], max_new_tokens=3)]
        assert other.finished
        assert found == [
            engine.submit(p, max_new_tokens=3).result().generated_tokens for p in ([5, 6], [7, 8])
        ]
        assert is_clean(engine)
    with pytest.raises(ArgumentError, match="max_queue_size must be at least 1"):
        phyla.Engine(model, max_queue_size=0)


def test_a_streamer_of_no_new_tokens_gets_the_prompt():
    model, want = tiny("llama"), Told()
    model.generate(torch.tensor([PROMPT]), max_new_tokens=0, streamer=want)
    for own in ({}, OWN):
        streamer = Told()
        with phyla.Engine(model) as engine:
            engine.submit(PROMPT, max_new_tokens=0, streamer=streamer, **own)
        assert streamer == want == [[PROMPT], "end"]


@pytest.mark.parametrize("alike", [False, True])
def test_names_of_methods_are_no_settings(alike):
    model = tiny("llama")
    with phyla.Engine(model) as engine, pytest.raises(UnknownArgumentError, match="validate"):
        engine.submit(PROMPT, max_new_tokens=1, validate=True)
    with pytest.raises(UnknownArgumentError, match="validate"):
        model.generate(torch.tensor([PROMPT]), max_new_tokens=1, validate=True, batch_invariant=alike)


@pytest.mark.parametrize("name", ["stopping_criteria", "logits_processor"])
def test_what_is_no_list_is_named(name):
    model = tiny("llama")
    for wrong in (len, [5]):
        with phyla.Engine(model) as engine, pytest.raises(ArgumentError, match=f"{name} must be a list"):
            engine.submit(PROMPT, max_new_tokens=1, **{name: wrong})


def test_a_negative_prompt_needs_a_scale_and_1_changes_nothing():
    model, negative = tiny("llama"), torch.tensor([PROMPT[:2]])
    with phyla.Engine(model) as engine:
        want = engine.submit(PROMPT, max_new_tokens=3).result().generated_tokens
        asked = engine.submit(PROMPT, max_new_tokens=3, guidance_scale=1.0, negative_prompt_ids=negative)
        assert asked.result().generated_tokens == want
        with pytest.raises(GenerationError, match="need a guidance_scale"):
            engine.submit(PROMPT, max_new_tokens=3, negative_prompt_ids=negative)


@pytest.mark.parametrize("family", ["mamba", "llama"])
@pytest.mark.parametrize("way", [{"num_beams": 3}, {"num_beams": 2, "length_penalty": 0.0}])
def test_guided_beams_give_what_they_give_without_a_cache(family, way):
    model, ids = tiny(family), torch.tensor([PROMPT, PROMPT[::-1]])
    asked = {"max_new_tokens": 7, "guidance_scale": 1.6, "negative_prompt_ids": ids[:, :3], **way}
    assert torch.equal(model.generate(ids, **asked), model.generate(ids, use_cache=False, **asked))


def test_guided_drafts_of_a_recurrent_model_change_no_token():
    model, ids = tiny("mamba"), torch.tensor([PROMPT * 2, PROMPT[::-1] * 2])
    asked = {"max_new_tokens": 7, "guidance_scale": 1.6}
    want = model.generate(ids, **asked)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **asked), want)
