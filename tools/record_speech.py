"""Record what the reference hears and says: transcription, music and speech of tiny models.

    REFERENCE_PYTHON tools/record_speech.py

The interpreter has the reference installed; PYTHONPATH names this repository. Weights follow from names and
shapes (phyla.testing.seeded), matrices times `factor` so that outputs vary; inputs from names and shapes too.
tests/test_speech.py replays tests/goldens/speech.json.xz.
"""

import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from phyla.testing.seeded import seeded_input, seeded_weight

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "speech.json.xz"
EOS, START, STAMP = 100, 101, 109
HEARS = {
    "vocab_size": 143, "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32,
    "d_model": 16, "max_source_positions": 32, "max_target_positions": 40, "decoder_start_token_id": START,
    "pad_token_id": EOS, "bos_token_id": EOS, "eos_token_id": EOS, "begin_suppress_tokens": None,
}  # fmt: skip
HEARING = {
    "decoder_start_token_id": START, "pad_token_id": EOS, "bos_token_id": EOS, "eos_token_id": EOS,
    "no_timestamps_token_id": STAMP, "max_initial_timestamp_index": 20, "prev_sot_token_id": 107,
    "suppress_tokens": [START, 105, 106, 107, 108, 3, 102, 103, 104], "begin_suppress_tokens": [5, EOS],
    "max_length": 30, "alignment_heads": [[0, 1], [1, 0], [1, 1]],
}  # fmt: skip
MANY = {
    **HEARING, "is_multilingual": True, "lang_to_id": {"<|en|>": 102, "<|de|>": 103, "<|fr|>": 104},
    "task_to_id": {"translate": 105, "transcribe": 106},
}  # fmt: skip
SHORT = {"input_features": {"shape": [2, 8, 64]}}
LONG = {"input_features": {"shape": [1, 8, 200]}, "return_segments": True}
MASK = [[1] * 220, [1] * 150 + [0] * 70, [1] * 90 + [0] * 130]
BATCH = {"input_features": {"shape": [3, 8, 220]}, "attention_mask": MASK, "return_segments": True}
PROMPT = [107, 11, 12, 13]
TRANSCRIPTS: dict[str, dict[str, Any]] = {
    "short": SHORT,
    "languages": {**SHORT, "language": ["en", "<|fr|>"], "task": "translate"},
    "stamps": {**SHORT, "language": "german", "return_timestamps": True, "return_segments": True},
    "beams": {**SHORT, "language": "en", "num_beams": 3, "return_timestamps": True},
    "token-times": {**SHORT, "language": "en", "return_token_timestamps": True, "return_timestamps": True},
    "prompt": {**SHORT, "language": "en", "prompt_ids": PROMPT},
    "whole-call": {**SHORT, "language": "en", "force_unique_generate_call": True},
    "long": LONG,
    "long-token-times": {**LONG, "return_token_timestamps": True},
    "long-conditioned": {**LONG, "condition_on_prev_tokens": True},
    "long-prompts": {
        **LONG, "prompt_ids": PROMPT, "condition_on_prev_tokens": True,
        "prompt_condition_type": "all-segments",
    },
    "long-batch": BATCH,
    "long-batch-conditioned": {**BATCH, "condition_on_prev_tokens": True},
    "long-thresholds": {
        **BATCH, "temperature": [0.0, 0.0], "compression_ratio_threshold": 1.1, "logprob_threshold": -1.0,
    },
}  # fmt: skip
TEXT = {
    "vocab_size": 99, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "model_type": "t5",
}  # fmt: skip
CODEC = {
    "codebook_size": 32, "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2],
    "target_bandwidths": [120.0], "model_type": "encodec", "sampling_rate": 24000,
}  # fmt: skip
CODES = {
    "vocab_size": 32, "pad_token_id": 32, "bos_token_id": 32, "hidden_size": 32, "ffn_dim": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "model_type": "musicgen_decoder",
}  # fmt: skip
PLAYING = {"bos_token_id": 32, "pad_token_id": 32, "decoder_start_token_id": 32}
WORDS = {
    "input_ids": [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 0, 0]],
    "attention_mask": [[1] * 7, [1] * 5 + [0] * 2], "do_sample": False, "max_new_tokens": 12,
}  # fmt: skip
SPEAKS = {
    "vocab_size": 40, "hidden_size": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_layers": 2, "decoder_ffn_dim": 48, "decoder_attention_heads": 4,
    "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_mel_bins": 20,
    "speech_decoder_prenet_units": 24, "speaker_embedding_dim": 12, "speech_decoder_postnet_layers": 3,
    "speech_decoder_postnet_units": 16, "max_speech_positions": 200, "max_text_positions": 60,
    "encoder_max_relative_position": 10,
}  # fmt: skip
VOCODER = {
    "model_in_dim": 20, "upsample_initial_channel": 16, "upsample_rates": [4, 3],
    "upsample_kernel_sizes": [8, 7], "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 2]],
}  # fmt: skip
VOICE = {"speaker_embeddings": {"shape": [2, 12]}, "maxlenratio": 2.0, "threshold": 0.8}
SPOKEN = {"input_ids": [[5, 6, 7, 8, 9, 10], [12, 13, 14, 1, 1, 1]], "return_output_lengths": True, **VOICE}


def cases() -> Any:
    """(name, class, config, generation config, factor, method, arguments)."""
    for name, call in TRANSCRIPTS.items():
        yield f"hear-{name}", "WhisperForConditionalGeneration", HEARS, MANY, 4.0, "generate", call
    skip = {"temperature": [0.0], "logprob_threshold": -0.5}
    yield (
        "hear-english",
        "WhisperForConditionalGeneration",
        HEARS,
        HEARING,
        4.0,
        "generate",
        {**BATCH, **skip},
    )
    for channels, books in ((1, 4), (2, 8)):
        decoder = {**CODES, "audio_channels": channels, "num_codebooks": books}
        config = {"text_encoder": TEXT, "audio_encoder": CODEC, "decoder": decoder}
        sound = {"input_values": {"shape": [2, channels, 48]}}
        calls = {"text": WORDS, "guided": {**WORDS, "guidance_scale": 3.0}, "sound": {**WORDS, **sound}}
        for name, call in calls.items():
            kind = "MusicgenForConditionalGeneration"
            yield f"play-{channels}-{name}", kind, config, PLAYING, 3.0, "generate", call
    frames = {"spectrogram": {"shape": [2, 6, 20]}}
    yield "speak-frames", "SpeechT5HifiGan", VOCODER, None, 1.0, "forward", frames
    yield "speak-text", "SpeechT5ForTextToSpeech", SPEAKS, None, 2.0, "generate_speech", SPOKEN
    sound = {"input_values": {"shape": [2, 700]}, "attention_mask": [[1] * 700, [1] * 500 + [0] * 200]}
    revoiced = {**sound, **VOICE, "maxlenratio": 0.5}
    yield "speak-sound", "SpeechT5ForSpeechToSpeech", SPEAKS, None, 2.0, "generate_speech", revoiced


def argument(name: str, value: Any) -> Any:
    """A tensor of a list of numbers or of a shape, or the value itself."""
    if isinstance(value, dict) and "shape" in value:
        return torch.from_numpy(seeded_input(name, value["shape"]))
    tensors = ("input_ids", "attention_mask", "prompt_ids")
    return torch.tensor(value) if name in tensors else value


def plain(value: Any) -> Any:
    """What a method gave, as JSON keeps it; the outputs behind segments are left out."""
    if torch.is_tensor(value):
        return value.tolist()
    if hasattr(value, "items"):
        return {k: plain(v) for k, v in value.items() if k != "result"}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def weights(tensors: list, factor: float) -> dict[str, torch.Tensor]:
    """The weights of a model by names and shapes."""
    made = {}
    for name, shape in tensors:
        value = torch.from_numpy(seeded_weight(name, shape)).reshape(shape)
        made[name] = value * factor if len(shape) > 1 else value
    return made


def record(
    cls_name: str, config: dict, settings: dict | None, factor: float, method: str, call: dict
) -> dict:
    import transformers

    cls = getattr(transformers, cls_name)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class(**json.loads(json.dumps(config)))).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        stored = load_file(path)
        tensors = [[n, list(t.shape)] for n, t in stored.items() if t.is_floating_point()]
        save_file({**stored, **weights(tensors, factor)}, path, metadata={"format": "pt"})
        written = json.loads((Path(folder) / "config.json").read_text())
        model = cls.from_pretrained(folder).eval()
    if settings is not None:
        model.generation_config = transformers.GenerationConfig(**settings)
    torch.manual_seed(7)
    with torch.no_grad():
        out = getattr(model, method)(**{k: argument(k, v) for k, v in call.items()})
    return {
        "cls": cls_name, "config": written, "generation_config": settings, "factor": factor, "method": method,
        "call": call, "tensors": tensors, "out": plain(out),
    }  # fmt: skip


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    made = {name: record(*case) for name, *case in cases()}
    text = json.dumps({"reference": "transformers 4.50.3", "cases": made}, separators=(",", ":"))
    TARGET.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{TARGET.name}: {len(made)} cases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
