"""Loading: either kind of prefix, tied and old names, new heads, reports, dtypes, devices, live files."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import phyla
from phyla.errors import (
    ArgumentError,
    ConfigError,
    DtypeMismatchError,
    MissingWeightsError,
    ShapeMismatchError,
    UnexpectedWeightsError,
)

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = phyla.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    phyla.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = phyla.BertConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                              num_attention_heads=4, max_position_embeddings=32)  # fmt: skip
    phyla.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(folder: Path, change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def states(model) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS, output_hidden_states=True)
    return out.hidden_states[-1]


def test_files_of_the_backbone_and_of_classes_with_a_head_load_into_each_other(
    llama: Path, tmp_path: Path
) -> None:
    whole = phyla.LlamaForCausalLM.from_pretrained(llama)
    bare = phyla.LlamaModel.from_pretrained(llama)
    assert torch.equal(states(whole), states(bare))
    bare.save_pretrained(tmp_path / "bare")
    assert "embed_tokens.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    again = phyla.LlamaForSequenceClassification.from_pretrained(tmp_path / "bare")
    assert torch.equal(states(again), states(bare))


def test_a_new_head_is_fresh_and_reported(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "phyla"):
        model, info = phyla.BertForSequenceClassification.from_pretrained(
            bert, num_labels=3, output_loading_info=True
        )
    assert model.config.num_labels == 3
    assert {"classifier.weight", "classifier.bias"} <= set(info["missing_keys"])
    assert any(n.startswith("cls.predictions") for n in info["unexpected_keys"])
    assert "classifier.weight" in caplog.text


def test_old_spellings_of_norms_load(bert: Path) -> None:
    wanted = states(phyla.BertForMaskedLM.from_pretrained(bert))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rewrite(
        bert,
        lambda t: {
            next((n.replace(a, b) for a, b in old.items() if n.endswith(a)), n): v for n, v in t.items()
        },
    )
    assert torch.equal(states(phyla.BertForMaskedLM.from_pretrained(bert)), wanted)


def test_a_stored_copy_of_a_tied_tensor_is_no_surprise(bert: Path) -> None:
    rewrite(
        bert,
        lambda t: t | {"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone()},
    )
    _, info = phyla.BertForMaskedLM.from_pretrained(bert, output_loading_info=True)
    assert info["missing_keys"] == [] and info["unexpected_keys"] == []


def test_a_missing_base_weight_is_an_error_with_the_nearest_name(llama: Path) -> None:
    rewrite(llama, lambda t: {n.replace("1.self_attn.q_proj", "1.self_attn.q_porj"): v for n, v in t.items()})
    with pytest.raises(MissingWeightsError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight.*q_porj"):
        phyla.LlamaForCausalLM.from_pretrained(llama)
    model = phyla.LlamaForCausalLM.from_pretrained(llama, allow_missing=["*q_proj*"])
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_extra_weight_warns_or_is_refused(llama: Path) -> None:
    rewrite(llama, lambda t: t | {"model.extra.weight": torch.ones(2)})
    _, info = phyla.LlamaForCausalLM.from_pretrained(llama, output_loading_info=True)
    assert info["unexpected_keys"] == ["model.extra.weight"]
    with pytest.raises(UnexpectedWeightsError, match=r"model\.extra\.weight"):
        phyla.LlamaForCausalLM.from_pretrained(llama, strict=True)


def test_another_shape_names_both(llama: Path) -> None:
    rewrite(llama, lambda t: t | {"model.norm.weight": torch.ones(8)})
    with pytest.raises(ShapeMismatchError, match=r"model\.norm\.weight.*\(16,\).*\(8,\)"):
        phyla.LlamaForCausalLM.from_pretrained(llama)
    _, info = phyla.LlamaForCausalLM.from_pretrained(
        llama, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"] == [("model.norm.weight", (8,), (16,))]


def test_whole_numbers_are_no_weights(llama: Path) -> None:
    rewrite(llama, lambda t: t | {"model.norm.weight": torch.ones(16, dtype=torch.int64)})
    with pytest.raises(DtypeMismatchError, match=r"model\.norm\.weight.*int64"):
        phyla.LlamaForCausalLM.from_pretrained(llama)


def test_dtypes(llama: Path) -> None:
    rewrite(llama, lambda t: {n: v.bfloat16() for n, v in t.items()})
    data = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(data | {"torch_dtype": "bfloat16"}))
    load = phyla.AutoModelForCausalLM.from_pretrained
    assert load(llama).dtype == torch.float32
    assert load(llama, torch_dtype="auto").dtype == torch.bfloat16
    assert load(llama, torch_dtype=torch.float16).dtype == torch.float16
    assert load(llama, torch_dtype="float64").dtype == torch.float64
    with pytest.raises(ArgumentError, match="torch_dtype"):
        load(llama, torch_dtype="int8")


def test_devices(llama: Path) -> None:
    load = phyla.LlamaForCausalLM.from_pretrained
    assert load(llama, device_map="cpu").device.type == "cpu"
    assert load(llama, device_map={"": "cpu"}).device.type == "cpu"
    with pytest.raises(ArgumentError, match="device_map"):
        load(llama, device_map="tpu-zorb")


def test_a_live_model_does_not_follow_its_file(llama: Path) -> None:
    model = phyla.LlamaForCausalLM.from_pretrained(llama)
    wanted = states(model)
    path = llama / "model.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)
    assert torch.equal(states(model), wanted)
    path.write_bytes(b"")
    assert torch.equal(states(model), wanted)


def test_training_leaves_the_file_alone(llama: Path) -> None:
    before = (llama / "model.safetensors").read_bytes()
    model = phyla.LlamaForCausalLM.from_pretrained(llama).train()
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    assert (llama / "model.safetensors").read_bytes() == before


def test_the_auto_class_takes_the_class_of_the_task(llama: Path, bert: Path) -> None:
    assert type(phyla.AutoModel.from_pretrained(bert)) is phyla.BertModel
    assert (
        type(phyla.AutoModelForTokenClassification.from_pretrained(bert)) is phyla.BertForTokenClassification
    )
    with pytest.raises(ConfigError, match="AutoModelForSeq2SeqLM"):
        phyla.AutoModelForSeq2SeqLM.from_pretrained(llama)


def test_a_class_from_outside_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phyla.registry._registered", {})
    monkeypatch.setattr("phyla.registry._registered_classes", {})

    class AnimalConfig(phyla.PretrainedConfig):
        model_type = "animal"
        legs: int = 4

    class Animal(torch.nn.Module):
        config_class = AnimalConfig

        def __init__(self, config: AnimalConfig) -> None:
            super().__init__()
            self.config = config

        from_config = classmethod(lambda cls, config: cls(config))

    phyla.AutoConfig.register("animal", AnimalConfig)
    phyla.AutoModel.register(AnimalConfig, Animal)
    (tmp_path / "config.json").write_text('{"model_type": "animal", "legs": 6}')
    config = phyla.AutoConfig.from_pretrained(tmp_path)
    assert config.legs == 6
    assert isinstance(phyla.AutoModel.from_config(config), Animal)


def test_sharded_saves_load_again(llama: Path, tmp_path: Path) -> None:
    model = phyla.LlamaForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(states(phyla.LlamaForCausalLM.from_pretrained(tmp_path / "shards")), states(model))


def test_pickled_weights_load(llama: Path) -> None:
    wanted = states(phyla.LlamaForCausalLM.from_pretrained(llama))
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    assert torch.equal(states(phyla.LlamaForCausalLM.from_pretrained(llama)), wanted)


def test_wrong_inputs_say_what_is_wrong(llama: Path) -> None:
    model = phyla.LlamaForCausalLM.from_pretrained(llama)
    for inputs, word in (
        ({}, "input_ids"),
        ({"input_ids": IDS.float()}, "whole numbers"),
        ({"input_ids": IDS[0]}, "batch, sequence"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"input_ids": IDS, "past_key_values": "x"}, "past_key_values"),
        ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids"),
        ({"input_ids": IDS, "labels": IDS[:, :2]}, "labels"),
    ):
        with pytest.raises(ArgumentError, match=word):
            model(**inputs)
