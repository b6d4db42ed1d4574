"""Conversations with pictures and videos: rendered by a chat template, loaded, and given to the processor."""

from __future__ import annotations

from typing import Any

import numpy as np

from phyla.errors import ArgumentError, TemplateError

_SOURCES = {
    "image": ("image", "url", "path", "base64"),
    "video": ("video", "url", "path"),
    "audio": ("audio", "audio_url", "url", "path"),
}
_TEMPLATE = (
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
)


def _parts(chat: list, kind: str) -> list:
    """Where the pictures, videos or sounds of a conversation come from, in order."""
    found = []
    for message in chat:
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            if isinstance(part, dict) and part.get("type") == kind:
                found += [part[name] for name in _SOURCES[kind] if part.get(name) is not None][:1]
    return found


def frames_of(
    source: Any, num_frames: int | None, fps: float | None, backend: str | None, choose: Any
) -> Any:
    """The frames of a video (a file, a URL, an array or a list of pictures or their files)."""
    from ..image.load import load_image
    from ..image.video import load_video

    if isinstance(source, (list, tuple)) and source and isinstance(source[0], str):
        return np.stack([np.array(load_image(one)) for one in source])
    found = load_video(source, num_frames, fps, backend, choose)
    return found[0] if isinstance(found, tuple) else found


class ChatParts:
    """The part of a joint processor that knows its chat template."""

    chat_template: Any
    tokenizer: Any

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        num_frames: int | None = None,
        video_fps: float | None = None,
        video_load_backend: str | None = None,
        sample_indices_fn: Any = None,
        **options: Any,
    ) -> Any:
        """The text of one conversation or a list of them, or with `tokenize` its token ids or (return_dict)
        all inputs.

        Parts of a message's content are {"type": "text", "text": ...}, {"type": "image", "image" (or "url",
        "path", "base64"): ...} and {"type": "video", "video": ...}. Other options go to the template and
        the call.
        """
        template = self._template(chat_template)
        said = {name: options.pop(name) for name in _TEMPLATE if name in options}
        several = isinstance(conversation, (list, tuple)) and bool(conversation)
        several = several and (
            isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
        )
        chats = [getattr(chat, "messages", chat) for chat in (conversation if several else [conversation])]
        texts = self.tokenizer.apply_chat_template(
            self.prepare_chats(chats), chat_template=template, tokenize=False, return_dict=False, **said
        )
        if not tokenize:
            return texts if several else texts[0]
        bos = getattr(self.tokenizer, "bos_token", None)
        if bos is not None and texts[0].startswith(bos):
            options.setdefault("add_special_tokens", False)
        taken = (num_frames, video_fps, video_load_backend, sample_indices_fn)
        inputs = self._loaded(chats, taken)
        batch = self(text=texts if several else texts[0], **inputs, **options)  # type: ignore[operator]
        return batch if return_dict else batch["input_ids"]

    def prepare_chats(self, chats: list) -> list:
        """Hook: change conversations before they are rendered."""
        return chats

    def _template(self, chat_template: str | None) -> Any:
        stored = self.chat_template
        if stored is None:
            stored = getattr(self.tokenizer, "chat_template", None)
        if chat_template is None:
            chat_template = stored.get("default") if isinstance(stored, dict) else stored
        elif isinstance(stored, dict):
            chat_template = stored.get(chat_template, chat_template)
        if chat_template is None:
            raise TemplateError(
                "this processor has no chat template: set processor.chat_template or pass chat_template"
            )
        return chat_template

    def _loaded(self, chats: list, taken: tuple) -> dict[str, Any]:
        """The pictures, videos and sounds of conversations as inputs of the call."""
        from ..image.load import load_image

        inputs: dict[str, Any] = {}
        images = [[load_image(one) for one in _parts(chat, "image")] for chat in chats]
        if any(images):
            inputs["images"] = [group for group in images if group]
        videos = [[frames_of(one, *taken) for one in _parts(chat, "video")] for chat in chats]
        if any(videos):
            inputs["videos"] = [group for group in videos if group]
        sounds = [one for chat in chats for one in _parts(chat, "audio")]
        if sounds:
            if any(isinstance(one, str) for one in sounds):
                raise ArgumentError("a sound in a conversation must be an array: load its file first")
            row = getattr(type(self), "row", None)
            inputs["audios" if row is not None and "audios" in row.order else "audio"] = sounds
        return inputs
