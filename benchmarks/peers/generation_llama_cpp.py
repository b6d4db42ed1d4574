"""llama.cpp as benchmarks/generate.py asks, through the C interface: many texts in one batch."""

import time
from typing import Any

from measuring import limit_threads, peak_bytes, prompt_ids, settings
from serving import Clock, serve

ASKED = settings()
THREADS = ASKED["threads"]
PART = 512  # tokens of one call at most


class Peer:
    """One model."""

    def open(self, folder: str, dtype: str, gguf: str) -> dict[str, Any]:
        """Load the file of that dtype."""
        import llama_cpp as lib

        self.lib, self.before = lib, peak_bytes()
        began = time.perf_counter()
        lib.llama_backend_init()
        self.silent = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.silent, None)
        self.model = lib.llama_model_load_from_file(gguf.encode(), lib.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {gguf}")
        self.words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.memory_of(1, 64)
        return {"seconds": time.perf_counter() - began}

    def memory(self) -> dict[str, Any]:
        """Peak bytes over the bare interpreter with the library."""
        return {"bytes": peak_bytes() - self.before}

    def memory_of(self, batch: int, length: int) -> None:
        """A context with room for `batch` texts of a length."""
        lib = self.lib
        asked = lib.llama_context_default_params()
        asked.n_ctx, asked.n_seq_max, asked.n_batch = max(256, batch * (length + 16)), batch, PART
        asked.n_threads = asked.n_threads_batch = THREADS
        asked.kv_unified = True
        if getattr(self, "context", None):
            lib.llama_free(self.context)
        self.context = lib.llama_init_from_model(self.model, asked)
        if not self.context:
            raise ValueError("llama.cpp made no context")

    def run(self, batch: int, prompt: int, new: int) -> dict[str, Any]:
        """Times of `new` tokens behind a prompt."""
        self.memory_of(batch, prompt + new)
        return self.timed(prompt_ids(prompt, batch), new)

    def warm(self, batch: int, prompt: int) -> dict[str, Any]:
        """Let weights be laid out anew where the library does that at first use."""
        return self.run(batch, prompt, 2)

    def timed(self, rows: list[list[int]], new: int) -> dict[str, Any]:
        lib, clock, length = self.lib, Clock(), len(rows[0])
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        batch = lib.llama_batch_init(PART, 0, 1)
        clock.begin()
        waiting = [(t, i, row, i == length - 1) for row, ids in enumerate(rows) for i, t in enumerate(ids)]
        best = [0] * len(rows)
        for start in range(0, len(waiting), PART):
            self.decode(batch, waiting[start : start + PART], best)
        clock.tick()
        for step in range(1, new):
            self.decode(batch, [(t, length + step - 1, row, True) for row, t in enumerate(best)], best)
            clock.tick()
        lib.llama_batch_free(batch)
        return clock.told()

    def decode(self, batch: Any, tokens: list[tuple[int, int, int, bool]], best: list[int]) -> None:
        """Feed (token, position, row, scored) and put the best next token of each scored row into `best`."""
        import numpy as np

        batch.n_tokens = len(tokens)
        for i, (token, position, row, scored) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, scored
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        for i, (_, _, row, scored) in enumerate(tokens):
            if scored:
                scores = self.lib.llama_get_logits_ith(self.context, i)
                best[row] = int(np.ctypeslib.as_array(scores, (self.words,)).argmax())


if __name__ == "__main__":
    limit_threads(THREADS)
    serve(Peer())
