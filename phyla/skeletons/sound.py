"""The calls of models that see sounds as images of mel frames, alone or beside a text tower."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.stack import DualOutput, StackOutput
from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import IdTensor, conclude, context_for, finish, finish_tower, flag
from phyla.skeletons.dual import DualModel


def hear(
    model: PreTrainedModel, stages: Any, features: Tensor | None, longer: Tensor | None,
    attentions: bool | None, states: bool | None,
) -> StackOutput:  # fmt: skip
    """The output of a sound tower for mel frames (B, C, T, M)."""
    if features is None or features.dim() != 4:
        found = None if features is None else tuple(features.shape)
        raise ArgumentError(f"input_features must be (batch, channels, frames, mels), but are {found}")
    x = stages.embed(features.to(model.dtype), longer)
    attentions = flag(attentions, model.config.output_attentions)
    ctx = context_for(model, (len(x), x.shape[1] * x.shape[2]), x.device, None, None, None, attentions, False)
    return stages.run(x, ctx, None, flag(states, model.config.output_hidden_states))


class SoundModel(PreTrainedModel):
    """Mel frames of a sound to one vector and a map of states."""

    main_input_name = "input_features"

    def forward(
        self,
        input_features: Tensor | None = None,
        is_longer: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on input_features (B, C, T, M); is_longer (B, 1): rows whose crops are fused in."""
        out = hear(self, self.backbone, input_features, is_longer, output_attentions, output_hidden_states)
        return conclude(self, out, Call(self.config), return_dict)


class SoundTextModel(DualModel):
    """Texts and sounds to vectors that can be compared."""

    def get_text_features(self, *args: Any, **options: Any) -> Tensor:
        """Vectors (B, E) of texts in the common space, at length 1."""
        return F.normalize(super().get_text_features(*args, **options), dim=-1)

    def get_audio_features(
        self,
        input_features: Tensor | None = None,
        is_longer: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Tensor:
        """Vectors (B, E) of sounds in the common space, at length 1."""
        out = hear(self, self.backbone.audio, input_features, is_longer, None, None)
        return self.head.vector("audio", out)

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        input_features: Tensor | None = None,
        is_longer: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compare input_ids (T, S) with input_features (N, C, F, M), (T, N); return_loss wants T = N."""
        states = output_hidden_states
        text = self.read(input_ids, attention_mask, position_ids, None, output_attentions, states)
        audio = hear(self, self.backbone.audio, input_features, is_longer, output_attentions, states)
        texts, sounds = len(text.last_hidden_state), len(audio.last_hidden_state)
        if return_loss and texts != sounds:
            raise ArgumentError(f"return_loss needs a text for each sound, but got {texts} for {sounds}")
        out = DualOutput(text, audio)
        fields = self.head(out, Call(self.config, input_ids, attention_mask, return_loss=bool(return_loss)))
        for name, tower in (("text_model_output", text), ("audio_model_output", audio)):
            fields[name] = finish_tower(self, tower, return_dict)
        return finish(self, fields, out, return_dict)
