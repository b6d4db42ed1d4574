"""phyla or Transformers on a device, as benchmarks/gpu_generate.py asks: a random Llama, drawn there."""

import importlib
import time
from typing import Any

from measuring import peak_bytes, prompt_ids, settings
from serving import serve

ASKED = settings()
LIBRARY, MODE, DEVICE = ASKED["library"], ASKED["mode"], ASKED["device"]
ON_CUDA = DEVICE.startswith("cuda")
COPY_BYTES = 1 << 30 if ON_CUDA else 1 << 26


class Peer:
    """One model; modes: captured, eager (phyla), default, static (Transformers: a static cache, compiled)."""

    def open(self) -> dict[str, Any]:
        """Draw the weights; bytes that a step reads of them, and the speed of a copy."""
        import torch

        self.torch = torch
        library = importlib.import_module(LIBRARY)
        sizes = {**ASKED["config"], "tie_word_embeddings": False, "max_position_embeddings": 4096}
        config = library.LlamaConfig(**sizes)
        if LIBRARY == "phyla":
            self.model = library.LlamaForCausalLM(config, device=DEVICE, dtype=torch.bfloat16).eval()
        else:
            with torch.device(DEVICE):
                self.model = library.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
        if MODE == "captured" and DEVICE == "cpu":  # a dry run: the same buffers without a graph
            from phyla.generation import captured

            captured.RECORDERS["cpu"] = captured.record_nothing
        count = sum(p.numel() for p in self.model.parameters())
        table = self.model.get_input_embeddings().weight
        name = torch.cuda.get_device_name(DEVICE) if ON_CUDA else DEVICE
        return {
            "parameters": count, "weight_bytes": 2 * (count - table.numel()), "device": name,
            "copy_bytes_per_second": self.copy_speed(),
        }  # fmt: skip

    def copy_speed(self) -> float:
        """Bytes read and written a second by a copy of a large tensor."""
        source = self.torch.ones(COPY_BYTES // 4, device=DEVICE)
        target = self.torch.empty_like(source)
        best = min(self.seconds(lambda: target.copy_(source)) for _ in range(10))
        return 2 * COPY_BYTES / best

    def seconds(self, run: Any) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if ON_CUDA:
            self.torch.cuda.synchronize(DEVICE)

    def generate(self, ids: Any, new: int) -> Any:
        more: dict[str, Any] = {}
        if MODE == "eager":
            more = {"disable_compile": True}
        if MODE == "static":
            more = {"cache_implementation": "static"}
        return self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0, **more,
        )  # fmt: skip

    def decode(self, batch: int, repeats: int) -> dict[str, Any]:
        """Seconds of the tokens after the first, each time; bytes of a row's keys and values midway."""
        prompt, new = ASKED["prompt"], ASKED["new"]
        ids = self.torch.tensor(prompt_ids(prompt, batch), device=DEVICE) % ASKED["config"]["vocab_size"]
        self.generate(ids, new), self.generate(ids, 1)  # what is compiled or recorded at first use
        first = min(self.seconds(lambda: self.generate(ids, 1)) for _ in range(repeats))
        whole = [self.seconds(lambda: self.generate(ids, new)) for _ in range(repeats)]
        config = ASKED["config"]
        width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
        memory = 2 * config["num_hidden_layers"] * width * (prompt + new // 2) * 2
        return {"seconds": [t - first for t in whole], "first": first, "memory_bytes": memory,
                "recorded": self.recorded()}  # fmt: skip

    def recorded(self) -> bool:
        """Whether phyla keeps a recorded step of this model."""
        if LIBRARY != "phyla":
            return False
        from phyla.generation import captured

        return bool(captured._kept.get(self.model))

    def peak(self) -> dict[str, Any]:
        """The most memory of the device so far."""
        return {"bytes": self.torch.cuda.max_memory_allocated(DEVICE) if ON_CUDA else peak_bytes()}


if __name__ == "__main__":
    serve(Peer())
