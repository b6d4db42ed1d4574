"""What models return, one file a modality: fields by attribute, key or index, under the public names."""

from typing import TYPE_CHECKING

from phyla.lazy import lazy_names

# A file is imported when one of its names is first asked for: a model needs few of them.
_NAMES = {
    "audio": (
        "CausalLMOutput", "ClapAudioModelOutput", "ClapOutput", "ClapTextModelOutput",
        "EncodecDecoderOutput", "EncodecEncoderOutput", "EncodecOutput", "Seq2SeqSpectrogramOutput",
        "VitsModelOutput", "Wav2Vec2BaseModelOutput", "Wav2Vec2ForPreTrainingOutput",
        "XVectorOutput",
    ),
    "base": ("Many", "ModelOutput", "One",),
    "characters": ("CanineModelOutputWithPooling",),
    "detection": (
        "ConditionalDetrModelOutput", "ConditionalDetrObjectDetectionOutput",
        "ConditionalDetrSegmentationOutput",
        "DeformableDetrModelOutput", "DeformableDetrObjectDetectionOutput", "DetrModelOutput",
        "DetrObjectDetectionOutput", "DetrSegmentationOutput",
        "GroundingDinoModelOutput", "GroundingDinoObjectDetectionOutput",
        "Mask2FormerForUniversalSegmentationOutput", "Mask2FormerModelOutput",
        "SamImageSegmentationOutput", "TableTransformerModelOutput",
        "TableTransformerObjectDetectionOutput",
    ),
    "latent": ("PerceiverClassifierOutput", "PerceiverMaskedLMOutput", "PerceiverModelOutput",),
    "long": (
        "LEDSeq2SeqLMOutput", "LEDSeq2SeqModelOutput", "LEDSeq2SeqQuestionAnsweringModelOutput",
        "LEDSeq2SeqSequenceClassifierOutput", "LongformerBaseModelOutputWithPooling",
        "LongformerMaskedLMOutput", "LongformerMultipleChoiceModelOutput",
        "LongformerQuestionAnsweringModelOutput", "LongformerSequenceClassifierOutput",
        "LongformerTokenClassifierOutput", "ReformerModelOutput", "ReformerModelWithLMHeadOutput",
        "XLNetForMultipleChoiceOutput", "XLNetForQuestionAnsweringOutput",
        "XLNetForQuestionAnsweringSimpleOutput", "XLNetForSequenceClassificationOutput",
        "XLNetForTokenClassificationOutput", "XLNetLMHeadModelOutput", "XLNetModelOutput",
    ),
    "multimodal": (
        "BaseModelOutputWithAttentionMask", "Blip2ForConditionalGenerationModelOutput",
        "Blip2ImageTextMatchingModelOutput", "Blip2TextModelOutput", "Blip2VisionModelOutput",
        "CLIPOutput", "CLIPTextModelOutput", "CLIPVisionModelOutput",
        "DiffusionGemmaBlockDiffusionOutputWithPast", "DiffusionGemmaModelOutputWithPast",
        "Gemma3CausalLMOutputWithPast",
        "LlavaCausalLMOutputWithPast",
        "LlavaNextCausalLMOutputWithPast", "PaliGemmaCausalLMOutputWithPast",
        "Qwen2VLCausalLMOutputWithPast", "ViltForImagesAndTextClassificationOutput",
    ),
    "pretraining": (
        "AlbertForPreTrainingOutput", "ElectraForPreTrainingOutput", "FNetForPreTrainingOutput",
    ),
    "seq2seq": (
        "DPRContextEncoderOutput", "DPRQuestionEncoderOutput", "DPRReaderOutput", "MoEModelOutput",
        "PassagesOutput", "ProphetNetDecoderLMOutput", "ProphetNetDecoderModelOutput",
        "ProphetNetSeq2SeqLMOutput", "ProphetNetSeq2SeqModelOutput", "RetrievAugLMMarginOutput",
        "RetrievAugLMOutput", "Seq2SeqMoEModelOutput", "Seq2SeqMoEOutput",
    ),
    "table": ("TableQuestionAnsweringOutput",),
    "text": (
        "BaseModelOutput", "BaseModelOutputWithPast", "BaseModelOutputWithPastAndCrossAttentions",
        "BaseModelOutputWithPooling", "BaseModelOutputWithPoolingAndCrossAttentions",
        "BertForPreTrainingOutput", "CausalLMOutputWithCrossAttentions", "CausalLMOutputWithPast",
        "GPT2DoubleHeadsModelOutput", "MaskedLMOutput", "MoeCausalLMOutputWithPast",
        "MoeModelOutputWithPast", "MultipleChoiceModelOutput", "NextSentencePredictorOutput",
        "QuestionAnsweringModelOutput", "RwkvCausalLMOutput", "RwkvOutput", "Seq2SeqLMOutput",
        "Seq2SeqModelOutput", "Seq2SeqQuestionAnsweringModelOutput",
        "Seq2SeqSequenceClassifierOutput", "SequenceClassifierOutput",
        "SequenceClassifierOutputWithPast", "StateSpaceCausalLMOutput", "StateSpaceModelOutput",
        "TokenClassifierOutput",
    ),
    "vision": (
        "BackboneOutput", "BaseModelOutputWithNoAttention",
        "BaseModelOutputWithPoolingAndIntermediateActivations",
        "BaseModelOutputWithPoolingAndNoAttention", "BeitModelOutputWithPooling",
        "DeiTForImageClassificationWithTeacherOutput", "DepthEstimatorOutput",
        "HieraForImageClassificationOutput", "HieraForPreTrainingOutput", "HieraModelOutput",
        "ImageClassifierOutput", "ImageClassifierOutputWithNoAttention", "KeypointMatchingOutput",
        "MaskedImageModelingOutput", "SegFormerImageClassifierOutput", "SemanticSegmenterOutput",
        "SuperPointKeypointDescriptionOutput", "SwinImageClassifierOutput",
        "SwinMaskedImageModelingOutput", "SwinModelOutput", "ViTMAEForPreTrainingOutput",
        "ViTMAEModelOutput", "VideoMAEForPreTrainingOutput", "VitPoseEstimatorOutput",
        "YolosObjectDetectionOutput",
    ),
}  # fmt: skip
__getattr__, __dir__ = lazy_names(__name__, _NAMES)

if TYPE_CHECKING:
    from phyla.outputs.audio import *  # noqa: F403
    from phyla.outputs.base import *  # noqa: F403
    from phyla.outputs.characters import *  # noqa: F403
    from phyla.outputs.detection import *  # noqa: F403
    from phyla.outputs.latent import *  # noqa: F403
    from phyla.outputs.long import *  # noqa: F403
    from phyla.outputs.multimodal import *  # noqa: F403
    from phyla.outputs.pretraining import *  # noqa: F403
    from phyla.outputs.seq2seq import *  # noqa: F403
    from phyla.outputs.table import *  # noqa: F403
    from phyla.outputs.text import *  # noqa: F403
    from phyla.outputs.vision import *  # noqa: F403
