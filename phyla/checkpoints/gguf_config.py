"""The public config.json of the model in a GGUF file, from the file's metadata and the tensors it holds."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, pi

from phyla.checkpoints.gguf_header import GGUFHeader
from phyla.errors import CheckpointError, CorruptFileError, nearest

# Metadata key (after the architecture) -> public config key.
_DECODER = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


@dataclass(frozen=True)
class Facts:
    """What a file says of its model: metadata under the architecture's prefix, shapes of its tensors, and its
    short tables."""

    header: GGUFHeader
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    table: Callable[[str], list[float]]

    def get(self, key: str, default: object = None) -> object:
        value = self.header.metadata.get(f"{self.architecture}.{key}", default)
        return shortest(value) if isinstance(value, float) else value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number (of layers: the same for all); raises CorruptFileError if it is none or differs
        between layers."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if type(value) is not int or value < 0:
            raise CorruptFileError(
                f"{self.header.path}: {self.architecture}.{key} must be a whole number, but is "
                f"{str(value)[:100]}"
            )
        return value

    def has(self, name: str) -> bool:
        return name in self.shapes

    def rows(self, name: str) -> int | None:
        return self.shapes[name][0] if self.shapes.get(name) else None

    @property
    def head_width(self) -> int:
        heads = self.whole("attention.head_count")
        return self.whole("attention.key_length", self.whole("embedding_length") // max(heads, 1))

    def rotary_share(self) -> float:
        """The part of a head's width that is rotated."""
        return shortest(self.whole("rope.dimension_count", self.head_width) / max(self.head_width, 1))


def shortest(value: float) -> float:
    """The shortest decimal number that is the same float32 (files hold 1e-5 as 9.999999747378752e-06)."""
    if value != value or abs(value) > 3e38:
        return value
    single = struct.unpack("f", struct.pack("f", value))[0]
    for digits in range(1, 10):
        text = float(f"{single:.{digits}g}")
        if struct.unpack("f", struct.pack("f", text))[0] == single:
            return text
    return value


def _rope_scaling(f: Facts) -> dict:
    kind, factor = (
        f.get("rope.scaling.type", "none"),
        f.get("rope.scaling.factor", f.get("rope.scale_linear")),
    )
    original = f.get("rope.scaling.original_context_length")
    if f.has("rope_freqs.weight"):
        scaling = _llama3_scaling(f)
        return {"rope_scaling": scaling} if scaling else {}
    if f.has("rope_factors_long.weight"):
        found: dict = {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": f.table("rope_factors_short.weight"),
                "long_factor": f.table("rope_factors_long.weight"),
            }
        }
        return {**found, "original_max_position_embeddings": original} if original else found
    if kind == "linear" and factor and factor != 1:
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn" and factor:
        scaling = {"rope_type": "yarn", "factor": factor}
        return {
            "rope_scaling": {**scaling, "original_max_position_embeddings": original} if original else scaling
        }
    return {}


def _llama3_scaling(f: Facts) -> dict | None:
    """The rule behind a table of frequency divisors (Llama 3.1: https://arxiv.org/abs/2407.21783), which
    files keep without its name."""
    stored = f.table("rope_freqs.weight")
    factor, low, high, original = max(stored, default=1.0), 1.0, 4.0, 8192
    if all(abs(x - 1) < 1e-6 for x in stored):
        return None
    base, width = f.get("rope.freq_base", 10000.0), 2 * len(stored)
    if not isinstance(base, (int, float)) or not base > 0 or not all(0 < x < 1e9 for x in stored):
        raise CorruptFileError(
            f"{f.header.path}: rope_freqs.weight and rope.freq_base must be positive numbers"
        )
    for i, found in enumerate(stored):
        length = 2 * pi * base ** (2 * i / width)
        smooth = min(max((original / length - low) / (high - low), 0.0), 1.0)
        if abs(log(found * ((1 - smooth) / factor + smooth))) > 1e-3:
            raise CheckpointError(
                f"{f.header.path}: rope_freqs.weight follows no known rule of rotary scaling; convert "
                "the model from its safetensors"
            )
    return {
        "rope_type": "llama3",
        "factor": shortest(factor),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama(f: Facts) -> dict:
    found = {
        "head_dim": f.whole("attention.key_length", f.whole("rope.dimension_count", f.head_width)),
        **_rope_scaling(f),
    }
    if f.has("blk.0.attn_q.bias"):
        found["attention_bias"] = True
    if f.whole("expert_count", 0):
        found |= {
            "num_local_experts": f.whole("expert_count"),
            "num_experts_per_tok": f.whole("expert_used_count"),
        }
    return found


def _qwen_moe(f: Facts) -> dict:
    found: dict = {**_rope_scaling(f)}
    for key, public, tensor in (
        ("expert_feed_forward_length", "moe_intermediate_size", "blk.0.ffn_gate_exps.weight"),
        (
            "expert_shared_feed_forward_length",
            "shared_expert_intermediate_size",
            "blk.0.ffn_gate_shexp.weight",
        ),
    ):
        if f.has(tensor):
            found[public] = f.whole(key, f.shapes[tensor][-2])
    return found


def _gemma2(f: Facts) -> dict:
    # Only the 27B model scales its queries by another width than that of its heads.
    scale = (
        f.whole("embedding_length") // f.whole("attention.head_count")
        if f.whole("block_count") == 46
        else f.head_width
    )
    found: dict = {"head_dim": f.head_width, "query_pre_attn_scalar": scale}
    for key, public in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    ):
        if f.get(key) is not None:
            found[public] = f.get(key)
    return found


def _phi3(f: Facts) -> dict:
    found = {"sliding_window": f.get("attention.sliding_window") or None, **_rope_scaling(f)}
    share = f.rotary_share()
    return found if share == 1 else {**found, "partial_rotary_factor": share}


def _stablelm(f: Facts) -> dict:
    return {
        "partial_rotary_factor": f.rotary_share(),
        "use_qkv_bias": f.has("blk.0.attn_q.bias"),
        "use_parallel_residual": not f.has("blk.0.ffn_norm.weight"),
        "qk_layernorm": f.has("blk.0.attn_q_norm.weight"),
    }


def _falcon(f: Facts) -> dict:
    two_norms = f.has("blk.0.attn_norm_2.weight")
    groups = f.whole("attention.head_count_kv", 1)
    found = {
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "new_decoder_architecture": two_norms or groups > 1,
        "parallel_attn": not f.has("blk.0.ffn_norm.weight"),
        "bias": f.has("blk.0.attn_qkv.bias"),
        "alibi": False,
    }
    return (
        {**found, "num_ln_in_parallel_attn": 2 if two_norms else 1}
        if found["new_decoder_architecture"]
        else found
    )


def _gpt2(f: Facts) -> dict:
    inner, width = f.whole("feed_forward_length", 0), f.whole("embedding_length")
    length = f.whole("context_length")
    return {"n_positions": length, "n_ctx": length, "n_inner": inner if inner not in (0, 4 * width) else None}


def _gpt_neox(f: Facts) -> dict:
    return {
        "rotary_pct": f.rotary_share(),
        "use_parallel_residual": bool(f.get("use_parallel_residual", True)),
    }


def _mamba(f: Facts) -> dict:
    return {
        "expand": f.whole("ssm.inner_size") // max(f.whole("embedding_length"), 1),
        "use_conv_bias": f.has("blk.0.ssm_conv1d.bias"),
        "use_bias": f.has("blk.0.ssm_in.bias"),
    }


def _t5(f: Facts) -> dict:
    gated = f.has("enc.blk.0.ffn_gate.weight") or f.has("dec.blk.0.ffn_gate.weight")
    layers = f.whole("block_count")
    return {
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_gated_act": gated,
        "num_decoder_layers": f.whole("decoder_block_count", layers),
        "is_encoder_decoder": f.architecture == "t5",
    }


def _bert(f: Facts) -> dict:
    return {
        "max_position_embeddings": f.rows("position_embd.weight") or f.whole("context_length"),
        "type_vocab_size": f.rows("token_types.weight") or 2,
    }


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures reads as a public config: model_type, its usual class, keys, and
    the rest."""

    model_type: str
    class_name: str
    keys: Mapping[str, str]
    rest: Callable[[Facts], dict] = lambda facts: {}
    always_tied: bool = False


_LAYER_NORM = "attention.layer_norm_epsilon"
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", {**_DECODER, **_RMS}, _llama),
    "mistral": Architecture("mistral", "MistralForCausalLM", {**_DECODER, **_RMS}, _llama),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", {**_DECODER, **_RMS}, _rope_scaling),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", {**_DECODER, **_RMS, **_EXPERTS}, _qwen_moe),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", {**_DECODER, **_RMS, "attention.key_length": "head_dim"}, _rope_scaling
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_DECODER, **_RMS, **_EXPERTS, "attention.key_length": "head_dim"},
        _qwen_moe,
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        {**_DECODER, **_RMS},
        lambda f: {"head_dim": f.head_width},
        always_tied=True,
    ),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", {**_DECODER, **_RMS}, _gemma2),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        {**_DECODER, _LAYER_NORM: "layer_norm_eps"},
        lambda f: {"partial_rotary_factor": f.rotary_share()},
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", {**_DECODER, **_RMS}, _phi3),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {**_DECODER, _LAYER_NORM: "norm_epsilon"},
        lambda f: {"use_bias": f.has("blk.0.attn_q.bias")},
    ),
    "stablelm": Architecture(
        "stablelm", "StableLmForCausalLM", {**_DECODER, _LAYER_NORM: "layer_norm_eps"}, _stablelm
    ),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        {**_DECODER, "attention.layer_norm_rms_epsilon": "norm_eps", _LAYER_NORM: "norm_eps"},
        lambda f: {"partial_rotary_factor": f.rotary_share(), "head_dim": f.head_width},
    ),
    "falcon": Architecture(
        "falcon",
        "FalconForCausalLM",
        {
            "context_length": "max_position_embeddings",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "ffn_hidden_size",
            "embedding_length": "hidden_size",
            "attention.head_count": "num_attention_heads",
            "rope.freq_base": "rope_theta",
            _LAYER_NORM: "layer_norm_epsilon",
        },
        _falcon,
        always_tied=True,
    ),
    "bloom": Architecture(
        "bloom",
        "BloomForCausalLM",
        {
            "block_count": "n_layer",
            "embedding_length": "hidden_size",
            "attention.head_count": "n_head",
            "context_length": "seq_length",
            _LAYER_NORM: "layer_norm_epsilon",
        },
        always_tied=True,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {
            **{key: public for key, public in _DECODER.items() if "kv" not in key},
            "rope.freq_base": "rotary_emb_base",
            _LAYER_NORM: "layer_norm_eps",
        },
        _gpt_neox,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "block_count": "n_layer",
            "embedding_length": "n_embd",
            "attention.head_count": "n_head",
            _LAYER_NORM: "layer_norm_epsilon",
        },
        _gpt2,
    ),
    "mamba": Architecture(
        "mamba",
        "MambaForCausalLM",
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "ssm.inner_size": "intermediate_size",
        },
        _mamba,
    ),
    "t5": Architecture(
        "t5",
        "T5ForConditionalGeneration",
        {
            "context_length": "n_positions",
            "block_count": "num_layers",
            "feed_forward_length": "d_ff",
            "embedding_length": "d_model",
            "attention.key_length": "d_kv",
            "attention.head_count": "num_heads",
            _LAYER_NORM: "layer_norm_epsilon",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "attention.relative_buckets_count": "relative_attention_num_buckets",
            "decoder_start_token_id": "decoder_start_token_id",
        },
        _t5,
    ),
    "bert": Architecture(
        "bert",
        "BertModel",
        {
            **{key: public for key, public in _DECODER.items() if "kv" not in key and "rope" not in key},
            _LAYER_NORM: "layer_norm_eps",
        },
        _bert,
    ),
}
ARCHITECTURES["t5encoder"] = Architecture("t5", "T5EncoderModel", ARCHITECTURES["t5"].keys, _t5)


def public_config(header: GGUFHeader, table: Callable[[str], list[float]]) -> tuple[dict, str]:
    """The config.json of a GGUF file as the public tools would write it, and the key of its names in
    gguf_names.NAMES.

    `table` reads a short tensor. Raises CheckpointError for an architecture that is not known,
    CorruptFileError for nonsense.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.path} holds a model of the architecture {str(name)[:100]!r}, which phyla does "
            "not read from GGUF; "
            f"it reads {', '.join(sorted(ARCHITECTURES))}.{nearest(str(name), ARCHITECTURES)}"
        )
    if name == "llama" and header.metadata.get("general.name") == "mistral":
        name, prefix = "mistral", "llama"
    else:
        prefix = name
    facts = Facts(header, prefix, {tensor.name: tensor.shape for tensor in header.tensors}, table)
    rule = ARCHITECTURES[name]
    config: dict = {"architectures": [rule.class_name], "model_type": rule.model_type}
    for key, public in rule.keys.items():
        value = facts.get(key)
        if value is not None:
            config[public] = value if isinstance(value, (float, str, bool)) else facts.whole(key)
    config |= rule.rest(facts)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    known = len(tokens) if isinstance(tokens, list) else facts.get("vocab_size")
    config["vocab_size"] = facts.rows("token_embd.weight") or known
    config["tie_word_embeddings"] = rule.always_tied or not facts.has("output.weight")
    for key, public in _TOKENS.items():
        if type(header.metadata.get(key)) is int:
            config[public] = header.metadata[key]
    return _finish(config, facts)


def _finish(config: dict, facts: Facts) -> tuple[dict, str]:
    model_type = config["model_type"]
    if model_type in ("llama", "mistral") and config.get("num_local_experts"):
        # llama.cpp has one architecture for both.
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
        return config, "mixtral"
    if model_type == "falcon" and facts.has("blk.0.attn_norm_2.weight"):
        return config, "falcon/two_norms"
    if model_type == "t5" and not config["is_gated_act"]:
        return config, "t5/ungated"
    return config, model_type
