"""Configurations: public keys and defaults, strict values, aliases, labels, unknown keys, files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phyla
from phyla.errors import ConfigError, MissingFileError, PhylaError, UnknownArgumentError
from phyla.registry import config_class, table

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 64}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


def test_positional_and_named_keys() -> None:
    config = phyla.BertConfig(100, 32, num_attention_heads=4)
    assert (config.vocab_size, config.hidden_size, config.num_attention_heads) == (100, 32, 4)
    with pytest.raises(UnknownArgumentError, match="positional"):
        phyla.LlamaConfig(*range(1, 60))


def test_aliases_read_and_write_the_public_key() -> None:
    config = phyla.GPT2Config(n_embd=24, n_head=4)
    assert config.hidden_size == 24
    config.hidden_size = 48
    assert config.n_embd == 48 and config.to_dict()["n_embd"] == 48 and "hidden_size" not in config.to_dict()


def test_unknown_keys_survive_a_round_trip(tmp_path: Path) -> None:
    config = phyla.LlamaConfig.from_dict({**LLAMA, "my_note": {"deep": [1, 2]}})
    config.save_pretrained(tmp_path)
    assert phyla.AutoConfig.from_pretrained(tmp_path).my_note == {"deep": [1, 2]}


def test_private_keys_and_methods_cannot_be_set_from_a_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        json.dumps(
            {**LLAMA, "_attn_implementation_internal": "evil/repo", "to_dict": "x", "save_pretrained": 1}
        ),
    )
    config = phyla.AutoConfig.from_pretrained(tmp_path)
    assert callable(config.to_dict) and callable(config.save_pretrained)
    assert not hasattr(config, "_attn_implementation_internal")


def test_labels() -> None:
    config = phyla.BertConfig(num_labels=3)
    assert config.num_labels == 3 and config.id2label[2] == "LABEL_2"
    config = phyla.BertConfig(id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    assert config.id2label == {0: "no", 1: "yes"} and config.num_labels == 2
    config.num_labels = 5
    assert len(config.id2label) == 5


@pytest.mark.parametrize("model_type", sorted(table()))
def test_defaults_describe_a_model_and_round_trip(model_type: str) -> None:
    config = config_class(model_type)()
    again = config_class(model_type).from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert config.to_diff_dict()["model_type"] == model_type


BAD = {
    "hidden_size 10^30": ({"hidden_size": 10**30}, "hidden_size"),
    "layers 10^9": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "layers -1": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "hidden_size -16": ({"hidden_size": -16}, "hidden_size"),
    "hidden_size text": ({"hidden_size": "16"}, "hidden_size"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "dtype load": ({"torch_dtype": "load"}, "torch_dtype"),
    "rope text": ({"rope_scaling": "zorb"}, "rope_scaling"),
    "padding": ({"pad_token_id": 64}, "pad_token_id"),
    "problem": ({"problem_type": "regresion"}, "problem_type"),
    "nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "labels": ({"id2label": {"a": "x"}}, "id2label"),
}


@pytest.mark.parametrize(("changes", "word"), BAD.values(), ids=list(BAD))
def test_bad_values_name_key_and_value(changes: dict, word: str, tmp_path: Path) -> None:
    write(tmp_path, json.dumps({**LLAMA, **changes}))
    with pytest.raises(ConfigError, match=word):
        phyla.AutoConfig.from_pretrained(tmp_path)


BUILD = {
    "heads do not divide": (
        {"hidden_size": 16, "num_attention_heads": 3, "head_dim": None, "num_key_value_heads": 3},
        "multiple",
    ),
    "kv heads": ({"num_key_value_heads": 3}, "multiple"),
    "activation": ({"hidden_act": "__import__('os')"}, "activation"),
    "rope kind": ({"rope_scaling": {"rope_type": "zorb"}}, "rope_type"),
    "rope field": ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    "attention": ({"attn_implementation": "evil/repo"}, "attn_implementation"),
}


@pytest.mark.parametrize(("changes", "word"), BUILD.values(), ids=list(BUILD))
def test_combinations_that_cannot_work_are_refused_at_building(changes: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        phyla.LlamaForCausalLM(phyla.LlamaConfig.from_dict({**LLAMA, **changes}))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for index, text in enumerate(("{", "[1]", "[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}")):
        folder = tmp_path / str(index)
        folder.mkdir()
        with pytest.raises(ConfigError, match=r"config\.json"):
            phyla.AutoConfig.from_pretrained(write(folder, text))
    (tmp_path / "dir" / "config.json").mkdir(parents=True)
    with pytest.raises(PhylaError, match=r"config\.json"):
        phyla.AutoConfig.from_pretrained(tmp_path / "dir")
    with pytest.raises(MissingFileError, match=r"config\.json"):
        (tmp_path / "empty").mkdir()
        phyla.AutoConfig.from_pretrained(tmp_path / "empty")


def test_unknown_model_types_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama"):
        phyla.AutoConfig.from_pretrained(
            write(tmp_path, '{"model_type": "lama", "auto_map": {"AutoConfig": "x.Y"}}')
        )
    with pytest.raises(ConfigError, match="model_type"):
        phyla.AutoConfig.from_pretrained(write(tmp_path, "{}"))
    with pytest.raises(ConfigError, match="llama"):
        phyla.BertConfig.from_pretrained(write(tmp_path, json.dumps(LLAMA)))


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *LLAMA,
                "rope_scaling",
                "head_dim",
                "hidden_act",
                "tie_word_embeddings",
                "pad_token_id",
                "id2label",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_any_json_gives_a_configuration_or_a_typed_error(changes: dict) -> None:
    try:
        phyla.LlamaConfig.from_dict({**LLAMA, **changes})
    except PhylaError:
        pass


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BOTH = {"full_attention": {**YARN, "rope_theta": 70.0}, "sliding_attention": {"rope_theta": 30.0}}


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        ("LlamaConfig", {"rope_theta": 300.0}, {"rope_theta": 300.0, "rope_scaling": None}),
        ("LlamaConfig", {**YARN, "rope_theta": 300.0}, {"rope_theta": 300.0, "rope_scaling": YARN}),
        ("PhiConfig", {"partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.25, "rope_theta": 1e4}),
        (
            "GPTNeoXConfig",
            {"rope_theta": 9.0, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 9.0, "rotary_pct": 0.5},
        ),
        ("Gemma3TextConfig", BOTH, {"rope_theta": 70.0, "rope_local_base_freq": 30.0, "rope_scaling": YARN}),
        ("ModernBertConfig", BOTH, {"global_rope_theta": 70.0, "local_rope_theta": 30.0}),
    ],
)
def test_rotary_settings_of_newer_files_are_read(kind: str, given: dict, wanted: dict) -> None:
    made = getattr(phyla, kind)(rope_parameters=given)
    assert {key: getattr(made, key) for key in wanted} == wanted
    written = made.to_dict()
    assert "rope_parameters" not in written
    assert {key: written[key] for key in wanted} == wanted
    own = next(iter(wanted))
    assert getattr(getattr(phyla, kind)(**{own: 0.75}, rope_parameters=given), own) == 0.75


def test_rotary_settings_that_are_no_objects_are_named() -> None:
    with pytest.raises(ConfigError, match="must be an object, but is 7"):
        phyla.Gemma3TextConfig(rope_parameters={"full_attention": 7})
