"""The command `phyla`. Nothing here loads torch before a command needs a model."""

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from phyla.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
