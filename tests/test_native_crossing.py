"""The native step of decoders that look at an encoder's states, against the modules."""

import pytest
import torch
from native_kernels import BUILT, counted, kernels
from test_native_step import filled

import phyla
from phyla.blocks import matmul, stack

__all__ = ["counted", "kernels"]  # fixtures

BART = {
    "vocab_size": 99, "d_model": 48, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80,
    "max_position_embeddings": 256,
}  # fmt: skip
T5 = {"vocab_size": 99, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 6}
MODELS = {
    "norms after": (phyla.BartForConditionalGeneration, phyla.BartConfig(**BART)),
    "norms before": (phyla.MBartForConditionalGeneration, phyla.MBartConfig(**BART)),
    "a bias by distance": (phyla.T5ForConditionalGeneration, phyla.T5Config(**T5)),
    "a bias by distance, gated": (
        phyla.T5ForConditionalGeneration,
        phyla.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
}


def of(kind: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model, config = MODELS[kind]
    return filled(model(config), dtype)


def given(rows: int, length: int = 150):
    numbers = torch.Generator().manual_seed(rows)
    ids, answer = (torch.randint(3, 99, (rows, n), generator=numbers) for n in (length, 9))
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, -40:] = 0
    return ids, mask, answer


def steps(model, ids, mask, answer, sizes):
    """Scores of the answer, read in steps of these sizes; what the decoder's stack did is counted alone."""
    with torch.inference_mode():
        encoder = model.encode(input_ids=ids, attention_mask=mask)
        cache, at, found = model.new_cache(len(ids), 12), 0, []
        for size in sizes:
            out = model(
                encoder_outputs=encoder, attention_mask=mask, decoder_input_ids=answer[:, at : at + size],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            at += size
            found.append(out.logits.float())
    return torch.cat(found, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_modules(counted, monkeypatch, kind, rows, dtype):
    model, sizes = of(kind, dtype), (1,) * 9 if "distance" in kind else (1, 1, 2, 1, 2, 1, 1)
    found = steps(model, *given(rows), sizes)
    assert counted[-len(sizes) + 1 :] == [BUILT] * (len(sizes) - 1)  # the first step makes the memory
    monkeypatch.setattr(stack, "native", None)
    monkeypatch.setattr(matmul, "native", None)
    wanted = steps(model, *given(rows), sizes)
    if dtype == torch.float32:
        assert (found - wanted).abs().max() < 5e-6 * wanted.abs().max()
        return
    exact = steps(model.float(), *given(rows), sizes)
    mine, theirs = ((y - exact).norm() for y in (found, wanted))
    assert mine < 1.2 * theirs


def test_several_tokens_with_a_bias_go_through_the_modules(counted, monkeypatch):
    model = of("a bias by distance")
    found = steps(model, *given(2), (1, 2, 1))
    assert counted[-3:] == [False, False, BUILT]
    monkeypatch.setattr(stack, "native", None)
    torch.testing.assert_close(found, steps(model, *given(2), (1, 2, 1)), rtol=1e-4, atol=1e-4)


def test_a_row_has_the_bits_it_has_alone(counted):
    model, (ids, mask, answer) = of("norms before"), given(3)
    with torch.inference_mode():
        encoder = model.encode(input_ids=ids, attention_mask=mask)
        caches = []
        for rows in (slice(0, 3), slice(1, 2)):
            cache = model.new_cache(len(answer[rows]), 8)
            states = type(encoder)(last_hidden_state=encoder.last_hidden_state[rows])
            for at in range(2):
                model(
                    encoder_outputs=states, attention_mask=mask[rows], past_key_values=cache, use_cache=True,
                    decoder_input_ids=answer[rows, at : at + 1],
                )  # fmt: skip
            caches.append(cache)
        whole, single = caches
        for mine, theirs in zip(single.slots, whole.slots, strict=True):  # the first step was the modules'
            if mine is not None:
                mine.keys, mine.values = theirs.keys[1:2].clone(), theirs.values[1:2].clone()
        last = []
        for rows, cache in ((slice(0, 3), whole), (slice(1, 2), single)):
            states = type(encoder)(last_hidden_state=encoder.last_hidden_state[rows])
            out = model(
                encoder_outputs=states, attention_mask=mask[rows], past_key_values=cache, use_cache=True,
                decoder_input_ids=answer[rows, 2:3],
            )  # fmt: skip
            last.append(out.logits)
    same = torch.equal if BUILT else torch.allclose
    assert same(last[0][1], last[1][0])
    assert counted[-1] == BUILT


@pytest.mark.parametrize("kind", ["norms after", "a bias by distance"])
def test_beams_and_recorded_attentions(counted, monkeypatch, kind):
    model, (ids, mask, _) = of(kind), given(3)
    asked = {"max_new_tokens": 8, "num_beams": 2, "decoder_start_token_id": 0, "attention_mask": mask}
    monkeypatch.setattr(phyla.fast.native, "enable", lambda *parts, **more: None)
    found = model.generate(ids, **asked)
    assert any(counted) == BUILT
    counted.clear()
    seen = model.generate(ids, **asked, output_attentions=True, return_dict_in_generate=True)
    assert not any(counted[1:])
    assert torch.equal(seen.sequences, found)
    assert seen.cross_attentions
    monkeypatch.setattr(stack, "native", None)
    assert torch.equal(model.generate(ids, **asked), found)
