"""Measures phyla or Transformers: one script, because the public names are the same."""

import importlib
import os
import time

from measuring import (
    decode_rate,
    limit_threads,
    peak_bytes,
    prompt_ids,
    report,
    seconds,
    settings,
    since_start,
)

ASKED = settings()
LIBRARY = ASKED["library"]


def main() -> None:
    limit_threads(ASKED["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    TASKS[ASKED["task"]]()


def measure_import() -> None:
    began = time.perf_counter()
    library = importlib.import_module(LIBRARY)
    bare = time.perf_counter() - began
    library.AutoTokenizer  # noqa: B018
    tokenizer = time.perf_counter() - began
    library.AutoModelForCausalLM  # noqa: B018
    report(**{"import": bare, "import.tokenizer": tokenizer, "import.model": time.perf_counter() - began})


def load(kind: str, dtype: str = "float32"):
    """A model ready to run, from the safetensors folder or the GGUF file."""
    import torch

    torch.set_num_threads(ASKED["threads"])
    library = importlib.import_module(LIBRARY)
    wanted = getattr(torch, dtype)
    if kind == "safetensors":
        folder = ASKED["folders"][dtype]
        return library.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=wanted).eval()
    if LIBRARY == "phyla":
        return library.AutoModelForCausalLM.from_pretrained(ASKED["gguf"], torch_dtype=wanted).eval()
    folder, name = os.path.split(ASKED["gguf"])
    return library.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, torch_dtype=wanted).eval()


def measure_load() -> None:
    """Seconds to load, with torch and the library imported and the file in the page cache."""
    import torch  # noqa: F401

    kind, dtype = ASKED["kind"], ASKED["dtype"]
    importlib.import_module(LIBRARY).AutoModelForCausalLM  # noqa: B018
    with open(
        ASKED["gguf"] if kind == "gguf" else ASKED["folders"][dtype] + "/model.safetensors", "rb"
    ) as file:
        while file.read(1 << 24):
            pass
    began = time.perf_counter()
    load(kind, dtype)
    report(**{f"load.{kind}.{dtype}": time.perf_counter() - began})


def measure_memory() -> None:
    """Peak bytes of a load over the interpreter with torch, as a share of the weights."""
    import torch  # noqa: F401

    before = peak_bytes()
    kind, dtype = ASKED["kind"], ASKED["dtype"]
    model = load(kind, dtype)
    over = peak_bytes() - before
    weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
    report(**{f"memory.{kind}.{dtype}": over, f"memory.share.{kind}.{dtype}": over / weights})


def measure_start() -> None:
    """Seconds from the start of the process to the first token of a short prompt."""
    import torch

    model = load("gguf" if ASKED["kind"] == "gguf" else "safetensors", ASKED["dtype"])
    model.generate(torch.tensor(prompt_ids(16)), max_new_tokens=1, do_sample=False)
    report(**{f"start.{ASKED['kind']}.{ASKED['dtype']}": since_start(ASKED)})


def measure_speed() -> None:
    """Prefill and decode in tokens a second."""
    import torch

    kind, dtype = ASKED["kind"], ASKED["dtype"]
    model = load_quantised() if kind == "quantised" else load(kind, dtype)
    if LIBRARY == "phyla":
        from phyla.fast import native

        # As `generate` does; the one build of the kernel (some tenths of a second) is not what is measured.
        model.pack()
        native.wait()
    name = "Q4_1" if kind == "quantised" else dtype
    results = {}
    with torch.inference_mode():
        for length in ASKED["lengths"]:
            ids = torch.tensor(prompt_ids(length))
            taken = seconds(lambda ids=ids: model(ids, use_cache=True, logits_to_keep=1), ASKED["repeats"])
            results[f"prefill.{name}.{length}"] = length / taken
        for batch in ASKED["batches"]:
            ids = torch.tensor(prompt_ids(ASKED["prompt"], batch))
            mask = torch.ones_like(ids)

            def generate(count: int, ids=ids, mask=mask) -> None:
                model.generate(
                    ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                    pad_token_id=0,
                )  # fmt: skip

            results |= decode_rate(
                f"decode.{name}.batch{batch}", generate, ASKED["new"], batch, ASKED["repeats"]
            )
    report(**results)


def load_quantised():
    """phyla with the file's own quantised blocks; Transformers has no such mode (it widens them)."""
    import torch

    torch.set_num_threads(ASKED["threads"])
    library = importlib.import_module(LIBRARY)
    return library.AutoModelForCausalLM.from_pretrained(
        ASKED["gguf"], quantized=True, torch_dtype=getattr(torch, ASKED["dtype"])
    ).eval()


def measure_ids() -> None:
    """Greedy ids of a short run, so that the runner can see that the peers compute the same model."""
    import torch

    model = load("safetensors", "float32")
    ids = torch.tensor(prompt_ids(16))
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    report(**{f"ids.{i}": float(t) for i, t in enumerate(out[0, 16:].tolist())})


def make_folders() -> None:
    """Write the file's weights as float32 and bfloat16 safetensors with Transformers' own save function."""
    import torch
    import transformers

    folder, name = os.path.split(ASKED["gguf"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, torch_dtype=torch.float32
    )
    for dtype, target in ASKED["folders"].items():
        model.to(getattr(torch, dtype)).save_pretrained(target)
    report(done=1)


TASKS = {
    "import": measure_import,
    "load": measure_load,
    "memory": measure_memory,
    "start": measure_start,
    "speed": measure_speed,
    "ids": measure_ids,
    "folders": make_folders,
}

if __name__ == "__main__":
    main()
