"""Depth of every place: states of several layers become maps, are fused from coarse to fine, and read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Linear, activation
from phyla.blocks.conv import BatchNorm, Conv2d
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.dense import resized
from phyla.outputs import DepthEstimatorOutput, ModelOutput


class Rescale(Block):
    """A map (B, C, Y, X) with `out` channels, `factor` times as large (a whole number, 1, or 1 over one)."""

    def __init__(self, width: int, out: int, factor: float) -> None:
        super().__init__()
        self.project = Conv2d(width, out, 1)
        self.resize: nn.Module | None = None
        if factor > 1:
            self.resize = nn.ConvTranspose2d(out, out, int(factor), int(factor))
        elif factor < 1:
            self.resize = Conv2d(out, out, 3, int(1 / factor), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return x if self.resize is None else self.resize(x)


class Readout(Block):
    """The class vector falls away ("ignore"), is added to patches ("add"), or joined to them ("project")."""

    def __init__(self, kind: str, width: int, act: str) -> None:
        super().__init__()
        self.kind = kind
        self.project = Linear(2 * width, width) if kind == "project" else None
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P + 1, D) -> (B, P, D)."""
        first, x = x[:, :1], x[:, 1:]
        if self.project is not None:
            return self.act(self.project(torch.cat((x, first.expand_as(x)), -1)))
        return x + first if self.kind == "add" else x


class Reassembly(Block):
    """States of layers (B, P + 1, D) as maps of several sizes (arXiv:2103.13413, eq. 4-6).

    factors: size of each map over the grid of patches; those numbered in `ready` are maps already.
    """

    def __init__(
        self,
        width: int,
        channels: Sequence[int],
        factors: Sequence[float],
        patch: tuple[int, int],
        readout: str,
        act: str = "gelu",
        ready: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.patch, self.ready = patch, tuple(ready)
        used = [i for i in range(len(channels)) if i not in self.ready]
        self.readouts = nn.ModuleDict({str(i): make(Readout(readout, width, act)) for i in used})
        self.scales = nn.ModuleDict({str(i): make(Rescale(width, channels[i], factors[i])) for i in used})

    def forward(self, states: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        grid = (size[0] // self.patch[0], size[1] // self.patch[1])
        maps = list(states)
        for key, readout in self.readouts.items():
            x = readout(maps[int(key)])  # (B, P, D)
            maps[int(key)] = self.scales[key](x.transpose(1, 2).unflatten(2, grid))
        return maps


class PreActivation(Block):
    """x + conv(relu(conv(relu(x)))), with batch norms behind the convolutions where `norms`."""

    def __init__(self, width: int, bias: bool = True, norms: bool = False) -> None:
        super().__init__()
        self.first, self.second = (Conv2d(width, width, 3, padding=1, bias=bias) for _ in range(2))
        self.first_norm = make(BatchNorm(width)) if norms else None
        self.second_norm = make(BatchNorm(width)) if norms else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.relu(x))
        y = self.second(F.relu(y if self.first_norm is None else self.first_norm(y)))
        return x + (y if self.second_norm is None else self.second_norm(y))


class Fuse(Block):
    """The coarser map joins the finer one and grows."""

    def __init__(self, width: int, bias: bool = True, norms: bool = False) -> None:
        super().__init__()
        self.side, self.main = (
            make(PreActivation(width, bias, norms)),
            make(PreActivation(width, bias, norms)),
        )
        self.project = Conv2d(width, width, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: Sequence[int] | None) -> Tensor:
        if finer is not None:
            if x.shape != finer.shape:
                finer = resized(finer, x.shape[2:])
            x = x + self.side(finer)
        x = self.main(x)
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        return self.project(resized(x, size, corners=True))


class FusionNeck(Block):
    """Maps of falling size, fused from the last to the first: the fused maps, each finer than the one before.

    indices: numbers of the states it reads (behind maps that the embedding found), or None for the body's
    feature maps. follows: a fused map has the size of the next map, not twice its own.
    """

    def __init__(
        self,
        reassembly: Spec | None,
        channels: Sequence[int],
        width: int,
        indices: Sequence[int] | None = None,
        follows: bool = False,
        bias: bool = True,
        norms: bool = False,
    ) -> None:
        super().__init__()
        self.reassembly = make(reassembly)
        self.convs = nn.ModuleList(Conv2d(c, width, 3, padding=1, bias=False) for c in channels)
        self.layers = make([Fuse(width, bias, norms) for _ in channels])
        self.indices = None if indices is None else tuple(indices)
        self.follows = follows

    def forward(self, out: Any) -> list[Tensor]:
        if self.indices is None:
            states = list(out.feature_maps)
        else:
            ahead = getattr(out, "intermediate_activations", None) or ()
            states = [*ahead, *(out.hidden_states[i] for i in self.indices)]
        if len(states) != len(self.convs):
            raise ArgumentError(
                f"{len(self.convs)} states are due (neck_hidden_sizes), but {len(states)} came"
            )
        maps = states if self.reassembly is None else self.reassembly(states, out.image_size)
        maps = [conv(x) for conv, x in zip(self.convs, maps, strict=True)][::-1]
        x, fused = maps[0], []
        for i, layer in enumerate(self.layers):
            size = maps[i + 1].shape[2:] if self.follows and i + 1 < len(maps) else None
            x = layer(x, maps[i] if i else None, size)
            fused.append(x)
        return fused


class DepthRead(Block):
    """Depth (B, Y, X) from a map (B, C, y, x): relu(conv), at the size of `grow`, conv, relu, conv, last.

    grow: twice the map's size, or the pixels of whole patches of the image. last: "relu" or "sigmoid". most:
    factor on the result. before: channels of a further convolution in front, or 0.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        patch: int | None = None,
        last: str = "relu",
        most: float = 1,
        before: int = 0,
    ) -> None:
        super().__init__()
        self.before = Conv2d(before, before, 3, padding=1) if before else None
        self.first = Conv2d(width, width // 2, 3, padding=1)
        self.second = Conv2d(width // 2, inner, 3, padding=1)
        self.third = Conv2d(inner, 1, 1)
        self.patch, self.last, self.most = patch, activation(last), most

    def forward(self, x: Tensor, image: tuple[int, int]) -> Tensor:
        x = x if self.before is None else F.relu(self.before(x))
        x = self.first(x)
        size = (2 * x.shape[2], 2 * x.shape[3])
        if self.patch is not None:
            size = (image[0] // self.patch * self.patch, image[1] // self.patch * self.patch)
        x = self.third(F.relu(self.second(resized(x, size, corners=True))))
        return (self.last(x) * self.most)[:, 0]


class _Depth(HeadModule):
    def __init__(self, head: "DepthEstimate", config: Any) -> None:
        super().__init__()
        self.neck, self.read = make(head.neck(config)), make(head.read(config))

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is not None:
            raise ArgumentError("there is no loss of depth: compare predicted_depth with the truth yourself")
        fused = self.neck(out)[call.config.head_in_index]
        return {"predicted_depth": self.read(fused, out.image_size)}


@dataclass(frozen=True)
class DepthEstimate(Head):
    """Depth (B, Y, X) of every place. neck: config -> `FusionNeck`; read: config -> `DepthRead`."""

    task: ClassVar[str] = "depth-estimation"
    needs_states: ClassVar[bool] = True
    output: type[ModelOutput] = DepthEstimatorOutput
    neck: Callable[[Any], Any] = lambda config: None
    read: Callable[[Any], Any] = lambda config: None

    def make(self, config: Any, width: int) -> HeadModule:
        return _Depth(self, config)
