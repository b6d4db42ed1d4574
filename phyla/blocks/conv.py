"""Convolutions on maps (B, C, Y, X): with batch norm, in residual blocks, as a stem."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks.act import activation
from phyla.blocks.context import Context
from phyla.blocks.gradient import is_watched
from phyla.blocks.matmul import is_inference_on_cpu, linear, linear_act
from phyla.blocks.spec import Block, Spec, make
from phyla.errors import ArgumentError


def check_pixels(pixels: Tensor, channels: int) -> None:
    """Refuse pixels that are not (B, channels, Y, X)."""
    if pixels.dim() != 4 or pixels.shape[1] != channels:
        raise ArgumentError(
            f"pixel_values must be (batch, {channels}, height, width), but are {tuple(pixels.shape)}"
        )


class Conv2d(nn.Conv2d):
    """A convolution with fresh weights as He et al. 2015 (arXiv:1502.01852) where `he`, else as any layer."""

    he = False

    def reset_parameters(self) -> None:
        """Nothing: values come from a checkpoint or from `init_weights`."""

    def reset(self, std: float) -> bool:
        """Fresh values for `he`."""
        if self.he:
            nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
            if self.bias is not None:
                nn.init.zeros_(self.bias)
        return self.he


class BatchNorm(Block):
    """(x - mean) / sqrt(var + eps) * weight + bias a channel: of the batch in training, else running.

    Ioffe & Szegedy 2015, arXiv:1502.03167. momentum: share of a new batch in the running values. frozen: the
    four vectors never change and no batches are counted (DETR).
    """

    computed = ("num_batches_tracked",)

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1, frozen: bool = False) -> None:
        super().__init__()
        self.eps, self.momentum, self.frozen = eps, momentum, frozen
        if frozen:
            self.register_buffer("weight", torch.empty(width))
            self.register_buffer("bias", torch.empty(width))
        else:
            self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
            self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.long))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))

    def gain_and_shift(self) -> tuple[Tensor, Tensor]:
        """The running values as x * gain + shift, (C) each."""
        gain = self.weight * torch.rsqrt(self.running_var + self.eps)
        return gain, self.bias - self.running_mean * gain

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...)."""
        learns = self.training and not self.frozen
        if learns:
            self.num_batches_tracked.add_(1)
        elif x.dim() == 4 and is_inference_on_cpu(x) and not x.is_contiguous():
            gain, shift = self.gain_and_shift()
            return torch.addcmul(shift[:, None, None], x, gain[:, None, None])
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, learns, self.momentum, self.eps
        )

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        if not self.frozen:
            self.num_batches_tracked.zero_()
        return True


def freeze(part: Any) -> Any:
    """A description with all its batch norms frozen."""
    if isinstance(part, Spec):
        args = {k: freeze(v) for k, v in part.args.items()}
        return Spec(part.block, {**args, "frozen": True} if "frozen" in args else args, part.branch)
    if isinstance(part, dict):
        return {k: freeze(v) for k, v in part.items()}
    return tuple(freeze(v) for v in part) if isinstance(part, list | tuple) else part


class ChannelNorm(Block):
    """LayerNorm over the channels of maps (B, C, Y, X)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (self.width,), self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        return True


class ConvNorm(Block):
    """act(norm(conv(x))), C to `out` channels; padding None keeps the size at stride 1."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = False,
        norm: Spec | None = None,
        act: str | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if padding is None:
            sides = (kernel, kernel) if isinstance(kernel, int) else kernel
            padding = (sides[0] // 2 * dilation, sides[1] // 2 * dilation)
        self.conv = Conv2d(width, out, kernel, stride, padding, dilation, groups, bias)
        self.conv.he = True
        self.norm = make(norm)
        self.act_name, self.act = act, None if act is None else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        if self._folds(x):
            return self._folded(x)
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        if self.act is F.relu and self.gives_its_own():
            return F.relu_(y)
        return y if self.act is None else self.act(y)

    def gives_its_own(self) -> bool:
        """Whether nobody else holds the norm's result, not even its gradient: it may be changed in place."""
        norm = self.norm
        return (
            type(norm) is BatchNorm
            and not torch.compiler.is_compiling()
            and not is_watched()
            and not (norm._forward_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        )

    def _folds(self, x: Tensor) -> bool:
        """Whether the norm can become part of the convolution: nobody looks at the map between them."""
        conv, norm = self.conv, self.norm
        return (
            type(norm) is BatchNorm
            and not norm.training
            and type(conv) is Conv2d
            and x.dtype == torch.float32 == conv.weight.dtype
            and is_inference_on_cpu(x)
            and not (conv._forward_hooks or conv._forward_pre_hooks)
            and not (norm._forward_hooks or norm._forward_pre_hooks)
        )

    def _folded(self, x: Tensor) -> Tensor:
        """act(norm(conv(x))), the norm folded into the smaller of weights and map."""
        conv, act = self.conv, self.act_name
        gain, shift = self.norm.gain_and_shift()
        if conv.bias is not None:
            shift = torch.addcmul(shift, conv.bias, gain)
        if x.numel() >= conv.weight.numel():
            y = convolved(conv, x, conv.weight * gain[:, None, None, None], shift, act)
            if act is None or act in FUSED_HERE:
                return y
        else:
            y = convolved(conv, x, conv.weight, None, None)
            y = torch.addcmul(shift[:, None, None], y, gain[:, None, None])
        return y if self.act is None else F.relu_(y) if self.act is F.relu else self.act(y)


FUSED_HERE = ("relu",)


def convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, act: str | None) -> Tensor:
    """The convolution x (B, C, Y, X) of other weights, with `act` behind it where it is in FUSED_HERE.

    One that looks at one place at a time is a product of channels that lie last. Weights that are larger than
    the map are read in their own layout rather than laid out anew.
    """
    last = x.is_contiguous(memory_format=torch.channels_last)
    if last and conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        (down, right), matrix = conv.stride, weight.flatten(1)
        rows = x[:, :, ::down, ::right].permute(0, 2, 3, 1)  # (B, Y, X, C)
        y = linear_act(rows, matrix, bias, act) if act in FUSED_HERE else None
        fused = y is not None
        y = (linear(rows, matrix, bias) if y is None else y).permute(0, 3, 1, 2)
    else:
        fused, large = False, last and weight.numel() > x.numel()
        x = x.contiguous() if large else x
        y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        y = channels_last(y) if large else y
    return F.relu_(y) if act == "relu" and not fused else y


def channels_last(x: Tensor) -> Tensor:
    """The map (B, C, Y, X) laid out as a CPU's convolutions read it fastest; unchanged for gradients."""
    return x.contiguous(memory_format=torch.channels_last) if is_inference_on_cpu(x) else x


class ConvResidual(Block):
    """act(convs(x) + shortcut(x)) on maps (He et al. 2015, arXiv:1512.03385, eq. 1 and 2)."""

    site_kind = "stream"

    def __init__(self, convs: Sequence[Spec], shortcut: Spec | None = None, act: str = "relu") -> None:
        super().__init__()
        self.convs, self.shortcut, self.act = make(list(convs)), make(shortcut), activation(act)
        self.register_module("site", None)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        straight = x if self.shortcut is None else self.shortcut(x)
        y = y.add_(straight) if self._adds_in_place(y) else y + straight
        y = F.relu_(y) if self.act is F.relu and not torch.compiler.is_compiling() else self.act(y)
        return y if self.site is None else self.site(y)

    def _adds_in_place(self, y: Tensor) -> bool:
        """Whether nobody else holds the last convolution's result."""
        last = self.convs[-1] if len(self.convs) else None
        if last is None or last._forward_hooks or last._backward_hooks or last._backward_pre_hooks:
            return False
        return is_inference_on_cpu(y) or (
            type(last) is ConvNorm and last.act is None and last.gives_its_own()
        )


class Stem(Block):
    """From pixels (B, C, Y, X) to the first map: parts in turn, then maxima of 3 x 3 at stride 2."""

    site_kind = "stream"

    def __init__(self, channels: int, parts: Sequence[Spec], pool: bool = False) -> None:
        super().__init__()
        self.channels, self.pool = channels, pool
        self.parts = make(list(parts))
        self.register_module("site", None)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        check_pixels(pixels, self.channels)
        x = channels_last(pixels.to(next(self.parameters()).dtype))
        for part in self.parts:
            x = part(x)
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        return x if self.site is None else self.site(x)
