"""Runs models of phyla or Transformers on request: one script, because the public names are the same.

The runner writes one JSON line a request and reads one line back. Every model lives in a process of its own,
forked from this one when it is opened, with torch and the library imported already.
"""

import importlib
import json
import os
import statistics
import time
from typing import Any

from measuring import limit_threads, peak_bytes, settings

ASKED = settings()
LIBRARY = ASKED["library"]
CLOCK = time.process_time if ASKED["cpu_time"] else time.perf_counter
SLICE_SECONDS = 0.35  # a round repeats short calls for about this long
MOST_REPEATS = 10
ANSWERS = 2048  # values of an output that are compared


def main() -> None:
    limit_threads(ASKED["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    importlib.import_module(LIBRARY).PreTrainedModel  # noqa: B018
    if LIBRARY == "phyla":
        from phyla.fast import native

        native.load()  # compiled before the clock starts, by a compiler without threads
    answer(ready=torch.__version__)
    while (request := json.loads(os_line()))["do"] != "close":
        child = os.fork()
        if child == 0:
            serve(request)
            os._exit(0)
        os.waitpid(child, 0)


def answer(**values: Any) -> None:
    print("RESULT " + json.dumps(values), flush=True)


def serve(case: dict[str, Any]) -> None:
    """Build one model, then do as told until `close`."""
    import torch

    torch.set_num_threads(ASKED["threads"])
    try:
        running = Running(case)
        answer(parameters=running.parameters)
        while (request := json.loads(os_line()))["do"] != "close":
            answer(**getattr(running, request["do"])())
        answer(closed=1)
    except Exception as error:
        # The runner says it and goes on with the next model.
        answer(failed=f"{type(error).__name__}: {str(error)[:300]}")


def os_line() -> str:
    """A line of standard input, byte by byte: nothing that belongs to the parent may be read ahead."""
    found = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        found += byte
    return found.decode() or '{"do": "close"}'


class Running:
    """One model with its inputs, and what can be asked of it."""

    def __init__(self, case: dict[str, Any]) -> None:
        import torch

        self.torch, self.case = torch, case
        self.base = now_bytes()
        library = importlib.import_module(LIBRARY)
        torch.manual_seed(0)
        kind = getattr(library, case["class"])
        if case["folder"] and os.path.exists(os.path.join(case["folder"], "config.json")):
            self.model = kind.from_pretrained(case["folder"])
        else:
            config = library.AutoConfig.for_model(case["model_type"], **case["config"])
            self.model = kind(config)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.inputs = {name: made(torch, *how) for name, how in case["inputs"].items()}
        self.labels = {name: made(torch, *how) for name, how in case["labels"].items()}
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in case["frozen"]):
                parameter.requires_grad_(False)
        self.repeats: dict[str, int] = {}
        for parameter in self.model.parameters():
            parameter.data.sum()  # all weights lie in memory, whoever only mapped the file

    def save(self) -> dict[str, Any]:
        self.model.save_pretrained(self.case["folder"])
        return {"saved": 1}

    def ready(self) -> dict[str, Any]:
        """Inference mode, as `generate` sets it up; some values of the first output."""
        self.model.eval()
        if LIBRARY == "phyla":
            from phyla.fast import native

            self.model.pack()
            native.wait()
        reset_peak()
        began = CLOCK()
        with self.torch.inference_mode():
            out = self.model(**self.inputs)
        self.warmed("forward", began)
        first = floats(self.torch, out).float().flatten()
        step = max(1, len(first) // ANSWERS)
        return {"values": first[::step][:ANSWERS].tolist()}

    def forward(self) -> dict[str, Any]:
        with self.torch.inference_mode():
            return self.timed("forward", lambda: self.model(**self.inputs))

    def training(self) -> dict[str, Any]:
        self.model.train()
        reset_peak()
        began = CLOCK()
        self.step()
        self.warmed("train", began)
        norms = [float(p.grad.float().norm()) for p in self.model.parameters() if p.grad is not None]
        return {"gradients": len(norms), "norm": sum(n * n for n in norms) ** 0.5}

    def train(self) -> dict[str, Any]:
        return self.timed("train", self.step)

    def step(self) -> None:
        self.model.zero_grad(set_to_none=True)
        out = self.model(**self.inputs, **self.labels)
        loss = out.loss if self.labels else floats(self.torch, out).float().square().mean()
        loss.backward()

    def peak(self) -> dict[str, Any]:
        return {"bytes": peak_bytes() - self.base}

    def warmed(self, what: str, began: float) -> None:
        """Let short calls be repeated in a round, as the first of them tells."""
        self.repeats[what] = max(1, min(MOST_REPEATS, int(SLICE_SECONDS / max(CLOCK() - began, 1e-4))))

    def timed(self, what: str, function: Any) -> dict[str, Any]:
        """Median seconds of some calls."""
        times = []
        for _ in range(self.repeats[what]):
            began = CLOCK()
            function()
            times.append(CLOCK() - began)
        return {"seconds": statistics.median(times)}


def made(torch: Any, kind: str, *how: Any) -> Any:
    """An input described by its kind: the same for both libraries, for torch draws them and both have one."""
    generator = torch.Generator().manual_seed(1)
    if kind == "ids":  # below, shape
        return torch.randint(5, how[0], how[1], generator=generator)
    if kind == "whole":  # below, shape
        return torch.randint(0, how[0], how[1], generator=generator)
    if kind == "normal":
        return torch.randn(how[0], generator=generator)
    if kind == "uniform":
        return torch.rand(how[0], generator=generator)
    if kind == "ones":
        return torch.ones(how[0], dtype=getattr(torch, how[1]))
    if kind == "zeros":
        return torch.zeros(how[0], dtype=getattr(torch, how[1]))
    if kind == "with_images":  # below, shape, id of an image token, how many
        ids = torch.randint(5, how[0], how[1], generator=generator)
        ids[:, 1 : 1 + how[3]] = how[2]
        return ids
    if kind == "objects":  # images, classes: three boxes in each image
        return [
            {
                "class_labels": torch.randint(0, how[1], (3,), generator=generator),
                "boxes": torch.rand(3, 4, generator=generator) * 0.4 + 0.1,
            }
            for _ in range(how[0])
        ]
    raise ValueError(f"no input of kind {kind!r}")


def floats(torch: Any, out: Any) -> Any:
    """The first tensor of floating point in an output, without its loss."""
    for name, value in out.items():
        if name != "loss" and isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            return value
    raise ValueError("the output has no tensor of floating point")


def now_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reset_peak() -> None:
    """Let the kernel count this process's peak memory from here on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


if __name__ == "__main__":
    main()
