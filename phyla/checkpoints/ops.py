"""Tensor operations between public files and our parameters; each states its inverse."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phyla.errors import ShapeMismatchError


@dataclass(frozen=True)
class Same:
    """One public tensor is one of ours, as it is."""

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        return theirs

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        return ours


@dataclass(frozen=True)
class Transpose(Same):
    """Matrices are stored as (in, out) (GPT-2's Conv1D); vectors are left alone."""

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [t.T if t.dim() == 2 else t for t in theirs]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        return [t.T.contiguous() if t.dim() == 2 else t for t in ours]


@dataclass(frozen=True)
class Split(Same):
    """One public tensor holds several of ours along its dimension `dim`, in order.

    groups: the parts alternate in that many groups (NeoX, BLOOM: one a head; Falcon: one a key/value head).
    transpose: matrices are stored as (in, out). The sizes of the parts come from our own parameters.
    """

    groups: int = 1
    transpose: bool = False
    dim: int = 0

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        fused = theirs[0].T if self.transpose and theirs[0].dim() == 2 else theirs[0]
        dim = self.dim
        sizes = [shape[dim] // self.groups for shape in shapes]
        if sum(sizes) * self.groups != fused.shape[dim]:
            raise ShapeMismatchError(
                f"a fused tensor must have {sum(sizes) * self.groups} rows for its parts, "
                f"but has {fused.shape[dim]}"
            )
        parts = fused.unflatten(dim, (self.groups, -1)).split(sizes, dim + 1)
        return [part.flatten(dim, dim + 1) for part in parts]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        dim = self.dim
        fused = torch.cat([t.unflatten(dim, (self.groups, -1)) for t in ours], dim + 1).flatten(dim, dim + 1)
        return [fused.T.contiguous() if self.transpose and fused.dim() == 2 else fused]


@dataclass(frozen=True)
class Stack(Same):
    """One of ours holds many public tensors along a new first dimension (experts)."""

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [torch.stack(theirs)]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        return [t.contiguous() for t in ours[0].unbind(0)]


@dataclass(frozen=True)
class Reshape(Same):
    """The same numbers in another shape (class tokens of (1, 1, D)); `shape` is public and may hold a -1."""

    shape: tuple[int, ...] = ()

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        if theirs[0].numel() != shapes[0].numel():
            raise ShapeMismatchError(
                f"{shapes[0].numel()} numbers are due, but there are {theirs[0].numel()}"
            )
        return [theirs[0].reshape(shapes[0])]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        return [ours[0].reshape(self.shape)]


@dataclass(frozen=True)
class Swapped(Same):
    """The last two dimensions of ours stand the other way round in files, behind the operation `inner`."""

    inner: Same = Same()

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        turned = [torch.Size((*shape[:-2], shape[-1], shape[-2])) for shape in shapes]
        return [t.transpose(-1, -2) for t in self.inner.load(theirs, turned)]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        return self.inner.save([t.transpose(-1, -2).contiguous() for t in ours])
