"""Record LoRA on parameters (`target_parameters`) as PEFT saves and computes it: experts held as one tensor.

    REFERENCE_PYTHON tools/record_peft_parameters.py FOLDER [CASE ...]

The interpreter has transformers 5 and PEFT installed; PYTHONPATH names this repository. With PEFT before
0.19 the cases are recorded once more as CASE.old, whose files have the other layout. FOLDER/MODEL_TYPE/CASE
are cases as `phyla.testing.adapters` reads them; `tools/pack_adapter_goldens.py` packs them.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from phyla.testing.seeded import seeded_weight

SIZES = {"vocab_size": 40, "num_hidden_layers": 2}
EXPERTS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
BOTH = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": []}
# case -> (public class, configuration of the model, of the adapter)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral.both": ("Mixtral", {**EXPERTS, "num_local_experts": 3}, BOTH),
    "mixtral.square": ("Mixtral", {**EXPERTS, "num_local_experts": 3, "intermediate_size": 8}, BOTH),
    "mixtral.router": (
        "Mixtral",
        {**EXPERTS, "num_local_experts": 3},
        {
            "target_parameters": ["gate_up_proj", "gate.weight"],
            "target_modules": ["q_proj"],
            "use_rslora": True,
        },
    ),
    "mixtral.patterns": (
        "Mixtral",
        {**EXPERTS, "num_local_experts": 3},
        {**BOTH, "rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {"down_proj": 9}},
    ),
    "jamba.both": (
        "Jamba",
        {
            **EXPERTS, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
            "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4,
            "mamba_dt_rank": 4, "use_mamba_kernels": False,
        },
        BOTH,
    ),
    "jetmoe.both": (
        "JetMoe",
        {
            "hidden_size": 16, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2,
            "num_key_value_heads": 2, "kv_channels": 8,
        },
        {
            "target_parameters": [
                "mlp.input_linear.weight", "mlp.output_linear.weight", "experts.input_linear.weight",
            ],
            "target_modules": [],
        },
    ),
    "gpt2.matrices": (
        "GPT2",
        {"n_embd": 16, "n_layer": 2, "n_head": 4},
        {"target_parameters": ["c_attn.weight", "wte.weight"], "target_modules": []},
    ),
}  # fmt: skip


def main(folder: str, *wanted: str) -> None:
    """Record the cases."""
    old = tuple(map(int, peft.__version__.split(".")[:2])) < (0, 19)
    for name, (public, config, adapter) in CASES.items():
        if not wanted or name in wanted:
            family, _, case = name.partition(".")
            case = f"parameters.{case}{'.old' if old else ''}"
            record(Path(folder) / family / case, public, {**SIZES, **config}, adapter)


def record(folder: Path, public: str, config: dict[str, Any], adapter: dict[str, Any]) -> None:
    """Make the base from seeded weights under the names of its files, adapt it, and save what it computes."""
    folder.mkdir(parents=True, exist_ok=True)
    cls = getattr(transformers, public + ("LMHeadModel" if public == "GPT2" else "ForCausalLM"))
    if public == "GPT2":
        config = {k: v for k, v in config.items() if k != "num_hidden_layers"}
    made = cls(getattr(transformers, f"{public}Config")(**config, bos_token_id=1, eos_token_id=2))
    with tempfile.TemporaryDirectory() as where:
        made.save_pretrained(where)
        path = Path(where) / "model.safetensors"
        shapes = {k: list(v.shape) for k, v in load_file(path).items()}
        seeded = {k: torch.from_numpy(seeded_weight(k, shape)).float() for k, shape in shapes.items()}
        save_file(seeded, path, metadata={"format": "pt"})
        base = cls.from_pretrained(where, attn_implementation="eager").eval()
        facts = json.loads((Path(where) / "config.json").read_text())
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **adapter)).eval()
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.from_numpy(seeded_weight(key, parameter.shape)).float()
    ids = torch.arange(14).view(2, 7) % 11 + 3
    with torch.no_grad():
        logits = model(ids).logits
        with model.disable_adapter():
            bare = base(ids).logits
    assert not torch.allclose(logits, bare, atol=1e-2)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    save_file({"in.input_ids": ids, "out.logits": logits.flatten().contiguous()}, folder / "io.safetensors")
    name = f"_base/{cls.__name__}-{folder.name.removesuffix('.old')}.json"
    tensors = [[k, shape, "float32"] for k, shape in shapes.items()]
    (folder.parent / "_base").mkdir(exist_ok=True)
    (folder.parent / name).write_text(
        json.dumps({"base_cls": cls.__name__, "config": facts, "generation_config": None, "tensors": tensors})
    )
    versions = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "id": f"{folder.parent.name}/{folder.name}", "kind": "peft", "reference": versions,
                "cls": cls.__name__, "base": name, "loss": None, "call": {}, "inputs": {"input_ids": [2, 7]},
                "seeded_inputs": [],
                "steps": [{"get_peft_model": {"class": "LoraConfig", "r": 2, "lora_alpha": 3, **adapter}}],
                "reload": [{"PeftModel.from_pretrained": "adapter"}],
                "outputs": {"logits": {"shape": list(logits.shape), "dtype": "float32"}},
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
