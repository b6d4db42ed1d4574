"""`generate` on small models: what it returns, padding, caches, inputs, seeds, stopping."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FixedScores, TinyDecoder, TinyEncoderDecoder

import phyla.generation as g
from phyla.generation import generate, search

DECODER = TinyDecoder()
ENCODER_DECODER = TinyEncoderDecoder()


def greedy_by_hand(model, row, steps, eos=()):
    """Tokens that follow one unpadded row, by feeding everything again at each step."""
    ids = list(row)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in eos:
                break
    return ids[len(row) :]


rows_of_ids = st.lists(st.lists(st.integers(1, 22), min_size=1, max_size=8), min_size=1, max_size=4)


def pad(rows, side, value=0):
    width = max(map(len, rows))
    fill = [[value] * (width - len(r)) for r in rows]
    ids = [f + r if side == "left" else r + f for r, f in zip(rows, fill)]
    mask = [
        [0] * len(f) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(f)
        for r, f in zip(rows, fill)
    ]
    return torch.tensor(ids), torch.tensor(mask)


@settings(max_examples=40)
@given(rows_of_ids, st.sampled_from(["left", "right"]), st.booleans(), st.integers(1, 10), st.booleans())
def test_every_row_of_a_batch_equals_its_single_run(rows, side, use_cache, steps, told):
    ids, mask = pad(rows, side)
    asked = {"attention_mask": mask} if told else {"pad_token_id": 0}
    out = generate(DECODER, ids, max_new_tokens=steps, use_cache=use_cache, **asked)
    assert torch.equal(out[:, : ids.shape[1]], ids), "the prompt comes back as it was given"
    for got, row in zip(out[:, ids.shape[1] :].tolist(), rows):
        assert got == greedy_by_hand(DECODER, row, steps)


@settings(max_examples=40)
@given(
    rows_of_ids,
    st.sampled_from(["left", "right"]),
    st.lists(st.integers(0, 22), min_size=1, max_size=6, unique=True),
)
def test_rows_end_at_any_end_token_and_are_filled_with_padding(rows, side, eos):
    ids, mask = pad(rows, side)
    out = generate(DECODER, ids, attention_mask=mask, max_new_tokens=12, eos_token_id=eos, pad_token_id=0)
    want = [greedy_by_hand(DECODER, row, 12, eos) for row in rows]
    width = max(map(len, want))
    assert out[:, ids.shape[1] :].tolist() == [w + [0] * (width - len(w)) for w in want]


@settings(max_examples=25)
@given(rows_of_ids, st.sampled_from(["left", "right"]), st.floats(1.1, 3), st.integers(0, 3))
def test_penalties_do_not_see_the_padding(rows, side, penalty, ngram):
    ids, mask = pad(rows, side)
    asked = {
        "max_new_tokens": 8,
        "repetition_penalty": penalty,
        "no_repeat_ngram_size": ngram,
        "eos_token_id": 0,
    }
    asked |= {"encoder_repetition_penalty": 1 / penalty, "encoder_no_repeat_ngram_size": 3}
    out = generate(DECODER, ids, attention_mask=mask, **asked)[:, ids.shape[1] :]
    for got, row in zip(out.tolist(), rows):
        alone = generate(DECODER, torch.tensor([row]), **asked)[0, len(row) :].tolist()
        assert got[: len(alone)] == alone


@settings(max_examples=30)
@given(rows_of_ids, st.sampled_from(["left", "right"]), st.booleans(), st.integers(1, 8))
def test_encoder_decoder_rows_equal_single_runs(rows, side, use_cache, steps):
    if side == "left":
        rows = [
            r[:1] * (max(map(len, rows)) - len(r)) + r for r in rows
        ]  # this encoder counts positions from the left
    ids, mask = pad(rows, "right")
    out = generate(ENCODER_DECODER, ids, attention_mask=mask, max_new_tokens=steps, use_cache=use_cache)
    assert out.shape == (len(rows), steps + 1)
    assert (out[:, 0] == 3).all()
    for got, row in zip(out, rows):
        alone = generate(ENCODER_DECODER, torch.tensor([row]), max_new_tokens=steps)
        assert torch.equal(got, alone[0])


def test_padded_decoder_prompts_equal_single_runs():
    source = torch.tensor([[4, 5, 6]] * 3)
    rows = [[3, 7], [3, 8, 9, 10], [3, 2, 1]]
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        out = generate(
            ENCODER_DECODER, source, decoder_input_ids=ids, decoder_attention_mask=mask, max_new_tokens=5
        )
        assert torch.equal(out[:, :4], ids)
        for got, row in zip(out, rows):
            alone = generate(
                ENCODER_DECODER, source[:1], decoder_input_ids=torch.tensor([row]), max_new_tokens=5
            )
            assert got[4:].tolist() == alone[0, len(row) :].tolist()


def test_decoder_prompts_get_the_start_token_in_front():
    out = generate(
        ENCODER_DECODER, torch.tensor([[4, 5]]), decoder_input_ids=torch.tensor([[9, 8]]), max_new_tokens=2
    )
    assert out[0, :3].tolist() == [3, 9, 8]
    model = TinyEncoderDecoder()
    model.free_decoder_start = True
    out = generate(model, torch.tensor([[4, 5]]), decoder_input_ids=torch.tensor([[9, 8]]), max_new_tokens=2)
    assert out[0, :2].tolist() == [9, 8]


def test_encoder_outputs_may_be_given_and_the_encoder_runs_once():
    source = torch.tensor([[4, 5, 6], [7, 8, 9]])
    model = TinyEncoderDecoder()
    want = generate(model, source, max_new_tokens=6)
    assert model.encoded == 1
    encoded = model.encode(source)
    assert torch.equal(generate(model, encoder_outputs=encoded, max_new_tokens=6), want)
    assert torch.equal(generate(model, encoder_outputs=(encoded.last_hidden_state,), max_new_tokens=6), want)
    assert model.encoded == 2


def test_a_row_of_padding_alone_leaves_the_others_as_they_are():
    ids = torch.tensor([[0, 0, 0], [5, 6, 7]])
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    out = generate(DECODER, ids, attention_mask=mask, max_new_tokens=6)
    assert out[1, 3:].tolist() == greedy_by_hand(DECODER, [5, 6, 7], 6)


def test_a_masked_token_in_the_middle_is_not_seen():
    ids = torch.tensor([[5, 6, 7, 8], [5, 19, 7, 8]])
    mask = torch.tensor([[1, 0, 1, 1], [1, 0, 1, 1]])
    out = generate(DECODER, ids, attention_mask=mask, max_new_tokens=6)
    assert torch.equal(out[0, 4:], out[1, 4:])
    assert out[0, 4:].tolist() == greedy_by_hand(DECODER, [5, 7, 8], 6)


def test_padding_that_is_an_end_token_counts_as_text_without_a_mask():
    ids = torch.tensor([[0, 0, 5]])
    as_text = generate(DECODER, ids, max_new_tokens=4, pad_token_id=0, eos_token_id=0, min_new_tokens=4)
    all_ones = generate(
        DECODER, ids, max_new_tokens=4, attention_mask=torch.ones_like(ids), eos_token_id=0, min_new_tokens=4
    )
    assert torch.equal(as_text, all_ones)


def test_no_mask_is_passed_where_every_position_is_real():
    model = TinyDecoder()
    generate(model, torch.tensor([[4, 5], [6, 7]]), attention_mask=torch.ones(2, 2), max_new_tokens=3)
    assert all(call.mask is None and call.keep == 1 for call in model.calls)
    assert [call.new for call in model.calls] == [2, 1, 1]


def test_the_default_is_twenty_new_tokens_within_the_context():
    assert generate(DECODER, torch.tensor([[4, 5, 6]])).shape == (1, 23)
    assert generate(DECODER, torch.randint(1, 20, (1, 60))).shape == (1, 64)
    assert generate(DECODER, torch.tensor([[4, 5, 6]]), max_length=9).shape == (1, 9)
    assert generate(DECODER, torch.tensor([[4, 5, 6]]), max_length=20).shape == (1, 20)
    assert generate(DECODER, torch.tensor([[4, 5, 6]]), max_length=9, max_new_tokens=2).shape == (1, 5)


def test_no_new_tokens_returns_the_prompt():
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(generate(DECODER, ids, max_new_tokens=0), ids)
    out = generate(DECODER, ids, max_new_tokens=0, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences, ids)
    assert out.scores == ()


def test_truncation_keeps_the_end_of_a_long_prompt():
    ids = torch.randint(1, 20, (2, 100), generator=torch.Generator().manual_seed(0))
    out = generate(DECODER, ids, max_new_tokens=4, truncate="left")
    assert torch.equal(out[:, :100], ids)
    assert out[0, 100:].tolist() == greedy_by_hand(DECODER, ids[0, -60:].tolist(), 4)


def test_vectors_as_prompt_give_the_same_tokens():
    rows = [[5, 6, 7, 8], [9, 10]]
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        want = generate(DECODER, ids, attention_mask=mask, max_new_tokens=5)
        vectors = DECODER.embed(ids).detach()
        out = generate(DECODER, inputs_embeds=vectors, attention_mask=mask, max_new_tokens=5)
        assert torch.equal(out, want[:, 4:]), "only new tokens come back"
        both = generate(DECODER, ids, inputs_embeds=vectors, attention_mask=mask, max_new_tokens=5)
        assert torch.equal(both, want)
        assert generate(DECODER, inputs_embeds=vectors, attention_mask=mask, max_length=7).shape == (2, 3)


def test_other_inputs_go_to_the_first_step_only():
    model = TinyDecoder()
    pixels = torch.ones(1, 4, dtype=torch.float64)
    ids = torch.tensor([[4, 5]])
    plain = generate(model, ids, max_new_tokens=3)
    model.calls.clear()
    out = generate(model, ids, pixel_values=pixels, max_new_tokens=3)
    assert [call.pixels is not None for call in model.calls] == [True, False, False]
    assert not torch.equal(out, plain)
    model.calls.clear()
    generate(model, ids, pixel_values=pixels, max_new_tokens=3, use_cache=False)
    assert all(call.pixels is not None for call in model.calls)


@pytest.mark.parametrize("use_cache", [True, False])
def test_token_types_and_positions_go_on(use_cache):
    model = TinyDecoder()
    ids, types = torch.tensor([[4, 5, 6]]), torch.tensor([[0, 1, 2]])
    generate(
        model,
        ids,
        token_type_ids=types,
        position_ids=torch.tensor([[3, 4, 5]]),
        max_new_tokens=3,
        use_cache=use_cache,
    )
    last = model.calls[-1]
    assert last.types.tolist() == ([[2]] if use_cache else [[0, 1, 2, 2, 2]])
    assert last.places.tolist() == ([[7]] if use_cache else [[3, 4, 5, 6, 7]])


def test_a_prompt_may_be_empty_where_there_is_a_first_token():
    out = generate(DECODER, bos_token_id=6, max_new_tokens=3)
    assert out[0].tolist() == [6, *greedy_by_hand(DECODER, [6], 3)]


def test_a_conversation_goes_on_with_its_cache():
    model = TinyDecoder()
    first = generate(model, torch.tensor([[4, 5, 6]]), max_new_tokens=4, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, torch.tensor([[7, 8]])], dim=1)
    model.calls.clear()
    out = generate(model, longer, past_key_values=first.past_key_values, max_new_tokens=3)
    assert model.calls[0].new == 3, "the last new token and the two added ones"
    assert out[0, 9:].tolist() == greedy_by_hand(model, longer[0].tolist(), 3)


def test_returned_fields_of_a_decoder():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
    }
    out = generate(
        DECODER,
        ids,
        max_new_tokens=4,
        return_dict_in_generate=True,
        temperature=0.5,
        do_sample=True,
        seed=1,
        **asked,
    )
    assert isinstance(out, g.GenerateDecoderOnlyOutput)
    assert set(out) == {"sequences", "scores", "logits", "attentions", "hidden_states", "past_key_values"}
    assert len(out.scores) == len(out.logits) == len(out.attentions) == len(out.hidden_states) == 4
    assert out.scores[0].shape == (2, 23)
    assert [a[0].shape[-2:] for a in out.attentions] == [(3, 3), (1, 4), (1, 5), (1, 6)]
    assert [h[0].shape[1] for h in out.hidden_states] == [3, 1, 1, 1]
    top = g.TopKLogitsWarper(50)
    torch.testing.assert_close(out.scores[1], top(None, out.logits[1] / 0.5))
    assert out[0] is out.sequences
    bare = generate(DECODER, ids, max_new_tokens=4, return_dict_in_generate=True)
    assert set(bare) == {"sequences", "past_key_values"}


def test_returned_fields_of_an_encoder_decoder():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    out = generate(
        ENCODER_DECODER,
        ids,
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
        do_sample=True,
        num_return_sequences=2,
        seed=1,
    )
    assert isinstance(out, g.GenerateEncoderDecoderOutput)
    assert {
        "decoder_hidden_states",
        "encoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
    } <= set(out)
    assert out.encoder_hidden_states[0].shape[0] == 2
    assert [c[0].shape for c in out.cross_attentions] == [(4, 1, 1, 3)] * 3


def test_what_is_returned_may_be_trained_on():
    model = TinyDecoder()
    ids = generate(model, torch.tensor([[4, 5, 6]]), max_new_tokens=4)
    assert not ids.is_inference()
    model(ids).logits.sum().backward()
    ids += 1


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 12, "do_sample": True, "top_k": 0}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two, other = (generate(DECODER, ids, seed=s, **asked) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    first = generate(DECODER, ids, **asked)
    torch.manual_seed(3)
    assert torch.equal(generate(DECODER, ids, **asked), first)


def test_a_seed_for_each_row_makes_rows_independent():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 10, "do_sample": True, "top_k": 0}
    batch = generate(DECODER, ids, seed=[11, 12], **asked)
    for row, seed in enumerate((11, 12)):
        assert torch.equal(generate(DECODER, ids[row : row + 1], seed=seed, **asked)[0], batch[row])


def test_several_sequences_read_the_prompt_once():
    model = TinyDecoder()
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}
    out = generate(model, ids, num_return_sequences=3, seed=list(range(6)), **asked)
    assert out.shape == (6, 11)
    assert torch.equal(out[:, :3], ids.repeat_interleave(3, 0))
    for row in range(6):
        alone = generate(model, ids[row // 3 : row // 3 + 1], seed=row, **asked)
        assert torch.equal(out[row], alone[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 0}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.65, "top_k": 0}, [4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 0.4, "top_k": 0}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"bad_words_ids": [[0]]}, [0, 3 / 6, 2 / 6, 1 / 6]),
        ({"epsilon_cutoff": 0.15}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ],
)
def test_frequencies_of_sampling(options, expected):
    model = FixedScores(torch.tensor([0.4, 0.3, 0.2, 0.1]).log())
    draws = 4000
    out = generate(
        model, torch.zeros(draws, 1, dtype=torch.long), max_new_tokens=1, do_sample=True, seed=5, **options
    )
    found = torch.bincount(out[:, 1], minlength=4) / draws
    for share, chance in zip(found.tolist(), expected):
        # six standard deviations: the seed is fixed, the bound holds for any good generator
        assert abs(share - chance) <= 6 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9


weights_of_tokens = st.lists(st.sampled_from([0.0, 1.0, 0.5, 1e-7, 1e-30]), min_size=1, max_size=30)


@given(weights_of_tokens, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_token_at_its_point_of_the_summed_chances(weights, point):
    weights[len(weights) // 2] = 1.0
    chance = torch.tensor([weights], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_uniform", lambda *_: torch.full((1, 1), point, dtype=torch.float64))
        token = int(search.draw(chance.log(), []))
    assert weights[token] > 0
    total = sum(weights)
    assert sum(weights[:token]) / total <= point + 1e-9
    assert sum(weights[: token + 1]) / total >= point - 1e-9


def test_your_own_processors_and_criteria_are_used():
    class Only(g.LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.masked_fill(torch.arange(scores.shape[1]) != input_ids.shape[1], -1e9)

    class AtFive(g.StoppingCriteria):
        def __call__(self, input_ids, scores, **extra):
            return input_ids[:, -1] == 5

    ids = torch.tensor([[4, 5, 6]])
    out = generate(DECODER, ids, max_new_tokens=6, logits_processor=[Only()], stopping_criteria=[AtFive()])
    assert out.tolist() == [[4, 5, 6, 3, 4, 5]]
    stop_at = g.StoppingCriteriaList([g.MaxLengthCriteria(5)])
    assert generate(DECODER, ids, max_new_tokens=20, stopping_criteria=stop_at).shape == (1, 5)


def test_your_processor_replaces_the_one_of_the_settings():
    ids = torch.tensor([[4, 5, 6]])
    mine = g.MinNewTokensLengthLogitsProcessor(3, 5, 2)
    model = FixedScores(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    out = generate(
        model, ids % 3, max_new_tokens=9, min_new_tokens=1, eos_token_id=2, logits_processor=[mine]
    )
    assert (out[0] == 2).nonzero()[-1].item() == 3 + 5


def test_prefix_function_sees_each_row():
    seen = []

    def allowed(row, ids):
        seen.append((row, len(ids)))
        return [row + 1]

    out = generate(DECODER, torch.tensor([[4], [5]]), max_new_tokens=2, prefix_allowed_tokens_fn=allowed)
    assert out[:, 1:].tolist() == [[1, 1], [2, 2]]
    assert seen == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_guidance_moves_away_from_the_negative_prompt():
    ids, mask = pad([[4, 5, 6], [7, 8]], "left")
    negative = torch.tensor([[9, 10], [11, 12]])
    out = generate(
        DECODER, ids, attention_mask=mask, max_new_tokens=4, guidance_scale=2.5, negative_prompt_ids=negative
    )
    for row, prompt in enumerate(([4, 5, 6], [7, 8])):
        good, bad = list(prompt), negative[row].tolist()
        for step in range(4):
            with torch.no_grad():
                yes, no = (DECODER(torch.tensor([x])).logits[0, -1].log_softmax(-1) for x in (good, bad))
            token = int((no + 2.5 * (yes - no)).argmax())
            assert int(out[row, 3 + step]) == token
            good.append(token)
            bad.append(token)
    alone = generate(DECODER, ids, attention_mask=mask, max_new_tokens=4, guidance_scale=2.5)
    last = generate(
        DECODER,
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        guidance_scale=2.5,
        negative_prompt_ids=ids[:, -1:],
    )
    assert torch.equal(alone, last)


def test_time_limit_stops_after_a_step():
    out = generate(DECODER, torch.tensor([[4, 5, 6]]), max_new_tokens=40, max_time=0.0)
    assert out.shape[1] < 43


def test_scores_of_the_chosen_tokens():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    out = generate(DECODER, ids, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    got = g.compute_transition_scores(DECODER, out.sequences, out.scores, normalize_logits=True)
    for row in range(2):
        for step in range(4):
            want = out.scores[step][row].log_softmax(-1)[out.sequences[row, 3 + step]]
            torch.testing.assert_close(got[row, step], want)


def test_threads_do_not_disturb_each_other():
    prompts = [torch.tensor([[4 + i, 5, 6 + i]]) for i in range(4)]
    want = [generate(DECODER, p, max_new_tokens=20) for p in prompts]
    got = [None] * 4

    def work(i):
        got[i] = [generate(DECODER, prompts[i], max_new_tokens=20) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, want[i]) for i in range(4) for x in got[i])


def test_lists_and_other_integer_types_are_prompts():
    want = generate(DECODER, torch.tensor([[4, 5, 6]]), max_new_tokens=3)
    assert torch.equal(generate(DECODER, [[4, 5, 6]], max_new_tokens=3), want)
    assert torch.equal(
        generate(DECODER, torch.tensor([[4, 5, 6]], dtype=torch.int32), max_new_tokens=3), want
    )


def test_padding_the_embedding_does_not_know_stands_only_in_the_output():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    eos = greedy_by_hand(DECODER, [4, 5, 6], 1)[0]
    out = generate(DECODER, ids, max_new_tokens=5, eos_token_id=eos, pad_token_id=-1)
    assert out[0, 4:].tolist() == [-1] * (out.shape[1] - 4)
    assert out[1, 3:].tolist() == greedy_by_hand(DECODER, [7, 8, 9], 5, [eos])
