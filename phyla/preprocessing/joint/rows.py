"""The public joint processors for pictures beside text, sound and pages, one row each."""

from .table import Row

_PLAIN_TEXT = {
    "add_special_tokens": True,
    "padding": False,
    "stride": 0,
    "return_overflowing_tokens": False,
    "return_special_tokens_mask": False,
    "return_offsets_mapping": False,
    "return_length": False,
    "verbose": True,
}
_UNTYPED_TEXT = {**_PLAIN_TEXT, "return_token_type_ids": False}
_BERT = ("BertTokenizer", "BertTokenizerFast")
_CLIP = ("CLIPTokenizer", "CLIPTokenizerFast")
_ROBERTA = ("RobertaTokenizer", "RobertaTokenizerFast")
_T5 = ("T5Tokenizer", "T5TokenizerFast")
_CLIP_IMAGE = ("CLIPImageProcessor", "CLIPImageProcessorFast")
_BLIP_IMAGE = ("BlipImageProcessor", "BlipImageProcessorFast")
_VIT_IMAGE = ("ViTImageProcessor", "ViTImageProcessorFast")
_TEXT_FIRST = ("text", "images", "return_tensors")
_AUDIO = ("audio", "text")
_PAGE = ("images", "text", "text_pair", "boxes", "word_labels")


def _seen(image, tokenizer):
    return {"image_processor": image, "tokenizer": tokenizer}


def _heard(extractor, tokenizer):
    return {"feature_extractor": extractor, "tokenizer": tokenizer}


ROWS: dict[str, Row] = {
    "AlignProcessor": Row(
        "pair",
        _seen("EfficientNetImageProcessor", _BERT),
        join="pixels",
        swaps=True,
        defaults={"text": {"padding": "max_length", "max_length": 64}},
    ),
    "AltCLIPProcessor": Row(
        "pair", _seen(_CLIP_IMAGE, ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast")), join="pixels"
    ),
    "BarkProcessor": Row(
        "voiced",
        {"tokenizer": "AutoTokenizer"},
        {"speaker_embeddings": None},
        order=("text", "voice_preset"),
        needs=("text",),
        defaults={
            "text": {
                "max_length": 256,
                "add_special_tokens": False,
                "return_attention_mask": True,
                "return_token_type_ids": False,
            },
            "common": {"return_tensors": "pt"},
        },
    ),
    "BlipProcessor": Row("pair", _seen(_BLIP_IMAGE, _BERT), defaults={"text": _UNTYPED_TEXT}),
    "Blip2Processor": Row(
        "queried",
        _seen(_BLIP_IMAGE, "AutoTokenizer"),
        {"num_query_tokens": None},
        defaults={"text": _UNTYPED_TEXT},
        fixed={"token": "image_token", "without_pictures": True},
    ),
    "BridgeTowerProcessor": Row(
        "pair",
        _seen("BridgeTowerImageProcessor", _ROBERTA),
        defaults={"text": _PLAIN_TEXT, "images": {"do_normalize": True, "do_center_crop": True}},
    ),
    "BrosProcessor": Row("text", {"tokenizer": _BERT}, order=("text",), needs=("text",)),
    "CLIPProcessor": Row("pair", _seen(_CLIP_IMAGE, _CLIP), order=_TEXT_FIRST, join="pixels"),
    "CLIPSegProcessor": Row(
        "prompted",
        _seen(_VIT_IMAGE, _CLIP),
        order=("text", "images", "visual_prompt", "return_tensors"),
        needs=("text", "images", "visual_prompt"),
        join="pixels",
    ),
    "ChineseCLIPProcessor": Row(
        "pair", _seen("ChineseCLIPImageProcessor", _BERT), order=("text", "images"), join="pixels"
    ),
    "ClapProcessor": Row(
        "spoken",
        _heard("ClapFeatureExtractor", _ROBERTA),
        order=("text", "audios", "return_tensors"),
        needs=("text", "audios"),
    ),
    "ClvpProcessor": Row(
        "spoken",
        _heard("ClvpFeatureExtractor", "ClvpTokenizer"),
        order=("raw_speech", "text"),
        needs=("raw_speech", "text"),
        join="ids",
    ),
    "DonutProcessor": Row("reading", _seen("AutoImageProcessor", "AutoTokenizer"), join="labels"),
    "FlavaProcessor": Row("pair", _seen("FlavaImageProcessor", _BERT)),
    "GitProcessor": Row("generative", _seen("AutoImageProcessor", "AutoTokenizer"), swaps=True),
    "GroundingDinoProcessor": Row(
        "phrases",
        _seen("GroundingDinoImageProcessor", "AutoTokenizer"),
        defaults={"text": {**_PLAIN_TEXT, "return_token_type_ids": True}},
    ),
    "InstructBlipProcessor": Row(
        "queried",
        {**_seen(_BLIP_IMAGE, "AutoTokenizer"), "qformer_tokenizer": "AutoTokenizer"},
        {"num_query_tokens": None},
        defaults={"text": _UNTYPED_TEXT},
        fixed={"token": "image_token"},
        folders=("qformer_tokenizer",),
    ),
    "InstructBlipVideoProcessor": Row(
        "queried",
        {
            **_seen("InstructBlipVideoImageProcessor", "AutoTokenizer"),
            "qformer_tokenizer": "AutoTokenizer",
        },
        {"num_query_tokens": None},
        defaults={"text": _UNTYPED_TEXT},
        fixed={"token": "video_token", "frames": 4},
        folders=("qformer_tokenizer",),
    ),
    "Kosmos2Processor": Row(
        "located",
        _seen(_CLIP_IMAGE, "AutoTokenizer"),
        {"num_patch_index_tokens": 1024},
        defaults={
            "text": {
                "add_special_tokens": True,
                "padding": False,
                "stride": 0,
                "return_overflowing_tokens": False,
                "return_special_tokens_mask": False,
                "return_offsets_mapping": False,
                "return_token_type_ids": False,
                "verbose": True,
                "add_eos_token": False,
            },
            "images": {"num_image_tokens": 64},
        },
        names={
            "text": ("add_eos_token",),
            "images": ("bboxes", "num_image_tokens", "first_image_token_id"),
        },
    ),
    "LayoutLMv2Processor": Row(
        "page",
        _seen("LayoutLMv2ImageProcessor", ("LayoutLMv2Tokenizer", "LayoutLMv2TokenizerFast")),
        order=_PAGE,
        needs=("images",),
        fixed={"image": "image"},
    ),
    "LayoutLMv3Processor": Row(
        "page",
        _seen("LayoutLMv3ImageProcessor", ("LayoutLMv3Tokenizer", "LayoutLMv3TokenizerFast")),
        order=_PAGE,
        needs=("images",),
        fixed={"image": "pixel_values", "offsets": False},
    ),
    "LayoutXLMProcessor": Row(
        "page",
        _seen("LayoutLMv2ImageProcessor", ("LayoutXLMTokenizer", "LayoutXLMTokenizerFast")),
        order=_PAGE,
        needs=("images",),
        fixed={"image": "image"},
    ),
    "MCTCTProcessor": Row(
        "spoken", _heard("MCTCTFeatureExtractor", "AutoTokenizer"), order=_AUDIO, needs=_AUDIO, join="labels"
    ),
    "MarkupLMProcessor": Row(
        "markup",
        _heard("MarkupLMFeatureExtractor", ("MarkupLMTokenizer", "MarkupLMTokenizerFast")),
        order=("html_strings", "nodes", "xpaths", "node_labels", "questions"),
        needs=("html_strings", "nodes"),
    ),
    "MgpstrProcessor": Row(
        "recognition",
        {"image_processor": _VIT_IMAGE, "char_tokenizer": "MgpstrTokenizer"},
        order=_TEXT_FIRST,
        join="labels",
        fixed={"bpe": "openai-community/gpt2", "wp": "google-bert/bert-base-uncased"},
    ),
    "MusicgenMelodyProcessor": Row(
        "composing",
        _heard("MusicgenMelodyFeatureExtractor", _T5),
        order=_AUDIO,
        needs=_AUDIO,
        join="prompt",
        fixed={"takes": ("input_features",)},
    ),
    "MusicgenProcessor": Row(
        "composing",
        _heard("EncodecFeatureExtractor", _T5),
        order=_AUDIO,
        needs=_AUDIO,
        join="prompt",
        fixed={"takes": ("input_values", "padding_mask")},
    ),
    "NougatProcessor": Row("transcribing", _seen("AutoImageProcessor", "AutoTokenizer"), join="labels"),
    "OmDetTurboProcessor": Row(
        "classes",
        _seen(("DetrImageProcessor", "DetrImageProcessorFast"), "AutoTokenizer"),
        defaults={"text": {**_UNTYPED_TEXT, "padding": "max_length", "truncation": True, "max_length": 77}},
        names={"text": ("task",)},
    ),
    "OneFormerProcessor": Row(
        "universal", _seen("OneFormerImageProcessor", _CLIP), {"max_seq_length": 77, "task_seq_length": 77}
    ),
    "OwlViTProcessor": Row(
        "queries",
        _seen("OwlViTImageProcessor", _CLIP),
        order=("images", "text", "query_images"),
        needs=("images", "text", "query_images"),
        swaps=True,
        defaults={"text": {"padding": "max_length"}, "common": {"return_tensors": "np"}},
    ),
    "Owlv2Processor": Row(
        "queries",
        _seen("Owlv2ImageProcessor", _CLIP),
        order=("images", "text", "query_images"),
        needs=("images", "text", "query_images"),
        swaps=True,
        defaults={"text": {"padding": "max_length"}, "common": {"return_tensors": "np"}},
    ),
    "Pix2StructProcessor": Row(
        "drawn",
        _seen("Pix2StructImageProcessor", _T5),
        defaults={"text": _UNTYPED_TEXT, "images": {"max_patches": 2048}},
        names={"images": ("max_patches", "header_text")},
    ),
    "Qwen2AudioProcessor": Row(
        "heard",
        _heard("WhisperFeatureExtractor", "AutoTokenizer"),
        {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
        order=("text", "audios"),
        needs=("text",),
    ),
    "SamProcessor": Row(
        "points",
        {"image_processor": "SamImageProcessor"},
        order=("images", "segmentation_maps", "input_points", "input_labels", "input_boxes"),
        needs=("images",),
        defaults={"images": {"point_pad_value": -10}},
        names={"images": ("point_pad_value",)},
    ),
    "SeamlessM4TProcessor": Row(
        "either",
        _heard("SeamlessM4TFeatureExtractor", ("SeamlessM4TTokenizer", "SeamlessM4TTokenizerFast")),
        order=("text", "audios"),
        needs=("text", "audios"),
    ),
    "Siglip2Processor": Row(
        "pair",
        _seen("AutoImageProcessor", "AutoTokenizer"),
        defaults={
            "text": {"padding": "max_length", "truncation": True, "max_length": 64},
            "images": {"max_num_patches": 256, "patch_size": 16},
        },
    ),
    "SiglipProcessor": Row(
        "pair",
        _seen(("SiglipImageProcessor", "SiglipImageProcessorFast"), "AutoTokenizer"),
        order=("text", "images"),
        defaults={"common": {"return_tensors": "pt"}},
    ),
    "Pop2PianoProcessor": Row(
        "played",
        _heard("Pop2PianoFeatureExtractor", "Pop2PianoTokenizer"),
        order=("audio", "sampling_rate", "steps_per_beat", "resample", "notes"),
        needs=("audio", "notes"),
    ),
    "Speech2Text2Processor": Row(
        "spoken",
        _heard("AutoFeatureExtractor", "Speech2Text2Tokenizer"),
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "Speech2TextProcessor": Row(
        "spoken",
        _heard("Speech2TextFeatureExtractor", "Speech2TextTokenizer"),
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "SpeechT5Processor": Row(
        "converted",
        _heard("SpeechT5FeatureExtractor", "SpeechT5Tokenizer"),
        order=("audio", "text", "audio_target", "text_target"),
        needs=("audio", "text", "audio_target", "text_target"),
    ),
    "TrOCRProcessor": Row("pair", _seen("AutoImageProcessor", "AutoTokenizer"), join="labels"),
    "TvltProcessor": Row(
        "sound_and_pictures",
        {"image_processor": "TvltImageProcessor", "feature_extractor": "TvltFeatureExtractor"},
        order=("images", "audio", "images_mixed", "sampling_rate", "mask_audio", "mask_pixel"),
        needs=("images", "audio"),
    ),
    "TvpProcessor": Row(
        "grounding",
        _seen("TvpImageProcessor", _BERT),
        order=("text", "videos", "return_tensors", "max_text_length"),
        needs=("text", "videos"),
    ),
    "UdopProcessor": Row(
        "page",
        _seen("LayoutLMv3ImageProcessor", ("UdopTokenizer", "UdopTokenizerFast")),
        order=_PAGE,
        needs=(),
        fixed={"image": "pixel_values"},
        defaults={"text": {**_PLAIN_TEXT, "truncation": False}},
        names={"text": ("boxes", "word_labels")},
    ),
    "ViltProcessor": Row("pair", _seen("ViltImageProcessor", _BERT)),
    "VisionTextDualEncoderProcessor": Row(
        "pair", _seen("AutoImageProcessor", "AutoTokenizer"), order=_TEXT_FIRST, join="pixels"
    ),
    "Wav2Vec2BertProcessor": Row(
        "spoken",
        _heard("SeamlessM4TFeatureExtractor", "AutoTokenizer"),
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "Wav2Vec2Processor": Row(
        "spoken",
        _heard("Wav2Vec2FeatureExtractor", "AutoTokenizer"),
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "Wav2Vec2ProcessorWithLM": Row(
        "spoken_with_model",
        {
            "feature_extractor": ("Wav2Vec2FeatureExtractor", "SeamlessM4TFeatureExtractor"),
            "tokenizer": "Wav2Vec2CTCTokenizer",
            "decoder": "BeamSearchDecoderCTC",
        },
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "WhisperProcessor": Row(
        "spoken",
        _heard("WhisperFeatureExtractor", "WhisperTokenizer"),
        order=_AUDIO,
        needs=_AUDIO,
        join="labels",
    ),
    "XCLIPProcessor": Row(
        "pair",
        _seen("VideoMAEImageProcessor", _CLIP),
        order=("text", "videos", "return_tensors"),
        needs=("text", "videos"),
        join="pixels",
    ),
}

# What decoding with a language model gives, by its public name.
DECODED = "Wav2Vec2DecoderWithLMOutput"
