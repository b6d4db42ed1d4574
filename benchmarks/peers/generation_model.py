"""phyla or Transformers as benchmarks/generate.py asks: first tokens, decode, grammars, copies, memory."""

import importlib
import os
import time
from typing import Any

from measuring import limit_threads, peak_bytes, prompt_ids, settings
from serving import Clock, serve

ASKED = settings()
LIBRARY, MODE, THREADS = ASKED["library"], ASKED["mode"], ASKED["threads"]
CODE = """def area(width, height):
    return width * height

def volume(width, height, depth):
    return area(width, height) * depth

class Box:
    def __init__(self, width, height, depth):
        self.width = width
        self.height = height
        self.depth = depth

    def size(self):
        return volume(self.width, self.height, self.depth)
"""
COPY = (
    f"<|im_start|>user\nRepeat this code exactly:\n```python\n{CODE}```<|im_end|>\n"
    "<|im_start|>assistant\nHere is the code:\n```python\n"
)
PEOPLE = {
    "type": "array", "minItems": 3,
    "items": {
        "type": "object", "additionalProperties": False, "required": ["name", "age", "city"],
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"},
                       "city": {"type": "string", "maxLength": 30}},
    },
}  # fmt: skip
DESCRIBE = "<|im_start|>user\nDescribe people as JSON.<|im_end|>\n<|im_start|>assistant\n"


class Peer:
    """One model; `mode` is "default", or "static" for a static cache and torch.compile."""

    def open(self, folder: str, dtype: str, gguf: str) -> dict[str, Any]:
        """Load; quantised dtypes come from the GGUF file."""
        import torch

        self.torch = torch
        torch.set_num_threads(THREADS)
        before = peak_bytes()
        library = importlib.import_module(LIBRARY)
        kind = library.AutoModelForCausalLM
        began = time.perf_counter()
        if dtype in ("int8", "int4"):
            if LIBRARY != "phyla":
                raise ValueError("no mode that keeps the file's blocks")
            self.model = kind.from_pretrained(gguf, quantized=True, torch_dtype=torch.bfloat16)
        else:
            self.model = kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
        self.model.eval()
        self.before, seconds = before, time.perf_counter() - began
        return {"seconds": seconds, "native": LIBRARY == "phyla" and self.built()}

    def built(self) -> bool:
        """Whether phyla's kernels are in use; the one build of them is not what is measured."""
        from phyla.fast import native

        native.enable(background=False)
        return native.wait()

    def memory(self) -> dict[str, Any]:
        """Peak bytes over a process with torch, the library's own imports included."""
        return {"bytes": peak_bytes() - self.before}

    def run(self, batch: int, prompt: int, new: int) -> dict[str, Any]:
        """Times of `new` tokens behind a prompt."""
        ids = self.torch.tensor(prompt_ids(prompt, batch))
        return self.timed(ids, new)

    def timed(self, ids: Any, new: int, **more: Any) -> dict[str, Any]:
        clock = Clock()

        def tick(_: Any, scores: Any) -> Any:
            clock.tick()
            return scores

        if MODE == "static":
            from transformers import CompileConfig

            compiled = CompileConfig(mode="default")
            compiled._compile_all_devices = True
            more |= {"cache_implementation": "static", "compile_config": compiled}
        clock.begin()
        self.out = self.model.generate(
            ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            pad_token_id=0, logits_processor=[tick], **({"eos_token_id": None} | more),
        )  # fmt: skip
        return clock.told()

    def warm(self, batch: int, prompt: int) -> dict[str, Any]:
        """Let what is compiled or built at first use be there."""
        return self.timed(self.torch.tensor(prompt_ids(prompt, batch)), 4)

    def tokens(self, text: str) -> Any:
        import tokenizers

        made = tokenizers.Tokenizer.from_file(ASKED["tokenizer"])
        return self.torch.tensor([made.encode(text).ids])

    def copy(self, new: int, count: int) -> dict[str, Any]:
        """Seconds to repeat a piece of code, plain and with `count` tokens of n-gram speculation, in turn."""
        ids = self.tokens(COPY)
        asked = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
                 "attention_mask": self.torch.ones_like(ids)}  # fmt: skip
        kinds = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": count}}
        return self.in_turn({k: lambda m=m: self.model.generate(ids, **asked, **m) for k, m in kinds.items()})

    def constrained(self, rounds: int) -> dict[str, Any]:
        """Seconds a token of text by a JSON Schema, and of as many free ones, in turn."""
        import phyla

        ids, grammar = self.tokens(DESCRIBE), phyla.Grammar.json(PEOPLE)
        tokenizer = phyla.PreTrainedTokenizerFast(tokenizer_file=ASKED["tokenizer"], eos_token="<|im_end|>")
        asked = {"do_sample": False, "pad_token_id": 0, "attention_mask": self.torch.ones_like(ids)}

        def by_grammar() -> Any:
            return self.model.generate(ids, grammar=grammar, tokenizer=tokenizer, max_new_tokens=64, **asked)

        new = by_grammar().shape[1] - ids.shape[1]  # which also reads the vocabulary, once a process
        free = {"min_new_tokens": new, "max_new_tokens": new, **asked}
        runs = {"free": lambda: self.model.generate(ids, **free), "grammar": by_grammar}
        return {**self.in_turn(runs, rounds), "tokens": new}

    def in_turn(self, runs: dict[str, Any], rounds: int = 3) -> dict[str, Any]:
        """The least seconds of each, and whether all gave the same."""
        best: dict[str, float] = {}
        outs = {}
        for _ in range(rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                outs[name] = run()
                best[name] = min(best.get(name, 1e9), time.perf_counter() - began)
        first, *others = outs.values()
        return {**best, "same": all(self.torch.equal(first, other) for other in others)}


if __name__ == "__main__":
    limit_threads(THREADS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(Peer())
