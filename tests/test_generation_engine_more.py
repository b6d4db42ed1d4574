"""The engine, strategy by strategy and mistake by mistake: it gives what `generate` gives."""

import asyncio
import gc
import os
import random
import string
import threading
import time

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import is_clean, prompts
from test_generation_engine_requests import adapted
from test_generation_speculation import Words

import phyla
from phyla.adapters import Parallel
from phyla.errors import ArgumentError, GenerationError, QueueFull
from phyla.generation import BaseStreamer, TextIteratorStreamer, TextStreamer
from phyla.generation.engine.pages import PagePool

EXAMPLES = int(os.environ.get("PHYLA_EXAMPLES", "6"))
LETTERS = string.ascii_letters + string.digits[:9]
SEARCHES = (
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.3, "num_return_sequences": 3},
    {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5, "eos_token_id": 7},
    {"num_beams": 4, "force_words_ids": [[5, 6], [[9], [11, 12]]], "num_return_sequences": 2},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 5, "num_return_sequences": 2},
)
OF_STATES = (
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.4, "top_k": 3, "low_memory": True, "eos_token_id": 7},
    {"dola_layers": "low"},
    {"dola_layers": [0, 1], "do_sample": True, "seed": 3, "num_return_sequences": 2},
    {"num_beams": 3, "guidance_scale": 1.5},
)


def reference(model, prompt, length, seed=None, **asked):
    """(tokens of each returned row, their log-probabilities or the row's score) of `generate`."""
    count = asked.get("num_return_sequences", 1)
    beams = asked.get("num_beams", 1) > 1
    if seed is not None:
        asked["seed"] = seed if beams else [seed + i for i in range(count)]
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=length, return_dict_in_generate=True, output_scores=True,
        **asked,
    )  # fmt: skip
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    texts = [row[start:].tolist() for row in out.sequences]
    if beams:
        return texts, out.sequences_scores.tolist()
    chances = [step.log_softmax(-1) for step in out.scores]
    return texts, [[float(chances[i][r, t]) for i, t in enumerate(row)] for r, row in enumerate(texts)]


def check(handle, want):
    texts, scores = want
    outputs = handle.results()
    assert len(outputs) == len(texts)
    for output, text, score in zip(outputs, texts, scores, strict=True):
        count = len(output.generated_tokens)
        assert count
        assert output.generated_tokens == text[:count]
        if isinstance(score, list):
            torch.testing.assert_close(output.logprobs, score[:count], rtol=1e-4, atol=1e-4)
        else:
            assert output.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "t5", "mamba"])
def test_groups_of_beams_and_constraints_stand_in_pages(family):
    model, given = tiny(family), prompts(5)
    want = [reference(model, p, 9, **way) for p, way in zip(given, SEARCHES, strict=True)]
    for few in (False, True):
        with phyla.Engine(model, page_size=8, max_batch_tokens=24) as engine:
            if few:
                engine.pool = engine.scheduler.pool = PagePool(12, 8)
            handles = [
                engine.submit(p, max_new_tokens=9, output_scores=True, **way)
                for p, way in zip(given, SEARCHES, strict=True)
            ]
            assert not any(row.lane for h in handles for row in h.rows)
            for handle, wanted in zip(handles, want, strict=True):
                check(handle, wanted)
            assert is_clean(engine)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_strategies_of_states(family):
    model, given = tiny(family), prompts(7)
    ways = (*OF_STATES, {}, {"do_sample": True, "seed": 4})
    want = [reference(model, p, 9, **way) for p, way in zip(given, ways, strict=True)]
    for room in ({}, {"max_requests": 2}, {"max_memory": 1 << 17}):
        with phyla.Engine(model, page_size=8, max_batch_tokens=24, **room) as engine:
            handles = [
                engine.submit(p, max_new_tokens=9, output_scores=True, **way)
                for p, way in zip(given, ways, strict=True)
            ]
            dropped = [engine.submit(given[0], max_new_tokens=9, **way) for way in OF_STATES]
            assert [bool(h.rows and h.rows[0].lane) for h in dropped] == [False] * 4 + [True]
            for _ in range(3):
                engine.step()
            for handle in dropped:
                handle.cancel()
            for handle, wanted in zip(handles, want, strict=True):
                check(handle, wanted)
            assert {h.result().finish_reason for h in dropped} <= {"cancelled", "length"}
            assert is_clean(engine)


def contrasted(model, prompt, length, alpha, count):
    """Contrastive search by definition: the whole text is read for every candidate."""
    ids = list(prompt)

    def states(text):
        given = torch.tensor([text])
        both = {"decoder_input_ids": given, "input_ids": torch.tensor([prompt])}
        encoder = model.config.is_encoder_decoder
        out = model(**(both if encoder else {"input_ids": given}), output_hidden_states=True)
        found = out.decoder_hidden_states if encoder else out.hidden_states
        return torch.nn.functional.normalize(found[-1][0], dim=-1), out.logits[0, -1].softmax(-1)

    if model.config.is_encoder_decoder:
        ids = [0]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + length:
            text, chance = states(ids)
            chances, tokens = chance.topk(count)
            likeness = torch.stack([(text @ states([*ids, int(t)])[0][-1]).max() for t in tokens])
            ids.append(int(tokens[((1 - alpha) * chances - alpha * likeness).argmax()]))
    return ids[start:]


@pytest.mark.parametrize("family", ["t5", "mamba", "gemma2"])
def test_candidates_of_any_memory(family):
    model, given = tiny(family), prompts(3)
    with phyla.Engine(model, page_size=8, max_batch_tokens=24) as engine:
        handles = [engine.submit(p, max_new_tokens=8, penalty_alpha=0.6, top_k=3) for p in given[:2]]
        plain = engine.submit(given[2], max_new_tokens=8, output_scores=True)
        for handle, prompt in zip(handles, given, strict=False):
            assert handle.result().generated_tokens == contrasted(model, prompt, 8, 0.6, 3)
            assert not handle.rows[0].lane
        check(plain, reference(model, given[2], 8))
        assert is_clean(engine)


def test_drafts_of_another_vocabulary():
    model, draft, given = tiny("llama"), tiny("gpt2"), prompts(3, longest=12)
    words = {"tokenizer": Words(LETTERS), "assistant_tokenizer": Words(LETTERS[::-1])}
    ways = ({}, {"do_sample": True, "seed": 2}, {})
    with phyla.Engine(model, page_size=8) as engine:
        handles = [
            engine.submit(p, max_new_tokens=8, assistant_model=draft, **words, **way)
            for p, way in zip(given, ways, strict=True)
        ]
        assert [bool(h.rows[0].lane) for h in handles] == [False, True, False]
        plain = engine.submit(given[0], max_new_tokens=8)
        for p, way, handle in zip(given, ways, handles, strict=True):
            own = {**way, "seed": [2]} if way else {}
            want = model.generate(torch.tensor([p]), max_new_tokens=8, assistant_model=draft, **words, **own)
            assert handle.result().generated_tokens == want[0, len(p) :].tolist()
        assert plain.result().generated_tokens == handles[0].result().generated_tokens
        assert is_clean(engine)


def test_adapters_that_look_at_rows():
    made, given = adapted(), prompts(4, longest=12)
    made.add_adapter("soft", config="prompt_tuning")
    made.add_adapter("noreft", config="noreft")
    made.set_active_adapters(None)
    names = ["soft", "noreft", "lora", None]
    want = []
    for p, name in zip(given, names, strict=True):
        made.set_active_adapters(name)
        want.append(made.generate(torch.tensor([p]), max_new_tokens=6)[0, len(p) :].tolist())
    made.set_active_adapters(Parallel("lora", "ia3"))
    both = made.generate(torch.tensor([given[0]]), max_new_tokens=6)[:, len(given[0]) :].tolist()
    made.set_active_adapters(None)
    with phyla.Engine(made, page_size=8) as engine:
        handles = [
            engine.submit(p, max_new_tokens=6, adapter_names=n) for p, n in zip(given, names, strict=True)
        ]
        made.set_active_adapters(Parallel("lora", "ia3"))
        parallel = engine.submit(given[0], max_new_tokens=6)
        made.set_active_adapters(None)
        beams = engine.submit(given[0], max_new_tokens=6, adapter_names="soft", num_beams=2)
        assert [h.result().generated_tokens for h in handles] == want
        assert [o.generated_tokens for o in parallel.results()] == both
        made.set_active_adapters("soft")
        wanted = made.generate(torch.tensor([given[0]]), max_new_tokens=6, num_beams=2)
        made.set_active_adapters(None)
        assert beams.result().generated_tokens == wanted[0, len(given[0]) :].tolist()
        assert is_clean(engine)
    assert made.active_adapters is None


class Kept(BaseStreamer):
    """Keeps what it is told; `fails` at that call of `put`."""

    def __init__(self, fails=None, weary_of=None):
        self.told, self.fails, self.ended, self.failed, self.over = [], fails, 0, None, []
        self.weary_of, self.late = weary_of, False  # called with the third; whether any came behind the end

    def put(self, value):
        if self.fails == len(self.told):
            raise ZeroDivisionError("mine")
        self.told.append(value.tolist())
        self.late = self.late or self.ended > 0
        if self.weary_of is not None and len(self.told) == 3:
            self.weary_of()

    def end(self):
        self.ended += 1

    def end_row(self, row):
        if row not in dict(self.over):
            self.over.append((row, len(self.told)))

    def fail(self, error):
        self.failed = error


@pytest.mark.parametrize("way", [
    {}, {"do_sample": True, "seed": 1, "num_return_sequences": 3, "eos_token_id": [7, 9, 30, 31, 32]},
    {"num_beams": 3, "num_return_sequences": 2}, {"penalty_alpha": 0.6, "top_k": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.3}, {"prompt_lookup_num_tokens": 3},
])  # fmt: skip
def test_streamers_are_told_what_generate_tells_them(way):
    model, prompt = tiny("llama"), prompts(1)[0]
    own, theirs = Kept(), Kept()
    count = way.get("num_return_sequences", 1)
    seed = {"seed": [way["seed"] + i for i in range(count)]} if "seed" in way else {}
    model.generate(torch.tensor([prompt]), max_new_tokens=12, streamer=own, **{**way, **seed})
    with phyla.Engine(model, page_size=8) as engine:
        handle = engine.submit(prompt, max_new_tokens=12, streamer=theirs, **way)
        engine.submit(prompt, max_new_tokens=5).result()
        handle.result()
    assert (theirs.told, theirs.ended, sorted(theirs.over)) == (own.told, 1, sorted(own.over))
    assert theirs.failed is None


def test_text_comes_to_another_thread_while_the_engine_runs(capsys):
    model, prompt, words = tiny("llama"), [3, 4], Words(LETTERS)
    want = words.decode(model.generate(torch.tensor([prompt]), max_new_tokens=9)[0, 2:].tolist())
    with phyla.Engine(model) as engine:
        pieces = TextIteratorStreamer(words, skip_prompt=True, timeout=20)
        read = []
        reader = threading.Thread(target=lambda: read.extend(pieces))
        reader.start()
        engine.submit(prompt, max_new_tokens=9, streamer=pieces).result()
        reader.join(20)
        assert "".join(read) == want
        engine.submit(prompt, max_new_tokens=9, streamer=TextStreamer(words, skip_prompt=True)).result()
        assert capsys.readouterr().out.strip() == want
        empty = Kept()
        engine.submit(prompt, max_new_tokens=0, streamer=empty).result()
        assert (empty.told, empty.ended) == ([[prompt]], 1)


def boom(*_):
    raise ZeroDivisionError("mine")


class BadDraft:
    def __init__(self, given, late=False):
        self.given, self.late = given, late

    def get_candidates(self, input_ids):
        return self.given(input_ids)

    def update_candidate_strategy(self, *_):
        if self.late:
            raise ZeroDivisionError("mine")


def late(ids, *_):
    if ids.shape[-1] > 7:
        raise ZeroDivisionError("mine")
    return False


MISTAKES = {
    "processor": {"logits_processor": [boom]},
    "processor of a call": {"logits_processor": [boom], "dola_layers": "low"},
    "processor of beams": {"logits_processor": [boom], "num_beams": 2},
    "processor without scores": {"logits_processor": [lambda ids, scores: None]},
    "processor of a shape": {"logits_processor": [lambda ids, scores: scores[:, 1:]]},
    "criterion": {"stopping_criteria": [late]},
    "criterion of beams": {"stopping_criteria": [late], "num_beams": 2},
    "criterion of a call": {"stopping_criteria": [late], "penalty_alpha": 0.5, "top_k": 3},
    "prefix": {"prefix_allowed_tokens_fn": boom},
    "draft": {"candidate_generator": BadDraft(boom)},
    "foreign words": {"candidate_generator": BadDraft(lambda i: (torch.cat([i, i[:, :1] + 900], 1), None))},
    "late draft": {"candidate_generator": BadDraft(lambda i: (torch.cat([i, i[:, :1]], 1), None), True)},
    "no ids": {"candidate_generator": BadDraft(lambda i: (i[:, 1:], None))},
    "processor by itself": {"logits_processor": [boom], "num_beams": 2, "guidance_scale": 1.5},
    "criterion by itself": {"stopping_criteria": [late], "num_beams": 2, "guidance_scale": 1.5},
    "streamer by itself": {"streamer": Kept(fails=1), "num_beams": 2, "guidance_scale": 1.5},
    "streamer": {"streamer": Kept(fails=3)},
    "streamer of beams": {"streamer": Kept(fails=0), "num_beams": 2},
    "streamer of a call": {"streamer": Kept(fails=3), "dola_layers": "low"},
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_its_own_request_alone(mistake):
    model, prompt = tiny("llama"), [5, 6, 7, 8]
    want = model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, 4:].tolist()
    with phyla.Engine(model, page_size=4) as engine:
        before = engine.submit(prompt, max_new_tokens=8)
        bad = engine.submit(prompt, max_new_tokens=8, **MISTAKES[mistake])
        after = engine.submit(prompt, max_new_tokens=8, prompt_lookup_num_tokens=2)
        assert before.result().generated_tokens == after.result().generated_tokens == want
        with pytest.raises((GenerationError, ArgumentError), match=r"mine|candidates|shape|processor"):
            bad.result()
        assert bad.status.value == "failed"
        assert bad.outputs()[0].finish_reason == "error"
        assert is_clean(engine)
    streamer = MISTAKES[mistake].get("streamer")
    if streamer is not None:
        assert isinstance(streamer.failed, GenerationError)


def test_what_a_caller_brings_may_cancel():
    model, prompt = tiny("llama"), [5, 6, 7, 8]
    ways = (
        {}, {"dola_layers": "low"}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True},
        {"penalty_alpha": 0.6, "top_k": 3}, {"num_beams": 2, "guidance_scale": 1.5},
    )  # fmt: skip
    for way in ways:
        with phyla.Engine(model, page_size=4) as engine:
            held = []

            def give_up(ids, scores, held=held):
                if ids.shape[1] > 6:
                    held[0].cancel()
                return scores if scores is not None else False

            for name in ("logits_processor", "stopping_criteria"):
                held[:] = [engine.submit(prompt, max_new_tokens=9, **{name: [give_up]}, **way)]
                other = engine.submit(prompt, max_new_tokens=9)
                assert len(other.result().generated_tokens) == 9
                assert held[0].result().finish_reason == "cancelled"
                assert is_clean(engine)
            weary = Kept(weary_of=lambda held=held: held[0].cancel())
            held[:] = [engine.submit(prompt, max_new_tokens=9, streamer=weary, **way)]
            held.append(engine.submit(prompt, max_new_tokens=9))
            assert len(held[1].result().generated_tokens) == 9
            assert held[0].result().finish_reason == "cancelled"
            assert (weary.ended, weary.late) == (1, False)
            assert is_clean(engine)


def test_cancelling_from_other_threads_and_tasks():
    model, given = tiny("llama"), prompts(6, longest=20)
    with phyla.Engine(model, page_size=4) as engine:
        few = {"penalty_alpha": 0.5, "top_k": 3}
        ways = ({}, {"num_beams": 3}, {"dola_layers": "low"}, {"guidance_scale": 2.0}, {}, few)
        handles = [engine.submit(p, max_new_tokens=60, **w) for p, w in zip(given, ways, strict=True)]
        last = engine.submit(given[0], max_new_tokens=60)
        threads = [threading.Thread(target=lambda h=h: (time.sleep(0.02), h.cancel())) for h in handles]
        for thread in threads:
            thread.start()
        assert len(last.result().generated_tokens) == 60
        for thread, handle in zip(threads, handles, strict=True):
            thread.join()
            assert handle.finished
        assert is_clean(engine)

        async def give_up():
            async def read(way):
                return [token async for token in engine.stream(given[1], max_new_tokens=200, **way)]

            tasks = [asyncio.create_task(read(way)) for way in ({}, {"dola_layers": "low"}, {})]
            await asyncio.sleep(0.05)
            for task in tasks[:2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(f) for f in found[:2]] == [asyncio.CancelledError] * 2
            return found[2]

        assert len(asyncio.run(give_up())) == 200
        while engine.open:  # what was cancelled within a step ends with it
            engine.step()
        assert is_clean(engine)


def test_prompts_that_cannot_be_are_refused_at_once():
    model = tiny("llama", max_position_embeddings=32)
    with phyla.Engine(model, page_size=4, max_memory=1 << 14, max_queue_size=2) as engine:
        room = engine.pool.count * 4
        assert room > 32
        for way in ({}, {"dola_layers": "low"}, {"num_beams": 2}):
            with pytest.raises(GenerationError, match="context of 32"):
                engine.submit(list(range(2, 40)), max_new_tokens=4, **way)
            with pytest.raises(GenerationError, match="context of 32"):
                engine.submit([3, 4], max_new_tokens=10**9, **way)
            for empty in ([], torch.empty(1, 0, dtype=torch.long), None):
                with pytest.raises(ArgumentError, match=r"at least one token|there is none"):
                    engine.submit(empty, max_new_tokens=4, **way)
            for wrong in ([3, 61], [3, -1], [3.5], ["a"], [[3], [4]], {"a": 1}):
                with pytest.raises(ArgumentError):
                    engine.submit(wrong, max_new_tokens=4, **way)
            for limit in (0, 1):
                out = engine.submit([3, 4], max_new_tokens=limit, **way).result()
                want = model.generate(torch.tensor([[3, 4]]), max_new_tokens=limit, **way)[0, 2:].tolist()
                assert (out.generated_tokens, out.finish_reason) == (want, "length")
        nothing = engine.submit([3, 4], max_new_tokens=0, num_beams=3, num_return_sequences=2)
        assert len(nothing.results()) == 2
        assert not engine.open
        for _ in range(2):
            engine.submit([3, 4], max_new_tokens=4, dola_layers="low")
        with pytest.raises(QueueFull):
            engine.submit([3, 4], max_new_tokens=4)
    with phyla.Engine(tiny("mamba")) as engine:  # nothing bounds its texts
        for way in ({"num_beams": 2}, {"num_beams": 2, "guidance_scale": 1.5}):
            with pytest.raises(GenerationError, match="fewer tokens or beams"):
                engine.submit([3, 4], max_new_tokens=10**13, **way)
        assert is_clean(engine)
    with phyla.Engine(tiny("llama"), page_size=4, max_memory=1 << 14) as engine:
        for way in ({}, {"dola_layers": "low"}, {"guidance_scale": 2.0, "negative_prompt_ids": [5] * 300}):
            with pytest.raises(GenerationError, match="raise max_memory"):
                engine.submit([3] * (4 if "guidance_scale" in way else 300), max_new_tokens=40, **way)
            assert is_clean(engine)


ANY = (
    {}, {"do_sample": True}, {"num_beams": 2}, {"num_beams": 2, "force_words_ids": [[5]]},
    {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.7}, {"dola_layers": "high"},
    {"penalty_alpha": 0.6, "top_k": 3}, {"prompt_lookup_num_tokens": 2}, {"guidance_scale": 1.7},
    {"num_beams": 2, "guidance_scale": 1.7},
    {"do_sample": True, "num_return_sequences": 2}, {"repetition_penalty": 1.3},
    {"logits_processor": [boom]}, {"streamer": Kept()},
)  # fmt: skip


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_random_mixtures(number):
    numbers = random.Random(number)
    model, given = tiny(numbers.choice(["llama", "gemma2", "gpt2"])), prompts(12, seed=number, longest=25)
    asked = [
        (p, numbers.choice(ANY), numbers.randint(1, 12), numbers.random() < 0.2, numbers.randint(0, 9))
        for p in given
    ]
    way = {
        "max_batch_tokens": numbers.randint(1, 60), "max_requests": numbers.randint(1, 9),
        "page_size": numbers.choice([4, 8]), "max_queue_size": numbers.choice([None, 2, 30]),
    }  # fmt: skip
    wanted = {}
    for place, (p, settings, length, _, seed) in enumerate(asked):
        if "logits_processor" not in settings:
            own = {k: v for k, v in settings.items() if k != "streamer"}
            own |= {"seed": seed} if own.get("do_sample") else {}
            wanted[place] = reference(model, p, length, **own)[0]
    with phyla.Engine(model, **way) as engine:
        if numbers.random() < 0.5:
            engine.pool = engine.scheduler.pool = PagePool(20, way["page_size"])
        handles = []
        for p, settings, length, _, seed in asked:
            while True:
                try:
                    handles.append(engine.submit(p, max_new_tokens=length, seed=seed, **settings))
                    break
                except QueueFull:
                    step(engine)
            if numbers.random() < 0.3:
                step(engine)
            for place, handle in enumerate(handles):
                if asked[place][3] and numbers.random() < 0.3:
                    handle.cancel()
        while engine.open:
            step(engine)
        for place, handle in enumerate(handles):
            if handle.status.value == "cancelled":
                continue
            if place not in wanted:
                with pytest.raises(GenerationError, match="mine"):
                    handle.result()
                continue
            texts = [o.generated_tokens for o in handle.results()]
            assert texts == [text[: len(t)] for text, t in zip(wanted[place], texts, strict=True)]
        assert is_clean(engine)
        assert not engine.scheduler.lanes


def step(engine):
    """A step; what other requests fail with is told to their callers."""
    read = engine.tokens_read
    assert engine.step() or engine.tokens_read > read


def test_a_call_lets_go_of_its_memory():
    model = tiny("llama")
    with phyla.Engine(model) as engine:
        handle = engine.submit([3, 4], max_new_tokens=4, num_beams=2, guidance_scale=1.5)
        call = handle.rows[0].lane.call
        kept = [call.forward]
        del call
        handle.result()
        count = len(gc.get_referrers(kept[0]))
        assert count <= 2, gc.get_referrers(kept[0])


def test_what_the_first_step_shows_to_need_more_goes_on_by_itself():
    model, given = tiny("gpt2"), prompts(2, longest=12)
    kinds = [torch.ones(1, len(p), dtype=torch.long) for p in given]
    for way in ({}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}):
        own = {**way, "seed": [3, 4]} if "seed" in way else way
        want = model.generate(torch.tensor([given[0]]), token_type_ids=kinds[0], max_new_tokens=7, **own)
        with phyla.Engine(model, page_size=4) as engine:
            handles = [
                engine.submit(p, token_type_ids=k, max_new_tokens=7, **way)
                for p, k in zip(given, kinds, strict=True)
            ]
            plain = engine.submit(given[1], max_new_tokens=7)
            found = [o.generated_tokens for o in handles[0].results()]
            assert found == want[:, len(given[0]) :].tolist()
            assert handles[0].rows[0].lane
            assert len(handles[1].result().generated_tokens) == 7
            assert (
                plain.result().generated_tokens
                == model.generate(torch.tensor([given[1]]), max_new_tokens=7)[0, -7:].tolist()
            )
            assert is_clean(engine)


def test_batches_of_a_model_without_pages():
    config = phyla.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=16, pad_token_id=5)
    torch.manual_seed(0)
    model, given = phyla.XLNetLMHeadModel(config).eval(), prompts(4, longest=6)
    given = [[i % 35 + 5 for i in p] for p in given]
    settings = phyla.ContinuousBatchingConfig(num_blocks=9)
    found = model.generate_batch(given, max_new_tokens=4, continuous_batching_config=settings)
    want = [model.generate(torch.tensor([p]), max_new_tokens=4)[0, len(p) :].tolist() for p in given]
    assert [o.generated_tokens for o in found.values()] == want
    with phyla.Engine(model) as engine:
        assert engine.cache is None
        with pytest.raises(GenerationError, match="loop of one's own"):
            engine.submit(given[0], custom_generate=boom)
        with pytest.raises(ArgumentError, match="64 bits"):
            engine.submit(given[0], do_sample=True, seed=2**70)


@pytest.mark.parametrize("kind", ["MusicgenForCausalLM", "SpeechT5ForTextToSpeech"])
def test_models_with_a_way_of_their_own_are_refused(kind):
    heads = {"num_attention_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    few = {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    made = getattr(phyla, kind)
    config = made.config_class(vocab_size=32, hidden_size=16, ffn_dim=16, pad_token_id=1, **heads, **few)
    with pytest.raises(GenerationError, match=r"way of its own|is none"):
        phyla.Engine(made(config))


def test_the_thread_of_an_engine_outlives_the_loop_of_a_caller():
    model = tiny("llama")
    with model.continuous_batching_context_manager() as manager:

        async def ask():
            name = manager.add_request([3, 4], max_new_tokens=1)
            manager.register_result_handler(name, print)

        with manager.engine.lock:  # the loop is closed before the first step
            asyncio.run(ask())
        assert manager.get_result(timeout=20).generated_tokens
        bad = manager.add_request([3, 4], max_new_tokens=4, logits_processor=[boom])
        good = manager.add_request([3, 4], max_new_tokens=4, dola_layers="low")
        found = {output.request_id: output for output in (manager.get_result(timeout=20) for _ in range(2))}
        assert found[bad].status.value == "failed"
        assert "mine" in found[bad].error
        assert len(found[good].generated_tokens) == 4
