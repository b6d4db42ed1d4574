"""phyla: a few body plans, every model.

Public names load on first use; importing phyla loads neither torch nor a family.
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

_AUTO = (
    "AutoBackbone", "AutoConfig", "AutoModel", "AutoModelForAudioClassification",
    "AutoModelForAudioFrameClassification", "AutoModelForAudioXVector", "AutoModelForCTC",
    "AutoModelForCausalLM", "AutoModelForDepthEstimation", "AutoModelForDocumentQuestionAnswering",
    "AutoModelForImageClassification", "AutoModelForImageSegmentation", "AutoModelForImageTextToText",
    "AutoModelForImageToImage", "AutoModelForInstanceSegmentation", "AutoModelForKeypointDetection",
    "AutoModelForMaskGeneration", "AutoModelForMaskedImageModeling", "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice", "AutoModelForNextSentencePrediction", "AutoModelForObjectDetection",
    "AutoModelForPreTraining", "AutoModelForQuestionAnswering", "AutoModelForSemanticSegmentation",
    "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification", "AutoModelForSpeechSeq2Seq",
    "AutoModelForTableQuestionAnswering", "AutoModelForTextEncoding", "AutoModelForTextToSpectrogram",
    "AutoModelForTextToWaveform", "AutoModelForTokenClassification", "AutoModelForUniversalSegmentation",
    "AutoModelForVideoClassification", "AutoModelForVision2Seq", "AutoModelForVisualQuestionAnswering",
    "AutoModelForZeroShotImageClassification", "AutoModelForZeroShotObjectDetection",
    "AutoModelWithLMHead",
)  # fmt: skip
_MAPPINGS = (
    "CONFIG_MAPPING", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
    "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING", "MODEL_FOR_AUDIO_XVECTOR_MAPPING",
    "MODEL_FOR_BACKBONE_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING", "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_IMAGE_SEGMENTATION_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING",
    "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING", "MODEL_FOR_KEYPOINT_DETECTION_MAPPING",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING", "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_MASK_GENERATION_MAPPING", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
    "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING", "MODEL_FOR_OBJECT_DETECTION_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING", "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_TABLE_QUESTION_ANSWERING_MAPPING", "MODEL_FOR_TEXT_ENCODING_MAPPING",
    "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING", "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING",
    "MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING", "MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING",
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING", "MODEL_FOR_VISION_2_SEQ_MAPPING",
    "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING", "MODEL_MAPPING", "MODEL_WITH_LM_HEAD_MAPPING",
)  # fmt: skip
_ERRORS = (
    "ArgumentError", "CheckpointError", "ConfigError", "CorruptFileError", "DtypeMismatchError",
    "GenerationError", "MissingExtraError", "MissingFileError", "MissingWeightsError", "NameMapError",
    "NativeBuildError", "NonFiniteLogitsError", "PhylaError", "QueueFull", "ShapeMismatchError",
    "TemplateError", "TokenizerFileError", "TokenizerInputError", "UnexpectedWeightsError",
    "UnknownArgumentError", "UnsafeFormatError", "UnsafePathError",
)  # fmt: skip
_QUANTIZATION = (
    "AwqConfig", "BitsAndBytesConfig", "CompressedTensorsConfig", "FbgemmFp8Config", "FineGrainedFP8Config",
    "GPTQConfig", "HqqConfig", "Mxfp4Config", "QuantoConfig", "TorchAoConfig",
)  # fmt: skip
_CORE = {
    "ALL_ATTENTION_FUNCTIONS": "phyla.fast.interface",
    "AttentionInterface": "phyla.fast.interface",
    "Cache": "phyla.blocks.cache",
    "ModelOutput": "phyla.outputs",
    "PreTrainedModel": "phyla.model",
    "PretrainedConfig": "phyla.config",
    "RagRetriever": "phyla.families.rag",
    "SentenceEncoder": "phyla.pipelines.sentence",
}
_NAMES: dict[str, str] = {
    **_CORE,
    **dict.fromkeys(_AUTO, "phyla.auto"),
    **dict.fromkeys(_MAPPINGS, "phyla.mappings"),
    **dict.fromkeys(_ERRORS, "phyla.errors"),
    **dict.fromkeys(_QUANTIZATION, "phyla.quantization.configs"),
}
_TABLES = ("phyla.preprocessing._names", "phyla.generation._names")


def _all_names() -> dict[str, str]:
    """Every public name and the module that has it; read from literal tables only."""
    from phyla.registry import public_names

    names = dict(_NAMES)
    for table in _TABLES:
        names.update(importlib.import_module(table).NAMES)
    names.update(public_names())
    return names


def __getattr__(name: str) -> Any:
    if name == "__all__":  # `from phyla import *`, asked of it alone: it loads every family
        return sorted(_all_names())
    module = _NAMES.get(name)
    if module is None and not name.startswith("_"):
        if importlib.util.find_spec(f"phyla.{name}") is not None:  # a package of ours
            return importlib.import_module(f"phyla.{name}")
        module = _all_names().get(name)
    if module is None:
        from phyla.errors import nearest

        raise AttributeError(
            f"phyla has no {name!r}.{nearest(name, [] if name.startswith('_') else _all_names())}"
        )
    from phyla.lazy import quick_import

    value = getattr(quick_import(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_all_names()})
