"""On a CUDA device every family gives the numbers of the CPU (`pytest -m gpu`; not in the ordinary run)."""

import tempfile
from pathlib import Path

import pytest
import torch

import phyla
from phyla.registry import table
from phyla.testing.goldens import read_names, read_pack

GOLDENS = Path(__file__).with_name("goldens")
CASES = [
    (row.model_type, name)
    for row in table().values()
    for name, task in row.classes.items()
    if task in ("base-model", "causal-lm", "seq2seq-lm")
    and (GOLDENS / f"{row.model_type}.tar.xz").exists()
    and name in read_names(GOLDENS / f"{row.model_type}.tar.xz")
]


def load(model_type: str, name: str, **options):
    golden = next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.name == name)
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        return getattr(phyla, name).from_pretrained(folder, **options), golden.inputs()


@pytest.mark.gpu
@pytest.mark.parametrize(("model_type", "name"), CASES, ids=["/".join(case) for case in CASES])
@torch.no_grad()
def test_the_device_computes_alike(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name)
    wanted = model(**inputs)[0]
    model, _ = load(model_type, name, device_map="cuda")
    moved = {k: v.cuda() if torch.is_tensor(v) else v for k, v in inputs.items()}
    found = model(**moved)[0].cpu()
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "MambaForCausalLM"])
def test_greedy_tokens_are_those_of_the_cpu(name: str) -> None:
    model_type = name.partition("For")[0].lower()
    model, inputs = load(model_type, name)
    ids = inputs["input_ids"]
    options = {"max_new_tokens": 6, **({"decoder_start_token_id": 0} if model_type == "t5" else {})}
    wanted = model.generate(ids, **options)
    found = model.to("cuda").generate(ids.cuda(), **options)
    assert torch.equal(found.cpu(), wanted)
