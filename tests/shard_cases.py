"""What each of two processes does for tests/test_shard.py: whole and divided models, measured."""

import copy
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

import phyla
import phyla.adapters
from phyla.blocks import Attention, Causal, Context, Heads, Layer, Rotary, make, residual
from phyla.blocks.ffn import GatedFFN
from phyla.blocks.norm import LayerNorm, RMSNorm
from phyla.blocks.stack import Decoder, repeat
from phyla.checkpoints import safetensors_file
from phyla.checkpoints.spans import spans_of
from phyla.fast.shard import clip_grad_norm_, shard

# 101 words and 3 experts do not divide by 2; key/value heads are as many as ranks, or fewer.
BASE = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**BASE, "num_key_value_heads": 1},
    "qwen2": {**BASE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 101, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"vocab_size": 101, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {
        "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
        "multi_query": True, "new_decoder_architecture": False,
    },
    "gemma2": {**BASE, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "mixtral": {**BASE, "num_key_value_heads": 2, "num_local_experts": 3},
    "gpt_neox": BASE,
    "phi": {**BASE, "qk_layernorm": True},
    "jamba": {
        **BASE, "num_key_value_heads": 2, "num_experts": 3, "attn_layer_period": 2, "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "t5": {
        "vocab_size": 101, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "bert": {**BASE, "position_embedding_type": "relative_key_query"},
}  # fmt: skip
AUTO = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForMaskedLM"}
IDS = torch.arange(24).view(2, 12) * 7 % 101
PLANS: dict[str, dict[str, str]] = {
    "ours": {"layers.*.attn.[qkv]": "colwise", "layers.*.attn.o": "rowwise"},
    "public": {
        "layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise", "lm_head": "colwise_rep",
    },
    "single": {"layers.*.self_attn.q_proj": "colwise_rep", "layers.*.self_attn.o_proj": "rowwise_rep"},
    "table": {"embed_tokens": "rowwise"},
}  # fmt: skip
WRONG = {
    "half": {"layers.*.ffn.gate": "colwise"},
    "nobody": {"layers.*.ffn.gaate": "colwise"},
    "style": {"layers.*.ffn.gate": "columns"},
}
EVERY_MAP = phyla.adapters.LoRAConfig(
    attn_matrices=["q", "k", "v", "o"], intermediate_lora=True, output_lora=True
)
ADAPTERS = {
    "lora": EVERY_MAP, "ia3": "ia3", "prefix": "prefix_tuning", "behind": "seq_bn", "beside": "par_bn",
}  # fmt: skip


def tiny(kind: str, **changes: Any) -> Any:
    """A model of a family with weights that are the same in every process."""
    torch.manual_seed(0)
    config = phyla.AutoConfig.for_model(kind, **{**FAMILIES[kind], **changes})
    model = getattr(phyla, AUTO.get(kind, "AutoModelForCausalLM")).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def gradients_off(whole: Any, part: Any) -> float:
    """The largest difference of a gradient from the whole model's, beside its largest element."""
    spans, due, worst = spans_of(part), dict(whole.named_parameters()), 0.0
    for path, parameter in part.named_parameters():
        wanted, found = due[path].grad, parameter.grad
        if wanted is None and found is None:
            continue
        assert wanted is not None and found is not None, f"{path} has a gradient on one side alone"
        wanted = spans[path].cut(wanted) if path in spans else wanted
        if float(wanted.abs().max()) > 1e-5:  # those of key biases behind a softmax are 0 but for rounding
            worst = max(worst, float((wanted - found).abs().max() / wanted.abs().max()))
    return worst


class Labelled(phyla.Qwen2PreTrainedModel):
    """A class of one's own: a model with a layer behind it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model, self.extra = phyla.Qwen2Model(config), torch.nn.Linear(64, 3)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, S) -> (B, S, 3)."""
        return self.extra(self.model(input_ids).last_hidden_state)


def family(kind: str, root: Path, rank: int) -> dict[str, Any]:
    """A family loaded in parts against itself: scores, gradients, files, memory, generation, the engine."""
    whole, folder, again = tiny(kind), root / kind, root / f"{kind}-again"
    if rank == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    part = type(whole).from_pretrained(folder, tp_plan="auto")
    calls = [model(IDS, labels=IDS) for model in (whole, part)]
    for call in calls:
        call.loss.backward()
    found: dict[str, Any] = {
        "logits": float((calls[0].logits - calls[1].logits).abs().max()),
        "gradients": gradients_off(whole, part),
        "share": part.num_parameters() / whole.num_parameters(),
        "size": part.tp_size,
        "supported": part.supports_tp_plan and whole.supports_tp_plan,
    }
    part.save_pretrained(again, is_main_process=rank == 0)
    found["saved"] = [
        (folder / name).read_bytes() == (again / name).read_bytes()
        for name in ("model.safetensors", "config.json")
    ]
    if kind == "bert":
        return found
    settings: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None}
    for name, more in {
        "greedy": {}, "beams": {"num_beams": 3}, "sampled": {"do_sample": True, "seed": 3},
        "static": {"cache_implementation": "static"},
    }.items():  # fmt: skip
        if kind == "jamba" and name == "static":
            continue
        tokens = [model.generate(IDS, **{"do_sample": False, **settings, **more}) for model in (whole, part)]
        found[name] = torch.equal(*tokens)
    torch.manual_seed(rank)
    drawn = part.ranks.every(part.generate(IDS, do_sample=True, **settings).tolist())
    found["drawn alike"] = drawn[0] == drawn[1]
    prompts = [IDS[0].tolist(), IDS[1, :5].tolist(), list(range(30))]
    answers = []
    for model in (whole, part):
        with phyla.Engine(model, page_size=16, max_batch_tokens=40) as engine:
            outputs = list(engine.generate(prompts, **settings))
            answers.append([output.generated_tokens for output in outputs])
            slots = [s for s in engine.cache.slots if getattr(s, "keys", None) is not None]
            heads = {s.keys.shape[1] for s in slots if isinstance(s.keys, torch.Tensor)}
    found["engine"], found["heads in pages"] = answers[0] == answers[1], sorted(heads)
    return found


def wide_norms(root: Path, rank: int) -> dict[str, Any]:
    """A stack whose queries and keys are normed over all heads, by both kinds of norm."""
    found = {}
    for norm in (RMSNorm(64), LayerNorm(64)):
        attn = Attention(64, Heads(4), Rotary(16), Causal(), bias=False, norm_qk=norm)
        layer = Layer(attn=residual(attn), ffn=residual(GatedFFN(64, 96)))
        torch.manual_seed(0)
        with torch.device("cpu"):
            whole = make(Decoder(layers=repeat(2, layer)))
        for module in whole.modules():
            if hasattr(module, "fill_buffers"):
                module.fill_buffers()
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
        part = shard(copy.deepcopy(whole))
        x = torch.randn(2, 7, 64)
        outs = [model.run(x, Context.of(x)).last_hidden_state for model in (whole, part)]
        for out in outs:
            out.square().mean().backward()
        found[norm.block.__name__] = [
            float((outs[0] - outs[1]).abs().max() / outs[0].abs().max()), gradients_off(whole, part),
            len(part.layers[0].attn.q_norm.weight),
        ]  # fmt: skip
    return found


def recorded(root: Path, rank: int) -> dict[str, Any]:
    """Attention weights, masks of heads and masks by head know of all heads."""
    found = {}
    for kind in ("gpt2", "t5"):
        whole = tiny(kind, attn_implementation="eager")
        part = shard(copy.deepcopy(whole))
        named: dict[str, Any] = {"head_mask": torch.tensor([1.0, 0.5, 0.0, 0.25]), "output_attentions": True}
        if kind == "t5":
            named["labels"] = IDS
        else:
            rows = torch.arange(12)
            allowed = (rows[:, None] - rows) < torch.tensor([3, 12, 5, 1])[:, None, None]
            causal = allowed & (rows[:, None] >= rows)
            named["attention_mask"] = causal[None].expand(2, -1, -1, -1)
        with torch.no_grad():
            calls = [model(IDS, **named) for model in (whole, part)]
        for field in ("logits", "attentions", "decoder_attentions", "cross_attentions"):
            pair = [getattr(call, field, None) for call in calls]
            if pair[0] is not None:
                stacked = [torch.stack(tuple(p)) if isinstance(p, tuple) else p for p in pair]
                found[f"{kind} {field}"] = float((stacked[0] - stacked[1]).abs().max())
    return found


def adapters(root: Path, rank: int) -> dict[str, Any]:
    """Adapters that were there before, and such as come later: results and gradients."""
    found: dict[str, Any] = {}
    for kind, names in (("llama", ADAPTERS), ("gpt2", ("lora",)), ("t5", ("prefix",))):
        for name in names:
            config = ADAPTERS[name]
            for late in (False, True):
                models = [tiny(kind), tiny(kind)]
                if late:
                    shard(models[1])
                for model in models:
                    torch.manual_seed(1)
                    model.add_adapter("a", config=config)
                    model.train_adapter("a")
                    torch.manual_seed(2)
                    for path, parameter in model.named_parameters():
                        if "adapters" in path:
                            parameter.data += 0.1 * torch.randn_like(parameter)
                if not late:
                    shard(models[1])
                calls = [model.eval()(IDS, labels=IDS) for model in models]
                for call in calls:
                    call.loss.backward()
                off = float((calls[0].logits - calls[1].logits).abs().max())
                found[f"{kind} {name} {'late' if late else 'early'}"] = [off, gradients_off(*models)]
    for name in ("lora", "prefix", "behind"):
        whole, folder = tiny("llama"), root / f"with-{name}"
        torch.manual_seed(1)
        whole.add_adapter("a", config=ADAPTERS[name])
        whole.set_active_adapters("a")
        with torch.no_grad():
            for parameter in whole.adapters.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            if rank == 0:
                whole.save_pretrained(folder)
            dist.barrier()
            part = type(whole).from_pretrained(folder, tp_plan="auto")
            part.set_active_adapters("a")
            part.save_adapter(root / f"{name}-part", "a")
            whole.save_adapter(root / f"{name}-{rank}", "a")
            off = float((whole(IDS).logits - part(IDS).logits).abs().max())
        pair = [root / place / "adapter.safetensors" for place in (f"{name}-part", f"{name}-{rank}")]
        found[f"{name} in files"] = [off, float(pair[0].read_bytes() != pair[1].read_bytes())]
    return found


def dora(root: Path, rank: int) -> dict[str, Any]:
    """What measures weights may be there before, and not come later."""
    whole, late = tiny("llama"), shard(tiny("llama"))
    torch.manual_seed(1)
    whole.add_adapter("a", config="dora")
    whole.set_active_adapters("a")
    part = shard(copy.deepcopy(whole))
    with torch.no_grad():
        off = float((whole(IDS).logits - part(IDS).logits).abs().max())
    return {
        "early": off, "late": told(lambda: late.add_adapter("a", config="dora")),
        "gone": not late.adapters_config.adapters if hasattr(late, "adapters_config") else True,
        "merge": told(lambda: part.merge_adapter("a")),
    }  # fmt: skip


def told(run: Callable[[], Any]) -> str:
    """The kind and message of the error that a call raises, or nothing."""
    try:
        run()
    except phyla.errors.PhylaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def plans(root: Path, rank: int) -> dict[str, Any]:
    """Plans of our paths and of public names, and wrong ones."""
    whole = tiny("llama", num_key_value_heads=2)
    found: dict[str, Any] = {}
    with torch.no_grad():
        due = whole(IDS).logits
        for name, plan in PLANS.items():
            part = shard(copy.deepcopy(whole), plan=plan)
            found[name] = [float((part(IDS).logits - due).abs().max()), sorted(part.tp_sites.items())]
        part = copy.deepcopy(whole)
        part.config.base_model_tp_plan = PLANS["public"]
        found["config"] = [float((shard(part)(IDS).logits - due).abs().max()), sorted(part.tp_sites.items())]
    for name, plan in WRONG.items():
        found[name] = told(lambda plan=plan: shard(copy.deepcopy(whole), plan=plan))
    odd = tiny("llama", num_attention_heads=3, num_key_value_heads=3, head_dim=16)
    found["odd heads"] = told(lambda: shard(copy.deepcopy(odd), plan=PLANS["ours"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        part = shard(copy.deepcopy(odd))
    found["odd warning"] = part.ranks.first([str(w.message) for w in caught])
    with torch.no_grad():
        found["odd"] = float((odd(IDS).logits - part(IDS).logits).abs().max())
    found["twice"] = told(lambda: shard(part))
    found["clock"] = told(lambda: part.generate(IDS, max_time=1.0))
    found["resize"] = told(lambda: part.resize_token_embeddings(7))
    unlike = tiny("llama")
    next(unlike.parameters()).data += rank
    found["unlike"] = told(lambda: shard(unlike))
    return found


def reading(root: Path, rank: int) -> dict[str, Any]:
    """How many bytes of a file a rank reads, and fresh weights where the file lacks some."""
    found: dict[str, Any] = {}
    safetensors_file.SMALLEST = 1
    read = safetensors_file.read_exactly
    for kind in ("qwen2", "gpt2", "gpt_neox", "mixtral", "falcon"):
        file, counted = root / f"read-{kind}", [0]
        if rank == 0:
            tiny(kind).save_pretrained(file)
        dist.barrier()

        def counting(*given: Any, counted: list[int] = counted) -> None:
            counted[0] += len(given[1])
            read(*given)

        safetensors_file.read_exactly = counting
        phyla.AutoModelForCausalLM.from_pretrained(file, tp_plan="auto")
        safetensors_file.read_exactly = read
        found[kind] = counted[0] / (file / "model.safetensors").stat().st_size
    labels = phyla.AutoModelForSequenceClassification.from_pretrained(
        root / "read-qwen2", tp_plan="auto", num_labels=3, pad_token_id=0
    )
    every = labels.ranks.every(labels.head.out.weight.tolist())
    found["fresh alike"] = every[0] == every[1] and float(labels.head.out.weight.std()) > 0
    own = Labelled.from_pretrained(root / "read-qwen2", tp_plan="auto")
    every = own.ranks.every(own.extra.weight.tolist())
    found["own alike"] = every[0] == every[1] and own.tp_size == 2 and len(own.tp_sites) > 10
    both = told(
        lambda: phyla.AutoModel.from_pretrained(root / "read-qwen2", tp_plan="auto", device_map="cpu")
    )
    found["both"] = both
    found["packed"] = told(
        lambda: phyla.AutoModel.from_pretrained(root / "read-qwen2", tp_plan="auto", load_in_8bit=True)
    )
    mesh = torch.distributed.init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    found["mesh"] = phyla.AutoModel.from_pretrained(root / "read-qwen2", device_mesh=mesh).tp_size
    found["alone"] = phyla.AutoModel.from_pretrained(root / "read-qwen2", tp_size=1).tp_size
    found["three"] = told(lambda: phyla.AutoModel.from_pretrained(root / "read-qwen2", tp_size=3))
    return found


def training(root: Path, rank: int) -> dict[str, Any]:
    """Steps with dropout and checkpointing: what all ranks hold stays the same; copies are on their own."""
    part = shard(tiny("gpt2")).train()
    part.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(part.parameters(), 1e-3)
    torch.manual_seed(3)
    losses = []
    for _ in range(3):
        loss = part(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    pair = [tiny("llama"), shard(tiny("llama"))]
    for model in pair:
        model(IDS, labels=IDS).loss.backward()
    due = float(torch.nn.utils.clip_grad_norm_(pair[0].parameters(), 0.5))
    clipped = [due, float(clip_grad_norm_(pair[1], 0.5)), gradients_off(*pair)]
    spans = spans_of(part)
    sums = {n: float(p.double().sum()) for n, p in part.named_parameters() if n not in spans}
    every = part.ranks.every((losses, sums))
    twin = copy.deepcopy(part)
    half = copy.deepcopy(part).eval().to(torch.bfloat16)
    with torch.no_grad():
        off = float((half(IDS).logits.float() - part.eval()(IDS).logits).abs().max())
    return {
        "alike": every[0] == every[1], "falling": losses[0] > losses[-1], "bfloat16": off,
        "clipped": clipped, "twin": twin.generate.args[0] is twin,
    }  # fmt: skip


def compiled(root: Path, rank: int) -> dict[str, Any]:
    """The forward as one graph, and its gradients."""
    whole = tiny("llama", num_hidden_layers=1)
    part = shard(copy.deepcopy(whole))
    graph = torch.compile(part, fullgraph=True, backend="eager")
    outs = [model(IDS, use_cache=False).logits for model in (whole, graph)]
    for out in outs:
        F.cross_entropy(out.flatten(0, 1), IDS.flatten()).backward()
    return {"logits": float((outs[0] - outs[1]).abs().max()), "gradients": gradients_off(whole, part)}


OTHERS = {
    f.__name__: f
    for f in (wide_norms, recorded, adapters, dora, plans, reading, training, compiled)
}  # fmt: skip


def work(rank: int, size: int, folder: str, port: int) -> None:
    """One process, as torchrun starts it: every case in turn, its measurements as JSON."""
    root = Path(folder)
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""})
    first = phyla.AutoModelForCausalLM.from_pretrained(root / "first", device_map="auto")
    found: dict[str, Any] = {"start": {"backend": dist.get_backend(), "size": first.tp_size}}
    cases: dict[str, Callable[[], Any]] = {k: lambda k=k: family(k, root, rank) for k in FAMILIES}
    cases |= {name: lambda run=run: run(root, rank) for name, run in OTHERS.items()}
    for name, run in cases.items():
        begun = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = run()
        except Exception:
            found[name] = {"error": traceback.format_exc(limit=-8)}
        found[name]["seconds"] = time.perf_counter() - begun
        (root / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
