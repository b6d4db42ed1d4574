"""Adapters that phyla saves and public libraries load: a table of cases, and how each is built and saved.

`tools/record_adapter_exports.py` has every case loaded by the public library and records what it computes;
`tests/test_adapter_exports.py` saves the same again and holds it against the record.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import phyla
import phyla.adapters as adapters
import phyla.adapters.peft as peft
from phyla.adapters.fusion import AdapterFusionConfig
from phyla.testing.adapters import setup_of
from phyla.testing.goldens import Golden, read_pack
from phyla.testing.seeded import seeded_weight

PACKS = Path(__file__).parent / "goldens"
RECORD = PACKS / "adapter_exports.json.xz"
KEPT = 24  # values of an output that are recorded

# Families with every method, and families with a few: model_type -> public class.
WHOLE = {
    "bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
    "t5": "T5ForConditionalGeneration", "vit": "ViTForImageClassification",
    "qwen2": "Qwen2ForCausalLM", "bart": "BartForConditionalGeneration",
}  # fmt: skip
SOME = {
    "albert": "AlbertForMaskedLM", "beit": "BeitForImageClassification",
    "bert-generation": "BertGenerationEncoder", "clip": "CLIPModel", "deberta": "DebertaForMaskedLM",
    "deberta-v2": "DebertaV2ForMaskedLM", "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM", "encoder-decoder": "EncoderDecoderModel", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "gptj": "GPTJForCausalLM",
    "mbart": "MBartForConditionalGeneration", "mistral": "MistralForCausalLM",
    "modernbert": "ModernBertForMaskedLM", "mt5": "MT5ForConditionalGeneration", "phi": "PhiForCausalLM",
    "plbart": "PLBartForConditionalGeneration", "qwen3": "Qwen3ForCausalLM", "roberta": "RobertaForMaskedLM",
    "whisper": "WhisperForConditionalGeneration", "xlm-roberta": "XLMRobertaForMaskedLM",
}  # fmt: skip
BARE = {
    "bart": "BartModel", "bert": "BertModel", "gpt2": "GPT2Model", "llama": "LlamaModel", "t5": "T5Model",
    "vit": "ViTModel",
}  # fmt: skip
METHODS = {
    "seq_bn": "seq_bn[reduction_factor=4]",
    "seq_bn_gated": "seq_bn[reduction_factor=4,use_gating=True,scaling=2.0]",
    "seq_bn_norms": "seq_bn[reduction_factor=4,ln_before=True,ln_after=True,leave_out=[0]]",
    "seq_bn_sizes": "seq_bn[reduction_factor={'0': 4, 'default': 8}]",
    "double_seq_bn": "double_seq_bn[reduction_factor=4]",
    "par_bn": "par_bn[reduction_factor=4]",
    "scaled_par_bn": "scaled_par_bn[reduction_factor=4]",
    "adapter_plus": "adapter_plus[reduction_factor=4,stochastic_depth=0.0]",
    "seq_bn_inv": "seq_bn_inv[reduction_factor=4]",
    "double_seq_bn_inv": "double_seq_bn_inv[reduction_factor=4]",
    "compacter": "compacter[reduction_factor=4,phm_dim=2]",
    "compacter++": "compacter++[reduction_factor=4,phm_dim=2]",
    "prefix_tuning": "prefix_tuning[prefix_length=3,bottleneck_size=4]",
    "prefix_tuning_flat": "prefix_tuning_flat[prefix_length=3]",
    "prefix_gated": "prefix_tuning[prefix_length=3,bottleneck_size=4,use_gating=True]",
    "prompt_tuning": "prompt_tuning[prompt_length=3]",
    "lora": "lora[r=2,alpha=4]",
    "lora_all": "lora[r=2,alpha=4,attn_matrices=[q,k,v],intermediate_lora=True,output_lora=True]",
    "lora_gated": "lora[r=2,use_gating=True,leave_out=[1]]",
    "ia3": "ia3",
    "dora": "dora[r=2,alpha=2]",
    "vera": "vera[r=2]",
    "dvora": "dvora[r=2]",
    "mtl_lora": "mtl_lora[r=2,n_up_projection=2]",
    "loreft": "loreft[r=2]",
    "loreft_some": "loreft[r=2,layers=[1],prefix_positions=2,suffix_positions=1]",
    "noreft": "noreft[r=2]",
    "direft": "direft[r=2]",
    "mam": "prefix_tuning[prefix_length=3,bottleneck_size=4]|par_bn[reduction_factor=4]",
    "unipelt": "seq_bn[reduction_factor=4,use_gating=True]|lora[r=2,use_gating=True]|"
    "prefix_tuning[prefix_length=3,bottleneck_size=4,use_gating=True]",
}
FEW = ("seq_bn", "double_seq_bn", "par_bn", "lora_all", "ia3", "prefix_tuning", "loreft", "seq_bn_inv")
AT_ONCE = (  # methods inside of whole checkpoints
    "seq_bn", "seq_bn_inv", "scaled_par_bn", "compacter", "prefix_tuning", "prompt_tuning", "lora_all",
    "dora", "vera", "mtl_lora", "loreft", "direft", "unipelt",
)  # fmt: skip
PEFT_METHODS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=4),
    "lora_all": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "rslora": lambda: peft.LoraConfig(r=2, use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True),
    "lora_bias": lambda: peft.LoraConfig(r=2, lora_bias=True),
    "biases": lambda: peft.LoraConfig(r=2, bias="all"),
    "biases_of_parts": lambda: peft.LoraConfig(r=2, bias="lora_only"),
    "patterns": lambda: peft.LoraConfig(r=2, rank_pattern={r".*\.1\..*": 3}, alpha_pattern={r".*\.0\..*": 5}),
    "layers": lambda: peft.LoraConfig(r=2, layers_to_transform=[1]),
    "tokens_too": lambda: peft.LoraConfig(r=2, trainable_token_indices=[3, 5]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10),
    "ia3": peft.IA3Config,
    "vera": lambda: peft.VeraConfig(r=4),
    "loha": lambda: peft.LoHaConfig(r=2),
    "lokr": lambda: peft.LoKrConfig(r=2),
    "lokr_both": lambda: peft.LoKrConfig(r=1, decompose_both=True, decompose_factor=4),
    "oft": lambda: peft.OFTConfig(oft_block_size=4),
    "oft_shared": lambda: peft.OFTConfig(oft_block_size=4, block_share=True, use_cayley_neumann=False),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4),
    "boft_steps": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2),
    "hra": lambda: peft.HRAConfig(r=2),
    "hra_at_once": lambda: peft.HRAConfig(r=2, apply_GS=True, init_weights=False),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20),
    "ln_tuning": peft.LNTuningConfig,
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[1, 4]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
PEFT_BASES = {
    "bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM", "t5": "T5ForConditionalGeneration", "vit": "ViTForImageClassification",
}  # fmt: skip
PROMPTS = ("prompt", "p_tuning", "prefix")
TASKS = {
    "ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}  # fmt: skip
SAVED_HEADS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "classification": {"num_labels": 3}, "tagging": {"num_labels": 4}, "qa": {}, "multilabel": {},
        "masked_lm": {}, "causal_lm": {}, "dependency_parsing": {"num_labels": 3},
        "id2label": {"id2label": {0: "no", 1: "yes"}},
    },
    "gpt2": {"classification": {"num_labels": 3}, "causal_lm": {}, "tagging": {}},
    "llama": {"classification": {}, "causal_lm": {}},
    "t5": {"classification": {}, "seq2seq_lm": {}, "qa": {}},
    "bart": {"classification": {}, "seq2seq_lm": {}},
    "vit": {"image_classification": {"num_labels": 3}},
}  # fmt: skip
# Compositions: text -> (method of the adapters, fusions: their members and configuration).
BOTTLENECK, LORA = METHODS["double_seq_bn"], METHODS["lora"]
SETUPS: dict[str, tuple[str, dict[str | None, tuple[list[str], Any]]]] = {
    "Stack('a', 'b')": (BOTTLENECK, {}),
    "Stack('a', 'b', 'c')": (METHODS["par_bn"], {}),
    "Fuse('a', 'b')": (METHODS["seq_bn"], {None: (["a", "b"], "dynamic")}),
    "Fuse('a', 'b', 'c')": (BOTTLENECK, {None: (["a", "b", "c"], "static")}),
    "Fuse('b', 'a', name='own')": (METHODS["seq_bn"], {"own": (["b", "a"], "dynamic")}),
    "Stack('c', Fuse('a', 'b'))": (METHODS["seq_bn"], {None: (["a", "b"], "dynamic")}),
    "Split('a', 'b', splits=[5, 7])": (METHODS["seq_bn"], {}),
    "BatchSplit('a', 'b', batch_sizes=[1, 1])": (METHODS["seq_bn"], {}),
    "Parallel('a', 'b')": (METHODS["seq_bn"], {}),
    "Stack('a', Parallel('b', 'c'))": (BOTTLENECK, {}),
    "BatchSplit('a', 'b', batch_sizes=[1, 1]) ": (METHODS["prefix_tuning"], {}),
    "BatchSplit('a', 'b', batch_sizes=[1, 1])  ": (LORA, {}),
    "Stack('a', 'b') ": (METHODS["prefix_tuning"], {}),
    "Average('a', 'b', weights=[0.3, 0.7])": (METHODS["seq_bn"], {}),
}
OWN_FUSION = AdapterFusionConfig(temperature=True, value=False, regularization=False, residual_before=True)


@dataclass(frozen=True)
class Export:
    """One case: a model, what is added to it, what is active, and how it is saved."""

    library: str  # "adapters" or "peft"
    kind: str  # "adapter", "setup", "whole", "head", "peft"
    family: str
    public: str  # class of the checkpoint
    label: str
    configs: Mapping[str, Any]
    active: str = "a"
    flexible: bool = False  # whether the model is the family's class with flexible heads
    fusions: Mapping[str | None, tuple[list[str], Any]] = field(default_factory=dict)
    heads: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    safe: bool = True

    @property
    def id(self) -> str:
        """What a case is called in the record."""
        return f"{self.library}/{self.family}/{self.kind}.{self.label}{'' if self.safe else '.bin'}"

    def facts(self) -> dict[str, Any]:
        """What the public library must know to load the case."""
        return {
            "id": self.id, "kind": self.kind, "family": self.family, "base": f"{self.family}-{self.public}",
            "public": self.public, "flexible": self.flexible, "active": self.active.strip(),
            "head": next(iter(self.heads), None),
        }  # fmt: skip


def exports() -> Iterator[Export]:
    """Every case."""
    for family, public in WHOLE.items():
        for method, config in METHODS.items():
            yield Export("adapters", "adapter", family, public, method, {"a": config})
        for method in ("seq_bn", "lora_all", "prefix_tuning"):
            yield Export("adapters", "adapter", family, public, method, {"a": METHODS[method]}, safe=False)
    for family, public in SOME.items():
        for method in FEW:
            yield Export("adapters", "adapter", family, public, method, {"a": METHODS[method]})
    for family in ("bert", "gpt2", "llama", "t5"):
        for number, (setup, (config, fusions)) in enumerate(SETUPS.items()):
            if family == "t5" and setup.startswith("Split"):
                continue  # encoder and decoder have inputs of several lengths here
            configs = {name: config for name in "abc" if f"'{name}'" in setup}
            yield Export(
                "adapters", "setup", family, WHOLE[family], f"{number}.{setup.partition('(')[0]}", configs,
                setup, fusions=fusions,
            )  # fmt: skip
    yield from _whole()
    for family, kinds in SAVED_HEADS.items():
        for kind, arguments in kinds.items():
            yield Export(
                "adapters", "head", family, BARE[family], kind, {"a": METHODS["seq_bn"]}, flexible=True,
                heads={"a": (kind, arguments)},
            )  # fmt: skip
    for family in ("bert", "gpt2", "llama", "t5", "vit"):
        public = {"gpt2": "GPT2ForSequenceClassification"}.get(family, WHOLE[family])
        yield Export("adapters", "head", family, public, "static", {"a": METHODS["seq_bn"]})
    for family, public in PEFT_BASES.items():
        for method in PEFT_METHODS:
            at = "BertForSequenceClassification" if family == "bert" and method in PROMPTS else public
            yield Export("peft", "peft", family, at, method, {"a": method})
        yield Export("peft", "peft", family, public, "of_adapterhub", {"a": METHODS["lora_all"]})


def _whole() -> Iterator[Export]:
    """Checkpoints with adapters inside."""
    for family in ("bert", "gpt2", "llama", "t5", "vit", "qwen2"):
        for method in AT_ONCE:
            yield Export("adapters", "whole", family, WHOLE[family], method, {"a": METHODS[method]})
    for family in ("clip", "distilbert", "encoder-decoder", "gemma2", "mistral", "whisper"):
        for method in ("double_seq_bn", "lora_all", "prefix_tuning"):
            yield Export("adapters", "whole", family, SOME[family], method, {"a": METHODS[method]})
    for family, public in BARE.items():
        for method in ("seq_bn", "lora_all", "prefix_tuning"):
            yield Export("adapters", "whole", family, public, f"bare.{method}", {"a": METHODS[method]})
    for family in ("bert", "gpt2", "t5", "vit"):
        kind = next(iter(SAVED_HEADS[family]))
        several: dict[str, Any] = {"a": METHODS["seq_bn"], "b": METHODS["seq_bn"], "c": METHODS["lora_all"]}
        for label, active, fusions in (
            ("flexible", "c", {}),
            ("flexible.fuse", "Fuse('a', 'b')", {None: (["a", "b"], "static")}),
            ("flexible.own_fusion", "Fuse('a', 'b', name='own')", {"own": (["a", "b"], OWN_FUSION)}),
        ):
            yield Export(
                "adapters", "whole", family, BARE[family], label, several, active, True, fusions,
                {"h": (kind, SAVED_HEADS[family][kind])},
            )  # fmt: skip


@functools.cache
def golden(family: str, public: str) -> Golden:
    """The recorded checkpoint and inputs of a class."""
    return next(g for g in read_pack(PACKS / f"{family}.tar.xz") if g.name == public)


@functools.cache
def _base(family: str, public: str, flexible: bool, folder: Path) -> Any:
    where = folder / f"{family}-{public}"
    if not where.exists():
        where.mkdir(parents=True)
        golden(family, public).write_checkpoint(where)
    cls = adapters.AutoAdapterModel if flexible else getattr(phyla, public)
    return cls.from_pretrained(where, attn_implementation="eager").eval()


def inputs_of(case: Export) -> dict[str, Any]:
    """Arguments of the call."""
    inputs = golden(case.family, case.public).inputs()
    if case.label == "dependency_parsing":
        rows, length = inputs["input_ids"].shape
        inputs["word_starts"] = torch.arange(length - 4).expand(rows, -1)
    if case.flexible and "decoder_input_ids" in inputs:  # rows are read at their end tokens
        ids, end = (
            inputs["input_ids"].clone(),
            golden(case.family, case.public).facts["config"]["eos_token_id"],
        )
        ids[ids == end] = 7
        ids[:, -1] = end
        inputs |= {"input_ids": ids, "decoder_input_ids": ids}
    if case.flexible and "attention_mask" in inputs:  # rows that end in padding are read otherwise there
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


@torch.no_grad()
def build(case: Export, folder: Path) -> Any:
    """The model of a case with everything in it, active, from seeded values; `folder`: for checkpoints."""
    model = copy.deepcopy(_base(case.family, case.public, case.flexible, folder))
    model.config._name_or_path = ""
    for name, config in case.configs.items():
        if config in PEFT_METHODS and case.library == "peft":
            config = PEFT_METHODS[config]()
            config.task_type = next((t for end, t in TASKS.items() if case.public.endswith(end)), None)
        model.add_adapter(name, config=config)
        seed(model.adapters.get(name), name)
    for name, (members, config) in case.fusions.items():
        model.add_adapter_fusion(members, config=config, name=name)
    for key, layers in model.adapters.fusions.items():
        seed(layers, key)
    for name, (kind, arguments) in case.heads.items():
        kind, arguments = {
            "multilabel": ("classification", {"multilabel": True}), "id2label": ("classification", arguments),
        }.get(kind, (kind, arguments))  # fmt: skip
        getattr(model, f"add_{kind}_head")(name, **arguments)
        head = model.heads[name]
        own = {id(p) for p in model.backbone.parameters()}
        seed(head, f"head.{name}", own)
    model.set_active_adapters(setup_of(case.active.strip()))
    return model


def seed(module: torch.nn.Module, name: str, without: frozenset[int] | set[int] = frozenset()) -> None:
    """Values that follow from names and shapes alone."""
    for path, parameter in module.named_parameters():
        if id(parameter) in without:
            continue
        parameter.copy_(torch.from_numpy(seeded_weight(f"{name}.{path}", parameter.shape)))
        if path.endswith("weight.original"):  # of orthonormal rows: reflections, with signs on the diagonal
            parameter.fill_diagonal_(1.0)
    for path, buffer in module.named_buffers():
        if path.endswith("weight.0.base"):
            buffer.copy_(torch.eye(*buffer.shape))


@torch.no_grad()
def output(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The first output of a call, of all heads one after the other, as one vector."""
    out = model(**inputs)
    found = [o[0] for o in out.head_outputs] if hasattr(out, "head_outputs") else [out[0]]
    return torch.cat([f.detach().float().flatten() for f in found])


def few(values: torch.Tensor) -> torch.Tensor:
    """The values of an output that are recorded."""
    return values[torch.linspace(0, len(values) - 1, min(KEPT, len(values))).long()]


def save(case: Export, model: Any, folder: Path) -> None:
    """Write a case as users do."""
    if case.kind == "whole":
        model.save_pretrained(folder)
    elif case.kind == "setup":
        model.save_adapter_setup(folder, setup_of(case.active.strip()), use_safetensors=case.safe)
    elif case.kind == "peft":
        model.save_adapter(folder, "a", format="peft")
    else:
        with_head = case.kind == "head"
        model.save_adapter(folder, "a", with_head=with_head, use_safetensors=case.safe)


def digests(folder: Path) -> dict[str, str]:
    """What a folder holds, in short: its JSON, the names, shapes and dtypes of tensors, and their bytes."""
    texts: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    values = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            data = json.loads(path.read_text())
            if name == "config.json":  # what is of the family alone is not the matter here
                data = {k: data.get(k) for k in ("adapters", "architectures", "prediction_heads")}
            if name not in ("generation_config.json",):
                texts[name] = data
            continue
        safe = path.suffix == ".safetensors"
        found = safetensors.torch.load_file(path) if safe else torch.load(path, weights_only=True)
        for key in sorted(found):
            tensor = found[key].contiguous()
            shapes[f"{name}:{key}"] = [list(tensor.shape), str(tensor.dtype)]
            values.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    short = {"json": texts, "names": shapes}
    made = {k: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest() for k, v in short.items()}
    return {k: v[:16] for k, v in {**made, "bytes": values.hexdigest()}.items()}
