"""Beam search against a plain search over lists, an exhaustive one, and its own single runs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FixedScores, TinyDecoder, TinyEncoderDecoder

import phyla.generation as g
from phyla.errors import GenerationError, NonFiniteLogitsError
from phyla.generation import generate

DECODER = TinyDecoder()


def log_chances(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).tolist()


def search_by_hand(model, prompt, steps, count, eos, penalty, early):
    """The `count` best (score, new tokens) of one row, by lists of (sum of log-probabilities, new tokens)."""
    running, done = [(0.0, [])], []
    for step in range(1, steps + 1):
        grown = []
        for total, new in running:
            chances = log_chances(model, prompt + new)
            grown += [(total + c, [*new, token]) for token, c in enumerate(chances)]
        grown = sorted(grown, key=lambda beam: -beam[0])[: max(2, 1 + len(eos)) * count]
        ends = [beam for beam in grown if step == steps or beam[1][-1] in eos]
        if not (early is True and len(done) == count):
            done += [(total / step**penalty, new) for total, new in grown[:count] if (total, new) in ends]
            done = sorted(done, key=lambda beam: -beam[0])[:count]
        running = [beam for beam in grown if beam not in ends][:count]
        if len(done) == count:
            length = steps if early == "never" and penalty > 0 else step
            hopeless = not running or running[0][0] / length**penalty <= done[-1][0]
            if early is True or hopeless:
                break
    return done


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 22), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(2, 4),
    st.lists(st.integers(0, 22), min_size=1, max_size=8, unique=True),
    st.sampled_from([1.0, 0.0, 0.5, 2.0, -1.0]),
    st.sampled_from([True, False, "never"]),
    st.booleans(),
)
def test_beams_are_those_of_a_plain_search(prompt, steps, count, eos, penalty, early, use_cache):
    want = search_by_hand(DECODER, prompt, steps, count, eos, penalty, early)
    out = generate(
        DECODER, torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=steps,
        num_beams=count, num_return_sequences=count, eos_token_id=eos, pad_token_id=0, length_penalty=penalty,
        early_stopping=early, use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    longest = max(len(new) for _, new in want)
    tokens = [new + [0] * (longest - len(new)) for _, new in want]
    assert out.sequences[:, len(prompt) :].tolist() == tokens
    torch.testing.assert_close(out.sequences_scores.tolist(), [s for s, _ in want], rtol=1e-4, atol=1e-4)


def test_enough_beams_find_the_likeliest_text():
    model = TinyDecoder(vocabulary=4, seed=3)
    prompt, steps = [1, 2], 4
    best, score = None, -1e9
    for new in itertools.product(range(4), repeat=steps):
        total = sum(log_chances(model, [*prompt, *new[:i]])[t] for i, t in enumerate(new))
        if total > score:
            best, score = list(new), total
    out = generate(model, torch.tensor([prompt]), max_new_tokens=steps, num_beams=64)
    assert out[0, 2:].tolist() == best


rows_of_ids = st.lists(st.lists(st.integers(1, 22), min_size=1, max_size=6), min_size=2, max_size=4)


@settings(max_examples=25)
@given(
    rows_of_ids, st.sampled_from(["left", "right"]), st.sampled_from([True, False, "never"]),
    st.lists(st.integers(1, 22), min_size=2, max_size=8, unique=True),
)  # fmt: skip
def test_every_row_of_a_batch_equals_its_single_run(rows, side, early, eos):
    width = max(map(len, rows))
    fill = [[0] * (width - len(r)) for r in rows]
    ids = torch.tensor([f + r if side == "left" else r + f for r, f in zip(rows, fill)])
    asked = {"max_new_tokens": 7, "num_beams": 3, "num_return_sequences": 2, "early_stopping": early}
    asked |= {"eos_token_id": eos, "pad_token_id": 0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
    out = generate(DECODER, ids, attention_mask=ids != 0, **asked)
    assert torch.equal(out[:, :width], ids.repeat_interleave(2, 0))
    for i, row in enumerate(rows):
        alone = generate(DECODER, torch.tensor([row]), **asked)[:, len(row) :]
        mine = out[2 * i : 2 * i + 2, width:]
        assert torch.equal(mine[:, : alone.shape[1]], alone)
        assert not mine[:, alone.shape[1] :].any(), "and then padding"


def test_an_encoder_decoder_searches_too():
    model = TinyEncoderDecoder()
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 6, "num_beams": 3, "eos_token_id": 2, "pad_token_id": 0}
    out = generate(model, ids, **asked)
    assert model.encoded == 1
    assert torch.equal(generate(model, ids, use_cache=False, **asked), out)
    for row in range(2):
        alone = generate(model, ids[row : row + 1], **asked)
        assert torch.equal(out[row, : alone.shape[1]], alone[0])


def test_returned_fields_and_the_scores_of_chosen_tokens():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {
        "max_new_tokens": 5,
        "num_beams": 3,
        "num_return_sequences": 2,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    out = generate(
        DECODER, ids, return_dict_in_generate=True, output_scores=True, output_logits=True, **asked
    )
    assert isinstance(out, g.GenerateBeamDecoderOnlyOutput)
    assert set(out) == {
        "sequences",
        "sequences_scores",
        "scores",
        "logits",
        "beam_indices",
        "past_key_values",
    }
    assert out.sequences.shape[0] == out.sequences_scores.shape[0] == out.beam_indices.shape[0] == 4
    assert out.scores[0].shape == (6, 23)
    parts = g.compute_transition_scores(DECODER, out.sequences, out.scores, out.beam_indices)
    lengths = (out.beam_indices >= 0).sum(1)
    torch.testing.assert_close(
        parts.sum(1).float() / lengths, out.sequences_scores.float(), rtol=1e-4, atol=1e-4
    )
    bare = generate(DECODER, ids, return_dict_in_generate=True, **asked)
    assert set(bare) == {"sequences", "beam_indices", "past_key_values"}


def test_sampled_beams_repeat_with_their_seed():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 8, "num_beams": 3, "do_sample": True, "top_k": 0, "temperature": 4.0}
    one, two, other = (generate(DECODER, ids, seed=s, **asked) for s in (1, 1, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    batch = generate(DECODER, ids, seed=[3, 4], **asked)
    assert torch.equal(batch[1:], generate(DECODER, ids[1:], seed=4, **asked))


def test_what_does_not_go_with_beams_is_said():
    ids = torch.tensor([[4, 5, 6]])
    grouped = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
    with pytest.raises(GenerationError, match="guidance_scale works with num_beam_groups=1"):
        generate(DECODER, ids, guidance_scale=2.0, **grouped)
    with pytest.raises(GenerationError, match="num_beam_groups above 1 works with do_sample=False"):
        generate(DECODER, ids, do_sample=True, **grouped)
    with pytest.raises(GenerationError, match="all are ruled out at step 0, row 0"):
        generate(DECODER, ids, num_beams=2, suppress_tokens=list(range(23)))


def test_logits_that_are_no_numbers():
    table = torch.zeros(6, 6)
    table[3, 2] = torch.nan
    table[4, 3] = 50.0
    with pytest.raises(NonFiniteLogitsError, match="at step 1, row"):
        generate(FixedScores(table), torch.tensor([[4]]), num_beams=2, max_new_tokens=3)
