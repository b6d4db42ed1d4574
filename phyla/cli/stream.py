"""Prints an answer while it is being made."""

from typing import Any

from phyla.generation import TextStreamer


class Printer(TextStreamer):
    """Writes new text to stdout as soon as it is whole characters, and keeps it."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        super().on_finalized_text(text, stream_end)
