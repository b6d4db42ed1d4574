"""Bad prompts and settings of `generate` (table C6 of the reliability catalogue): typed, named, and what to
do.
"""

import math

import pytest
import torch
from tiny_model import FixedScores, TinyDecoder, TinyEncoderDecoder

from phyla.errors import ArgumentError, GenerationError, NonFiniteLogitsError, UnknownArgumentError
from phyla.generation import GenerationConfig, LogitsProcessor, generate

DECODER = TinyDecoder()
IDS = torch.tensor([[4, 5, 6], [7, 8, 9]])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            torch.zeros(1, 0, dtype=torch.long),
            r"input_ids must hold at least one token, but has shape \(1, 0\)",
        ),
        (torch.tensor([[4, 5], [6, 23]]), "0 to 22 .the vocabulary has 23., but is 23 in row 1, column 1"),
        (torch.tensor([[4, -1]]), "but is -1 in row 0, column 1"),
        (torch.tensor([[4.0, 5.0]]), "input_ids must hold integers, but its dtype is float32"),
        (torch.tensor([[True, False]]), "dtype is bool"),
        (torch.tensor([4, 5]), r"must have shape \(batch, length\), but has \(2,\)"),
        (torch.tensor([[[4]]]), r"but has \(1, 1, 1\)"),
        ([[4, 5], [6]], "rows of one length"),
        ("a text", "must be a tensor of token ids"),
        ({"input_ids": IDS}, r"write generate\(\*\*inputs\)"),
    ],
)
def test_bad_prompts(ids, words):
    with pytest.raises(ArgumentError, match=words):
        generate(DECODER, ids, max_new_tokens=3)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 2), r"attention_mask must have the shape of input_ids, \(2, 3\), but has \(2, 2\)"),
        (torch.ones(1, 3), r"has \(1, 3\)"),
        (torch.ones(2, 1, 3, 3), "must have the shape"),
        (torch.full((2, 3), 2), "must hold 1 at real tokens and 0 at padding"),
        (torch.full((2, 3), math.nan), "must hold 1"),
    ],
)
def test_bad_masks(mask, words):
    with pytest.raises(ArgumentError, match=words):
        generate(DECODER, IDS, attention_mask=mask, max_new_tokens=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": -5}, "max_new_tokens must be an integer at least 0, but is -5"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer"),
        ({"max_length": 3}, "max_length=3 must be more than the length of the prompt, which has 3 tokens"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0 .*do_sample=False"),
        (
            {"do_sample": True, "temperature": math.nan},
            "temperature must be a finite number at least 0, but is nan",
        ),
        ({"do_sample": True, "top_p": 2}, "top_p must be a finite number at least 0 and at most 1, but is 2"),
        (
            {"do_sample": True, "top_k": -3},
            "top_k must be an integer at least 0, but is -3; 0 switches it off",
        ),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
        ({"num_beams": 0}, "num_beams must be an integer at least 1, but is 0"),
        ({"num_return_sequences": 4}, "num_return_sequences must be 1 for greedy decoding, but is 4"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"bad_words_ids": [3]}, "bad_words_ids must be a non-empty list of lists"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"stop_strings": ["x"]}, "tokenizer"),
        ({"exponential_decay_length_penalty": (1, 1.1)}, "needs an eos_token_id"),
        ({"penalty_alpha": 0.5, "top_k": 4, "use_cache": False}, "contrastive .* needs use_cache=True"),
        ({"force_words_ids": [[1]]}, "constraints and force_words_ids need num_beams above 1"),
        ({"force_words_ids": [[1], []], "num_beams": 2}, "a non-empty list"),
        ({"force_words_ids": [[[1], [1, 2]]], "num_beams": 2}, r"may begin another, but \[1\] does"),
        ({"num_beams": 4, "num_beam_groups": 2}, "needs a diversity_penalty above 0"),
        ({"dola_layers": "middle"}, "dola_layers must be 'low', 'high' or a list"),
        ({"assistant_model": "gpt2"}, "assistant_model must be a model, but is a str"),
        ({"assistant_model": DECODER, "use_cache": False}, "a draft needs use_cache=True"),
        ({"assistant_model": DECODER, "num_beams": 2}, "goes with greedy decoding or sampling"),
        ({"assistant_early_exit": 1}, "needs a decoder of one stack of layers"),
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens must be an integer at least 1"),
        ({"num_assistant_tokens_schedule": "often"}, 'must be "constant", "heuristic"'),
        ({"token_healing": True}, "token_healing needs the model's tokenizer"),
        ({"watermarking_config": 3}, "watermarking_config must be a WatermarkingConfig or a dict"),
        ({"watermarking_config": {"seeding_scheme": "x"}}, "seeding_scheme must be one of"),
        ({"watermarking_config": {"biass": 2}}, "no field 'biass'.*'bias'"),
        ({"mirostat_tau": 5.0, "num_beams": 2}, "mirostat_tau works with num_beams=1"),
        ({"row_settings": [{}]}, "row_settings must have one dict for each of 2 rows, but has 1"),
        ({"row_settings": [{"topp": 1}, {}]}, "sets 'topp'.*'top_p'"),
        ({"cache_implementation": "paged"}, "cache_implementation must be one of"),
        ({"negative_prompt_ids": IDS}, "need a guidance_scale"),
        ({"max_length": None}, None),
        ({"suppress_tokens": list(range(23))}, "rule out all at step 0, row 0"),
    ],
)
def test_bad_settings(settings, words):
    if words is None:
        assert generate(DECODER, IDS, **settings).shape == (2, 64), "the context bounds it"
        return
    with pytest.raises((GenerationError, ArgumentError, UnknownArgumentError), match=words):
        generate(DECODER, IDS, **settings)


def test_prompt_past_the_context():
    long = torch.ones(1, 100, dtype=torch.long)
    with pytest.raises(
        GenerationError, match=r"context of 64 positions, but 100 \+ 3 \(max_new_tokens=3\).*truncate='left'"
    ):
        generate(DECODER, long, max_new_tokens=3)
    with pytest.raises(GenerationError, match=r"64 positions, but 60 \+ 9"):
        generate(DECODER, long[:, :60], max_new_tokens=9)
    with pytest.raises(GenerationError, match="64 positions, but 64"):
        generate(DECODER, long[:, :64])
    with pytest.raises(GenerationError, match="max_new_tokens must be below the context"):
        generate(DECODER, long, max_new_tokens=64, truncate="left")
    with pytest.raises(ArgumentError, match='must be "left"'):
        generate(DECODER, long, max_new_tokens=3, truncate="right")


def test_a_length_of_the_checkpoint_gives_way_to_the_context():
    model = TinyDecoder()
    model.generation_config = GenerationConfig(max_new_tokens=1000)
    assert generate(model, IDS).shape == (2, 64)


def test_misspelt_names_get_the_nearest():
    with pytest.raises(
        UnknownArgumentError, match=r"'max_new_tokenz' is neither .* Did you mean 'max_new_tokens'"
    ):
        generate(DECODER, IDS, max_new_tokenz=3)
    with pytest.raises(UnknownArgumentError, match=r"'pixel_value'.*'pixel_values'"):
        generate(DECODER, IDS, pixel_value=torch.ones(1), max_new_tokens=3)
    assert generate(DECODER, IDS, max_new_tokens=3, pixel_values=None, labels=IDS).shape == (2, 6)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 0}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers(settings, value):
    table = torch.zeros(6, 6)
    table[3, 2] = value  # after token 3 the model breaks
    table[4, 3] = 50.0
    table[5, 1] = 50.0
    table[1, 1] = 50.0
    model = FixedScores(table)
    with pytest.raises(NonFiniteLogitsError, match=r"at step 1, row 1 .first at token id 2"):
        generate(model, torch.tensor([[5], [4]]), max_new_tokens=4, **settings)
    # a row that is finished may hold what it likes
    out = generate(
        model, torch.tensor([[5], [4]]), max_new_tokens=4, eos_token_id=3, pad_token_id=0, **settings
    )
    assert out[1, :2].tolist() == [4, 3]


def test_broken_logits_may_be_repaired_on_request():
    model = FixedScores(torch.tensor([math.nan, -1.0, -2.0, -3.0]))
    assert generate(model, torch.tensor([[1]]), max_new_tokens=1, remove_invalid_values=True).tolist() == [
        [1, 0]
    ]


def test_settings_that_break_the_scores():
    class Breaks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores * math.nan

    with pytest.raises(GenerationError, match=r"scores must stay finite.*step 0, row 0"):
        generate(DECODER, IDS, max_new_tokens=2, logits_processor=[Breaks()])
    with pytest.raises(GenerationError, match="scores must stay finite"):
        generate(DECODER, IDS, max_new_tokens=2, do_sample=True, temperature=1e-320)


def test_classes_without_a_head_say_so():
    model = TinyDecoder()
    model.can_generate = lambda: False
    with pytest.raises(GenerationError, match="TinyDecoder cannot generate"):
        generate(model, IDS)


def test_seeds():
    with pytest.raises(ArgumentError, match="one for each of 2 rows, but has 3"):
        generate(DECODER, IDS, do_sample=True, seed=[1, 2, 3], max_new_tokens=2)
    with pytest.raises(ArgumentError, match="seed must be an integer"):
        generate(DECODER, IDS, do_sample=True, seed="x", max_new_tokens=2)


def test_caches_that_do_not_fit_the_prompt():
    first = generate(DECODER, IDS, max_new_tokens=4, return_dict_in_generate=True)
    with pytest.raises(ArgumentError, match=r"must hold the whole text so far, but has 3 ids where .* has 6"):
        generate(DECODER, IDS, past_key_values=first.past_key_values, max_new_tokens=2)
    longer = torch.cat([first.sequences, first.sequences[:, -2:]], dim=1)
    mask = torch.ones_like(longer)
    mask[0, -1] = 0
    with pytest.raises(ArgumentError, match="padding must be on the left"):
        generate(
            DECODER, longer, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=2
        )


def test_prompts_given_twice_or_not_at_all():
    with pytest.raises(ArgumentError, match="not as both"):
        generate(DECODER, IDS, input_ids=IDS)
    with pytest.raises(ArgumentError, match="no bos_token_id"):
        generate(DECODER)
    with pytest.raises(ArgumentError, match="inputs_embeds must have shape"):
        generate(DECODER, inputs_embeds=torch.zeros(2, 16))


def test_encoder_decoders_need_a_start_token():
    model = TinyEncoderDecoder()
    model.config.decoder_start_token_id = None
    with pytest.raises(GenerationError, match="decoder_start_token_id or bos_token_id must be set"):
        generate(model, IDS, max_new_tokens=2)
    with pytest.raises(GenerationError, match="must be one id or 2, but has 3"):
        generate(model, IDS, max_new_tokens=2, decoder_start_token_id=[1, 2, 3])
    out = generate(model, IDS, max_new_tokens=2, decoder_start_token_id=[1, 2])
    assert out[:, 0].tolist() == [1, 2]


def test_generation_config_of_another_kind():
    with pytest.raises(ArgumentError, match="generation_config must be a GenerationConfig, but is a dict"):
        generate(DECODER, IDS, generation_config={"max_new_tokens": 2})
