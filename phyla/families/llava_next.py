"""LLaVA-NeXT (Liu et al. 2024, https://llava-vl.github.io/blog/2024-01-30-llava-next): images in tiles.

Public checkpoints: llava-hf/llava-v1.6-mistral-7b-hf, ibm-granite/granite-vision-3.1-2b-preview, ...
Differs from LLaVA in: an image is seen whole and in tiles of the tower's size; the tiles' vectors form one
grid,
the part that is padding is cut off, and a learned vector ends each of its rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks import Spec
from phyla.blocks.fusion import Images, ImageText, Look
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError
from phyla.families import llava
from phyla.family import family, part
from phyla.heads import Head
from phyla.heads.fusion import ImageTextLM
from phyla.outputs import LlavaNextCausalLMOutputWithPast
from phyla.skeletons import ImageTextModel

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "default"
    vision_feature_layer: int | list = -2
    image_grid_pinpoints: list = PINPOINTS
    tie_word_embeddings: bool = False
    image_seq_length: int = 576
    multimodal_projector_bias: bool = True

    PARTS = {"vision_config": "clip_vision_model", "text_config": "llama"}
    PART_DEFAULTS = {"vision_config": llava.TOWER}


def best_resolution(height: int, width: int, choices: list) -> tuple[int, int]:
    """Of the (height, width) choices the one that keeps most pixels of an image, then wastes fewest."""

    def merit(choice: list) -> tuple[int, int]:
        scale = min(choice[1] / width, choice[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - choice[0] * choice[1]

    rows, columns = max(choices, key=merit)
    return rows, columns


def cut(grid: Tensor, height: int, width: int) -> Tensor:
    """The grid (rows, columns, D) without the padding that keeping the aspect ratio of the image had cost."""
    rows, columns = grid.shape[:2]
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[margin : rows - margin]
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, margin : columns - margin]


class Tiled(ImageText):
    """An `ImageText` whose images come as tiles: the whole at first, then row by row."""

    def __init__(
        self, vision: Spec, projector: Spec, text: Spec, token: int, layers: int | list, strategy: str,
        size: tuple[int, int], choices: list, width: int,
    ) -> None:  # fmt: skip
        super().__init__(vision, projector, text, token, layers, strategy)
        self.tile, self.side = size[0], size[0] // size[1]
        self.choices, self.width = choices, width
        self.newline = nn.Parameter(torch.empty(width))

    def reset(self, std: float) -> bool:
        nn.init.normal_(self.newline, std=self.width**-0.5)
        return True

    def features(self, images: Images, look: Look) -> Tensor:
        """Vectors (all, D): of each image the whole, then its grid row by row, a newline behind each."""
        pixels = images.pixels
        if images.sizes is None:
            raise ArgumentError("images in tiles need image_sizes, their (height, width) before any resizing")
        sizes = images.sizes.tolist() if isinstance(images.sizes, Tensor) else images.sizes
        grids = [best_resolution(height, width, self.choices) for height, width in sizes]
        shapes = [(-(-rows // self.tile), -(-columns // self.tile)) for rows, columns in grids]
        counts = [rows * columns + 1 for rows, columns in shapes]
        if pixels.dim() == 5:
            pixels = torch.cat([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])
        if pixels.dim() != 4 or len(pixels) != sum(counts):
            raise ArgumentError(
                f"pixel_values must be (images, tiles, channels, height, width) with {counts} tiles "
                f"for images of the sizes {sizes}, but are {tuple(images.pixels.shape)}"
            )
        tiles = self.seen(images, pixels, look).split(counts)
        found = []
        for vectors, (height, width), (rows, columns) in zip(tiles, sizes, shapes, strict=True):
            if len(vectors) == 1:
                found += [vectors[0], self.newline[None].to(vectors)]
                continue
            grid = vectors[1:].unflatten(0, (rows, columns)).unflatten(2, (self.side, self.side))
            grid = cut(grid.transpose(1, 2).flatten(2, 3).flatten(0, 1), height, width)
            ends = self.newline.to(grid).expand(len(grid), 1, -1)
            found += [vectors[0], torch.cat((grid, ends), 1).flatten(0, 1)]
        return torch.cat(found)


def build(c: PretrainedConfig) -> Spec:
    vision = c.vision_config
    common = llava.build(c).args
    return Tiled(
        **common, size=(vision.image_size, vision.patch_size), choices=c.image_grid_pinpoints,
        width=part(c.text_config).width,
    )  # fmt: skip


def names(c: PretrainedConfig):
    return llava.names(c, llava.PROJECTOR | {"newline": "image_newline"})


HEADS: dict[str, Head] = {
    "LlavaNextForConditionalGeneration": ImageTextLM(
        text=llava.text_head, names=llava.head_names, output=LlavaNextCausalLMOutputWithPast
    )
}

family(
    "llava_next", config=Config, build=build, names=names, heads=HEADS, skeleton=ImageTextModel,
    public="LlavaNext", width=lambda c: part(c.text_config).width,
)  # fmt: skip
