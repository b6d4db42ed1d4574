"""Pages that come from the code are as the code says, and what pages show runs."""

import ast
import asyncio
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import phyla
from phyla.generation.engine import Handle
from phyla.testing.goldens import read_pack

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == tables.PAGES[name](), "run `make docs`"


def samples(name: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(code: str, space: dict) -> None:
    """Execute a sample, `await` at its top level included, and wait for what its statements give.

    Statements about images run in a space of theirs; public names of phyla need no import.
    """
    for statement in ast.parse(code).body:
        about = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        names = space["images"] if "pixels" in about else space
        names |= {name: getattr(phyla, name) for name in about - set(names) if name in dir(phyla)}
        if isinstance(statement, ast.Expr):
            statement = ast.copy_location(
                ast.Assign([ast.Name("given", ast.Store())], statement.value), statement
            )
        module = ast.fix_missing_locations(ast.Module([statement], []))
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        waiting = FunctionType(compile(module, "sample", "exec", flags=flags), names)()
        if inspect.iscoroutine(waiting):
            asyncio.run(waiting)
        given = names.pop("given", None)
        if isinstance(given, Handle):
            assert given.results()
        elif isinstance(given, Iterator):
            assert list(given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama and its tokenizer of bytes."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = phyla.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"]
    )
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("docs") / "tiny"
    phyla.LlamaForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def space(folder: Path) -> dict:
    tokenizer = phyla.AutoTokenizer.from_pretrained(folder)
    model = phyla.AutoModelForCausalLM.from_pretrained(folder).eval()
    return {"phyla": phyla, "model": model, "tokenizer": tokenizer, "path": folder}


@pytest.fixture
def images(tmp_path: Path) -> dict:
    """A model of texts and images, and inputs for it."""
    name = "LlavaForConditionalGeneration"
    golden = next(g for g in read_pack(ROOT / "tests" / "goldens" / "llava.tar.xz") if g.name == name)
    golden.write_checkpoint(tmp_path)
    model, given = getattr(phyla, name).from_pretrained(tmp_path).eval(), golden.inputs()
    return {"engine": phyla.Engine(model), "ids": given["input_ids"][0].tolist(),
            "pixels": given["pixel_values"][:1]}  # fmt: skip


def test_samples_about_generation(space: dict, images: dict) -> None:
    model, tokenizer = space["model"], space["tokenizer"]
    model.add_adapter("german", config="lora")
    model.set_active_adapters(None)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    ids, other = (tokenizer(text)["input_ids"] for text in ("one two one two", "three"))
    space |= {"ids": ids, "other": other, "prompts": [ids, other], "schema": schema, "images": images}
    first, second = samples("generation.md")
    run(first, space)
    with phyla.Engine(model) as engine, images["engine"]:
        run(second, space | {"engine": engine})


def test_samples_about_adapters(space: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    attached, peft, heads, whole = samples("adapters.md")
    for code in (attached, peft):
        model = phyla.AutoModelForCausalLM.from_pretrained(space["path"])
        if code == peft:
            model.add_adapter("b", config="lora[r=8]")
        run(code, space | {"model": model})
        assert set(model.adapters.names()) >= {"a", "b"}
    space["adapters"] = phyla.adapters
    run(heads, space)
    run(whole, space)
    assert space["model"].adapters.names() == [space["model"].active_head] == ["a"]


def test_samples_about_grammars(space: dict) -> None:
    space["batch"] = space["tokenizer"]("Is it?", return_tensors="pt")
    for code in samples("grammar.md"):
        run(code, space)


def test_samples_about_quantised_weights(space: dict, folder: Path, tmp_path: Path) -> None:
    settings = phyla.FineGrainedFP8Config()  # made while loading, in place of a format that needs examples
    made = phyla.AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
    made.save_pretrained(tmp_path / "packed")
    for code in samples("quantization.md"):
        code = code.replace("acme/llama-gptq", str(tmp_path / "packed")).replace("acme/llama", str(folder))
        run(code, space)


def test_samples_about_several_processes(space: dict, folder: Path, monkeypatch) -> None:
    """As torchrun starts the only process; tests/test_shard.py has two."""
    told = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    try:
        for code in samples("parallel.md"):
            run(code.replace("HuggingFaceTB/SmolLM2-135M", str(folder)), space)
    finally:
        torch.distributed.destroy_process_group()
