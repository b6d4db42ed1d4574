"""`phyla compile`: the native kernels, built ahead of the first run."""

import sys

from phyla.cli.terminal import command, waiting

EXAMPLES = (
    "Examples:\n\n"
    "  phyla compile                    build them now, as an image of a server would\n\n"
    "  CXX=clang++ phyla compile        with a compiler of your choice"
)


@command
def compile_kernels() -> None:
    """Build the native CPU kernels now; else the first run builds them beside its work.

    Prints where they lie: they serve every process of this user on this kind of processor.
    """
    from phyla.fast import native

    with waiting("Building the kernels"):
        place = native.build()
    sys.stdout.write(f"{place}\n")
