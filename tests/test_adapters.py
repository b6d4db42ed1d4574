"""Adapters: strings, names, the matrix method x family, compositions, merging, training."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import phyla
import phyla.adapters as adapters
from phyla.adapters import Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack
from phyla.adapters.config import ConfigUnion, config_of
from phyla.errors import AdapterError
from phyla.testing.goldens import read_pack

GOLDENS = Path(__file__).parent / "goldens"
# What is held against what; docs/adapters_matrix.md is made from it (tools/tables.py).
MATRIX = json.loads((Path(__file__).parent.parent / "tools" / "adapter_matrix.json").read_text())
FAMILIES: dict[str, str] = MATRIX["families"]
METHODS: list[str] = MATRIX["methods"]
NEUTRAL, MERGING = tuple(MATRIX["neutral"]), tuple(MATRIX["merging"])


def _listed(table: str, method: str, family: str) -> bool:
    """Whether a method stands for a family in one of the matrix's lists."""
    return family in MATRIX[table].get(method.split("|")[0].split("[")[0], ())


@functools.cache
def _golden(family: str):
    cls = FAMILIES[family]
    return next(g for g in read_pack(GOLDENS / f"{family}.tar.xz") if g.class_name == cls)


@functools.cache
def _base(family: str):
    torch.manual_seed(0)
    golden = _golden(family)
    cls = getattr(phyla, golden.class_name)
    model = cls(cls.config_class.from_dict(golden.facts["config"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def _model(family: str):
    return copy.deepcopy(_base(family))


def _run(model, family: str, **extra) -> torch.Tensor:
    golden = _golden(family)
    return model(**golden.inputs(), **golden.facts["call"], **extra).last_hidden_state


def _randomise(model, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.adapters.get(name).named_parameters():
            if "parametrizations" not in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def _seen(states: torch.Tensor, family: str) -> torch.Tensor:
    """States without those of padding, where padding in the model is of no meaning."""
    mask = _golden(family).inputs().get("attention_mask")
    return states * mask[..., None] if family == "deberta" and mask is not None else states


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_on_every_family(family: str, tmp_path: Path) -> None:
    faults = []
    with torch.no_grad():
        plain = _run(_base(family), family)
    for method in METHODS:
        model = _model(family)
        if _listed("without", method, family):
            with pytest.raises(AdapterError):  # else it works: take it off the list
                model.add_adapter("a", config=method)
            continue
        model.add_adapter("a", config=method)
        model.set_active_adapters("a")
        with torch.no_grad():
            if method.startswith(NEUTRAL) and "|" not in method:
                if not torch.allclose(_run(model, family), plain, atol=1e-5, rtol=1e-5):
                    faults.append(f"{method}: a fresh adapter changes the outputs")
            _randomise(model, "a")
            changed = _run(model, family)
            if changed.shape == plain.shape and torch.allclose(changed, plain, atol=1e-6):
                faults.append(f"{method}: does nothing")
            model.save_adapter(tmp_path / "a", "a")
            with safe_open(tmp_path / "a" / "adapter.safetensors", "pt") as file:
                if any(".loras.a.parts." in key for key in file.keys()) != _listed("apart", method, family):  # noqa: SIM118
                    faults.append(f"{method}: its file holds parts apart, or the list is wrong")
            other = _model(family)
            other.load_adapter(tmp_path / "a", load_as="b", set_active=True)
            if not torch.equal(_run(other, family), changed):
                faults.append(f"{method}: saved and loaded, it computes something else")
            names = ["a", *[None] * (len(plain) - 1)]
            if _listed("uneven", method, family):
                with pytest.raises(AdapterError, match="mask"):
                    _run(model, family, adapter_names=names)
                continue
            mixed, size = _run(model, family, adapter_names=names), plain.shape[1]
            wanted = torch.cat([changed[:1, -size:], plain[1:]])
            if not torch.allclose(_seen(mixed[:, -size:], family), _seen(wanted, family), atol=1e-4):
                faults.append(f"{method}: rows of one batch differ from single runs")
            if method.startswith(MERGING) and "|" not in method:
                model.merge_adapter("a")
                if not torch.allclose(_run(model, family), changed, atol=1e-3, rtol=1e-3):
                    faults.append(f"{method}: merged, it computes something else")
                model.reset_adapter()
                model.set_active_adapters("a")
            model.set_active_adapters(None)
            if not torch.equal(_run(model, family), plain):
                faults.append(f"{method}: leaves something behind when inactive")
        model.train_adapter("a")
        model.eval()
        _run(model, family).pow(2).sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None and not key.startswith("adapters."):
                faults.append(f"{method}: {key} gets a gradient")
                break
        idle = [k for k, p in model.adapters.named_parameters() if p.requires_grad and p.grad is None]
        # A unit for the last positions is kept in files, though none are asked for.
        idle = [k for k in idle if not ("reft" in method and ".units.1." in k)]
        if idle:
            faults.append(f"{method}: no gradient for {idle[:2]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("method", ["lora[r=2]", "ia3", "dora[r=2]", "vera[r=2,attn_matrices=[q]]"])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
def test_merged_equals_unmerged_and_resets_exactly(family: str, method: str) -> None:
    model = _model(family)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.add_adapter("a", config=method, set_active=True)
    _randomise(model, "a")
    with torch.no_grad():
        wanted = _run(model, family)
        model.merge_adapter("a")
        assert torch.allclose(_run(model, family), wanted, atol=1e-4, rtol=1e-4)
        with pytest.raises(AdapterError, match="merged"):
            model.set_active_adapters("a")
        model.reset_adapter()
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


COMPOSED = ("double_seq_bn[reduction_factor=4]", "seq_bn[reduction_factor=4]", "lora[r=2]", "ia3",
            "prefix_tuning_flat[prefix_length=3]", "noreft[r=2]")  # fmt: skip


def _two(family: str, method: str):
    model = _model(family)
    for seed, name in enumerate("ab"):
        model.add_adapter(name, config=method)
        _randomise(model, name, seed + 1)
    return model


@pytest.mark.parametrize("method", COMPOSED)
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_rows_equal_single_runs(family: str, method: str) -> None:
    model = _two(family, method)
    with torch.no_grad():
        single = {}
        for name in "ab":
            model.set_active_adapters(name)
            single[name] = _run(model, family)
        rows = len(single["a"])
        model.set_active_adapters(Parallel("a", "b"))
        assert torch.allclose(_run(model, family), torch.cat([single["a"], single["b"]]), atol=1e-4)
        model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, rows - 1]))
        assert torch.allclose(_run(model, family), torch.cat([single["a"][:1], single["b"][1:]]), atol=1e-4)
        model.set_active_adapters(MultiTask("a", "b"))
        ids = [1] + [0] * (rows - 1)
        wanted = torch.cat([single["b"][:1], single["a"][1:]])
        assert torch.allclose(_run(model, family, task_ids=ids), wanted, atol=1e-4)
        with pytest.raises(AdapterError, match="task_ids"):
            _run(model, family)
        if "prefix" not in method:
            model.set_active_adapters(Average("a", "a", weights=[1, 3]))
            assert torch.allclose(_run(model, family), single["a"], atol=1e-4)
        with adapters.AdapterSetup("b"):
            assert torch.equal(_run(model, family), single["b"])


def test_blocks_without_meaning_are_errors() -> None:
    model = _two("bert", "lora[r=2]")
    for setup in (Split("a", "b", splits=[1, 2]), Stack(BatchSplit("a", Parallel("b"), batch_sizes=1))):
        with pytest.raises(AdapterError):
            model.set_active_adapters(setup)
    with pytest.raises(AdapterError, match="no adapter"):
        model.set_active_adapters("c")
    other = _two("bert", "seq_bn")
    with pytest.raises(AdapterError, match="fusion"):
        other.set_active_adapters(Fuse("a", "b"))
    assert other.active_adapters is None


def test_fusion_trains_alone_and_comes_back(tmp_path: Path) -> None:
    model = _two("bert", "seq_bn")
    model.add_adapter_fusion(["a", "b"])
    model.train_adapter_fusion(Fuse("a", "b"))
    trained = [k for k, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".fusions." in k for k in trained)
    assert model.get_fusion_regularization_loss() is not None
    model.eval()
    model.save_adapter_setup(tmp_path, Fuse("a", "b"))
    other = _model("bert")
    other.load_adapter_setup(tmp_path, set_active=True)
    with torch.no_grad():
        assert torch.equal(_run(model, "bert"), _run(other, "bert"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a,b", "a\\b", "a\x00"])
def test_names_cannot_be_paths(name: str) -> None:
    with pytest.raises(AdapterError):
        _model("bert").add_adapter(name)


def test_config_strings() -> None:
    made = config_of("double_seq_bn[reduction_factor=32]|lora[r=8]")
    assert isinstance(made, ConfigUnion) and made.configs[1]["r"] == 8
    assert config_of("seq_bn[reduction_factor={0: 4, default: 8}]").reduction_factor == {"0": 4, "default": 8}
    assert config_of("lora[attn_matrices=[q,k],use_gating=true]").attn_matrices == ["q", "k"]
    for wrong in ("nothing", "lora[z=1]", "lora[r=2", "lora|lora"):
        with pytest.raises(AdapterError):
            config_of(wrong)


def test_summary_and_delete() -> None:
    model = _two("bert", "lora[r=2]")
    adapters.init(model)
    rows = model.adapter_summary(as_dict=True)
    assert [row["name"] for row in rows] == ["a", "b", "Full model"]
    assert "lora" in model.adapter_summary()
    model.delete_adapter("a")
    assert not any("adapters.entries._a" in k for k in model.state_dict())


def test_a_failed_load_leaves_the_model_alone(tmp_path: Path) -> None:
    model = _two("bert", "lora[r=2]")
    model.save_adapter(tmp_path, "a")
    other = _model("llama")
    with pytest.raises(ValueError):
        other.load_adapter(tmp_path)
    assert other.adapters.names() == []
    with torch.no_grad():
        assert torch.equal(_run(other, "llama"), _run(_base("llama"), "llama"))


def test_the_base_is_saved_as_it_is_beside_adapters(tmp_path: Path) -> None:
    model = _two("bert", "lora[r=2]")
    model.set_active_adapters("a")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(_run(again, "bert"), _run(model, "bert"))
        again.set_active_adapters(None)
        assert torch.equal(_run(again, "bert"), _run(_base("bert"), "bert"))
