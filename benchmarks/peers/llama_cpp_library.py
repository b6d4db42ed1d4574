"""Measures llama.cpp through llama-cpp-python on the GGUF file."""

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


def main() -> None:
    limit_threads(ASKED["threads"])
    TASKS[ASKED["task"]]()


def load(context: int):
    """The model with room for `context` tokens."""
    import llama_cpp

    return llama_cpp.Llama(
        ASKED["gguf"],
        n_ctx=context,
        n_batch=512,
        n_threads=ASKED["threads"],
        n_threads_batch=ASKED["threads"],
        verbose=False,
    )


def measure_import() -> None:
    began = time.perf_counter()
    import llama_cpp  # noqa: F401

    report(**{"import": time.perf_counter() - began, "import.model": time.perf_counter() - began})


def measure_load() -> None:
    import llama_cpp  # noqa: F401

    began = time.perf_counter()
    load(64)
    report(**{"load.gguf.float32": time.perf_counter() - began})


def measure_memory() -> None:
    import llama_cpp  # noqa: F401

    before = peak_bytes()
    load(64)
    report(**{"memory.gguf.float32": peak_bytes() - before})


def measure_start() -> None:
    model = load(64)
    model.eval(prompt_ids(16)[0])
    model.sample(temp=0.0)
    report(**{"start.gguf.float32": since_start(ASKED)})


def measure_speed() -> None:
    results = {}
    model = load(max([*ASKED["lengths"], ASKED["prompt"] + ASKED["new"]]) + 8)
    for length in ASKED["lengths"]:
        ids = prompt_ids(length)[0]

        def prefill(ids=ids) -> None:
            model.reset()
            model.eval(ids)

        results[f"prefill.Q4_1.{length}"] = length / seconds(prefill, ASKED["repeats"])
    ids = prompt_ids(ASKED["prompt"])[0]

    def generate(count: int) -> None:
        model.reset()
        model.eval(ids)
        for _ in range(count - 1):
            model.eval([model.sample(temp=0.0)])

    results |= decode_rate("decode.Q4_1.batch1", generate, ASKED["new"], 1, ASKED["repeats"])
    report(**results)


TASKS = {
    "import": measure_import,
    "load": measure_load,
    "memory": measure_memory,
    "start": measure_start,
    "speed": measure_speed,
}

if __name__ == "__main__":
    main()
