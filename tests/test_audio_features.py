"""Feature extractors of sound, held against recorded behaviour, and what must hold of all of them."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_goldens import faults, goldens
from processor_inputs import audio

import phyla
from phyla.errors import ArgumentError, ConfigError, MissingExtraError, MissingFileError
from phyla.preprocessing.audio import mel, spectrum
from phyla.preprocessing.audio.auto_table import EXTRACTOR_NAMES
from phyla.preprocessing.audio.resample import resample
from phyla.preprocessing.audio.rows import OTHER, ROWS

# Recorded on another processor, whose float32 FFT rounds otherwise: log mels eight decades below the loudest
# show it (up to 2e-5 of the range; in float64 they are 1.2e-5 off the recording too). On one machine ours and
# the reference's are equal bit for bit: test_reference_sounds.py.
ROUNDED = {f"WhisperFeatureExtractor/{case}" for case in ("options_0", "options_1", "options_7", "options_9")}


RESAMPLING = {"MusicgenMelodyFeatureExtractor", "Pop2PianoFeatureExtractor"}


@pytest.mark.parametrize("name", sorted(goldens("audio")))
def test_goldens(name: str, tmp_path: Path) -> None:
    wrong = []
    for golden in goldens("audio")[name]:
        folder = tmp_path / golden.name
        folder.mkdir(parents=True)
        for fault in faults(golden, folder):
            small = fault.startswith("input_features: largest difference ") and float(fault.split()[3]) < 5e-5
            if not (golden.name in ROUNDED and small):
                wrong.append(f"{golden.name}: {fault}")
    assert not wrong, "\n".join(wrong[:20])


def test_every_row_has_goldens() -> None:
    assert {*ROWS, *OTHER} == set(goldens("audio"))


@pytest.mark.parametrize("name", [*ROWS, *OTHER])
def test_settings_go_round(name: str, tmp_path: Path) -> None:
    first = getattr(phyla, name)(extra=3)
    assert [Path(p).name for p in first.save_pretrained(tmp_path)] == ["preprocessor_config.json"]
    again = getattr(phyla, name).from_pretrained(tmp_path)
    assert again.to_dict() == first.to_dict()
    assert json.loads(first.to_json_string())["extra"] == 3
    assert type(phyla.AutoFeatureExtractor.from_pretrained(tmp_path)) is type(first)
    if "sampling_rate" in first.to_dict():
        assert getattr(phyla, name).from_pretrained(tmp_path, sampling_rate=8000).sampling_rate == 8000


@pytest.mark.parametrize("name", sorted(set(ROWS) - RESAMPLING))
def test_another_rate_is_refused(name: str) -> None:
    extractor = getattr(phyla, name)()
    with pytest.raises(ArgumentError, match=r"needs sound at \d+ Hz, but sampling_rate is 1234"):
        extractor(np.zeros(50000, dtype=np.float32), sampling_rate=1234)


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"Pop2PianoFeatureExtractor"}))
def test_kinds_of_input_agree(name: str) -> None:
    extractor = getattr(phyla, name)()
    rate = {} if name == "UnivNetFeatureExtractor" else {"sampling_rate": extractor.sampling_rate}
    more = {"return_noise": False, "max_length": 30000} if name == "UnivNetFeatureExtractor" else {}
    sound = audio("speech", 30000, extractor.sampling_rate, 0).astype(np.float32)
    wanted = extractor(sound, return_tensors="np", **rate, **more)
    first = extractor.model_input_names[0]
    for given_as in (sound.tolist(), torch.from_numpy(sound), [sound], [torch.from_numpy(sound)], (sound,)):
        np.random.seed(0)
        found = extractor(given_as, return_tensors="np", **rate, **more)
        np.testing.assert_array_equal(found[first], wanted[first])
    tensors = extractor(sound, return_tensors="pt", **rate, **more)
    assert isinstance(tensors[first], torch.Tensor) and tensors[first].dtype == torch.float32


@pytest.mark.parametrize("name", ROWS)
def test_no_sound_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError):
        getattr(phyla, name)()([])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    padding=st.sampled_from([True, "longest", "max_length", False]),
    most=st.integers(1, 60),
    multiple=st.sampled_from([None, 4, 16]),
    side=st.sampled_from(["right", "left"]),
    truncation=st.booleans(),
)
def test_padding(lengths, padding, most, multiple, side, truncation) -> None:
    extractor = phyla.SequenceFeatureExtractor(1, 16000, -2.0, padding_side=side)
    rows = [np.arange(n, dtype=np.float64) for n in lengths]
    batch = extractor.pad({"input_values": rows}, padding, most, truncation, multiple)
    limit = most if multiple is None else -(-most // multiple) * multiple
    cut = [min(n, limit) if truncation else n for n in lengths]
    wanted = {"max_length": limit, False: 0}.get(padding, max(cut))
    if padding in (True, "longest") and multiple is not None:
        wanted = -(-wanted // multiple) * multiple
    for row, values, mask in zip(rows, batch["input_values"], batch["attention_mask"], strict=True):
        real = min(len(row), limit) if truncation else len(row)
        assert len(values) == len(mask) == max(real, wanted) and int(mask.sum()) == real
        assert values.dtype == np.float32
        kept = values[:real] if side == "right" else values[len(values) - real :]
        np.testing.assert_array_equal(kept, row[:real].astype(np.float32))
        assert (np.delete(values, np.flatnonzero(mask)) == -2.0).all()


def test_pad_takes_lists_of_examples_and_tensors() -> None:
    extractor = phyla.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    batch = extractor.pad([{"input_values": [0.5, 1.0]}, {"input_values": [2.0]}])
    assert batch["input_values"].tolist() == [[0.5, 1.0], [2.0, 0.0]]
    tensors = extractor.pad({"input_values": [torch.ones(2), torch.ones(1)]})
    assert isinstance(tensors["input_values"], torch.Tensor)
    with pytest.raises(ArgumentError, match="needs max_length"):
        extractor.pad({"input_values": [[1.0]]}, padding="max_length")
    with pytest.raises(ArgumentError, match="needs 'input_values'"):
        extractor.pad({"other": [[1.0]]})


@pytest.mark.parametrize("scale", mel.SCALES)
def test_mel_scales_invert(scale: str) -> None:
    hertz = np.linspace(10, 8000, 50)
    np.testing.assert_allclose(mel.mel_to_hertz(mel.hertz_to_mel(hertz, scale), scale), hertz)
    assert mel.mel_to_hertz(mel.hertz_to_mel(440.0, scale), scale) == pytest.approx(440.0)
    with pytest.raises(ArgumentError, match="mel_scale"):
        mel.hertz_to_mel(1.0, "bark")


def test_spectrogram_is_the_fourier_transform_of_frames() -> None:
    sound = audio("chord", 4000, 16000, 0).astype(np.float32)
    window = spectrum.window_function(400)
    found = spectrum.spectrogram(sound, window, 400, 160, power=None)
    wanted = torch.stft(
        torch.from_numpy(sound).double(), 400, 160, window=torch.from_numpy(window), return_complex=True
    )
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    for bad in ({"hop_length": 0}, {"fft_length": 200}, {"power": None, "mel_filters": np.ones((201, 2))}):
        with pytest.raises(ArgumentError):
            spectrum.spectrogram(sound, window, 400, **{"hop_length": 160, **bad})


def test_resampling_keeps_a_tone() -> None:
    old, new, tone = 16000, 24000, 440.0
    sound = np.sin(2 * np.pi * tone * np.arange(old) / old).astype(np.float32)
    moved = resample(sound, old, new)
    wanted = np.sin(2 * np.pi * tone * np.arange(new) / new)
    assert moved.shape == (new,) and np.abs(moved - wanted)[500:-500].max() < 5e-3
    assert resample(sound, 8000, 8000) is sound


def test_log_mels_without_torch_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = phyla.WhisperFeatureExtractor(chunk_length=1)
    sound = audio("noise", 16000, 16000, 0).astype(np.float32)
    with_torch = extractor(sound, sampling_rate=16000, return_tensors="np")["input_features"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    without = extractor(sound, sampling_rate=16000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(without, with_torch, atol=1e-3)
    with pytest.raises(ArgumentError, match="needs torch"):
        extractor(sound, sampling_rate=16000, device="cuda")


def test_auto_names_exist() -> None:
    for name in set(EXTRACTOR_NAMES.values()):
        assert getattr(phyla, name) is not None


def test_auto_by_model_type_and_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        phyla.AutoFeatureExtractor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "wavlm"}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    found = phyla.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(found) is phyla.Wav2Vec2FeatureExtractor and found.do_normalize is False
    (tmp_path / "config.json").write_text('{"model_type": "wavln"}')
    with pytest.raises(ConfigError, match="wavlm"):
        phyla.AutoFeatureExtractor.from_pretrained(tmp_path)


def test_pages_are_read_as_browsers_nest_them() -> None:
    reader = phyla.MarkupLMFeatureExtractor()
    page = "<html><body><p>one<br>two</p><p>three &amp; four</p><div/><!-- note -->x</wrong></body></html>"
    found = reader(page)
    assert found["nodes"] == [["one", "two", "three & four", "note", "x"]]
    assert found["xpaths"][0][0] == "/html/body/p[1]" and found["xpaths"][0][-1] == "/html/body"
    with pytest.raises(ArgumentError):
        reader(3)


BEATS = [0.1, 0.5, 0.92, 1.3]


def test_beats_of_a_batch() -> None:
    extractor = phyla.Pop2PianoFeatureExtractor(feature_size=16, window_size=512, hop_length=256, num_bars=1)
    sound = audio("chord", 35000, 22050, 0).astype(np.float32)
    one = extractor(sound, 22050, beat_times=BEATS)
    two = extractor(
        [sound, sound.tolist()], [22050, 22050], beat_times=[BEATS, BEATS], return_attention_mask=True
    )
    rows = len(one["input_features"])
    assert one["input_features"].shape[2] == 16 and two["input_features"].shape[0] == 2 * rows + 2
    np.testing.assert_array_equal(two["input_features"][:rows], one["input_features"])
    assert np.flatnonzero(two["attention_mask"][:, 0] == 0).tolist() == [rows, 2 * rows + 1]
    assert not two["input_features"][rows].any()
    np.testing.assert_allclose(one["beatsteps"][0, :7:2], BEATS, atol=1e-2)
    half = resample(sound, 22050, 11025, 50, 0.95, 13.0)
    slow = extractor(half, 11025, beat_times=BEATS)
    assert np.abs(slow["input_features"][:, :, :4] - one["input_features"][:, :, :4]).mean() < 0.5
    with pytest.raises(ArgumentError, match="a list of as many sampling_rate"):
        extractor([sound, sound], 22050, beat_times=[BEATS, BEATS])
    with pytest.raises(ArgumentError, match="two beats or more, but has 1"):
        extractor(sound, 22050, beat_times=[0.5])
    with pytest.raises(ArgumentError, match="must be mono"):
        extractor(np.zeros((2, 500)), 22050, beat_times=BEATS)


def test_beats_are_found_by_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "essentia", None)
    extractor, sound = phyla.Pop2PianoFeatureExtractor(), np.zeros(30000, np.float32)
    with pytest.raises(MissingExtraError, match=r"essentia.*phyla\[beats\]"):
        extractor(sound, 22050)
    found = types.SimpleNamespace(
        RhythmExtractor2013=lambda method: lambda audio: (120.0, np.array(BEATS), 1.0, [], [])
    )
    monkeypatch.setitem(sys.modules, "essentia", types.SimpleNamespace(standard=found))
    monkeypatch.setitem(sys.modules, "essentia.standard", found)
    wanted = extractor(sound, 22050, beat_times=BEATS)
    np.testing.assert_array_equal(extractor(sound, 22050)["beatsteps"], wanted["beatsteps"])
