"""Environments of the peers: made once with pinned versions, or an interpreter that is there already."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
TORCH = "torch==2.13.0"
GGUF = "gguf==0.19.0"

PINNED = {
    "transformers-4.50.3": ["transformers==4.50.3", TORCH, GGUF, "accelerate==1.15.0"],
    "transformers-5.23.0": ["transformers==5.23.0", TORCH, GGUF, "accelerate==1.15.0"],
    "llama.cpp": ["llama-cpp-python==0.3.36"],
    "openvino-genai": ["openvino-genai==2026.4.1.0"],
    "adapters-1.3.0": ["adapters==1.3.0", TORCH],
    "peft-0.21.2": ["peft==0.21.2", "transformers==4.57.6", TORCH],
}


def interpreter(name: str, given: dict[str, str]) -> str:
    """The Python that has the peer; phyla's own is the one that runs this."""
    if name in given:
        return given[name]
    if name in ("phyla", "machine"):
        return sys.executable
    folder = CACHE / "environments" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.read_text() != "\n".join(PINNED[name]):
        print(
            f"making the environment of {name} ({', '.join(PINNED[name])}) ...", file=sys.stderr, flush=True
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-qq", *PINNED[name]]
        subprocess.run(install, check=True)
        ready.write_text("\n".join(PINNED[name]))
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Versions of what matters in an environment."""
    script = (
        "import importlib.metadata as m, json, platform\n"
        "names = 'phyla torch transformers tokenizers safetensors gguf numpy '\n"
        "names += 'llama_cpp_python adapters peft openvino openvino_genai llguidance'\n"
        "names = names.split()\n"
        "found = {d.metadata['Name'].lower().replace('-', '_'): d.version for d in m.distributions()}\n"
        "kept = {n: found[n] for n in names if n in found}\n"
        "print(json.dumps({'python': platform.python_version(), **kept}))"
    )
    done = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
