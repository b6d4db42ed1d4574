"""The models of the generation benchmarks, made once into the cache: safetensors and GGUF of each dtype.

The random Llama's weights are drawn here; its vocabulary is SmolLM2's, so that every peer has a tokenizer.
The GGUF files hold all matrices in one type: F32, BF16, F16 (where a peer reads no BF16), Q8_0 or Q4_0.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import environments
from foundation import gguf_file

WEIGHTS = environments.CACHE / "weights"
GGUF_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # the format's numbers
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
RANDOM: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64,
    },
}  # fmt: skip
MODELS = ("smollm2-135m", *RANDOM)
Tensors = Iterator[tuple[str, Any]]


def folder(model: str, dtype: str) -> Path:
    """Safetensors of a model; those of a random one are in bfloat16, which others are cast from."""
    if model in RANDOM:
        return _made(WEIGHTS / model, lambda target: _write_random(target, RANDOM[model]))
    return WEIGHTS / f"SmolLM2-135M-{'bfloat16' if dtype == 'bfloat16' else 'float32'}"


def gguf(model: str, dtype: str) -> Path:
    """A GGUF file whose matrices all have the type that stands for a dtype."""
    kind = GGUF_TYPES[dtype]
    return _made(WEIGHTS / f"{model}-{kind}.gguf", lambda target: _write_gguf(target, model, kind))


def _made(path: Path, write: Callable[[Path], None]) -> Path:
    """What is at a path; it is written beside it first, so that no half of it is ever taken for the whole."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        write(part)
        part.rename(path)
    return path


def _write_random(target: Path, sizes: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    width, inner, heads = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_attention_heads"]
    narrow = sizes["num_key_value_heads"] * (width // heads)
    shapes = {"model.embed_tokens": (LLAMA["vocab_size"], width), "model.norm": (width,)}
    for i in range(sizes["num_hidden_layers"]):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}"] = (width,)
        for name, rows in (("q", width), ("k", narrow), ("v", narrow), ("o", width)):
            shapes[f"model.layers.{i}.self_attn.{name}_proj"] = (rows, width)
        for name in ("gate", "up", "down"):
            shapes[f"model.layers.{i}.mlp.{name}_proj"] = (width, inner) if name == "down" else (inner, width)
    weights = {
        f"{name}.weight": torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)
        for name, shape in shapes.items()
    }  # fmt: skip
    target.mkdir(parents=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps({**LLAMA, **sizes, "torch_dtype": "bfloat16"}, indent=1))


def _write_gguf(target: Path, model: str, kind: str) -> None:
    import gguf as files
    import numpy as np

    source = files.GGUFReader(gguf_file())
    writer = files.GGUFWriter(target, "llama")
    sizes = RANDOM.get(model)
    for name, field in source.fields.items():
        if not name.startswith(("GGUF.", "general.")):
            value = field.contents() if sizes is None else _size(name, sizes, field.contents())
            inner = field.types[-1] if field.types[0] == files.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, field.types[0], inner)
    wanted = files.GGMLQuantizationType[kind]
    writer.add_file_type(_FILE_TYPES[kind])
    for name, values in _smollm2(files, source) if sizes is None else _random(model, sizes):
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            writer.add_tensor(name, files.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _size(name: str, sizes: dict[str, Any], value: Any) -> Any:
    """A size of SmolLM2's as the random model has it."""
    own = {
        "llama.block_count": sizes["num_hidden_layers"], "llama.embedding_length": sizes["hidden_size"],
        "llama.feed_forward_length": sizes["intermediate_size"],
        "llama.attention.head_count": sizes["num_attention_heads"],
        "llama.attention.head_count_kv": sizes["num_key_value_heads"],
        "llama.rope.dimension_count": sizes["head_dim"],
    }  # fmt: skip
    return own.get(name, value)


def _smollm2(files: Any, source: Any) -> Tensors:
    """The file's own tensors, expanded; queries and keys lie as the format has them already."""
    for tensor in source.tensors:
        shape = tuple(reversed([int(n) for n in tensor.shape]))
        yield tensor.name, files.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)


_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _random(model: str, sizes: dict[str, Any]) -> Tensors:
    """The drawn tensors under the format's names; it pairs neighbours in a head, Llama the halves."""
    from safetensors import safe_open

    plain = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    heads = {"q_proj": sizes["num_attention_heads"], "k_proj": sizes["num_key_value_heads"]}
    with safe_open(folder(model, "bfloat16") / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no dict)
            values = file.get_tensor(name).float().numpy()
            if name in plain:
                yield plain[name], values
                continue
            _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
            count = heads.get(rest.rpartition(".")[2])
            if count is not None:
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            yield f"blk.{layer}.{_GGUF_NAMES[rest]}.weight", values


def tokenizer() -> Path:
    """SmolLM2's tokenizer.json, written from the GGUF file."""

    def write(target: Path) -> None:
        import phyla

        made = phyla.AutoTokenizer.from_pretrained(str(gguf_file().parent), gguf_file=gguf_file().name)
        made.save_pretrained(str(target))

    return _made(WEIGHTS / "SmolLM2-135M-tokenizer", write) / "tokenizer.json"
