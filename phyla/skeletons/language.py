"""The call of text stacks that have a part of their own for each language."""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, nearest
from phyla.heads.base import Call
from phyla.skeletons.base import IdTensor, only_one
from phyla.skeletons.text import Text, TextModel


class LanguageTextModel(TextModel):
    """Token ids and the language of each row to states; `config.languages` says which languages there are.

    Layers find the languages of a call in `ctx.notes["languages"]`; what they hold for languages is their
    `language_parameters()`.
    """

    steps_by_ids = False  # the configuration's language may be another one at the next call

    def set_default_language(self, language: str) -> None:
        """Take this language for rows without lang_ids; ArgumentError where the model does not have it."""
        self._number(language)
        self.config.default_language = language

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Keep the embeddings and what is there for languages as they are while the rest is trained."""
        held = list(self.backbone.embed.parameters())
        for layer in self.backbone.layers:
            held += layer.language_parameters()
        for parameter in held:
            parameter.requires_grad_(False)

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        lang_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Any:
        """Run the model.

        As every text stack; lang_ids (B): the number of each row's language in config.languages, by default
        that of config.default_language. Raises ArgumentError where neither is there.
        """
        given = only_one(input_ids, inputs_embeds)
        text = Text(
            input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask,
            encoder_hidden_states, encoder_attention_mask, past_key_values, use_cache, output_attentions,
            output_hidden_states, notes={"languages": self._languages(lang_ids, given)},
        )  # fmt: skip
        call = Call(
            self.config, None, None, labels, start_positions, end_positions, logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        return self._run(text, call, return_dict)

    def _languages(self, asked: Tensor | None, given: Tensor) -> int | Tensor:
        """The language of all rows, or that of each row (B,), choices being rows of their own."""
        if asked is None:
            return self._number(self.config.default_language)
        if asked.shape != given.shape[:1] or asked.dtype == torch.bool or asked.is_complex():
            raise ArgumentError(
                f"lang_ids must be the number of a language for each of {len(given)} rows, but have shape "
                f"{tuple(asked.shape)} and dtype {asked.dtype}"
            )
        languages = asked.to(device=given.device, dtype=torch.long)
        chooses = self.head_spec.task == "multiple-choice"
        return languages.repeat_interleave(given.shape[1]) if chooses else languages

    def _number(self, language: str | None) -> int:
        """Where a language stands in config.languages."""
        known = self.config.languages
        if language is None:
            raise ArgumentError(
                f"the language is unknown: pass lang_ids, or call set_default_language with one of {known}"
            )
        if language not in known:
            raise ArgumentError(
                f"{type(self).__name__} has nothing for the language {language!r}."
                f"{nearest(language, known)} It has {known}"
            )
        return known.index(language)
