"""Checkpoints with adapters inside: what is saved comes back as it was, also from folders of `adapters`."""

import functools
import json
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import test_adapters_peft
import torch

import phyla
import phyla.adapters as adapters
from phyla.adapters import BatchSplit, Fuse, Stack
from phyla.adapters.fusion import AdapterFusionConfig
from phyla.errors import UnexpectedWeightsError
from phyla.testing.adapters import ABSOLUTE, RELATIVE, setup_of

PACK = Path(__file__).parent / "goldens" / "adapters_whole" / "folders.tar.xz"
IDS = torch.arange(14).view(2, 7) % 11
BERT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 32,
}  # fmt: skip
METHODS = (
    "seq_bn[reduction_factor=4]", "double_seq_bn_inv[reduction_factor=4]",
    "scaled_par_bn[reduction_factor=4]", "adapter_plus[reduction_factor=4]",
    "compacter[reduction_factor=4,phm_dim=2]",
    "prefix_tuning[prefix_length=3,bottleneck_size=4]", "prefix_tuning_flat[prefix_length=3]",
    "prompt_tuning[prompt_length=3]", "lora[r=2,attn_matrices=[q,k],intermediate_lora=True]",
    "lora[r=2,dtype=float64]", "ia3", "dora[r=2]", "vera[r=2,attn_matrices=[q]]",
    "mtl_lora[r=2,n_up_projection=2]", "loreft[r=2]", "direft[r=2]",
    "seq_bn[reduction_factor=4,use_gating=True]|lora[r=2,use_gating=True]|direft[r=2]",
)  # fmt: skip


def shaken(model: Any) -> Any:
    """Every parameter moved off its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "parametrizations" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def bert(name: str = "BertForMaskedLM") -> Any:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    cls = getattr(phyla, name, None) or getattr(adapters, name)
    return cls(phyla.BertConfig(**BERT)).eval()


def run(model: Any) -> torch.Tensor:
    """The first output."""
    with torch.no_grad():
        return model(IDS)[0]


def again(model: Any, folder: Path, cls: Any = None) -> Any:
    """The model once saved and read."""
    model.save_pretrained(folder)
    return (cls or type(model)).from_pretrained(folder)


def fault(model: Any, folder: Path) -> str:
    """What of a model with the adapter `a` active does not come back as it was."""
    due = run(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = again(model, folder)
    old, new = model.adapters.get("a"), other.adapters.get("a")
    mine, theirs = old.state_dict(), new.state_dict()
    left_out = ("peft_version",)
    configs = [{k: v for k, v in e.config.to_dict().items() if k not in left_out} for e in (old, new)]
    if configs[0] != configs[1]:
        return f"another configuration: {configs}"
    if mine.keys() != theirs.keys() or any(not torch.equal(v, theirs[k]) for k, v in mine.items()):
        return "other tensors"
    if any(v.dtype != theirs[k].dtype for k, v in mine.items()):
        return "other dtypes"
    if other.active_adapters != "a" or not torch.equal(run(other), due):
        return "other outputs"
    for each in (model, other):
        each.set_active_adapters(None)
    return "" if torch.equal(run(model), run(other)) else "another base"


@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_every_method_comes_back(family: str, tmp_path: Path) -> None:
    found = {}
    for number, method in enumerate(METHODS):
        model = test_adapters_peft.small(family)
        model.add_adapter("a", config=method, set_active=True)
        found[method] = fault(shaken(model), tmp_path / str(number))
    assert {k: v for k, v in found.items() if v} == {}


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_every_method_of_peft_comes_back(family: str, tmp_path: Path) -> None:
    found = {}
    for method, config in test_adapters_peft.METHODS.items():
        model = test_adapters_peft.small(family)
        model.add_adapter("a", config=config(), set_active=True)
        test_adapters_peft.shaken(model)
        found[method] = fault(model, tmp_path / method)
    assert {k: v for k, v in found.items() if v} == {}


def test_heads_fusions_and_what_is_active_come_back(tmp_path: Path) -> None:
    model = bert("BertAdapterModel")
    for name in ("a", "b"):
        model.add_adapter(name, config="seq_bn[reduction_factor=4]")
    model.add_adapter("c.d", config="lora[r=2]")
    model.add_adapter_fusion(["a", "b"])
    config = AdapterFusionConfig(temperature=True, value=False, regularization=False)
    model.add_adapter_fusion(["b", "a"], name="own", config=config)
    model.add_classification_head("a", num_labels=3)
    model.add_tagging_head("t", num_labels=4)
    shaken(model)
    model.set_active_adapters(Fuse("b", "a", name="own"), skip_layers=[0])
    model.active_head = "t"
    other = again(model, tmp_path / "0")
    assert other.active_adapters == model.active_adapters and other.active_head == "t"
    assert (
        other.adapters.skip_layers == [0] and other.adapters.fusion_configs == model.adapters.fusion_configs
    )
    assert torch.equal(run(other), run(model))
    for setup in (Fuse("a", "b"), "c.d", Stack("a", "c.d")):
        for each in (model, other):
            each.set_active_adapters(setup)
        assert torch.equal(run(other), run(model))
    model.active_head = BatchSplit("a", "t", batch_sizes=[1, 1])
    assert again(model, tmp_path / "1").active_head == model.active_head


def test_a_named_fusion_has_a_folder(tmp_path: Path) -> None:
    model = bert()
    for name in ("a", "b"):
        model.add_adapter(name, config="seq_bn[reduction_factor=4]")
    model.add_adapter_fusion(["b", "a"], name="own")
    shaken(model).set_active_adapters(Fuse("b", "a", name="own"))
    due = run(model)
    model.save_adapter_fusion(tmp_path, "own")
    assert json.loads((tmp_path / "adapter_fusion_config.json").read_text())["adapter_names"] == ["b", "a"]
    model.delete_adapter_fusion("own")
    model.load_adapter_fusion(tmp_path, set_active=True)
    assert torch.equal(run(model), due)


def test_classes_share_adapters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bert("BertForSequenceClassification")
    model.add_adapter("a", config="seq_bn[reduction_factor=4]", set_active=True)
    shaken(model)
    bare = again(model, tmp_path, phyla.BertModel)
    with torch.no_grad():
        due = model(IDS, output_hidden_states=True).hidden_states[-1]
    assert bare.active_adapters == "a" and torch.equal(run(bare), due)
    tagger = phyla.BertForTokenClassification.from_pretrained(tmp_path)
    assert tagger.active_adapters == "a"
    flexible = adapters.BertAdapterModel.from_pretrained(tmp_path)
    assert flexible.active_head == "default"
    assert torch.allclose(run(flexible), run(model), atol=1e-6)
    assert not any("adapter_down" in r.getMessage() for r in caplog.records)


def test_merged_adapters_are_in_the_weights_alone(tmp_path: Path) -> None:
    model = bert()
    model.add_adapter("a", config="lora[r=2]")
    model.add_adapter("b", config="seq_bn[reduction_factor=4]")
    shaken(model).merge_adapter("a")
    with pytest.warns(UserWarning, match="'a' is merged"):
        other = again(model, tmp_path)
    assert other.adapters.names() == ["b"] and torch.equal(run(other), run(model))


def test_what_is_shared_and_further_tables_come_back(tmp_path: Path) -> None:
    model = test_adapters_peft.small("Llama")
    for name in ("a", "b"):
        model.add_adapter(name, config="mtl_lora[r=2,n_up_projection=2]")
    model.share_parameters(["a", "b"])

    class Words(dict):
        def get_vocab(self) -> dict:
            return self

    model.add_embeddings("new", Words({str(i): i for i in range(25)}))
    other = again(model, tmp_path)
    assert other.adapters.get("a").parts[0].lora_A is other.adapters.get("b").parts[0].lora_A
    assert other.active_embeddings == "new" and other.config.vocab_size == 25
    for each in (model, other):
        each.set_active_adapters("a")
    assert torch.equal(run(other), run(model))
    for each in (model, other):
        each.set_active_embeddings("default")
    assert torch.equal(run(other), run(model)) and other.config.vocab_size == 40


class Two(phyla.BertPreTrainedModel):
    """A class of one's own with two models, each with adapters."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert, self.other = phyla.BertModel(config), phyla.BertModel(config)
        self.post_init()

    def forward(self, ids: torch.Tensor) -> tuple:
        return (self.bert(ids)[0] + self.other(ids)[0],)


def test_classes_of_ones_own(tmp_path: Path) -> None:
    model = Two(phyla.BertConfig(**BERT))
    model.bert.add_adapter("a", config="seq_bn[reduction_factor=4]", set_active=True)
    model.other.add_adapter("b", config="lora[r=2]", set_active=True)
    shaken(model)
    other = again(model, tmp_path)
    assert other.bert.active_adapters == "a" and other.other.active_adapters == "b"
    assert torch.equal(run(other), run(model))


def test_shards_and_other_dtypes(tmp_path: Path) -> None:
    model = bert()
    model.add_adapter("a", config="lora[r=2]", set_active=True)
    shaken(model).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(model))
    half = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.adapters.parameters()} == {torch.bfloat16}
    assert torch.allclose(run(half).float(), run(model), atol=0.1)


def test_what_does_not_fit_is_left_out_aloud(tmp_path: Path) -> None:
    model = bert()
    for name in ("a", "b"):
        model.add_adapter(name, config="lora[r=2]")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    facts = json.loads(path.read_text())
    facts["adapters"]["adapters"]["a"] = "no_method"
    path.write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="'a' among its adapters, which was left out: 'no_method'"):
        other = type(model).from_pretrained(tmp_path)
    assert other.adapters.names() == ["b"]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UnexpectedWeightsError, match="lora_A"):
        type(model).from_pretrained(tmp_path, strict=True)
    facts["adapters"]["adapters"] = {"../a": "lora"}
    path.write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="left out"):
        assert not type(model).from_pretrained(tmp_path).has_adapters()
    other.config.adapters = {"stale": True}
    other.delete_adapter("b")
    other.save_pretrained(tmp_path / "bare")
    assert "adapters" not in json.loads((tmp_path / "bare" / "config.json").read_text())


def test_the_oldest_spelling(tmp_path: Path) -> None:
    model = bert()
    for name in ("a", "b"):
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(["a", "b"])
    shaken(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    facts = json.loads(path.read_text())
    facts["adapters"] = {"adapters": {"a": ["text_task", "pfeiffer"], "b": "pfeiffer"}, "config_map": {}}
    facts |= {"adapter_fusion_models": ["a,b"], "adapter_fusion": "dynamic"}
    path.write_text(json.dumps(facts))
    other = type(model).from_pretrained(tmp_path)
    for each in (model, other):
        each.set_active_adapters(Fuse("a", "b"))
    assert torch.equal(run(other), run(model))


@functools.cache
def theirs() -> tempfile.TemporaryDirectory:
    """The folders that `adapters` 1.3.0 wrote (tools/record_whole_checkpoints.py)."""
    where = tempfile.TemporaryDirectory()
    with tarfile.open(PACK, "r:xz") as archive:
        archive.extractall(where.name, filter="data")
    return where


with tarfile.open(PACK, "r:xz") as _archive:
    CASES = sorted(n.split("/")[0] for n in _archive.getnames() if n.endswith("case.json"))


@pytest.mark.parametrize("case", CASES)
def test_folders_of_the_public_library(case: str, tmp_path: Path) -> None:
    folder = Path(theirs().name) / case
    facts = json.loads((folder / "case.json").read_text())
    recorded = safetensors.torch.load_file(folder / "io.safetensors")
    cls = getattr(phyla, facts["public"], None) or getattr(adapters, facts["public"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = cls.from_pretrained(folder, attn_implementation="eager")
    model.set_active_adapters(setup_of(facts["active"]))
    if facts["head"]:
        model.active_head = facts["head"]
    inputs = {k.removeprefix("in."): v for k, v in recorded.items() if k.startswith("in.")}
    with torch.no_grad():
        found = model(**inputs)[0]
    wanted = recorded["out"]
    assert bool(((found - wanted).abs() <= RELATIVE * wanted.abs() + ABSOLUTE * wanted.abs().max()).all())
    model.save_pretrained(tmp_path)
    if not case.endswith(".bin"):
        before, after = (safetensors.torch.load_file(f / "model.safetensors") for f in (folder, tmp_path))
        assert set(before) <= set(after)
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        old, new = (json.loads((f / "config.json").read_text())["adapters"] for f in (folder, tmp_path))
        configs = [{n: d["config_map"][k] for n, k in d["adapters"].items()} for d in (old, new)]
        assert configs[0] == configs[1] and old["fusions"] == new["fusions"]


def test_packed_bases(tmp_path: Path) -> None:
    model = bert()
    model.add_adapter("a", config="lora[r=2]", set_active=True)
    due = run(shaken(model))
    model.save_pretrained(tmp_path / "0")
    packed = type(model).from_pretrained(tmp_path / "0", load_in_8bit=True)
    assert packed.active_adapters == "a" and torch.allclose(run(packed), due, atol=0.05)
    packed.save_pretrained(tmp_path / "1")
    other = type(model).from_pretrained(tmp_path / "1", quantized=True)
    assert torch.equal(run(other), run(packed))


def test_tables_that_are_no_tables(tmp_path: Path) -> None:
    model = bert()
    model.add_adapter("a", config="lora[r=2]", set_active=True)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    facts = json.loads(path.read_text())
    good = facts["adapters"]
    for bad in (
        [], {"adapters": ["a"]}, {**good, "config_map": 3},
        {**good, "phyla": {"active": {"type": "Nothing"}}},
        {**good, "phyla": {"peft": {"b": 1}, "kept": {"c": None}, "embeddings": {"others": ["d"]}}},
    ):  # fmt: skip
        path.write_text(json.dumps({**facts, "adapters": bad}))
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            other = type(model).from_pretrained(tmp_path)
        assert set(other.adapters.names() if other.has_adapters() else ()) <= {"a"}
