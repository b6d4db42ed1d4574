"""What the machine allows: a plain read of the weight files and the speed of its memory."""

import time

from measuring import limit_threads, report, seconds, settings

ASKED = settings()


def main() -> None:
    limit_threads(ASKED["threads"])
    import torch

    torch.set_num_threads(ASKED["threads"])
    results = {}
    for dtype, folder in ASKED["folders"].items():
        path = f"{folder}/model.safetensors"
        results[f"read.safetensors.{dtype}"] = seconds(lambda path=path: read(path), ASKED["repeats"])
    results["read.gguf"] = seconds(lambda: read(ASKED["gguf"]), ASKED["repeats"])
    weights = torch.ones(96, 1 << 21)  # 805 MB, far beyond any cache
    vector = torch.ones(1 << 21)
    best = min(timed(lambda: torch.mv(weights, vector)) for _ in range(7))
    results["memory.bytes_per_second"] = weights.numel() * 4 / best
    report(**results)


def read(path: str) -> bytes:
    """The whole file into memory of our own."""
    with open(path, "rb") as file:
        return file.read()


def timed(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
