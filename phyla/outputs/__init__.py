"""What models return, one file a modality: fields by attribute, key or index, under the public names."""

from phyla.outputs.audio import CausalLMOutput as CausalLMOutput
from phyla.outputs.audio import ClapAudioModelOutput as ClapAudioModelOutput
from phyla.outputs.audio import ClapOutput as ClapOutput
from phyla.outputs.audio import ClapTextModelOutput as ClapTextModelOutput
from phyla.outputs.audio import EncodecDecoderOutput as EncodecDecoderOutput
from phyla.outputs.audio import EncodecEncoderOutput as EncodecEncoderOutput
from phyla.outputs.audio import EncodecOutput as EncodecOutput
from phyla.outputs.audio import Seq2SeqSpectrogramOutput as Seq2SeqSpectrogramOutput
from phyla.outputs.audio import VitsModelOutput as VitsModelOutput
from phyla.outputs.audio import Wav2Vec2BaseModelOutput as Wav2Vec2BaseModelOutput
from phyla.outputs.audio import Wav2Vec2ForPreTrainingOutput as Wav2Vec2ForPreTrainingOutput
from phyla.outputs.audio import XVectorOutput as XVectorOutput
from phyla.outputs.base import Many as Many
from phyla.outputs.base import ModelOutput as ModelOutput
from phyla.outputs.base import One as One
from phyla.outputs.detection import DeformableDetrModelOutput as DeformableDetrModelOutput
from phyla.outputs.detection import (
    DeformableDetrObjectDetectionOutput as DeformableDetrObjectDetectionOutput,
)
from phyla.outputs.detection import DetrModelOutput as DetrModelOutput
from phyla.outputs.detection import DetrObjectDetectionOutput as DetrObjectDetectionOutput
from phyla.outputs.detection import DetrSegmentationOutput as DetrSegmentationOutput
from phyla.outputs.detection import SamImageSegmentationOutput as SamImageSegmentationOutput
from phyla.outputs.latent import PerceiverClassifierOutput as PerceiverClassifierOutput
from phyla.outputs.latent import PerceiverMaskedLMOutput as PerceiverMaskedLMOutput
from phyla.outputs.latent import PerceiverModelOutput as PerceiverModelOutput
from phyla.outputs.long import LEDSeq2SeqLMOutput as LEDSeq2SeqLMOutput
from phyla.outputs.long import LEDSeq2SeqModelOutput as LEDSeq2SeqModelOutput
from phyla.outputs.long import (
    LEDSeq2SeqQuestionAnsweringModelOutput as LEDSeq2SeqQuestionAnsweringModelOutput,
)
from phyla.outputs.long import LEDSeq2SeqSequenceClassifierOutput as LEDSeq2SeqSequenceClassifierOutput
from phyla.outputs.long import LongformerBaseModelOutputWithPooling as LongformerBaseModelOutputWithPooling
from phyla.outputs.long import LongformerMaskedLMOutput as LongformerMaskedLMOutput
from phyla.outputs.long import LongformerMultipleChoiceModelOutput as LongformerMultipleChoiceModelOutput
from phyla.outputs.long import (
    LongformerQuestionAnsweringModelOutput as LongformerQuestionAnsweringModelOutput,
)
from phyla.outputs.long import LongformerSequenceClassifierOutput as LongformerSequenceClassifierOutput
from phyla.outputs.long import LongformerTokenClassifierOutput as LongformerTokenClassifierOutput
from phyla.outputs.characters import CanineModelOutputWithPooling as CanineModelOutputWithPooling
from phyla.outputs.long import ReformerModelOutput as ReformerModelOutput
from phyla.outputs.long import ReformerModelWithLMHeadOutput as ReformerModelWithLMHeadOutput
from phyla.outputs.long import XLNetForMultipleChoiceOutput as XLNetForMultipleChoiceOutput
from phyla.outputs.long import XLNetForQuestionAnsweringOutput as XLNetForQuestionAnsweringOutput
from phyla.outputs.long import XLNetForQuestionAnsweringSimpleOutput as XLNetForQuestionAnsweringSimpleOutput
from phyla.outputs.long import XLNetForSequenceClassificationOutput as XLNetForSequenceClassificationOutput
from phyla.outputs.long import XLNetForTokenClassificationOutput as XLNetForTokenClassificationOutput
from phyla.outputs.long import XLNetLMHeadModelOutput as XLNetLMHeadModelOutput
from phyla.outputs.long import XLNetModelOutput as XLNetModelOutput
from phyla.outputs.multimodal import BaseModelOutputWithAttentionMask as BaseModelOutputWithAttentionMask
from phyla.outputs.multimodal import (
    Blip2ForConditionalGenerationModelOutput as Blip2ForConditionalGenerationModelOutput,
)
from phyla.outputs.multimodal import Blip2ImageTextMatchingModelOutput as Blip2ImageTextMatchingModelOutput
from phyla.outputs.multimodal import Blip2TextModelOutput as Blip2TextModelOutput
from phyla.outputs.multimodal import Blip2VisionModelOutput as Blip2VisionModelOutput
from phyla.outputs.multimodal import CLIPOutput as CLIPOutput
from phyla.outputs.multimodal import CLIPTextModelOutput as CLIPTextModelOutput
from phyla.outputs.multimodal import CLIPVisionModelOutput as CLIPVisionModelOutput
from phyla.outputs.multimodal import LlavaCausalLMOutputWithPast as LlavaCausalLMOutputWithPast
from phyla.outputs.multimodal import LlavaNextCausalLMOutputWithPast as LlavaNextCausalLMOutputWithPast
from phyla.outputs.multimodal import PaliGemmaCausalLMOutputWithPast as PaliGemmaCausalLMOutputWithPast
from phyla.outputs.multimodal import Qwen2VLCausalLMOutputWithPast as Qwen2VLCausalLMOutputWithPast
from phyla.outputs.multimodal import (
    ViltForImagesAndTextClassificationOutput as ViltForImagesAndTextClassificationOutput,
)
from phyla.outputs.pretraining import AlbertForPreTrainingOutput as AlbertForPreTrainingOutput
from phyla.outputs.pretraining import ElectraForPreTrainingOutput as ElectraForPreTrainingOutput
from phyla.outputs.pretraining import FNetForPreTrainingOutput as FNetForPreTrainingOutput
from phyla.outputs.table import TableQuestionAnsweringOutput as TableQuestionAnsweringOutput
from phyla.outputs.seq2seq import DPRContextEncoderOutput as DPRContextEncoderOutput
from phyla.outputs.seq2seq import DPRQuestionEncoderOutput as DPRQuestionEncoderOutput
from phyla.outputs.seq2seq import DPRReaderOutput as DPRReaderOutput
from phyla.outputs.seq2seq import MoEModelOutput as MoEModelOutput
from phyla.outputs.seq2seq import PassagesOutput as PassagesOutput
from phyla.outputs.seq2seq import ProphetNetDecoderLMOutput as ProphetNetDecoderLMOutput
from phyla.outputs.seq2seq import ProphetNetDecoderModelOutput as ProphetNetDecoderModelOutput
from phyla.outputs.seq2seq import ProphetNetSeq2SeqLMOutput as ProphetNetSeq2SeqLMOutput
from phyla.outputs.seq2seq import ProphetNetSeq2SeqModelOutput as ProphetNetSeq2SeqModelOutput
from phyla.outputs.seq2seq import RetrievAugLMMarginOutput as RetrievAugLMMarginOutput
from phyla.outputs.seq2seq import RetrievAugLMOutput as RetrievAugLMOutput
from phyla.outputs.seq2seq import Seq2SeqMoEModelOutput as Seq2SeqMoEModelOutput
from phyla.outputs.seq2seq import Seq2SeqMoEOutput as Seq2SeqMoEOutput
from phyla.outputs.text import BaseModelOutput as BaseModelOutput
from phyla.outputs.text import BaseModelOutputWithPast as BaseModelOutputWithPast
from phyla.outputs.text import (
    BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions,
)
from phyla.outputs.text import BaseModelOutputWithPooling as BaseModelOutputWithPooling
from phyla.outputs.text import (
    BaseModelOutputWithPoolingAndCrossAttentions as BaseModelOutputWithPoolingAndCrossAttentions,
)
from phyla.outputs.text import BertForPreTrainingOutput as BertForPreTrainingOutput
from phyla.outputs.text import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
from phyla.outputs.text import CausalLMOutputWithPast as CausalLMOutputWithPast
from phyla.outputs.text import GPT2DoubleHeadsModelOutput as GPT2DoubleHeadsModelOutput
from phyla.outputs.text import MaskedLMOutput as MaskedLMOutput
from phyla.outputs.text import MoeCausalLMOutputWithPast as MoeCausalLMOutputWithPast
from phyla.outputs.text import MoeModelOutputWithPast as MoeModelOutputWithPast
from phyla.outputs.text import MultipleChoiceModelOutput as MultipleChoiceModelOutput
from phyla.outputs.text import NextSentencePredictorOutput as NextSentencePredictorOutput
from phyla.outputs.text import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from phyla.outputs.text import RwkvCausalLMOutput as RwkvCausalLMOutput
from phyla.outputs.text import RwkvOutput as RwkvOutput
from phyla.outputs.text import Seq2SeqLMOutput as Seq2SeqLMOutput
from phyla.outputs.text import Seq2SeqModelOutput as Seq2SeqModelOutput
from phyla.outputs.text import Seq2SeqQuestionAnsweringModelOutput as Seq2SeqQuestionAnsweringModelOutput
from phyla.outputs.text import Seq2SeqSequenceClassifierOutput as Seq2SeqSequenceClassifierOutput
from phyla.outputs.text import SequenceClassifierOutput as SequenceClassifierOutput
from phyla.outputs.text import SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast
from phyla.outputs.text import StateSpaceCausalLMOutput as StateSpaceCausalLMOutput
from phyla.outputs.text import StateSpaceModelOutput as StateSpaceModelOutput
from phyla.outputs.text import TokenClassifierOutput as TokenClassifierOutput
from phyla.outputs.vision import ImageClassifierOutput as ImageClassifierOutput
from phyla.outputs.vision import MaskedImageModelingOutput as MaskedImageModelingOutput
from phyla.outputs.vision import BackboneOutput as BackboneOutput
from phyla.outputs.vision import BaseModelOutputWithNoAttention as BaseModelOutputWithNoAttention
from phyla.outputs.vision import (
    BaseModelOutputWithPoolingAndNoAttention as BaseModelOutputWithPoolingAndNoAttention,
)
from phyla.outputs.vision import DepthEstimatorOutput as DepthEstimatorOutput
from phyla.outputs.vision import ImageClassifierOutputWithNoAttention as ImageClassifierOutputWithNoAttention
from phyla.outputs.vision import SemanticSegmenterOutput as SemanticSegmenterOutput
from phyla.outputs.vision import SwinImageClassifierOutput as SwinImageClassifierOutput
from phyla.outputs.vision import SwinMaskedImageModelingOutput as SwinMaskedImageModelingOutput
from phyla.outputs.vision import SwinModelOutput as SwinModelOutput
from phyla.outputs.vision import (
    DeiTForImageClassificationWithTeacherOutput as DeiTForImageClassificationWithTeacherOutput,
)
from phyla.outputs.vision import BeitModelOutputWithPooling as BeitModelOutputWithPooling
from phyla.outputs.vision import ViTMAEModelOutput as ViTMAEModelOutput
from phyla.outputs.vision import ViTMAEForPreTrainingOutput as ViTMAEForPreTrainingOutput
from phyla.outputs.vision import VideoMAEForPreTrainingOutput as VideoMAEForPreTrainingOutput
from phyla.outputs.vision import HieraModelOutput as HieraModelOutput
from phyla.outputs.vision import HieraForImageClassificationOutput as HieraForImageClassificationOutput
from phyla.outputs.vision import HieraForPreTrainingOutput as HieraForPreTrainingOutput
from phyla.outputs.vision import SegFormerImageClassifierOutput as SegFormerImageClassifierOutput
from phyla.outputs.vision import (
    BaseModelOutputWithPoolingAndIntermediateActivations as BaseModelOutputWithPoolingAndIntermediateActivations,  # noqa: E501
)
from phyla.outputs.vision import VitPoseEstimatorOutput as VitPoseEstimatorOutput
from phyla.outputs.vision import SuperPointKeypointDescriptionOutput as SuperPointKeypointDescriptionOutput
from phyla.outputs.vision import KeypointMatchingOutput as KeypointMatchingOutput
from phyla.outputs.vision import YolosObjectDetectionOutput as YolosObjectDetectionOutput
