"""What every public format answers: which tensors stand for a weight, how they expand, how they are made."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from phyla.errors import ArgumentError, ConfigError, ShapeMismatchError
from phyla.quantization.numbers import Numbers

# The tensors that stand for one weight: what follows the module's public path -> tensor.
Parts = dict[str, Tensor]


class Facts(NamedTuple):
    """What the parts of one weight say of it: its shape, and what else the format keeps in numbers."""

    shape: tuple[int, ...]
    extra: Any = None


class Scheme:
    """How one public format stores the weight (out, in) of a linear map.

    markers: leaves any of which tells a quantised module. needed: leaves without which it is damaged. leaves:
    all that belong to it. passed_over: patterns of leaves that only concern activations. linear: whether its
    weights are those of linear maps, which can stay packed. dense_maps: the setting that names dense modules.
    """

    method: ClassVar[str] = ""
    linear: ClassVar[bool] = True
    dense_maps: ClassVar[str] = "modules_to_not_convert"
    markers: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    passed_over: str = r"(input|output|k|v)_(scale(_ub)?|zero_point|global_scale)"

    def modules(self, names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(public path, leaves) of each quantised module among the tensor names of a checkpoint."""
        for marker in self.markers:
            for name in names:
                if name.endswith("." + marker):
                    module = name.removesuffix("." + marker)
                    yield module, tuple(leaf for leaf in self.leaves if f"{module}.{leaf}" in names)

    def dense_name(self, module: str) -> str:
        """The weight's name in a dense file, from the public path of a quantised module."""
        return f"{module}.weight"

    def file_name(self, module: str, leaf: str) -> str:
        """The name of one of its tensors."""
        return f"{module}.{leaf}"

    def passes_over(self, leaf: str, quantised: bool = True) -> bool:
        """Whether a leaf holds nothing that the weight beside it, quantised or dense, needs."""
        return quantised and re.fullmatch(self.passed_over, leaf) is not None

    def check(self, parts: Parts) -> Facts:
        """The facts of a weight (out, in); ShapeMismatchError, naming the leaf, unless all parts fit."""
        raise NotImplementedError(f"{type(self).__name__} must define check(parts)")

    def dense(self, parts: Parts, facts: Facts) -> Tensor:
        """The weight (out, in) in float32, in memory of its own, without a look at values on the way."""
        raise NotImplementedError(f"{type(self).__name__} must define dense(parts, facts)")

    def numbers(self, parts: Parts, facts: Facts) -> Numbers | None:
        """The weight as numbers that the kernels take; None where they do not take it."""
        return None

    def bulk(self, parts: Parts) -> str:
        """The leaf that holds the codes."""
        return "weight"

    def stored(self, codes: Tensor, like: Tensor, facts: Facts) -> Tensor:
        """That leaf again from the codes of `numbers`; like: its shape and dtype, on meta."""
        return codes

    def quantise(self, weight: Tensor) -> Parts:
        """The parts of a weight (out, in); ArgumentError where a format cannot be made without examples."""
        raise ArgumentError(
            f"{self.method} weights cannot be made while loading, only read: load a checkpoint that is "
            "quantised already, or pass a BitsAndBytesConfig, CompressedTensorsConfig or FineGrainedFP8Config"
        )

    def packs(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape can be made in the format."""
        return len(shape) == 2

    def config(self) -> dict[str, Any]:
        """The `quantization_config` under which public tools read what `quantise` makes."""
        return {"quant_method": self.method}

    def completed(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Settings of this method as its public tools want to find them in config.json; None for nothing."""
        return settings

    def one(self, name: str, notes: Mapping[str, str], shape: tuple[int, ...] | None) -> "Scheme":
        """The scheme of one weight, by the notes in the file's header and its shape by the model."""
        return self

    def note(self) -> str | None:
        """What a file's header must say of a weight of this scheme."""
        return None

    def files(self, maps: Mapping[str, Parts]) -> dict[str, bytes]:
        """Small files that stand beside the weights, from the packed maps by their public paths."""
        return {}


def demand(holds: bool, leaf: str, text: str) -> None:
    """Raise ShapeMismatchError naming the leaf unless it holds; `text` says what must be and what is."""
    if not holds:
        raise ShapeMismatchError(f"{leaf} {text}")


def demand_dtype(parts: Parts, leaf: str, *allowed: torch.dtype) -> Tensor:
    """The part, which must have one of these dtypes."""
    got = parts[leaf]
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    demand(got.dtype in allowed, leaf, f"must hold {names}, but holds {got.dtype}")
    return got


def demand_shape(parts: Parts, leaf: str, *allowed: tuple[int, ...]) -> Tensor:
    """The part, which must have one of these shapes."""
    got = parts[leaf]
    wanted = " or ".join(map(str, allowed))
    demand(tuple(got.shape) in allowed, leaf, f"must have shape {wanted}, but has {tuple(got.shape)}")
    return got


def four_bits(config: Mapping[str, Any], where: str) -> Any:
    """The group_size of a `quantization_config`; ConfigError for bits other than four."""
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        raise ConfigError(f"quantization_config.bits must be 4 {where}, but is {bits!r}")
    return config.get("group_size", config.get("q_group_size", 128))


def order_of(index: Tensor, group: int) -> Tensor | None:
    """Inputs in order of their groups, which `index` (in) numbers; None where the groups differ in size."""
    order = index.argsort(stable=True)
    follow = torch.arange(len(index), device=index.device) // group
    return order if torch.equal(index[order], follow.to(index.dtype)) else None


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
