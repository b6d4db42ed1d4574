"""Every error that phyla raises on purpose: each says what must hold, what was found, where, what to do."""

import difflib
from collections.abc import Iterable


class PhylaError(Exception):
    """Root of all errors that phyla raises on purpose."""


class ConfigError(PhylaError, ValueError):
    """A model configuration that cannot describe a model, or a file of one that cannot be read."""


class ArgumentError(PhylaError, ValueError):
    """A call argument with a value, shape or dtype that cannot be used."""


class UnknownArgumentError(PhylaError, TypeError, ValueError):
    """A call argument that nothing takes; the message names the nearest one."""


class CheckpointError(PhylaError, ValueError):
    """A file of a checkpoint that cannot be used."""


class CorruptFileError(CheckpointError):
    """A damaged or falsified file; the message names file, tensor and bytes."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file or folder that should be there is not; the message lists the names looked for."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class UnsafeFormatError(CheckpointError):
    """A file whose format could run code when opened."""


class UnsafePathError(CheckpointError):
    """A path inside a checkpoint's files that points out of the checkpoint."""


class MissingWeightsError(CheckpointError):
    """Weights of the model that no file of the checkpoint holds."""


class UnexpectedWeightsError(CheckpointError):
    """Weights of a file that have no place in the model (raised when loading is strict)."""


class ShapeMismatchError(CheckpointError):
    """A stored tensor with another shape than the model's."""


class DtypeMismatchError(CheckpointError):
    """A stored tensor with a dtype that cannot stand for the model's."""


class NameMapError(PhylaError, ValueError):
    """A family's table of public names that is not total, not one-to-one, or stale."""


class TokenizerFileError(PhylaError, ValueError):
    """A tokenizer file that cannot be read; the message names the file and the field."""


class TokenizerInputError(PhylaError, ValueError, TypeError):
    """A text or id that cannot be encoded or decoded."""


class TemplateError(PhylaError, ValueError):
    """A chat template that is wrong, forbidden or over its budget."""


class GenerationError(PhylaError, ValueError):
    """Generation settings or prompts that cannot work."""


class QueueFull(PhylaError, RuntimeError):
    """An engine whose waiting line is full; wait for a result before submitting more."""


class NonFiniteLogitsError(PhylaError, ValueError):
    """A model gave NaN or infinity where scores of tokens are due; the message names step and row."""


class AdapterError(PhylaError, ValueError):
    """An adapter, its configuration or a composition of adapters that cannot be."""


class MissingExtraError(PhylaError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class NativeBuildError(PhylaError, RuntimeError):
    """The native kernels cannot be built on this machine."""


def require(module: str, extra: str, why: str):
    """Import an optional package by name, or say which extra of phyla brings it.

    Raises MissingExtraError, e.g. `reading GGUF files needs the package gguf: pip install "phyla[gguf]"`.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        root = module.split(".")[0]
        raise MissingExtraError(f'{why} needs the package {root}: pip install "phyla[{extra}]"') from error


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """A hint such as ` Did you mean "llama"?` with the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
