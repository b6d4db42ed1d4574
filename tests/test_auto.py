"""The Auto classes give what the reference's give: each (task, model_type) pair its class."""

import json
from pathlib import Path

import pytest
import torch

import phyla
from phyla.registry import config_class, table

# {Auto class: {model_type: class}} of the reference (4.50.3), for the families that phyla has.
CLASSES = json.loads((Path(__file__).parent / "data" / "auto_classes.json").read_text())


@pytest.mark.parametrize("kind", CLASSES)
def test_each_task_has_the_class_of_the_reference(kind: str) -> None:
    auto = getattr(phyla, kind)
    made = {m: auto._class_for(config_class(m)()).__name__ for m in CLASSES[kind] if m not in _WHOLE}
    assert made == {m: name for m, name in CLASSES[kind].items() if m not in _WHOLE}


# Configurations that are made from those of their parts only.
_WHOLE = {"encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder", "rag"}


@pytest.mark.parametrize("model_type", sorted(_WHOLE))
def test_wrappers_are_served(model_type: str) -> None:
    served = {name for rows in CLASSES.values() for mt, name in rows.items() if mt == model_type}
    assert served <= set(table()[model_type].classes)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("AutoModelForTextEncoding", "vit"), ("AutoModelForZeroShotImageClassification", "bert")],
)
def test_a_task_that_a_family_lacks_is_an_error_that_says_what_it_has(kind: str, model_type: str) -> None:
    with pytest.raises(phyla.ConfigError, match="whose tasks are"):
        getattr(phyla, kind).from_config(config_class(model_type)())


def test_mappings_list_configurations_and_classes() -> None:
    assert phyla.CONFIG_MAPPING["bert"] is phyla.BertConfig
    assert set(phyla.CONFIG_MAPPING) == set(table())
    assert phyla.MODEL_FOR_CAUSAL_LM_MAPPING[phyla.LlamaConfig] is phyla.LlamaForCausalLM
    assert phyla.MODEL_MAPPING[phyla.BertConfig] is phyla.BertModel
    kinds = list(phyla.MODEL_FOR_MASKED_LM_MAPPING.keys())
    assert phyla.MBartConfig in kinds and phyla.GPT2Config not in kinds
    assert phyla.GPT2Config not in phyla.MODEL_FOR_MASKED_LM_MAPPING
    with pytest.raises(KeyError, match="bert"):
        phyla.CONFIG_MAPPING["bertt"]


def test_the_language_model_of_a_whole_checkpoint(tmp_path: Path) -> None:
    text = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "cross_attention_layers": [1], "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
        "intermediate_size": 24, "image_size": 8, "patch_size": 4, "vision_output_dim": 32,
        "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    config = phyla.MllamaConfig(text_config=text, vision_config=vision)
    whole = phyla.MllamaForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    model = phyla.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is phyla.MllamaForCausalLM
    ids = torch.tensor([[3, 7, 11, 2]])
    torch.testing.assert_close(model(ids).logits, whole(ids).logits)
