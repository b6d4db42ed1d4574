"""Predicted depth brought to the size of the pictures."""

from __future__ import annotations

from typing import Any

from phyla.errors import ArgumentError, require

from .base import PostProcessing
from .boxes import check_count


def _interpolated(depth, size, mode: str, aligned: bool | None = False):
    """A (height, width) map resized by torch."""
    torch = require("torch", "torch", "post-processing")
    options = {} if aligned is None else {"align_corners": aligned}
    return torch.nn.functional.interpolate(depth[None, None], size=tuple(size), mode=mode, **options)[0, 0]


def _sizes(target_sizes, depths, what: str = "target_sizes") -> list:
    check_count(target_sizes, len(depths), what)
    return [None] * len(depths) if target_sizes is None else list(target_sizes)


class Depth(PostProcessing):
    """Depth as it is, resized where sizes are given."""

    def post_process_depth_estimation(self, outputs, target_sizes=None) -> list[dict[str, Any]]:
        """{"predicted_depth"} a picture, (height, width) of target_sizes by bicubic interpolation."""
        depths = outputs.predicted_depth
        return [
            {"predicted_depth": depth if size is None else _interpolated(depth, size, "bicubic").squeeze()}
            for depth, size in zip(depths, _sizes(target_sizes, depths))
        ]


class InverseDepth(PostProcessing):
    """Canonical inverse depth and the field of view: metric depth and focal length."""

    def post_process_depth_estimation(self, outputs, target_sizes=None) -> list[dict[str, Any]]:
        """{"predicted_depth", "field_of_view", "focal_length" in pixels of target_sizes} a picture."""
        torch = require("torch", "torch", "post-processing")
        from ..warp import _TORCH_MODES

        depths, views = outputs.predicted_depth, outputs.field_of_view
        views = [None] * len(depths) if views is None else views
        out = []
        for depth, view, size in zip(depths, views, _sizes(target_sizes, depths)):
            focal = None
            if size is not None:
                if view is not None:
                    focal = 0.5 * size[1] / torch.tan(0.5 * torch.deg2rad(view))
                    depth = depth * size[1] / focal
                mode = _TORCH_MODES[int(self.resample)]
                depth = _interpolated(depth, size, mode, None).squeeze()
            depth = 1.0 / depth.clamp(min=1e-4, max=1e4)
            out.append({"predicted_depth": depth, "field_of_view": view, "focal_length": focal})
        return out


class PaddedDepth(PostProcessing):
    """Depth of pictures that got a mirrored border, which is cut off again."""

    def post_process_depth_estimation(
        self,
        outputs,
        source_sizes=None,
        target_sizes=None,
        outputs_flipped=None,
        do_remove_padding: bool | None = None,
    ) -> list[dict[str, Any]]:
        """{"predicted_depth"} a picture; source_sizes: (height, width) as given, target_sizes: as wanted.

        outputs_flipped: outputs for the mirrored pictures, averaged in.
        """
        from ..warp import mirrored_border

        depths = outputs.predicted_depth
        if outputs_flipped is not None:
            if outputs_flipped.predicted_depth.shape != depths.shape:
                raise ArgumentError(
                    f"outputs_flipped must have the shape of outputs {tuple(depths.shape)}, "
                    f"but has {tuple(outputs_flipped.predicted_depth.shape)}"
                )
            depths = (depths + outputs_flipped.predicted_depth.flip(-1)) / 2
        cut = self.do_pad if do_remove_padding is None else do_remove_padding
        if cut and source_sizes is None:
            raise ArgumentError(
                "source_sizes must be given to cut the border off; or pass do_remove_padding=False"
            )
        out = []
        sources = _sizes(source_sizes, depths, "source_sizes")
        for depth, target, source in zip(depths, _sizes(target_sizes, depths), sources):
            if source is not None:
                top, left = mirrored_border(source) if cut else (0, 0)
                depth = _interpolated(depth, (source[0] + 2 * top, source[1] + 2 * left), "bicubic")
                depth = depth[top : depth.shape[0] - top, left : depth.shape[1] - left]
            if target is not None:
                depth = _interpolated(depth, target, "bicubic")
            out.append({"predicted_depth": depth.squeeze()})
        return out
