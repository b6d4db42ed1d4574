"""Joint processors, held against recorded behaviour, and what must hold of all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processor_goldens import Golden, faults, goldens, write_files
from processor_inputs import image

import phyla
from phyla.errors import (
    ArgumentError,
    ConfigError,
    MissingFileError,
    TemplateError,
    UnknownArgumentError,
)
from phyla.preprocessing.joint.auto_table import PROCESSOR_NAMES
from phyla.preprocessing.joint.classes import KINDS
from phyla.preprocessing.joint.ctc import greedy
from phyla.preprocessing.joint.rows import ROWS
from phyla.preprocessing.joint.rows_woven import WOVEN
from phyla.preprocessing.joint.tags import tagged

ALL = {**ROWS, **WOVEN}
# Not recorded: the first needs a template and policies of its own, the second a decoder from another package.
UNRECORDED = {"ShieldGemma2Processor", "Wav2Vec2ProcessorWithLM"}
RECORDED = sorted(goldens("processor"))


def first(name: str) -> Golden:
    return goldens("processor")[name][0]


def loaded(name: str, folder: Path):
    write_files(first(name), folder)
    return getattr(phyla, name).from_pretrained(folder)


@pytest.mark.parametrize("name", RECORDED)
def test_goldens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = []
    for golden in goldens("processor")[name]:
        folder = tmp_path / golden.name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)  # a file of classes is named relative to where the program runs
        wrong += [f"{golden.name}: {fault}" for fault in faults(golden, folder)]
    assert not wrong, "\n".join(wrong[:20])


def test_tables_are_whole() -> None:
    assert set(RECORDED) == set(ALL) - UNRECORDED
    assert {row.kind for row in ALL.values()} == set(KINDS)
    for name in {*ALL, *PROCESSOR_NAMES.values()}:
        assert getattr(phyla, name).__name__ == name


@pytest.mark.parametrize("name", RECORDED)
def test_files_go_round(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    processor = loaded(name, tmp_path)
    saved = tmp_path / "saved"
    processor.save_pretrained(saved)
    monkeypatch.chdir(saved)
    if (tmp_path / "classes.json").exists():
        (saved / "classes.json").write_text((tmp_path / "classes.json").read_text())
    recorded = first(name).facts["files"]
    for file in ("processor_config.json", "chat_template.json"):
        want = recorded.get(file)
        assert (saved / file).exists() == (want is not None)
        if want is not None:
            assert json.loads((saved / file).read_text()) == (
                json.loads(want) if isinstance(want, str) else want
            )
    again = getattr(phyla, name).from_pretrained(saved)
    assert again.to_dict() == processor.to_dict() and again.chat_template == processor.chat_template
    for part in type(processor).attributes:
        assert type(getattr(again, part)) is type(getattr(processor, part))
    assert type(phyla.AutoProcessor.from_pretrained(saved)) is type(processor)
    assert type(processor).__name__ in repr(processor)
    assert processor.model_input_names


def clip(folder: Path):
    return loaded("CLIPProcessor", folder)


def test_options_are_sorted_by_part(tmp_path: Path) -> None:
    processor = clip(tmp_path)
    picture = image(40, 30, "RGB")
    flat = processor(text="a cat", images=picture, padding="max_length", max_length=9, do_normalize=False)
    nested = processor(
        text="a cat",
        images=picture,
        text_kwargs={"padding": "max_length", "max_length": 9},
        images_kwargs={"do_normalize": False},
    )
    assert flat["input_ids"] == nested["input_ids"] and len(flat["input_ids"]) == 9
    np.testing.assert_array_equal(flat["pixel_values"], nested["pixel_values"])
    with pytest.raises(ArgumentError, match="given twice"):
        processor(text="a cat", padding=True, text_kwargs={"padding": True})


def test_unknown_options_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip(tmp_path)(text="a cat", colour="red")
    assert "no part of this processor takes the option 'colour'" in caplog.text


def test_construction(tmp_path: Path) -> None:
    parts = clip(tmp_path)
    again = phyla.CLIPProcessor(parts.image_processor, parts.tokenizer)
    old = phyla.CLIPProcessor(feature_extractor=parts.image_processor, tokenizer=parts.tokenizer)
    assert again.tokenizer is old.tokenizer and old.image_processor is parts.image_processor
    with pytest.raises(ArgumentError, match="needs a part `tokenizer`"):
        phyla.CLIPProcessor(parts.image_processor)
    with pytest.raises(ArgumentError, match="must be a tokenizer"):
        phyla.CLIPProcessor(parts.image_processor, "words")
    with pytest.raises(UnknownArgumentError, match="patch_size"):
        phyla.LlavaProcessor(parts.image_processor, parts.tokenizer, patch_sise=14)
    assert phyla.CLIPProcessor.from_pretrained(tmp_path, use_fast=True).image_processor is not None


def test_exchanged_inputs_are_put_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = loaded("AlignProcessor", tmp_path)
    picture = image(40, 30, "RGB")
    found = processor("a cat", picture, return_tensors="np")
    assert "exchanged" in caplog.text and found["pixel_values"].shape[0] == 1


CONVERSATION = [
    {"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "what is this"}]}
]


def test_conversations_with_pictures(tmp_path: Path) -> None:
    golden = next(g for g in goldens("processor")["LlavaProcessor"] if g.name.endswith("template"))
    write_files(golden, tmp_path)
    processor = phyla.LlavaProcessor.from_pretrained(tmp_path)
    file = tmp_path / "cat.png"
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(file)
    conversation = json.loads(json.dumps(CONVERSATION))
    conversation[0]["content"][0]["image"] = str(file)
    text = processor.apply_chat_template(conversation)
    assert text.count(processor.image_token) == 1
    batch = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    wanted = processor(text=text, images=Image.open(file).convert("RGB"), return_tensors="pt")
    assert int((batch["input_ids"] == token).sum()) == int((wanted["input_ids"] == token).sum()) > 1
    torch.testing.assert_close(batch["pixel_values"], wanted["pixel_values"])
    assert processor.apply_chat_template([conversation, conversation]) == [text, text]
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        processor.apply_chat_template(conversation)


def test_templates_are_saved_raw_where_asked(tmp_path: Path) -> None:
    processor = loaded("LlavaProcessor", tmp_path)
    processor.chat_template = "{{ messages[0]['content'] }}"
    processor.save_pretrained(tmp_path / "raw", save_raw_chat_template=True)
    assert not (tmp_path / "raw" / "chat_template.json").exists()
    again = phyla.LlavaProcessor.from_pretrained(tmp_path / "raw")
    assert again.chat_template == processor.chat_template


def test_too_many_image_tokens_are_refused(tmp_path: Path) -> None:
    processor = loaded("LlavaNextProcessor", tmp_path)
    token = processor.image_token
    with pytest.raises(ArgumentError, match="more '<image>' than there are images"):
        processor(text=f"{token} {token}", images=image(40, 30, "RGB"))


def test_targets(tmp_path: Path) -> None:
    processor = loaded("Speech2TextProcessor", tmp_path)
    with processor.as_target_processor():
        found = processor("a cat")
    assert found["input_ids"] == processor(text="a cat")["input_ids"]


def policies_of(folder: Path):
    parts = loaded("Gemma3Processor", folder)
    template = "{% for m in messages %}{{ boi }}{% endfor %}".replace("{{ boi }}", parts.boi_token)
    return phyla.ShieldGemma2Processor(
        parts.image_processor, parts.tokenizer, chat_template=template, image_seq_length=4
    )


def test_every_policy_is_asked_of_every_picture(tmp_path: Path) -> None:
    processor = policies_of(tmp_path)
    pictures = [image(40, 30, "RGB"), image(30, 30, "RGB")]
    batch = processor(images=pictures, return_tensors="np")
    assert batch["input_ids"].shape[0] == len(batch["pixel_values"]) == 6
    batch = processor(images=pictures, policies=["new"], custom_policies={"new": "Nothing new."})
    assert len(batch["input_ids"]) == 2
    with pytest.raises(ArgumentError, match="policies"):
        processor(images=pictures, policies=["other"])
    assert "policy_definitions" not in processor.to_dict()


def test_greedy_decoding_takes_the_likeliest_letters(tmp_path: Path) -> None:
    processor = loaded("Wav2Vec2Processor", tmp_path)
    tokenizer = processor.tokenizer
    ids = tokenizer("HELLO")["input_ids"]
    blank = tokenizer.pad_token_id
    frames = [one for token in ids for one in (token, token, blank)]
    logits = torch.nn.functional.one_hot(torch.tensor([frames]), len(tokenizer)).float()
    assert greedy(logits, tokenizer) == [tokenizer.decode(frames)]
    assert greedy(logits, tokenizer)[0].lower() == "hello"


def test_voices(tmp_path: Path) -> None:
    processor = loaded("BarkProcessor", tmp_path)
    voice = {"semantic_prompt": np.ones(3), "coarse_prompt": np.ones((2, 3)), "fine_prompt": np.ones((8, 3))}
    np.savez(tmp_path / "me.npz", **voice)
    batch = processor("hello", voice_preset=str(tmp_path / "me"))
    assert batch["history_prompt"]["fine_prompt"].shape == (8, 3)
    for name, array in voice.items():
        np.save(tmp_path / f"{name}.npy", array)
    processor.speaker_embeddings = {"repo_or_path": str(tmp_path), "v2/me": {k: f"{k}.npy" for k in voice}}
    processor.save_pretrained(tmp_path / "saved")
    again = phyla.BarkProcessor.from_pretrained(tmp_path / "saved")
    assert again("hello", voice_preset="v2/me")["history_prompt"]["semantic_prompt"].shape == (3,)
    with pytest.raises(ArgumentError, match="axes"):
        processor("hello", voice_preset={"semantic_prompt": np.ones(3)})
    with pytest.raises(MissingFileError):
        processor("hello", voice_preset="nobody")


def test_tags() -> None:
    text = "<s_menu><s_name>tea<sep/>cake</s_name><s_price>3</s_price></s_menu><s_total>8</s_total>"
    assert tagged(text, {}) == {"menu": {"name": ["tea", "cake"], "price": "3"}, "total": "8"}
    assert tagged("plain", {}) == {"text_sequence": "plain"}
    assert tagged("<s_a>1</s_a><sep/><s_a>2</s_a>", {}) == [{"a": "1"}, {"a": "2"}]


def test_auto_finds_the_class(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="names no processor"):
        phyla.AutoProcessor.from_pretrained(tmp_path)
    write_files(first("CLIPProcessor"), tmp_path)
    for file in ("preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / file).read_text())
        content.pop("processor_class", None)
        (tmp_path / file).write_text(json.dumps(content))
    assert isinstance(phyla.AutoProcessor.from_pretrained(tmp_path), phyla.PreTrainedTokenizerBase)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert type(phyla.AutoProcessor.from_pretrained(tmp_path)) is phyla.CLIPProcessor
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcesor"}')
    with pytest.raises(ConfigError, match="CLIPProcessor"):
        phyla.AutoProcessor.from_pretrained(tmp_path)


def test_auto_gives_a_part_that_stands_alone(tmp_path: Path) -> None:
    phyla.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert type(phyla.AutoProcessor.from_pretrained(tmp_path)) is phyla.Wav2Vec2FeatureExtractor
