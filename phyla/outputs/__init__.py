"""What models return, one file a modality: fields by attribute, key or index, under the public names."""

from phyla.outputs.base import Many as Many
from phyla.outputs.base import ModelOutput as ModelOutput
from phyla.outputs.base import One as One
from phyla.outputs.multimodal import CLIPOutput as CLIPOutput
from phyla.outputs.multimodal import CLIPTextModelOutput as CLIPTextModelOutput
from phyla.outputs.multimodal import CLIPVisionModelOutput as CLIPVisionModelOutput
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
