"""Flexible heads: every family, conversion, activation, several at once, files, generation, errors."""

import copy
import functools
import json
import warnings
from pathlib import Path

import pytest
import torch

import phyla
import phyla.adapters as adapters
from phyla.adapters import BatchSplit, Parallel, Stack
from phyla.adapters.heads.convert import converted
from phyla.adapters.heads.model import adapter_class, class_name
from phyla.errors import AdapterError, ArgumentError, CheckpointError, PhylaError, UnknownArgumentError
from phyla.registry import public_class, table
from phyla.testing.goldens import read_names, read_pack

GOLDENS = Path(__file__).parent / "goldens"
ROWS = {
    row.model_type: (row, next(n for n, task in row.classes.items() if task == "base-model"))
    for row in table().values()
    if "base-model" in row.classes.values() and (GOLDENS / f"{row.model_type}.tar.xz").exists()
}
# Bare models whose output has no states for a head to read, and what they give instead.
STATELESS = {
    "blip-2": "Blip2ForConditionalGenerationModelOutput", "clap": "ClapOutput", "clip": "CLIPOutput",
    "dpr": "DPRQuestionEncoderOutput", "encodec": "EncodecOutput", "mask2former": "Mask2FormerModelOutput",
    "siglip": "CLIPOutput", "superglue": "KeypointMatchingOutput",
}  # fmt: skip

# Bare models that give the vectors of all images one behind the other, without those of padding.
LINED = ("gemma4_vision",)


@functools.cache
def _golden(model_type: str, name: str):
    return next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.class_name == name)


def _fresh(model_type: str, name: str | None = None):
    """A model of random weights with the class of flexible heads."""
    golden = _golden(model_type, name or ROWS[model_type][1])
    cls = adapter_class(model_type)
    torch.manual_seed(0)
    model = cls(cls.config_class.from_dict(golden.facts["config"])).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("var"):  # of batch norms
            buffer.fill_(1.0)
    return model


def _inputs(model_type: str) -> dict:
    golden = _golden(model_type, ROWS[model_type][1])
    inputs = {**golden.inputs(), **golden.facts["call"]}
    if adapter_class(model_type).head_spec.kind == "end":  # rows are read at their end tokens
        ids = inputs["input_ids"].clone()
        end = golden.facts["config"].get("eos_token_id", 1)
        ids[ids == end] = 7
        ids[:, 5] = end
        inputs |= {"input_ids": ids, "decoder_input_ids": ids}
    return inputs


def _families() -> list[str]:
    return [t for t, (_, name) in ROWS.items() if name in read_names(GOLDENS / f"{t}.tar.xz")]


def _trained(model_type: str):
    """A model with three heads, all of them active, an adapter where one fits, and everything else frozen."""
    model = _fresh(model_type)
    adapted = model.supports_adapter("seq_bn[reduction_factor=4]")
    model.add_classification_head("row", num_labels=3)
    model.add_tagging_head("token", num_labels=4, layers=2)
    model.add_qa_head("span")
    if adapted:
        model.add_adapter("a", config="seq_bn[reduction_factor=4]")
        model.train_adapter("a")
    model.freeze_model()
    model.eval()
    model.active_head = ["row", "token", "span"]
    return model, adapted


def _called(model, inputs: dict) -> list[torch.Tensor]:
    torch.manual_seed(1)  # some models hide places at random
    row, token, span = model(**inputs).head_outputs
    return [row.logits, token.logits, span.start_logits, span.end_logits]


@pytest.mark.parametrize("model_type", _families())
def test_heads_on_every_family(model_type: str, tmp_path: Path) -> None:
    cls = adapter_class(model_type)
    assert cls.__name__ == class_name(ROWS[model_type][0])
    assert getattr(adapters, cls.__name__) is cls
    if model_type in STATELESS:
        with pytest.raises(AdapterError, match="takes no head of the kind"):
            _fresh(model_type).add_tagging_head("t")
        return
    model, adapted = _trained(model_type)
    inputs = _inputs(model_type)
    if model_type in LINED:
        with pytest.raises(AdapterError, match="in one line"):
            model(**inputs)
        return
    found = _called(model, inputs)
    rows = found[0].shape[0]
    assert found[0].shape == (rows, 3)
    assert found[1].shape[:2] == found[2].shape == found[3].shape
    assert found[1].shape[2] == 4
    sum(f.pow(2).mean() for f in found).backward()
    for key, parameter in model.named_parameters():
        own = key.startswith(("adapters.", "flexible."))
        assert (parameter.grad is not None) == own, key

    other = _fresh(model_type)
    for name in ("row", "token", "span"):
        model.save_head(tmp_path / name, name)
        assert other.load_head(tmp_path / name, load_as=f"{name}2") == f"{name}2"
    if adapted:
        model.save_adapter(tmp_path / "a", "a")
        other.load_adapter(tmp_path / "a", set_active=True)
    other.active_head = ["row2", "token2", "span2"]
    with torch.no_grad():
        wanted, again = _called(model, inputs), _called(other, inputs)
    for one, two in zip(wanted, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=5e-5)
    for name in ("row", "token", "span"):
        before, after = model.heads[name].state_dict(), other.heads[f"{name}2"].state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_bare_classes_without_states_are_these() -> None:
    found = {
        t: adapter_class(t).head_spec.output.__name__
        for t in _families()
        if "last_hidden_state" not in adapter_class(t).head_spec.output.__dataclass_fields__
    }
    assert found == STATELESS


# One family of each way to read a row, and all kinds of heads that the conversion knows.
CONVERTED = (
    ("bert", "BertForSequenceClassification"), ("bert", "BertForMultipleChoice"),
    ("bert", "BertForTokenClassification"), ("bert", "BertForQuestionAnswering"),
    ("bert", "BertForMaskedLM"), ("bert", "BertLMHeadModel"), ("albert", "AlbertForMaskedLM"),
    ("roberta", "RobertaForSequenceClassification"), ("deberta-v2", "DebertaV2ForSequenceClassification"),
    ("distilbert", "DistilBertForMultipleChoice"), ("electra", "ElectraForMultipleChoice"),
    ("electra", "ElectraForMaskedLM"), ("gpt2", "GPT2ForSequenceClassification"), ("gpt2", "GPT2LMHeadModel"),
    ("gptj", "GPTJForCausalLM"), ("gemma2", "Gemma2ForCausalLM"), ("llama", "LlamaForTokenClassification"),
    ("bart", "BartForSequenceClassification"), ("bart", "BartForConditionalGeneration"),
    ("mbart", "MBartForConditionalGeneration"), ("t5", "T5ForConditionalGeneration"),
    ("t5", "T5ForQuestionAnswering"),
    ("whisper", "WhisperForConditionalGeneration"), ("vit", "ViTForImageClassification"),
    ("beit", "BeitForImageClassification"), ("swin", "SwinForImageClassification"),
)  # fmt: skip


@pytest.mark.parametrize(("model_type", "name"), CONVERTED, ids=[n for _, n in CONVERTED])
def test_a_checkpoint_with_a_head_gives_a_flexible_head(model_type: str, name: str, tmp_path: Path) -> None:
    golden = _golden(model_type, name)
    (tmp_path / "static").mkdir()
    golden.write_checkpoint(tmp_path / "static")
    static = getattr(phyla, name).from_pretrained(tmp_path / "static")
    inputs = {**golden.inputs(), **golden.facts["call"]}
    with torch.no_grad():
        if hasattr(static, "head") and hasattr(static.head, "offset"):
            static.head.offset.normal_()
            static.save_pretrained(tmp_path / "static")
        wanted = static(**inputs)
        model = adapters.AutoAdapterModel.from_pretrained(tmp_path / "static")
        assert list(model.heads) == ["default"] and model.active_head == "default"
        model.save_pretrained(tmp_path / "flexible")
        again = type(model).from_pretrained(tmp_path / "flexible")
        for each in (model, again):
            found = each(**inputs)
            for key in ("logits", "start_logits", "end_logits"):
                if getattr(wanted, key, None) is not None and key in found:
                    torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)
    assert any(key in wanted and key in found for key in ("logits", "start_logits"))
    config = json.loads((tmp_path / "flexible" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__] and list(config["prediction_heads"]) == [
        "default"
    ]


def test_conversions_are_those_of_the_public_library() -> None:
    """tests/data/flexible_heads.json: layers and names of its table, for all classes that phyla has."""
    facts = json.loads((Path(__file__).parent / "data" / "flexible_heads.json").read_text())
    where = {name: row for row in table().values() for name in row.classes}
    seen = 0
    for name, (kind, layers, act, pooler, names) in facts.items():
        if name not in where:
            continue
        cls = public_class(name, where[name].module)
        made = converted(cls.head_spec, cls.config_class())
        assert made is not None, name
        assert made.config["head_type"] == kind, name
        assert (made.config["layers"], made.config["activation_function"]) == (layers, act), name
        assert made.config.get("use_pooler", False) == pooler, name
        for at, public in names.items():
            lines = made.names.lines
            assert lines.get(at, lines.get(f"{at}.weight", "").removesuffix(".weight")) == public, name
        seen += 1
    assert seen > 70


def _bert(*heads: str):
    model = _fresh("bert")
    for name in heads:
        model.add_adapter(name, config="double_seq_bn[reduction_factor=4]")
        model.add_classification_head(name, num_labels=3 if name == "a" else 2)
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *model.heads.parameters()] if heads else ():
            parameter.normal_(0, 0.2)
    return model


@torch.no_grad()
def test_several_heads_are_what_each_is_alone() -> None:
    model, inputs = _bert("a", "b"), _inputs("bert")
    alone = {}
    for name in "ab":
        model.set_active_adapters(name)
        assert model.active_head == name
        alone[name] = model(**inputs).logits
    model.active_adapters = Parallel("a", "b")  # as by set_active_adapters
    assert model.active_head == ["a", "b"]
    assert model.active_head == ["a", "b"]
    labels = torch.tensor([0, 1])
    both = model(**inputs, labels=labels)
    for number, name in enumerate("ab"):
        torch.testing.assert_close(both[number].logits, alone[name])
    torch.testing.assert_close(both.loss, both[0].loss + both[1].loss)
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, 1]))
    split = model(**inputs)
    torch.testing.assert_close(split[0].logits, alone["a"][:1])
    torch.testing.assert_close(split[1].logits, alone["b"][1:])
    model.set_active_adapters(Stack("a", "b"))
    assert model.active_head == "b"
    model.set_active_adapters("a")
    torch.testing.assert_close(model(**inputs, head="b").logits.shape, (2, 2))
    with adapters.AdapterSetup("b"):
        torch.testing.assert_close(model(**inputs).logits, alone["b"])
    with adapters.AdapterSetup("b", head_setup="a"):
        assert model(**inputs).logits.shape == (2, 3)
    assert model.active_head == "a"
    rows = model(**inputs, adapter_names=["b", "a"])
    torch.testing.assert_close(rows[0].logits, alone["b"][:1])
    torch.testing.assert_close(rows[1].logits, alone["a"][1:])


@torch.no_grad()
def test_a_setup_with_heads_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = _bert("a", "b"), _inputs("bert")
    model.set_active_adapters(Parallel("a", "b"))
    wanted = model(**inputs)
    model.save_adapter_setup(tmp_path, Parallel("a", "b"), head_setup=["a", "b"])
    other = _fresh("bert")
    setup, heads = other.load_adapter_setup(tmp_path, set_active=True)
    assert (setup, heads, other.active_head) == (Parallel("a", "b"), ["a", "b"], ["a", "b"])
    found = other(**inputs)
    assert all(torch.equal(f.logits, w.logits) for f, w in zip(found, wanted, strict=True))
    model.save_all_heads(tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a", "b"]


def test_labels_names_and_deletion() -> None:
    model = _bert("a")
    model.add_tagging_head("tags", id2label={0: "O", 1: "B", 2: "I"}, num_labels=3)
    assert model.get_labels("tags") == ["O", "B", "I"]
    assert model.get_labels_dict("a") == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert (model.config.id2label[2], model.active_head) == ("I", "tags")
    model.average_head("mean", ["a", "a"])
    assert torch.equal(model.heads["mean"][1].weight, model.heads["a"][1].weight)
    model.delete_head("tags")
    assert model.active_head is None and "tags" not in model.heads
    assert list(model.config.prediction_heads) == ["a", "mean"]
    assert "last_hidden_state" in model(**_inputs("bert"))
    wrong = [
        lambda: setattr(model, "active_head", "aa"), lambda: model.delete_head("no"),
        lambda: model.get_labels("no"), lambda: model.save_head("x", "no"),
        lambda: model(**_inputs("bert"), head="no"), lambda: model.add_tagging_head("a"),
        lambda: model.add_tagging_head("../a"), lambda: model.add_seq2seq_lm_head("s"),
        lambda: model.add_custom_head("unknown", "u"), lambda: model.average_head("m", ["a", "no"]),
        lambda: model(**_inputs("bert"), labels=torch.tensor([0, 1])),
        lambda: model.add_classification_head("p", layers=0),
    ]  # fmt: skip
    for number, act in enumerate(wrong):
        with pytest.raises(PhylaError):
            act()
            pytest.fail(f"number {number} passed")
    with pytest.raises(UnknownArgumentError, match="label"):
        model(**_inputs("bert"), lables=1)
    assert list(model.heads) == ["a", "mean"]


def test_a_head_that_does_not_fit_leaves_the_model_untouched(tmp_path: Path) -> None:
    model = _bert("a")
    model.save_adapter(tmp_path, "a")
    path = tmp_path / "head_config.json"
    facts = json.loads(path.read_text())
    facts["config"]["num_labels"] = 5
    path.write_text(json.dumps(facts))
    other = _fresh("bert")
    with pytest.raises(CheckpointError, match="shape"):
        other.load_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="shape"):
        other.load_head(tmp_path)
    assert not other.has_adapters() and not len(other.heads) and other.active_head is None
    with pytest.raises(PhylaError):
        other.load_head(tmp_path / "nowhere")
    llama = _fresh("llama")
    with pytest.raises(AdapterError, match="no place"):
        llama.load_head(tmp_path)


@torch.no_grad()
def test_static_heads_go_with_adapters(tmp_path: Path) -> None:
    golden = _golden("bert", "BertForSequenceClassification")
    (tmp_path / "model").mkdir()
    golden.write_checkpoint(tmp_path / "model")
    model = phyla.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    model.add_adapter("a", config="lora[r=2]", set_active=True)
    model.head.out.weight.normal_()
    inputs = golden.inputs()
    model.save_adapter(tmp_path / "a", "a")
    other = phyla.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    other.load_adapter(tmp_path / "a", set_active=True)
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    flexible = adapters.BertAdapterModel.from_pretrained(tmp_path / "model")
    flexible.load_adapter(tmp_path / "a", load_as="b", set_active=True)
    assert sorted(flexible.heads) == ["b", "default"] and flexible.active_head == "b"
    torch.testing.assert_close(flexible(**inputs).logits, model(**inputs).logits)
    bare = phyla.BertModel.from_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="left out"):
        bare.load_adapter(tmp_path / "a")


class Doubled(adapters.PredictionHead):
    """A head of one's own, as the public documentation has it."""

    def __init__(self, model, head_name, **fields):
        super().__init__(head_name)
        self.config = fields
        self.build(model=model)

    def forward(self, outputs, cls_output=None, attention_mask=None, return_dict=False, factor=1, **given):
        return {"scores": super().forward(outputs[0]) * factor, "labelled": "labels" in given}


def test_a_head_of_ones_own(tmp_path: Path) -> None:
    model, inputs = _fresh("bert"), _inputs("bert")
    model.register_custom_head("doubled", Doubled)
    model.add_custom_head("doubled", "d", num_labels=2, layers=1, activation_function=None)
    once, twice = model(**inputs), model(**inputs, factor=2, labels=torch.ones(2))
    torch.testing.assert_close(2 * once["scores"], twice["scores"])
    assert (once["labelled"], twice["labelled"]) == (False, True)
    model.save_head(tmp_path, "d")
    other = _fresh("bert")
    with pytest.raises(AdapterError, match="register_custom_head"):
        other.load_head(tmp_path)
    other.register_custom_head("doubled", Doubled)
    other.load_head(tmp_path)
    torch.testing.assert_close(other(**inputs)["scores"], once["scores"])


@pytest.mark.parametrize(("model_type", "kind"), [("gpt2", "causal"), ("llama", "causal"), ("t5", "seq2seq")])
def test_tied_heads_train_and_generate(model_type: str, kind: str, tmp_path: Path) -> None:
    model = _fresh(model_type)
    if kind == "causal":
        model.add_causal_lm_head("lm")
    else:
        model.add_seq2seq_lm_head("lm")
    table, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (out is table) == bool(model.config.tie_word_embeddings)
    model.add_adapter("lm", config="seq_bn_inv[reduction_factor=4]")
    model.train_adapter("lm")
    assert not out.requires_grad
    model.eval()
    ids = torch.arange(5, 11)[None]
    model.config.decoder_start_token_id = 0
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.adapters.parameters())
    with_cache = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    without = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == (out is table)
    assert again.active_adapters == "lm"
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_matrix_of_its_own_does_not_change_the_model(tmp_path: Path) -> None:
    model = _fresh("bert")
    model.add_masked_lm_head("lm")
    model.save_head(tmp_path, "lm", use_safetensors=False)
    path = tmp_path / "pytorch_model_head.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save({k: v + 1 if k.endswith("3.weight") else v for k, v in tensors.items()}, path)
    other = _fresh("bert")
    before = other.get_input_embeddings().weight.clone()
    other.load_head(tmp_path)
    assert torch.equal(other.get_input_embeddings().weight, before)
    assert torch.equal(other.get_output_embeddings().weight, tensors["heads.lm.3.weight"] + 1)


@torch.no_grad()
def test_prompts_do_not_move_labels() -> None:
    model, inputs = _fresh("bert"), _inputs("bert")
    model.add_tagging_head("p", num_labels=3)
    model.add_adapter("p", config="prompt_tuning[prompt_length=3]", set_active=True)
    ids = inputs["input_ids"]
    out = model(input_ids=ids, labels=ids % 3)
    assert out.logits.shape[1] == ids.shape[1] + 3
    wanted = torch.nn.functional.cross_entropy(out.logits[:, 3:].flatten(0, 1), (ids % 3).flatten())
    torch.testing.assert_close(out.loss, wanted)


def test_rows_are_read_at_their_ends() -> None:
    model = _fresh("gpt2")
    model.config.pad_token_id = 0
    model.add_classification_head("c")
    ids = torch.arange(5, 11)[None]
    padded = torch.cat([ids, torch.zeros_like(ids[:, :3])], 1)
    mask = (padded != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=padded, attention_mask=mask).logits, model(input_ids=ids).logits
        )
    t5 = _fresh("t5")
    t5.add_classification_head("c")
    t5.config.decoder_start_token_id = 0
    end = t5.config.eos_token_id
    with pytest.raises(ArgumentError, match="end tokens"):
        t5(input_ids=torch.tensor([[5, 6, end], [5, 6, 7]]))
    assert t5(input_ids=torch.tensor([[5, 6, end], [5, end, 0]])).logits.shape == (2, 2)


def test_the_call_compiles_as_one_graph() -> None:
    model, inputs = _bert("a"), _inputs("bert")
    model.set_active_adapters("a")
    with torch.no_grad():
        wanted = model(**inputs).logits
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(compiled(**inputs).logits, wanted)
