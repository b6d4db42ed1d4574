"""The Auto classes: a source in, the right class of the right family out."""

import os
from typing import Any, ClassVar

from phyla.checkpoints.configs import load_config, make_config, read_config
from phyla.checkpoints.resolve import resolve
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.registry import config_class, model_class, register, row


class AutoConfig:
    """Configurations by the model_type of their file."""

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> PretrainedConfig:
        """The configuration of a folder, GGUF file, hub id or weight package; other options replace keys."""
        return load_config(source, None, **options)

    @classmethod
    def for_model(cls, model_type: str, **keys: Any) -> PretrainedConfig:
        """A configuration of this model_type with the public defaults and these keys."""
        return config_class(model_type)(**keys)

    @staticmethod
    def register(model_type: str, config: type[PretrainedConfig], exist_ok: bool = False) -> None:
        """Announce a configuration class from outside; add its model with `AutoModel.register`."""
        _pending[config] = model_type


_pending: dict[type, str] = {}


class _AutoModel:
    """Base of the Auto classes: `tasks` in order of preference."""

    tasks: ClassVar[tuple[str, ...]] = ("base-model",)

    def __init__(self) -> None:
        raise ConfigError(
            f"{type(self).__name__} makes models by from_pretrained(source) or from_config(config)"
        )

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> Any:
        entry = row(config.model_type)
        task = next((t for t in cls.tasks if entry.serving(t)), None)
        if task is None:
            raise ConfigError(
                f"{cls.__name__} has no class for {config.model_type!r}, whose tasks are {entry.tasks()}; "
                "`phyla models` lists the families of each task"
            )
        return model_class(config.model_type, task, config.architectures)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, config: Any = None, **options: Any) -> Any:
        """Load the checkpoint with the class for its model_type and this task; options as for any model."""
        if options.pop("use_timm_backbone", False):
            raise ConfigError(
                f"{source!r} is to be a network of the library timm, which is not loaded: give the folder or "
                "hub id of a backbone in the public format, without use_timm_backbone"
            )
        if config is None:
            where: dict[str, Any] = {
                k: options[k]
                for k in ("revision", "cache_dir", "local_files_only", "token", "subfolder")
                if k in options
            }
            if options.get("gguf_file"):
                where["file"] = options["gguf_file"]
            config = make_config(read_config(resolve(source, **where, weights=False)), source)
        elif not isinstance(config, PretrainedConfig):
            config = load_config(config)
        kind = cls._class_for(config)
        return kind.from_pretrained(source, config=_part_for(config, kind), **options)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **options: Any) -> Any:
        """A model of this configuration with fresh random weights."""
        kind = cls._class_for(config)
        return kind.from_config(_part_for(config, kind), **options)

    @classmethod
    def register(cls, config: type[PretrainedConfig], model: type, exist_ok: bool = False) -> None:
        """Serve this task for a configuration class from outside with this model class."""
        register(_pending.get(config) or config.model_type, config, model, cls.tasks[0])


def _part_for(config: PretrainedConfig, kind: Any) -> PretrainedConfig:
    """The configuration for a class: the given one, or that of its part which the class is for."""
    wanted = kind.config_class
    parts = [v for v in config.__dict__.values() if isinstance(v, wanted)]
    return parts[0] if parts and not isinstance(config, wanted) else config


def _auto(name: str, *tasks: str) -> type:
    doc = f"Models for {tasks[0]}."
    return type(name, (_AutoModel,), {"tasks": tasks, "__doc__": doc, "__module__": __name__})


AutoModel = _auto("AutoModel", "base-model", "text-to-waveform", "mask-generation")
AutoModelForCausalLM = _auto("AutoModelForCausalLM", "causal-lm", "token-drafting")
AutoModelForMaskedLM = _auto("AutoModelForMaskedLM", "masked-lm")
AutoModelForSeq2SeqLM = _auto("AutoModelForSeq2SeqLM", "seq2seq-lm")
AutoModelForSequenceClassification = _auto("AutoModelForSequenceClassification", "sequence-classification")
AutoModelForTokenClassification = _auto("AutoModelForTokenClassification", "token-classification")
AutoModelForQuestionAnswering = _auto("AutoModelForQuestionAnswering", "question-answering")
AutoModelForMultipleChoice = _auto("AutoModelForMultipleChoice", "multiple-choice")
AutoModelForNextSentencePrediction = _auto("AutoModelForNextSentencePrediction", "next-sentence-prediction")
AutoModelForPreTraining = _auto(
    "AutoModelForPreTraining", "pretraining", "seq2seq-lm", "masked-lm", "image-text-to-text", "causal-lm"
)
AutoModelForTextEncoding = _auto("AutoModelForTextEncoding", "text-encoding")
AutoModelForImageClassification = _auto("AutoModelForImageClassification", "image-classification")
AutoModelForMaskedImageModeling = _auto("AutoModelForMaskedImageModeling", "masked-image-modeling")
AutoModelForZeroShotImageClassification = _auto(
    "AutoModelForZeroShotImageClassification", "zero-shot-image-classification"
)
AutoBackbone = _auto("AutoBackbone", "backbone")
AutoModelForAudioClassification = _auto("AutoModelForAudioClassification", "audio-classification")
AutoModelForAudioFrameClassification = _auto(
    "AutoModelForAudioFrameClassification", "audio-frame-classification"
)
AutoModelForAudioXVector = _auto("AutoModelForAudioXVector", "audio-xvector")
AutoModelForCTC = _auto("AutoModelForCTC", "ctc")
AutoModelForDepthEstimation = _auto("AutoModelForDepthEstimation", "depth-estimation")
AutoModelForDocumentQuestionAnswering = _auto(
    "AutoModelForDocumentQuestionAnswering", "document-question-answering"
)
AutoModelForImageSegmentation = _auto("AutoModelForImageSegmentation", "image-segmentation")
AutoModelForImageTextToText = _auto(
    "AutoModelForImageTextToText", "image-text-to-text", "vision2seq", "block-diffusion"
)
AutoModelForImageToImage = _auto("AutoModelForImageToImage", "image-to-image")
AutoModelForInstanceSegmentation = _auto(
    "AutoModelForInstanceSegmentation", "instance-segmentation", "universal-segmentation"
)
AutoModelForKeypointDetection = _auto("AutoModelForKeypointDetection", "keypoint-detection")
AutoModelForMaskGeneration = _auto("AutoModelForMaskGeneration", "mask-generation")
AutoModelForObjectDetection = _auto("AutoModelForObjectDetection", "object-detection")
AutoModelForSemanticSegmentation = _auto("AutoModelForSemanticSegmentation", "semantic-segmentation")
AutoModelForSpeechSeq2Seq = _auto("AutoModelForSpeechSeq2Seq", "speech-seq2seq")
AutoModelForTableQuestionAnswering = _auto(
    "AutoModelForTableQuestionAnswering", "table-question-answering", "seq2seq-lm"
)
AutoModelForTextToSpectrogram = _auto("AutoModelForTextToSpectrogram", "text-to-spectrogram")
AutoModelForTextToWaveform = _auto("AutoModelForTextToWaveform", "text-to-waveform")
AutoModelForUniversalSegmentation = _auto(
    "AutoModelForUniversalSegmentation", "universal-segmentation", "image-segmentation"
)
AutoModelForVideoClassification = _auto("AutoModelForVideoClassification", "video-classification")
AutoModelForVision2Seq = _auto("AutoModelForVision2Seq", "vision2seq", "image-text-to-text")
AutoModelForVisualQuestionAnswering = _auto(
    "AutoModelForVisualQuestionAnswering", "visual-question-answering", "image-text-to-text"
)
AutoModelForZeroShotObjectDetection = _auto(
    "AutoModelForZeroShotObjectDetection", "zero-shot-object-detection"
)
AutoModelWithLMHead = _auto(
    "AutoModelWithLMHead", "with-lm-head", "seq2seq-lm", "speech-seq2seq", "masked-lm", "causal-lm"
)
