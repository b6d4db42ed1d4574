"""A row's greedy tokens do not depend on neighbours, padding or chunks, nor its scores but for rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import phyla

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
KINDS = {
    "rotary": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2}),
    "learned-places": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "encoder-decoder": (
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    ),
    "state-space": (
        "MambaForCausalLM", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    ),
}  # fmt: skip
MADE = {}
BOUND = 2e-4  # of scores up to about 20 in float32; four times the worst of 560 rows


def model_of(kind):
    """A tiny model whose tokens differ from step to step."""
    if kind not in MADE:
        name, config, sizes = KINDS[kind]
        torch.manual_seed(3)
        more = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        more |= {"decoder_start_token_id": 2} if kind == "encoder-decoder" else {}
        MADE[kind] = getattr(phyla, name)(getattr(phyla, config)(vocab_size=60, **sizes, **more)).eval()
        for p in MADE[kind].parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.35)
    return MADE[kind]


def padded(rows, side, more):
    width = max(map(len, rows)) + more
    fill = [[0] * (width - len(r)) for r in rows]
    return torch.tensor([f + r if side == "left" else r + f for r, f in zip(rows, fill, strict=True)])


def told(model, ids, row, width, steps, **more):
    """The new tokens of a row and the scores that they were chosen by."""
    out = model.generate(
        ids, attention_mask=(ids != 0).long(), max_new_tokens=steps, do_sample=False, output_scores=True,
        return_dict_in_generate=True, **more,
    )  # fmt: skip
    begin = 1 if model.config.is_encoder_decoder else width
    tokens = out.sequences[row, begin:].tolist()
    count = tokens.index(1) + 1 if 1 in tokens else len(tokens)
    return tokens[:count], torch.stack([s[row] for s in out.scores[:count]])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(2, 59), min_size=1, max_size=9), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]), st.integers(0, 3), st.integers(1, 12), st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_a_row_does_not_depend_on_the_others(kind, rows, side, more, steps, chunk):
    model = model_of(kind)
    ids = padded(rows, side, more)
    chunks = {} if chunk is None or kind == "encoder-decoder" else {"prefill_chunk_size": chunk}
    for number, row in enumerate(rows):
        tokens, scores = told(model, ids, number, ids.shape[1], steps, **chunks)
        alone, own = told(model, torch.tensor([row]), 0, len(row), steps)
        pairs = enumerate(zip(tokens, alone, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(alone)))
        torch.testing.assert_close(scores[:same], own[:same], rtol=0, atol=BOUND)
        if same < max(len(tokens), len(alone)):
            first, second = own[same].topk(2).values.tolist()
            assert first - second < 2 * BOUND, "tokens differ only where two scores tie within the bound"
