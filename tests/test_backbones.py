"""Backbones: the choice of stages, classification files in backbone classes, backbones as parts, training."""

from pathlib import Path

import pytest
import torch

import phyla
from phyla.blocks import make
from phyla.blocks.conv import BatchNorm, freeze
from phyla.blocks.residual import drop_path
from phyla.blocks.window import WindowAttention
from phyla.checkpoints.names import NameMap
from phyla.errors import ArgumentError, ConfigError
from phyla.families import _old_resnet
from phyla.families._old_resnet import OldResNet
from phyla.family import part
from phyla.registry import table
from phyla.testing.goldens import Golden, read_pack

GOLDENS = Path(__file__).with_name("goldens")
BACKBONES = [
    (row.model_type, name)
    for row in table().values()
    for name, task in row.classes.items()
    if task == "backbone" and (GOLDENS / f"{row.model_type}.tar.xz").exists()
]


def golden(model_type: str, name: str) -> Golden:
    return next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.class_name == name)


class TestTheChoiceOfStages:
    def test_is_the_last_one_unless_said_otherwise(self) -> None:
        config = phyla.SwinConfig()
        assert (config.out_features, config.out_indices) == (["stage4"], [4])

    def test_names_and_numbers_follow_each_other(self) -> None:
        config = phyla.SwinConfig(out_features=["stem", "stage2"])
        assert config.out_indices == [0, 2]
        config.out_indices = [-1]
        assert config.out_features == ["stage4"]
        config.out_features = ["stage1"]
        assert config.out_indices == [1]

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"out_features": ["stage9"]}, "stage9"),
            ({"out_indices": [5]}, "5"),
            ({"out_indices": [2, 1]}, "order"),
            ({"out_indices": [1, -4]}, "once"),
            ({"out_features": ["stem"], "out_indices": [1]}, "same stages"),
            ({"out_features": "stage1"}, "must be a list"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_refused(self, keys: dict, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            phyla.ConvNextConfig(**keys)

    def test_another_depth_drops_a_stored_choice(self) -> None:
        stored = phyla.Dinov2Config().to_dict()
        assert phyla.Dinov2Config.from_dict(stored, num_hidden_layers=2).out_features == ["stage2"]
        assert phyla.Dinov2Config.from_dict(stored, out_indices=[1]).out_features == ["stage1"]
        assert phyla.Dinov2Config.from_dict(stored) == phyla.Dinov2Config()


@pytest.mark.parametrize(("model_type", "name"), BACKBONES, ids=[n for _, n in BACKBONES])
def test_auto_backbone_gives_the_chosen_maps(model_type: str, name: str, tmp_path: Path) -> None:
    recorded = golden(model_type, name)
    recorded.write_checkpoint(tmp_path)
    given = recorded.facts["config"]
    # Those with norms of their own for the chosen stages start them afresh for others.
    chosen = {"out_indices": [0, len(given["stage_names"]) - 1]} if not given.get("add_fpn") else {}
    options = {"allow_missing": ["*hidden_states_norms*"]}
    model = phyla.AutoBackbone.from_pretrained(tmp_path, **chosen, **options)
    assert type(model).__name__ == name
    with torch.no_grad():
        out = model(**recorded.inputs(), output_hidden_states=True)
    assert len(out.feature_maps) == len(model.channels) == 2
    assert model.out_features == [model.stage_names[i] for i in (0, -1)]
    for found, channels in zip(out.feature_maps, model.channels, strict=True):
        assert found.shape[1 if found.dim() == 4 else 2] == channels
    assert len(out.hidden_states) == len(model.stage_names)
    assert list(model.out_feature_channels) == model.stage_names


@torch.no_grad()
def test_a_backbone_reads_the_files_of_other_classes(tmp_path: Path) -> None:
    recorded = golden("resnet", "ResNetForImageClassification")
    recorded.write_checkpoint(tmp_path)
    model = phyla.ResNetBackbone.from_pretrained(tmp_path)
    whole = phyla.ResNetForImageClassification.from_pretrained(tmp_path)
    pixels = recorded.inputs()["pixel_values"]
    states = whole(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(model(pixels).feature_maps[0], states[-1])


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "name"), BACKBONES, ids=[n for _, n in BACKBONES])
def test_a_backbone_is_a_part_of_other_models(model_type: str, name: str) -> None:
    config = phyla.AutoConfig.for_model(**golden(model_type, name).facts["config"])
    model = getattr(phyla, name)(config).eval()
    found = part(config)
    block = make(found.features)
    block.load_state_dict(model.backbone.state_dict())
    block.eval()
    names = NameMap({}, parts={"eye": ("model.eye.", found.feature_names)})
    bound = names.bind({f"eye.{k}": v.shape for k, v in block.state_dict().items()})
    assert all(n.startswith("model.eye.") for n in bound.public())
    inputs = golden(model_type, name).inputs()
    ours, theirs = block(inputs["pixel_values"]).feature_maps, model(**inputs).feature_maps
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert found.channels == model.channels


class TestOldDetectors:
    @pytest.mark.parametrize("name", sorted(_old_resnet.KINDS))
    def test_layout_is_total(self, name: str) -> None:
        old = OldResNet(name, [1, 2, 3, 4])
        with torch.device("meta"):
            block = make(old.spec)
            maps = block(torch.empty(1, 3, 64, 96)).feature_maps
        assert [m.shape[1] for m in maps] == old.widths
        assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        public = old.names.bind({k: v.shape for k, v in block.state_dict().items()}).public()
        stem = "conv1.6.weight" if old.deep else "conv1.weight"
        assert {stem, "bn1.running_mean", "layer4.1.conv2.weight"} <= set(public)
        assert not [n for n in public if "num_batches_tracked" in n]
        assert not [n for n, p in block.named_parameters() if "norm" in n]

    @pytest.mark.parametrize(("stride", "sides"), [(16, [16, 8, 4, 4]), (8, [16, 8, 8, 8])])
    def test_late_stages_widen_their_reach_in_place_of_halving(self, stride: int, sides: list[int]) -> None:
        with torch.device("meta"):
            maps = make(OldResNet("resnet50", [1, 2, 3, 4], stride=stride).spec)(torch.empty(1, 3, 64, 64))
        assert [m.shape[-1] for m in maps.feature_maps] == sides

    def test_other_networks_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="resnet50"):
            OldResNet("resnet5", [4])
        with pytest.raises(ConfigError, match="out_indices"):
            OldResNet("resnet18", [0, 4])
        with pytest.raises(ConfigError, match="backbone_config"):
            phyla.DPTConfig(backbone="acme/net")


class TestTraining:
    def test_batch_norm_learns_running_values(self) -> None:
        ours, theirs = make(BatchNorm(3)), torch.nn.BatchNorm2d(3)
        ours.reset(0.02)
        frozen = make(freeze(BatchNorm(3)))
        frozen.reset(0.02)
        for _ in range(3):
            x = torch.randn(4, 3, 5, 5)
            assert torch.equal(ours(x), theirs(x))
            frozen(x)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert frozen.running_mean.eq(0).all() and not list(frozen.parameters())

    def test_whole_rows_are_dropped(self) -> None:
        torch.manual_seed(0)
        x = torch.ones(4000, 2, 2)
        y = drop_path(x, 0.25)
        assert set(y.flatten(1).std(1).tolist()) == {0.0}
        assert abs(float(y.mean()) - 1) < 0.05

    @pytest.mark.parametrize(
        ("model_type", "name", "options"),
        [
            ("swin", "SwinModel", {"drop_path_rate": 0.0}),
            ("hiera", "HieraModel", {}),
            ("convnext", "ConvNextModel", {}),
            ("segformer", "SegformerModel", {"drop_path_rate": 0.0}),
            ("yolos", "YolosModel", {}),
        ],
    )
    def test_checkpointing_changes_nothing(
        self, model_type: str, name: str, options: dict, tmp_path: Path
    ) -> None:
        recorded = golden(model_type, name)
        recorded.write_checkpoint(tmp_path)
        model = getattr(phyla, name).from_pretrained(tmp_path, **options).train()
        found = []
        for enable in (False, True):
            if enable:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            model(**recorded.inputs()).last_hidden_state.square().sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_map_smaller_than_the_window_is_one_window() -> None:
    from phyla.blocks import Context, Heads

    block = make(WindowAttention(8, Heads(2), 7, shift=3))
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter)
    block.fill_buffers()
    block.position.fill_buffers()
    ctx = Context(positions=torch.zeros(1, 16), length=16, memo={"grid": (4, 4)})
    assert block.mix(torch.randn(2, 16, 8), ctx).isfinite().all()


def test_images_of_another_kind_are_refused() -> None:
    config = phyla.ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1])
    with pytest.raises(ArgumentError, match="pixel_values"):
        phyla.ResNetModel(config)(torch.zeros(1, 1, 8, 8))
