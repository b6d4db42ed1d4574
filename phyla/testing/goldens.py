"""Recorded reference behaviour of one public class each: reading, writing and packing.

A golden is a description (config, tensor names and shapes, inputs, call, loss, greedy run) and a handful of
recorded tensors (`in.*`, `out.*`, `label.*`, `int.*`, `generated`). A pack is one .tar.xz with all goldens
of one family.
"""

import io
import json
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from phyla.testing.seeded import seeded_input, seeded_weight

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Golden:
    """What the reference computed for one public class on one tiny configuration."""

    name: str  # file name without ending: the class, with @variant where a class was recorded twice
    facts: dict[str, Any]
    recorded: dict[str, torch.Tensor]

    @property
    def class_name(self) -> str:
        """The public name of the class."""
        return self.facts["cls"]

    @property
    def label(self) -> str:
        """`model_type/Class`, as tests print it."""
        return f"{self.facts['model_type']}/{self.name}"

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Recorded tensors under one prefix (`in`, `out`, `label`, `int`), without it."""
        start = prefix + "."
        return {name[len(start) :]: value for name, value in self.recorded.items() if name.startswith(start)}

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of the checkpoint that the golden was recorded from, by public name."""
        stored = self.group("int")
        return {
            name: stored[name]
            if name in stored
            else torch.from_numpy(seeded_weight(name, shape)).to(DTYPES[dtype])
            for name, shape, dtype in self.facts["tensors"]
        }

    def inputs(self) -> dict[str, Any]:
        """Arguments of the recorded call, by public name."""
        recorded, seeded = self.group("in"), self.facts.get("seeded_inputs", [])
        inputs = {}
        for name, value in self.facts["inputs"].items():
            if name in recorded:
                inputs[name] = recorded[name]
            elif name in seeded:
                inputs[name] = torch.from_numpy(seeded_input(name, value))
            else:
                inputs[name] = value
        return inputs

    def write_checkpoint(self, folder: Path) -> dict[str, torch.Tensor]:
        """Write config.json, model.safetensors and generation_config.json; returns the tensors written."""
        weights = self.weights()
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for name, content in (
            ("config.json", self.facts["config"]),
            ("generation_config.json", self.facts.get("generation_config")),
        ):
            if content:
                (folder / name).write_text(json.dumps(content))
        return weights


def read_folder(folder: Path) -> list[Golden]:
    """Goldens of one family from a folder with a .json and a .safetensors file for each."""
    return [
        Golden(
            path.stem,
            json.loads(path.read_text()),
            safetensors.torch.load_file(path.with_suffix(".safetensors")),
        )
        for path in sorted(folder.glob("*.json"))
    ]


def read_names(path: Path) -> list[str]:
    """The goldens that a pack holds, without reading their tensors."""
    with tarfile.open(path, "r:xz") as archive:
        return [name.removesuffix(".json") for name in archive.getnames() if name.endswith(".json")]


def read_pack(path: Path) -> list[Golden]:
    """All goldens of a pack."""
    with tarfile.open(path, "r:xz") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}  # type: ignore[union-attr]
    return [
        Golden(
            name.removesuffix(".json"),
            json.loads(content),
            safetensors.torch.load(files[name.removesuffix(".json") + ".safetensors"]),
        )
        for name, content in files.items()
        if name.endswith(".json")
    ]


def write_pack(folder: Path, path: Path) -> None:
    """Pack one family's folder; the same files give the same bytes, whoever packs them and when."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        # Like beside like: classes of a family share most hidden states, which then cost nothing.
        for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
            content = file.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME))
