"""What every strategy gives back beside the tokens: steps, and scores that explain the choice."""

import pytest
import torch
from test_generation_caches import tiny

IDS = torch.tensor([[5, 6, 7, 8, 5, 6], [9, 8, 7, 9, 8, 7]])
STEPWISE = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "seed": 1},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "layers": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "guided": {"guidance_scale": 1.5},
}
BEAMS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "forced": {"num_beams": 3, "force_words_ids": [[11, 12]]},
}


def returned(family, way, eos):
    model = tiny(family)
    out = model.generate(
        IDS, max_new_tokens=7, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_attentions=True, output_hidden_states=True, eos_token_id=eos, pad_token_id=0, **way,
    )  # fmt: skip
    encoder = model.config.is_encoder_decoder
    prefix, start = ("decoder_", 1) if encoder else ("", IDS.shape[1])
    steps = len(out.scores)
    assert steps >= out.sequences.shape[1] - start
    layers = model.config.num_layers if encoder else model.config.num_hidden_layers
    for name, count in ((f"{prefix}hidden_states", layers + 1), (f"{prefix}attentions", layers)):
        found = getattr(out, name)
        assert len(found) == steps
        assert all(len(step) == count for step in found)
    assert len(out.logits) == steps
    if encoder:
        assert len(out.cross_attentions) == steps
        assert out.encoder_hidden_states is not None
    return model, out, out.sequences[:, start:]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("name", STEPWISE)
def test_steps(family, name):
    if family == "t5" and name in ("layers", "guided"):
        return  # decoder-only models alone
    for eos in (None, 14):
        model, out, new = returned(family, STEPWISE[name], eos)
        table = torch.stack(out.scores, 1)
        chosen = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        assert chosen.shape == new.shape
        over = (
            (new == eos).cumsum(1) - (new == eos).long() > 0 if eos is not None else torch.zeros_like(new) > 0
        )
        wanted = table.log_softmax(-1).gather(2, new[..., None])[..., 0]
        assert torch.equal(chosen, wanted)
        assert chosen[~over].isfinite().all()
        if name in ("greedy", "lookup", "layers", "guided"):
            assert torch.equal(table.argmax(-1)[~over], new[~over])
        assert (new[over] == 0).all()


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("name", BEAMS)
def test_beams(family, name):
    for eos in (None, 14):
        model, out, new = returned(family, BEAMS[name], eos)
        assert out.beam_indices.shape[0] == len(new) == len(out.sequences_scores)
        parts = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
        length = (out.beam_indices >= 0).sum(-1)
        penalty = BEAMS[name].get("length_penalty", 1.0)
        if name in ("beams", "sampled beams"):
            torch.testing.assert_close(
                parts.sum(-1) / length**penalty, out.sequences_scores, rtol=1e-4, atol=1e-4
            )
        assert not parts[out.beam_indices[:, : parts.shape[1]] < 0].any()
        if name == "forced":
            assert all("11, 12" in str(row) for row in new.tolist())
