"""What must hold for every family, generated from the packed goldens: one class of each kind a family."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import phyla
from phyla.describe import meta_model
from phyla.errors import MissingWeightsError
from phyla.registry import table
from phyla.testing import properties
from phyla.testing.goldens import Golden, read_names, read_pack

torch.set_num_threads(1)
GOLDENS = Path(__file__).with_name("goldens")
BASE = ("base-model", "causal-lm", "seq2seq-lm", "text-encoding", "masked-lm")


ALL = ("text", "multimodal", "vision", "audio", "time-series", "trajectory", "graph", "draft")


def cases(tasks: tuple[str, ...], modality: tuple[str, ...] = ALL) -> list:
    found = []
    for row in table().values():
        pack = GOLDENS / f"{row.model_type}.tar.xz"
        if row.modality not in modality or not pack.exists():
            continue
        names = read_names(pack)
        found += [
            (row.model_type, name) for name, task in row.classes.items() if task in tasks and name in names
        ]
    return [pytest.param(*case, id="/".join(case)) for case in found]


@functools.lru_cache(maxsize=8)
def goldens(model_type: str) -> dict[str, Golden]:
    return {golden.name: golden for golden in read_pack(GOLDENS / f"{model_type}.tar.xz")}


@functools.lru_cache(maxsize=64)
def load(model_type: str, name: str, decoder: bool = False) -> phyla.PreTrainedModel:
    """The golden's model; `decoder` makes one of an encoder with a language head (BERT)."""
    changes = CAUSAL.get(model_type, {"is_decoder": True}) if decoder else {}
    with tempfile.TemporaryDirectory() as folder:
        goldens(model_type)[name].write_checkpoint(Path(folder))
        return getattr(phyla, name).from_pretrained(folder, **changes)


def inputs_of(model_type: str, name: str) -> dict:
    inputs = goldens(model_type)[name].inputs()
    if name in NOISY:  # numbers drawn in a call differ from call to call
        order = torch.randperm(NOISY[name], generator=torch.Generator().manual_seed(5))
        inputs["noise"] = order.expand(len(inputs["pixel_values"]), -1) / NOISY[name]
    return inputs


# Classes that hide places at random, and how many places there are.
NOISY = {"ViTMAEModel": 16, "ViTMAEForPreTraining": 16, "HieraForPreTraining": 4}


# What makes a decoder of a family, where is_decoder does not.
CAUSAL: dict[str, dict] = {"xlnet": {"attn_type": "uni"}}

text = pytest.mark.parametrize(("model_type", "name"), cases(BASE, ("text",)))
decoders = pytest.mark.parametrize(("model_type", "name"), cases(("causal-lm", "seq2seq-lm"), ("text",)))
every = pytest.mark.parametrize(
    ("model_type", "name"), cases(tuple({t for r in table().values() for t in r.classes.values()}))
)
backbones = pytest.mark.parametrize(("model_type", "name"), cases(("base-model",)))


# Families that padding reaches by their maths, although a mask says where it is.
PADDING_COUNTS = {
    "canine": "molecules join padding with the characters beside it",
    "fnet": "the Fourier transform goes over the whole row",
    "reformer": "chunks begin at the first position, padding or not, and the first one sees the last",
    "dpr": "a text is one vector, that of its first position, real or not; there are no states by token",
}
padded = pytest.mark.parametrize(
    ("model_type", "name"), [case for case in cases(BASE, ("text",)) if case.values[0] not in PADDING_COUNTS]
)


@contextmanager
def as_meant(model: phyla.PreTrainedModel) -> Iterator[phyla.PreTrainedModel]:
    """The model without the step by which public results depend on the length of a call (ProphetNet)."""
    parts = [module for module in model.modules() if hasattr(module, "reads_by_place")]
    for part in parts:
        part.reads_by_place = False
    try:
        yield model
    finally:
        for part in parts:
            part.reads_by_place = True


@padded
@torch.no_grad()
def test_padding_does_not_matter(model_type: str, name: str) -> None:
    with as_meant(load(model_type, name)) as model:
        properties.padding_does_not_matter(model)


@padded
@torch.no_grad()
def test_batch_equals_singles(model_type: str, name: str) -> None:
    with as_meant(load(model_type, name)) as model:
        properties.batch_equals_singles(model)


@decoders
@pytest.mark.parametrize("chunks", [(5, 1, 1, 1, 1), (1,) * 6, (4, 4), (2, 3, 1, 4)], ids=str)
@torch.no_grad()
def test_cached_equals_uncached(model_type: str, name: str, chunks: tuple[int, ...]) -> None:
    with as_meant(load(model_type, name, decoder=True)) as model:
        properties.cached_equals_uncached(model, chunks)


@every
def test_gradients_reach_every_parameter(model_type: str, name: str) -> None:
    inputs = inputs_of(model_type, name)
    inputs.pop("attention_mask", None)
    properties.gradients_reach_all(load(model_type, name), inputs, UNREACHED.get(name, ()) + SILENT)


# A constant added to all scores of a query: softmax cannot see it, so its gradient is zero.
SILENT = ("attn.k.bias", "attn.k_global.bias", "cross.k.bias")
# Detectors: the stem and the first stage of a ResNet stay as they were pretrained; states of queries begin as
# zeros, and so do their first values and norms.
HELD = ("features.body.embed.", "features.body.layers.0.")
DETR = (*HELD, "decoder.layers.0.attn.v.weight", "decoder.layers.0.attn.pre_norm.weight")
CONDITIONAL = (*DETR, "decoder.layers.0.attn.q.weight", "decoder.layers.0.attn.k.weight", "k_place.bias")
# Parameters that the recorded inputs do not reach: cross-attention without an encoder, a mask token without
# a mask; and CLIP's image classifier stores a norm that it does not use.
UNREACHED: dict[str, tuple[str, ...]] = {
    # Files of these hold the pool of an encoder whose states alone are read.
    "EncoderDecoderModel": (".pool.",),
    "VisionEncoderDecoderModel": (".pool.",),
    "SpeechEncoderDecoderModel": ("hidden.vector",),
    # the recorded passages stand in for a question encoder and a retriever
    "RagModel": (".question_encoder.",),
    "RagSequenceForGeneration": (".question_encoder.",),
    "RagTokenForGeneration": (".question_encoder.",),
    "ProphetNetForCausalLM": (".cross.",),
    "MvpForCausalLM": (".cross.",),
    "TrOCRForCausalLM": (".cross.",),
    "BartForCausalLM": (".cross.",),
    "DecisionTransformerModel": ("trunk.embed.tokens",),  # the trunk gets vectors
    "BlenderbotSmallForCausalLM": (".cross.",),
    "BlenderbotForCausalLM": (".cross.",),
    "MBartForCausalLM": (".cross.",),
    "MarianForCausalLM": (".cross.",),
    "PLBartForCausalLM": (".cross.",),
    "WhisperForCausalLM": (".cross.",),
    "PegasusForCausalLM": (".cross.",),
    "CLIPForImageClassification": (
        ".pool.norm",
    ),  # its files hold the norm of the pooled vector that it does not use
    # Files of these hold a whole vision tower; the text reads the states of one layer, or patches alone.
    "SiglipForImageClassification": (".pool.",),
    "LlavaForConditionalGeneration": ("vision.layers.1.", "vision.pool."),
    "LlavaNextForConditionalGeneration": ("vision.pool.",),
    "PaliGemmaForConditionalGeneration": ("vision.pool.",),
    "Gemma3ForConditionalGeneration": ("vision.pool.",),
    # queries alone pass the queries' feed-forwards; texts and images are compared, not read together
    "Blip2Model": ("qformer.layers.0.ffn.", "qformer.layers.1.ffn."),
    "Blip2ForConditionalGeneration": ("qformer.layers.0.ffn.", "qformer.layers.1.ffn."),
    "Blip2ForImageTextRetrieval": ("head.match",),
    # the decoder's files hold tables that no layer reads
    "UdopModel": ("kept.",),
    "UdopForConditionalGeneration": ("kept.",),
    # the vector that stands for hidden frames, which are hidden in training alone
    "Wav2Vec2Model": ("hidden.vector",),
    "Wav2Vec2ForMaskedLM": ("hidden.vector",),
    "Wav2Vec2ForCTC": ("hidden.vector",),
    "Wav2Vec2ForSequenceClassification": ("hidden.vector",),
    "Wav2Vec2ForAudioFrameClassification": ("hidden.vector",),
    "WavLMModel": ("hidden.vector",),
    "WavLMForCTC": ("hidden.vector",),
    "WavLMForSequenceClassification": ("hidden.vector",),
    "WavLMForAudioFrameClassification": ("hidden.vector",),
    # ... and the classes of the speaker loss
    "Wav2Vec2ForXVector": ("hidden.vector", "head.classes"),
    "WavLMForXVector": ("hidden.vector", "head.classes"),
    # ... and scores that only training draws codes from
    "Wav2Vec2ForPreTraining": ("hidden.vector", "quantiser.score"),
    "Dinov2Model": (".mask_token",),  # without bool_masked_pos, as the four below
    "Dinov2ForImageClassification": (".mask_token",),
    "Dinov2Backbone": (".mask_token", ".pool"),
    "SwinForMaskedImageModeling": (".mask_token",),
    # what `predict_contacts` reads, which no forward pass does
    "EsmModel": (".contacts",),
    "EsmForMaskedLM": (".contacts",),
    "EsmForSequenceClassification": (".contacts",),
    "EsmForTokenClassification": (".contacts",),
    # without operations nothing reads the pool; the column is an argmax, and only a loss reads its scores
    "TapasForQuestionAnswering": (".pool.", ".column."),
    # labels of a row are read from its first molecule, before the way back to characters
    "CanineForSequenceClassification": (".up.", ".final."),
    "CanineForMultipleChoice": (".up.", ".final."),
    # files of these classes hold a pool that they do not use
    "CanineForTokenClassification": (".pool.",),
    "CanineForQuestionAnswering": (".pool.",),
    "FNetForMaskedLM": (".pool.",),
    "FNetForTokenClassification": (".pool.",),
    "FNetForQuestionAnswering": (".pool.",),
    "DeiTForMaskedImageModeling": (".mask_token",),
    # The last layer is not among those that the scores are read from.
    "BeitForSemanticSegmentation": ("backbone.layers.3.", "auxiliary."),
    # The coarsest map has no coarser one to join; further scores count in the loss alone.
    "DPTForDepthEstimation": ("neck.layers.0.side", "backbone.norm"),
    "DPTForSemanticSegmentation": ("neck.layers.0.side", "backbone.norm", "auxiliary."),
    "DepthAnythingForDepthEstimation": ("neck.layers.0.side", ".mask_token"),
    "BitBackbone": (".body.norm",),  # its files hold the norm behind the last stage, of which no map is made
    # Tables of waves are fixed parameters in these files.
    "ViTMAEModel": (".position",),
    "ViTMAEForPreTraining": (".position", "head.position"),
    "EncodecModel": ("backbone.encoder",),  # codes are numbers, through which no gradient goes
    "MusicgenModel": (".cross.",),
    "MusicgenForCausalLM": (".cross.",),
    "MusicgenForConditionalGeneration": ("audio_encoder",),  # which `generate` needs, not the scores
    "SpeechT5ForSpeechToText": ("hidden.vector",),
    # the stop scores count in the loss and in generate_speech
    "SpeechT5ForTextToSpeech": ("head.stop",),
    "SpeechT5ForSpeechToSpeech": ("hidden.vector", "head.stop"),
    # only training reads true frames and learns durations, which are whole numbers here
    "VitsModel": ("posterior.", "durations."),
    "ViTForMaskedImageModeling": (".mask_token",),  # without bool_masked_pos
    "DetrModel": DETR,
    "DetrForObjectDetection": DETR,
    "DetrForSegmentation": DETR,
    "TableTransformerModel": DETR,
    "TableTransformerForObjectDetection": DETR,
    # what reads masks, of which there are none, and the mask that stands for all three of a prompt
    "SamModel": ("prompts.first", "prompts.second", "prompts.third", "decoder.mixes.0"),
    "ConditionalDetrModel": CONDITIONAL,
    "ConditionalDetrForObjectDetection": CONDITIONAL,
    "DeformableDetrModel": HELD,
    "DeformableDetrForObjectDetection": HELD,
    # what global tokens ask through, where the caller names none
    "LongformerModel": ("_global.",),
    "LongformerForMaskedLM": ("_global.",),
    "LongformerForTokenClassification": ("_global.",),
    "LongformerForMultipleChoice": ("_global.",),
    "LEDModel": ("_global.",),
    "LEDForConditionalGeneration": ("_global.",),
    "LEDForSequenceClassification": ("_global.",),
    "LEDForQuestionAnswering": ("_global.",),
    # the labels are read from the one token that is global, so the last layer's other answers are not
    "LongformerForSequenceClassification": ("layers.1.attn.q.", "layers.1.attn.k.", "layers.1.attn.v."),
    # files of these classes hold a pool that they do not use
    "BigBirdForMaskedLM": (".pool.",),
    "BigBirdForCausalLM": (".pool.",),
    "BigBirdForSequenceClassification": (".pool.",),
    "BigBirdForTokenClassification": (".pool.",),
    # the vector of a target without targets, and what tells segments apart without token types
    "XLNetModel": (".blank", ".segment"),
    "XLNetLMHeadModel": (".blank", ".segment"),
    "XLNetForSequenceClassification": (".blank", ".segment"),
    "XLNetForTokenClassification": (".blank", ".segment"),
    "XLNetForQuestionAnsweringSimple": (".blank", ".segment"),
    "XLNetForMultipleChoice": (".blank", ".segment"),
    # no row is in the other language
    "XmodModel": (".de_DE.",),
    "XmodForMaskedLM": (".de_DE.",),
    "XmodForCausalLM": (".de_DE.",),
    "XmodForSequenceClassification": (".de_DE.",),
    "XmodForTokenClassification": (".de_DE.",),
    "XmodForQuestionAnswering": (".de_DE.",),
    "XmodForMultipleChoice": (".de_DE.",),
}


@every
@torch.no_grad()
def test_open_attention_equals_fused(model_type: str, name: str) -> None:
    model = load(model_type, name)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        for module in model.modules():
            if hasattr(module, "softcap") and hasattr(module, "q"):
                module.softcap = None
    properties.open_equals_fused(model, inputs_of(model_type, name))


# Models whose states jump where rounding changes a choice.
ROUNDING_CHOOSES = {
    "encodec": "a rounded state has another nearest code, and the rest is coded after it",
    "segformer": "four stages of random weights amplify rounding; the reference departs by 0.522, phyla too",
    "grounding-dino": "scores choose which places become queries; a map of one place is normed to rounding",
    "superglue": "scores choose which points there are: others, and another number of them",
    "jamba": "four routers in eight layers; the reference departs by 0.110 in the same test, phyla by 0.107",
    "diffusion_gemma": "routers in four layers; the reference departs by 0.546, phyla by 0.521",
    "diffusion_gemma_text": "routers in four layers; the reference departs by 0.343, phyla by 0.335",
    "udop": "boxes are rounded too, and words move to other patches; with exact boxes it departs by 0.011",
    "switch_transformers": "nine of 76 recorded tokens go to another expert, and to no second one",
}
steady = pytest.mark.parametrize(
    ("model_type", "name"),
    [case for case in cases(("base-model",)) if case.values[0] not in ROUNDING_CHOOSES],
)


@steady
@torch.no_grad()
def test_bfloat16_is_close(model_type: str, name: str) -> None:
    properties.low_precision_is_close(load(model_type, name), inputs_of(model_type, name))


@every
def test_a_meta_build_allocates_nothing(model_type: str, name: str) -> None:
    config = load(model_type, name).config
    model = meta_model(getattr(phyla, name), config)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


@every
def test_fresh_weights_round_trip(model_type: str, name: str, tmp_path: Path) -> None:
    cls = getattr(phyla, name)
    torch.manual_seed(0)
    config = type(load(model_type, name).config).from_dict(goldens(model_type)[name].facts["config"])
    model = cls.from_config(config)
    assert all(p.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@every
def test_every_missing_tensor_is_named(model_type: str, name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    golden = goldens(model_type)[name]
    golden.write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    # Whole numbers are tables that follow from the configuration, and counters.
    needed = sorted(n for n, t in tensors.items() if t.is_floating_point())
    lost = needed[len(needed) // 2]
    copies = {
        n
        for n, t in tensors.items()
        if n != lost and t.shape == tensors[lost].shape and torch.equal(t, tensors[lost])
    }
    tensors = {n: t for n, t in tensors.items() if n != lost and n not in copies}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=lost.replace(".", r"\.")):
        getattr(phyla, name).from_pretrained(tmp_path)


@backbones
@torch.no_grad()
def test_a_tuple_holds_the_same_values(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name), inputs_of(model_type, name)
    named = model(**inputs)
    plain = model(**inputs, return_dict=False)
    assert len(plain) == len(named)
    assert torch.equal(plain[0], named[0])


# Models whose shapes depend on values.
UNGRAPHED = {
    "superglue": "how many points an image has depends on its pixels",
    "superpoint": "how many points an image has depends on its pixels",
    "llava_next": "how many places an image takes, and in which grid, depends on the numbers in image_sizes",
    "vits": "how long the speech is depends on the durations that it predicts",
}


def one_a_family() -> list:
    """The bare model of each family, else the first class that is recorded: families of tasks alone."""
    found = {}
    for case in (*cases(("base-model",)), *every.args[1]):
        found.setdefault(case.values[0], case)
    return [case for name, case in found.items() if name not in UNGRAPHED]


def test_every_family_is_asked_for_one_graph() -> None:
    packed = {row.model_type for row in table().values() if (GOLDENS / f"{row.model_type}.tar.xz").exists()}
    assert {case.values[0] for case in one_a_family()} | set(UNGRAPHED) == packed


graphed = pytest.mark.parametrize(("model_type", "name"), one_a_family())


def first_tensor(out: object) -> torch.Tensor:
    """The first of what a model gives, which for backbones lies in a tuple."""
    while not isinstance(out, torch.Tensor):
        out = next(iter(out.values())) if isinstance(out, dict) else out[0]  # type: ignore[index]
    return out


@pytest.mark.slow
@graphed
@torch.no_grad()
def test_one_graph_compiles_and_exports(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name), inputs_of(model_type, name)
    if "use_cache" in model.forward.__annotations__:
        inputs["use_cache"] = False
    wanted = first_tensor(model(**inputs))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    properties.assert_close(first_tensor(compiled(**inputs)), wanted, "compiled")
    exported = torch.export.export(model, (), inputs, strict=False)
    properties.assert_close(first_tensor(exported.module()(**inputs)), wanted, "exported")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("bert", "BertModel"), ("bloom", "BloomModel"), ("t5", "T5Model"), ("udop", "UdopModel")],
)
def test_recomputed_layers_give_the_same_gradients(model_type: str, name: str) -> None:
    model, inputs, found = load(model_type, name), inputs_of(model_type, name), []
    try:
        for recompute in (False, True):
            model.train()
            model._set_checkpointing(recompute)
            model.zero_grad()
            torch.manual_seed(0)  # dropout draws the same
            model(**inputs)[0].square().sum().backward()
            found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    finally:
        model.eval()
        model._set_checkpointing(False)
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for n, grad in found[0].items():
        properties.assert_close(found[1][n], grad, n)
