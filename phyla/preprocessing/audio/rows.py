"""The public feature extractors, one row each."""

from .table import Row

ROWS: dict[str, Row] = {
    "ASTFeatureExtractor": Row(
        "fixed",
        dict(
            feature_size=1, sampling_rate=16000, num_mel_bins=128, max_length=1024, padding_value=0.0,
            do_normalize=True, mean=-4.2677393, std=4.5689974, return_attention_mask=False,
        ),
        ("input_values", "attention_mask"),
    ),
    "ClapFeatureExtractor": Row(
        "fused",
        dict(
            feature_size=64, sampling_rate=48000, hop_length=480, max_length_s=10, fft_window_size=1024,
            padding_value=0.0, return_attention_mask=False, frequency_min=0, frequency_max=14000,
            top_db=None, truncation="fusion", padding="repeatpad",
        ),
        ("input_features", "is_longer"),
        unsaved=("mel_filters", "mel_filters_slaney"),
    ),
    "ClvpFeatureExtractor": Row(
        "clip",
        dict(
            feature_size=80, sampling_rate=22050, default_audio_length=6, hop_length=256, chunk_length=30,
            n_fft=1024, padding_value=0.0, mel_norms=None, return_attention_mask=False,
        ),
        ("input_features", "attention_mask"),
        fixed={"scale": "htk"},
    ),
    "DacFeatureExtractor": Row(
        "hops",
        dict(feature_size=1, sampling_rate=16000, padding_value=0.0, hop_length=512),
        ("input_values", "n_quantizers"),
    ),
    "EncodecFeatureExtractor": Row(
        "chunks",
        dict(feature_size=1, sampling_rate=24000, padding_value=0.0, chunk_length_s=None, overlap=None),
        ("input_values", "padding_mask"),
    ),
    "MCTCTFeatureExtractor": Row(
        "cepstra",
        dict(
            feature_size=80, sampling_rate=16000, padding_value=0.0, hop_length=10, win_length=25,
            win_function="hamming_window", frame_signal_scale=32768.0, preemphasis_coeff=0.97, mel_floor=1.0,
            normalize_means=True, normalize_vars=True, return_attention_mask=False,
        ),
        ("input_features", "attention_mask"),
    ),
    "MusicgenMelodyFeatureExtractor": Row(
        "chroma",
        dict(
            feature_size=12, sampling_rate=32000, hop_length=4096, chunk_length=30, n_fft=16384, num_chroma=12,
            padding_value=0.0, return_attention_mask=False, stem_indices=[3, 2],
        ),
        ("input_features",),
        unsaved=("mel_filters", "window", "chroma_filters"),
    ),
    "SeamlessM4TFeatureExtractor": Row(
        "strided",
        dict(feature_size=80, sampling_rate=16000, num_mel_bins=80, padding_value=0.0, stride=2),
        ("input_features", "attention_mask"),
    ),
    "Speech2TextFeatureExtractor": Row(
        "kaldi",
        dict(
            feature_size=80, sampling_rate=16000, num_mel_bins=80, padding_value=0.0, dither=0.0,
            do_ceptral_normalize=True, normalize_means=True, normalize_vars=True,
        ),
        ("input_features", "attention_mask"),
    ),
    "SpeechT5FeatureExtractor": Row(
        "target",
        dict(
            feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=False, num_mel_bins=80,
            hop_length=16, win_length=64, win_function="hann_window", frame_signal_scale=1.0, fmin=80,
            fmax=7600, mel_floor=1e-10, reduction_factor=2, return_attention_mask=True,
        ),
        ("input_values", "attention_mask"),
        unsaved=("window", "mel_filters", "sample_size", "sample_stride", "n_fft", "n_freqs"),
    ),
    "TvltFeatureExtractor": Row(
        "patches",
        dict(
            spectrogram_length=2048, num_channels=1, patch_size=[16, 16], feature_size=128,
            sampling_rate=44100, hop_length_to_sampling_rate=86, n_fft=2048, padding_value=0.0,
        ),
        ("audio_values", "audio_mask"),
    ),
    "UnivNetFeatureExtractor": Row(
        "vocoder",
        dict(
            feature_size=1, sampling_rate=24000, padding_value=0.0, do_normalize=False, num_mel_bins=100,
            hop_length=256, win_length=1024, win_function="hann_window", filter_length=1024, max_length_s=10,
            fmin=0.0, fmax=None, mel_floor=1e-9, center=False, compression_factor=1.0,
            compression_clip_val=1e-5, normalize_min=-11.512925148010254, normalize_max=2.3143386840820312,
            model_in_channels=64, pad_end_length=10, return_attention_mask=True,
        ),
        ("input_features", "noise_sequence", "padding_mask"),
        unsaved=("window", "mel_filters", "n_fft", "n_freqs", "num_max_samples"),
    ),
    "Wav2Vec2FeatureExtractor": Row(
        "wave",
        dict(
            feature_size=1, sampling_rate=16000, padding_value=0.0, return_attention_mask=False,
            do_normalize=True,
        ),
        ("input_values", "attention_mask"),
    ),
    "WhisperFeatureExtractor": Row(
        "chunk",
        dict(
            feature_size=80, sampling_rate=16000, hop_length=160, chunk_length=30, n_fft=400,
            padding_value=0.0, dither=0.0, return_attention_mask=False,
        ),
        ("input_features",),
        fixed={"scale": "slaney"},
    ),
}  # fmt: skip

# Extractors of something else than sound: the class that each is.
OTHER = {"MarkupLMFeatureExtractor": "markup"}
