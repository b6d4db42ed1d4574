"""What must hold for every family, generated from the packed goldens: one class of each kind a family."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch

import phyla
from phyla.describe import meta_model
from phyla.errors import MissingWeightsError
from phyla.registry import table
from phyla.testing import properties
from phyla.testing.goldens import Golden, read_names, read_pack

torch.set_num_threads(1)
GOLDENS = Path(__file__).with_name("goldens")
BASE = ("base-model", "causal-lm", "seq2seq-lm", "text-encoding", "masked-lm")


def cases(tasks: tuple[str, ...], modality: tuple[str, ...] = ("text", "multimodal", "vision")) -> list:
    found = []
    for row in table().values():
        pack = GOLDENS / f"{row.model_type}.tar.xz"
        if row.modality not in modality or not pack.exists():
            continue
        names = read_names(pack)
        found += [
            (row.model_type, name) for name, task in row.classes.items() if task in tasks and name in names
        ]
    return [pytest.param(*case, id="/".join(case)) for case in found]


@functools.lru_cache(maxsize=8)
def goldens(model_type: str) -> dict[str, Golden]:
    return {golden.name: golden for golden in read_pack(GOLDENS / f"{model_type}.tar.xz")}


@functools.lru_cache(maxsize=64)
def load(model_type: str, name: str, decoder: bool = False) -> phyla.PreTrainedModel:
    """The golden's model; `decoder` makes one of an encoder with a language head (BERT)."""
    changes = {"is_decoder": True} if decoder else {}
    with tempfile.TemporaryDirectory() as folder:
        goldens(model_type)[name].write_checkpoint(Path(folder))
        return getattr(phyla, name).from_pretrained(folder, **changes)


def inputs_of(model_type: str, name: str) -> dict:
    return goldens(model_type)[name].inputs()


text = pytest.mark.parametrize(("model_type", "name"), cases(BASE, ("text",)))
decoders = pytest.mark.parametrize(("model_type", "name"), cases(("causal-lm", "seq2seq-lm"), ("text",)))
every = pytest.mark.parametrize(
    ("model_type", "name"), cases(tuple({t for r in table().values() for t in r.classes.values()}))
)
backbones = pytest.mark.parametrize(("model_type", "name"), cases(("base-model",)))


@text
@torch.no_grad()
def test_padding_does_not_matter(model_type: str, name: str) -> None:
    properties.padding_does_not_matter(load(model_type, name))


@text
@torch.no_grad()
def test_batch_equals_singles(model_type: str, name: str) -> None:
    properties.batch_equals_singles(load(model_type, name))


@decoders
@pytest.mark.parametrize("chunks", [(5, 1, 1, 1, 1), (1,) * 6, (4, 4), (2, 3, 1, 4)], ids=str)
@torch.no_grad()
def test_cached_equals_uncached(model_type: str, name: str, chunks: tuple[int, ...]) -> None:
    properties.cached_equals_uncached(load(model_type, name, decoder=True), chunks)


@every
def test_gradients_reach_every_parameter(model_type: str, name: str) -> None:
    inputs = inputs_of(model_type, name)
    inputs.pop("attention_mask", None)
    properties.gradients_reach_all(load(model_type, name), inputs, UNREACHED.get(name, ()) + SILENT)


# A constant added to all scores of a query: softmax cannot see it, so its gradient is zero.
SILENT = ("attn.k.bias", "cross.k.bias")
# Parameters that the recorded inputs do not reach: cross-attention without an encoder, a mask token without
# a mask; and CLIP's image classifier stores a norm that it does not use.
UNREACHED: dict[str, tuple[str, ...]] = {
    "BartForCausalLM": (".cross.",),
    "CLIPForImageClassification": (
        ".pool.norm",
    ),  # its files hold the norm of the pooled vector that it does not use
    "ViTForMaskedImageModeling": (".mask_token",),  # without bool_masked_pos
}


@every
@torch.no_grad()
def test_open_attention_equals_fused(model_type: str, name: str) -> None:
    model = load(model_type, name)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        for module in model.modules():
            if hasattr(module, "softcap") and hasattr(module, "q"):
                module.softcap = None
    properties.open_equals_fused(model, inputs_of(model_type, name))


@backbones
@torch.no_grad()
def test_bfloat16_is_close(model_type: str, name: str) -> None:
    properties.low_precision_is_close(load(model_type, name), inputs_of(model_type, name))


@every
def test_a_meta_build_allocates_nothing(model_type: str, name: str) -> None:
    config = load(model_type, name).config
    model = meta_model(getattr(phyla, name), config)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


@every
def test_fresh_weights_round_trip(model_type: str, name: str, tmp_path: Path) -> None:
    cls = getattr(phyla, name)
    torch.manual_seed(0)
    config = type(load(model_type, name).config).from_dict(goldens(model_type)[name].facts["config"])
    model = cls.from_config(config)
    assert all(p.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@every
def test_every_missing_tensor_is_named(model_type: str, name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    golden = goldens(model_type)[name]
    golden.write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = sorted(tensors)[len(tensors) // 2]
    copies = {
        n
        for n, t in tensors.items()
        if n != lost and t.shape == tensors[lost].shape and torch.equal(t, tensors[lost])
    }
    tensors = {n: t for n, t in tensors.items() if n != lost and n not in copies}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=lost.replace(".", r"\.")):
        getattr(phyla, name).from_pretrained(tmp_path)


@backbones
@torch.no_grad()
def test_a_tuple_holds_the_same_values(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name), inputs_of(model_type, name)
    named = model(**inputs)
    plain = model(**inputs, return_dict=False)
    assert len(plain) == len(named)
    assert torch.equal(plain[0], named[0])


@pytest.mark.slow
@backbones
@torch.no_grad()
def test_one_graph_compiles_and_exports(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name), inputs_of(model_type, name)
    if "use_cache" in model.forward.__annotations__:
        inputs["use_cache"] = False
    wanted = model(**inputs)[0]
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    properties.assert_close(compiled(**inputs)[0], wanted, "compiled")
    exported = torch.export.export(model, (), inputs, strict=False)
    found = exported.module()(**inputs)
    properties.assert_close(
        found[0] if isinstance(found, tuple | list) else next(iter(found.values())), wanted, "exported"
    )
