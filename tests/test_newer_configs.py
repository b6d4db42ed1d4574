"""Configurations of families of newer public releases: defaults, what is refused, the Auto classes."""

from typing import Any

import pytest
import torch

import phyla
from phyla.errors import ConfigError

TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16,
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip


@pytest.mark.parametrize(
    "model_type",
    ["deepseek_v3", "glm4_moe", "gemma4_text", "gemma4_vision", "gemma4_assistant", "diffusion_gemma",
     "diffusion_gemma_text", "muse_glimmer_assistant"],
)  # fmt: skip
def test_the_public_defaults_make_a_configuration(model_type: str) -> None:
    assert phyla.AutoConfig.for_model(model_type).model_type == model_type


MIXED = {"enable_moe_block": True, "num_experts": 4, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_moe_block": True}, "num_experts"),
        ({**MIXED, "top_k_experts": 5}, "top_k_experts"),
        ({"num_kv_shared_layers": 5}, "num_kv_shared_layers must be 0 to 4"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 10.0}}}, "sliding_attention"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}, "rope_parameters"),
        ({"per_layer_config": {"1": {"head_dim": 16, "intermediate_size": 20}}}, "per_layer_config"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        phyla.Gemma4ForCausalLM(phyla.Gemma4TextConfig(**TEXT | changes))


def test_scaled_positions_without_a_factor_are_refused() -> None:
    scaled = {"rope_type": "yarn", "mscale_all_dim": 1.0}
    with pytest.raises(ConfigError, match="factor"):
        phyla.DeepseekV3ForCausalLM(phyla.DeepseekV3Config(**LATENT, rope_scaling=scaled))


@torch.no_grad()
def test_positions_without_a_base_have_the_public_one() -> None:
    found = []
    for base in ({}, {"rope_theta": 10000.0}), ({}, {}):
        kinds = ("full_attention", "sliding_attention")
        said = {k: {"rope_type": "default", **more} for k, more in zip(kinds, base, strict=True)}
        torch.manual_seed(0)
        model = phyla.Gemma4ForCausalLM(phyla.Gemma4TextConfig(**TEXT, rope_parameters=said)).eval()
        found.append(model(torch.arange(9)[None]).logits)
    assert torch.equal(*found)


def test_a_draft_is_found_where_causal_models_are() -> None:
    draft = phyla.Gemma4AssistantConfig(text_config=TEXT, backbone_hidden_size=40)
    assert type(phyla.AutoModelForCausalLM.from_config(draft)) is phyla.Gemma4AssistantForCausalLM
