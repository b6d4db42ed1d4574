"""The command `phyla`. Nothing here loads torch before a command needs a model."""

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that spin between two products lose whole time slices to any other busy program; sleeping ones
    # cost a few percent on a quiet machine. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from phyla.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
