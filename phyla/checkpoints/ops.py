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
    """One public tensor holds several of ours along its first dimension, in order.

    groups: the parts alternate in that many groups (NeoX, BLOOM: one a head; Falcon: one a key/value head).
    transpose: matrices are stored as (in, out). The sizes of the parts come from our own parameters.
    """

    groups: int = 1
    transpose: bool = False

    def load(self, theirs: list[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        fused = theirs[0].T if self.transpose and theirs[0].dim() == 2 else theirs[0]
        sizes = [shape[0] // self.groups for shape in shapes]
        if sum(sizes) * self.groups != fused.shape[0]:
            raise ShapeMismatchError(
                f"a fused tensor must have {sum(sizes) * self.groups} rows for its parts, "
                f"but has {fused.shape[0]}"
            )
        parts = fused.unflatten(0, (self.groups, -1)).split(sizes, 1)
        return [part.flatten(0, 1) for part in parts]

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        fused = torch.cat([t.unflatten(0, (self.groups, -1)) for t in ours], 1).flatten(0, 1)
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
