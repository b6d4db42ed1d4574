"""Conversations to token ids: the tokenizer's side of chat templates."""

import logging
import re

from phyla.errors import ArgumentError, TemplateError

from .tokens import SpecialTokens

log = logging.getLogger(__name__)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplates(SpecialTokens):
    """The part of a tokenizer that knows its chat templates."""

    @staticmethod
    def named_templates(value):
        """A list of {"name", "template"} as a dictionary; a single template as it is."""
        if isinstance(value, (list, tuple)):
            try:
                return {entry["name"]: entry["template"] for entry in value}
            except (TypeError, KeyError) as error:
                raise TemplateError(
                    "chat_template as a list must hold {'name', 'template'} objects"
                ) from error
        return value

    def get_chat_template(self, chat_template: str | None = None, tools: list | None = None) -> str:
        """The text of the template: the one given, the stored one of that name, or the stored default.

        With `tools` the stored template "tool_use" is preferred. Raises TemplateError where there is none.
        """
        stored = self.chat_template
        if isinstance(stored, dict):
            if chat_template is not None:
                return stored.get(chat_template, chat_template)
            if tools is not None and "tool_use" in stored:
                return stored["tool_use"]
            if "default" in stored:
                return stored["default"]
            raise TemplateError(
                f"chat_template must be one of {sorted(stored)}: there is no template named 'default'"
            )
        if chat_template is not None:
            return chat_template
        if stored is None:
            raise TemplateError(
                "this tokenizer has no chat template: set tokenizer.chat_template or pass chat_template"
            )
        return stored

    def apply_chat_template(
        self,
        conversation,
        tools: list | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding=False,
        truncation=False,
        max_length: int | None = None,
        return_tensors=None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict | None = None,
        allow_special_in_content: bool = True,
        **variables,
    ):
        """Text (`tokenize=False`), token ids, or model inputs (`return_dict=True`) of one conversation or a
        list of them.

        A conversation is a list of {"role", "content"} messages; `variables` are passed to the template.
        allow_special_in_content=False: a control token that a message spells (`<|im_end|>`) is encoded as
        the characters it is made of; what people send in should be rendered so.
        """
        from .chat import render
        from .content import PlainContent

        if return_dict and not tokenize:
            raise ArgumentError("return_dict=True needs tokenize=True")
        if return_assistant_tokens_mask and not return_dict:
            raise ArgumentError("return_assistant_tokens_mask=True needs return_dict=True")
        template = self.get_chat_template(chat_template, tools)
        if return_assistant_tokens_mask and not _GENERATION.search(template):
            log.warning(
                "the chat template has no {%% generation %%} block, so the assistant mask is all zeros"
            )
        if continue_final_message and add_generation_prompt:
            raise ArgumentError("continue_final_message and add_generation_prompt exclude each other")
        if continue_final_message and return_assistant_tokens_mask:
            raise ArgumentError("continue_final_message and return_assistant_tokens_mask exclude each other")
        batched = (
            isinstance(conversation, (list, tuple))
            and bool(conversation)
            and (isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages"))
        )
        chats = [getattr(chat, "messages", chat) for chat in (conversation if batched else [conversation])]
        plain = None if allow_special_in_content else PlainContent(self._control_tokens())
        if plain is not None:
            chats = [plain.hide(chat) for chat in chats]
        texts, spans = [], []
        for chat in chats:
            text, assistant = render(
                template,
                chat,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=variables,
                special_tokens=self.special_tokens_map,
            )
            texts.append(text)
            spans.append(assistant)
        if not tokenize:
            shown = texts if plain is None else [plain.show(text) for text in texts]
            return shown if batched else shown[0]
        if plain is not None and plain.found:
            if return_assistant_tokens_mask:
                raise ArgumentError(
                    "return_assistant_tokens_mask=True needs texts without control tokens where "
                    "allow_special_in_content=False"
                )
            rows = [self._encode_apart(plain.pieces(text)) for text in texts]
            if truncation:
                most = self.model_max_length if max_length is None else max_length
                keep = slice(-most, None) if self.truncation_side == "left" else slice(most)
                rows = [row[keep] for row in rows]
            inputs = self.pad(
                {"input_ids": rows if batched else rows[0]},
                padding,
                max_length,
                return_tensors=return_tensors,
            )
            return inputs if return_dict else inputs["input_ids"]
        inputs = self.__call__(
            texts if batched else texts[0],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=None if return_assistant_tokens_mask else return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if not return_dict:
            return inputs["input_ids"]
        if return_assistant_tokens_mask:
            rows = inputs["input_ids"] if batched else [inputs["input_ids"]]
            masks = [self._assistant_mask(inputs, i, len(row), spans[i]) for i, row in enumerate(rows)]
            inputs["assistant_masks"] = masks if batched else masks[0]
            inputs.convert_to_tensors(return_tensors)
        return inputs

    def _control_tokens(self) -> list[str]:
        """The spellings of all tokens that mean more than their characters."""
        added = [str(token) for token in self.added_tokens_decoder.values() if token.special]
        return [*self.all_special_tokens, *added]

    def _encode_apart(self, pieces: list[tuple[str, bool]]) -> list[int]:
        """Ids of texts in parts; in those that a person wrote, control tokens are mere characters."""
        return [
            i
            for text, said in pieces
            for i in self.__call__(text, add_special_tokens=False, split_special_tokens=said)["input_ids"]
        ]

    @staticmethod
    def _assistant_mask(inputs, row: int, length: int, spans) -> list[int]:
        """1 for the tokens of the characters that the assistant said."""
        mask = [0] * length
        for start, end in spans:
            first, last = inputs.char_to_token(row, start), inputs.char_to_token(row, end - 1)
            if first is None:
                break
            for i in range(first, length if last is None else last + 1):
                mask[i] = 1
        return mask
