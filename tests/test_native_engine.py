"""The engine's step through the native passes: the tokens of the modules, and the same bits in any batch."""

import pytest
import torch
from native_kernels import BUILT, alone_as_together, counted, kernels
from test_generation_engine import prompts
from test_native_step import CONFIGS

import phyla

__all__ = ["counted", "kernels"]  # fixtures


def made(name, **changes):
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = phyla.AutoModelForCausalLM.from_config(type(config)(**{**config.to_dict(), **changes}))
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_is_taken_and_right(counted, name):
    model, given = made(name), prompts(9, longest=50)
    with torch.no_grad():
        want = [model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in given]
    counted.clear()
    with phyla.Engine(model, page_size=16, max_batch_tokens=70) as engine:
        asked = {"max_new_tokens": 5, "output_scores": True, "eos_token_id": None}
        found = list(engine.generate(given, **asked))
        assert all(counted) == BUILT
        for output, scores in zip(found, want, strict=True):
            assert output.generated_tokens[0] == int(scores.argmax())
            assert output.logprobs[0] == pytest.approx(float(scores.max()), abs=2e-5)
        counted.clear()
        for prompt, output in zip(given, found, strict=True):
            ids = torch.tensor([prompt + output.generated_tokens[:-1]])
            with torch.no_grad():
                scores = model(ids).logits[0, len(prompt) - 1 :].log_softmax(-1)
            picked = scores.gather(1, torch.tensor(output.generated_tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(output.logprobs), picked, rtol=0, atol=2e-5)


def test_bits_do_not_depend_on_neighbours(counted):
    model = made("rotary, groups", hidden_size=64, intermediate_size=128, num_attention_heads=4)
    given = prompts(8, seed=4, longest=60)
    alone_as_together(model, given)
    assert any(counted) == BUILT


def test_sliding_pages_and_bfloat16(counted):
    model, given = made("window"), prompts(4, longest=40)
    want = [model.generate(torch.tensor([p]), max_new_tokens=30, eos_token_id=None)[0, -30:] for p in given]
    with phyla.Engine(model, page_size=16) as engine:
        found = list(engine.generate(given, max_new_tokens=30, eos_token_id=None))
        assert [o.generated_tokens for o in found] == [w.tolist() for w in want]
    half = made("rotary, groups").to(torch.bfloat16)
    counted.clear()
    with phyla.Engine(half, page_size=16) as engine:
        found = list(engine.generate(given, max_new_tokens=6, eos_token_id=None, output_scores=True))
    assert any(counted) == BUILT
    for prompt, output in zip(given, found, strict=True):
        with torch.no_grad():
            scores = half(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
        assert output.logprobs[0] == pytest.approx(float(scores[output.generated_tokens[0]]), abs=0.05)
