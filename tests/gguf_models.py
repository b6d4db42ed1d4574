"""Small GGUF files of every architecture that phyla reads, made of numbers that follow from the tensor names
alone."""

import zlib
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, VOCABULARY, CONTEXT = 32, 2, 24, 64
HEADS, KEY_VALUE_HEADS, HEAD_WIDTH, INNER = 4, 2, 8, 48
EXPERTS = 3
TOKENS = [f"t{i}" for i in range(VOCABULARY)]

Shapes = dict[str, tuple[int, ...]]


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 numbers in -1..1 (a decay's: below 0), all different between tensors."""
    count = int(np.prod(shape))
    steps = (np.arange(count, dtype=np.int64) * 7919 + zlib.crc32(name.encode())) % 10007
    numbers = (steps / 10007.0 * 2 - 1).astype(np.float32)
    if name.endswith("ssm_a"):
        numbers = -np.abs(numbers) - np.float32(0.25)
    return numbers.reshape(shape)


def both(name: str, out: int, *into: int) -> Shapes:
    """Weight and bias of a linear map or a norm."""
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def norm(name: str, bias: bool) -> Shapes:
    return both(name, WIDTH) if bias else {f"{name}.weight": (WIDTH,)}


def attention(block: str, bias: bool = False, qkv: int = 0) -> Shapes:
    key_value = KEY_VALUE_HEADS * HEAD_WIDTH
    if qkv:
        found = both(f"{block}.attn_qkv", qkv, WIDTH)
    else:
        found = {
            **both(f"{block}.attn_q", WIDTH, WIDTH),
            **both(f"{block}.attn_k", key_value, WIDTH),
            **both(f"{block}.attn_v", key_value, WIDTH),
        }
    found |= both(f"{block}.attn_output", WIDTH, WIDTH)
    return {n: s for n, s in found.items() if bias or n.endswith(".weight")}


def ffn(block: str, gate: bool, bias: bool = False, up: int = INNER) -> Shapes:
    found = {**both(f"{block}.ffn_up", up, WIDTH), **both(f"{block}.ffn_down", WIDTH, INNER)}
    if gate:
        found |= both(f"{block}.ffn_gate", INNER, WIDTH)
    return {n: s for n, s in found.items() if bias or n.endswith(".weight")}


def experts(block: str) -> Shapes:
    return {
        f"{block}.ffn_gate_inp.weight": (EXPERTS, WIDTH),
        f"{block}.ffn_gate_exps.weight": (EXPERTS, INNER, WIDTH),
        f"{block}.ffn_up_exps.weight": (EXPERTS, INNER, WIDTH),
        f"{block}.ffn_down_exps.weight": (EXPERTS, WIDTH, INNER),
    }


def shapes(kind: str) -> Shapes:
    """Tensor names and shapes (slowest axis first) of a file."""
    bias_norm = kind in (
        "starcoder2",
        "stablelm",
        "nemotron",
        "falcon",
        "falcon-groups",
        "bloom",
        "gpt2",
        "gptneox",
        "phi2",
        "bert",
    )
    found: Shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
    if kind.startswith("t5"):
        return {**found, **t5_shapes(gated=kind == "t5")}
    if kind != "bert":
        found |= norm("output_norm", bias_norm)
    if kind in (
        "llama",
        "qwen2moe",
        "phi3",
        "starcoder2",
        "stablelm",
        "nemotron",
        "gptneox",
        "gpt2",
        "qwen3moe",
    ):
        found["output.weight"] = (VOCABULARY, WIDTH)
    if kind == "phi2":
        found |= both("output", VOCABULARY, WIDTH)
    if kind == "bloom":
        found |= both("token_embd_norm", WIDTH)
    if kind == "gpt2":
        found["position_embd.weight"] = (CONTEXT, WIDTH)
    if kind == "bert":
        found |= {
            "position_embd.weight": (CONTEXT, WIDTH),
            "token_types.weight": (2, WIDTH),
            **both("token_embd_norm", WIDTH),
        }
    for i in range(LAYERS):
        found |= layer(kind, f"blk.{i}", bias_norm)
    return found


def layer(kind: str, block: str, bias_norm: bool) -> Shapes:
    if kind == "mamba":
        inner = 2 * WIDTH
        return {
            f"{block}.attn_norm.weight": (WIDTH,),
            f"{block}.ssm_in.weight": (2 * inner, WIDTH),
            **both(f"{block}.ssm_conv1d", inner, 4),
            f"{block}.ssm_x.weight": (2 + 2 * 6, inner),
            **both(f"{block}.ssm_dt", inner, 2),
            f"{block}.ssm_a": (inner, 6),
            f"{block}.ssm_d": (inner,),
            f"{block}.ssm_out.weight": (WIDTH, inner),
        }
    if kind == "bert":
        return {
            **both(f"{block}.attn_q", WIDTH, WIDTH),
            **both(f"{block}.attn_k", WIDTH, WIDTH),
            **both(f"{block}.attn_v", WIDTH, WIDTH),
            **both(f"{block}.attn_output", WIDTH, WIDTH),
            **both(f"{block}.attn_output_norm", WIDTH),
            **ffn(block, gate=False, bias=True),
            **both(f"{block}.layer_output_norm", WIDTH),
        }
    found = norm(f"{block}.attn_norm", bias_norm)
    key_value = KEY_VALUE_HEADS * HEAD_WIDTH
    fused = {
        "phi3": WIDTH + 2 * key_value,
        "falcon": WIDTH + 2 * HEAD_WIDTH,
        "falcon-groups": WIDTH + 2 * key_value,
        "bloom": 3 * WIDTH,
        "gpt2": 3 * WIDTH,
        "gptneox": 3 * WIDTH,
    }
    found |= attention(block, kind in ("starcoder2", "bloom", "gpt2", "gptneox", "phi2"), fused.get(kind, 0))
    if kind in ("qwen2", "qwen2moe"):
        found |= {f"{block}.attn_{x}.bias": (WIDTH if x == "q" else key_value,) for x in "qkv"}
    if kind in ("qwen3", "qwen3moe"):
        found |= {f"{block}.attn_q_norm.weight": (HEAD_WIDTH,), f"{block}.attn_k_norm.weight": (HEAD_WIDTH,)}
    if kind == "falcon-groups":
        found |= norm(f"{block}.attn_norm_2", bias_norm)
    if kind not in ("falcon", "falcon-groups", "phi2"):
        found |= norm(f"{block}.ffn_norm", bias_norm)
    if kind == "gemma2":
        found |= {f"{block}.post_attention_norm.weight": (WIDTH,), f"{block}.post_ffw_norm.weight": (WIDTH,)}
    if kind in ("mixtral", "qwen2moe", "qwen3moe"):
        found |= experts(block)
        if kind == "qwen2moe":
            found |= {n.replace(".weight", "_shexp.weight"): s for n, s in ffn(block, True).items()}
            found[f"{block}.ffn_gate_inp_shexp.weight"] = (WIDTH,)
        return found
    if kind == "bloom":
        # This family has no key for another width.
        return found | {
            **both(f"{block}.ffn_up", 4 * WIDTH, WIDTH),
            **both(f"{block}.ffn_down", WIDTH, 4 * WIDTH),
        }
    gated = kind in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "stablelm")
    biased = kind in ("starcoder2", "gpt2", "gptneox", "phi2")
    return found | ffn(block, gated, biased, 2 * INNER if kind == "phi3" else INNER)


def t5_shapes(gated: bool) -> Shapes:
    found: Shapes = {
        "enc.output_norm.weight": (WIDTH,),
        "dec.output_norm.weight": (WIDTH,),
        "output.weight": (VOCABULARY, WIDTH),
    }
    for side, kinds in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        for i in range(LAYERS):
            block = f"{side}.blk.{i}"
            for name in kinds:
                found[f"{block}.{name}_norm.weight"] = (WIDTH,)
                found |= {f"{block}.{name}_{x}.weight": (WIDTH, WIDTH) for x in "qkvo"}
            found[f"{block}.ffn_norm.weight"] = (WIDTH,)
            found |= ffn(block, gated)
        found[f"{side}.blk.0.attn_rel_b.weight"] = (8, HEADS)
    return found


ARCHITECTURES = {
    "mixtral": "llama",
    "falcon-groups": "falcon",
    "t5-ungated": "t5",
}
KINDS = (
    "llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "phi2", "phi3",
    "starcoder2", "stablelm", "nemotron", "falcon", "falcon-groups", "bloom", "gptneox", "gpt2", "mamba",
    "t5", "t5-ungated", "bert",
)  # fmt: skip
RMS = ("llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "phi3", "mamba")


def write(
    kind: str,
    path: Path,
    quantise: str = "F32",
    skip: tuple[str, ...] = (),
    extra: dict | None = None,
    base: float = 10000.0,
) -> Path:
    """Write the file of one kind; weights of two axes are quantised, `extra` adds arrays under further
    names."""
    name = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(path, name)
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    many = kind in ("bloom", "gptneox", "gpt2", "bert") or kind.startswith("t5") or kind == "phi2"
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS if many else 1 if kind == "falcon" else KEY_VALUE_HEADS)
    (writer.add_layer_norm_rms_eps if kind in RMS else writer.add_layer_norm_eps)(1e-5)
    if kind in ("llama", "mixtral"):
        writer.add_vocab_size(VOCABULARY)
        writer.add_rope_freq_base(base)
        writer.add_rope_dimension_count(HEAD_WIDTH)
    if kind in ("stablelm", "nemotron", "gptneox", "phi2"):
        writer.add_rope_dimension_count(HEAD_WIDTH // 2)
    if kind in ("gemma", "gemma2", "t5", "t5-ungated", "qwen3", "qwen3moe"):
        writer.add_key_length(HEAD_WIDTH)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
        writer.add_sliding_window(16)
    if kind in ("mixtral", "qwen2moe", "qwen3moe"):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
    if kind.startswith("t5"):
        writer.add_relative_attn_buckets_count(8)
        writer.add_decoder_start_token_id(0)
    if kind == "gptneox":
        writer.add_parallel_residual(True)
    if kind == "mamba":
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * WIDTH)
        writer.add_ssm_state_size(6)
        writer.add_ssm_time_step_rank(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for tensor, shape in shapes(kind).items():
        if tensor in skip:
            continue
        array = values(tensor, shape)
        if quantise != "F32" and array.ndim > 1 and shape[-1] % 32 == 0:
            known = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(tensor, gguf.quants.quantize(array, known), raw_dtype=known)
        else:
            writer.add_tensor(tensor, array)
    for tensor, array in (extra or {}).items():
        writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
