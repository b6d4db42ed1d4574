"""GenerationConfig: public fields and defaults, files, updates, who goes before whom."""

import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TinyDecoder

from phyla.errors import ArgumentError, ConfigError, GenerationError, MissingFileError, UnknownArgumentError
from phyla.generation import GenerationConfig, GenerationMode, generate
from phyla.generation.config import DEFAULTS
from phyla.generation.modes import generation_mode
from phyla.generation.plan import context_length, merge_config

PUBLIC_DEFAULTS = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "use_cache": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_scores": False,
    "return_dict_in_generate": False,
    "early_stopping": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "token_healing": False,
    "disable_compile": False,
}


def test_public_defaults():
    config = GenerationConfig()
    for name, value in PUBLIC_DEFAULTS.items():
        assert getattr(config, name) == value, name
    unset = (
        "max_new_tokens",
        "min_new_tokens",
        "max_time",
        "stop_strings",
        "penalty_alpha",
        "dola_layers",
        "cache_implementation",
        "min_p",
        "bad_words_ids",
        "force_words_ids",
        "constraints",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "sequence_bias",
        "guidance_scale",
        "watermarking_config",
        "output_logits",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "prompt_lookup_num_tokens",
        "assistant_early_exit",
    )
    assert all(getattr(config, name) is None for name in unset)


values = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(0, 500),
        "do_sample": st.booleans(),
        "temperature": st.floats(0.1, 3),
        "top_k": st.integers(0, 100),
        "top_p": st.floats(0, 1),
        "eos_token_id": st.lists(st.integers(0, 99), min_size=1),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1),
        "stop_strings": st.text(min_size=1),
        "lang_to_id": st.dictionaries(st.text(), st.integers()),
        "max_initial_timestamp_index": st.integers(),
        "sequence_bias": st.dictionaries(st.tuples(st.integers(0, 9)), st.floats(-9, 9), min_size=1),
    },
)


@given(values)
def test_files_keep_every_field_known_or_not(tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("config")
    config = GenerationConfig(**fields)
    config.save_pretrained(folder)
    text = (folder / "generation_config.json").read_text()
    assert text == config.to_json_string()
    assert set(json.loads(text)) - {"transformers_version"} == {
        k for k, v in fields.items() if v != DEFAULTS.get(k, "?")
    }
    again = GenerationConfig.from_pretrained(folder)
    assert again.to_json_string() == config.to_json_string()
    assert again == config or "sequence_bias" in fields
    assert GenerationConfig.from_dict(config.to_dict()) == config


def test_the_saved_file_is_the_public_one(tmp_path):
    config = GenerationConfig(top_k=5, do_sample=True, eos_token_id=[1, 2], sequence_bias={(1, 2): 3.0})
    config.save_pretrained(tmp_path)
    assert (
        (tmp_path / "generation_config.json").read_text()
        == """{
  "do_sample": true,
  "eos_token_id": [
    1,
    2
  ],
  "sequence_bias": {
    "(1, 2)": 3.0
  },
  "top_k": 5,
  "transformers_version": "4.50.3"
}
"""
    )


def test_files_that_are_not_there_or_no_json(tmp_path):
    with pytest.raises(MissingFileError):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="must be a folder"):
        GenerationConfig().save_pretrained(tmp_path / "file")


def test_changes_override_the_file(tmp_path):
    GenerationConfig(top_k=5, max_new_tokens=7).save_pretrained(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path, top_k=9)
    assert (config.top_k, config.max_new_tokens) == (9, 7)
    with pytest.raises(UnknownArgumentError, match=r"'top_kk'.*'top_k'"):
        GenerationConfig.from_pretrained(tmp_path, top_kk=9)


def test_misspelt_fields_are_errors_and_strange_ones_are_kept():
    with pytest.raises(UnknownArgumentError, match=r"'max_tokens'.*'max_new_tokens'"):
        GenerationConfig(max_tokens=3)
    with pytest.raises(UnknownArgumentError, match=r"'temprature'.*'temperature'"):
        GenerationConfig(temprature=3)
    kept = GenerationConfig(no_timestamps_token_id=3, prev_sot_token_id=4, alignment_heads=[[1, 2]])
    assert kept.prev_sot_token_id == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_p": 2}, "top_p"),
        ({"temperature": math.inf}, "temperature"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"stop_strings": ["a", ""]}, "stop_strings"),
        ({"sequence_bias": [[1, 2.0]]}, "sequence_bias"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"length_penalty": math.nan}, "length_penalty must be a finite number, but is nan"),
    ],
)
def test_values_out_of_range(fields, words):
    with pytest.raises(GenerationError, match=words):
        GenerationConfig(**fields)
    with pytest.raises(GenerationError, match=words):
        GenerationConfig().update(**fields)
    loaded = GenerationConfig.from_dict(fields)  # a file loads; the value is refused when it takes effect
    with pytest.raises(GenerationError, match=words):
        loaded.validate()


def test_fields_that_do_not_go_together():
    with pytest.raises(GenerationError, match="at most num_beams"):
        GenerationConfig(num_beams=2, num_return_sequences=3).validate()
    with pytest.raises(GenerationError, match="multiple of num_beam_groups"):
        GenerationConfig(num_beams=4, num_beam_groups=3).validate()
    GenerationConfig(temperature=0.0).validate()  # without sampling it has no effect


def test_update_returns_what_it_does_not_know():
    config = GenerationConfig()
    assert config.update(top_k=3, pixel_values=1) == {"pixel_values": 1}
    assert config.top_k == 3


def test_settings_from_a_model_config():
    text = SimpleNamespace(to_dict=lambda: {"eos_token_id": 7, "top_k": 3, "hidden_size": 8})
    outer = SimpleNamespace(
        to_dict=lambda: {
            "bos_token_id": 1,
            "pad_token_id": None,
            "hidden_size": 8,
            "transformers_version": "4.1",
        },
        get_text_config=lambda decoder=False: text,
    )
    config = GenerationConfig.from_model_config(outer)
    assert config.to_diff_dict() == {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": 7,
        "top_k": 3,
        "transformers_version": "4.50.3",
    }
    scores = SimpleNamespace(to_dict=lambda: {"output_scores": True})
    assert GenerationConfig.from_model_config(scores).return_dict_in_generate


def model_with(**fields):
    return SimpleNamespace(generation_config=GenerationConfig.from_dict(fields), config=SimpleNamespace())


def test_given_fields_go_before_those_of_the_model():
    model = model_with(top_k=7, do_sample=True, eos_token_id=2, transformers_version="4.51.0")
    merged = merge_config(model, GenerationConfig(do_sample=False), None)
    assert (merged.top_k, merged.do_sample, merged.eos_token_id) == (7, False, 2)
    assert merge_config(model, GenerationConfig(), False).top_k == 50
    old = model_with(top_k=7, eos_token_id=2, transformers_version="4.38.1")
    merged = merge_config(old, GenerationConfig(), None)
    assert (merged.top_k, merged.eos_token_id) == (50, 2)
    assert merge_config(old, GenerationConfig(), True).top_k == 7
    assert merge_config(old, None, None).top_k == 7


def test_arguments_of_the_call_go_before_the_configuration_and_do_not_stick():
    model = TinyDecoder()
    ids = torch.tensor([[4, 5]])
    config = GenerationConfig(max_new_tokens=2)
    assert generate(model, ids, config).shape == (1, 4)
    assert generate(model, ids, config, max_new_tokens=5).shape == (1, 7)
    assert config.max_new_tokens == 2
    model.generation_config = GenerationConfig(max_new_tokens=3)
    assert generate(model, ids).shape == (1, 5)
    assert generate(model, ids, max_new_tokens=1).shape == (1, 3)
    assert model.generation_config.max_new_tokens == 3


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "greedy_search"),
        ({"do_sample": True}, "sample"),
        ({"num_beams": 3}, "beam_search"),
        ({"num_beams": 3, "do_sample": True}, "beam_sample"),
        ({"num_beams": 4, "num_beam_groups": 2}, "group_beam_search"),
        ({"num_beams": 4, "force_words_ids": [[1]]}, "constrained_beam_search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search"),
        ({"prompt_lookup_num_tokens": 4}, "assisted_generation"),
        ({"dola_layers": "high"}, "dola_generation"),
    ],
)
def test_modes(fields, mode):
    assert generation_mode(GenerationConfig(**fields)) == GenerationMode(mode) == mode


def test_modes_that_do_not_go_together():
    with pytest.raises(GenerationError, match="ask for beam_search"):
        generation_mode(GenerationConfig(num_beams=2, prompt_lookup_num_tokens=3))


def test_context_of_a_model():
    assert context_length(SimpleNamespace(max_position_embeddings=64)) == 64
    assert context_length(SimpleNamespace(max_target_positions=448, max_position_embeddings=9)) == 448
    assert (
        context_length(SimpleNamespace(max_position_embeddings=64, rope_scaling={"type": "dynamic"})) is None
    )
    assert (
        context_length(SimpleNamespace(max_position_embeddings=64, rope_scaling={"rope_type": "llama3"}))
        == 64
    )
    assert context_length(SimpleNamespace(max_position_embeddings=64, alibi=True)) is None
    assert context_length(SimpleNamespace(max_position_embeddings=-1)) is None
    assert context_length(SimpleNamespace()) is None


def test_without_any_bound_a_length_is_asked_for():
    model = TinyDecoder()
    model.config.max_position_embeddings = None
    with pytest.raises(GenerationError, match="max_new_tokens or max_length must be set"):
        generate(model, torch.tensor([[4, 5]]), max_length=None)


def test_the_configuration_loads_without_torch():
    code = "import sys, phyla.generation as g; g.GenerationConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_where_the_table_says():
    import phyla.generation as g

    assert set(g.__all__) <= set(dir(g))
    for name in g.__all__:
        older = re.sub("^(Greedy|Sample|Contrastive|BeamSe|BeamSa).*?(Decoder|Encoder)", r"\2", name)
        assert getattr(g, name).__name__ in (name, f"Generate{older}", f"GenerateBeam{older}")
    with pytest.raises(AttributeError):
        _ = g.Nothing
