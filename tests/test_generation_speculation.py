"""Speculative decoding: its tokens are the model's own, greedy and drawn, in batches, for every kind of
draft.
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FixedScores, TinyCache, TinyDecoder, TinyEncoderDecoder

import phyla
from phyla.generation import generate
from phyla.generation.caches.quantized import QuantizedKV

DECODER, DRAFT = TinyDecoder(), TinyDecoder(seed=5)
PAIR, SMALL_PAIR = TinyEncoderDecoder(), TinyEncoderDecoder(seed=4)
rows_of_ids = st.lists(st.lists(st.integers(1, 22), min_size=1, max_size=6), min_size=1, max_size=4)


def padded(rows, side):
    width = max(map(len, rows))
    fill = [[0] * (width - len(r)) for r in rows]
    return torch.tensor([f + r if side == "left" else r + f for r, f in zip(rows, fill)])


def likeness(seed):
    """The big model, a little changed: a draft that is right at times."""
    model = TinyDecoder()
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data += 0.15 * torch.randn_like(p)
    return model


DRAFTS = {
    "lookup": {"prompt_lookup_num_tokens": 3},
    "long-lookup": {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 1},
    "stranger": {"assistant_model": DRAFT},
    "relative": {
        "assistant_model": likeness(1),
        "num_assistant_tokens": 5,
        "assistant_confidence_threshold": 0.0,
    },
    "itself": {"assistant_model": DECODER, "num_assistant_tokens_schedule": "heuristic_transient"},
}


@settings(max_examples=40)
@given(
    rows_of_ids, st.sampled_from(["left", "right"]), st.sampled_from(sorted(DRAFTS)), st.integers(1, 14),
    st.lists(st.integers(1, 22), max_size=6, unique=True), st.booleans(),
)  # fmt: skip
def test_greedy_tokens_are_the_models_own(rows, side, draft, steps, eos, penalised):
    ids = padded(rows, side)
    asked = {"attention_mask": ids != 0, "max_new_tokens": steps, "pad_token_id": 0}
    asked |= {"eos_token_id": eos} if eos else {}
    asked |= {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3} if penalised else {}
    want = generate(DECODER, ids, **asked)
    assert torch.equal(generate(DECODER, ids, **asked, **DRAFTS[draft]), want)


@pytest.mark.parametrize("draft", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": SMALL_PAIR}])
def test_an_encoder_decoder_speculates_too(draft):
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    asked = {"max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 0}
    assert torch.equal(generate(PAIR, ids, **asked, **draft), generate(PAIR, ids, **asked))


def test_fewer_steps_where_the_draft_is_right():
    ids = torch.tensor([[4, 5, 6]])
    DECODER.calls.clear()
    generate(DECODER, ids, max_new_tokens=12)
    plain = len(DECODER.calls)
    twin = TinyDecoder()
    DECODER.calls.clear()
    generate(DECODER, ids, max_new_tokens=12, assistant_model=twin, num_assistant_tokens=4,
             assistant_confidence_threshold=0.0)  # fmt: skip
    assert plain == 12
    assert len(DECODER.calls) == 4, "the prompt, two of five tokens, and the rest"


class Remembering(FixedScores):
    """Fixed scores with a memory that remembers nothing."""

    def new_cache(self, batch, length):
        return TinyCache(0)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, logits_to_keep=0):
        if past_key_values is not None:
            past_key_values.length += input_ids.shape[1]
        return super().forward(input_ids, None, None, logits_to_keep)


@pytest.mark.parametrize("kind", ["draft", "lookup"])
@pytest.mark.parametrize("filters", [{"top_k": 0}, {"top_k": 3, "temperature": 0.7}])
def test_drawn_tokens_have_the_models_chances(kind, filters):
    torch.manual_seed(0)
    target, draft = Remembering(torch.randn(5, 5)), Remembering(torch.randn(5, 5))
    asked = {"do_sample": True, "max_new_tokens": 4, "pad_token_id": 0, **filters}
    other = {"assistant_model": draft, "num_assistant_tokens": 2, "assistant_confidence_threshold": 0.0}
    other = other if kind == "draft" else {"prompt_lookup_num_tokens": 2}
    # rows go on together, so that many small batches are drawn
    outs = [generate(target, torch.full((2, 2), 1), seed=i, **asked, **other) for i in range(700)]
    new = torch.cat(outs)[:, 2:]
    scores = target.table / filters.get("temperature", 1.0)
    if filters["top_k"]:
        scores = scores.masked_fill(scores < scores.topk(3).values[:, -1:], -torch.inf)
    chance = scores.softmax(-1)
    before = torch.cat([torch.full((len(new), 1), 1), new[:, :-1]], 1)
    for place in range(4):
        for last in range(5):
            seen = new[before[:, place] == last, place]
            if len(seen) > 200:
                share = torch.bincount(seen, minlength=5) / len(seen)
                bound = 4.5 * (chance[last] * (1 - chance[last]) / len(seen)).sqrt() + 1e-6
                assert ((share - chance[last]).abs() <= bound).all(), (place, last)


class Words:
    """A tokenizer of one character a token, in an order of its own."""

    eos_token_id = None

    def __init__(self, letters):
        self.letters = letters

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [self.letters.index(c) for c in text if c in self.letters]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.letters[int(i)] for i in ids)

    def get_vocab(self):
        return {c: i for i, c in enumerate(self.letters)}

    def convert_ids_to_tokens(self, ids):
        return [self.letters[i] for i in ids]


LETTERS = "abcdefghijklmnopqrstuvw"


@pytest.mark.parametrize("order", [LETTERS[::-1], LETTERS[5:] + LETTERS[:5]])
def test_a_draft_with_another_tokenizer(order):
    ids = torch.tensor([[0, 5, 6, 7], [4, 5, 6, 8]])
    asked = {"max_new_tokens": 10, "attention_mask": torch.tensor([[0, 1, 1, 1], [1] * 4])}
    given = {"assistant_model": DRAFT, "tokenizer": Words(LETTERS), "assistant_tokenizer": Words(order)}
    assert torch.equal(generate(DECODER, ids, **asked, **given), generate(DECODER, ids, **asked))


def test_a_drawn_draft_with_another_tokenizer_has_the_models_chances():
    torch.manual_seed(1)
    target, draft = Remembering(torch.randn(5, 5)), Remembering(torch.randn(4, 4))
    for model in (target, draft):
        model.register_parameter("w", torch.nn.Parameter(torch.zeros(1)))
    draft.config = SimpleNamespace(vocab_size=4, is_encoder_decoder=False)
    given = {"assistant_model": draft, "tokenizer": Words("abcde"), "assistant_tokenizer": Words("dbca")}
    asked = {"do_sample": True, "top_k": 0, "max_new_tokens": 3, "num_assistant_tokens": 2}
    outs = [
        generate(target, torch.tensor([[1, 2]]), seed=i, assistant_confidence_threshold=0.0, **asked, **given)
        for i in range(700)
    ]
    new, chance = torch.cat(outs)[:, 1:], target.table.softmax(-1)
    for place in range(1, 4):
        for last in range(5):
            seen = new[new[:, place - 1] == last, place]
            if len(seen) > 150:
                share = torch.bincount(seen, minlength=5) / len(seen)
                bound = 4.5 * (chance[last] * (1 - chance[last]) / len(seen)).sqrt() + 1e-6
                assert ((share - chance[last]).abs() <= bound).all(), (place, last)


def tiny(kind, **config):
    torch.manual_seed(0)
    cls = getattr(phyla, kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))
    model = cls(getattr(phyla, f"{kind}Config")(vocab_size=40, **config)).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
         "num_key_value_heads": 2}  # fmt: skip
KINDS = {
    "learned-places": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}),
    "slopes": ("Bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "state-space": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "two-headed": (
        "Mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 4,
        },
    ),
    "recurrent": (
        "RecurrentGemma",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "attention_window_size": 8,
            "lru_width": 32,
        },
    ),
    "hybrid": (
        "Jamba",
        {
            **SIZES,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "window": ("Mistral", {**SIZES, "sliding_window": 6}),
    "rotary": ("Llama", SIZES),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["lookup", "draft", "exit"])
def test_recurrent_and_sliding_memories_go_back(kind, way):
    name, config = KINDS[kind]
    model = tiny(name, **config)
    ids = torch.tensor(
        [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [9, 8, 7, 9, 8, 7, 9, 8, 7, 9], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]
    )
    layers = {"GPT2": "n_layer", "Bloom": "n_layer"}.get(name, "num_hidden_layers")
    ways = {"lookup": {"prompt_lookup_num_tokens": 4}, "exit": {"assistant_early_exit": 1},
            "draft": {"assistant_model": tiny(name, **{**config, layers: 1}),
                      "assistant_confidence_threshold": 0.0, "num_assistant_tokens": 4}}  # fmt: skip
    asked = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0}
    want = model.generate(ids, **asked)
    assert torch.equal(model.generate(ids, **asked, **ways[way]), want)


def test_guidance_goes_back_with_the_drafts():
    ids = torch.tensor([[5, 6, 7, 8, 5, 6]])
    asked = {"max_new_tokens": 12, "guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[9, 8]])}
    want = generate(DECODER, ids, **asked)
    assert torch.equal(generate(DECODER, ids, prompt_lookup_num_tokens=4, **asked), want)
    assert torch.equal(generate(DECODER, ids, num_beams=2, **asked)[:, :6], ids)


@pytest.fixture
def narrow(monkeypatch):
    """Padding in front is dropped soon, so that short texts show it."""
    monkeypatch.setattr("phyla.generation.rewind._SPARE", 2)


@pytest.mark.parametrize("kind", ["rotary", "window", "learned-places", "state-space", "two-headed",
                                  "recurrent", "hybrid"])  # fmt: skip
def test_rows_go_on_by_numbers_of_their_own(kind, narrow):
    name, config = KINDS[kind]
    model = tiny(name, **config)
    lists = [[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 9, 8], [4], [3, 3, 3, 3]]
    asked = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0}
    steps, alone = [], []
    counting = model.register_forward_pre_hook(lambda *_: steps.append(1))
    for row in lists:
        steps.clear()
        model.generate(torch.tensor([row]), prompt_lookup_num_tokens=4, **asked)
        alone.append(len(steps))
    steps.clear()
    out = model.generate(padded(lists, "left"), prompt_lookup_num_tokens=4, **asked)
    counting.remove()
    assert torch.equal(out, model.generate(padded(lists, "left"), **asked))
    if kind in ("rotary", "window"):  # learned places leave no room at their end for what fills up a check
        assert len(steps) == max(alone), "as many steps as the slowest row takes alone"
    elif kind != "learned-places":  # states are read once more behind what was wrong
        assert len(steps) < sum(alone)


@settings(max_examples=25)
@given(rows_of_ids, st.sampled_from(sorted(DRAFTS)), st.integers(1, 30))
def test_a_drawn_row_with_a_seed_does_not_depend_on_the_others(rows, draft, steps):
    if draft == "itself":
        return  # its schedule depends on the rounding of equal chances
    ids = padded(rows, "left")
    asked = {"max_new_tokens": steps, "do_sample": True, "top_k": 5, "pad_token_id": 0, **DRAFTS[draft]}
    out = generate(DECODER, ids, attention_mask=ids != 0, seed=list(range(len(rows))), **asked)
    for number, row in enumerate(rows):
        own = generate(DECODER, torch.tensor([row]), seed=[number], **asked)
        assert out[number, ids.shape[1] :].tolist() == own[0, len(row) :].tolist()


@pytest.mark.parametrize("memory", ["static", "offloaded", "quantized"])
def test_rows_part_in_other_kinds_of_memory(memory, narrow):
    model = tiny("Llama", **SIZES)
    ids = padded([[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 9, 8], [4]], "right")
    asked = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "cache_implementation": memory}
    want = model.generate(ids, **asked)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **asked), want)


@pytest.mark.parametrize("kind", ["rotary", "state-space"])
def test_scores_of_rows_that_part_are_kept(kind, narrow):
    name, config = KINDS[kind]
    model = tiny(name, **config)
    ids = padded([[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 9, 8], [4]], "left")
    asked = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0,
             "return_dict_in_generate": True, "output_scores": True, "output_logits": True}  # fmt: skip
    steps = []
    counting = model.register_forward_pre_hook(lambda *_: steps.append(1))
    out = model.generate(ids, prompt_lookup_num_tokens=4, **asked)
    parted = len(steps)
    both = model.generate(ids, prompt_lookup_num_tokens=4, output_hidden_states=True, **asked)
    counting.remove()
    assert parted <= len(steps) - parted  # rows go together where states are asked for
    assert len(both.hidden_states) == len(out.scores)
    want = model.generate(ids, **asked)
    assert torch.equal(out.sequences, want.sequences)
    for name in ("scores", "logits"):
        found, wanted = (torch.stack(getattr(o, name), 1) for o in (out, want))
        for row, tokens in enumerate(out.sequences[:, ids.shape[1] :].tolist()):
            end = tokens.index(39) + 1 if 39 in tokens else len(tokens)
            torch.testing.assert_close(found[row, :end], wanted[row, :end], rtol=1e-4, atol=1e-4)
    chances = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert chances.shape == (3, len(out.scores))
    assert (chances <= 0).all()


def test_quantised_numbers_move_with_their_rows():
    config = phyla.generation.QuantizedCacheConfig(nbits=8, residual_length=4, q_group_size=8)
    numbers = torch.Generator().manual_seed(0)
    k, v = (torch.randn(3, 2, 23, 8, generator=numbers) for _ in range(2))
    slot = QuantizedKV(config, 3)
    slot.update(k, v)
    slot.update(k[:, :, :1], v[:, :, :1])
    before = [t.clone() for t in slot.read()]
    blocks = len(slot.packed)
    assert blocks > 2
    slot.shift([0, 3, 9])
    for was, now in zip(before, slot.read(), strict=True):
        for row, places in enumerate((0, 3, 9)):
            assert torch.equal(now[row, :, places:], was[row, :, : 24 - places])
    slot.forget(6)
    for was, now in zip(before, slot.read(), strict=True):
        assert torch.equal(now[1, :, :], was[1, :, 3:21])
    assert 0 < len(slot.packed) < blocks


class Listener:
    def __init__(self):
        self.steps, self.over = [], {}

    def put(self, value):
        self.steps.append(value.tolist())

    def end_row(self, row):
        self.over.setdefault(row, len(self.steps) - 1)

    def end(self):
        self.steps.append("end")


def test_a_streamer_is_told_the_same_steps(narrow):
    model = tiny("Llama", **SIZES)
    ids = padded([[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 9, 8], [4]], "left")
    ends = model.generate(ids, max_new_tokens=9, pad_token_id=0, do_sample=False)[:, -1].tolist()
    asked = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends[1:]}
    heard = []
    for draft in ({}, {"prompt_lookup_num_tokens": 4}):
        listener = Listener()
        model.generate(ids, streamer=listener, **asked, **draft)
        heard.append((listener.steps, listener.over))
    assert heard[0] == heard[1]


@pytest.mark.parametrize("drafting", ["helper", "__base__"])
def test_a_draft_may_be_an_adapter_of_the_model(drafting):
    model = tiny("Llama", **SIZES)
    model.add_adapter("helper", config="lora")
    for name, p in model.named_parameters():
        if "helper" in name:
            torch.nn.init.normal_(p, std=0.02)
    model.eval()
    model.set_active_adapters(None if drafting == "helper" else "helper")
    ids = padded([[5, 6, 7, 8, 5, 6, 7], [9, 8, 7, 9, 8], [4]], "left")
    asked = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    before = model.adapters.setup
    want = model.generate(ids, **asked)
    draft = {"assistant_model": model, "assistant_adapter": drafting, "assistant_confidence_threshold": 0.0}
    assert torch.equal(model.generate(ids, **asked, **draft), want)
    assert model.adapters.setup == before
    with pytest.raises(phyla.errors.ArgumentError, match="assistant_adapter"):
        model.generate(ids, **asked, assistant_model=model, assistant_adapter="stranger")


def test_a_draft_model_keeps_the_threshold_that_serves_best():
    from phyla.generation.drafts import Certainty

    certainty = Certainty()
    certainty.learn([0.9, 0.8, 0.3], 2)
    assert certainty.threshold() is None, "too few tokens"
    certainty.learn([0.7, 0.6, 0.2, 0.9], 2)
    assert certainty.threshold() == 0.6
    draft = tiny("Llama", **SIZES)
    draft.generation_config.assistant_confidence_threshold = 0.01
    model = tiny("Llama", **{**SIZES, "num_hidden_layers": 2})
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    asked = {"max_new_tokens": 40, "do_sample": True, "seed": 0, "assistant_model": draft}
    model.generate(ids, **asked)
    assert draft.generation_config.assistant_confidence_threshold != 0.01


def test_an_encoder_decoder_copies_from_what_it_reads():
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    copied = generate(PAIR, ids, max_new_tokens=12, eos_token_id=2, pad_token_id=0)[:, 1:]
    PAIR.calls.clear()
    asked = {"max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 0, "prompt_lookup_num_tokens": 4}
    from phyla.generation.drafts import PromptLookup

    lookup = PromptLookup(4, 2, 0, copied)
    found = lookup.propose(torch.cat([torch.tensor([[3]]), copied[:, :1]], 1), [2], [True], [4])
    assert found.ids[0, : found.counts[0]].tolist() == copied[0, 1:5].tolist()
    assert torch.equal(
        generate(PAIR, ids, **asked), generate(PAIR, ids, **{**asked, "prompt_lookup_num_tokens": None})
    )
