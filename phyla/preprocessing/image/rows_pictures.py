"""Image processors of classifiers and video classifiers (see `table.Row`)."""

from __future__ import annotations

from .defaults import HALF, IMAGENET, OPENAI, cropped, resized, scaled
from .table import Row
from .transform import BICUBIC, BILINEAR, NEAREST

PICTURES: dict[str, Row] = {
    "BitImageProcessor": Row(
        {
            **resized({"shortest_edge": 224}, BICUBIC),
            **cropped(224),
            **scaled(OPENAI),
            "do_convert_rgb": True,
        },
        rgb="convert",
        resize="edges",
    ),
    "ConvNextImageProcessor": Row(
        {**resized({"shortest_edge": 384}, BILINEAR), "crop_pct": 0.875, **scaled(HALF)},
        steps=("resize_and_crop", "rescale", "normalize"),
        alias="ConvNextFeatureExtractor",
    ),
    "DeiTImageProcessor": Row(
        {**resized({"height": 256, "width": 256}, BICUBIC), **cropped(224), **scaled(HALF)},
        alias="DeiTFeatureExtractor",
    ),
    "EfficientFormerImageProcessor": Row(
        {**resized({"height": 224, "width": 224}, BICUBIC), **cropped(224), **scaled(IMAGENET)},
        resize="edges",
    ),
    "EfficientNetImageProcessor": Row(
        {
            **resized({"height": 346, "width": 346}, NEAREST),
            **cropped(289, False),
            **scaled(HALF),
            "rescale_offset": False,
            "include_top": True,
        },
        steps=("resize", "crop", "rescale", "normalize", "divide_by_std"),
    ),
    "ImageGPTImageProcessor": Row(
        {
            "clusters": None,
            **resized({"height": 256, "width": 256}, BILINEAR),
            "do_normalize": True,
            "do_color_quantize": True,
        },
        steps=("resize", "to_signed", "quantize_colours"),
        inputs=("input_ids",),
        alias="ImageGPTFeatureExtractor",
    ),
    "LevitImageProcessor": Row(
        {**resized({"shortest_edge": 224}, BICUBIC), **cropped(224), **scaled(IMAGENET)},
        resize="widened_edges",
        alias="LevitFeatureExtractor",
    ),
    "MobileNetV1ImageProcessor": Row(
        {**resized({"shortest_edge": 256}, BILINEAR), **cropped(224), **scaled(HALF)},
        resize="edges",
        alias="MobileNetV1FeatureExtractor",
    ),
    "PerceiverImageProcessor": Row(
        {**cropped(256), **resized({"height": 224, "width": 224}, BICUBIC), **scaled(IMAGENET)},
        steps=("crop_share", "resize", "rescale", "normalize"),
        alias="PerceiverFeatureExtractor",
    ),
    "PoolFormerImageProcessor": Row(
        {**resized({"shortest_edge": 224}, BICUBIC), "crop_pct": 0.9, **cropped(224), **scaled(IMAGENET)},
        resize="edges_over_crop",
        alias="PoolFormerFeatureExtractor",
    ),
    "PvtImageProcessor": Row(
        {**resized({"height": 224, "width": 224}, BILINEAR), **scaled(IMAGENET)},
        steps=("resize", "rescale", "normalize"),
    ),
    "TextNetImageProcessor": Row(
        {
            **resized({"shortest_edge": 640}, BILINEAR),
            "size_divisor": 32,
            **cropped(224, False),
            **scaled(IMAGENET),
            "do_convert_rgb": True,
        },
        rgb="convert",
        resize="raised_edges",
    ),
    "VideoMAEImageProcessor": Row(
        {**resized({"shortest_edge": 224}, BILINEAR), **cropped(224), **scaled(HALF)},
        kind="videos",
        resize="edges",
        alias="VideoMAEFeatureExtractor",
    ),
    "ViTHybridImageProcessor": Row(
        {
            **resized({"shortest_edge": 224}, BICUBIC),
            **cropped(224),
            **scaled(OPENAI),
            "do_convert_rgb": True,
        },
        rgb="convert",
        resize="edges",
    ),
    "ViTImageProcessor": Row(
        {**resized({"height": 224, "width": 224}, BILINEAR), **scaled(HALF), "do_convert_rgb": None},
        rgb="convert",
        steps=("resize", "rescale", "normalize"),
        alias="ViTFeatureExtractor",
    ),
    "VivitImageProcessor": Row(
        {
            **resized({"shortest_edge": 256}, BILINEAR),
            **cropped(224),
            **scaled(HALF, factor=1 / 127.5),
            "offset": True,
        },
        kind="videos",
        resize="edges",
    ),
}
