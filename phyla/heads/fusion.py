"""Next-token scores of a text model that stands inside a larger one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.lm import Seq2SeqLM
from phyla.heads.loss import IGNORED, check_labels
from phyla.outputs import LlavaCausalLMOutputWithPast, ModelOutput


class _Within(HeadModule):
    """The text family's own head; labels count where the text is attended."""

    def __init__(self, head: "ImageTextLM", text: HeadModule) -> None:
        super().__init__()
        self.head, self.text = head, text

    def tie(self, backbone: nn.Module) -> None:
        self.text.tie(backbone.text)  # type: ignore[arg-type]

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        labels, mask = call.labels, call.attention_mask
        if labels is not None:
            check_labels(out.last_hidden_state.shape[:2], labels)
            if self.head.real_only and mask is not None and mask.dim() == 2:
                labels = labels.masked_fill(mask[:, -labels.shape[1] :].to(labels.device) == 0, IGNORED)
            padding = call.config.pad_token_id if self.head.drops_padding else None
            if padding is not None and call.input_ids is not None:
                labels = labels.masked_fill(call.input_ids == padding, IGNORED)
        return self.text(out, replace(call, config=call.config.get_text_config(), labels=labels))


@dataclass(frozen=True)
class ImageTextLM(Head):
    """Next-token scores of a text with images.

    text: config -> (the text part's head, its config). real_only: labels under padding do not count.
    drops_padding: nor do labels at the padding token.
    """

    task: ClassVar[str] = "image-text-to-text"
    output: type[ModelOutput] = LlavaCausalLMOutputWithPast
    text: Callable[[Any], Head] | None = None
    real_only: bool = True
    drops_padding: bool = False

    def make(self, config: Any, width: int) -> HeadModule:
        if self.text is None:
            raise TypeError("ImageTextLM needs text, the head of the text part")
        made = self.text(config).make(config.get_text_config(), width)
        if made is None:
            raise TypeError("the head of the text part must score tokens")
        return _Within(self, made)


@dataclass(frozen=True)
class ImageToText(Seq2SeqLM):
    """Next-token scores of a decoder behind an encoder that sees; labels are the decoder's targets."""

    task: ClassVar[str] = "image-text-to-text"
