"""Pictures to be woven into a text: one a sample, padded onto a canvas, cut into patches with line breaks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from phyla.errors import ArgumentError, require

from ..feature import BatchFeature
from .base import TableProcessor
from .inputs import as_list, fetched, is_image
from .layout import size_of
from .sizes import pair
from .transform import BILINEAR, pad


class RaggedBatch(BatchFeature):
    """A batch whose values are lists (of lists) of arrays, each made a tensor by itself."""

    def convert_to_tensors(self, tensor_type=None) -> RaggedBatch:
        """Turn every array into one of `tensor_type`, in place; lists stay lists."""
        if tensor_type is None:
            return self
        for key, value in self.data.items():
            self.data[key] = _deep(value, lambda one: BatchFeature({"x": one}, tensor_type)["x"])
        return self

    def to(self, *args: Any, **kwargs: Any) -> RaggedBatch:
        """Move every tensor to a device and cast the floating ones to a dtype, in place."""
        for key, value in self.data.items():
            self.data[key] = _deep(value, lambda one: BatchFeature({"x": one}).to(*args, **kwargs)["x"])
        return self


def _deep(value, change):
    """`change` of the leaves of a list, or of a list of lists."""
    if not isinstance(value, list):
        return change(value)
    return [[change(v) for v in one] if isinstance(one, list) else change(one) for one in value]


class Streams(TableProcessor):
    """One picture a sample, shrunk onto the canvas; its size before padding is given too."""

    def _run(self, images, o: SimpleNamespace) -> dict[str, Any]:
        images = fetched(images)
        if is_image(images):
            groups = [[images]]
        else:
            groups = [list(one) if isinstance(one, (list, tuple)) else as_list(one) for one in images]
        if any(len(group) != 1 for group in groups):
            raise ArgumentError("every sample must hold exactly one picture")
        work = self._work([group[0] for group in groups], o)
        before = work.sizes()
        o.resample = BILINEAR  # the public class never reads its setting
        work.run(("resize",))
        sizes = work.sizes()
        if o.do_pad:
            height, width = pair(o.size)
            for i, (rows, columns) in enumerate(sizes):
                more = ((0, height - rows), (0, width - columns))
                work.images[i] = pad(work.images[i], *more, work.layout, o.padding_mode, o.padding_value)
        work.run(("rescale", "normalize"))
        return {
            "images": [[image] for image in work.arrange()],
            "image_unpadded_heights": [[rows] for rows, _ in sizes],
            "image_unpadded_widths": [[columns] for _, columns in sizes],
            "image_scale_factors": [[now[0] / own[0]] for own, now in zip(before, sizes)],
        }

    def _pack(self, data: dict[str, Any], return_tensors) -> BatchFeature:
        return RaggedBatch(data, return_tensors)

    def get_num_patches(self, image_height: int, image_width: int, patch_size: dict | None = None) -> int:
        """How many patches a picture has; its size must be a multiple of theirs."""
        height, width = pair(patch_size or self.patch_size, "patch_size")
        if image_height % height or image_width % width:
            raise ArgumentError(
                f"{image_height} x {image_width} must be a multiple of the patch {height} x {width}"
            )
        return (image_height // height) * (image_width // width)

    def patchify_image(self, image, patch_size: dict | None = None):
        """(batch, channels, height, width) to (batch, patches, patch pixels)."""
        height, width = pair(patch_size or self.patch_size, "patch_size")
        batch, channels, rows, columns = image.shape
        cut = image.reshape(batch, channels, rows // height, height, columns // width, width)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, channels * height * width)

    def preprocess_with_tokenizer_info(
        self,
        image_input,
        image_present,
        image_unpadded_h,
        image_unpadded_w,
        image_placeholder_id: int,
        image_newline_id: int,
        variable_sized: bool,
        patch_size: dict | None = None,
    ) -> BatchFeature:
        """Patches of padded pictures (batch, count, C, H, W), tokens that stand for them, their numbers."""
        torch = require("torch", "torch", "cutting pictures into patches")
        size = patch_size or self.patch_size
        height, width = pair(size, "patch_size")
        images: list[list] = []
        tokens: list[list] = []
        patches: list[list] = []
        for i in range(image_input.shape[0]):
            tokens.append([])
            patches.append([])
            for j in range(image_input.shape[1]):
                if not image_present[i, j]:
                    tokens[-1].append(torch.tensor([], dtype=torch.int32, device=image_input.device))
                    continue
                image = image_input[i, j]
                if variable_sized:
                    # Only whole patches that hold some of the picture stay.
                    rows = min(image.shape[1], math.ceil(image_unpadded_h[i, j] / height) * height)
                    columns = min(image.shape[2], math.ceil(image_unpadded_w[i, j] / width) * width)
                    image = image[:, :rows, :columns]
                count = self.get_num_patches(*size_of(image, "channels_first"))
                ids = torch.full([count], image_placeholder_id, dtype=torch.int32, device=image_input.device)
                if variable_sized:
                    ids = ids.reshape(-1, image.shape[2] // width)
                    ids = torch.nn.functional.pad(ids, (0, 1), value=image_newline_id).reshape(-1)
                images.append([image])
                tokens[-1].append(ids)
                patches[-1].append(self.patchify_image(image[None], size)[0])
        by_batch, by_picture = [], []
        for sample in tokens:
            start, whole, single = 0, [], []
            for ids in sample:
                places = ids == image_placeholder_id
                numbers = (places.cumsum(0) - 1).to(ids.dtype)
                whole.append(torch.where(places, numbers + start, -1))
                single.append(torch.where(places, numbers, -1))
                start += int(places.sum())
            by_batch.append(whole)
            by_picture.append(single)
        return RaggedBatch(
            {
                "images": images,
                "image_input_ids": tokens,
                "image_patches": patches,
                "image_patch_indices_per_batch": by_batch,
                "image_patch_indices_per_subsequence": by_picture,
            }
        )
