"""Each logits processor against a plain definition, row by row and token by token, and the errors of bad
settings.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import phyla.generation as g
from phyla.errors import ArgumentError, GenerationError

NEVER = -math.inf
V = 12


@st.composite
def states(draw, rows=3, most=9, vocabulary=V, wide=False):
    """Ids so far (rows, length) and scores (rows, vocabulary), some of them -inf."""
    rows = draw(st.integers(1, rows))
    length = draw(st.integers(1, most))
    ids = draw(st.lists(st.lists(st.integers(0, vocabulary - 1), min_size=length, max_size=length),
                        min_size=rows, max_size=rows))  # fmt: skip
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([0.5, 2, 6])
    )
    banned = draw(st.lists(st.integers(0, vocabulary - 1), max_size=4))
    scores[:, banned] = NEVER
    scores[:, draw(st.integers(0, vocabulary - 1))] = 0.25
    return torch.tensor(ids), scores


def by_hand(ids, scores, one_row):
    """Apply a function of (list of ids, list of scores, row) -> list of scores to each row."""
    return torch.tensor(
        [one_row(i, s, r) for r, (i, s) in enumerate(zip(ids.tolist(), scores.tolist()))], dtype=scores.dtype
    )


def check(processor, ids, scores, one_row):
    before = scores.clone()
    got = processor(ids, scores)
    assert torch.equal(scores, before), "a processor may not change its input"
    torch.testing.assert_close(got, by_hand(ids, scores, one_row), rtol=1e-9, atol=1e-9)


def softmax(scores):
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def keep_only(scores, kept):
    return [s if i in kept else NEVER for i, s in enumerate(scores)]


@given(states(), st.floats(0.05, 5))
def test_temperature(state, temperature):
    check(g.TemperatureLogitsWarper(temperature), *state, lambda i, s, r: [x / temperature for x in s])


@given(states(), st.integers(1, 15), st.integers(1, 4))
def test_top_k(state, k, least):
    def one_row(ids, scores, row):
        cut = sorted(scores, reverse=True)[: max(k, least)][-1]
        return [s if s >= cut else NEVER for s in scores]

    check(g.TopKLogitsWarper(k, min_tokens_to_keep=least), *state, one_row)


@given(states(), st.floats(0, 1), st.integers(1, 4))
def test_top_p(state, p, least):
    def one_row(ids, scores, row):
        chance = softmax(scores)
        order = sorted(range(V), key=lambda i: -scores[i])
        kept, total = set(), 0.0
        for rank, token in enumerate(order):
            if total < p - 1e-12 or rank < least or p == 1:
                kept.add(token)
            total += chance[token]
        return keep_only(scores, kept)

    check(g.TopPLogitsWarper(p, min_tokens_to_keep=least), *state, one_row)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 0.999999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_p_over_a_large_vocabulary_keeps_the_smallest_set(p, spread):
    scores = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    got = g.TopPLogitsWarper(p)(torch.zeros(3, 1, dtype=torch.long), scores)
    for row, scores_row in zip(got, scores):
        chance, order = scores_row.softmax(-1).sort(descending=True)
        size = max(1, int((chance.cumsum(-1) < p).sum()) + 1)
        assert set((row > NEVER).nonzero().flatten().tolist()) == set(order[: min(size, 5000)].tolist())


@given(states(), st.floats(0, 1), st.integers(1, 4))
def test_min_p(state, p, least):
    def one_row(ids, scores, row):
        chance = softmax(scores)
        best = sorted(range(V), key=lambda i: -scores[i])[:least]
        return keep_only(scores, {i for i in range(V) if chance[i] >= p * max(chance) or i in best})

    check(g.MinPLogitsWarper(p, min_tokens_to_keep=least), *state, one_row)


@given(states(), st.floats(0.05, 0.99))
def test_typical(state, mass):
    ids, scores = state
    got = g.TypicalLogitsWarper(mass)(ids, scores)
    for kept, row in zip((got > NEVER).tolist(), scores.tolist()):
        chance = softmax(row)
        entropy = -sum(p * math.log(p) for p in chance if p > 0)
        far = [abs(-math.log(p) - entropy) if p > 0 else math.inf for p in chance]
        order = sorted(range(V), key=lambda i: far[i])
        total, cut = 0.0, None
        for token in order:
            total += chance[token]
            cut = far[token]
            if total >= mass:
                break
        inside = [i for i in range(V) if far[i] < cut - 1e-9 and chance[i] > 0]
        assert all(kept[i] for i in inside)
        assert not any(kept[i] for i in range(V) if far[i] > cut + 1e-9)


@given(states(), st.floats(0.001, 0.9), st.integers(1, 3))
def test_epsilon_cutoff(state, epsilon, least):
    def one_row(ids, scores, row):
        chance = softmax(scores)
        cut = sorted(scores, reverse=True)[least - 1]
        return [s if p >= epsilon or s >= cut else NEVER for s, p in zip(scores, chance)]

    check(g.EpsilonLogitsWarper(epsilon, min_tokens_to_keep=least), *state, one_row)


@given(states(), st.floats(0.001, 0.9))
def test_eta_cutoff(state, epsilon):
    def one_row(ids, scores, row):
        chance = softmax(scores)
        entropy = -sum(p * math.log(p) for p in chance if p > 0)
        cut = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        return [s if p >= cut or s == max(scores) else NEVER for s, p in zip(scores, chance)]

    check(g.EtaLogitsWarper(epsilon), *state, one_row)


def penalised(scores, seen, penalty):
    return [(s * penalty if s < 0 else s / penalty) if i in seen else s for i, s in enumerate(scores)]


@given(states(), st.floats(0.3, 3))
def test_repetition_penalty(state, penalty):
    check(g.RepetitionPenaltyLogitsProcessor(penalty), *state, lambda i, s, r: penalised(s, i, penalty))


@given(states(), st.floats(0.3, 3), st.data())
def test_repetition_penalty_does_not_count_padding(state, penalty, data):
    ids, scores = state
    pads = [data.draw(st.integers(0, ids.shape[1] - 1)) for _ in ids]
    mask = torch.tensor([[0] * p + [1] * (ids.shape[1] - p) for p in pads])
    more = torch.cat([ids, ids[:, :1]], dim=1)  # one generated token
    check(g.RepetitionPenaltyLogitsProcessor(penalty, mask), more, scores,
          lambda i, s, r: penalised(s, i[pads[r] :], penalty))  # fmt: skip


@given(states(), st.floats(0.3, 3), st.data())
def test_encoder_repetition_penalty(state, penalty, data):
    ids, scores = state
    source = torch.tensor([[data.draw(st.integers(0, V - 1)) for _ in range(4)] for _ in ids])
    check(g.EncoderRepetitionPenaltyLogitsProcessor(penalty, source), ids, scores,
          lambda i, s, r: penalised(s, source[r].tolist(), 1 / penalty))  # fmt: skip


def after(ids, n, text):
    """Tokens that would complete an n-gram of `text` behind `ids`."""
    tail = ids[len(ids) - n + 1 :] if n > 1 else []
    if len(tail) < n - 1:
        return set()
    return {text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == tail}


@given(states(most=14, vocabulary=V), st.integers(1, 4), st.booleans())
def test_no_repeat_ngram(state, n, narrow):
    ids, scores = state
    ids = ids % 3 if narrow else ids
    check(g.NoRepeatNGramLogitsProcessor(n), ids, scores,
          lambda i, s, r: [NEVER if t in after(i, n, i) else x for t, x in enumerate(s)])  # fmt: skip


@given(states(most=10), st.integers(1, 3), st.data())
def test_no_repeat_ngram_does_not_count_padding(state, n, data):
    ids, scores = state
    ids = ids % 3
    pads = [data.draw(st.integers(0, ids.shape[1] - 1)) for _ in ids]
    mask = torch.tensor([[0] * p + [1] * (ids.shape[1] - p) for p in pads])
    generated = torch.tensor([[data.draw(st.integers(0, 2)) for _ in range(3)] for _ in ids])
    ids = torch.cat([ids, generated], dim=1)
    check(
        g.NoRepeatNGramLogitsProcessor(n, mask),
        ids,
        scores,
        lambda i, s, r: [NEVER if t in after(i, n, i[pads[r] :]) else x for t, x in enumerate(s)],
    )


@given(states(), st.integers(1, 3), st.data())
def test_encoder_no_repeat_ngram(state, n, data):
    ids, scores = state
    ids = ids % 3
    source = torch.tensor([[data.draw(st.integers(0, 2)) for _ in range(6)] for _ in ids])
    check(
        g.EncoderNoRepeatNGramLogitsProcessor(n, source),
        ids,
        scores,
        lambda i, s, r: [NEVER if t in after(i, n, source[r].tolist()) else x for t, x in enumerate(s)],
    )


sequences = st.lists(st.integers(0, V - 1), min_size=1, max_size=3)


@given(
    states(), st.dictionaries(sequences.map(tuple), st.floats(-5, 5), min_size=1, max_size=5), st.booleans()
)
def test_sequence_bias(state, bias, as_lists):
    def one_row(ids, scores, row):
        scores = list(scores)
        for words, amount in bias.items():
            fits = len(words) == 1 or (len(words) <= len(ids) and ids[-len(words) + 1 :] == list(words[:-1]))
            scores[words[-1]] += amount if fits else 0
        return scores

    given_as = [[list(k), v] for k, v in bias.items()] if as_lists else bias
    processor = g.SequenceBiasLogitsProcessor(given_as)
    ids, scores = state
    torch.testing.assert_close(processor(ids, scores), by_hand(ids, scores, one_row), rtol=1e-6, atol=1e-6)


@given(states(), st.lists(sequences, min_size=1, max_size=5), st.integers(0, V - 1))
def test_bad_words(state, words, eos):
    def one_row(ids, scores, row):
        scores = list(scores)
        for word in words:
            if word != [eos] and (
                len(word) == 1 or (len(word) <= len(ids) and ids[-len(word) + 1 :] == word[:-1])
            ):
                scores[word[-1]] = NEVER
        return scores

    check(g.NoBadWordsLogitsProcessor(words, eos), *state, one_row)


@given(states(), st.data())
def test_prefix_constraint(state, data):
    table = [[data.draw(st.integers(0, V - 1)) for _ in range(2)] for _ in range(V)]
    check(g.PrefixConstrainedLogitsProcessor(lambda row, ids: table[int(ids[-1])]), *state,
          lambda i, s, r: keep_only(s, table[i[-1]]))  # fmt: skip


def test_prefix_constraint_with_beams_and_nothing_allowed():
    seen = []
    processor = g.PrefixConstrainedLogitsProcessor(lambda row, ids: seen.append(row) or [0], num_beams=2)
    processor(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, V))
    assert seen == [0, 0, 1, 1]
    with pytest.raises(GenerationError, match="returned none for row 0 after 1 tokens"):
        g.PrefixConstrainedLogitsProcessor(lambda row, ids: [])(
            torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, V)
        )


eos_ids = st.one_of(st.integers(0, V - 1), st.lists(st.integers(0, V + 5), min_size=1, max_size=3))


def as_set(ids):
    return {ids} if isinstance(ids, int) else set(ids)


@given(states(), st.integers(0, 12), eos_ids)
def test_min_length(state, least, eos):
    check(
        g.MinLengthLogitsProcessor(least, eos),
        *state,
        lambda i, s, r: [NEVER if len(i) < least and t in as_set(eos) else x for t, x in enumerate(s)],
    )


@given(states(), st.integers(0, 5), st.integers(0, 8), eos_ids)
def test_min_new_tokens(state, prompt, least, eos):
    check(
        g.MinNewTokensLengthLogitsProcessor(prompt, least, eos),
        *state,
        lambda i, s, r: [
            NEVER if len(i) - prompt < least and t in as_set(eos) else x for t, x in enumerate(s)
        ],
    )


@given(states())
def test_forced_first_token(state):
    check(g.ForcedBOSTokenLogitsProcessor(3), *state,
          lambda i, s, r: [0 if t == 3 else NEVER for t in range(V)] if len(i) == 1 else s)  # fmt: skip


@given(states(), st.integers(1, 10), eos_ids)
def test_forced_last_token(state, length, eos):
    check(
        g.ForcedEOSTokenLogitsProcessor(length, eos),
        *state,
        lambda i, s, r: [0 if t in as_set(eos) else NEVER for t in range(V)] if len(i) == length - 1 else s,
    )


@given(states(), st.lists(st.integers(0, V + 9), min_size=1, max_size=5), st.integers(1, 9))
def test_suppressed_tokens(state, tokens, begin):
    banned = lambda s: [NEVER if t in tokens else x for t, x in enumerate(s)]  # noqa: E731
    check(g.SuppressTokensLogitsProcessor(tokens), *state, lambda i, s, r: banned(s))
    check(g.SuppressTokensAtBeginLogitsProcessor(tokens, begin), *state,
          lambda i, s, r: banned(s) if len(i) == begin else s)  # fmt: skip


@given(states(), st.integers(0, 5), st.floats(1, 2), st.integers(0, 4))
def test_exponential_decay_of_length(state, start, factor, prompt):
    def one_row(ids, scores, row):
        past = len(ids) - start - prompt
        raised = [
            x + abs(x) * (factor**past - 1) if t in (2, 3) and x > NEVER else x for t, x in enumerate(scores)
        ]
        return raised if past > 0 else scores

    check(g.ExponentialDecayLengthPenalty((start, factor), [2, 3], prompt), *state, one_row)


@given(states())
def test_normalisation_and_repair(state):
    ids, scores = state
    total = g.LogitNormalization()(ids, scores).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    broken = scores.clone()
    broken[0, :3] = torch.tensor([math.nan, math.inf, NEVER])
    fixed = g.InfNanRemoveLogitsProcessor()(ids, broken)
    most = torch.finfo(scores.dtype).max
    assert fixed.isfinite().all()
    assert fixed[0, :3].tolist() == [0, most, -most]


def test_hamming_diversity_counts_earlier_groups_only():
    scores = torch.zeros(4, 6)  # 2 batches, group of 2 beams
    tokens = torch.tensor([1, 1, 0, 0, 2, 3, 0, 0])
    processor = g.HammingDiversityLogitsProcessor(0.5, num_beams=4, num_beam_groups=2)
    assert processor(None, scores, tokens, 0) is scores
    got = processor(None, scores, tokens, 1)
    assert got.tolist() == [[0, -1, 0, 0, 0, 0]] * 2 + [[0, 0, -0.5, -0.5, 0, 0]] * 2


def test_guidance_of_two_halves():
    scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    got = g.ClassifierFreeGuidanceLogitsProcessor(3)(torch.zeros(1, 4), scores)
    assert got.tolist() == [[3 + (1 - 3) * 3, 1 + (2 - 1) * 3]]
    with pytest.raises(ArgumentError, match="twice the rows"):
        g.ClassifierFreeGuidanceLogitsProcessor(3)(torch.zeros(2, 4), scores)


def test_codebooks_take_turns():
    processor = g.AlternatingCodebooksLogitsProcessor(
        input_start_len=2, semantic_vocab_size=3, codebook_size=2
    )
    first = processor(torch.zeros(1, 2), torch.zeros(1, 7))[0]
    second = processor(torch.zeros(1, 3), torch.zeros(1, 7))[0]
    assert (first > NEVER).tolist() == [False] * 3 + [True] * 2 + [False] * 2
    assert (second > NEVER).tolist() == [False] * 5 + [True] * 2


def test_likely_end_ends_at_once():
    scores = torch.tensor([[0.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
    got = g.BarkEosPrioritizerLogitsProcessor(2, 0.2)(None, scores)
    assert got[0].tolist() == [NEVER, NEVER, 3.0]
    assert torch.equal(got[1], scores[1])


class Stamps:
    no_timestamps_token_id, eos_token_id, bos_token_id = 9, 8, 8
    max_initial_timestamp_index = 2


@given(st.lists(st.integers(0, 19), max_size=8), st.booleans(), st.integers(0, 2**20))
def test_time_stamps_follow_the_rules(transcript, detect, seed):
    ids = torch.tensor([[1, 2, *transcript]])
    scores = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed))
    processor = g.WhisperTimeStampLogitsProcessor(
        Stamps, begin_index=2, _detect_timestamp_from_logprob=detect
    )
    allowed = {i for i in range(20) if i != 9}
    stamps = [t for t in transcript if t >= 10]
    last = bool(transcript) and transcript[-1] >= 10
    paired = len(transcript) < 2 or transcript[-2] >= 10
    if last and paired:
        allowed -= set(range(10, 20))
    elif last:
        allowed -= set(range(8))
    if stamps:
        allowed -= set(range(10, stamps[-1] + (0 if last and not paired else 1)))
    if not transcript:
        allowed &= {10, 11, 12}
    if detect:
        chance = {i: math.exp(scores[0, i]) for i in allowed}
        in_stamps = sum(p for i, p in chance.items() if i >= 10)
        if in_stamps > max([p for i, p in chance.items() if i < 10], default=0):
            allowed -= set(range(10))
    got = processor(ids, scores)
    assert set((got[0] > NEVER).nonzero().flatten().tolist()) == allowed


def test_no_speech_probability_is_noted():
    processor = g.WhisperNoSpeechDetection(no_speech_token=1, begin_index=1)
    scores = torch.tensor([[0.0, math.log(3.0)]])
    assert processor(torch.zeros(1, 1), scores) is scores
    assert float(processor.no_speech_prob[0]) == pytest.approx(0.75)
    with pytest.raises(GenerationError, match="set_model"):
        g.WhisperNoSpeechDetection(1, begin_index=2)(torch.zeros(1, 2), scores)


def test_a_list_passes_extra_arguments_by_name():
    class Needs(g.LogitsProcessor):
        def __call__(self, input_ids, scores, offset):
            return scores + offset

    steps = g.LogitsProcessorList([g.TemperatureLogitsWarper(2.0), Needs()])
    assert steps(None, torch.tensor([[4.0]]), offset=1).item() == 3.0
    with pytest.raises(ArgumentError, match="'offset'"):
        steps(None, torch.tensor([[4.0]]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: g.TemperatureLogitsWarper(0.0), "temperature must be .*above 0"),
        (lambda: g.TemperatureLogitsWarper(math.nan), "temperature must be a finite number"),
        (lambda: g.TopPLogitsWarper(2), "top_p must be a finite number at least 0 and at most 1, but is 2"),
        (lambda: g.TopKLogitsWarper(-3), "top_k must be an integer at least 1, but is -3"),
        (lambda: g.TopKLogitsWarper(2, min_tokens_to_keep=0), "min_tokens_to_keep"),
        (lambda: g.MinPLogitsWarper(-0.1), "min_p"),
        (lambda: g.TypicalLogitsWarper(1.0), "typical_p"),
        (lambda: g.EpsilonLogitsWarper(0.0), "epsilon_cutoff"),
        (lambda: g.EtaLogitsWarper(1.0), "eta_cutoff"),
        (lambda: g.RepetitionPenaltyLogitsProcessor(0), "repetition_penalty"),
        (lambda: g.NoRepeatNGramLogitsProcessor(0), "ngram_size"),
        (lambda: g.NoBadWordsLogitsProcessor([]), "bad_words_ids"),
        (lambda: g.NoBadWordsLogitsProcessor([[-1]]), "bad_words_ids"),
        (lambda: g.SequenceBiasLogitsProcessor({}), "sequence_bias"),
        (lambda: g.HammingDiversityLogitsProcessor(0.0, 4, 2), "diversity_penalty"),
        (lambda: g.ClassifierFreeGuidanceLogitsProcessor(1), "guidance_scale"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(GenerationError, match=words):
        make()


def test_sequence_bias_past_the_vocabulary():
    with pytest.raises(GenerationError, match="below the vocabulary size 4, but has 7"):
        g.SequenceBiasLogitsProcessor({(7,): 1.0})(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4))


@settings(max_examples=20)
@given(states())
def test_processors_can_be_copied(state):
    processor = copy.deepcopy(g.NoBadWordsLogitsProcessor([[1], [2, 3]], 5))
    assert processor(*state).shape == state[1].shape
