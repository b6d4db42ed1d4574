"""What models return: ordered fields readable by attribute, key or index, under the public names."""

from collections import OrderedDict
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor
from torch.utils._pytree import register_pytree_node
from typing_extensions import dataclass_transform


@dataclass_transform()
class ModelOutput(OrderedDict):
    """Fields that are not None, by attribute (`out.logits`), key (`out["logits"]`) or position (`out[0]`)."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(cls)
        # Captured graphs (torch.export, torch.compile) take outputs apart and put them together again.
        register_pytree_node(
            cls,
            lambda out: (list(out.values()), list(out.keys())),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
            to_dumpable_context=list,
            from_dumpable_context=list,
        )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                OrderedDict.__setitem__(self, field.name, value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return OrderedDict.__getitem__(self, key)
        return self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in self.keys():
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        OrderedDict.__setitem__(self, key, value)
        object.__setattr__(self, key, value)

    def __reduce__(self) -> tuple:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order."""
        return tuple(self[k] for k in self.keys())


Many = tuple[Tensor, ...] | None
One = Tensor | None


class BaseModelOutput(ModelOutput):
    """States of a backbone."""

    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPooling(ModelOutput):
    """States and one pooled vector a row."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPast(ModelOutput):
    """States and the cache."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """States, cache and attention to the encoder."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """States, pooled vector, cache and attention to the encoder."""

    last_hidden_state: One = None
    pooler_output: One = None
    hidden_states: Many = None
    past_key_values: Any = None
    attentions: Many = None
    cross_attentions: Many = None


class MoeModelOutputWithPast(ModelOutput):
    """States, cache and router scores."""

    last_hidden_state: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    router_logits: Many = None


class StateSpaceModelOutput(ModelOutput):
    """States of a recurrent backbone and its cache."""

    last_hidden_state: One = None
    cache_params: Any = None
    hidden_states: Many = None


class StateSpaceCausalLMOutput(ModelOutput):
    """Next-token scores of a recurrent model and its cache."""

    loss: One = None
    logits: One = None
    cache_params: Any = None
    hidden_states: Many = None


class CausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Next-token scores (B, S, V) of a decoder that may attend to an encoder."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    cross_attentions: Many = None


class MoeCausalLMOutputWithPast(ModelOutput):
    """Next-token scores (B, S, V) with the router's share of the loss."""

    loss: One = None
    aux_loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
    router_logits: Many = None


class MaskedLMOutput(ModelOutput):
    """Scores of the tokens behind masks (B, S, V)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class BertForPreTrainingOutput(ModelOutput):
    """Scores of masked tokens (B, S, V) and of the next-sentence question (B, 2)."""

    loss: One = None
    prediction_logits: One = None
    seq_relationship_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class NextSentencePredictorOutput(ModelOutput):
    """Scores (B, 2): follows, does not follow."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class SequenceClassifierOutput(ModelOutput):
    """Scores of the labels for each row (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class SequenceClassifierOutputWithPast(ModelOutput):
    """Scores of the labels for each row (B, labels), with the cache."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None


class TokenClassifierOutput(ModelOutput):
    """Scores of the labels for each token (B, S, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class MultipleChoiceModelOutput(ModelOutput):
    """Scores of the choices (B, choices)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class QuestionAnsweringModelOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class Seq2SeqModelOutput(ModelOutput):
    """States of encoder and decoder."""

    last_hidden_state: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class Seq2SeqLMOutput(ModelOutput):
    """Next-token scores of the decoder (B, S, V)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class Seq2SeqSequenceClassifierOutput(ModelOutput):
    """Scores of the labels for each row (B, labels)."""

    loss: One = None
    logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class Seq2SeqQuestionAnsweringModelOutput(ModelOutput):
    """Scores of each token as start and end of the answer (B, S)."""

    loss: One = None
    start_logits: One = None
    end_logits: One = None
    past_key_values: Any = None
    decoder_hidden_states: Many = None
    decoder_attentions: Many = None
    cross_attentions: Many = None
    encoder_last_hidden_state: One = None
    encoder_hidden_states: Many = None
    encoder_attentions: Many = None


class ImageClassifierOutput(ModelOutput):
    """Scores of the labels for each image (B, labels)."""

    loss: One = None
    logits: One = None
    hidden_states: Many = None
    attentions: Many = None


class MaskedImageModelingOutput(ModelOutput):
    """Reconstructed pixels (B, C, Y, X)."""

    loss: One = None
    reconstruction: One = None
    hidden_states: Many = None
    attentions: Many = None


class CLIPOutput(ModelOutput):
    """Similarities of images and texts and the embeddings they come from."""

    loss: One = None
    logits_per_image: One = None
    logits_per_text: One = None
    text_embeds: One = None
    image_embeds: One = None
    text_model_output: Any = None
    vision_model_output: Any = None


class CLIPTextModelOutput(ModelOutput):
    """Projected text vectors."""

    text_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class CLIPVisionModelOutput(ModelOutput):
    """Projected image vectors."""

    image_embeds: One = None
    last_hidden_state: One = None
    hidden_states: Many = None
    attentions: Many = None


class GPT2DoubleHeadsModelOutput(ModelOutput):
    """Next-token scores (B, choices, S, V) and scores of the choices (B, choices)."""

    loss: One = None
    mc_loss: One = None
    logits: One = None
    mc_logits: One = None
    past_key_values: Any = None
    hidden_states: Many = None
    attentions: Many = None
