"""The shapes written in signatures are true: every golden runs where jaxtyping checks each call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PHYLA_CHECK_SHAPES": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def test_a_wrong_shape_is_caught() -> None:
    code = (
        "from jaxtyping import install_import_hook\n"
        "install_import_hook('phyla.blocks', 'beartype.beartype')\n"
        "import torch; from phyla.blocks import FFN, Context, make\n"
        "ffn = make(FFN(4, 8))\n"
        "ffn(torch.zeros(2, 4), Context(positions=torch.zeros(1, 2), length=2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and "B S D" in done.stderr


@pytest.mark.slow
def test_all_goldens_keep_the_shapes_of_their_signatures() -> None:
    done = run("tests/test_goldens.py")
    assert done.returncode == 0, done.stdout[-3000:]
