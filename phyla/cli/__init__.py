"""The command `phyla`. Nothing here loads torch before a command needs a model."""

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line and exit with its code."""
    # Threads that spin for long lose whole time slices to any other busy program; threads that sleep at once
    # make small products four times slower. It must be said before torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from phyla.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
