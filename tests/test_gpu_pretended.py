"""The tests for GPUs on a pretended device: nothing stays on the CPU, and recorded steps do not wait."""

import subprocess
import sys
from pathlib import Path


def test_what_runs_on_a_device_runs_on_a_pretended_one() -> None:
    script = Path(__file__).with_name("pretended_cuda.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed = done.stdout.partition("FAILED ")[2]
    assert not failed, failed
    assert done.stdout.count("ok ") >= 50
