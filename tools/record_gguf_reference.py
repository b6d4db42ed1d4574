"""Record what the reference makes of the GGUF files of tests/gguf_models.py, into tests/gguf_reference.json.

Run the two steps with two interpreters, the second one with transformers 4.50.3 and gguf:
    python tools/record_gguf_reference.py write FOLDER
    python tools/record_gguf_reference.py read FOLDER
"""

import json
import sys
import zlib
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
# The reference reads none of the others, or not rightly (fused groups, experts of llama, T5 ungated).
KINDS = (
    "bloom", "falcon", "gemma2", "gpt2", "llama", "mamba", "nemotron", "phi3", "qwen2", "qwen2moe",
    "stablelm", "starcoder2", "t5",
)  # fmt: skip
# It mistakes the metadata of these, so it is given the config.
CONFIG_GIVEN = ("bloom", "falcon", "gpt2", "phi3", "qwen2moe")


def write(folder: Path) -> None:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import gguf_models

    from phyla.checkpoints import open_weights

    for kind in KINDS:
        # The reference always looks for 60 experts.
        gguf_models.EXPERTS = 60 if kind == "qwen2moe" else 3
        (folder / kind).mkdir(parents=True, exist_ok=True)
        path = gguf_models.write(kind, folder / kind / "model.gguf")
        (folder / kind / "config_given.json").write_text(json.dumps(open_weights(path).config))


def read(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    lines = []
    for kind in KINDS:
        options = {}
        if kind in CONFIG_GIVEN:
            config = json.loads((folder / kind / "config_given.json").read_text())
            options["config"] = AutoConfig.for_model(**{"pad_token_id": 0, **config})
        loader = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
        model = loader.from_pretrained(folder / kind, gguf_file="model.gguf", **options)
        rows = []
        for name, tensor in sorted(model.state_dict().items()):
            if left_out(kind, name, model.config.tie_word_embeddings):
                continue
            tensor = tensor.float().contiguous()
            if name.endswith("A_log"):
                # Logarithms differ in their last bit between libraries.
                value = [round(float(x), 5) for x in tensor.flatten()[:16]]
            else:
                value = zlib.crc32(tensor.numpy().tobytes())
            rows.append(f"      {json.dumps(name)}: {json.dumps([list(tensor.shape), value])}")
        head = f'  {json.dumps(kind)}: {{"model_type": {json.dumps(model.config.model_type)}, "tensors": {{\n'
        lines.append(head + ",\n".join(rows) + "\n  }}")
    (TESTS / "gguf_reference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def left_out(kind: str, name: str, tied: bool) -> bool:
    """Tied copies, and what depends on the number of experts."""
    if kind == "qwen2moe" and ".experts." in name:
        return int(name.split(".experts.")[1].split(".")[0]) > 2
    return (
        (kind == "qwen2moe" and name.endswith("mlp.gate.weight"))
        or (tied and name == "lm_head.weight")
        or (kind == "t5" and name.endswith("embed_tokens.weight"))
    )


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
