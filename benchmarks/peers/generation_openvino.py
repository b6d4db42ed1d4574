"""OpenVINO GenAI as benchmarks/generate.py asks; it reads the GGUF file itself, without a network."""

import time
from typing import Any

from measuring import limit_threads, peak_bytes, prompt_ids, settings
from serving import serve

ASKED = settings()
THREADS = ASKED["threads"]


class Peer:
    """One pipeline."""

    def open(self, folder: str, dtype: str, gguf: str) -> dict[str, Any]:
        """Load the file of that dtype; activations are float32 for float32, else what it takes itself."""
        import openvino
        import openvino_genai

        self.ov, self.lib, self.before = openvino, openvino_genai, peak_bytes()
        began = time.perf_counter()
        exact = {"INFERENCE_PRECISION_HINT": "f32"} if dtype == "float32" else {}
        apart = self.lib.SchedulerConfig()
        apart.enable_prefix_caching = False  # or a prompt that was read before costs nothing
        apart.cache_size = 1  # GiB
        self.pipeline = self.lib.LLMPipeline(
            gguf, "CPU", INFERENCE_NUM_THREADS=THREADS, scheduler_config=apart, **exact
        )
        return {"seconds": time.perf_counter() - began}

    def memory(self) -> dict[str, Any]:
        """Peak bytes over the bare interpreter with the library."""
        return {"bytes": peak_bytes() - self.before}

    def run(self, batch: int, prompt: int, new: int) -> dict[str, Any]:
        """Times of `new` tokens behind a prompt, by its own figures."""
        return self.timed(batch, prompt, new)

    def warm(self, batch: int, prompt: int) -> dict[str, Any]:
        """The first call compiles."""
        return self.timed(batch, prompt, 2)

    def timed(self, batch: int, prompt: int, new: int) -> dict[str, Any]:
        import numpy as np

        ids = np.array(prompt_ids(prompt, batch), dtype=np.int64)
        inputs = self.lib.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(np.ones_like(ids)))
        asked = self.lib.GenerationConfig()
        asked.max_new_tokens = asked.min_new_tokens = new
        asked.ignore_eos, asked.do_sample = True, False
        found = self.pipeline.generate(inputs, asked).perf_metrics
        first, whole = found.get_ttft().mean / 1e3, found.get_generate_duration().mean / 1e3
        return {"first": first, "steps": [(whole - first) / (new - 1)] if new > 1 else []}


if __name__ == "__main__":
    limit_threads(THREADS)
    serve(Peer())
