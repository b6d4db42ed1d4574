"""Generation of codes of sound, each codebook a step behind the one before (arXiv:2306.05284)."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.loop import generate
from phyla.generation.plan import merge_config, new_token_limit
from phyla.generation.prompt import Prompt
from phyla.outputs import BaseModelOutput

FREE = -1


def delayed(codes: Tensor, books: int, stereo: bool, pad: int, length: int) -> tuple[Tensor, Tensor]:
    """The start of generation and the pattern (B * K, length): FREE where codes are to be written.

    codes (B * K, S) is the prompt. Codebook k begins k steps late and is padded at both ends; the two
    channels of stereo sound stand side by side and share their delay. Lengths too short for all delays have
    none.
    """
    codes = codes.reshape(-1, books, codes.shape[-1])
    rows, size = codes.shape[0], codes.shape[-1]
    steps = books // 2 if stereo else books
    if length < 2 * steps - 1:
        free = torch.full((rows * books, length), FREE, device=codes.device)
        return codes.flatten(0, 1), free
    delay = torch.arange(books, device=codes.device) // (2 if stereo else 1)
    place = torch.arange(length, device=codes.device)[None] - delay[:, None]  # (K, length)
    shown = codes.gather(2, place.clamp(0, size - 1).expand(rows, -1, -1))
    pattern = torch.where((place >= 0) & (place < size), shown, FREE)
    outside = (place <= 0) | (place > length - steps)
    pattern = torch.where(outside, pad, pattern)
    free = (pattern[:, 0] == FREE).int()
    first = int(free.argmax(-1).min()) if bool(free.any()) else size
    pattern = pattern.flatten(0, 1)
    return pattern[:, :first], pattern


def written(ids: Tensor, pattern: Tensor) -> Tensor:
    """The ids (B * K, S) where they are free, and what the pattern says elsewhere."""
    pattern = pattern[:, : ids.shape[1]]
    return torch.where(pattern == FREE, ids, pattern)


class _Delayed(nn.Module):
    """A model of codebooks as the decoding loop sees it: codes follow the pattern, guidance is applied.

    rows of ids are B * K; with guidance the model sees each row twice, with its text and without.
    """

    model: Any
    decoder: Any

    def __init__(
        self, model: Any, decoder: Any, pattern: Tensor, guidance: float | None, memory: dict[str, Any]
    ):
        super().__init__()
        self.pattern, self.guidance, self.memory, self.decoder = pattern, guidance, memory, decoder
        self.config, self.generation_config = decoder.config, GenerationConfig()
        # Not a submodule: the loop asks this one alone for devices and caches.
        self.__dict__["model"] = model
        self.prefix = "decoder_" if model.is_encoder_decoder else ""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def get_input_embeddings(self) -> nn.Module:
        """The first codebook's table."""
        return self.decoder.backbone.embed.tokens[0]

    def new_cache(self, rows: int, length: int) -> Any:
        """A cache for the model's own rows."""
        return self.model.new_cache(self._rows(rows), length)

    def _rows(self, rows: int) -> int:
        return rows // self.decoder.num_codebooks * (2 if self.guidance else 1)

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores (B * K, S, V) behind the ids, which are the newest of their rows."""
        start = 0 if past_key_values is None else past_key_values.length
        pattern = self.pattern[:, start : start + input_ids.shape[1]]
        ids = torch.where(pattern == FREE, input_ids, pattern)
        if self.guidance:
            ids = ids.repeat(2, 1)
        out = self.model(
            **{f"{self.prefix}input_ids": ids}, **self.memory, past_key_values=past_key_values,
            use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        if self.guidance:
            guided, free = out.logits.chunk(2)
            out.logits = free + (guided - free) * self.guidance
        return out


def _write(
    model: Any, decoder: Any, codes: Tensor, config: GenerationConfig, memory: dict[str, Any], given: bool,
    options: dict[str, Any],
) -> tuple[Any, Tensor]:  # fmt: skip
    """What the loop returned, and the codes (B, K, S) without the padding of the delays."""
    if (config.num_beams or 1) > 1:
        raise GenerationError("codes of sound are written greedily or by sampling: set num_beams to 1")
    books, pad = decoder.num_codebooks, _start(config, decoder.config)
    prompt = Prompt(codes, codes, None, codes.shape[1])
    limit = new_token_limit(config, prompt, None, given)
    guidance = (
        config.guidance_scale if config.guidance_scale is not None and config.guidance_scale > 1 else None
    )
    start, pattern = delayed(codes, books, decoder.config.audio_channels == 2, pad, codes.shape[1] + limit)
    if guidance:
        memory = {name: _doubled(value) for name, value in memory.items()}
    proxy = _Delayed(model, decoder, pattern, guidance, memory)
    config.update(guidance_scale=None, max_new_tokens=codes.shape[1] + limit - start.shape[1], min_length=0)
    config.num_return_sequences = 1
    out = generate(
        proxy, start, generation_config=config, attention_mask=torch.ones_like(start),
        use_model_defaults=False, **options,
    )  # fmt: skip
    ids = written(out if isinstance(out, Tensor) else out.sequences, pattern)
    padding = config.pad_token_id if config.pad_token_id is not None else pad
    return out, ids[ids != padding].view(len(ids) // books, books, -1)


def _start(config: GenerationConfig, decoder: Any) -> int:
    """The code in front of all others, which also pads the delays."""
    for value in (config.decoder_start_token_id, config.bos_token_id, decoder.bos_token_id):
        if value is not None:
            return value
    raise GenerationError("decoder_start_token_id or bos_token_id must be set to begin a sound with")


def _doubled(value: Any) -> Any:
    """Text for the guided rows, and none for the free ones."""
    if isinstance(value, BaseModelOutput):
        states: Any = value.last_hidden_state
        return BaseModelOutput(torch.cat((states, torch.zeros_like(states))))
    return torch.cat((value, torch.zeros_like(value))) if isinstance(value, Tensor) else value


def _settings(
    model: Any, config: GenerationConfig | None, settings: dict[str, Any]
) -> tuple[Any, dict, bool]:
    merged = merge_config(model, config, None)
    known = set(merged.__dict__) - {"_given"}
    asked = {name: value for name, value in settings.items() if name in known}
    merged.update(**asked)
    merged.validate()
    given = any(asked.get(name) is not None for name in ("max_length", "max_new_tokens"))
    return merged, {k: v for k, v in settings.items() if k not in asked and v is not None}, given


def _options(inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Arguments of the decoding loop among the inputs."""
    names = ("seed", "tokenizer")
    return {k: v for k, v in more.items() if v is not None} | {k: inputs.pop(k) for k in names if k in inputs}


def generate_codes(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: list | None = None,
    stopping_criteria: list | None = None,
    synced_gpus: bool | None = None,
    streamer: Any = None,
    **settings: Any,
) -> Any:
    """Codes (B, K, S) that go on from codes `inputs` (B * K, S), by default from the start alone.

    encoder_hidden_states (B, T, D) and encoder_attention_mask are what the codes are about; guidance_scale
    above 1 moves away from what would be written without them. Settings as for any `generate`.
    """
    config, inputs_of, given = _settings(model, generation_config, settings)
    codes = inputs if inputs is not None else inputs_of.pop("input_ids", None)
    memory = {
        k: inputs_of.pop(k) for k in ("encoder_hidden_states", "encoder_attention_mask") if k in inputs_of
    }
    inputs_of.pop("attention_mask", None)
    copies = config.num_return_sequences or 1
    if codes is None:
        rows = len(memory["encoder_hidden_states"]) if memory else 1
        shape = (rows * model.num_codebooks, 1)
        codes = torch.full(shape, _start(config, model.config), device=model.device)
    if copies > 1:
        codes = codes.unflatten(0, (-1, model.num_codebooks)).repeat_interleave(copies, 0).flatten(0, 1)
        memory = {k: v.repeat_interleave(copies, 0) for k, v in memory.items()}
    options = _options(
        inputs_of, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
        synced_gpus=synced_gpus, streamer=streamer,
    )  # fmt: skip
    _refuse(inputs_of)
    out, codes = _write(model, model, codes, config, memory, given, options)
    if isinstance(out, Tensor):
        return codes
    out.sequences = codes
    return out


def generate_music(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: list | None = None,
    stopping_criteria: list | None = None,
    synced_gpus: bool | None = None,
    streamer: Any = None,
    **settings: Any,
) -> Any:
    """Sound (B, C, T) for texts `inputs` (B, T), going on from sound input_values (B, C, T) where given.

    attention_mask (B, T) and padding_mask (B, T) mark what is real of text and sound. guidance_scale above 1
    moves away from what would be written without the text. Settings as for any `generate`; with
    return_dict_in_generate `sequences` is the sound.
    """
    config, given_inputs, given = _settings(model, generation_config, settings)
    ids = inputs if inputs is not None else given_inputs.pop("input_ids", None)
    mask = given_inputs.pop("attention_mask", None)
    encoded = given_inputs.pop("encoder_outputs", None)
    if encoded is None:
        if ids is None:
            ids = torch.full((1, 1), _start(config, model.config.decoder), device=model.device)
        if mask is None:
            padding = config.pad_token_id
            mask = torch.ones_like(ids)
            if padding is not None and padding not in _ends(config) and bool((ids == padding).any()):
                mask = (ids != padding).long()
        encoded = model.text_encoder(input_ids=ids, attention_mask=mask, return_dict=True)
        encoded = BaseModelOutput(encoded.last_hidden_state)
    elif isinstance(encoded, (tuple, list)):
        encoded = BaseModelOutput(encoded[0])
    decoder, books = model.decoder, model.decoder.num_codebooks
    rows = len(encoded.last_hidden_state)
    sound, padding_mask = given_inputs.pop("input_values", None), given_inputs.pop("padding_mask", None)
    codes = given_inputs.pop("decoder_input_ids", None)
    scales = None
    if codes is None and sound is not None:
        with torch.no_grad():
            codes, scales = model.codes_of(sound, padding_mask)
    first = _start(config, model.config.decoder)
    starts = torch.full((rows * books, 1), first, device=model.device)
    if codes is None:
        codes = starts
    elif not bool((codes[:, 0] == first).any()):
        codes = torch.cat((starts, codes), 1)
    memory: dict[str, Any] = {"encoder_outputs": encoded, "attention_mask": mask}
    copies = config.num_return_sequences or 1
    if copies > 1:
        codes = codes.unflatten(0, (-1, books)).repeat_interleave(copies, 0).flatten(0, 1)
        memory["encoder_outputs"] = BaseModelOutput(encoded.last_hidden_state.repeat_interleave(copies, 0))
        memory["attention_mask"] = None if mask is None else mask.repeat_interleave(copies, 0)
    options = _options(
        given_inputs, logits_processor=logits_processor, stopping_criteria=stopping_criteria,
        synced_gpus=synced_gpus, streamer=streamer,
    )  # fmt: skip
    _refuse(given_inputs)
    out, codes = _write(model, decoder, codes, config, memory, given, options)
    sides = (codes[:, ::2], codes[:, 1::2]) if model.config.decoder.audio_channels == 2 else (codes,)
    with torch.no_grad():
        heard = [model.audio_encoder.decode(side[None], scales, return_dict=False)[0] for side in sides]
    sound = torch.cat(heard, 1)
    if isinstance(out, Tensor):
        return sound
    out.sequences = sound
    return out


def _ends(config: GenerationConfig) -> list[int]:
    end = config.eos_token_id
    return [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]


def _refuse(left: dict[str, Any]) -> None:
    if left:
        raise ArgumentError(f"generate takes no {sorted(left)[0]!r} here")
