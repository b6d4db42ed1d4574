"""Two tokenizers as one: one for questions, one for what is generated."""

from pathlib import Path
from typing import Any

from phyla.errors import TokenizerFileError

from .batch import BatchEncoding
from .jsonfile import read_json

_PARTS = ("question_encoder", "generator")


class TwoTokenizers:
    """Calls go to the tokenizer of questions, decoding to that of the generator."""

    def __init__(self, question_encoder, generator):
        self.question_encoder = question_encoder
        self.generator = generator
        self.current_tokenizer = question_encoder

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, config=None, **options):
        """Both tokenizers, from the folders `question_encoder_tokenizer` and `generator_tokenizer`."""
        from .auto import AutoTokenizer

        if config is None:
            path = Path(pretrained_model_name_or_path) / "config.json"
            config = read_json(path) if path.is_file() else {}
        made = {}
        for part in _PARTS:
            own = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
            made[part] = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, config=own, subfolder=f"{part}_tokenizer", **options
            )
        return cls(**made)

    @classmethod
    def _from_path(cls, found: Path, name: str, init_inputs: tuple, given: dict):
        return cls.from_pretrained(found, **given)

    def save_pretrained(self, save_directory) -> tuple[str, ...]:
        """Write both tokenizers to their folders; returns the paths of the files."""
        folder = Path(save_directory)
        if folder.is_file():
            raise TokenizerFileError(f"{folder} must be a folder, but is a file")
        parts = (getattr(self, part).save_pretrained(folder / f"{part}_tokenizer") for part in _PARTS)
        return tuple(path for paths in parts for path in paths)

    def __call__(self, *texts, **options) -> BatchEncoding:
        """Model inputs by the tokenizer in force."""
        return self.current_tokenizer(*texts, **options)

    def decode(self, *ids, **options) -> str:
        """The text of generated ids."""
        return self.generator.decode(*ids, **options)

    def batch_decode(self, *ids, **options) -> list[str]:
        """The texts of generated ids."""
        return self.generator.batch_decode(*ids, **options)

    def _switch_to_input_mode(self) -> None:
        self.current_tokenizer = self.question_encoder

    def _switch_to_target_mode(self) -> None:
        self.current_tokenizer = self.generator

    def prepare_seq2seq_batch(
        self,
        src_texts: list[str],
        tgt_texts: list[str] | None = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        padding: Any = "longest",
        return_tensors=None,
        truncation: Any = True,
        **options,
    ) -> BatchEncoding:
        """Inputs and labels of a batch of source and target texts."""
        limit = self.current_tokenizer.model_max_length
        shared = dict(padding=padding, return_tensors=return_tensors, truncation=truncation, **options)
        inputs = self(src_texts, max_length=limit if max_length is None else max_length, **shared)
        if tgt_texts is not None:
            target_limit = limit if max_target_length is None else max_target_length
            inputs["labels"] = self(text_target=tgt_texts, max_length=target_limit, **shared)["input_ids"]
        return inputs
