"""Tensor names of GGUF files beside the public ones, a table for each architecture that llama.cpp writes.

A line reads `file name: public name` or `file name: (public name, layout)`, both without `.weight` or
`.bias`; `{i}` is the layer. The
layouts, told from the file to the public tensor:
  rope_q, rope_k  rows of each head stand in pairs for another rotary order; heads, or key-value heads, of
  them
  qkv_heads       all queries, keys, values; public: query, key, value of head after head
  qkv_groups      the same; public: the queries of a key-value head, its key, its value, head after head
  transpose       a matrix stored (out, in); public: (in, out)
  minus_one       a norm's weight stored with its offset of one
  a_log           a decay stored as -exp(x)
  conv            (channels, kernel); public: (channels, 1, kernel)
  row             (width); public: (1, width)
  parts           the first axis is `{e}` of the public name
Facts: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py and
gguf-py/gguf/tensor_mapping.py.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from phyla.errors import CorruptFileError

Names = dict[str, "str | tuple[str, str]"]

MAX_PARTS = 1 << 16
_SUFFIXES = (".weight", ".bias")
# Tables that a model computes itself, or that go into its config.
NOT_WEIGHTS = re.compile(
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.[0-9]+\.attn_rot_embd(\.weight)?"
)


def _layers(prefix: str, lines: Names, block: str = "blk.{i}") -> Names:
    found: Names = {}
    for name, public in lines.items():
        target, layout = (public, "") if isinstance(public, str) else public
        found[f"{block}.{name}"] = (f"{prefix}.{target}", layout) if layout else f"{prefix}.{target}"
    return found


_ENDS: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION: Names = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_ROPE_PAIRS: Names = {"attn_q": ("self_attn.q_proj", "rope_q"), "attn_k": ("self_attn.k_proj", "rope_k")}
_GATED: Names = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MODEL = "model.layers.{i}"
_DECODER: Names = {**_ENDS, **_layers(_MODEL, {**_ATTENTION, **_GATED})}
_LLAMA: Names = {**_DECODER, **_layers(_MODEL, _ROPE_PAIRS)}
_MIXTRAL: Names = {
    **_LLAMA,
    **_layers(
        _MODEL,
        {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": ("block_sparse_moe.experts.{e}.w1", "parts"),
            "ffn_down_exps": ("block_sparse_moe.experts.{e}.w2", "parts"),
            "ffn_up_exps": ("block_sparse_moe.experts.{e}.w3", "parts"),
            # Files of early 2024 hold each expert by itself.
            "ffn_gate.{e}": "block_sparse_moe.experts.{e}.w1",
            "ffn_down.{e}": "block_sparse_moe.experts.{e}.w2",
            "ffn_up.{e}": "block_sparse_moe.experts.{e}.w3",
        },
    ),
}
_EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": ("mlp.experts.{e}.gate_proj", "parts"),
    "ffn_up_exps": ("mlp.experts.{e}.up_proj", "parts"),
    "ffn_down_exps": ("mlp.experts.{e}.down_proj", "parts"),
}
_QWEN2_MOE: Names = {
    **_DECODER,
    **_layers(
        _MODEL,
        {
            **_EXPERTS,
            "ffn_gate_inp_shexp": ("mlp.shared_expert_gate", "row"),
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        },
    ),
}
_GEMMA: Names = {
    **_DECODER,
    "output_norm": ("model.norm", "minus_one"),
    **_layers(
        _MODEL,
        {
            "attn_norm": ("input_layernorm", "minus_one"),
            "ffn_norm": ("post_attention_layernorm", "minus_one"),
        },
    ),
}
_GEMMA2: Names = {
    **_GEMMA,
    **_layers(
        _MODEL,
        {
            "post_attention_norm": ("post_attention_layernorm", "minus_one"),
            "ffn_norm": ("pre_feedforward_layernorm", "minus_one"),
            "post_ffw_norm": ("post_feedforward_layernorm", "minus_one"),
        },
    ),
}
_NEMOTRON: Names = {
    **_GEMMA,
    **_layers(
        _MODEL,
        {
            "attn_norm": ("input_layernorm", "minus_one"),
            "ffn_norm": ("post_attention_layernorm", "minus_one"),
        },
    ),
}
_PHI3: Names = {
    **_DECODER,
    **_layers(_MODEL, {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
}
_PHI: Names = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
    **_layers(
        _MODEL,
        {**_ATTENTION, "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    ),
}
_STARCODER2: Names = {**_DECODER, **_layers(_MODEL, {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"})}
_STABLELM: Names = {
    **_DECODER,
    **_layers(
        _MODEL,
        {
            "attn_q_norm": ("self_attn.q_layernorm.norms.{e}", "parts"),
            "attn_k_norm": ("self_attn.k_layernorm.norms.{e}", "parts"),
        },
    ),
}
_FALCON: Names = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_layers(
        "transformer.h.{i}",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": ("self_attention.query_key_value", "qkv_groups"),
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
    ),
}
_FALCON_TWO_NORMS: Names = {
    **_FALCON,
    **_layers("transformer.h.{i}", {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}),
}
_BLOOM: Names = {
    **_FALCON,
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    **_layers(
        "transformer.h.{i}",
        {"attn_qkv": ("self_attention.query_key_value", "qkv_heads"), "ffn_norm": "post_attention_layernorm"},
    ),
}
_GPT_NEOX: Names = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    **_layers(
        "gpt_neox.layers.{i}",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": ("attention.query_key_value", "qkv_heads"),
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
    ),
}
_GPT2: Names = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_layers(
        "transformer.h.{i}",
        {
            "attn_norm": "ln_1",
            "attn_qkv": ("attn.c_attn", "transpose"),
            "attn_output": ("attn.c_proj", "transpose"),
            "ffn_norm": "ln_2",
            "ffn_up": ("mlp.c_fc", "transpose"),
            "ffn_down": ("mlp.c_proj", "transpose"),
        },
    ),
}
_MAMBA: Names = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    **_layers(
        "backbone.layers.{i}",
        {
            "attn_norm": "norm",
            "ssm_in": "mixer.in_proj",
            "ssm_conv1d": ("mixer.conv1d", "conv"),
            "ssm_x": "mixer.x_proj",
            "ssm_dt": "mixer.dt_proj",
            "ssm_a": ("mixer.A_log", "a_log"),
            "ssm_d": "mixer.D",
            "ssm_out": "mixer.out_proj",
        },
    ),
}


def _t5_attention(name: str, block: str, part: str) -> Names:
    at = f"layer.{block}"
    return {
        f"{name}_norm": f"{at}.layer_norm",
        f"{name}_q": f"{at}.{part}.q",
        f"{name}_k": f"{at}.{part}.k",
        f"{name}_v": f"{at}.{part}.v",
        f"{name}_o": f"{at}.{part}.o",
        f"{name}_rel_b": f"{at}.{part}.relative_attention_bias",
    }


def _t5_ffn(block: str, gated: bool) -> Names:
    at = f"layer.{block}"
    dense = f"{at}.DenseReluDense"
    wide: Names = (
        {"ffn_gate": f"{dense}.wi_0", "ffn_up": f"{dense}.wi_1"} if gated else {"ffn_up": f"{dense}.wi"}
    )
    return {"ffn_norm": f"{at}.layer_norm", **wide, "ffn_down": f"{dense}.wo"}


def _t5(gated: bool) -> Names:
    decoder = {
        **_t5_attention("attn", "0", "SelfAttention"),
        **_t5_attention("cross_attn", "1", "EncDecAttention"),
        **_t5_ffn("2", gated),
    }
    return {
        "token_embd": "shared",
        "enc.output_norm": "encoder.final_layer_norm",
        "dec.output_norm": "decoder.final_layer_norm",
        "output": "lm_head",
        **_layers(
            "encoder.block.{i}",
            {**_t5_attention("attn", "0", "SelfAttention"), **_t5_ffn("1", gated)},
            "enc.blk.{i}",
        ),
        **_layers("decoder.block.{i}", decoder, "dec.blk.{i}"),
    }


_BERT: Names = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    **_layers(
        "encoder.layer.{i}",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
    ),
}

# Public model_type -> names. Which of them a file has is told by its architecture and what it holds
# (gguf_config.py).
NAMES: dict[str, Names] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "qwen2": _DECODER,
    "qwen2_moe": _QWEN2_MOE,
    "qwen3": {**_DECODER, **_layers(_MODEL, _QK_NORM)},
    "qwen3_moe": {**_DECODER, **_layers(_MODEL, {**_QK_NORM, **_EXPERTS})},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "phi": _PHI,
    "phi3": _PHI3,
    "starcoder2": _STARCODER2,
    "stablelm": _STABLELM,
    "nemotron": _NEMOTRON,
    "falcon": _FALCON,
    "falcon/two_norms": _FALCON_TWO_NORMS,
    "bloom": _BLOOM,
    "gpt_neox": _GPT_NEOX,
    "gpt2": _GPT2,
    "mamba": _MAMBA,
    "t5": _t5(gated=True),
    "t5/ungated": _t5(gated=False),
    "bert": _BERT,
}


@dataclass(frozen=True)
class Source:
    """Where a public tensor comes from: tensor name in the file, layout, and which part of the first axis (if
    it is one of many)."""

    name: str
    layout: str = ""
    part: int | None = None


def public_sources(table: Names, stored: Iterable[tuple[str, int]]) -> dict[str, Source]:
    """Public tensor name -> source, for the (name, length of the first axis) of all tensors of a file.

    Tensors that the table does not know keep their own name, so that a load report can tell of them.
    """
    lines = [(_pattern(base), line) for base, line in table.items()]
    found: dict[str, Source] = {}
    for name, length in stored:
        if NOT_WEIGHTS.fullmatch(name):
            continue
        base, suffix = _split(name)
        match, line = next(((m, line) for p, line in lines if (m := p.fullmatch(base))), (None, ""))
        if match is None:
            found[name] = Source(name)
            continue
        public, layout = (line, "") if isinstance(line, str) else line
        if layout == "parts":
            if length > MAX_PARTS:
                raise CorruptFileError(
                    f"tensor {name!r} claims {length} experts or heads; at most {MAX_PARTS} are read"
                )
            for part in range(length):
                found[_fill(public, {**match.groupdict(), "e": str(part)}) + suffix] = Source(
                    name, layout, part
                )
        else:
            found[_fill(public, match.groupdict()) + suffix] = Source(name, layout)
    return found


def _split(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _pattern(base: str) -> re.Pattern:
    text = re.escape(base).replace(r"\{i\}", "(?P<i>[0-9]+)").replace(r"\{e\}", "(?P<e>[0-9]+)")
    return re.compile(text)


def _fill(public: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        public = public.replace(f"{{{key}}}", value)
    return public
