"""What the reference lacks: penalties, filters, settings of rows, streams of beams; and token healing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FixedScores, TinyDecoder

import phyla
import phyla.generation as g
from phyla.errors import GenerationError
from phyla.generation import generate

DECODER = TinyDecoder()
IDS = torch.tensor([[4, 5, 6], [7, 8, 9]])


def test_presence_and_frequency():
    penalty = g.PresenceFrequencyLogitsProcessor(0.5, 0.25, prompt_length=2)
    out = penalty(torch.tensor([[0, 1, 2, 2, 3]]), torch.zeros(1, 5))
    assert out.tolist() == [[0, 0, -1.0, -0.75, 0]]


def repetition(ids, token, breakers):
    """Length of the repetition that `token` would lengthen, found by comparing lists."""
    best = 0
    for at in range(len(ids)):
        if ids[at] == token:
            n = 0
            while n < at and ids[at - 1 - n] == ids[len(ids) - 1 - n] and ids[at - 1 - n] not in breakers:
                n += 1
            best = max(best, n)
    return best


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 3),
    st.lists(st.integers(0, 3), max_size=1),
)  # fmt: skip
def test_dry(ids, allowed, breakers):
    penalty = g.DRYLogitsProcessor(0.8, 1.5, allowed, breakers)
    out = penalty(torch.tensor([ids]), torch.zeros(1, 5))[0].tolist()
    for token in range(5):
        n = repetition(ids, token, breakers)
        assert out[token] == pytest.approx(-0.8 * 1.5 ** (n - allowed) if n >= allowed else 0.0)


def test_dry_ends_a_loop():
    table = torch.full((4, 4), -5.0)
    for token in range(3):
        table[token, (token + 1) % 3] = 5.0
    free = generate(FixedScores(table), torch.tensor([[0]]), max_new_tokens=30)
    assert free[0, 1:].tolist() == [1, 2, 0] * 10
    out = generate(FixedScores(table), torch.tensor([[0]]), max_new_tokens=30, dry_multiplier=1.0)
    assert out[0, 16:].tolist() != out[0, 13:28].tolist()


def test_xtc_top_n_sigma():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    always = g.XTCLogitsWarper(1.0, 0.14)(IDS[:1], scores)
    assert (always == -math.inf).tolist() == [[True, True, False, False]]
    assert torch.equal(g.XTCLogitsWarper(0.0, 0.14)(IDS[:1], scores), scores)
    assert torch.equal(g.XTCLogitsWarper(1.0, 0.14, keep=[1])(IDS[:1], scores), scores)
    scores = torch.tensor([[4.0, 3.0, 0.0, 0.0, 0.0, -math.inf]])
    kept = g.TopNSigmaLogitsWarper(1.0)(IDS[:1], scores)
    assert (kept == -math.inf).tolist() == [[False, False, True, True, True, True]]
    assert torch.equal(g.TopNSigmaLogitsWarper(1.0)(IDS[:1], scores / 2), kept / 2), (
        "whatever the temperature"
    )


def test_mirostat_steers_the_surprise():
    torch.manual_seed(0)
    model = FixedScores(3 * torch.randn(400, 400))
    model.config.max_position_embeddings = 2000
    for tau in (2.0, 4.0):
        out = generate(
            model, torch.tensor([[1]] * 4), do_sample=True, top_k=0, max_new_tokens=400, mirostat_tau=tau,
            seed=1, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        chosen = torch.stack(out.scores, 1).log_softmax(-1).gather(2, out.sequences[:, 1:, None])
        assert float(-chosen[:, 100:].mean() / math.log(2)) == pytest.approx(tau, abs=0.4)


def test_rows_have_settings_of_their_own():
    rows = [{"do_sample": False, "repetition_penalty": 1.5}, {"temperature": 0.7, "top_k": 3}]
    asked = {"max_new_tokens": 8, "do_sample": True}
    out = generate(DECODER, IDS, row_settings=rows, seed=[1, 2], **asked)
    first = generate(DECODER, IDS[:1], max_new_tokens=8, repetition_penalty=1.5)
    second = generate(DECODER, IDS[1:], temperature=0.7, top_k=3, seed=[2], **asked)
    assert torch.equal(out[:1], first)
    assert torch.equal(out[1:], second)
    same = generate(DECODER, IDS, row_settings=[{}, {}], seed=[1, 2], **asked)
    assert torch.equal(same, generate(DECODER, IDS, seed=[1, 2], **asked))
    with pytest.raises(GenerationError, match="row_settings work without num_beams"):
        generate(DECODER, IDS, row_settings=rows, num_beams=2)


class Kept(g.BaseStreamer):
    def __init__(self):
        self.prompt, self.columns, self.over, self.ended = None, [], {}, False

    def put(self, value):
        if self.prompt is None:
            self.prompt = value
        else:
            self.columns.append(value)

    def end_row(self, row):
        self.over[row] = len(self.columns)

    def end(self):
        self.ended = True


BEAMS = {
    "plain": {"num_beams": 3}, "returned": {"num_beams": 4, "num_return_sequences": 2},
    "drawn": {"num_beams": 3, "do_sample": True, "seed": 1},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
    "forced": {"num_beams": 4, "force_words_ids": [[11, 12]]},
}  # fmt: skip


@settings(max_examples=30)
@given(st.sampled_from(sorted(BEAMS)), st.lists(st.integers(1, 22), max_size=6, unique=True))
def test_beams_stream_what_is_settled(kind, eos):
    asked = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": eos or None, **BEAMS[kind]}
    streamer = Kept()
    out = generate(DECODER, IDS, streamer=streamer, **asked)
    assert torch.equal(out, generate(DECODER, IDS, **asked)), "a streamer changes nothing"
    assert torch.equal(torch.cat([streamer.prompt, torch.stack(streamer.columns, 1)], 1), out)
    assert streamer.ended


def test_beams_stream_before_they_end():
    table = torch.full((6, 6), -9.0)
    for token in range(6):
        table[token, (token + 1) % 6] = 9.0
    seen = []

    class Watch(Kept):
        def put(self, value):
            super().put(value)
            seen.append(len(model.calls))

    model = TinyDecoder()
    model.calls.clear()
    generate(model, IDS[:1], num_beams=2, max_new_tokens=30, streamer=Watch())
    assert min(seen[1:]) < 30


class Letters:
    """A tokenizer of whole words and their beginnings."""

    words = ("<bos>", "<pad>", " ", "h", "ht", "http", "a", "b", "://", "x")
    bos_token_id, pad_token_id, eos_token_id = 0, 1, None

    def __call__(self, texts, return_tensors=None, padding=False, add_special_tokens=True):
        rows = [
            [0] * add_special_tokens + self.read(t) for t in ([texts] if isinstance(texts, str) else texts)
        ]
        if not padding:
            return {"input_ids": rows[0]}
        width = max(map(len, rows))
        return {"input_ids": torch.tensor([[1] * (width - len(r)) + r for r in rows])}

    def read(self, text):
        ids = []
        while text:
            best = max((w for w in self.words if text.startswith(w)), key=len)
            ids.append(self.words.index(best))
            text = text[len(best) :]
        return ids

    def decode(self, ids, skip_special_tokens=False):
        ids = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        return "".join(self.words[i] for i in ids if not (skip_special_tokens and i < 2))

    def batch_decode(self, rows, skip_special_tokens=False):
        return [self.decode(r, skip_special_tokens) for r in rows]

    def get_vocab(self):
        return {w: i for i, w in enumerate(self.words)}

    def convert_tokens_to_ids(self, word):
        return self.words.index(word)

    def convert_ids_to_tokens(self, i):
        return self.words[i]


def test_token_healing():
    table = torch.zeros(10, 10)
    table[:, 5] = 5.0
    table[5, 8] = 9.0
    model = FixedScores(table)
    model.generate = lambda ids, **more: generate(model, ids, **more)
    ids = torch.tensor([[0, 6, 4], [0, 6, 7]])  # "aht", "ab"
    out = generate(model, ids, token_healing=True, tokenizer=Letters(), max_new_tokens=1)
    assert out[0].tolist() == [1, 6, 5, 8], "ht became http, and :// follows"
    assert out[1, :3].tolist() == [1, 6, 7], "b begins no other word"


def tiny_llama():
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=None,
    )  # fmt: skip
    return phyla.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded", "hybrid", "quantized"])
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_kinds_of_memory(kind, way):
    model, ids = tiny_llama(), torch.arange(3, 12)[None]
    settings = {"nbits": 8, "residual_length": 4, "q_group_size": 8} if kind == "quantized" else None
    asked = {"max_new_tokens": 16, **way}
    out = model.generate(ids, cache_implementation=kind, cache_config=settings, **asked)
    want = model.generate(ids, **asked)
    assert out.shape == want.shape
    if kind != "quantized":
        assert torch.equal(out, want)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_memory_is_near_and_small(bits):
    model, ids = tiny_llama(), torch.arange(3, 35)[None]
    settings = g.QuantizedCacheConfig(nbits=bits, residual_length=8, q_group_size=8)
    asked = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    out = model.generate(ids, cache_implementation="quantized", cache_config=settings, **asked)
    want = model.generate(ids, **asked)
    assert torch.equal(out.logits[0], want.logits[0]), "the prompt is read whole"
    far = (out.logits[1] - want.logits[1]).abs().max()
    assert far < {2: 0.5, 4: 0.1, 8: 0.01}[bits]
    slot = out.past_key_values.slots[0]
    assert len(slot.packed) >= 3
    assert slot.packed[0][0].codes.numel() * 8 == slot.packed[0][0].whole().numel() * bits


@pytest.mark.parametrize(
    "way", [{"dola_layers": [0, 1]}, {"penalty_alpha": 0.5, "top_k": 3}, BEAMS["groups"], BEAMS["forced"]]
)
def test_rows_of_every_strategy_equal_their_single_runs(way):
    ids = torch.tensor([[4, 5, 6, 7], [0, 0, 8, 9]])
    asked = {"max_new_tokens": 7, "pad_token_id": 0, "eos_token_id": 3, **way}
    times = way.get("num_return_sequences", 1)
    out = generate(DECODER, ids, attention_mask=ids != 0, **asked)
    for row, text in enumerate(([4, 5, 6, 7], [8, 9])):
        alone = generate(DECODER, torch.tensor([text]), **asked)[:, len(text) :]
        mine = out[row * times : (row + 1) * times, 4:]
        assert torch.equal(mine[:, : alone.shape[1]], alone)
        assert not mine[:, alone.shape[1] :].any()


def test_low_memory_changes_nothing():
    asked = {"max_new_tokens": 7, "penalty_alpha": 0.5, "top_k": 3}
    assert torch.equal(generate(DECODER, IDS, low_memory=True, **asked), generate(DECODER, IDS, **asked))
