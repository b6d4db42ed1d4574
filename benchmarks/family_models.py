"""The models of families.py: class, configuration in the public keys, and inputs of a realistic size."""

from dataclasses import dataclass, field
from typing import Any

Inputs = dict[str, list[Any]]  # name -> kind and its arguments, see `made` in peers/family_model.py


@dataclass(frozen=True)
class Case:
    """One model; without labels, the loss is the mean square of its first output."""

    name: str
    model: str
    model_type: str
    config: dict[str, Any]
    inputs: Inputs
    labels: Inputs = field(default_factory=dict)
    frozen: tuple[str, ...] = ()  # parts of the names, in either library, of parameters that are not trained


_STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BART_STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
_SMOL = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
_RESNET50 = {
    "model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck", "out_features": ["stage4"],
}  # fmt: skip


def _classes(rows: int) -> Inputs:
    return {"labels": ["whole", 2, [rows]]}


def _tokens(vocab: int, rows: int, length: int) -> Inputs:
    return {"input_ids": ["ids", vocab, [rows, length]], "attention_mask": ["ones", [rows, length], "int64"]}


def _next(vocab: int, rows: int, length: int) -> tuple[Inputs, Inputs]:
    """Inputs and labels of a language model."""
    return _tokens(vocab, rows, length), {"labels": ["ids", vocab, [rows, length]]}


def _pixels(rows: int, size: int = 224) -> Inputs:
    return {"pixel_values": ["normal", [rows, 3, size, size]]}


CASES = (
    Case("bert-base", "BertForSequenceClassification", "bert", {**_BASE, **_STILL}, _tokens(30000, 2, 128),
         _classes(2)),
    Case("albert-base", "AlbertForSequenceClassification", "albert",
         {**_BASE, **_STILL, "classifier_dropout_prob": 0.0}, _tokens(30000, 2, 128), _classes(2)),
    Case("deberta-v3-base", "DebertaV2ForSequenceClassification", "deberta-v2",
         {**_BASE, **_STILL, "vocab_size": 128100, "relative_attention": True, "position_buckets": 256,
          "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
          "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
          "layer_norm_eps": 1e-7, "pooler_dropout": 0.0}, _tokens(128000, 2, 128), _classes(2)),
    Case("modernbert-base", "ModernBertForSequenceClassification", "modernbert",
         {"num_hidden_layers": 22, "hidden_size": 768, "intermediate_size": 1152},
         _tokens(50000, 1, 256), _classes(1)),
    Case("longformer-base", "LongformerForSequenceClassification", "longformer",
         {**_BASE, **_STILL, "vocab_size": 50265, "attention_window": 256, "max_position_embeddings": 4098,
          "pad_token_id": 1}, _tokens(50000, 1, 768), _classes(1)),
    Case("tapas-base", "TapasForSequenceClassification", "tapas", {**_BASE, **_STILL},
         {**_tokens(30000, 1, 256), "token_type_ids": ["whole", 2, [1, 256, 7]]}, _classes(1)),
    Case("gpt2", "GPT2LMHeadModel", "gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
         *_next(50000, 1, 256)),
    Case("gptj-small", "GPTJForCausalLM", "gptj",
         {"n_embd": 768, "n_layer": 12, "n_head": 12, "rotary_dim": 64, "resid_pdrop": 0.0,
          "embd_pdrop": 0.0, "attn_pdrop": 0.0}, *_next(50000, 1, 256)),
    Case("llama-135m", "LlamaForCausalLM", "llama", _SMOL, *_next(49000, 1, 256)),
    Case("mixtral-small", "MixtralForCausalLM", "mixtral",
         {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
          "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8},
         *_next(32000, 1, 256)),
    Case("mamba-130m", "MambaForCausalLM", "mamba", {"hidden_size": 768, "num_hidden_layers": 24},
         {"input_ids": ["ids", 50000, [1, 128]]}, {"labels": ["ids", 50000, [1, 128]]}),
    Case("t5-base", "T5ForConditionalGeneration", "t5",
         {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_layers": 12, "num_heads": 12, "dropout_rate": 0.0,
          "decoder_start_token_id": 0},
         {**_tokens(32000, 1, 256), "decoder_input_ids": ["ids", 32000, [1, 64]]},
         {"labels": ["ids", 32000, [1, 64]]}),
    Case("bart-base", "BartForConditionalGeneration", "bart",
         {**_BART_STILL, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
          "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
          "decoder_ffn_dim": 3072},
         {**_tokens(50000, 1, 256), "decoder_input_ids": ["ids", 50000, [1, 64]]},
         {"labels": ["ids", 50000, [1, 64]]}),
    Case("vit-base", "ViTForImageClassification", "vit", {**_BASE, **_STILL}, _pixels(2), _classes(2)),
    Case("swin-base", "SwinForImageClassification", "swin",
         {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7,
          "drop_path_rate": 0.0}, _pixels(1), _classes(1)),
    Case("resnet50", "ResNetForImageClassification", "resnet",
         {k: v for k, v in _RESNET50.items() if k not in ("model_type", "out_features")}, _pixels(4),
         _classes(4)),
    Case("convnext-tiny", "ConvNextForImageClassification", "convnext",
         {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}, _pixels(4), _classes(4)),
    Case("detr-resnet50", "DetrModel", "detr",
         {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
          "backbone_config": _RESNET50, "dropout": 0.0}, _pixels(1, 480),
         frozen=("backbone.features.", "conv_encoder.")),
    Case("clip-base", "CLIPModel", "clip",
         {"text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
          "vision_config": {"patch_size": 32}},
         {**_tokens(49000, 4, 77), **_pixels(4)}, {"return_loss": ["ones", [1], "bool"]}),
    Case("llava-small", "LlavaForConditionalGeneration", "llava",
         {"text_config": {**_SMOL, "model_type": "llama", "num_hidden_layers": 16},
          "vision_config": {"model_type": "clip_vision_model", "hidden_size": 384,
                            "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
                            "image_size": 224, "patch_size": 14, "projection_dim": 384},
          "image_token_index": 49151, "vision_feature_layer": -2,
          "vision_feature_select_strategy": "default"},
         {"input_ids": ["with_images", 49000, [1, 320], 49151, 256],
          "attention_mask": ["ones", [1, 320], "int64"], **_pixels(1)},
         {"labels": ["ids", 49000, [1, 320]]}),
    Case("wav2vec2-base", "Wav2Vec2Model", "wav2vec2",
         {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0,
          "feat_proj_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0, "apply_spec_augment": False},
         {"input_values": ["normal", [1, 48000]]}),
    Case("whisper-base", "WhisperForConditionalGeneration", "whisper",
         {**_BART_STILL, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6,
          "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048,
          "decoder_ffn_dim": 2048},
         {"input_features": ["normal", [1, 80, 3000]], "decoder_input_ids": ["ids", 50000, [1, 32]]},
         {"labels": ["ids", 50000, [1, 32]]}),
    Case("encodec-24khz", "EncodecModel", "encodec", {}, {"input_values": ["normal", [1, 1, 24000]]}),
    Case("patchtst", "PatchTSTForPrediction", "patchtst",
         {"num_input_channels": 7, "context_length": 512, "patch_length": 16, "patch_stride": 8,
          "prediction_length": 96, "d_model": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
          "ffn_dim": 2048, "attention_dropout": 0.0, "ff_dropout": 0.0, "path_dropout": 0.0,
          "head_dropout": 0.0, "positional_dropout": 0.0},
         {"past_values": ["normal", [1, 512, 7]]}, {"future_values": ["normal", [1, 96, 7]]}),
    Case("perceiver", "PerceiverForMaskedLM", "perceiver", {"attention_probs_dropout_prob": 0.0},
         _tokens(250, 1, 2048), {"labels": ["ids", 250, [1, 2048]]}),
)  # fmt: skip
