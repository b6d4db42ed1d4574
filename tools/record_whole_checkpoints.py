"""Record checkpoints with adapters inside as the library `adapters` writes them:

    ADAPTERS_PYTHON tools/record_whole_checkpoints.py

The interpreter has `adapters` 1.3.0. Writes tests/goldens/adapters_whole/folders.tar.xz: for each case a
folder that `save_pretrained` made of a tiny model, io.safetensors with the inputs and what the model
computed, and case.json, which says what is active.
"""

import io
import json
import lzma
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import Fuse, Stack
from safetensors.torch import save_file

TARGET = Path(__file__).parent.parent / "tests" / "goldens" / "adapters_whole" / "folders.tar.xz"
TINY = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**TINY, "intermediate_size": 12, "max_position_embeddings": 16}
T5 = {
    "vocab_size": 24, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
SEQ_BN = "seq_bn[reduction_factor=4]"
MIXED = (
    "seq_bn[reduction_factor=4,use_gating=True]|lora[r=2,use_gating=True]|"
    "prefix_tuning[bottleneck_size=2,prefix_length=3,use_gating=True]"
)
# case -> (class, configuration, adapters, fusions, heads, active)
CASES: dict[str, tuple[Any, ...]] = {
    "bert.static": (
        "BertForSequenceClassification", BERT,
        {"a": "seq_bn_inv[reduction_factor=4]", "b": "lora[r=2]"}, [], {}, Stack("a", "b"),
    ),
    "bert.flexible": (
        "BertAdapterModel", BERT,
        {"a": SEQ_BN, "b": SEQ_BN, "c": "prefix_tuning[bottleneck_size=2,prefix_length=3]"},
        [["a", "b"]], {"h": ("tagging", {"num_labels": 3}), "l": ("masked_lm", {})}, Fuse("a", "b"),
    ),
    "bert.prompt": ("BertModel", BERT, {"a": "prompt_tuning[prompt_length=2]"}, [], {}, "a"),
    "bert.bin": ("BertForMaskedLM", BERT, {"a": "compacter[phm_dim=2,reduction_factor=4]"}, [], {}, "a"),
    "t5.flexible": ("T5AdapterModel", T5, {"a": MIXED}, [], {"a": ("seq2seq_lm", {})}, "a"),
    "gpt2.static": (
        "GPT2LMHeadModel",
        {"vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
        {"a": "lora[r=2,attn_matrices=['q','k','v']]|prefix_tuning_flat[prefix_length=3]"}, [], {}, "a",
    ),
    "llama.static": (
        "LlamaForCausalLM", {**TINY, "intermediate_size": 12},
        {"a": "lora[r=2,intermediate_lora=True]", "b": "loreft"}, [], {}, "a",
    ),
    "qwen2.static": (
        "Qwen2ForCausalLM", {**TINY, "intermediate_size": 12, "num_key_value_heads": 1},
        {"a": "double_seq_bn[reduction_factor=4]"}, [], {}, "a",
    ),
}  # fmt: skip


def main() -> None:
    """Record all cases."""
    transformers.logging.set_verbosity_error()
    files: dict[str, bytes] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as where:
            record(Path(where), name, *case)
            for path in sorted(Path(where).iterdir()):
                files[f"{name}/{path.name}"] = path.read_bytes()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    TARGET.write_bytes(lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def record(
    folder: Path, name: str, public: str, config: dict, configs: dict, fusions: list, heads: dict, active: Any
) -> None:
    """One model with random weights, its folder, and what it computes."""
    torch.manual_seed(0)
    flexible = public.endswith("AdapterModel")
    stem = next(s for s in ("Bert", "T5", "GPT2", "Llama", "Qwen2") if public.startswith(s))
    made = getattr(transformers, f"{stem}Config")(**config)
    made._attn_implementation = "eager"
    model = getattr(adapters if flexible else transformers, public)(made)
    if not flexible:
        adapters.init(model)
    for adapter, method in configs.items():
        model.add_adapter(adapter, config=method)
    for members in fusions:
        model.add_adapter_fusion(members)
    for head, (kind, arguments) in heads.items():
        getattr(model, f"add_{kind}_head")(head, **arguments)
    for key, parameter in model.named_parameters():
        if "parametrizations" not in key:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.2
    model.tie_weights()
    model.set_active_adapters(active)
    if heads:
        model.active_head = next(iter(heads))
    ids = torch.arange(14).view(2, 7) % 20 + 3
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if stem == "T5" else {})}
    with torch.no_grad():
        out = model.eval()(**inputs)[0]
    model.save_pretrained(folder, safe_serialization=not name.endswith(".bin"))
    save_file(
        {**{f"in.{k}": v.contiguous() for k, v in inputs.items()}, "out": out.contiguous()},
        folder / "io.safetensors",
    )
    facts = {
        "public": public,
        "active": active if isinstance(active, str) else f"{type(active).__name__}{(*active,)}",
        "head": next(iter(heads), None),
    }
    (folder / "case.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
