"""Throughput of requests of mixed lengths in one library, as benchmarks/generate_throughput.py asks."""

import random
import time
from typing import Any

from measuring import limit_threads, report, settings

ASKED = settings()
FOLDER = ASKED["folder"]
Request = tuple[list[int], int]
Figures = tuple[float, float, int, int, int]


def requests(count: int, seed: int) -> list[Request]:
    """(ids, new tokens): 16 to 512 in, 16 to 256 out."""
    numbers = random.Random(seed)
    return [
        ([numbers.randrange(10, 49000) for _ in range(numbers.randint(16, 512))], numbers.randint(16, 256))
        for _ in range(count)
    ]


def run(asked: dict[str, Any]) -> dict[str, float]:
    """One peer's figures: tokens a second, and the processor's seconds for a thousand of them."""
    import torch

    torch.set_num_threads(asked["threads"])
    every = requests(asked["requests"], asked["seed"])
    runner = {
        "phyla": by_phyla, "transformers-default": by_batches, "transformers-continuous": by_continuous,
    }[asked["peer"]]  # fmt: skip
    seconds, processor, read, new, finished = runner(every, asked)
    return {
        "seconds": round(seconds, 2), "finished": finished, "read": read, "new": new,
        "new_per_second": round(new / seconds, 2), "all_per_second": round((read + new) / seconds, 2),
        "processor_seconds_per_thousand": round(1000 * processor / (read + new), 3),
    }  # fmt: skip


def by_phyla(every: list[Request], asked: dict[str, Any]) -> Figures:
    """The engine with its defaults."""
    import phyla
    from phyla.fast import native

    native.enable(background=False)
    model = phyla.AutoModelForCausalLM.from_pretrained(FOLDER)
    model.generate_batch([[5, 6, 7]], max_new_tokens=4, eos_token_id=None)
    begun, used = time.perf_counter(), time.process_time()
    with phyla.Engine(model) as engine:
        handles = [engine.submit(ids, max_new_tokens=new, eos_token_id=None) for ids, new in every]
        while engine.open and time.perf_counter() - begun < asked["seconds"]:
            engine.step()
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        read = sum(len(h.prompt) if h.tokens else h.rows[0].done for h in handles)
        new = sum(len(h.tokens) for h in handles)
        return seconds, used, read, new, sum(h.finished for h in handles)


def by_batches(every: list[Request], asked: dict[str, Any]) -> Figures:
    """`generate` on padded batches, in the order of arrival; only what a request asked for counts as new."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, eos_token_id=None, pad_token_id=0)
    begun, used, read, new, finished = time.perf_counter(), time.process_time(), 0, 0, 0
    for start in range(0, len(every), asked["batch"]):
        batch = every[start : start + asked["batch"]]
        longest, most = max(len(ids) for ids, _ in batch), max(count for _, count in batch)
        ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in batch])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            max_time=max(1.0, asked["seconds"] - (time.perf_counter() - begun)),
        )
        steps = out.shape[1] - longest
        read += sum(len(ids) for ids, _ in batch)
        new += sum(min(count, steps) for _, count in batch)
        finished += sum(count <= steps for _, count in batch)
        if time.perf_counter() - begun > asked["seconds"]:
            break
    return time.perf_counter() - begun, time.process_time() - used, read, new, finished


def by_continuous(every: list[Request], asked: dict[str, Any]) -> Figures:
    """`generate_batch`'s manager, a limit of new tokens for each request."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    settings = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # the sizes that it finds by itself are a GPU's
    sizes = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=256)
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=sizes)
    manager.start()
    begun, used = time.perf_counter(), time.process_time()
    for ids, count in every:
        manager.add_request(ids, max_new_tokens=count, streaming=True)
    told: dict[str, Any] = {}
    while time.perf_counter() - begun < asked["seconds"] and manager.is_running():
        found = manager.get_result(timeout=1)
        if found is not None:
            told[found.request_id] = found
            if found.is_finished() and sum(t.is_finished() for t in told.values()) == len(every):
                break
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    manager.stop(block=True, timeout=5, hard_stop=True)
    read = sum(len(t.prompt_ids) for t in told.values())
    new = sum(len(t.generated_tokens) for t in told.values())
    return seconds, used, read, new, sum(t.is_finished() for t in told.values())


if __name__ == "__main__":
    limit_threads(ASKED["threads"])
    report(**run(ASKED))
