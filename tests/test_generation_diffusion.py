"""Text written from noise, a block at a time: against the reference, by rows, with samplers and streamers."""

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import phyla
from phyla.errors import AdapterError, ArgumentError, ConfigError, GenerationError, UnknownArgumentError
from phyla.generation.denoise import generate_blocks
from phyla.heads.canvas import Denoising
from phyla.testing.goldens import read_pack

torch.set_num_threads(1)
HERE = Path(__file__).parent
CASES = {c["name"]: c for c in json.loads((HERE / "data" / "diffusion_generation.json").read_text())["cases"]}


@functools.cache
def golden():
    pack = read_pack(HERE / "goldens" / "diffusion_gemma.tar.xz")
    return next(g for g in pack if g.class_name == "DiffusionGemmaForBlockDiffusion")


def write_calm(folder: Path, **changes: object) -> None:
    """The golden's checkpoint, with weights that do not amplify rounding from step to step."""
    golden().write_checkpoint(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("layer_scalar"):
            weights[name] = 1 + tensor
        elif "self_conditioning.down_proj" in name:
            weights[name] = tensor * 0.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@functools.cache
def model(**changes: object) -> phyla.PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        write_calm(Path(folder), **changes)
        return phyla.DiffusionGemmaForBlockDiffusion.from_pretrained(folder)


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(8, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_writes_what_the_reference_writes(name: str) -> None:
    case = CASES[name]
    tiny, settings = model(**case.get("changes", {})), dict(case["settings"])
    if "entropy_bound" in case:
        settings["sampler_config"] = phyla.EntropyBoundSamplerConfig(case["entropy_bound"])
    inputs = {
        k: golden().inputs()[k] if v == "golden" else torch.tensor(v) for k, v in case["inputs"].items()
    }
    torch.manual_seed(case["seed"])
    out = tiny.generate(**inputs, **settings)
    assert out.sequences.tolist() == case["sequences"]
    assert out.tokens_per_forward.tolist() == pytest.approx(case["tokens_per_forward"], abs=1e-5)
    if "second" in case:  # a dialogue goes on: the cache lacks the last block
        unread = out.sequences[:, out.past_key_values.get_seq_length() :]
        torch.manual_seed(case["seed"] + 1)
        more = torch.cat([unread, torch.tensor(case["more"])], 1)
        out = tiny.generate(more, past_key_values=out.past_key_values, **settings)
        assert out.sequences.tolist() == case["second"]


STEPS = {"max_new_tokens": 12, "max_denoising_steps": 4, "return_dict_in_generate": False}


def test_rows_with_seeds_of_their_own_do_not_depend_on_each_other() -> None:
    texts = [ids(1, n, n) for n in (9, 4, 6)]
    ends = {
        "eos_token_id": [20, 31, 44, 57, 63, 79, 90],
        "stability_threshold": 0,
        "confidence_threshold": 4.0,
    }
    alone = [model().generate(t, seed=[s], **STEPS, **ends)[:, t.shape[1] :] for s, t in enumerate(texts)]
    for side in ("left", "right"):
        rows = torch.zeros(3, 9, dtype=torch.long)
        for row, text in enumerate(texts):
            at = slice(9 - text.shape[1], 9) if side == "left" else slice(text.shape[1])
            rows[row, at] = text[0]
        together = model().generate(rows, attention_mask=(rows > 0).long(), seed=[0, 1, 2], **STEPS, **ends)
        assert torch.equal(together[:, :9], rows)
        for row, wanted in enumerate(alone):
            width = wanted.shape[1]  # a row that is over is padded to the longest
            assert torch.equal(together[row, 9 : 9 + width], wanted[0])
            assert bool((together[row, 9 + width :] == 0).all())
    assert not torch.equal(alone[0], model().generate(texts[0], seed=[7], **STEPS, **ends)[:, 9:])
    one = [model().generate(texts[0], seed=5, **STEPS) for _ in range(2)]
    assert torch.equal(*one)


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded", "quantized"])
def test_kinds_of_cache(kind: str) -> None:
    text, more = ids(2, 7), {"seed": 3, "cache_implementation": kind}
    wanted = model().generate(text, seed=3, **STEPS)
    if kind == "quantized":
        more["cache_config"] = {"residual_length": 64}  # nothing is packed yet
    assert torch.equal(model().generate(text, **STEPS, **more), wanted)
    cache = phyla.DynamicCache()
    assert torch.equal(model().generate(text, past_key_values=cache, seed=3, **STEPS), wanted)
    assert cache.get_seq_length() == 7 + 6


def test_processors_criteria_and_samplers_of_ones_own() -> None:
    seen: list[tuple[int, tuple]] = []

    class Only(phyla.LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, cur_step: int) -> torch.Tensor:
            seen.append((cur_step, tuple(scores.shape)))
            return torch.full_like(scores, -1e4).index_fill(-1, torch.tensor([50]), 0.0)

    out = model().generate(ids(1, 5), logits_processor=[Only()], **STEPS)
    assert out[0, 5:].tolist() == [50] * 12 and seen[0] == (4, (1, 6, 99))
    assert len(seen) == 4  # the second step of each block is as sure as the first

    class Full(phyla.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: object, **extra: object) -> bool:
            return extra["new_token_length"] == 6

    assert model().generate(ids(2, 5), stopping_criteria=[Full()], **STEPS).shape == (2, 11)

    class Twos(phyla.CanvasSampler):
        def accept_canvas(self, current, drawn, logits, cur_step):
            return torch.full_like(current, 2)

        def text(self, canvas, best):
            return canvas

    twos = Twos(None, 6, 99, 4)
    assert model().generate(ids(1, 5), sampler=twos, **STEPS)[0, 5:].tolist() == [2] * 12


# Streams


class Words:
    """A tokenizer of numbers."""

    def decode(self, tokens: object, **options: object) -> str:
        return "".join(f"{int(t)} " for t in tokens)


def test_drafts_are_printed_and_taken_back(capsys: pytest.CaptureFixture) -> None:
    streamer = phyla.TextDiffusionStreamer(Words(), skip_prompt=True, sleep_time=0.0)
    out = model().generate(ids(1, 5), streamer=streamer, seed=1, **STEPS)
    printed = capsys.readouterr().out
    assert printed.count("\0337\033[33m") == printed.count("\0338\033[J") == 8
    for draft in printed.split("\0337")[1:]:
        printed = printed.replace("\0337" + draft.split("\0338\033[J")[0] + "\0338\033[J", "")
    assert printed == Words().decode(out[0, 5:]) + "\n"


def test_streams_of_several_rows(capsys: pytest.CaptureFixture) -> None:
    told: dict[int, str] = {0: "", 1: ""}
    streamer = phyla.TextDiffusionStreamer(
        Words(), on_text=lambda row, text, end: told.update({row: told[row] + text})
    )
    out = model().generate(ids(2, 5), streamer=streamer, seed=1, **STEPS)
    assert [told[0], told[1]] == [Words().decode(row) for row in out]
    assert "[0] " in capsys.readouterr().out
    plain = phyla.TextIteratorStreamer(Words())
    out = model().generate(ids(2, 5), streamer=plain, seed=1, **STEPS)
    pieces = list(plain)
    assert "".join(p for p in pieces if p.row == 1) == Words().decode(out[1])


def test_streams_of_scores_and_of_failures() -> None:
    class Scores(phyla.TextDiffusionStreamer):
        def put_draft(self, value=None, **others):
            shapes.append((value, tuple(others["logits"].shape)))

    shapes: list = []
    streamer = Scores(Words(), on_text=lambda *told: None)
    streamer._takes_logits = True
    model().generate(ids(1, 5), streamer=streamer, **STEPS)
    assert shapes == [(None, (1, 6, 99))] * 8

    class Broken(phyla.LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise RuntimeError("broken")

    plain = phyla.TextIteratorStreamer(Words())
    with pytest.raises(RuntimeError, match="broken"):
        model().generate(ids(1, 5), streamer=plain, logits_processor=[Broken()], **STEPS)
    with pytest.raises(RuntimeError, match="broken"):
        list(plain)


# Settings


def test_settings_and_their_files(tmp_path: Path) -> None:
    config = phyla.DiffusionGemmaGenerationConfig(
        max_denoising_steps=3, t_min=0.1, t_max=0.3, eos_token_id=[1, 106],
        sampler_config=phyla.EntropyBoundSamplerConfig(0.25),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert kept["sampler_config"] == {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.25}
    again = phyla.DiffusionGemmaGenerationConfig.from_pretrained(tmp_path)
    assert again == config and again.sampler_config.entropy_bound == 0.25
    assert again.return_dict_in_generate and again.max_new_tokens is None
    assert isinstance(again, phyla.GenerationConfig)
    # the model takes them from its folder, and writes them back
    write_calm(tmp_path)
    config.save_pretrained(tmp_path)
    read = phyla.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(read).__name__ == "DiffusionGemmaForBlockDiffusion" and read.generation_config == config
    out = read.generate(ids(1, 5), max_new_tokens=1, seed=1)
    assert out.sequences.shape == (1, 11) and out.tokens_per_forward.tolist() == [2.0]
    read.save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert kept["sampler_config"]["entropy_bound"] == 0.25 and kept["eos_token_id"] == [1, 106]
    # plain settings count where they say something that these have too
    plain = phyla.GenerationConfig(max_new_tokens=6, return_dict_in_generate=False, temperature=0.5)
    assert read.generate(ids(1, 5), generation_config=plain, seed=1).shape == (1, 11)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_denoising_steps": 0}, {"t_min": -1.0}, {"t_min": 0.5, "t_max": 0.5},
        {"stability_threshold": 1.5},
        {"confidence_threshold": 0}, {"max_new_tokens": 0}, {"block_length": -6}, {"sampler_config": 3},
        {"cache_implementation": "paper"}, {"sampler_config": {"entropy_bound": 0.1}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(fields: dict) -> None:
    with pytest.raises(GenerationError):
        phyla.DiffusionGemmaGenerationConfig(**fields)
    with pytest.raises(GenerationError):
        model().generate(ids(1, 5), **fields)


def test_what_is_refused() -> None:
    with pytest.raises(UnknownArgumentError, match="max_new_tokens"):
        phyla.DiffusionGemmaGenerationConfig(max_new_token=3)
    with pytest.raises(GenerationError, match="one strategy"):
        phyla.DiffusionGemmaGenerationConfig().get_generation_mode()
    with pytest.raises(UnknownArgumentError, match="num_beams"):
        model().generate(ids(1, 5), num_beams=2)
    with pytest.raises(ArgumentError, match="decoder_input_ids"):
        model().generate(ids(2, 5), decoder_input_ids=ids(2, 5), **STEPS)
    with pytest.raises(GenerationError, match="stands for unknown"):
        model().generate(ids(1, 5), sampler_config=phyla.LowConfidenceSamplerConfig())
    with pytest.raises(GenerationError, match="not both"):
        model().generate(ids(1, 5), past_key_values=phyla.DynamicCache(), cache_implementation="static")
    with pytest.raises(GenerationError, match="max_length"):
        model().generate(ids(1, 5), max_length=5)
    with pytest.raises(ArgumentError, match="past_key_values"):
        model()(decoder_input_ids=ids(1, 6))
    with pytest.raises(GenerationError):
        phyla.Engine(model())
    for fields in ({"temperature": -1.0}, {"confidence": "luck"}):
        with pytest.raises(GenerationError):
            phyla.LowConfidenceSamplerConfig(**fields)
    with pytest.raises(GenerationError):
        phyla.EntropyBoundSamplerConfig(1)
    with pytest.raises(ConfigError, match="attention_bias"):
        config = golden().facts["config"]
        phyla.DiffusionGemmaModel(
            phyla.DiffusionGemmaConfig(
                **{**config, "text_config": config["text_config"] | {"attention_bias": True}}
            )
        )


# Samplers


def flat(chances: list[float]) -> torch.Tensor:
    """Scores (1, C, 2) with these chances of the first of two tokens."""
    first = torch.tensor([chances])
    return torch.stack([first, 1 - first], -1).log()


def test_tokens_of_least_entropy_are_kept() -> None:
    scores = flat([0.5, 0.99, 0.999, 0.9])
    entropy = -(scores.exp() * scores).sum(-1)[0]
    for bound, kept in ((0.001, {2}), (float(entropy[2]), {1, 2}), (float(entropy[[1, 2]].sum()), {1, 2, 3})):
        sampler = phyla.EntropyBoundSampler(phyla.EntropyBoundSamplerConfig(bound + 1e-5), 4, 2, 8)
        old, new = torch.full((1, 4), 7), torch.zeros(1, 4, dtype=torch.long)
        accepted = sampler.accept_canvas(old, new, scores, 8)
        assert {i for i, token in enumerate(accepted[0].tolist()) if token == 0} == kept
        noisy = sampler.renoise_canvas(accepted, 8)
        assert all(noisy[0, i] == 0 for i in kept) and int(noisy.max()) < 2


def test_the_surest_masks_are_kept_first() -> None:
    scores = torch.tensor(
        [[[0.0, 3.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 4.0]]]
    )
    scores = nn.functional.pad(scores, (0, 1), value=9.0)
    sampler = phyla.LowConfidenceSampler(phyla.LowConfidenceSamplerConfig(), 5, 4, 2, mask_token=3)
    canvas = sampler.initialize_canvas(1, "cpu")
    assert canvas.tolist() == [[3] * 5] and not bool(sampler.known(canvas))
    drawn = sampler.draw(scores)
    assert drawn.tolist() == [[1, 1, 0, 2, 2]]  # never the mask itself
    canvas = sampler.accept_canvas(canvas, drawn, scores, 2)
    assert canvas.tolist() == [[1, 3, 0, 3, 2]]  # three of five, then the other two
    assert sampler.text(canvas, drawn).tolist() == [[1, 1, 0, 2, 2]]
    canvas = sampler.accept_canvas(canvas, drawn, scores, 1)
    assert canvas.tolist() == [[1, 1, 0, 2, 2]] and bool(sampler.known(canvas))
    sure = phyla.LowConfidenceSampler(phyla.LowConfidenceSamplerConfig(threshold=0.6), 5, 4, 9, mask_token=3)
    kept = sure.accept_canvas(torch.full((1, 5), 3), drawn, scores, 9)
    assert kept.tolist() == [[1, 3, 0, 2, 2]]
    for kind in ("margin", "entropy"):
        own = phyla.LowConfidenceSampler(phyla.LowConfidenceSamplerConfig(confidence=kind), 5, 4, 5, 3)
        assert own.confidence(scores, drawn)[0].argsort(descending=True).tolist() == [2, 4, 0, 3, 1]


def test_stable_and_confident() -> None:
    sure, unsure = flat([0.9999, 0.9999]), flat([0.5, 0.5])
    stop = phyla.StableAndConfidentStoppingCriteria(2, 0.1)
    one, other = torch.tensor([[1, 2]]), torch.tensor([[1, 3]])
    calls = [(one, sure)] * 3 + [(one, unsure), (other, sure)] + [(one, sure)] * 3
    told = [bool(stop(canvas, scores)) for canvas, scores in calls]
    assert told == [False, False, True, False, False, False, False, True]
    stop.reset()
    assert not bool(stop(one, sure))
    assert bool(phyla.StableAndConfidentStoppingCriteria(0, 0.1)(one, sure))
    heat = phyla.LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, 10)
    assert float(heat(one, torch.tensor(1.0), cur_step=10)) == pytest.approx(1 / 0.8)
    assert float(heat(one, torch.tensor(1.0), cur_step=5)) == pytest.approx(1 / 0.6)


# Masked diffusion of models without a memory


class Reader(nn.Module):
    """A model that sees both sides, as families with masked diffusion would be."""

    def __init__(self, **said: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        self.config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace())
        denoising = Denoising(mask=lambda c: 19, **said)
        self.head_spec, self.device, self.dtype = SimpleNamespace(denoising=denoising), "cpu", torch.float32
        self.generation_config = phyla.DiffusionGemmaGenerationConfig(return_dict_in_generate=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        place = torch.sin(torch.arange(input_ids.shape[1])[:, None] * torch.arange(1, 17) / 5)
        hidden = None if attention_mask is None else attention_mask == 0
        return SimpleNamespace(logits=self.out(self.mix(self.embed(input_ids) + place, None, hidden)))


def by_hand(reader: Reader, text: torch.Tensor, new: int, block: int, steps: int, shift: int) -> list[int]:
    """Low-confidence remasking, one token after the other, for one row."""
    x = torch.cat([text, torch.full((1, new), 19)], 1)
    for begin in range(text.shape[1], x.shape[1], block):
        for left in range(steps, 0, -1):
            places = [i for i in range(begin, begin + block) if x[0, i] == 19]
            scores = reader(x).logits[0]
            scores[:, 19] = -torch.inf
            chances = scores.softmax(-1)
            best = {i: chances[i - shift].max(0) for i in places}
            for i in sorted(places, key=lambda i: -float(best[i].values))[: -(-len(places) // left)]:
                x[0, i] = best[i].indices
    return x[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize(
    ("shifted", "block", "steps"), [(False, 4, 3), (True, 4, 4), (False, 8, 8), (True, 8, 2)]
)
def test_masked_diffusion(shifted: bool, block: int, steps: int) -> None:
    reader = Reader(shifted=shifted, block=(lambda c: block) if block == 4 else None)
    text = torch.tensor([[3, 7, 1, 9, 4]])
    wanted = by_hand(reader, text, 8, block, steps, int(shifted))
    assert 19 not in wanted
    found = generate_blocks(reader, text, max_new_tokens=8, max_denoising_steps=steps)
    assert found[0].tolist() == wanted
    both = generate_blocks(
        reader,
        text.repeat(2, 1),
        max_new_tokens=8,
        max_denoising_steps=steps,
        attention_mask=torch.ones(2, 5),
    )
    assert both.tolist() == [wanted] * 2
    drawn = generate_blocks(
        reader, text, max_new_tokens=8, seed=[1],
        sampler_config=phyla.LowConfidenceSamplerConfig(temperature=1.0, confidence="random"),
    )  # fmt: skip
    assert drawn.shape == (1, 13) and 19 not in drawn[0].tolist()


# The model


@torch.no_grad()
def test_parts_by_themselves(tmp_path: Path) -> None:
    whole, inputs = model(), golden().inputs()
    images = {k: inputs[k] for k in ("input_ids", "pixel_values", "image_position_ids")}
    wanted = whole(**images, decoder_input_ids=inputs["decoder_input_ids"])
    state = whole.state_dict_public()
    for name, ahead in (("Encoder", "model.encoder."), ("Decoder", "model.decoder.")):
        folder = tmp_path / name
        folder.mkdir()
        own = {k.removeprefix(ahead): v for k, v in state.items() if k.startswith(ahead)}
        if name == "Encoder":  # files of the part alone have all of it
            shared = {
                k: v for k, v in state.items() if k.startswith("model.decoder.") and "layer_scalar" not in k
            }
            own |= {
                k.replace("model.decoder.", "language_model."): v
                for k, v in shared.items()
                if "self_conditioning" not in k
            }
        save_file({k: v.contiguous() for k, v in own.items()}, folder / "model.safetensors")
        whole.config.save_pretrained(folder)
    reader = phyla.DiffusionGemmaEncoderModel.from_pretrained(tmp_path / "Encoder")
    read = reader(**images)
    torch.testing.assert_close(read.last_hidden_state, wanted.encoder_last_hidden_state)
    refiner = phyla.DiffusionGemmaDecoderModel.from_pretrained(tmp_path / "Decoder")
    found = refiner(inputs["decoder_input_ids"], past_key_values=read.past_key_values)
    logits = whole.head.scores(found.last_hidden_state)
    torch.testing.assert_close(logits, wanted.logits)
    assert read.past_key_values.length == images["input_ids"].shape[1]


@torch.no_grad()
def test_padding_hides_from_the_canvas_too() -> None:
    text, canvas = ids(2, 6), ids(2, 6, 1)
    wanted = model()(text, decoder_input_ids=canvas).logits
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), text], 1)
    found = model()(padded, attention_mask=(padded > 0).long(), decoder_input_ids=canvas).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    behind = torch.cat([text, torch.zeros(2, 1, dtype=torch.long)], 1)
    found = model()(behind, attention_mask=(behind > 0).long(), decoder_input_ids=canvas).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_text_that_reads_both_ways() -> None:
    config = golden().facts["config"]["text_config"]
    text = ids(1, 12)
    other = text.clone()
    other[0, -1] = 8
    for kind, changes in ((None, False), ("all", True)):
        said = {**config, "use_bidirectional_attention": kind}
        torch.manual_seed(0)
        tiny = phyla.DiffusionGemmaEncoderTextModel(phyla.DiffusionGemmaTextConfig(**said)).eval()
        first = [tiny(t).last_hidden_state[:, 0] for t in (text, other)]
        assert torch.allclose(*first, atol=1e-6) is not changes


def test_learns() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_calm(Path(folder))
        tiny = phyla.DiffusionGemmaForBlockDiffusion.from_pretrained(folder)
    canvas, labels = ids(2, 6, 1), ids(2, 6, 2)
    out = tiny(ids(2, 7), decoder_input_ids=canvas, labels=labels)
    wanted = nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, wanted)
    out.loss.backward()
    assert all(p.grad is not None for n, p in tiny.named_parameters() if ".text." in n)


@pytest.mark.parametrize(
    "method", ["lora[r=2]", "seq_bn[reduction_factor=4]", "prompt_tuning[prompt_length=3]"]
)
def test_adapters_write_too(method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_calm(Path(folder))
        tiny = phyla.DiffusionGemmaForBlockDiffusion.from_pretrained(folder)
    rows = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids(1, 5)], 1)
    asked = {"attention_mask": (rows > 0).long(), "seed": 1, **STEPS}
    plain = tiny.generate(rows, **asked)
    tiny.add_adapter("a", config=method, set_active=True)
    with torch.no_grad():
        for name, parameter in tiny.named_parameters():
            if name.startswith("adapters.") or ".a." in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    changed = tiny.generate(rows, **asked)
    assert changed.shape == plain.shape and not torch.equal(changed, plain)
    tiny.set_active_adapters(None)
    assert torch.equal(tiny.generate(rows, **asked), plain)
    with pytest.raises(AdapterError):
        tiny.set_active_adapters("b")
