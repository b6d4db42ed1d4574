"""Configurations have the public names, fields and defaults; what they cannot be is an error.

tests/data/adapter_configs.json is what `adapters` 1.3.0 and `peft` 0.21.2 say of their own.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import phyla
import phyla.adapters as adapters
import phyla.adapters.peft as peft
from phyla.adapters.config import ADAPTER_CONFIG_MAP, AdapterConfig, config_of
from phyla.adapters.fusion import ADAPTERFUSION_CONFIG_MAP, fusion_config_of
from phyla.adapters.peft.configs import KINDS, PeftConfig
from phyla.errors import AdapterError

KNOWN = json.loads((Path(__file__).parent / "data" / "adapter_configs.json").read_text())
# Fields that are attributes of the class alone there, and not saved.
UNSAVED = {"random_uniform_scale", "subtract_projection"}


def own_fields(cls: type[AdapterConfig]) -> list[str]:
    """The fields of a configuration class that public ones have too."""
    return [f.name for f in fields(cls) if f.init and f.name not in UNSAVED]


def public(saved: dict[str, Any]) -> dict[str, Any]:
    """What is saved, without what public files leave out."""
    return {k: v for k, v in saved.items() if k not in UNSAVED}


@pytest.mark.parametrize("name", KNOWN["strings"])
def test_strings_mean_what_they_mean_there(name: str) -> None:
    wanted, made = KNOWN["strings"][name], config_of(name)
    assert type(made).__name__ == wanted["class"]
    assert public(made.to_dict()) == wanted["saved"]
    assert config_of(wanted["saved"]).to_dict() == wanted["saved"]
    assert config_of(made.to_dict()).to_dict() == made.to_dict()
    assert type(made).load(name).to_dict() == made.to_dict()


@pytest.mark.parametrize("name", KNOWN["classes"])
def test_classes_have_the_public_fields(name: str) -> None:
    wanted, cls = KNOWN["classes"][name], getattr(adapters, name)
    assert cls.architecture == wanted["architecture"]
    assert set(own_fields(cls)) == set(wanted["fields"]) - UNSAVED - {"architecture"}


def test_no_string_is_missing() -> None:
    own = {n for n in ADAPTER_CONFIG_MAP if getattr(config_of(n), "architecture", None) != "peft"}
    assert set(KNOWN["strings"]) | {"adapter_plus"} == own


@pytest.mark.parametrize("name", KNOWN["fusions"])
def test_fusions_mean_what_they_mean_there(name: str) -> None:
    assert fusion_config_of(name).to_dict() == KNOWN["fusions"][name]
    assert set(ADAPTERFUSION_CONFIG_MAP) == set(KNOWN["fusions"])


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


@pytest.mark.parametrize("kind", KNOWN["peft"])
def test_peft_configurations_have_the_public_fields_and_defaults(kind: str) -> None:
    wanted, cls = KNOWN["peft"][kind], KINDS[kind]
    assert cls.__name__ == wanted["class"] and getattr(peft, wanted["class"]) is cls
    assert set(wanted["fields"]) - {"peft_type"} <= {f.name for f in fields(cls)}
    made: Any = cls()
    for name, value in wanted["defaults"].items():
        assert plain(made[name]) == value, name
    again = PeftConfig.from_dict(made.to_dict())
    assert again == made and type(again) is cls


@pytest.mark.parametrize("kind", [k for k in KNOWN["peft_types"] if k not in KINDS])
def test_peft_types_that_are_not_there_are_errors(kind: str) -> None:
    with pytest.raises(AdapterError, match="not implemented"):
        config_of({"peft_type": kind, "r": 8})


REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1], "arrow_config": {"top_k": 2}, "kasa_config": {"alpha": 1},
    "layer_replication": [[0, 1]], "monteclora_config": {"a": 1}, "use_bdlora": {"a": 1}, "use_qalora": True,
    "velora_config": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_there_are_errors(name: str) -> None:
    for make in (lambda data: peft.LoraConfig(**data), lambda data: config_of({"peft_type": "LORA", **data})):
        with pytest.raises(AdapterError, match=name):
            make({name: REFUSED[name]})


STRINGS = {
    "an unknown name": ("seqbn", "no adapter configuration"),
    "an unknown field": ("lora[rank=8]", "no field 'rank'"),
    "an open bracket": ("lora[r=8", "closed"),
    "an open quote": ("prompt_tuning[prompt_init_text='x]", "closed"),
    "no value": ("lora[r]", "no field"),
    "two of one place": ("seq_bn|par_bn", "same place"),
    "two of one method": ("lora[r=2]|ia3", "same place"),
    "a field of a union": ("mam[bottleneck_size=3]", "no field"),
    "nothing": ("", "no adapter configuration"),
}


@pytest.mark.parametrize("case", STRINGS)
def test_strings_that_mean_nothing(case: str) -> None:
    text, message = STRINGS[case]
    with pytest.raises(AdapterError, match=message):
        config_of(text)


# What a field cannot be: (configuration, what the error says).
VALUES: dict[str, tuple[Any, str]] = {
    "init_weights of a bottleneck": ("seq_bn[init_weights=xavier]", "init_weights"),
    "init_weights of LoRA": ("lora[init_weights=zeros]", "init_weights"),
    "reduction factors without a default": ("seq_bn[reduction_factor={0: 4}]", "reduction_factor"),
    "inv_adapter": ("seq_bn[inv_adapter=flow]", "inv_adapter"),
    "an activation": ("seq_bn[non_linearity=bump]", "bump"),
    "phm_dim": ("compacter[phm_dim=7,reduction_factor=4]", "phm_dim"),
    "phm_c_init": ("compacter[phm_c_init=ones,reduction_factor=4]", "phm_c_init"),
    "combine": ("prompt_tuning[combine=suffix]", "combine"),
    "prompt_init": ("prompt_tuning[prompt_init=zeros]", "prompt_init"),
    "prompt_init_text": ("prompt_tuning[prompt_init=from_string]", "prompt_init_text"),
    "dtype": ("lora[dtype=int8]", "floating-point"),
    "no place": ("lora[selfattn_lora=false]", "no place"),
    "all layers left out": ("seq_bn[leave_out=[0,1]]", "no place"),
    "no ReFT": ("loreft[output_reft=false]", "no place"),
    "a module that is not there": (peft.LoraConfig(target_modules=["nowhere"]), "nowhere"),
    "bias": (peft.LoraConfig(bias="some"), "bias"),
    "init_lora_weights": (peft.LoraConfig(init_lora_weights="eva"), "init_lora_weights"),
    "a list": (["lora"], "string, mapping or config"),
    "an architecture": ({"architecture": "lorax"}, "lorax"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be(case: str) -> None:
    config, message = VALUES[case]
    made = phyla.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model: Any = phyla.BertModel(made)
    with pytest.raises(ValueError, match=message):
        model.add_adapter("a", config=config)
    assert not model.has_adapters()


def test_fields_that_must_be_given() -> None:
    with pytest.raises(AdapterError, match="reduction_factor"):
        adapters.BnConfig(mh_adapter=True)
    with pytest.raises(AdapterError, match="value_before"):
        fusion_config_of({"value_before": True})
