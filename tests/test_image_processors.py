"""Image and video processors, held against recorded behaviour, and what must hold of all of them."""

import base64
import copy
import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processor_goldens import faults, goldens
from processor_inputs import array, image, label_map

import phyla
from phyla.errors import ArgumentError, ConfigError, MissingExtraError, MissingFileError, UnknownArgumentError
from phyla.preprocessing.feature import BatchFeature
from phyla.preprocessing.image import sizes, tensor, transform
from phyla.preprocessing.image.auto_table import IMAGE_NAMES, VIDEO_NAMES
from phyla.preprocessing.image.fast_rows import FAST_ROWS
from phyla.preprocessing.image.load import load_image, load_images
from phyla.preprocessing.image.post.boxes import intersection_over_union, suppressed
from phyla.preprocessing.image.post.prompted import boxes_of, mask_of, run_lengths
from phyla.preprocessing.image.rows import ROWS
from phyla.preprocessing.image.steps import STEPS
from phyla.preprocessing.image.video import load_video
from phyla.preprocessing.image.work import Work

# Rows whose goldens cannot be recorded with the constructor's defaults alone.
NEEDS = {"OneFormerImageProcessor": {"class_info_file": "classes.json", "repo_path": None, "num_text": 4}}
CASES = [(kind, name) for kind in ("image", "post", "fast") for name in sorted(goldens(kind))]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_goldens(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = []
    for golden in goldens(kind)[name]:
        folder = tmp_path / golden.name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)  # a file of classes is named relative to where the program runs
        wrong += [f"{golden.name}: {fault}" for fault in faults(golden, folder)]
    assert not wrong, "\n".join(wrong[:20])


def test_every_row_has_goldens() -> None:
    assert {*ROWS, *FAST_ROWS} <= {name for _, name in CASES}


def made(name: str, **changes):
    return getattr(phyla, name)(**{**NEEDS.get(name, {}), **changes})


@pytest.mark.parametrize("name", [*ROWS, *FAST_ROWS])
def test_defaults_go_round(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.json").write_text('{"0": {"isthing": 1, "name": "dog"}}')
    first = made(name)
    paths = first.save_pretrained(tmp_path / "saved")
    assert [Path(p).name for p in paths] == ["preprocessor_config.json"]
    again = getattr(phyla, name).from_pretrained(tmp_path / "saved")
    assert again.to_dict() == first.to_dict()
    assert getattr(phyla, name).from_pretrained(first.to_dict()).to_dict() == first.to_dict()
    assert first.to_dict()["image_processor_type"] == name
    # Settings are the object's own: changing them in place leaves the table alone.
    for value in vars(first).values():
        if isinstance(value, (dict, list)):
            value.clear()
    assert made(name).to_dict() == again.to_dict()
    auto = phyla.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert type(auto) is getattr(phyla, name)


def test_steps_and_kinds_of_all_rows_exist() -> None:
    from phyla.preprocessing.image.classes import KINDS
    from phyla.preprocessing.image.resizing import RULES

    for name, row in {**ROWS, **FAST_ROWS}.items():
        assert row.kind in KINDS and row.resize in RULES, name
        assert all(STEPS[step] for step in row.steps)
    with pytest.raises(KeyError, match="no pipeline step 'fly'"):
        STEPS["fly"]


# --- properties

PLAIN = [
    "ViTImageProcessor",
    "CLIPImageProcessor",
    "BitImageProcessor",
    "ConvNextImageProcessor",
    "DetrImageProcessor",
]
side = st.integers(8, 40)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=10, deadline=None)
@given(width=side, height=side, seed=st.integers(0, 99))
def test_kind_of_input_does_not_matter(name: str, width: int, height: int, seed: int) -> None:
    processor = made(name, size={"height": 20, "width": 24} if name != "ConvNextImageProcessor" else 24)
    pixels = array(width, height, seed=seed)
    want = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    last, first = {"input_data_format": "channels_last"}, {"input_data_format": "channels_first"}
    for given_, options in (
        (pixels, last),
        (pixels.transpose(2, 0, 1), first),
        (torch.from_numpy(pixels).permute(2, 0, 1), first),
        ([Image.fromarray(pixels)], {}),
        (pixels[None], last),
        (pixels.astype(np.float32), last),
    ):
        np.testing.assert_allclose(
            processor(given_, return_tensors="np", **options)["pixel_values"], want, atol=1e-6
        )
    turned = processor(Image.fromarray(pixels), data_format="channels_last", return_tensors="np")[
        "pixel_values"
    ]
    np.testing.assert_array_equal(turned.transpose(0, 3, 1, 2), want)


@settings(max_examples=10, deadline=None)
@given(sizes_=st.lists(st.tuples(side, side), min_size=2, max_size=4))
def test_batch_is_singles(sizes_: list[tuple[int, int]]) -> None:
    pictures = [image(w, h, seed=i) for i, (w, h) in enumerate(sizes_)]
    processor = phyla.CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=18)
    batch = processor(pictures, return_tensors="pt")["pixel_values"]
    for picture, row in zip(pictures, batch):
        torch.testing.assert_close(processor(picture, return_tensors="pt")["pixel_values"][0], row)
    padded = phyla.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=4)(
        pictures, return_tensors="np"
    )
    masks = padded["pixel_mask"].astype(bool)
    assert masks[:, 0, 0].all() and masks.any((0, 1)).all() and masks.any((0, 2)).all()
    assert not padded["pixel_values"].transpose(0, 2, 3, 1)[~masks].any()


@settings(max_examples=25, deadline=None)
@given(width=side, height=side, new=st.tuples(side, side), resample=st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_resize_is_pillow(width: int, height: int, new: tuple[int, int], resample: int) -> None:
    picture = image(width, height, seed=width)
    want = np.array(picture.resize((new[1], new[0]), resample=resample))
    np.testing.assert_array_equal(transform.resize(np.array(picture), new, "channels_last", resample), want)
    unit = np.array(picture) / 255.0
    np.testing.assert_allclose(transform.resize(unit, new, "channels_last", resample) * 255, want, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_center_crop_keeps_the_middle(height: int, width: int, crop: tuple[int, int]) -> None:
    pixels = np.arange(1, height * width + 1, dtype=np.float32).reshape(1, height, width)
    for out in (
        transform.center_crop(pixels, crop, "channels_first"),
        tensor.center_crop(torch.from_numpy(pixels), crop),
    ):
        out = np.asarray(out)
        assert out.shape == (1, *crop)
        rows, columns = min(height, crop[0]), min(width, crop[1])
        assert (out != 0).sum() == rows * columns
        assert (out != 0).any(1).sum() == columns and (out != 0).any(2).sum() == rows


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    short=st.integers(1, 900),
    more=st.integers(1, 900),
)
def test_sizes_keep_their_promises(height: int, width: int, short: int, more: int) -> None:
    own, longest = (height, width), short + more
    assert min(sizes.shortest_edge(own, short)) == short
    assert max(sizes.shortest_edge(own, short, longest)) <= longest
    fit = sizes.fitted(own, (short, longest))
    assert fit[0] <= short and fit[1] <= longest and (fit[0] == short or fit[1] == longest)
    box = sizes.within(own, short, longest)
    assert box[0] <= short and box[1] <= longest
    assert sizes.best_resolution(own, [(short, longest), (longest, short)]) in [
        (short, longest),
        (longest, short),
    ]


@settings(max_examples=20, deadline=None)
@given(
    factor=st.sampled_from([1 / 255, 0.01, 1 / 127.5]),
    mean=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
    layout=st.sampled_from(["channels_first", "channels_last"]),
)
def test_table_of_bytes_is_exact(factor: float, mean: list[float], std: list[float], layout: str) -> None:
    from types import SimpleNamespace

    pixels = array(17, 9, layout="CHW" if layout == "channels_first" else "HWC")
    o = SimpleNamespace(
        do_rescale=True, do_normalize=True, rescale_factor=factor, image_mean=mean, image_std=std
    )
    got = Work([pixels], layout, o).run(("rescale", "normalize")).images[0]
    want = transform.normalize(transform.rescale(pixels, factor), mean, std, layout)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", sorted(FAST_ROWS))
def test_fast_is_its_twin_where_nothing_is_resized(name: str) -> None:
    pixels = [image(56, 56, seed=1), image(56, 56, seed=2)]
    options = {"do_resize": False} if "do_resize" in FAST_ROWS[name].settings else {}
    twin = name.removesuffix("Fast")
    if twin.startswith(("LlavaNext", "LlavaOnevision")):
        options = {"image_grid_pinpoints": [[56, 56]], "size": {"height": 56, "width": 56}}
        options |= {"crop_size": 56} if "Next" in twin else {}
    if twin.startswith("Siglip2"):
        options |= {"patch_size": 8, "max_num_patches": 49}
    slow = made(twin, **options)(pixels, return_tensors="pt")
    fast = made(name, **options)(pixels, return_tensors="pt")
    assert fast["pixel_values"].shape == slow["pixel_values"].shape
    torch.testing.assert_close(
        fast["pixel_values"].float(), slow["pixel_values"].float(), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), threshold=st.floats(0.05, 0.95))
def test_suppression_leaves_no_overlap(seed: int, count: int, threshold: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw)
    boxes = torch.cat([corner, corner + 0.05 + torch.rand(count, 2, generator=draw)], 1)
    scores, groups = torch.rand(count, generator=draw), torch.randint(0, 3, (count,), generator=draw)
    kept = suppressed(boxes, scores, groups, threshold)
    assert (scores[kept].diff() <= 0).all()
    overlap = intersection_over_union(boxes, boxes)
    for i in range(count):
        better = [j for j in kept.tolist() if groups[j] == groups[i] and scores[j] > scores[i]]
        assert (i in kept.tolist()) == all(overlap[i, j] <= threshold for j in better)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_run_lengths_go_back(seed: int, height: int, width: int) -> None:
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5
    for mask, runs, box in zip(masks.numpy(), run_lengths(masks), boxes_of(masks).tolist()):
        assert runs["size"] == [height, width] and sum(runs["counts"]) == height * width
        np.testing.assert_array_equal(mask_of(runs), mask)
        rows, columns = np.nonzero(mask)
        want = [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
        assert box == [int(v) for v in want]


def test_maps_follow_their_pictures() -> None:
    processor = phyla.SegformerImageProcessor(size=16, do_reduce_labels=True)
    labels = label_map(40, 30, 5)
    before = labels.copy()
    batch = processor(image(40, 30), segmentation_maps=labels, return_tensors="pt")
    assert batch["labels"].shape == (1, 16, 16) and batch["labels"].dtype == torch.int64
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2, 3, 255}
    np.testing.assert_array_equal(labels, before)  # the caller's map is left alone


def test_masks_are_suppressed_for_mask_generation() -> None:
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :5, :5] = masks[1, :5, :5] = masks[2, 6:, 6:] = True
    found = phyla.SamImageProcessor().post_process_for_mask_generation(
        run_lengths(masks), torch.tensor([0.5, 0.9, 0.7]), boxes_of(masks), 0.7
    )
    assert found[1].tolist() == pytest.approx([0.9, 0.7]) and [m.sum() for m in found[0]] == [25, 16]


# --- loading


def png(width: int = 6, height: int = 4) -> bytes:
    out = io.BytesIO()
    image(width, height, "RGBA").save(out, format="PNG")
    return out.getvalue()


def test_pictures_load_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    text = base64.b64encode(png()).decode()
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: io.BytesIO(png()))
    sources = [
        str(path),
        path,
        text,
        f"data:image/png;base64,{text}",
        "https://example.org/a.png",
        Image.open(path),
    ]
    for source in sources:
        picture = load_image(source)
        assert picture.mode == "RGB" and picture.size == (6, 4)
    assert [len(row) for row in load_images([[str(path)], [str(path)] * 2])] == [1, 2]
    batch = phyla.ViTImageProcessor(size=8)([str(path), str(path)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert phyla.ViTImageProcessor().fetch_images([str(path)])[0].size == (6, 4)


def test_moving_pictures_are_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [image(16, 12, seed=i) for i in range(6)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    video, about = load_video(path)
    assert video.shape == (6, 12, 16, 3) and about.total_num_frames == 6 and about.fps == pytest.approx(10)
    assert load_video(path, num_frames=3)[1].frames_indices.tolist() == [0, 2, 4]
    assert len(load_video(str(path), fps=5)[0]) == 3
    assert load_video(path, sample_indices_fn=lambda metadata: [1])[0].shape[0] == 1
    assert load_video(frames) is frames
    clip = phyla.VideoMAEImageProcessor(size=8, crop_size=8)([str(path), str(path)], return_tensors="pt")
    assert clip["pixel_values"].shape == (2, 6, 3, 8, 8)
    with pytest.raises(ArgumentError, match="fewer"):
        load_video(path, num_frames=7)
    with pytest.raises(ArgumentError, match="not several"):
        load_video(path, num_frames=2, fps=1)
    with pytest.raises(ArgumentError, match="opencv"):
        load_video(path, backend="opncv")
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="decoder"):
        load_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("source", ["no/such/file.png", "@@@", 3, "data:image/png;base64,AAAA"])
def test_what_is_no_picture_is_refused(source) -> None:
    with pytest.raises(ArgumentError, match="picture"):
        load_image(source)


def test_auto_finds_the_class(tmp_path: Path) -> None:
    def saved(config: dict, model: dict | None = None) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        if model is not None:
            (folder / "config.json").write_text(json.dumps(model))
        return folder

    auto = phyla.AutoImageProcessor
    clip = saved({"image_processor_type": "CLIPImageProcessor", "size": 40})
    assert type(auto.from_pretrained(clip)) is phyla.CLIPImageProcessor
    assert auto.from_pretrained(clip).size == {"shortest_edge": 40}
    assert type(auto.from_pretrained(clip, use_fast=True)) is phyla.CLIPImageProcessorFast
    fast = saved({"image_processor_type": "CLIPImageProcessorFast"})
    assert type(auto.from_pretrained(fast)) is phyla.CLIPImageProcessorFast
    assert type(auto.from_pretrained(fast, use_fast=False)) is phyla.CLIPImageProcessor
    assert auto.from_pretrained(clip, do_normalize=False).do_normalize is False
    old = saved({"feature_extractor_type": "DetrFeatureExtractor"})
    assert type(auto.from_pretrained(old)) is phyla.DetrImageProcessor
    swin = saved({"do_resize": True}, {"model_type": "swin"})
    assert type(auto.from_pretrained(swin)) is phyla.ViTImageProcessor
    one, unused = auto.from_pretrained(clip, nonsense=1, return_unused_kwargs=True)
    assert unused == {"nonsense": 1} and type(one) is phyla.CLIPImageProcessor
    video = saved({"image_processor_type": "CLIPImageProcessor"}, {"model_type": "llava_next_video"})
    assert type(phyla.AutoVideoProcessor.from_pretrained(video)) is phyla.LlavaNextVideoImageProcessor
    with pytest.raises(ConfigError, match="Did you mean"):
        auto.from_pretrained(saved({"image_processor_type": "ClipImageProcessor"}))
    with pytest.raises(ConfigError, match="model_type"):
        auto.from_pretrained(saved({}, {"model_type": "swim"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="preprocessor_config"):
        auto.from_pretrained(tmp_path / "empty")
    with pytest.raises(MissingFileError, match="preprocessor_config"):
        phyla.ViTImageProcessor.from_pretrained(tmp_path / "empty")


def test_auto_tables_name_classes() -> None:
    assert {*IMAGE_NAMES.values(), *VIDEO_NAMES.values()} - set(ROWS) == {"TimmWrapperImageProcessor"}


def test_weights_bring_their_own_settings(tmp_path: Path) -> None:
    weights = {
        "input_size": [3, 32, 32],
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
    }
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "pretrained_cfg": weights}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = phyla.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is phyla.TimmWrapperImageProcessor and processor.save_pretrained(tmp_path) == []
    picture = image(60, 50)
    got = processor(picture)["pixel_values"]
    resized = np.array(picture.resize((48, 40), resample=2))[4:36, 8:40].transpose(2, 0, 1)
    want = (torch.from_numpy(resized) / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    torch.testing.assert_close(got[0], want)
    torch.testing.assert_close(processor([np.array(picture)])["pixel_values"], got)


def test_common_options_are_ignored_where_a_class_has_none(caplog: pytest.LogCaptureFixture) -> None:
    phyla.Swin2SRImageProcessor()(image(8, 8), do_center_crop=True)
    assert "do_center_crop" in caplog.text


def test_outside_classes_register() -> None:
    class OutsideImageProcessor(phyla.BaseImageProcessor):
        pass

    phyla.AutoImageProcessor.register("outside", OutsideImageProcessor)
    made_ = phyla.AutoImageProcessor.from_pretrained
    with pytest.raises(ArgumentError, match="exist_ok"):
        phyla.AutoImageProcessor.register("outside", OutsideImageProcessor)
    assert callable(made_)


def test_joint_files_of_newer_versions_are_read(tmp_path: Path) -> None:
    settings_ = {"image_processor_type": "ViTImageProcessor", "size": {"height": 9, "width": 9}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings_}))
    assert phyla.ViTImageProcessor.from_pretrained(tmp_path).size == {"height": 9, "width": 9}
    assert phyla.AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 9, "width": 9}


# --- errors and batches


def test_former_names_warn() -> None:
    with pytest.warns(FutureWarning, match="ViTImageProcessor"):
        assert isinstance(phyla.ViTFeatureExtractor(), phyla.ViTImageProcessor)


def test_errors_say_what_to_do() -> None:
    processor = phyla.ViTImageProcessor()
    with pytest.raises(UnknownArgumentError, match="do_resize"):
        processor(image(8, 8), do_resise=False)
    with pytest.raises(ArgumentError, match="shortest_edge"):
        phyla.ViTImageProcessor(size={"height": 3})
    with pytest.raises(ArgumentError, match="at least one picture"):
        phyla.BlipImageProcessor()([], return_tensors="pt")
    with pytest.raises(ArgumentError, match="cannot be resized to 0"):
        phyla.GLPNImageProcessor()(image(40, 20))
    with pytest.raises(ArgumentError, match="pictures"):
        processor([1, 2])
    with pytest.raises(ArgumentError, match="resize before rescaling"):
        processor(array(9, 9, dtype="float32") * 3, input_data_format="channels_last")
    with pytest.raises(ArgumentError, match="one shape"):
        processor([image(8, 8), image(9, 9)], do_resize=False, return_tensors="pt")
    with pytest.raises(ArgumentError, match="channel order"):
        processor(image(8, 8), data_format="channels_middle")
    with pytest.raises(ArgumentError, match="image_mean"):
        phyla.LlavaImageProcessor(image_mean=[0.5, 0.5], do_pad=True)(image(8, 9))
    with pytest.raises(ArgumentError, match="return_tensors"):
        phyla.ViTImageProcessorFast()(image(8, 8), return_tensors="np")
    with pytest.raises(ArgumentError, match="annotations must hold"):
        phyla.DetrImageProcessor()([image(8, 8)], annotations=[])
    with pytest.raises(ArgumentError, match="masks_path"):
        phyla.DetrImageProcessor()(
            image(8, 8),
            annotations={"image_id": 1, "file_name": "a.png", "segments_info": []},
            format="coco_panoptic",
        )


def test_missing_frameworks_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"phyla\[tensorflow\]"):
        phyla.ViTImageProcessor(size=8)(image(8, 8), return_tensors="tf")


def test_batches_move_and_copy() -> None:
    batch = BatchFeature({"pixel_values": [np.zeros((3, 2, 2), np.float32)] * 2, "ids": [[1, 2]]}, "pt")
    assert batch.pixel_values.shape == (2, 3, 2, 2) and batch["ids"].dtype == torch.int64
    moved = batch.to(torch.float16)
    assert moved is batch and batch.pixel_values.dtype == torch.float16 and batch["ids"].dtype == torch.int64
    assert batch.to("meta")["ids"].device.type == "meta"
    assert copy.deepcopy(BatchFeature({"a": 1})).a == 1
    with pytest.raises(AttributeError, match="pixel_values"):
        _ = batch.pixel_value
    with pytest.raises(KeyError):
        batch[0]
    with pytest.raises(ArgumentError, match="device"):
        batch.to([])


def test_pictures_are_processed_without_torch() -> None:
    script = (
        "import sys, numpy\n"
        "from phyla import AutoImageProcessor, CLIPImageProcessor, DetrImageProcessor\n"
        "out = CLIPImageProcessor()(numpy.zeros((30, 40, 3), numpy.uint8), return_tensors='np')\n"
        "assert out['pixel_values'].shape == (1, 3, 224, 224)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
