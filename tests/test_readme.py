"""What the README shows exists and runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PHYLA = Path(sys.executable).with_name("phyla")


def fenced(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SHELL = [line for block in fenced("sh") for line in block.splitlines() if line and not line.startswith("#")]
PYTHON = fenced("python")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_two_commands_stand_at_the_top() -> None:
    first = fenced("sh")[0].splitlines()
    assert [line.split()[:2] for line in first] == [["make", "chat"], ["make", "test"]]
    assert README.index(first[0]) < README.index("\n## ")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    text = (ROOT / document).read_text()
    named = {word for line in re.findall(r"`?make ([a-z ]+)", text) for word in line.split()[:1]}
    assert named and named <= targets


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=[block.splitlines()[0] for block in PYTHON])
def test_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "capital of France" in code:
        assert "Paris" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("phyla ")])
def test_commands_run(line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("phyla", str(PHYLA), 1)],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_links_lead_to_files() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), f"{document} links to {target}"
