"""The engine's steps on fixed buffers, replayed eagerly, give what its plain steps give."""

import random

import pytest
from test_captured import KINDS, Counting, made

import phyla
from phyla.blocks.flat import Pages
from phyla.generation import captured

PROMPTS = [[random.Random(i).randrange(4, 60) for _ in range(3 + 5 * i)] for i in range(7)]


def told(model, **more):
    with phyla.Engine(model, max_requests=5, page_size=8, max_memory=1 << 20) as engine:
        asked = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0, **more}
        return [output.generated_tokens for output in engine.generate(PROMPTS, **asked)], engine


@pytest.fixture
def recorder(monkeypatch):
    """As the CUDA one; pages that nobody has written hold zeros there."""
    counting = Counting()
    monkeypatch.setitem(captured.RECORDERS, "cpu", counting)
    reserve = Pages.reserve

    def zeroed(self, *given):
        fresh = self.keys is None
        keys, values = reserve(self, *given)
        return (keys.zero_(), values.zero_()) if fresh else (keys, values)

    monkeypatch.setattr(Pages, "reserve", zeroed)
    return counting


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "sliding-in-turn"])
def test_replayed_steps_give_the_tokens_of_plain_ones(kind, recorder, monkeypatch):
    model = made(kind)
    found, _ = told(model)
    assert recorder.replayed > 10
    assert 0 < recorder.recorded < 12  # of 1, 2, 4, 8 texts and 1 to 8 pages
    monkeypatch.delitem(captured.RECORDERS, "cpu")
    assert found == told(model)[0]


def test_sampled_tokens_and_their_scores(recorder, monkeypatch):
    model = made("rotary")
    asked = {"do_sample": True, "seeds": list(range(7)), "num_return_sequences": 2}
    found, _ = told(model, **asked)
    assert recorder.replayed > 10
    monkeypatch.delitem(captured.RECORDERS, "cpu")
    assert found == told(model, **asked)[0]


def test_changed_weights_and_pages_are_recorded_anew(recorder):
    model = made("rotary")
    with phyla.Engine(model, page_size=8, max_memory=1 << 20) as engine:
        asked = {"max_new_tokens": 12, "eos_token_id": None}

        def tokens():
            return engine.submit(PROMPTS[2], **asked).result().generated_tokens

        first, recorded = tokens(), recorder.recorded
        assert tokens() == first
        assert recorder.recorded == recorded
        for p in model.parameters():
            p.data = p.data.clone()
        assert tokens() == first
        assert recorder.recorded == 2 * recorded


def test_a_step_that_cannot_be_recorded_is_run_as_ever(monkeypatch, caplog):
    model = made("rotary")
    wanted, _ = told(model)

    def broken(step):
        step()
        raise RuntimeError("operation not permitted")

    monkeypatch.setitem(captured.RECORDERS, "cpu", broken)
    with caplog.at_level("DEBUG", logger="phyla.generation.captured"):
        found, engine = told(model)
    assert found == wanted
    assert engine.recorded.failed
    text = "the engine's step of LlamaForCausalLM was not recorded: operation not permitted"
    assert [r.getMessage() for r in caplog.records] == [text]


def test_adapters_are_not_recorded(recorder):
    model = made("rotary")
    model.add_adapter("one", config="lora", set_active=True)
    told(model)
    assert not recorder.recorded


def test_hooks_that_come_later_are_called(recorder):
    model = made("rotary")
    with phyla.Engine(model, page_size=8, max_memory=1 << 20) as engine:
        asked = {"max_new_tokens": 12, "eos_token_id": None}

        def tokens():
            return engine.submit(PROMPTS[2], **asked).result().generated_tokens

        first, seen = tokens(), []
        replayed = recorder.replayed
        assert replayed > 5
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
            for name, module in model.named_modules()
            if name.endswith(("attn", "ffn"))
        ]
        assert len(hooks) > 1
        assert tokens() == first
        assert len(seen) == 12 * len(hooks)
        assert recorder.replayed == replayed
        for hook in hooks:
            hook.remove()
        assert tokens() == first
        assert (len(seen), recorder.replayed > replayed) == (12 * len(hooks), True)
