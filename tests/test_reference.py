"""What phyla saves, the reference loads and computes alike.

Run it with PHYLA_REFERENCE=/path/to/python and `-m reference`; that interpreter has Transformers installed,
in an environment of its own. Without it the same is held by the recorded goldens: the saved tensors and keys
are equal to those that the reference wrote.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import phyla
from phyla.registry import table
from phyla.testing.goldens import read_names, read_pack

GOLDENS = Path(__file__).with_name("goldens")
CASES = [
    (row.model_type, name)
    for row in table().values()
    for name in row.classes
    if (GOLDENS / f"{row.model_type}.tar.xz").exists()
    and name in read_names(GOLDENS / f"{row.model_type}.tar.xz")
]
# Run by the other interpreter: load the folder, compute, store every tensor of the output.
SCRIPT = """
import json, sys, torch, transformers
from safetensors.torch import load_file, save_file
folder, name = sys.argv[1:]
inputs = {**load_file(folder + "/inputs.safetensors"), **json.load(open(folder + "/plain.json"))}
model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    out = model.eval()(**inputs)
save_file({k: v.contiguous() for k, v in out.items() if torch.is_tensor(v)}, folder + "/out.safetensors")
"""


@pytest.mark.reference
@pytest.mark.parametrize(("model_type", "name"), CASES, ids=["/".join(case) for case in CASES])
@torch.no_grad()
def test_the_reference_reads_what_phyla_saves(model_type: str, name: str, tmp_path: Path) -> None:
    golden = next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.name == name)
    (tmp_path / "ours").mkdir()
    golden.write_checkpoint(tmp_path / "ours")
    model = getattr(phyla, name).from_pretrained(tmp_path / "ours")
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    inputs = golden.inputs()
    save_file({k: v for k, v in inputs.items() if torch.is_tensor(v)}, folder / "inputs.safetensors")
    plain = {k: v for k, v in inputs.items() if not torch.is_tensor(v)}
    (folder / "plain.json").write_text(json.dumps(plain))
    python = os.environ["PHYLA_REFERENCE"]
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder), name],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = load_file(folder / "out.safetensors"), model(**inputs)
    shared = [k for k in theirs if k in ours and torch.is_tensor(ours[k])]
    assert shared
    for key in shared:
        atol = 1e-5 * float(theirs[key].abs().max())
        assert torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=atol), key
