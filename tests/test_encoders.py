"""What is particular to single encoders: shared layers, contacts, tables, characters, latents."""

import pytest
import torch

import phyla
from phyla.errors import ArgumentError, ConfigError

torch.set_num_threads(1)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_layers_of_a_group_share_their_weights() -> None:
    sizes = {"vocab_size": 99, "embedding_size": 16, **SMALL, "num_hidden_groups": 2}
    two, six = (phyla.AlbertModel(phyla.AlbertConfig(**{**sizes, "num_hidden_layers": n})) for n in (2, 6))
    assert two.num_parameters() == six.num_parameters()
    layers = six.backbone.layers
    assert [layers[i] is layers[0] for i in range(6)] == [True] * 3 + [False] * 3
    assert two.state_dict_public().keys() == six.state_dict_public().keys()


@torch.no_grad()
def test_contacts_are_chances_between_residues() -> None:
    config = phyla.EsmConfig(vocab_size=33, pad_token_id=1, position_embedding_type="rotary", **SMALL)
    model = phyla.EsmForMaskedLM(config).eval()
    ids = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 5, 6, 7, 2, 1, 1]])
    found = model.predict_contacts(ids, (ids != 1).long())
    assert found.shape == (2, 5, 5)
    assert ((found > 0) & (found < 1)).all()
    torch.testing.assert_close(found, found.transpose(1, 2))


def table_model(**changes: object) -> phyla.PreTrainedModel:
    config = phyla.TapasConfig(vocab_size=99, num_aggregation_labels=4, **{**SMALL, **changes})
    return phyla.TapasForQuestionAnswering(config).eval()


def table_inputs() -> dict[str, torch.Tensor]:
    types = torch.zeros(1, 8, 7, dtype=torch.long)
    types[0, 4:, 1], types[0, 4:, 2] = torch.tensor([1, 2, 1, 2]), torch.tensor([1, 1, 2, 2])
    labels = torch.tensor([[0, 0, 0, 0, 0, 1, 0, 1]])
    return {"input_ids": torch.arange(8)[None] + 5, "token_type_ids": types, "labels": labels}


@torch.no_grad()
def test_only_cells_of_one_column_are_chosen() -> None:
    inputs = table_inputs()
    del inputs["labels"]
    logits = table_model()(**inputs).logits[0]
    possible = logits > -5000
    columns = inputs["token_type_ids"][0, :, 1][possible]
    assert possible.any()
    assert len(columns.unique()) == 1
    assert columns[0] > 0


def test_a_table_loss_says_what_it_needs() -> None:
    with pytest.raises(ArgumentError, match="aggregation_labels"):
        table_model()(**table_inputs())
    weak = table_model(use_answer_as_supervision=True, cell_selection_preference=0.2)
    with pytest.raises(ArgumentError, match="float_answer"):
        weak(**table_inputs())
    with pytest.raises(ArgumentError, match="numeric_values"):
        weak(**table_inputs(), float_answer=torch.tensor([3.0]))
    with pytest.raises(ConfigError, match="cell_selection_preference"):
        table_model(use_answer_as_supervision=True)


def test_an_answer_teaches_the_operation_and_the_cells() -> None:
    model = table_model(use_answer_as_supervision=True, cell_selection_preference=0.2)
    values = torch.tensor([[float("nan")] * 4 + [1.0, 2.0, 3.0, 4.0]])
    inputs = table_inputs() | {"numeric_values": values, "numeric_values_scale": torch.ones(1, 8)}
    model(**inputs, float_answer=torch.tensor([6.0])).loss.backward()
    for part in (model.head.cell, model.head.column, model.head.operation):
        assert part.weight.grad.isfinite().all()
    assert model.head.operation.weight.grad.abs().sum() > 0
    assert model.head.cell.weight.grad.abs().sum() > 0


def test_a_text_shorter_than_a_molecule_is_refused() -> None:
    model = phyla.CanineModel(phyla.CanineConfig(num_hash_buckets=97, **SMALL))
    with pytest.raises(ArgumentError, match="downsampling_rate"):
        model(torch.tensor([[65, 66, 67]]))
    with pytest.raises(ConfigError, match="num_hash_functions"):
        phyla.CanineConfig(num_hash_functions=17)


LATENT = {
    "num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1, "image_size": 4,
    "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 16, "v_channels": 16,
}  # fmt: skip


@torch.no_grad()
def test_images_of_other_sizes_need_interpolation() -> None:
    model = phyla.PerceiverForImageClassificationLearned(phyla.PerceiverConfig(**LATENT)).eval()
    pixels = torch.randn(1, 3, 6, 5)
    with pytest.raises(ArgumentError, match="interpolate_pos_encoding"):
        model(pixels)
    assert model(pixels, interpolate_pos_encoding=True).logits.shape == (1, 2)


@torch.no_grad()
def test_chosen_outputs_are_some_of_all() -> None:
    config = phyla.PerceiverConfig(
        **LATENT, num_frames=2, audio_samples_per_frame=8, samples_per_patch=4, output_shape=[1, 2, 4, 4],
        output_num_channels=6,
    )  # fmt: skip
    model = phyla.PerceiverForMultimodalAutoencoding(config).eval()
    inputs = {"audio": torch.randn(1, 16, 1), "image": torch.randn(1, 2, 3, 4, 4), "label": torch.zeros(1, 2)}
    whole = model(inputs).logits
    assert {k: v.shape for k, v in whole.items()} == {"audio": (1, 16), "image": (1, 32, 3), "label": (1, 2)}
    points = {"audio": torch.tensor([0, 3]), "image": torch.tensor([1, 2, 3])}
    some = model(inputs, subsampled_output_points=points).logits
    assert {k: v.shape for k, v in some.items()} == {"audio": (1, 8), "image": (1, 3, 3), "label": (1, 2)}
    with pytest.raises(ArgumentError, match="by name"):
        model(inputs["image"])
    with pytest.raises(ArgumentError, match="no public loss"):
        model(inputs, labels=torch.zeros(1))


def test_fresh_weights_are_cut_off() -> None:
    config = phyla.ModernBertConfig(
        vocab_size=99, pad_token_id=0, initializer_range=0.5, initializer_cutoff_factor=1.0, **SMALL
    )
    model = phyla.ModernBertForSequenceClassification(config)
    weights = dict(model.named_parameters())
    assert weights["backbone.layers.0.attn.q.weight"].abs().max() <= 0.5
    assert weights["backbone.layers.0.attn.o.weight"].abs().max() <= 0.25
    assert weights["head.out.weight"].abs().max() <= 32**-0.5


@torch.no_grad()
def test_scores_of_chosen_tokens_alone() -> None:
    config = phyla.ModernBertConfig(vocab_size=99, pad_token_id=0, sparse_prediction=True, **SMALL)
    model = phyla.ModernBertForMaskedLM(config).eval()
    labels = torch.full((1, 6), -100)
    labels[0, 2:4] = 7
    assert model(torch.arange(6)[None] + 5, labels=labels).logits.shape == (2, 99)
