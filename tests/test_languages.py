"""Models with a part for each language: rows of a batch, defaults, freezing, generation, adapters, errors."""

import copy
import functools
from pathlib import Path

import pytest
import torch

import phyla
from phyla.adapters import Parallel
from phyla.errors import ArgumentError, ConfigError

LANGUAGES = ["en_XX", "de_DE", "sw_KE"]
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "languages": LANGUAGES,
}  # fmt: skip
NORMS = [
    {},
    {"pre_norm": True},
    {"adapter_layer_norm": True, "ln_before_adapter": False},
    {"adapter_reuse_layer_norm": False},
]
IDS = torch.tensor([[5, 9, 14, 33, 7, 41], [8, 21, 55, 12, 6, 30], [50, 4, 19, 28, 31, 10]])


@functools.cache
def _made(name: str, *changes: tuple[str, object]) -> phyla.PreTrainedModel:
    torch.manual_seed(0)
    model = getattr(phyla, name)(phyla.XmodConfig(**SIZES, **dict(changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def _model(name: str, **changes: object) -> phyla.PreTrainedModel:
    """A model of random weights, in which languages tell."""
    return copy.deepcopy(_made(name, *changes.items()))


@pytest.mark.parametrize("norms", NORMS, ids=str)
@torch.no_grad()
def test_each_row_is_read_in_its_language(norms: dict) -> None:
    model = _model("XmodModel", **norms)
    numbers = [2, 0, 2]
    found = model(IDS, lang_ids=torch.tensor(numbers)).last_hidden_state
    for row, number in enumerate(numbers):
        model.set_default_language(LANGUAGES[number])
        alone = model(IDS[row : row + 1]).last_hidden_state
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    model.set_default_language("de_DE")
    assert (model(IDS).last_hidden_state - found).abs().amax((1, 2)).min() > 0.01


@torch.no_grad()
def test_one_graph_serves_rows_of_all_languages() -> None:
    model, numbers = _model("XmodForMaskedLM"), torch.tensor([1, 2, 0])
    wanted = model(IDS, lang_ids=numbers).logits
    exported = torch.export.export(model, (), {"input_ids": IDS, "lang_ids": numbers}, strict=False)
    torch.testing.assert_close(exported.module()(input_ids=IDS, lang_ids=numbers).logits, wanted)
    others = numbers.flip(0)
    found = exported.module()(input_ids=IDS, lang_ids=others).logits
    torch.testing.assert_close(found, model(IDS, lang_ids=others).logits)


@torch.no_grad()
def test_choices_of_a_row_are_in_its_language() -> None:
    model = _model("XmodForMultipleChoice")
    questions = torch.stack([IDS, IDS.flip(0)])  # (2, 3, 6)
    found = model(questions, lang_ids=torch.tensor([1, 0])).logits
    for row, language in enumerate(("de_DE", "en_XX")):
        model.set_default_language(language)
        torch.testing.assert_close(found[row], model(questions).logits[row])


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_written_in_the_languages_of_their_rows(beams: int) -> None:
    model = _model("XmodForCausalLM", is_decoder=True)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    found = model.generate(IDS, lang_ids=torch.tensor([1, 0, 2]), **settings)
    for row, number in enumerate((1, 0, 2)):
        model.set_default_language(LANGUAGES[number])
        assert torch.equal(model.generate(IDS[row : row + 1], **settings)[0], found[row])


def test_requests_are_in_the_default_language_or_their_own() -> None:
    model = _model("XmodForCausalLM", is_decoder=True, default_language="sw_KE")
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    engine = phyla.Engine(model)
    asked = [engine.submit(IDS[:1], **settings, **own) for own in ({}, {"lang_ids": torch.tensor([1])})]
    for number, request in zip((2, 1), asked, strict=True):
        wanted = model.generate(IDS[:1], lang_ids=torch.tensor([number]), **settings)
        assert request.result().generated_tokens == wanted[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_frozen_are_the_embeddings_and_what_serves_languages_alone(norms: dict) -> None:
    model = _model("XmodForSequenceClassification", default_language="en_XX", **norms)
    model.freeze_embeddings_and_language_adapters()
    held = {n for n, _ in model.named_parameters() if not model.get_parameter(n).requires_grad}
    marks = ("adapter_modules", "adapter_layer_norm", "embeddings")
    saved = {id(t) for n, t in _public(model).items() if any(mark in n for mark in marks)}
    assert held
    assert {id(model.get_parameter(n)) for n in held} == saved
    model(IDS, labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def _public(model: phyla.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters by public name."""
    from phyla.checkpoints.state import layout_of

    layout = layout_of(model)
    lines = [(f"backbone.{o}", line.theirs[0]) for line in layout.backbone for o in line.ours]
    found = {public: path for path, public in lines}
    own = dict(model.named_parameters(remove_duplicate=False))
    return {n: own.get(p, own.get(p.removeprefix("backbone."))) for n, p in found.items()}


def test_the_default_language_is_kept_in_files(tmp_path: Path) -> None:
    model = _model("XmodModel", pre_norm=True)
    model.set_default_language("sw_KE")
    model.save_pretrained(tmp_path)
    again = phyla.AutoModel.from_pretrained(tmp_path)
    assert again.config.default_language == "sw_KE"
    with torch.no_grad():
        assert torch.equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)


@torch.no_grad()
def test_adapters_side_by_side_keep_each_rows_language() -> None:
    model, numbers = _model("XmodModel"), torch.tensor([2, 0, 1])
    alone = []
    for name in ("a", "b"):
        model.add_adapter(name, config="double_seq_bn[reduction_factor=4]")
        for parameter in model.adapters.get(name).parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.set_active_adapters(name)
        alone.append(model(IDS, lang_ids=numbers).last_hidden_state)
    assert (alone[0] - alone[1]).abs().max() > 0.01
    model.set_active_adapters(Parallel("a", "b"))
    found = model(IDS, lang_ids=numbers).last_hidden_state
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_languages_that_are_not_there_are_errors() -> None:
    model = _model("XmodModel")
    with pytest.raises(ArgumentError, match="pass lang_ids"):
        model(IDS)
    with pytest.raises(ArgumentError, match="Did you mean 'de_DE'"):
        model.set_default_language("de_De")
    with pytest.raises(ArgumentError, match="each of 3 rows"):
        model(IDS, lang_ids=torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"from 0 to 2 .* hold 3"):
        model(IDS, lang_ids=torch.tensor([0, 3, 1]))


TEXT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "sliding_window": 4,
}  # fmt: skip


@torch.no_grad()
def test_text_models_that_look_both_ways_see_half_a_window_on_either_side() -> None:
    kinds = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    config = phyla.Gemma3TextConfig(
        **TEXT | {"num_hidden_layers": 1}, layer_types=kinds[:1], use_bidirectional_attention=True
    )
    model, ids = phyla.Gemma3TextModel(config).eval(), torch.arange(10)[None] + 3
    before, changed = model(ids, use_cache=False)[0], ids.clone()
    changed[0, 5] = 40
    moved = (model(changed, use_cache=False)[0] - before).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    whole = phyla.Gemma3TextModel(type(config)(**TEXT, layer_types=kinds, use_bidirectional_attention=True))
    found = whole.eval()(changed, use_cache=False)[0] - whole(ids, use_cache=False)[0]
    assert (found.abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("config", ["Qwen3Config", "Gemma3TextConfig"])
def test_kinds_of_layers_are_checked(config: str) -> None:
    with pytest.raises(ConfigError, match="for each of 2 layers"):
        getattr(phyla, config)(**TEXT, layer_types=["full_attention"])
    with pytest.raises(ConfigError, match="layer_types must name"):
        getattr(phyla, config)(**TEXT, layer_types=["full_attention", "chunked_attention"])
