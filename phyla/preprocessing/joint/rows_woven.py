"""The public joint processors that weave pictures into text, one row each."""

from .table import Row

_AUTO: dict[str, str | tuple[str, str | None]] = {
    "image_processor": "AutoImageProcessor",
    "tokenizer": "AutoTokenizer",
}
_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
_GEMMA = ("GemmaTokenizer", "GemmaTokenizerFast")
_SIGLIP_IMAGE = ("SiglipImageProcessor", "SiglipImageProcessorFast")
_QWEN: dict[str, str | tuple[str, str | None]] = {
    "image_processor": "AutoImageProcessor",
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}
_UNPADDED = {"text": {"padding": False}}
_ALL = ("images", "text", "audio", "videos")
_SEEN = ("images", "text", "videos")
_GRID = {"tokens": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}}
_GRID_NAMES = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
_SPLIT_TEXT = {"add_special_tokens": True, "padding": False, "is_split_into_words": False}
_TILES = ("crop_to_patches", "min_patches", "max_patches")
_PANNED = {
    "do_pan_and_scan": False,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
_PICTURES = {
    "patch_size": None,
    "vision_feature_select_strategy": None,
    "image_token": "<image>",
    "num_additional_image_tokens": 0,
}
_POLICIES = {
    "dangerous": (
        "No Dangerous Content: The image shall not contain content that facilitates or encourages activities "
        "that could cause real-world harm (e.g., building firearms and explosive devices, promotion of "
        "terrorism, instructions for suicide)."
    ),
    "sexual": (
        "No Sexually Explicit content: The image shall not contain content that depicts explicit or graphic "
        "sexual acts (e.g., pornography, erotic nudity, depictions of rape or sexual assault)."
    ),
    "violence": (
        "No Violence/Gore content: The image shall not contain content that depicts shocking, sensational, "
        "or gratuitous violence (e.g., excessive blood and gore, gratuitous violence against animals, "
        "extreme injury or moment of death)."
    ),
}

WOVEN: dict[str, Row] = {
    "AriaProcessor": Row(
        "sized_crops",
        {**_AUTO, "image_processor": "AriaImageProcessor"},
        {"size_conversion": None},
        order=("text", "images"),
        needs=("text",),
        defaults={**_UNPADDED, "images": {"max_image_size": 980, "split_image": False}},
        fixed={"size_conversion": {490: 128, 980: 256}},
    ),
    "AyaVisionProcessor": Row(
        "tagged_tiles",
        _AUTO,
        {
            "patch_size": 28,
            "img_size": 364,
            "image_token": "<image>",
            "downsample_factor": 1,
            "start_of_img_token": "<|START_OF_IMG|>",
            "end_of_img_token": "<|END_OF_IMG|>",
            "img_patch_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
            "tile_token": "TILE",
            "tile_global_token": "TILE_GLOBAL",
        },
        needs=("text",),
        defaults={"text": {"padding_side": "left", "padding": True}, "images": {"crop_to_patches": True}},
        names={"images": _TILES},
    ),
    "ChameleonProcessor": Row(
        "fixed",
        {"image_processor": "ChameleonImageProcessor", "tokenizer": _LLAMA},
        {"image_seq_length": 1024, "image_token": "<image>"},
        needs=("text",),
        swaps=True,
        defaults={**_UNPADDED, "common": {"return_tensors": "pt"}},
        names={"text": ("return_for_text_completion",)},
    ),
    "ColPaliProcessor": Row(
        "retrieval",
        {"image_processor": _SIGLIP_IMAGE, "tokenizer": _GEMMA},
        defaults={
            "text": {"padding": "longest"},
            "images": {"data_format": "channels_first", "do_convert_rgb": True},
            "common": {"return_tensors": "pt"},
        },
        names={"text": ("suffix",)},
    ),
    "Emu3Processor": Row(
        "written",
        {"image_processor": "Emu3ImageProcessor", "tokenizer": ("GPT2Tokenizer", "GPT2TokenizerFast")},
        needs=("text",),
        defaults={"images": {"ratio": "1:1", "image_area": 518400}},
        names={"text": ("return_for_image_generation",), "images": ("ratio", "image_area")},
    ),
    "FuyuProcessor": Row(
        "patched",
        {**_AUTO, "image_processor": "FuyuImageProcessor"},
        swaps=True,
        defaults={
            "text": {
                "add_special_tokens": True,
                "padding": False,
                "stride": 0,
                "return_attention_mask": True,
                "return_overflowing_tokens": False,
                "return_special_tokens_mask": False,
                "return_offsets_mapping": False,
                "return_token_type_ids": False,
                "return_length": False,
                "verbose": True,
            },
        },
    ),
    "Gemma3Processor": Row(
        "panned",
        _AUTO,
        {"image_seq_length": 256},
        defaults={**_UNPADDED, "images": _PANNED},
        names={"images": tuple(_PANNED)},
    ),
    "GotOcr2Processor": Row(
        "pages",
        {**_AUTO, "tokenizer": "PreTrainedTokenizerFast"},
        needs=("images",),
        defaults={
            "text": {"padding": False, "format": False},
            "images": {
                "num_image_tokens": 256,
                "multi_page": False,
                "crop_to_patches": False,
                "min_patches": 1,
                "max_patches": 12,
            },
        },
        names={"text": ("format",), "images": ("box", "color", "num_image_tokens", "multi_page", *_TILES)},
    ),
    "Idefics2Processor": Row(
        "resampled",
        {**_AUTO, "image_processor": "Idefics2ImageProcessor"},
        {"image_seq_len": 64},
        swaps=True,
        defaults={"text": _SPLIT_TEXT},
        names={"images": ("image_seq_len",)},
    ),
    "Idefics3Processor": Row(
        "split_rows",
        {**_AUTO, "image_processor": "Idefics3ImageProcessor"},
        {"image_seq_len": 169},
        order=(*_ALL, "image_seq_len"),
        defaults={"text": _SPLIT_TEXT, "images": {"return_row_col_info": True}},
        names={"images": ("return_row_col_info", "max_image_size")},
    ),
    "IdeficsProcessor": Row(
        "interleaved",
        {"image_processor": "IdeficsImageProcessor", "tokenizer": "LlamaTokenizerFast"},
        {"image_size": 224, "add_end_of_utterance_token": None},
        defaults={
            "text": {"add_special_tokens": False, "padding": "longest", "add_eos_token": False},
            "common": {"return_tensors": "pt"},
        },
        names={
            "text": ("add_eos_token", "add_end_of_utterance_token"),
            "images": ("transform", "image_size", "image_mean", "image_std"),
        },
    ),
    "LlavaNextProcessor": Row(
        "tiles",
        _AUTO,
        _PICTURES,
        order=_ALL,
        swaps=True,
        defaults={**_UNPADDED, "images": {"do_pad": True}},
    ),
    "LlavaNextVideoProcessor": Row(
        "tiles",
        {
            "video_processor": "LlavaNextVideoImageProcessor",
            "image_processor": ("LlavaNextImageProcessor", "LlavaNextImageProcessorFast"),
            "tokenizer": _LLAMA,
        },
        {
            "patch_size": None,
            "vision_feature_select_strategy": None,
            "video_token": "<video>",
            "image_token": "<image>",
            "num_additional_image_tokens": 0,
        },
        order=_ALL,
        needs=_SEEN,
        swaps=True,
        defaults={**_UNPADDED, "common": {"return_tensors": "pt"}},
    ),
    "LlavaOnevisionProcessor": Row(
        "pooled_tiles",
        {**_AUTO, "video_processor": "LlavaOnevisionVideoProcessor"},
        {
            "num_image_tokens": None,
            "vision_feature_select_strategy": None,
            "image_token": "<image>",
            "video_token": "<video>",
        },
        order=_ALL,
        needs=_SEEN,
        defaults=_UNPADDED,
        folders=("video_processor",),
    ),
    "LlavaProcessor": Row("uniform", _AUTO, _PICTURES, swaps=True, defaults=_UNPADDED),
    "MllamaProcessor": Row(
        "cross_attended",
        {"image_processor": "MllamaImageProcessor", "tokenizer": "PreTrainedTokenizerFast"},
        names={"images": ("max_image_tiles",)},
    ),
    "PaliGemmaProcessor": Row(
        "prefixed",
        {"image_processor": _SIGLIP_IMAGE, "tokenizer": _GEMMA},
        swaps=True,
        defaults={**_UNPADDED, "images": {"data_format": "channels_first"}},
        needs=("images",),
        names={"text": ("suffix",), "images": ("do_convert_rgb",)},
    ),
    "PixtralProcessor": Row(
        "broken_rows",
        _AUTO,
        {
            "patch_size": 16,
            "spatial_merge_size": 1,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
        swaps=True,
        defaults={**_UNPADDED, "common": {"return_tensors": "pt"}},
    ),
    "Qwen2VLProcessor": Row(
        "merged_grid",
        _QWEN,
        order=_SEEN,
        needs=_SEEN,
        defaults=_UNPADDED,
        fixed=_GRID,
        names={"images": _GRID_NAMES},
    ),
    "Qwen2_5_VLProcessor": Row(
        "timed_grid",
        _QWEN,
        order=_SEEN,
        needs=_SEEN,
        defaults={**_UNPADDED, "videos": {"fps": 2.0}},
        fixed=_GRID,
        names={"images": _GRID_NAMES, "videos": ("fps",)},
    ),
    "ShieldGemma2Processor": Row(
        "judged",
        _AUTO,
        {"image_seq_length": 256, "policy_definitions": None},
        needs=("images",),
        defaults={"text": {"padding": True, "padding_side": "left"}, "images": _PANNED},
        names={"images": tuple(_PANNED)},
        fixed={"policies": _POLICIES},
    ),
    "SmolVLMProcessor": Row(
        "split_frames",
        {**_AUTO, "image_processor": "SmolVLMImageProcessor"},
        {"image_seq_len": 169},
        order=_ALL,
        needs=_SEEN,
        defaults={"text": _SPLIT_TEXT, "images": {"return_row_col_info": True}},
        names={"images": ("return_row_col_info", "max_image_size")},
    ),
    "VideoLlavaProcessor": Row(
        "with_frames",
        {**_AUTO, "image_processor": "VideoLlavaImageProcessor"},
        {
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "video_token": "<video>",
            "num_additional_image_tokens": 1,
        },
        order=("text", "images", "videos"),
        needs=_SEEN,
        defaults={"common": {"return_tensors": "pt"}},
    ),
}
