"""What must hold for models that read images and text, whatever their family."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import phyla
from phyla.errors import ArgumentError
from phyla.registry import table
from phyla.testing.goldens import Golden, read_pack
from phyla.testing.properties import assert_close

GOLDENS = Path(__file__).with_name("goldens")
NEW = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
READERS = [
    (row.model_type, name)
    for row in table().values()
    for name, task in row.classes.items()
    if task == "image-text-to-text" and (GOLDENS / f"{row.model_type}.tar.xz").exists()
]
# Their images come at the side, not as tokens of the text.
ASIDE = ("mllama", "udop", "pix2struct", "vision-encoder-decoder")
# The whole prompt sees both sides, so it cannot be read in pieces.
BOTH_WAYS = ("paligemma",)
readers = pytest.mark.parametrize(
    ("model_type", "name"), [pytest.param(*r, id="/".join(r)) for r in READERS if r[0] not in ASIDE]
)


@functools.cache
def load(model_type: str, name: str) -> tuple[Any, Golden]:
    golden = next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.name == name)
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        return getattr(phyla, name).from_pretrained(folder), golden


def first_row(inputs: dict[str, Any]) -> dict[str, Any]:
    """One row of text with its images."""
    rows = len(inputs["input_ids"])
    return {
        k: v[:1] if isinstance(v, Tensor) and len(v) == rows and k != "pixel_values" else v
        for k, v in inputs.items()
    } | {"pixel_values": inputs["pixel_values"][: len(inputs["pixel_values"]) // rows]}


@readers
@torch.no_grad()
def test_padding_on_the_left_does_not_change_what_is_generated(model_type: str, name: str) -> None:
    model, golden = load(model_type, name)
    inputs = first_row(golden.inputs())
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    wanted = model.generate(**inputs, **NEW)[:, inputs["input_ids"].shape[1] :]
    for key in ("input_ids", "attention_mask"):
        inputs[key] = torch.cat((torch.zeros(1, 3, dtype=torch.long), inputs[key]), 1)
    found = model.generate(**inputs, **NEW)[:, inputs["input_ids"].shape[1] :]
    assert found.tolist() == wanted.tolist()


@readers
@torch.no_grad()
def test_images_are_read_once_and_steps_equal_one_pass(model_type: str, name: str) -> None:
    model, golden = load(model_type, name)
    inputs = first_row(golden.inputs())
    inputs.pop("attention_mask")
    ids = inputs.pop("input_ids")
    more = torch.cat((ids, ids.new_tensor([[5, 6, 7]])), 1)
    if model_type in BOTH_WAYS:
        types = torch.zeros_like(more)
        types[:, ids.shape[1] :] = 1
        wanted = model(input_ids=more, **inputs, token_type_ids=types, labels=more).logits[
            :, ids.shape[1] - 1 :
        ]
    else:
        wanted = model(input_ids=more, **inputs).logits[:, -4:]
    cache = model.new_cache(1, more.shape[1])
    found = [model(input_ids=ids, **inputs, past_key_values=cache, use_cache=True).logits[:, -1:]]
    for token in more[:, ids.shape[1] :].unbind(1):
        found.append(model(input_ids=token[:, None], past_key_values=cache, use_cache=True).logits)
    assert_close(torch.cat(found, 1), wanted, "steps")


@readers
@torch.no_grad()
def test_generation_with_and_without_a_cache_agrees(model_type: str, name: str) -> None:
    model, golden = load(model_type, name)
    inputs = first_row(golden.inputs())
    inputs.pop("attention_mask")
    inputs["suppress_tokens"] = [90, 91]  # a placeholder that is generated would call for an image
    wanted = model.generate(**inputs, **NEW)
    if model_type not in BOTH_WAYS:
        assert model.generate(**inputs, **NEW, use_cache=False).tolist() == wanted.tolist()
    several = model.generate(**inputs, **NEW | {"num_beams": 2, "num_return_sequences": 2})
    assert several.shape == (2, wanted.shape[1])


@torch.no_grad()
def test_the_tokens_of_one_image_see_each_other_and_no_later_image() -> None:
    model, golden = load("gemma3", "Gemma3ForConditionalGeneration")
    token, pixels = model.config.image_token_index, golden.inputs()["pixel_values"]
    ids = torch.tensor([[5, *[token] * 4, 6, *[token] * 4, 7, 8]])
    seen = {"token_type_ids": (ids == token).long(), "use_cache": False}
    first, swapped = (
        model(input_ids=ids, pixel_values=p, output_hidden_states=True, **seen).hidden_states[1][0]
        for p in (pixels, torch.stack((pixels[0], pixels[1].flip(-1))))
    )
    moved = (first - swapped).abs().amax(-1) > 1e-5
    assert moved.nonzero().flatten().tolist() == [6, 7, 8, 9, 10, 11]
    plain = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True, use_cache=False)
    apart = (first - plain.hidden_states[1][0]).abs().amax(-1) > 1e-5
    assert apart.nonzero().flatten().tolist() == [1, 2, 3, 6, 7, 8]
    prompt = {"input_ids": ids, "pixel_values": pixels, "token_type_ids": seen["token_type_ids"]}
    wanted = model.generate(**prompt, **NEW, use_cache=False, suppress_tokens=[token])
    assert torch.equal(model.generate(**prompt, **NEW, suppress_tokens=[token]), wanted)
    left = {k: torch.nn.functional.pad(prompt[k], (3, 0)) for k in ("input_ids", "token_type_ids")}
    mask = torch.ones_like(left["input_ids"]).index_fill(1, torch.arange(3), 0)
    padded = model.generate(**prompt | left, attention_mask=mask, **NEW, suppress_tokens=[token])
    assert torch.equal(padded[:, 3:], wanted)
    asked = phyla.Engine(model).submit(**prompt, **NEW, suppress_tokens=[token])
    assert asked.result().generated_tokens == wanted[0, ids.shape[1] :].tolist()


@torch.no_grad()
def test_towers_of_later_files_are_read(tmp_path: Path) -> None:
    model, golden = load("gemma3", "Gemma3ForConditionalGeneration")
    tensors = golden.write_checkpoint(tmp_path)
    later = {n.replace("vision_tower.vision_model.", "vision_tower."): t for n, t in tensors.items()}
    assert sum(n not in tensors for n in later) > 40
    save_file(later, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = type(model).from_pretrained(tmp_path)
    mine, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@readers
def test_a_missing_image_token_is_named(model_type: str, name: str) -> None:
    model, golden = load(model_type, name)
    inputs = first_row(golden.inputs())
    token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    count = int((inputs["input_ids"] == token).sum())
    at = (inputs["input_ids"][0] == token).nonzero()[0, 0]
    inputs["input_ids"] = inputs["input_ids"].index_fill(1, at, 5)
    with pytest.raises(ArgumentError, match=rf"{count - 1} tokens .* {count} vectors"):
        model(**inputs)


@readers
@torch.no_grad()
def test_text_alone_is_read_too(model_type: str, name: str) -> None:
    model, _ = load(model_type, name)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert model.generate(input_ids=ids, **NEW).shape == (1, 9)


seeing = pytest.mark.parametrize(("model_type", "name"), [pytest.param(*r, id="/".join(r)) for r in READERS])


@pytest.mark.slow
@seeing
@torch.no_grad()
def test_one_graph_compiles_and_exports(model_type: str, name: str) -> None:
    model, golden = load(model_type, name)
    inputs = {**golden.inputs(), "use_cache": False}
    if "image_sizes" in inputs:
        # How many vectors an image in tiles has follows from its size, which a graph must know as numbers.
        inputs["image_sizes"] = inputs["image_sizes"].tolist()
    wanted = model(**inputs).logits
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs).logits, wanted, "compiled")
    exported = torch.export.export(model, (), inputs, strict=False).module()
    assert_close(exported(**inputs).logits, wanted, "exported")
