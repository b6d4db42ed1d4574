"""Scaffold a family: `make family NAME=my_model [PUBLIC=MyModel] [GOLDENS=folder]`, which then checks it.

What is missing is made: phyla/families/NAME.py (a plain decoder to change), its row in _index.py, and its
golden: packed from GOLDENS/NAME where the reference was recorded, else recorded from phyla itself, which
holds against later changes but proves nothing about the reference.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phyla.testing.goldens import write_pack
from phyla.testing.parity import sample
from phyla.testing.seeded import seeded_weight

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "phyla" / "families" / "_index.py"

FAMILY = '''"""{public} (say here: paper, public checkpoints, and what differs from the plain decoder)."""

from phyla.blocks import (
    Attention, Causal, Decoder, Embed, GatedFFN, Heads, Layer, RMSNorm, Rotary, repeat, residual,
)  # fmt: skip
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.family import family
from phyla.heads import Backbone, CausalLM, Head
from phyla.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from phyla.skeletons import TextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vocab_size: int = 32000
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    use_cache: bool = True

    DEFAULTS = {{"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}}


def build(c: Config) -> Decoder:
    norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
    attn = Attention(
        c.hidden_size, Heads(c.num_attention_heads, kv=c.num_key_value_heads), mask=Causal(), bias=False,
        position=Rotary(c.hidden_size // c.num_attention_heads, c.rope_theta),
    )  # fmt: skip
    ffn = GatedFFN(c.hidden_size, c.intermediate_size, act=c.hidden_act)
    layer = Layer(attn=residual(attn, pre=norm), ffn=residual(ffn, pre=norm))
    return Decoder(
        embed=Embed(c.vocab_size, c.hidden_size), norm=norm, layers=repeat(c.num_hidden_layers, layer)
    )


NAMES = NameMap(
    {{
        "embed.tokens": "embed_tokens",
        "layers.{{i}}.attn.pre_norm": "layers.{{i}}.input_layernorm",
        "layers.{{i}}.attn.q": "layers.{{i}}.self_attn.q_proj",
        "layers.{{i}}.attn.k": "layers.{{i}}.self_attn.k_proj",
        "layers.{{i}}.attn.v": "layers.{{i}}.self_attn.v_proj",
        "layers.{{i}}.attn.o": "layers.{{i}}.self_attn.o_proj",
        "layers.{{i}}.ffn.pre_norm": "layers.{{i}}.post_attention_layernorm",
        "layers.{{i}}.ffn.gate": "layers.{{i}}.mlp.gate_proj",
        "layers.{{i}}.ffn.up": "layers.{{i}}.mlp.up_proj",
        "layers.{{i}}.ffn.down": "layers.{{i}}.mlp.down_proj",
        "norm": "norm",
    }},
    prefix="model",
)

HEADS: dict[str, Head] = {{
    "{public}Model": Backbone(output=BaseModelOutputWithPast),
    "{public}ForCausalLM": CausalLM(output=CausalLMOutputWithPast, names={{"out": "lm_head"}}),
}}

family(
    "{model_type}", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TextModel,
    public="{public}",
)  # fmt: skip
'''
TINY = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def add_row(model_type: str, public: str) -> None:
    """Put the family's row into the table, in order of model types."""
    text = INDEX.read_text()
    if f'_row("{model_type}"' in text:
        return
    new = (
        f'    _row("{model_type}", "{public}Config", "text", {public}Model=_BASE, {public}ForCausalLM=_LM),\n'
    )
    rows = [(m[1], m.start()) for m in re.finditer(r'^    _row\("([^"]+)"', text, re.M)]
    place = next(
        (at for name, at in rows if name > model_type), text.index("\n)  # fmt: skip\n\nFAMILIES") + 1
    )
    INDEX.write_text(text[:place] + new + text[place:])


def record(model_type: str, folder: Path) -> None:
    """Goldens of every class that the tiny configuration fits, computed by phyla itself."""
    import phyla
    from phyla.registry import row

    torch.manual_seed(0)
    ids = torch.randint(3, 99, (2, 12))
    for name, task in row(model_type).classes.items():
        cls = getattr(phyla, name)
        model = cls.from_config(cls.config_class(**TINY))
        with tempfile.TemporaryDirectory() as made:
            model.save_pretrained(made)
            config = json.loads((Path(made) / "config.json").read_text())
        shapes = {n: list(t.shape) for n, t in model.state_dict_public().items()}
        with tempfile.TemporaryDirectory() as made:
            weights = {n: torch.from_numpy(seeded_weight(n, s)).reshape(s) for n, s in shapes.items()}
            save_file(weights, Path(made) / "model.safetensors", metadata={"format": "pt"})
            (Path(made) / "config.json").write_text(json.dumps(config))
            model = cls.from_pretrained(made)
        kept = {"in.input_ids": ids, "in.attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            out = model(ids, attention_mask=kept["in.attention_mask"], use_cache=False)
            facts: dict[str, Any] = {
                "model_type": model_type, "cls": name, "config": config, "generation_config": None,
                "tensors": [[n, s, "float32"] for n, s in shapes.items()],
                "inputs": {"input_ids": [2, 12], "attention_mask": [2, 12]}, "seeded_inputs": [], "noisy": [],
                "call": {"use_cache": False}, "reference": "phyla", "loss": None, "generate": None,
                "outputs": {k: {"shape": list(v.shape), "dtype": "float32"} for k, v in out.items()},
            }  # fmt: skip
            kept |= {f"out.{k}": sample(v).clone() for k, v in out.items()}
            if task == "causal-lm":
                facts["generate"] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
                kept["generated"] = model.generate(ids, **facts["generate"])
                facts["loss"] = float(model(ids, labels=ids).loss)
                kept["label.labels"] = ids.clone()
        (folder / f"{name}.json").write_text(json.dumps(facts))
        save_file(kept, folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_type")
    parser.add_argument("--public", help="stem of the public names; default: MyModel for my_model")
    parser.add_argument("--goldens", type=Path, help="folder with recorded goldens, one folder a model_type")
    asked = parser.parse_args()
    model_type = asked.model_type
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", model_type):
        parser.error(f"a model_type is lower case letters, digits, _ and -, but is {model_type!r}")
    public = asked.public or "".join(part.capitalize() for part in re.split("[_-]", model_type))
    file = ROOT / "phyla" / "families" / f"{model_type.replace('-', '_')}.py"
    if not file.exists():
        file.write_text(FAMILY.format(public=public, model_type=model_type))
        print(f"made {file.relative_to(ROOT)}: a plain decoder; change what differs")
    add_row(model_type, public)
    pack = ROOT / "tests" / "goldens" / f"{model_type}.tar.xz"
    if not pack.exists():
        source = asked.goldens / model_type if asked.goldens else None
        with tempfile.TemporaryDirectory() as made:
            if source is None or not source.is_dir():
                record(model_type, Path(made))
                print("recorded the golden from phyla itself: pack the reference's with GOLDENS=folder")
            write_pack(source if source is not None and source.is_dir() else Path(made), pack)
        print(f"made {pack.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
