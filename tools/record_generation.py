"""Record what the reference generates with every strategy, from tiny models.

    REFERENCE_PYTHON tools/record_generation.py

The interpreter has the reference installed; PYTHONPATH names this repository. Weights follow from names and
shapes (phyla.testing.seeded), matrices times `factor`. tests/test_generation_strategies.py replays
tests/goldens/generation.json.xz, tests/test_generation_drawn.py calls of settings drawn by chance,
tests/goldens/generation_drawn.json.xz (`--drawn` records those alone).
"""

import json
import lzma
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from phyla.testing.seeded import seeded_weight

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "generation.json.xz"
DRAWN = TARGET.with_name("generation_drawn.json.xz")
DECODER = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict, float]] = {
    "decoder": ("LlamaForCausalLM", DECODER, 2.0),
    "draft": ("LlamaForCausalLM", {**DECODER, "num_hidden_layers": 2}, 2.0),
    "tied": ("GPT2LMHeadModel", {
        "vocab_size": 61, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 96, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }, 1.5),
    "two-sided": ("T5ForConditionalGeneration", {
        "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }, 1.2),
    "small-two-sided": ("T5ForConditionalGeneration", {
        "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }, 1.2),
}  # fmt: skip
ONE = {"input_ids": [[5, 6, 7, 8, 9, 10, 11]]}
COPY = {"input_ids": [[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]]}
TWO = {
    "input_ids": [[5, 6, 7, 8, 9, 10, 11], [0, 0, 12, 13, 14, 15, 16]],
    "attention_mask": [[1] * 7, [0] * 2 + [1] * 5],
}
RIGHT = {
    "input_ids": [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 0, 0]],
    "attention_mask": [[1] * 7, [1] * 5 + [0] * 2],
}
FIELDS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
STATES = {**FIELDS, "output_attentions": True, "output_hidden_states": True}
KINDS = ("decoder", "tied", "two-sided")
SYNTH = {"ngram_len": 3, "keys": [654, 400, 836, 123], "context_history_size": 16}


def prompts(model: str) -> dict:
    return RIGHT if model == "two-sided" else TWO


def cases() -> Any:
    """(name, model, draft or None, arguments)."""
    for model in KINDS:
        ids = prompts(model)
        group = {**ids, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "max_new_tokens": 9}
        calls: dict[str, dict] = {
            "group": group,
            "group-all": {**group, "num_return_sequences": 4, **FIELDS},
            "group-four": {**group, "num_beam_groups": 4, "num_return_sequences": 3, "length_penalty": 0.3},
            "group-early": {**group, "early_stopping": True, "num_beams": 6, "eos_token_id": 31},
            "group-never": {
                **group, "early_stopping": "never", "length_penalty": 2.0, "eos_token_id": [2, 9],
            },
            "group-penalties": {**group, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
            "contrast": {**ids, "penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": 12},
            "contrast-some": {**ids, "penalty_alpha": 0.3, "top_k": 6, "max_new_tokens": 12, **FIELDS},
            "contrast-penalty": {
                **ids, "penalty_alpha": 0.5, "top_k": 5, "max_new_tokens": 10, "repetition_penalty": 1.2,
            },
            "greedy": {**ids, "max_new_tokens": 10, **FIELDS},
            "greedy-states": {**ONE, "max_new_tokens": 8, **STATES},
            "beam-states": {**ONE, "num_beams": 3, "max_new_tokens": 8, **STATES},
            "beam": {**ids, "num_beams": 3, "max_new_tokens": 8, "num_return_sequences": 2, **FIELDS},
            "green": {**ids, "max_new_tokens": 12, "watermark": {"bias": 3.0}},
            "green-self": {
                **ids, "max_new_tokens": 12,
                "watermark": {"bias": 4.0, "seeding_scheme": "selfhash", "context_width": 2},
            },
            "synth": {**ids, "max_new_tokens": 12, "watermark": SYNTH, **FIELDS},
            "synth-skip": {
                **ids, "max_new_tokens": 12, "watermark": {**SYNTH, "skip_first_ngram_calls": True}, **FIELDS,
            },
            "bias": {**ids, "max_new_tokens": 8, "sequence_bias": [[[20], 8.0], [[20, 21], 9.0]]},
            "decay": {**ids, "max_new_tokens": 12, "exponential_decay_length_penalty": [3, 1.9]},
        }  # fmt: skip
        words = {
            "phrase": [[20, 21, 22]], "two": [[20, 21], [33]], "choice": [[[20, 21], [25, 26, 27]]],
            "both": [[40, 41], [[50], [51, 52]]],
        }  # fmt: skip
        for name, forced in words.items():
            for count in (2, 4, 6):
                calls[f"forced-{name}-{count}"] = {
                    **ids, "num_beams": count, "force_words_ids": forced, "max_new_tokens": 10,
                }  # fmt: skip
        calls["forced-scores"] = {
            **ids, "num_beams": 5, "force_words_ids": [[20, 21, 22], [[33, 34], [44]]], "max_new_tokens": 12,
            "return_dict_in_generate": True, "output_scores": True,
        }  # fmt: skip
        for name, call in calls.items():
            yield f"{model}-{name}", model, None, call
    yield "decoder-contrast-states", "decoder", None, {**ONE, "penalty_alpha": 0.6, "top_k": 4,
                                                       "max_new_tokens": 6, **STATES}  # fmt: skip
    yield "decoder-contrast-memory", "decoder", None, {**ONE, "penalty_alpha": 0.6, "top_k": 4,
                                                       "max_new_tokens": 9, "low_memory": True}  # fmt: skip
    for model in ("decoder", "tied"):
        for name, layers in {"low": "low", "high": "high", "list": [1, 2], "one": [2]}.items():
            call = {**ONE, "dola_layers": layers, "max_new_tokens": 10, "repetition_penalty": 1.2}
            yield f"{model}-layers-{name}", model, None, call
        call = {**ONE, "dola_layers": "low", "max_new_tokens": 6, **STATES}
        yield f"{model}-layers-states", model, None, call
    for model in ("decoder", "tied"):
        for count, longest in ((3, None), (5, 3), (10, 1)):
            call = {**COPY, "prompt_lookup_num_tokens": count, "max_matching_ngram_size": longest,
                    "max_new_tokens": 17, "eos_token_id": 2}  # fmt: skip
            yield f"{model}-lookup-{count}", model, None, call
    call = {**COPY, "prompt_lookup_num_tokens": 4, "max_new_tokens": 10, **FIELDS}
    yield "decoder-lookup-fields", "decoder", None, call
    for schedule in ("constant", "heuristic", "heuristic_transient"):
        call = {**ONE, "max_new_tokens": 16, "draft": {"num_assistant_tokens_schedule": schedule}}
        yield f"decoder-draft-{schedule}", "decoder", "draft", call
    call = {**ONE, "max_new_tokens": 12, "draft": {"num_assistant_tokens": 4}, **FIELDS}
    yield "decoder-draft-fields", "decoder", "draft", call
    call = {**ONE, "max_new_tokens": 12, "repetition_penalty": 1.4}
    yield "decoder-draft-penalty", "decoder", "draft", call
    yield "decoder-draft-itself", "decoder", "decoder", {**ONE, "max_new_tokens": 12}
    sides = {"input_ids": RIGHT["input_ids"][:1], "max_new_tokens": 12}
    yield "two-sided-draft", "two-sided", "small-two-sided", sides
    call = {**ONE, "max_new_tokens": 9, "draft": {"num_assistant_tokens": 4}, **STATES}
    yield "decoder-draft-states", "decoder", "draft", call
    for layers in (1, 3, 5):
        yield f"decoder-exit-{layers}", "decoder", None, {
            **ONE, "assistant_early_exit": layers, "max_new_tokens": 12,
        }  # fmt: skip
    for scale in (1.5, 3.0):
        call = {**ONE, "guidance_scale": scale, "negative_prompt_ids": [[20, 21, 22]], "max_new_tokens": 10}
        yield f"decoder-guided-{scale}", "decoder", None, call


# what a drawn call may set, by strategy; criteria are pairs (name of the class, argument)
WAYS: dict[str, dict] = {
    "greedy": {},
    "beam": {
        "num_beams": [2, 3, 5], "length_penalty": [0.0, 0.4, -1.0, 2.0], "num_return_sequences": [1, 2],
        "early_stopping": [True, False, "never"],
    },
    "group": {"num_beams": [4], "num_beam_groups": [2, 4], "diversity_penalty": [0.2, 1.5]},
    "contrast": {"penalty_alpha": [0.3, 0.7], "top_k": [3, 5]},
}  # fmt: skip
MANY = list(range(5, 61, 6))
SETTINGS: dict[str, list] = {
    "repetition_penalty": [1.3, 0.8], "no_repeat_ngram_size": [1, 2], "encoder_repetition_penalty": [1.4],
    "encoder_no_repeat_ngram_size": [1, 2], "min_length": [4, 12], "min_new_tokens": [3],
    "bad_words_ids": [[[7]], [[x] for x in range(5, 40, 3)]],
    "sequence_bias": [[[[20], 6.0], [[20, 21], 5.0]]],
    "suppress_tokens": [list(range(5, 50, 2))], "begin_suppress_tokens": [list(range(20, 55))],
    "forced_bos_token_id": [11], "forced_eos_token_id": [2, [2, 9]], "remove_invalid_values": [True],
    "renormalize_logits": [True], "use_cache": [False], "cache_implementation": ["static"],
    "watermark": [{"bias": 3.0}], "eos_token_id": [MANY, 9, [2, 9]],
    "criteria": [["MaxLengthCriteria", 11], ["MaxLengthCriteria", 25], ["EosTokenCriteria", MANY]],
}  # fmt: skip


def drawn(count: int = 90) -> Any:
    """(name, model, draft or None, arguments) of calls drawn by chance, the same at every run."""
    chance = random.Random(11)
    for number in range(count):
        model, way = chance.choice(KINDS), chance.choice(list(WAYS))
        call: dict[str, Any] = dict(ONE if way == "beam" else prompts(model))
        call |= {name: chance.choice(values) for name, values in WAYS[way].items()}
        names = chance.sample(list(SETTINGS), chance.choice([1, 2, 2, 3]))
        call |= {name: chance.choice(SETTINGS[name]) for name in names}
        if way == "beam":
            call["pad_token_id"] = 4  # 0 counts as none there, and room is made for max_new_tokens alone
            call.pop("criteria", None)
        if way != "greedy":
            call.pop("encoder_repetition_penalty", None)  # reaches the first rows alone there
        if "attention_mask" in call:
            for name in ("repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
                         "encoder_repetition_penalty"):  # fmt: skip
                call.pop(name, None)  # padding counts there
        if way == "contrast":
            for name in ("use_cache", "cache_implementation"):
                call.pop(name, None)  # it must be its own cache there
        if way == "group":
            for name in ("criteria", "eos_token_id"):
                call.pop(name, None)  # the end there is that of the whole search
        call["max_new_tokens"] = chance.choice([1, 5, 9])
        yield f"{number}-{model}-{way}", model, None, {**call, **FIELDS}


def weights(tensors: list, factor: float) -> dict[str, torch.Tensor]:
    """The weights of a model by names and shapes."""
    made = {}
    for name, shape in tensors:
        value = torch.from_numpy(seeded_weight(name, shape)).reshape(shape)
        made[name] = value * factor if len(shape) > 1 else value
    return made


def digest(value: Any) -> Any:
    """Numbers that tell two outputs apart: shapes and means over what is finite."""
    if torch.is_tensor(value):
        finite = value.float().clamp(-1e4, 1e4)
        return [list(value.shape), float(finite.mean()), float(finite.abs().amax())]
    return [digest(v) for v in value]


def plain(out: Any) -> dict:
    if torch.is_tensor(out):
        return {"sequences": out.tolist()}
    kept: dict[str, Any] = {"sequences": out.sequences.tolist()}
    for name, value in out.items():
        if value is None or name in ("sequences", "past_key_values"):
            continue
        kept[name] = value.tolist() if name in ("sequences_scores", "beam_indices") else digest(value)
    return kept


def build(key: str) -> tuple[Any, dict]:
    import transformers

    kind, config, factor = MODELS[key]
    cls = getattr(transformers, kind)
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class(**config)).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        stored = load_file(path)
        tensors = [[n, list(t.shape)] for n, t in stored.items() if t.is_floating_point()]
        save_file({**stored, **weights(tensors, factor)}, path, metadata={"format": "pt"})
        written = json.loads((Path(folder) / "config.json").read_text())
        model = cls.from_pretrained(folder, attn_implementation="eager").eval()
    return model, {"cls": kind, "config": written, "factor": factor, "tensors": tensors}


def record(key: str, draft: str | None, call: dict) -> dict:
    import transformers

    model, _ = build(key)
    given = dict(call)
    for name in ("input_ids", "attention_mask", "negative_prompt_ids"):
        if name in given:
            given[name] = torch.tensor(given[name])
    mark = given.pop("watermark", None)
    if mark is not None:
        kind = "SynthIDTextWatermarkingConfig" if "keys" in mark else "WatermarkingConfig"
        given["watermarking_config"] = getattr(transformers, kind)(**mark)
    criterion = given.pop("criteria", None)
    if criterion is not None:
        given["stopping_criteria"] = [getattr(transformers, criterion[0])(criterion[1])]
    drafting = given.pop("draft", {})
    if draft is not None:
        given["assistant_model"] = build(draft)[0]
        given["assistant_model"].generation_config.update(**drafting)
    torch.manual_seed(7)
    with torch.no_grad():
        out = model.generate(**given)
    kept = plain(out)
    if "prompt_lookup_num_tokens" in call:  # which the reference takes past the limit at times
        end = len(call["input_ids"][0]) + call["max_new_tokens"]
        kept["sequences"] = [row[:end] for row in kept["sequences"]]
    return {"model": key, "draft": draft, "call": call, "out": kept}


def marks() -> dict:
    """What the detectors say of fixed texts."""
    import transformers

    texts = torch.tensor([[(i * i * 7 + 3 * i + row) % 50 + 3 for i in range(40)] for row in range(3)])
    config = transformers.LlamaConfig(**DECODER)
    found: dict[str, Any] = {"texts": texts.tolist(), "green": []}
    for settings in (
        {}, {"greenlist_ratio": 0.5, "seeding_scheme": "selfhash", "context_width": 3}, {"hashing_key": 77},
    ):  # fmt: skip
        for once in (False, True):
            mark = transformers.WatermarkingConfig(**settings)
            detector = transformers.WatermarkDetector(config, "cpu", mark, ignore_repeated_ngrams=False)
            detector.ignore_repeated_ngrams = once
            out = detector(texts, return_dict=True)
            fields = {k: v.tolist() for k, v in vars(out).items()}
            found["green"].append({"settings": settings, "once": once, "out": fields})
    processor = transformers.SynthIDTextWatermarkLogitsProcessor(
        sampling_table_size=2**10, sampling_table_seed=3, device="cpu", **SYNTH
    )
    found["synth"] = {
        "flips": processor.compute_g_values(texts).tolist(),
        "new": processor.compute_context_repetition_mask(texts % 4).tolist(),
        "real": processor.compute_eos_token_mask(texts, 20).tolist(),
        "mean": processor.expected_mean_g_value(61),
    }
    torch.manual_seed(0)
    model = transformers.BayesianDetectorModel(transformers.BayesianDetectorConfig(watermarking_depth=4))
    state = {k: torch.from_numpy(seeded_weight(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict({**state, "prior": torch.tensor([0.4])})
    flips, mask = processor.compute_g_values(texts), processor.compute_context_repetition_mask(texts)
    labels = torch.tensor([1.0, 0.0, 1.0])
    out = model(flips, mask, labels=labels, return_dict=True)
    found["bayes"] = {"chances": out.posterior_probabilities.tolist(), "loss": float(out.loss)}
    return found


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    calls = {name: record(*case) for name, *case in drawn()}
    text = json.dumps({"reference": "transformers 4.50.3", "cases": calls}, separators=(",", ":"))
    DRAWN.write_bytes(lzma.compress(text.encode(), preset=9))
    print(f"{DRAWN.name}: {len(calls)} cases, {DRAWN.stat().st_size} bytes")
    if "--drawn" in sys.argv:
        return
    models = {key: build(key)[1] for key in MODELS}
    made = {name: record(*case) for name, *case in cases()}
    whole = {"reference": "transformers 4.50.3", "models": models, "cases": made, "marks": marks()}
    TARGET.write_bytes(lzma.compress(json.dumps(whole, separators=(",", ":")).encode(), preset=9))
    print(f"{TARGET.name}: {len(made)} cases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
