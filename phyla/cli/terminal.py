"""What goes where on the terminal: results to stdout, everything else to stderr, colour only for people."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phyla.cli import INTERRUPTED
from phyla.errors import PhylaError

P = ParamSpec("P")
R = TypeVar("R")

WIDE = 10_000  # columns of a table that nobody looks at: rows must not be folded


def output() -> Console:
    """The console of results; as wide as its content where it is no terminal."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE, no_color=True)
    return console


def messages() -> Console:
    """The console of progress and errors (stderr)."""
    return Console(stderr=True, highlight=False)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Let a command end as people expect: errors as one message and code 1, Ctrl-C with code 130."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            messages().print()
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader went away (`| head`): silence the flush that Python does on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (PhylaError, OSError) as error:
            raise typer.Exit(fail(str(error))) from error
        except typer.Exit:
            raise
        except Exception as error:
            # A fault of ours: people still get a message, and how to see where it happened.
            raise typer.Exit(fail(f"unexpected {type(error).__name__}: {error}")) from error

    return run


def fail(message: str) -> int:
    """Print an error, with the traceback where PHYLA_DEBUG is set; the code to end with."""
    console = messages()
    if os.environ.get("PHYLA_DEBUG"):
        console.print_exception()
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    return 1


def escape(text: str) -> str:
    """Text that rich prints as it is, brackets included."""
    return text.replace("[", r"\[")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with a text on stderr while something takes its time; nothing where stderr is no terminal."""
    console = messages()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, called with how much is done; nothing is drawn where that is no terminal."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def done(count: int) -> None:
            bar.update(task, completed=count)

        yield done


def piped() -> bool:
    """Whether stdin is a pipe or a file rather than a person."""
    return not sys.stdin.isatty()
