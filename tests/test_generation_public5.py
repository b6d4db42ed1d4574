"""What newer public releases have beside: a manager of requests, top-h, ensembles, loops of one's own."""

import asyncio
import math

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import prompts
from tiny_model import FixedScores

import phyla
from phyla.errors import GenerationError, QueueFull
from phyla.generation import ContinuousBatchingConfig, TopHLogitsWarper, generate


def wanted(model, given, length):
    return [model.generate(torch.tensor([p]), max_new_tokens=length)[0, -length:].tolist() for p in given]


def test_a_manager_serves_requests_of_a_thread():
    model, given = tiny("llama"), prompts(5)
    want = wanted(model, given, 6)
    config = ContinuousBatchingConfig(page_size=8, max_batch_tokens=32, return_logprobs=True)
    with model.continuous_batching_context_manager(continuous_batching_config=config) as manager:
        names = manager.add_requests(given, max_new_tokens=6)
        found = {}
        for output in manager:
            found[output.request_id] = output
            if len(found) == len(given):
                break
        assert [found[name].generated_tokens for name in names] == want
        assert all(len(o.logprobs) == 6 and o.is_finished() for o in found.values())
        name = manager.add_request(given[0], "mine", max_new_tokens=5, streaming=True)
        told = [o.generated_tokens for o in manager.request_id_iter(name)]
        assert name == "mine"
        assert told[-1] == want[0][:5]
        assert [len(t) for t in told[:-1]] == sorted(len(t) for t in told[:-1])
        assert len(told) >= 2
        manager.add_request(given[0], "long", max_new_tokens=500)
        manager.cancel_request("long")
        cut = manager.get_result("long", timeout=5)
        assert cut.status == "cancelled"
        assert len(cut.generated_tokens) < 500
    assert not manager.is_running()
    assert manager.get_result(timeout=0.1) is None
    with pytest.raises(GenerationError, match="was stopped"):
        manager.add_request(given[0])


def test_a_manager_calls_back_and_is_kept():
    model, given = tiny("llama"), prompts(2)
    want = wanted(model, given, 4)

    async def ask(manager):
        heard, over = [], asyncio.Event()

        def note(output):
            heard.append(output.generated_tokens)
            if output.is_finished():
                over.set()

        manager.register_result_handler("a", note)
        manager.add_request(given[0], "a", max_new_tokens=4, streaming=True)
        await asyncio.wait_for(over.wait(), 10)
        return heard

    with model.continuous_batching_context_manager(persistent_manager=True) as manager:
        assert asyncio.run(ask(manager))[-1] == want[0]
    again = model.init_continuous_batching()
    assert again is manager
    again.start()
    again.add_request(given[1], max_new_tokens=4)
    assert again.get_result(timeout=10).generated_tokens == want[1]
    again.stop(hard_stop=True)
    again.destroy()
    assert model.init_continuous_batching() is not manager


def test_a_bad_request_of_a_manager_hurts_no_other():
    model, given = tiny("llama"), prompts(2)
    config = ContinuousBatchingConfig(max_queue_size=2)
    manager = model.init_continuous_batching(continuous_batching_config=config)
    manager.add_request(given[0], "bad", 4, logits_processor=[lambda ids, scores: scores * float("nan")])
    manager.add_request(given[1], "good", 4)
    with pytest.raises(QueueFull):
        manager.add_request(given[1])
    manager.start()
    manager.stop()
    found = {o.request_id: o for o in manager}
    assert found["bad"].status == "failed"
    assert "finite" in found["bad"].error
    assert found["good"].generated_tokens == wanted(model, given[1:], 4)[0]


def test_generate_batch_takes_the_public_configuration():
    model, given = tiny("llama"), prompts(3)
    config = ContinuousBatchingConfig(
        page_size=8, num_blocks=40, max_requests_per_batch=2, return_logprobs=True
    )
    found = model.generate_batch(given, continuous_batching_config=config, max_new_tokens=5)
    assert [o.generated_tokens for o in found.values()] == wanted(model, given, 5)
    assert all(len(o.logprobs) == 5 for o in found.values())
    mixed = [{"prompt": given[0], "num_beams": 2}, given[1], {"prompt": given[2], "repetition_penalty": 1.5}]
    outputs = list(model.generate_batch(mixed, max_new_tokens=5).values())
    ids = torch.tensor([given[0]])
    assert outputs[0].generated_tokens == model.generate(ids, num_beams=2, max_new_tokens=5)[0, -5:].tolist()
    assert outputs[1].generated_tokens == wanted(model, given[1:2], 5)[0]


def test_top_h_keeps_part_of_the_entropy():
    chances = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]])
    # the entropies are 1.75 bits and 0.2419 bits; those of the first 0.5, 0.5, 0.375 and 0.0426 bits
    for share, kept in ((0.2, [1, 1]), (0.58, [2, 2]), (0.8, [3, 3]), (1.0, [4, 4])):
        found = TopHLogitsWarper(share)(torch.zeros(2, 1, dtype=torch.long), chances.log())
        assert found.isfinite().sum(-1).tolist() == kept
        assert torch.equal(found[found.isfinite()], chances.log()[found.isfinite()])
    model = FixedScores(chances[0].log())
    drawn = generate(model, torch.ones(400, 1, dtype=torch.long), do_sample=True, top_h=0.58, top_k=0,
                     max_new_tokens=1, seed=3)[:, -1]  # fmt: skip
    assert set(drawn.tolist()) == {0, 1}
    assert abs(float((drawn == 0).float().mean()) - 2 / 3) < 0.1
    with pytest.raises(GenerationError, match="top_h must be"):
        TopHLogitsWarper(0.0)


def test_an_ensemble_takes_more_of_a_draft():
    model, draft = tiny("llama"), tiny("gpt2")
    ids = torch.tensor(prompts(1))
    asked = {"max_new_tokens": 20, "assistant_model": draft, "assistant_confidence_threshold": 0.0}
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    counts, texts = [], []
    for weight in (None, 0.5, 0.001):
        calls.clear()
        texts.append(model.generate(ids, assistant_ensemble_weight=weight, **asked))
        counts.append(len(calls))
    assert torch.equal(texts[0], model.generate(ids, max_new_tokens=20))
    assert counts[0] >= counts[1] >= counts[2]
    assert counts[2] <= 4
    first = texts[2][:, : ids.shape[1] + 1]  # no candidate: the model's own
    assert torch.equal(texts[2][:, :-1], draft.generate(first, max_new_tokens=18))
    drawn = model.generate(ids, do_sample=True, seed=1, assistant_ensemble_weight=0.3, **asked)
    assert drawn.shape == texts[0].shape
    with pytest.raises(GenerationError, match="a lookup has none"):
        model.generate(ids, prompt_lookup_num_tokens=3, assistant_ensemble_weight=0.5)
    with pytest.raises(GenerationError, match="assistant_ensemble_weight must be"):
        model.generate(ids, assistant_ensemble_weight=1.0)


def greedy(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
    """A loop as users write it, without the cache."""
    mask = inputs["attention_mask"]
    while not stopping_criteria(input_ids, None).all():
        scores = model(input_ids=input_ids, attention_mask=mask).logits[:, -1]
        token = logits_processor(input_ids, scores).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return input_ids


def test_a_loop_of_ones_own():
    model = tiny("llama")
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    asked = {"attention_mask": torch.tensor([[0, 0, 1, 1], [1] * 4]), "max_new_tokens": 6,
             "repetition_penalty": 1.4}  # fmt: skip
    want = model.generate(ids, **asked)
    assert torch.equal(model.generate(ids, custom_generate=greedy, **asked), want)
    seen = {}
    model.generate(
        ids, custom_generate=lambda model, ids, **named: seen.update(named), eos_token_id=3, **asked
    )
    assert {"past_key_values", "use_cache", "logits_processor", "stopping_criteria"} <= set(seen)
    assert seen["past_key_values"].get_seq_length() == 0
    with pytest.raises(GenerationError, match="is not run"):
        model.generate(ids, custom_generate="someone/decoding", **asked)


def test_room_of_a_static_cache():
    model, ids = tiny("llama"), torch.tensor(prompts(1))
    asked = {"max_new_tokens": 4, "cache_implementation": "static", "return_dict_in_generate": True}
    out = model.generate(ids, max_cache_len=77, **asked)
    assert out.past_key_values.get_max_cache_shape() == 77
    assert torch.equal(out.sequences, model.generate(ids, max_new_tokens=4))


def test_padding_is_no_place_for_a_lookup():
    model = tiny("llama")
    row = [5, 6, 7, 1, 5, 6]
    alone = model.generate(torch.tensor([row]), max_new_tokens=12)
    ids = torch.tensor([[1] * 6 + row, [1] * 3 + row + row[:3]])
    mask = torch.tensor([[0] * 6 + [1] * 6, [0] * 3 + [1] * 9])
    asked = []

    class Spy(phyla.generation.drafts.PromptLookup):
        def after(self, ids, source, most):
            asked.append(ids.tolist())
            return super().after(ids, source, most)

    phyla.generation.strategies.PromptLookup, kept = Spy, phyla.generation.strategies.PromptLookup
    try:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=12, prompt_lookup_num_tokens=3)
    finally:
        phyla.generation.strategies.PromptLookup = kept
    assert out[0, 6:].tolist() == alone[0].tolist()
    assert asked[0][:6] == row  # nothing of the padding, though it has a 1 as the text does
    assert all(text[0] == 5 for text in asked)


FREQUENCIES = (
    ({"xtc_probability": 1.0, "xtc_threshold": 0.25}, [0, 0.3 / 0.6, 0.2 / 0.6, 0.1 / 0.6]),
    ({"xtc_probability": 0.5, "xtc_threshold": 0.25}, [0.2, 0.15 + 0.25, 0.1 + 1 / 6, 0.05 + 1 / 12]),
    ({"top_n_sigma": 1.0}, [4 / 7, 3 / 7, 0, 0]),
    ({"top_h": 0.6}, [4 / 7, 3 / 7, 0, 0]),
    ({"typical_p": 0.4}, [0, 0.6, 0.4, 0]),
    ({"eta_cutoff": 0.15}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ({"sequence_bias": {(3,): math.log(4)}}, [4 / 13, 3 / 13, 2 / 13, 4 / 13]),
    ({"suppress_tokens": [1]}, [4 / 7, 0, 2 / 7, 1 / 7]),
    ({"repetition_penalty": 2.0}, [0.16 / 0.76, 0.3 / 0.76, 0.2 / 0.76, 0.1 / 0.76]),
    ({"mirostat_tau": 0.7}, [1, 0, 0, 0]),
    ({"dry_multiplier": math.log(3), "dry_allowed_length": 1}, [4 / 8, 1 / 8, 2 / 8, 1 / 8]),
)
CHANCES = torch.tensor([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(("options", "expected"), FREQUENCIES)
def test_frequencies_of_settings(options, expected):
    prompt = torch.tensor([[0, 1, 0]] if "dry_multiplier" in options else [[0]])
    draws = 4000
    asked = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, **options}
    out = generate(FixedScores(CHANCES.log()), prompt, num_return_sequences=draws, seed=5, **asked)
    assert_frequencies(out[:, -1], expected)


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_frequencies_behind_a_token(name):
    prompt = torch.zeros(8000, 1, dtype=torch.long)
    out = generate(
        FixedScores(CHANCES.log()), prompt, max_new_tokens=2, do_sample=True, top_k=0, seed=6,
        **{name: math.log(2)},
    )  # fmt: skip
    assert_frequencies(out[:, 1], CHANCES.tolist())  # the prompt does not count
    for first in range(4):
        less = CHANCES.clone()
        less[first] /= 2
        assert_frequencies(out[out[:, 1] == first, 2], (less / less.sum()).tolist())


def assert_frequencies(tokens, expected):
    found = torch.bincount(tokens, minlength=4) / len(tokens)
    for share, chance in zip(found.tolist(), expected, strict=True):
        # six standard deviations: the seed is fixed, the bound holds for any good generator
        assert abs(share - chance) <= 6 * (chance * (1 - chance) / len(tokens)) ** 0.5 + 1e-9


def test_texts_of_one_request_keep_their_own_state():
    model, prompt = tiny("llama"), prompts(1)[0]
    for way in ({"mirostat_tau": 3.0}, {"xtc_probability": 0.5, "xtc_threshold": 0.05}):
        asked = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, **way}
        with phyla.Engine(model) as engine:
            several = engine.submit(prompt, num_return_sequences=3, seed=7, **asked).results()
            alone = [engine.submit(prompt, seed=7 + i, **asked).result() for i in range(3)]
        assert [o.generated_tokens for o in several] == [o.generated_tokens for o in alone]
