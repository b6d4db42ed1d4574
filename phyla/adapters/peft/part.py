"""What one adapter holds for one public module, and how it stands at a site or before a parameter."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.adapters.peft.targets import Piece, Target, dense
from phyla.errors import AdapterError, MissingWeightsError, ShapeMismatchError
from phyla.quantization.experts import PackedExperts


def take(tensor: Tensor, rows: Any) -> Tensor:
    """The rows of a public tensor that belong to one of our modules."""
    return tensor if rows is None else tensor[rows]


class Part(nn.Module):
    """The parameters for one public module. leaves: parameter -> name in files.

    Rows are those of the public matrix: where files hold q, k and v as one, one part stands at three sites.
    """

    leaves: ClassVar[dict[str, str]] = {}

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.path, self.kind, self.shape = target.path, target.kind, target.shape

    def names(self) -> dict[str, str]:
        """Parameter -> name in files, of this part's kind of module."""
        return self.leaves

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        """What to add to y (..., out) of a module fed with x (..., in)."""
        raise NotImplementedError(f"{type(self).__name__} must define change()")

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that compute what base and part compute together."""
        raise NotImplementedError(f"{type(self).__name__} must define merged()")

    def to_file(self) -> dict[str, Tensor]:
        """Tensors by the names that files have for them."""
        names = self.names()
        return {names[k]: p for k, p in self.named_parameters() if k in names}

    def from_file(self, tensors: dict[str, Tensor]) -> None:
        """Take over a file's tensors; errors name the key that lacks, is too much or has another shape."""
        names = self.names()
        own = {names[k]: p for k, p in self.named_parameters() if k in names}
        for name, parameter in own.items():
            if name not in tensors:
                raise MissingWeightsError(f"the PEFT file has no tensor {self.path}.{name}")
            if tensors[name].numel() != parameter.numel() or not _alike(tensors[name], parameter):
                raise ShapeMismatchError(
                    f"{self.path}.{name} must have shape {tuple(parameter.shape)} by adapter_config.json but "
                    f"has {tuple(tensors[name].shape)}"
                )
        extra = sorted(set(tensors) - set(own))
        if extra:
            raise AdapterError(
                f"the PEFT file holds {self.path}.{extra[0]}, which {type(self).__name__} has no use for"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name].view_as(parameter))


def _alike(given: Tensor, due: Tensor) -> bool:
    return [n for n in given.shape if n != 1] == [n for n in due.shape if n != 1]


class Delta(Part):
    """A part that adds a matrix to the weight."""

    def delta(self) -> Tensor:
        """The whole matrix, as the public weight: (out, in, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define delta()")

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        return F.linear(x, take(self.dropped(self.delta()), rows).to(x.dtype))

    def dropped(self, delta: Tensor) -> Tensor:
        """The matrix with the dropout of training."""
        return delta

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        return weight + take(self.delta(), rows).to(weight.dtype), bias


class Turn(Part):
    """A part that turns the input: x R, the same for all rows."""

    def matrix(self) -> Tensor:
        """R, (in, in)."""
        raise NotImplementedError(f"{type(self).__name__} must define matrix()")

    def turned(self, x: Tensor) -> Tensor:
        """x R."""
        return x @ self.matrix().to(x.dtype)

    def change(self, x: Tensor, y: Tensor, linear: Any, rows: Any) -> Tensor:
        return F.linear(self.turned(x) - x, dense(linear, x.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None, rows: Any) -> tuple[Tensor, Tensor | None]:
        flat = weight.flatten(1)
        return (flat @ self.matrix().to(flat.dtype).T).view_as(weight), bias


class At(nn.Module):
    """A part at the site of one projection, or of a token table: (x, y, module) -> what to add to y."""

    scales = True  # updates of several adapters are summed, none is the input of the next
    whole = True  # it sees input and output itself; see lora.LinearSite

    def __init__(self, part: Part, rows: Any = None) -> None:
        super().__init__()
        self.part, self.rows = part, rows

    def forward(self, x: Tensor, y: Tensor, module: Any) -> Tensor:
        return self.part.change(x, y, module, self.rows)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that compute what base and part compute together."""
        return self.part.merged(weight, bias, self.rows)

    def plain(self) -> bool:
        """Whether it computes nothing but scaling B A x, so that rows of several adapters can be batched."""
        part: Any = self.part
        special = [getattr(part, name, None) for name in ("m", "lora_bias", "lora_E", "start_A")]
        known = hasattr(part, "lora_A") and part.kind == "linear" and not isinstance(self.rows, Tensor)
        return known and not any(s is not None for s in special)

    @property
    def lora_A(self) -> Tensor:
        """The first factor, (r, in)."""
        return self.part.lora_A  # type: ignore[return-value]

    @property
    def lora_B(self) -> Tensor:
        """The rows of the second factor that are this projection's, (out, r)."""
        return take(self.part.lora_B, self.rows)  # type: ignore[arg-type]

    @property
    def scaling(self) -> float:
        """The factor of the product."""
        return self.part.scaling  # type: ignore[return-value]

    @property
    def dropout(self) -> float:
        """The dropout of the input."""
        return self.part.dropout  # type: ignore[return-value]


class Overlay(nn.Module):
    """Parts that stand before one parameter of the base: while active, reading it gives what they make of it.

    For what has no site: convolutions, the experts of a mixture, norms. The parameter itself stays as it is.
    """

    def __init__(self, members: Sequence[tuple[Part, Piece]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(part for part, _ in members)
        self.pieces = [piece for _, piece in members]

    @property
    def module(self) -> Any:
        """The module whose parameter it is."""
        return self.pieces[0].module

    @property
    def leaf(self) -> str:
        """The parameter's name there."""
        return self.pieces[0].leaf

    def forward(self, value: Tensor) -> Tensor:
        """What the base is to read in the place of `value`."""
        members = list(zip(self.members, self.pieces, strict=True))
        single = [(part, piece) for part, piece in members if piece.expert is not None]
        if single:
            slices = list(value.unbind())
            for part, piece in single:
                slices[piece.expert] = part.merged(slices[piece.expert], None, None)[0]  # type: ignore
            value = torch.stack(slices)
        for part, piece in members:
            if piece.expert is None:
                value = part.merged(value, None, piece.rows)[0]  # type: ignore[operator]
        return value

    def put(self) -> None:
        """Stand before the parameter."""
        module = self.module
        packed = isinstance(module._modules.get(self.leaf), PackedExperts)
        by_expert = packed and all(piece.expert is not None for piece in self.pieces)
        if not by_expert and not isinstance(module._parameters.get(self.leaf), nn.Parameter):
            raise AdapterError(
                f"{self.pieces[0].path}.{self.leaf} is quantised: PEFT adapters need it unquantised"
            )
        overlays = dict(module.__dict__.get("_overlays", {}), **{self.leaf: self})
        if "_overlays" not in module.__dict__:
            module.__dict__["_plain"] = type(module)
        module.__dict__["_overlays"] = overlays
        module.__class__ = _reading(module.__dict__["_plain"], frozenset(overlays))

    def lift(self) -> None:
        """Go away again."""
        module = self.module
        overlays = {k: v for k, v in module.__dict__.get("_overlays", {}).items() if k != self.leaf}
        plain = module.__dict__["_plain"]
        if overlays:
            module.__dict__["_overlays"] = overlays
            module.__class__ = _reading(plain, frozenset(overlays))
            return
        del module.__dict__["_overlays"], module.__dict__["_plain"]
        module.__class__ = plain


_CLASSES: dict[tuple[type, frozenset[str]], type] = {}


def _reading(plain: type, leaves: frozenset[str]) -> type:
    """The class of modules some of whose parameters are read through overlays."""
    key = (plain, leaves)
    if key not in _CLASSES:
        found = {leaf: property(_Reader(leaf)) for leaf in leaves}
        _CLASSES[key] = type(plain.__name__, (plain,), {**found, "__module__": plain.__module__})
    return _CLASSES[key]


class _Reader:
    """Reads one parameter through its overlay."""

    def __init__(self, leaf: str) -> None:
        self.leaf = leaf

    def __call__(self, module: Any) -> Any:
        overlay, value = module._overlays[self.leaf], module._parameters.get(self.leaf)
        return ChangedExperts(module._modules[self.leaf], overlay) if value is None else overlay(value)


class ChangedExperts(nn.Module):
    """Packed experts as an overlay changes them: each is expanded when tokens come to it."""

    base: PackedExperts
    overlay: Overlay

    def __init__(self, base: PackedExperts, overlay: Overlay) -> None:
        super().__init__()
        # They are registered where they belong; this only looks at them.
        self.__dict__.update(base=base, overlay=overlay)

    def forward(self, x: Tensor, number: int) -> Tensor:
        """x W^T for the changed matrix of one expert: x (N, in) -> (N, out)."""
        pairs = zip(self.overlay.members, self.overlay.pieces, strict=True)
        parts = [part for part, piece in pairs if piece.expert == number]
        if not parts:
            return self.base(x, number)
        weight = self.base.expert(number, x.dtype)
        for part in parts:
            weight = part.merged(weight, None, None)[0]  # type: ignore[operator]
        return F.linear(x, weight)
