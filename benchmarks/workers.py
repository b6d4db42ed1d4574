"""Processes of peers that answer one line of JSON with another."""

import json
import subprocess
import tempfile
from typing import Any

from runner import HERE

Found = dict[str, Any]


class Worker:
    """A process of benchmarks/peers/`script` in the environment of `python`, told `asked` at its start."""

    def __init__(self, python: str, script: str, asked: Found) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
        self.process = subprocess.Popen(
            [python, str(HERE / "peers" / script), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=self.errors,
        )  # fmt: skip
        self.heard()

    def heard(self) -> Found:
        """The next answer; RuntimeError where the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        status = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the worker ended with status {status} ({last}): {self.process.args}")

    def tell(self, request: Found) -> Found:
        """What it answers to a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.heard()

    def end(self) -> None:
        """Let it end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()
