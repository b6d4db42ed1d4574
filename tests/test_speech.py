"""What the reference hears and says, replayed; languages of a multilingual model; old spellings of weights.

tests/goldens/speech.json.xz was made by tools/record_speech.py.
"""

import functools
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import phyla
from phyla.errors import ArgumentError, ConfigError, MissingFileError
from phyla.testing.goldens import read_pack
from phyla.testing.seeded import seeded_input, seeded_weight

GOLDENS = Path(__file__).with_name("goldens")


@functools.cache
def recorded() -> dict[str, dict]:
    return json.loads(lzma.decompress((GOLDENS / "speech.json.xz").read_bytes()))["cases"]


@functools.lru_cache(maxsize=2)
def model_of(key: str) -> Any:
    case = json.loads(key)
    tensors = {}
    for name, shape in case["tensors"]:
        value = torch.from_numpy(seeded_weight(name, shape)).reshape(shape)
        tensors[name] = value * case["factor"] if len(shape) > 1 else value
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(case["config"]))
        if case["generation_config"]:
            (Path(folder) / "generation_config.json").write_text(json.dumps(case["generation_config"]))
        return getattr(phyla, case["cls"]).from_pretrained(folder)


def argument(name: str, value: Any) -> Any:
    if isinstance(value, dict) and "shape" in value:
        return torch.from_numpy(seeded_input(name, value["shape"]))
    return torch.tensor(value) if name in ("input_ids", "attention_mask", "prompt_ids") else value


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "items"):
        return {k: plain(v) for k, v in value.items() if k != "result"}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
            assert_same(mine, theirs, f"{where}.{i}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", recorded())
@torch.no_grad()
def test_recorded(name: str) -> None:
    case = recorded()[name]
    what = ("cls", "config", "generation_config", "factor", "tensors")
    model = model_of(json.dumps({k: case[k] for k in what}))
    torch.manual_seed(7)
    out = getattr(model, case["method"])(**{k: argument(k, v) for k, v in case["call"].items()})
    assert_same(plain(out), case["out"])


def hearing() -> Any:
    case = recorded()["hear-long"]
    return model_of(
        json.dumps({k: case[k] for k in ("cls", "config", "generation_config", "factor", "tensors")})
    )


def test_silence_is_skipped() -> None:
    call = {"logprob_threshold": 0.0, "no_speech_threshold": 0.0, "temperature": (0.0,)}
    features = torch.from_numpy(seeded_input("input_features", [1, 8, 200]))
    assert hearing().generate(features, **call).shape == (1, 0)


def test_a_hotter_try_replaces_a_bad_one() -> None:
    features = torch.from_numpy(seeded_input("input_features", [1, 8, 128]))
    torch.manual_seed(0)
    found = hearing().generate(features, temperature=(0.0, 1.0), logprob_threshold=0.0, return_segments=True)
    cold = hearing().generate(features, temperature=0.0, return_segments=True)
    assert found["sequences"].tolist() != cold["sequences"].tolist()


def test_several_texts_for_a_sound() -> None:
    """A decoder's prompt is one for each sound, and so are the encoder's states."""
    model = hearing()
    sounds = torch.randn(2, 8, 60, generator=torch.Generator().manual_seed(1))
    start = torch.tensor([[model.generation_config.decoder_start_token_id, 5]] * 2)
    out = model.generate(
        sounds, decoder_input_ids=start, do_sample=True, num_return_sequences=3, max_new_tokens=3,
        return_dict_in_generate=True, output_hidden_states=True, return_timestamps=False,
    )  # fmt: skip
    assert out.sequences.shape[0] == 6
    assert torch.equal(out.sequences[:, :2], start.repeat_interleave(3, 0))
    assert {x.shape[0] for x in out.encoder_hidden_states} == {2}


def test_long_sounds_need_time_stamps() -> None:
    features = torch.zeros(1, 8, 200)
    with pytest.raises(ArgumentError, match="return_timestamps"):
        hearing().generate(features, return_timestamps=False)
    with pytest.raises(ArgumentError, match="attention_mask"):
        hearing().generate(features.expand(2, -1, -1))
    with pytest.raises(ArgumentError, match="language"):
        hearing().generate(features, language="klingon")


def languages(folder: Path) -> phyla.PreTrainedModel:
    golden = next(g for g in read_pack(GOLDENS / "wav2vec2.tar.xz") if g.class_name == "Wav2Vec2ForCTC")
    keys = {**golden.facts["config"], "adapter_attn_dim": 8, "do_stable_layer_norm": True}
    torch.manual_seed(0)
    model = phyla.Wav2Vec2ForCTC(phyla.Wav2Vec2Config(**keys)).eval()
    model.save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    small = {n: torch.randn_like(t) for n, t in whole.items() if "adapter_layer" in n}
    small |= {"lm_head.weight": torch.randn(40, 32), "lm_head.bias": torch.randn(40)}
    save_file(small, folder / "adapter.fra.safetensors", metadata={"format": "pt"})
    return model


@torch.no_grad()
def test_a_language_brings_its_layers_and_head(tmp_path: Path) -> None:
    languages(tmp_path)
    wave = torch.from_numpy(seeded_input("input_values", [1, 1600]))
    plain_model = phyla.Wav2Vec2ForCTC.from_pretrained(tmp_path)
    model = phyla.Wav2Vec2ForCTC.from_pretrained(tmp_path, target_lang="fra")
    assert model.config.vocab_size == 40 and model.target_lang == "fra"
    assert model(wave).logits.shape[-1] == 40 and plain_model(wave).logits.shape[-1] == 32
    plain_model.load_adapter("fra")
    assert torch.equal(plain_model(wave).logits, model(wave).logits)
    with pytest.raises(MissingFileError, match="deu"):
        model.load_adapter("deu")


def test_a_model_without_languages_says_so(tmp_path: Path) -> None:
    model = hearing_wave(tmp_path)
    with pytest.raises(ConfigError, match="adapter_attn_dim"):
        model.load_adapter("fra")


def hearing_wave(folder: Path) -> Any:
    golden = next(g for g in read_pack(GOLDENS / "wav2vec2.tar.xz") if g.class_name == "Wav2Vec2ForCTC")
    golden.write_checkpoint(folder)
    return phyla.Wav2Vec2ForCTC.from_pretrained(folder)


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm", "encodec", "vits", "speecht5"])
def test_the_old_spelling_of_weight_norm_loads(family: str, tmp_path: Path) -> None:
    golden = next(
        g
        for g in read_pack(GOLDENS / f"{family}.tar.xz")
        if any("original0" in t[0] for t in g.facts["tensors"])
    )
    tensors = golden.write_checkpoint(tmp_path)
    cls = getattr(phyla, golden.class_name)
    wanted = cls.from_pretrained(tmp_path).state_dict()
    old = {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t
        for n, t in tensors.items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = cls.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("stable", [False, True])
@torch.no_grad()
def test_padding_of_a_sound_does_not_matter(stable: bool, tmp_path: Path) -> None:
    golden = next(g for g in read_pack(GOLDENS / "wav2vec2.tar.xz") if g.class_name == "Wav2Vec2Model")
    keys = {**golden.facts["config"], "feat_extract_norm": "layer", "do_stable_layer_norm": stable}
    model = phyla.Wav2Vec2Model(phyla.Wav2Vec2Config(**keys)).eval()
    wave = torch.from_numpy(seeded_input("input_values", [1, 1600]))
    wanted = model(wave).last_hidden_state
    mask = torch.ones(1, 2400, dtype=torch.long)
    mask[:, 1600:] = 0
    padded = torch.nn.functional.pad(wave, (0, 800))
    found = model(padded, attention_mask=mask).last_hidden_state[:, : wanted.shape[1]]
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_training_hides_spans() -> None:
    from phyla.blocks.wave import random_spans

    torch.manual_seed(0)
    x = torch.zeros(400, 50)
    hidden = random_spans(x, 50, 0.4, 5, 1, torch.tensor([50, 20]).repeat(200))
    assert not hidden[1::2, 20:].any()
    assert 0.25 < hidden[::2].float().mean() < 0.4 and hidden.any(1).all()
