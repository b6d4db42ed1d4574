"""The engine, way by way: beams, speculation, guidance, prompts of more than ids, as `generate` has them."""

from pathlib import Path

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import is_clean, prompts

import phyla
from phyla.errors import ArgumentError, GenerationError
from phyla.generation.engine.pages import PagePool
from phyla.testing.goldens import read_pack

GOLDENS = Path(__file__).with_name("goldens")
FAMILIES = ("llama", "gemma2", "mistral", "gpt2", "mamba", "t5")
BEAMS = (
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.4, "early_stopping": True},
    {"num_beams": 2, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
)


def alone(model, prompt, length, **asked):
    """The new tokens of each returned row, without what fills up."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=length, **asked)
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    return [row[start:].tolist() for row in out]


def ended(rows, eos):
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_beams(family):
    model, given = tiny(family), prompts(4, longest=20)
    for eos, way in zip((None, 7, 11), BEAMS, strict=True):
        asked = {**way, "eos_token_id": eos, "pad_token_id": 0}
        want = [ended(alone(model, p, 8, **asked), eos) for p in given]
        with phyla.Engine(model, page_size=8, max_batch_tokens=24, max_requests=5) as engine:
            handles = [engine.submit(p, max_new_tokens=8, **asked) for p in given]
            found = [[o.generated_tokens for o in h.results()] for h in handles]
            assert found == want
            assert all(o.score is not None and o.is_finished() for h in handles for o in h.outputs())
            assert is_clean(engine)


def test_beams_with_few_pages():
    model, given = tiny("llama"), prompts(3, longest=12)
    want = [alone(model, p, 12, num_beams=3) for p in given]
    with phyla.Engine(model, page_size=4) as engine:
        engine.pool = engine.scheduler.pool = PagePool(8, 4)
        handles = [engine.submit(p, max_new_tokens=12, num_beams=3) for p in given]
        assert [[h.result().generated_tokens] for h in handles] == want
        assert engine.scheduler.preempted > 0
        assert is_clean(engine)


def test_scores_and_draws_of_beams():
    model, prompt = tiny("llama"), prompts(1)[0]
    asked = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 7}
    told = model.generate(
        torch.tensor([prompt]), return_dict_in_generate=True, output_scores=True, **asked
    ).sequences_scores
    with phyla.Engine(model) as engine:
        scores = [o.score for o in engine.submit(prompt, **asked).results()]
        torch.testing.assert_close(torch.tensor(scores), told, rtol=1e-4, atol=1e-4)
        drawn = [engine.submit(prompt, do_sample=True, seed=4, **asked).results() for _ in range(2)]
        want = alone(model, prompt, 7, do_sample=True, seed=[4], num_beams=3, num_return_sequences=3)
        assert [o.generated_tokens for o in drawn[0]] == want
        assert [o.generated_tokens for o in drawn[1]] == want
        cancelled = engine.submit(prompt, **asked)
        engine.step()
        assert cancelled.tokens == []
        cancelled.cancel()
        assert is_clean(engine)


def copying(family):
    """A model that repeats itself, and prompts with repeats."""
    begin = prompts(3, seed=2, longest=9)
    return tiny(family), [p * 3 for p in begin]


@pytest.mark.parametrize("family", FAMILIES)
def test_speculation_changes_no_token(family):
    model, given = copying(family)
    for way in ({}, {"do_sample": True, "temperature": 0.4}, {"repetition_penalty": 1.2, "eos_token_id": 9}):
        with phyla.Engine(model, page_size=8, max_batch_tokens=30) as engine:
            plain = [engine.submit(p, max_new_tokens=20, seed=i, output_scores=True, **way).result()
                     for i, p in enumerate(given)]  # fmt: skip
            assert is_clean(engine)
        small = tiny(family)
        with torch.no_grad():
            for p in small.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        drafts = [{"prompt_lookup_num_tokens": 4}, {"assistant_model": small, "num_assistant_tokens": 3}]
        if family in ("llama", "gpt2", "mamba"):
            drafts.append({"assistant_early_exit": 1})
        if family == "t5":
            drafts[1] = {"assistant_model": model, "num_assistant_tokens": 3}
        for draft in drafts:
            with phyla.Engine(model, page_size=8, max_batch_tokens=30) as engine:
                handles = [
                    engine.submit(p, max_new_tokens=20, seed=i, output_scores=True, **draft, **way)
                    for i, p in enumerate(given)
                ]
                found = [h.result() for h in handles]
                assert [o.generated_tokens for o in found] == [o.generated_tokens for o in plain]
                if family != "t5":  # its positions' bias is summed by another path
                    assert [o.logprobs for o in found] == [o.logprobs for o in plain]
                assert is_clean(engine)


def test_a_right_draft_saves_steps():
    model, given = copying("llama")
    steps = []
    sure = {"num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0}
    for draft in ({}, {"assistant_model": model, **sure}):
        with phyla.Engine(model) as engine:
            list(engine.generate(given, max_new_tokens=20, **draft))
            steps.append(engine.steps)
    assert steps[1] * 3 < steps[0]


def test_guidance():
    model, given = tiny("llama"), prompts(4, longest=14)
    for way in ({"guidance_scale": 1.7}, {"guidance_scale": 0.6, "repetition_penalty": 1.3}):
        for negative in (None, [5, 6, 7]):
            asked = {**way, "eos_token_id": 9, "pad_token_id": 0}
            other = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative])}
            want = [ended(alone(model, p, 9, **asked, **other), 9) for p in given]
            with phyla.Engine(model, page_size=8, max_batch_tokens=20) as engine:
                handles = [
                    engine.submit(p, max_new_tokens=9, negative_prompt_ids=negative, **asked) for p in given
                ]
                assert [[h.result().generated_tokens] for h in handles] == want
                assert is_clean(engine)
    with phyla.Engine(model, page_size=8) as engine:
        several = engine.submit(
            given[0], guidance_scale=1.5, do_sample=True, num_return_sequences=3, seed=1, max_new_tokens=6
        )
        found = [o.generated_tokens for o in several.results()]
        assert len(found) == 3
        assert all(len(f) == 6 for f in found)
        assert is_clean(engine)
        with pytest.raises(GenerationError, match="need a guidance_scale"):
            engine.submit(given[0], negative_prompt_ids=[1])


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_prompts_of_vectors(family):
    model, given = tiny(family), prompts(3, longest=20)
    embed = model.get_input_embeddings()
    vectors = [embed(torch.tensor([p])).detach() for p in given]
    want = [model.generate(inputs_embeds=v, max_new_tokens=8)[0].tolist() for v in vectors]
    with phyla.Engine(model, page_size=8, max_batch_tokens=12) as engine:
        handles = [engine.submit(inputs_embeds=v, max_new_tokens=8) for v in vectors]
        plain = engine.submit(given[0], max_new_tokens=8)
        assert [h.result().generated_tokens for h in handles] == want
        assert plain.result().generated_tokens == alone(model, given[0], 8)[0]
        assert handles[0].result().prompt_ids == []
        mixed = engine.generate([{"inputs_embeds": vectors[1]}, given[0]], max_new_tokens=8)
        assert [o.generated_tokens for o in mixed] == [want[1], alone(model, given[0], 8)[0]]
        beams = engine.submit(inputs_embeds=vectors[0], num_beams=2, max_new_tokens=8).result()
        both = model.generate(inputs_embeds=vectors[0], num_beams=2, max_new_tokens=8)
        assert beams.generated_tokens == both[0].tolist()
        assert is_clean(engine)


def test_a_padded_prompt_loses_its_padding_and_a_long_one_its_start():
    model, prompt = tiny("llama", max_position_embeddings=24), prompts(1, longest=12)[0]
    with phyla.Engine(model) as engine:
        padded = engine.submit([0, 0, *prompt], attention_mask=[0, 0] + [1] * len(prompt), max_new_tokens=5)
        assert padded.result().generated_tokens == alone(model, prompt, 5)[0]
        long = list(range(2, 40))
        cut = engine.submit(long, truncate="left", max_new_tokens=6).result()
        assert cut.generated_tokens == alone(model, long[-18:], 6)[0]
        with pytest.raises(ArgumentError, match="attention_mask must have"):
            engine.submit(prompt, attention_mask=[1], max_new_tokens=5)


def test_positions_and_types_that_a_caller_gives():
    model, prompt = tiny("llama"), prompts(1, longest=12)[0]
    places = torch.arange(len(prompt))[None] + 3
    want = model.generate(torch.tensor([prompt]), position_ids=places, max_new_tokens=6)[0, -6:].tolist()
    with phyla.Engine(model, page_size=4) as engine:
        given = engine.submit(prompt, position_ids=places, max_new_tokens=6)
        other = engine.submit(prompt, max_new_tokens=6)
        assert given.result().generated_tokens == want
        assert other.result().generated_tokens == alone(model, prompt, 6)[0]
        assert is_clean(engine)


def test_a_dialogue_goes_on_where_it_stopped():
    model, begin = tiny("llama"), prompts(1, longest=1)[0] * 17
    with phyla.Engine(model, page_size=4, share_generated=True) as engine:
        answer = engine.submit(begin, max_new_tokens=16).result().generated_tokens
        longer = [*begin, *answer, 5, 6]
        read = engine.tokens_read
        found = engine.submit(longer, max_new_tokens=5).result().generated_tokens
        assert engine.tokens_read - read < 8 + 5
        assert is_clean(engine)
    assert found == alone(model, longer, 5)[0]


# recurrent and hybrid decoders, encoders of sound and of images, decoders that are shown images
RECORDED = ("jamba", "recurrent_gemma", "mamba2", "whisper", "speech_to_text", "trocr", "llava", "mllama")
# what has no pages: texts that are read as a whole, memory of its own, more than ids and places
WITHOUT_PAGES = ("paligemma", "prophetnet", "qwen2_vl", "xlnet", "jetmoe", "blip-2", "pix2struct")


def recorded(family):
    for golden in read_pack(GOLDENS / f"{family}.tar.xz"):
        if golden.facts.get("generate"):
            yield golden


@pytest.mark.parametrize("family", RECORDED + WITHOUT_PAGES)
def test_families_with_memory_of_other_kinds(family, tmp_path):
    count = 0
    for golden in recorded(family):
        golden.write_checkpoint(tmp_path)
        model = getattr(phyla, golden.class_name).from_pretrained(tmp_path).eval()
        apart = ("decoder_input_ids", "attention_mask", "labels")
        inputs = {
            name: value[:1] if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in golden.inputs().items() if name not in apart and "output_" not in name
        }  # fmt: skip
        if "image_grid_thw" in inputs:  # patches of all images stand in one list
            inputs["pixel_values"] = golden.inputs()["pixel_values"][: inputs["image_grid_thw"].prod()]
        if "input_ids" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        ways = ({"num_beams": 1}, {"num_beams": 2}, {"num_beams": 1, "prompt_lookup_num_tokens": 2})
        for way in ways[:2] if family == "pix2struct" else ways:  # it has no cache, which a draft needs
            asked = {"max_new_tokens": 6, "do_sample": False, **way}
            want = model.generate(**inputs, **asked)
            with phyla.Engine(model, page_size=8, max_batch_tokens=16) as engine:
                assert (engine.cache is None) == (family in WITHOUT_PAGES)
                found = [engine.submit(**inputs, **asked) for _ in range(2)]
                for handle in found:
                    tokens = handle.result().generated_tokens
                    assert tokens
                    assert want[0].tolist()[-len(tokens) :] == tokens
                assert is_clean(engine)
        count += 1
    assert count
