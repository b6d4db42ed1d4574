"""Classes of one's own around a family's models: `class Mine(BertPreTrainedModel)`, made, loaded, saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phyla
from phyla.outputs import SequenceClassifierOutput

CONFIG = phyla.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=20,
)  # fmt: skip
IDS = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


class Mine(phyla.BertPreTrainedModel):  # type: ignore[name-defined, misc]
    def __init__(self, config: Any, wide: int = 8) -> None:
        super().__init__(config)
        self.bert = phyla.BertModel(config, add_pooling_layer=False)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, wide)
        self.classifier = nn.Linear(wide, config.num_labels)
        self.register_buffer("steps", torch.arange(3))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.up(self.norm(states)[:, 0]).tanh()))


class Beside(phyla.BertPreTrainedModel):  # type: ignore[name-defined, misc]
    """A model under another name than its family's, and one with a head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.reader = phyla.BertForMaskedLM(config)
        self.towers = nn.ModuleList([phyla.BertModel(config), phyla.BertModel(config)])

    def forward(self, input_ids: Tensor) -> Any:
        return self.reader(input_ids).logits, *(t(input_ids).pooler_output for t in self.towers)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_a_public_file_fills_the_model_inside(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = getattr(phyla, kind)(CONFIG).eval()
    whole.save_pretrained(tmp_path)
    model = Mine.from_pretrained(tmp_path, num_labels=3, wide=5)
    assert "classifier.weight" in caplog.text and "\n  bert.encoder" not in caplog.text
    assert model.up.out_features == 5 and model.config.num_labels == 3 and not model.training
    assert torch.equal(model.norm.weight, torch.ones(16)) and model.steps.tolist() == [0, 1, 2]
    wanted = phyla.BertModel.from_pretrained(tmp_path)
    got = model.bert(IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(got, wanted(IDS, attention_mask=MASK).last_hidden_state)
    assert model(IDS, attention_mask=MASK).logits.shape == (2, 3)


def test_it_saves_public_names_and_loads_them(tmp_path: Path) -> None:
    model = Mine(CONFIG).eval()
    names = set(model.state_dict_public())
    assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.weight", "norm.bias"} <= names
    assert not any("pooler" in n for n in names)
    model.save_pretrained(tmp_path)
    again = Mine.from_pretrained(tmp_path)
    assert type(again) is Mine
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    half = Mine.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_file_that_names_the_class_must_hold_all_of_it(tmp_path: Path) -> None:
    model = Mine(CONFIG)
    lacking = {k: v for k, v in model.state_dict_public().items() if k != "up.weight"}
    model.save_pretrained(tmp_path, state_dict=lacking)
    with pytest.raises(phyla.MissingWeightsError, match=r"up\.weight"):
        Mine.from_pretrained(tmp_path)


def test_several_models_under_names_of_ones_own(tmp_path: Path) -> None:
    model = Beside(CONFIG).eval()
    names = set(model.state_dict_public())
    assert "reader.bert.embeddings.word_embeddings.weight" in names
    assert "towers.1.pooler.dense.bias" in names
    model.save_pretrained(tmp_path)
    again = Beside.from_pretrained(tmp_path)
    for got, wanted in zip(again(IDS), model(IDS), strict=True):
        torch.testing.assert_close(got, wanted)
    assert again.reader.head.out.weight is again.reader.get_input_embeddings().weight


def test_every_model_of_a_family_derives_from_its_base() -> None:
    assert issubclass(phyla.BertForMaskedLM, phyla.BertPreTrainedModel)
    assert issubclass(phyla.CLIPTextModel, phyla.CLIPPreTrainedModel)
    assert phyla.PretrainedBartModel is phyla.BartPreTrainedModel
    assert not issubclass(phyla.BertModel, phyla.CLIPPreTrainedModel)


def test_a_model_without_its_pool(tmp_path: Path) -> None:
    phyla.BertModel(CONFIG).save_pretrained(tmp_path)
    model = phyla.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert model(IDS).pooler_output is None
    assert not any("pooler" in n for n in model.state_dict_public())
