"""Settings that meet each other: whose criteria hold, what has no effect, what is refused and how."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from test_generation_caches import tiny

import phyla
import phyla.generation as g
from phyla.errors import ArgumentError, GenerationError, PhylaError, UnknownArgumentError
from phyla.generation import GenerationConfig

IDS = torch.tensor([[5, 6, 7, 8, 5, 6], [9, 8, 7, 9, 8, 7]])


def made(family: str = "llama", **named: Any) -> torch.Tensor:
    return tiny(family).generate(IDS, eos_token_id=None, pad_token_id=0, **named)


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 3}])
@pytest.mark.parametrize("settings", [{}, {"max_new_tokens": 2}, {"max_length": 30}])
def test_the_callers_length_goes_before_the_settings(way, settings):
    plain = made(max_new_tokens=4, **way)
    ended = made(stopping_criteria=[g.MaxLengthCriteria(10)], **settings, **way)
    assert torch.equal(ended, plain)


def test_the_callers_length_must_fit_the_context():
    with pytest.raises(GenerationError, match="context"):
        made(stopping_criteria=[g.MaxLengthCriteria(10_000)])


def test_the_callers_end_tokens_go_before_the_models():
    model, plain = tiny("llama"), made(max_new_tokens=8)
    first, later = int(plain[0, IDS.shape[1]]), int(plain[0, IDS.shape[1] + 3])
    named = {"max_new_tokens": 8, "eos_token_id": first, "pad_token_id": 0}
    assert model.generate(IDS[:1], **named).shape[1] == IDS.shape[1] + 1
    ended = model.generate(IDS[:1], **named, stopping_criteria=[g.EosTokenCriteria(later)])
    end = plain[0, IDS.shape[1] :].tolist().index(later)
    assert torch.equal(ended, plain[:1, : IDS.shape[1] + end + 1])


@pytest.mark.parametrize("name", ["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"])
def test_vectors_have_no_ids_to_keep_apart(name):
    model = tiny("llama")
    vectors = model.get_input_embeddings()(IDS)
    plain = model.generate(inputs_embeds=vectors, max_new_tokens=5)
    with pytest.warns(UserWarning, match=f"{name} has no effect"):
        assert torch.equal(model.generate(inputs_embeds=vectors, max_new_tokens=5, **{name: 2}), plain)


def test_vectors_always_have_a_cache():
    model = tiny("llama")
    vectors = model.get_input_embeddings()(IDS)
    plain = model.generate(inputs_embeds=vectors, max_new_tokens=5)
    assert torch.equal(model.generate(inputs_embeds=vectors, max_new_tokens=5, use_cache=False), plain)


def test_guidance_of_one_is_none():
    negative = torch.tensor([[3, 4]])
    assert torch.equal(made(guidance_scale=1.0, negative_prompt_ids=negative), made())
    with pytest.raises(GenerationError, match="guidance_scale"):
        made(negative_prompt_ids=negative)


def test_constraints_that_time_runs_out_for():
    """What ended without its words comes back where nothing else did."""

    class Now(g.StoppingCriteria):
        def __call__(self, input_ids, scores, **extra):
            return torch.ones(len(input_ids), dtype=torch.bool)

    found = made(
        num_beams=3, force_words_ids=[[11, 12, 13]], num_return_sequences=2, stopping_criteria=[Now()]
    )
    assert found.shape == (4, IDS.shape[1] + 1)


def test_layers_that_the_other_processors_leave_nothing_of():
    best = int(made(dola_layers="low", max_new_tokens=1)[0, -1])
    every = tiny("llama").generate(
        IDS[:1], dola_layers="low", max_new_tokens=1, return_dict_in_generate=True, output_scores=True
    )
    left = every.scores[0][0].isfinite().nonzero().flatten().tolist()
    assert best in left
    found = tiny("llama").generate(IDS[:1], dola_layers="low", max_new_tokens=3, suppress_tokens=left)
    assert int(found[0, IDS.shape[1]]) not in left


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_is_called_alone(family):
    """The public way: states first, and then text from them, for any number of beams."""
    model = tiny(family)
    encoder = model.get_encoder()
    with torch.no_grad():
        states = encoder(IDS, output_hidden_states=True, return_dict=True)
        (alone, *_) = encoder(IDS, return_dict=False)
    assert torch.equal(states.last_hidden_state, alone)
    assert states.hidden_states is not None
    assert encoder.state_dict().keys() == model.backbone.encoder.state_dict().keys()
    assert not encoder.eval().training
    for beams in (1, 3):
        settings = {"num_beams": beams, "max_new_tokens": 4, "pad_token_id": 0}
        assert torch.equal(
            model.generate(encoder_outputs=states, **settings), model.generate(IDS, **settings)
        )


def test_what_is_done_to_an_encoder_counts_in_the_model():
    model, calls = tiny("t5"), []
    handle = model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    model(input_ids=IDS, decoder_input_ids=IDS)
    model.get_encoder()(IDS)
    handle.remove()
    model(input_ids=IDS, decoder_input_ids=IDS)
    assert len(calls) == 2
    model.get_encoder().gradient_checkpointing = True
    assert model.backbone.encoder.gradient_checkpointing


def test_a_decoders_prompt_has_a_row_for_each():
    with pytest.raises(ArgumentError, match="a row for each of 2"):
        tiny("t5").generate(IDS, decoder_input_ids=torch.tensor([[0, 5]]), max_new_tokens=2)


NUMBERS = {
    "max_new_tokens": [torch.tensor(3), np.int64(3)], "temperature": [np.float32(0.5), torch.tensor(0.5)],
    "pad_token_id": [torch.tensor(7)], "top_k": [np.int32(1)],
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_other_kinds(name):
    for value in NUMBERS[name]:
        plain = value.item()
        assert getattr(GenerationConfig(**{name: value}), name) == plain
        config = GenerationConfig()
        config.update(**{name: value})
        assert type(getattr(config, name)) is type(plain)


def test_methods_of_a_configuration(tmp_path):
    config = GenerationConfig(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    assert config.get_generation_mode() == "group_beam_search"
    assert GenerationConfig().get_generation_mode(assistant_model=object()) == "assisted_generation"
    config.to_json_file(tmp_path / "made.json")
    assert (tmp_path / "made.json").read_text() == config.to_json_string()
    config.save_pretrained(tmp_path)
    again, unused = GenerationConfig.from_pretrained(tmp_path, top_p=0.5, return_unused_kwargs=True)
    assert (again.num_beams, again.top_p, unused) == (4, 0.5, {})
    again, unused = GenerationConfig.from_dict({"max_length": 7}, top_k=3, return_unused_kwargs=True)
    assert (again.max_length, again.top_k, unused) == (7, 3, {})


REFUSED: list[tuple[dict[str, Any], type, str]] = [
    ({"logits_processor": g.TemperatureLogitsWarper(0.5)}, ArgumentError, "logits_processor must be a list"),
    ({"logits_processor": [3]}, ArgumentError, "logits_processor must be a list"),
    ({"stopping_criteria": g.MaxLengthCriteria(9)}, ArgumentError, "stopping_criteria must be a list"),
    ({"past_key_values": 3}, ArgumentError, "past_key_values must be a cache"),
    ({"prefix_allowed_tokens_fn": 3}, GenerationError, "prefix_allowed_tokens_fn must be a function"),
    ({"forced_bos_token_id": 10_000, "inputs": IDS[:, :1]}, GenerationError, "below the vocabulary size"),
    ({"validate": 3}, UnknownArgumentError, "validate"),
    ({"generation_config": {"max_new_tokens": 3}}, ArgumentError, "generation_config"),
]  # fmt: skip


@pytest.mark.parametrize(("named", "kind", "told"), REFUSED)
def test_refused(named, kind, told):
    with pytest.raises(kind, match=re.escape(told)):
        tiny("llama").generate(**{"inputs": IDS, "max_new_tokens": 3, **named})


def test_states_that_a_model_lacks():
    with pytest.raises(GenerationError, match="no attentions"):
        tiny("mamba").generate(IDS, return_dict_in_generate=True, output_attentions=True)


def test_arguments_of_the_call_are_no_fields():
    for name in ("logits_processor", "streamer", "assistant_model"):
        with pytest.raises(UnknownArgumentError, match="pass it to generate"):
            GenerationConfig(**{name: 3})


VALUES = (None, "a", -3, 0.5, [], True)
CLASSES: dict[str, Any] = {
    "NoRepeatNGramLogitsProcessor": lambda v: (v,),
    "EncoderNoRepeatNGramLogitsProcessor": lambda v: (v, IDS),
    "MinNewTokensLengthLogitsProcessor": lambda v: (v, 3, 2),
    "MinLengthLogitsProcessor": lambda v: (v, 2),
    "TopKLogitsWarper": lambda v: (v,),
    "HammingDiversityLogitsProcessor": lambda v: (0.5, 4, v),
    "PrefixConstrainedLogitsProcessor": lambda v: (lambda row, ids: [3], v),
    "AlternatingCodebooksLogitsProcessor": lambda v: (2, 8, v),
    "MaxLengthCriteria": lambda v: (v,),
    "SynthIDTextWatermarkLogitsProcessor": lambda v: (v, [3, 4], 64, 0, 8, "cpu"),
    "WatermarkLogitsProcessor": lambda v: (23, "cpu", 0.25, 2.0, v),
    "ForcedBOSTokenLogitsProcessor": lambda v: (v,),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_of_classes_are_named(name):
    """Whatever is no count is refused as ours refuses, by name."""
    kind = getattr(phyla, name, None) or getattr(g, name)
    for value in VALUES:
        if name == "WatermarkLogitsProcessor" and value == -3:
            continue  # a key like any other
        with pytest.raises(PhylaError, match=r"must be (a token id|an integer)"):
            kind(*CLASSES[name](value))
