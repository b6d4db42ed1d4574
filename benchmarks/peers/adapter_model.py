"""Runs one model with adapters in phyla, adapters or peft, as benchmarks/adapters.py asks."""

import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from measuring import limit_threads, settings

ASKED = settings()
LIBRARY = ASKED["library"]
SLICE_SECONDS = 0.25  # a round repeats short calls for about this long
MOST_REPEATS = 10
PAIRS = 5


def main() -> None:
    limit_threads(ASKED["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(ASKED["threads"])
    answer(ready=torch.__version__)
    running: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                running = {"phyla": Phyla, "adapters": Hub, "peft": Peft}[LIBRARY](request)
                answer(parameters=sum(p.numel() for p in running.model.parameters()))
            else:
                answer(**getattr(running, request["do"])(*request.get("with", ())))
        except Exception as error:  # the runner says it and goes on
            answer(failed=f"{type(error).__name__}: {str(error)[:300]}")


def answer(**values: Any) -> None:
    print("RESULT " + json.dumps(values), flush=True)


class Running:
    """What is the same in all libraries; `name(i)` is the i-th LoRA adapter."""

    source = "transformers"

    def __init__(self, case: dict[str, Any]) -> None:
        import torch

        self.torch, self.case = torch, case
        torch.manual_seed(0)
        library = importlib.import_module(self.source)
        made = library.AutoConfig.for_model(case["model_type"], **case["config"])
        kind = getattr(library, case["class"])
        self.bare, self.model = kind(made).eval(), kind(made).eval()
        rows, length = case["shape"]
        self.ids = torch.randint(5, 9000, (rows, length))
        self.labels = torch.zeros(rows, dtype=torch.long) if case["classes"] else self.ids
        self.many = torch.randint(5, 9000, tuple(case["many"]))
        self.folder = tempfile.mkdtemp()
        self.prepare()

    def prepare(self) -> None:
        """Make the model ready for adapters."""

    def add(self, name: str, method: str) -> None:
        raise TypeError(f"{type(self).__name__} must define add(name, method)")

    def activate(self, name: str | None) -> None:
        raise TypeError(f"{type(self).__name__} must define activate(name)")

    def save(self, name: str) -> None:
        self.model.save_adapter(self.folder, name)

    def load(self, name: str) -> None:
        self.model.load_adapter(self.folder, load_as=name)

    def run_rows(self, count: int) -> Any:
        raise TypeError(f"{type(self).__name__} must define run_rows(count)")

    def method(self, name: str, method: str) -> dict[str, Any]:
        """Add an adapter and be timed for it."""
        return {"seconds": once(lambda: self.add(name, method))}

    def forward(self, name: str | None) -> dict[str, Any]:
        self.model.eval()
        self.activate(name)
        return self.timed(lambda: self.model(input_ids=self.ids))

    def forward_idle(self) -> dict[str, Any]:
        """The bare model and one with inactive adapters, call by call: the machine's speed drifts."""
        self.model.eval()
        self.activate(None)
        times: dict[str, list[float]] = {"bare": [], "idle": []}
        with self.torch.inference_mode():
            for number in range(2 + 2 * PAIRS):
                name, model = (("bare", self.bare), ("idle", self.model))[number % 2]
                took = once(lambda model=model: model(input_ids=self.ids))
                if number > 1:
                    times[name].append(took)
        return {name: statistics.median(found) for name, found in times.items()}

    def train(self, name: str) -> dict[str, Any]:
        """A step of what the adapter trains, without dropout."""
        self.model.train()
        self.activate(name)
        for path, parameter in self.model.named_parameters():
            parameter.requires_grad_(("lora" in path or "adapter" in path) and self.owns(path, name))
        learned = [p for p in self.model.parameters() if p.requires_grad]
        steps = self.torch.optim.AdamW(learned, lr=1e-4)

        def step() -> None:
            self.model(input_ids=self.ids, labels=self.labels).loss.backward()
            steps.step()
            steps.zero_grad()

        return {**self.timed(step, False), "trained": sum(p.numel() for p in learned)}

    def owns(self, path: str, name: str) -> bool:
        """Whether a parameter belongs to an adapter."""
        return f".{name}." in path

    def switch(self) -> dict[str, Any]:
        """From one adapter to another, both used before."""
        times = []
        for turn in range(22):
            times.append(once(lambda turn=turn: self.activate(f"l{turn % 2}")))
        return {"seconds": statistics.median(times[2:])}

    def fill(self) -> dict[str, Any]:
        """Up to the 100th LoRA adapter; seconds of loading a 2nd, and of adding and loading the 100th."""
        self.model.eval()
        self.save("l0")
        found = {"load_1": once(lambda: self.load("first"))}
        for number in range(2, 95):
            self.add(f"l{number}", "lora")
        found["add_100"] = statistics.median(
            once(lambda n=n: self.add(f"l{n}", "lora")) for n in range(95, 100)
        )
        found["load_100"] = statistics.median(once(lambda n=n: self.load(f"m{n}")) for n in range(3))
        shutil.rmtree(self.folder)
        return found

    def rows(self, count: int) -> dict[str, Any]:
        """One batch whose rows have `count` different LoRA adapters."""
        return self.timed(lambda: self.run_rows(count))

    def names(self, count: int) -> list[str]:
        return [f"l{row * count // len(self.many)}" for row in range(len(self.many))]

    def timed(self, function: Callable[[], Any], inference: bool = True) -> dict[str, Any]:
        """Median seconds of some calls after one to warm up."""
        with self.torch.inference_mode(inference):
            first = once(function)
            repeats = max(1, min(MOST_REPEATS, int(SLICE_SECONDS / max(first, 1e-4))))
            return {"seconds": statistics.median(once(function) for _ in range(repeats))}


def once(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


class Phyla(Running):
    """phyla, packed and with its kernels, as `generate` runs it."""

    source = "phyla"

    def prepare(self) -> None:
        from phyla.fast import native

        importlib.import_module("phyla.adapters")
        native.load()
        for model in (self.bare, self.model):
            model.pack()
        native.wait()

    def add(self, name: str, method: str) -> None:
        self.model.add_adapter(name, config="lora[r=8]" if method == "lora" else method)

    def activate(self, name: str | None) -> None:
        self.model.set_active_adapters(name)

    def owns(self, path: str, name: str) -> bool:
        return path.startswith(f"adapters.entries._{name}.")

    def run_rows(self, count: int) -> Any:
        return self.model(input_ids=self.many, adapter_names=self.names(count))


class Hub(Running):
    """AdapterHub's adapters; rows go to adapters by BatchSplit; `init` counts as adding the 1st."""

    made = False

    def prepare(self) -> None:
        importlib.import_module("adapters")

    def add(self, name: str, method: str) -> None:
        import adapters

        if not self.made:
            adapters.init(self.model)
            self.made = True
        made = adapters.LoRAConfig(r=8, alpha=8) if method == "lora" else method
        self.model.add_adapter(name, config=made)

    def activate(self, name: str | None) -> None:
        self.model.set_active_adapters(name)

    def run_rows(self, count: int) -> Any:
        from adapters.composition import BatchSplit

        size = len(self.many) // count
        setup = (
            "l0" if count == 1 else BatchSplit(*(f"l{i}" for i in range(count)), batch_sizes=[size] * count)
        )
        self.model.set_active_adapters(setup)
        return self.model(input_ids=self.many)


class Peft(Running):
    """PEFT's LoRA."""

    wrapped = False

    def prepare(self) -> None:
        importlib.import_module("peft")

    def add(self, name: str, method: str) -> None:
        import peft

        targets = ["query", "value"] if self.case["classes"] else ["q_proj", "v_proj"]
        made = peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets)
        if self.wrapped:
            self.model.add_adapter(name, made)
        else:
            self.model, self.wrapped = peft.get_peft_model(self.model, made, adapter_name=name).eval(), True

    def activate(self, name: str | None) -> None:
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)

    def save(self, name: str) -> None:
        self.model.save_pretrained(self.folder, selected_adapters=[name])

    def load(self, name: str) -> None:
        self.model.load_adapter(os.path.join(self.folder, "l0"), adapter_name=name)

    def switch(self) -> dict[str, Any]:
        self.model.base_model.enable_adapter_layers()
        times = [once(lambda turn=turn: self.model.set_adapter(f"l{turn % 2}")) for turn in range(22)]
        return {"seconds": statistics.median(times[2:])}

    def run_rows(self, count: int) -> Any:
        self.model.base_model.enable_adapter_layers()
        return self.model(input_ids=self.many, adapter_names=self.names(count))


if __name__ == "__main__":
    main()
