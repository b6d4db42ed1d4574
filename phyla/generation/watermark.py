"""The green-list watermark (Kirchenbauer et al. 2023): settings, processor and detector, with the public
names.
"""

import functools
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError, UnknownArgumentError, nearest
from phyla.generation.checks import check_argument
from phyla.generation.logits import LogitsProcessor

_TABLE = 1_000_003
_TRIES = 40  # the likeliest tokens that the self-hash looks at
_SCHEMES = ("lefthash", "selfhash")


class BaseWatermarkingConfig:
    """Settings of a watermark."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **changes: Any) -> Any:
        """Settings from a dict, with `changes`; unknown names are errors."""
        fields = {**config_dict, **changes}
        known = cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount]
        for name in fields:
            if name not in known:
                raise UnknownArgumentError(f"{cls.__name__} has no field {name!r}.{nearest(name, known)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dict(self.__dict__)

    def to_json_string(self) -> str:
        """The fields as JSON."""
        return json.dumps(self.__dict__, indent=2) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the fields, sorted, as JSON."""
        from phyla.checkpoints.atomic import atomic_write

        text = json.dumps(self.__dict__, indent=2, sort_keys=True) + "\n"
        atomic_write(Path(json_file_path), text.encode())

    def update(self, **changes: Any) -> None:
        """Set fields that exist."""
        for name, value in changes.items():
            if name not in self.__dict__:
                raise UnknownArgumentError(
                    f"{type(self).__name__} has no field {name!r}.{nearest(name, self.__dict__)}"
                )
            setattr(self, name, value)

    def __iter__(self) -> Any:
        return iter(self.to_dict().items())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def validate(self) -> None:
        """Raise GenerationError for settings out of range."""
        raise NotImplementedError(f"{type(self).__name__} must define validate()")

    def construct_processor(self, vocab_size: int, device: Any) -> LogitsProcessor:
        """The processor that marks the text."""
        raise NotImplementedError(
            f"{type(self).__name__} must define construct_processor(vocab_size, device)"
        )


class WatermarkingConfig(BaseWatermarkingConfig):
    """Settings of the green-list watermark.

    greenlist_ratio: the share of green tokens. bias: what their scores gain. seeding_scheme: "lefthash",
    green
    depends on the last token; "selfhash", on the token itself too. context_width: tokens that seed the list.
    """

    def __init__(
        self,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ):
        self.greenlist_ratio = greenlist_ratio
        self.bias = bias
        self.hashing_key = hashing_key
        self.seeding_scheme = seeding_scheme
        self.context_width = context_width

    def validate(self) -> None:
        """Raise GenerationError for settings out of range."""
        if self.seeding_scheme not in _SCHEMES:
            raise GenerationError(f"seeding_scheme must be one of {_SCHEMES}, but is {self.seeding_scheme!r}")
        for name in ("greenlist_ratio", "bias", "hashing_key", "context_width"):
            check_argument(name, getattr(self, name))

    def construct_processor(self, vocab_size: int, device: Any) -> "WatermarkLogitsProcessor":
        """The processor that marks the text."""
        return WatermarkLogitsProcessor(vocab_size, device, **self.to_dict())


class WatermarkLogitsProcessor(LogitsProcessor):
    """Raise the scores of the green tokens, which the tokens before choose by a keyed hash."""

    def __init__(
        self,
        vocab_size: int,
        device: Any,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ):
        WatermarkingConfig(greenlist_ratio, bias, hashing_key, seeding_scheme, context_width).validate()
        self.vocab_size = vocab_size
        self.greenlist_size = int(vocab_size * greenlist_ratio)
        self.bias, self.seeding_scheme = bias, seeding_scheme
        self.hash_key, self.context_width = hashing_key, context_width
        self.rng = torch.Generator(device).manual_seed(hashing_key)
        self.fixed_table = torch.randperm(_TABLE, generator=self.rng, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] < self.context_width:
            return scores
        bias = torch.zeros_like(scores)
        for row, text in enumerate(input_ids):
            green = (
                self.green_tokens(text) if self.seeding_scheme == "lefthash" else self._own(text, scores[row])
            )
            bias[row, green] = self.bias
        return scores + bias

    def green_tokens(self, ids: Tensor) -> Tensor:
        """The green ids after ids (length,); with the self-hash, the last is the token in question."""
        ids = ids[-self.context_width :]
        if self.seeding_scheme == "selfhash":
            first, last = (self.fixed_table[i % _TABLE] + 1 for i in (ids, ids[-1]))
            seed = int((self.hash_key * first * last).min())
        else:
            seed = self.hash_key * int(ids[-1])
        self.rng.manual_seed(seed % (2**64 - 1))
        order = torch.randperm(self.vocab_size, device=ids.device, generator=self.rng)
        return order[: self.greenlist_size]

    def _own(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Which of the likeliest tokens are green by their own hash."""
        likely = scores.topk(min(_TRIES, len(scores))).indices
        green = [t for t in likely if bool((self.green_tokens(torch.cat([ids, t[None]])) == t).any())]
        return torch.stack(green) if green else likely[:0]


@dataclass
class WatermarkDetectorOutput:
    """What a detector found in each row (rows,): counts, green_fraction, z_score, p_value, prediction,
    confidence.
    """

    num_tokens_scored: np.ndarray | None = None
    num_green_tokens: np.ndarray | None = None
    green_fraction: np.ndarray | None = None
    z_score: np.ndarray | None = None
    p_value: np.ndarray | None = None
    prediction: np.ndarray | None = None
    confidence: np.ndarray | None = None


class WatermarkDetector:
    """Tells text with the green-list watermark from other text, by the settings it was made with.

    ignore_repeated_ngrams counts each n-gram of a row once. max_cache_size: how many lists are kept.
    """

    def __init__(
        self,
        model_config: Any,
        device: Any,
        watermarking_config: WatermarkingConfig | dict[str, Any],
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ):
        mark = watermarking_config
        if isinstance(mark, dict):
            mark = WatermarkingConfig.from_dict(mark)
        assert isinstance(mark, WatermarkingConfig)
        decoder = getattr(model_config, "is_encoder_decoder", False)
        self.bos_token_id = model_config.decoder_start_token_id if decoder else model_config.bos_token_id
        self.greenlist_ratio = mark.greenlist_ratio
        self.ignore_repeated_ngrams = ignore_repeated_ngrams
        self.processor = mark.construct_processor(model_config.vocab_size, device)
        self._is_green = functools.lru_cache(maxsize=max_cache_size)(self._green)

    def __call__(
        self, input_ids: Tensor, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | np.ndarray:
        """Whether each row of ids (rows, length), best without its prompt, is marked: (rows,) bool, or all
        findings.
        """
        if int(input_ids[0, 0]) == self.bos_token_id:
            input_ids = input_ids[:, 1:]
        width = self.processor.context_width
        if input_ids.shape[1] - width < 1:
            raise ArgumentError(
                f"input_ids must have more than {width} tokens, but have {input_ids.shape[1]}: "
                "the first only seed"
            )
        counts = [self._count(row) for row in input_ids.tolist()]
        total, green = (np.array(x, dtype=float) for x in zip(*counts, strict=True))
        share = self.greenlist_ratio
        z = (green - share * total) / np.sqrt(total * share * (1 - share))
        found = z > z_threshold
        if not return_dict:
            return found
        p = 1 - 0.5 * (1 + np.sign(z) * (1 - np.exp(-2 * z**2 / math.pi)))
        return WatermarkDetectorOutput(total, green, green / total, z, p, found, 1 - p)

    def _count(self, ids: list[int]) -> tuple[int, int]:
        """How many tokens were looked at, and how many of them are green."""
        size = self.processor.context_width + (self.processor.seeding_scheme == "lefthash")
        grams = Counter(tuple(ids[i : i + size]) for i in range(len(ids) - size + 1))
        weights = dict.fromkeys(grams, 1) if self.ignore_repeated_ngrams else grams
        return sum(weights.values()), sum(w for gram, w in weights.items() if self._is_green(gram))

    def _green(self, gram: tuple[int, ...]) -> bool:
        prefix = gram if self.processor.seeding_scheme == "selfhash" else gram[:-1]
        device = self.processor.fixed_table.device
        return gram[-1] in self.processor.green_tokens(torch.tensor(prefix, device=device)).tolist()


def read_watermark(config: Any) -> BaseWatermarkingConfig | None:
    """The settings of watermarking_config: an object, or a dict of its fields."""
    if config is None:
        return None
    if isinstance(config, dict):
        from phyla.generation.synthid import SynthIDTextWatermarkingConfig

        kind = SynthIDTextWatermarkingConfig if "ngram_len" in config else WatermarkingConfig
        config = kind.from_dict(config)
    if not isinstance(config, BaseWatermarkingConfig):
        raise GenerationError(
            f"watermarking_config must be a WatermarkingConfig or a dict, but is a {type(config).__name__}"
        )
    config.validate()
    return config
