"""Saving weights: the public format, shards, and a whole checkpoint whatever fails or whenever the process
dies."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from phyla.checkpoints import atomic, open_weights, save, save_weights
from phyla.checkpoints.safetensors_file import DTYPES
from phyla.checkpoints.save import parse_size, plan_shards
from phyla.errors import ArgumentError, MissingFileError


def checkpoint(value: int, count: int = 4) -> dict[str, torch.Tensor]:
    """`count` tensors of 40 bytes that tell which checkpoint they belong to."""
    return {f"layers.{i}.weight": torch.full((10,), float(value)) for i in range(count)}


def value_in(folder: Path) -> int | None:
    """Which checkpoint a folder holds, None if none; all of its tensors must be of the same one."""
    try:
        with open_weights(folder) as weights:
            read = dict(weights.read_many())
    except MissingFileError:
        return None
    values = {float(x) for tensor in read.values() for x in tensor}
    assert len(values) == 1, f"a mix of checkpoints: {values}"
    value = int(values.pop())
    assert set(read) == set(checkpoint(value, 3 + value % 2))
    return value


def save_value(folder: Path, value: int, sharded: bool) -> None:
    files = {"config.json": json.dumps({"value": value}).encode()}
    save_weights(checkpoint(value, 3 + value % 2), folder, 80 if sharded else "5GB", files=files)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


class TestFormat:
    def test_files_are_those_of_the_public_writer(self, tmp_path: Path) -> None:
        tensors = {}
        for i, dtype in enumerate(DTYPES.values()):
            raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8) % 2
            tensors[f"b{i % 3}.ü{i}"] = raw.bool() if dtype == torch.bool else raw.view(dtype)
        tensors = {name: t for name, t in tensors.items() if known_to_public_writer(t)}
        tensors |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), 'quote"\\é': torch.ones(1)}
        assert len(tensors) > 18
        assert save_weights(tensors, tmp_path) == ["model.safetensors"]
        safetensors.torch.save_file(tensors, tmp_path / "public", metadata={"format": "pt"})
        assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "public").read_bytes()

    def test_special_values_survive_bit_for_bit(self, tmp_path: Path) -> None:
        bits = torch.tensor([0x7FC00001, -0x800001, 1, -(1 << 31), 0x7F800000, 0x7F800001], dtype=torch.int32)
        save_weights({"a": bits.view(torch.float32)}, tmp_path)
        assert torch.equal(open_weights(tmp_path).read("a").view(torch.int32), bits)
        assert torch.equal(
            safetensors.torch.load_file(tmp_path / "model.safetensors")["a"].view(torch.int32), bits
        )

    def test_strided_tensors_are_saved_in_order(self, tmp_path: Path) -> None:
        base = torch.arange(24.0).view(2, 3, 4)
        tensors = {"t": base.permute(2, 0, 1), "s": base[:, ::2], "e": base[:1].expand(5, 3, 4), "n": -base}
        tensors["c"] = torch.complex(base, base).conj()
        save_weights(tensors, tmp_path)
        with open_weights(tmp_path) as weights:
            for name, tensor in tensors.items():
                assert torch.equal(weights.read(name), tensor.resolve_conj())

    def test_gradients_and_parameters(self, tmp_path: Path) -> None:
        save_weights({"p": torch.nn.Parameter(torch.ones(2))}, tmp_path)
        assert not open_weights(tmp_path).read("p").requires_grad

    def test_metadata(self, tmp_path: Path) -> None:
        save_weights({"a": torch.ones(1)}, tmp_path, metadata={"format": "pt", "made": "é"})
        with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "made": "é"}
        save_weights({"a": torch.ones(1)}, tmp_path, metadata=None)
        assert open_weights(tmp_path).metadata == {}

    @pytest.mark.parametrize(
        ("tensors", "metadata", "text"),
        [
            ({"a": [1.0]}, None, "'a' must be a tensor"),
            ({3: torch.ones(1)}, None, "named by plain text"),
            ({"__metadata__": torch.ones(1)}, None, "named by plain text"),
            ({"a\ud800": torch.ones(1)}, None, "named by plain text"),
            ({"a": torch.ones(2, device="meta")}, None, "meta device"),
            ({"a": torch.eye(2).to_sparse()}, None, "dense tensor"),
            ({"a": torch.ones(1, dtype=torch.complex128)}, None, "complex128"),
            ({"a": torch.ones(1)}, {"a": 1}, "metadata must map"),
        ],
    )
    def test_what_cannot_be_saved_is_told_before_any_work(
        self, tmp_path: Path, tensors: dict, metadata: dict | None, text: str
    ) -> None:
        with pytest.raises(ArgumentError, match=text):
            save_weights(tensors, tmp_path / "new", metadata=metadata)
        assert not (tmp_path / "new").exists()

    def test_files_beside_the_weights_have_plain_names(self, tmp_path: Path) -> None:
        for name in ("../x", "a/b", ""):
            with pytest.raises(ArgumentError, match="plain name"):
                save_weights({"a": torch.ones(1)}, tmp_path, files={name: b""})
        assert names(tmp_path) == []


def known_to_public_writer(tensor: torch.Tensor) -> bool:
    try:
        safetensors.torch.save({"a": tensor})
    except (KeyError, safetensors.SafetensorError):
        return False
    return True


class TestShards:
    def test_the_index_is_that_of_the_public_tools(self, tmp_path: Path) -> None:
        tensors = {f"b.{9 - i}": torch.full((i + 1, 10), float(i)) for i in range(6)}
        written = save_weights(tensors, tmp_path, 250)
        plan = split_torch_state_dict_into_shards(tensors, max_shard_size=250)
        assert written == list(plan.filename_to_tensors)
        index = {"metadata": {"total_size": 40 * 21}, "weight_map": plan.tensor_to_filename}
        text = (tmp_path / "model.safetensors.index.json").read_text()
        assert text == json.dumps(index, indent=2, sort_keys=True) + "\n"
        for name, keys in plan.filename_to_tensors.items():
            stored = safetensors.torch.load_file(tmp_path / name)
            assert {k: v.tolist() for k, v in stored.items()} == {k: tensors[k].tolist() for k in keys}
        assert names(tmp_path) == sorted([*written, "model.safetensors.index.json"])

    @given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 60))
    def test_the_split_is_that_of_the_public_tools(self, sizes: list[int], limit: int) -> None:
        tensors = {f"t{i}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
        plan = split_torch_state_dict_into_shards(tensors, max_shard_size=limit)
        # Where a tensor over the limit comes first, the public tool makes an empty shard too; we do not.
        expected = [list(keys) for keys in plan.filename_to_tensors.values() if keys]
        assert plan_shards(tensors, limit) == (expected or [[]])

    @pytest.mark.parametrize(
        ("size", "bytes_"),
        [
            (7, 7),
            ("7", 7),
            ("5GB", 5 * 10**9),
            ("5 gb", 5 * 10**9),
            ("1.5MB", 1_500_000),
            ("2KiB", 2048),
            ("1TB", 10**12),
        ],
    )
    def test_sizes(self, size: int | str, bytes_: int) -> None:
        assert parse_size(size) == bytes_

    @pytest.mark.parametrize("size", ["", "GB", "-1", -1, 0, "5XB", None, True, 1.5, "1e9", "0.1"])
    def test_sizes_that_are_none(self, size: object) -> None:
        with pytest.raises(ArgumentError, match="max_shard_size"):
            parse_size(size)

    def test_saving_again_leaves_nothing_stale(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        for value, limit in enumerate((40, 40, 120, "1GB", 80, 80, 80, "1GB"), 1):
            written = save_weights(checkpoint(value, 3 + value % 2), tmp_path, limit)
            assert value_in(tmp_path) == value
            index = ["model.safetensors.index.json"] if len(written) > 1 else []
            assert names(tmp_path) == sorted([*written, *index, "notes.txt"])

    def test_shards_of_other_names_are_replaced(self, tmp_path: Path) -> None:
        tensors = checkpoint(1)
        safetensors.torch.save_file(tensors, tmp_path / "first.safetensors")
        table = dict.fromkeys(tensors, "first.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        save_value(tmp_path, 2, sharded=True)
        assert value_in(tmp_path) == 2
        assert "first.safetensors" not in names(tmp_path)

    def test_a_damaged_index_in_place_does_not_matter(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.index.json").write_text("{")
        save_value(tmp_path, 2, sharded=True)
        assert value_in(tmp_path) == 2


class TestFolders:
    @pytest.mark.parametrize("below", ["", "sub"])
    def test_a_file_in_the_way(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError, match="file") as caught:
            save_weights(checkpoint(1), tmp_path / "file" / below)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not by its mode: tests may run as root, whom no mode stops.
        monkeypatch.setattr(atomic.os, "access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="must be saved to a folder that can be written") as caught:
            save_weights(checkpoint(1), tmp_path)
        assert caught.value.filename == str(tmp_path)
        assert names(tmp_path) == []

    def test_links_are_replaced_not_followed(self, tmp_path: Path) -> None:
        blob = tmp_path / "blob"
        blob.write_bytes(b"cached")
        model = tmp_path / "model"
        model.mkdir()
        for name in ("model.safetensors", "config.json"):
            (model / name).symlink_to(blob)
        save_value(model, 1, sharded=False)
        assert blob.read_bytes() == b"cached"
        assert not (model / "model.safetensors").is_symlink()

    def test_modes_are_kept(self, tmp_path: Path) -> None:
        save_value(tmp_path, 1, sharded=False)
        default = (tmp_path / "model.safetensors").stat().st_mode & 0o777
        (tmp_path / "plain").touch()
        assert default == (tmp_path / "plain").stat().st_mode & 0o777
        os.chmod(tmp_path / "model.safetensors", 0o600)
        save_value(tmp_path, 2, sharded=False)
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o600

    def test_new_folders_are_made(self, tmp_path: Path) -> None:
        save_value(tmp_path / "a" / "b", 1, sharded=False)
        assert value_in(tmp_path / "a" / "b") == 1


class Killed(BaseException):
    """The process ends here: nothing of it may run on."""


class FaultyOS:
    """The module os, of which the n-th file operation fails in a chosen way."""

    COUNTED = ("open", "write", "fsync", "replace", "unlink", "listdir", "lstat", "fchmod")

    def __init__(self, at: int, fault: str):
        self.at, self.fault, self.calls, self.dead = at, fault, 0, False
        self.unsynced: dict[int, Path] = {}
        self.path = os.path

    def __getattr__(self, name: str) -> object:
        function = getattr(os, name)
        return self.counted(name, function) if name in self.COUNTED else function

    def counted(self, name: str, function: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            if self.dead:
                raise Killed
            self.calls += 1
            if self.calls == self.at:
                self.fail(name, function, args, options)
            result = None if name == "fsync" else function(*args, **options)
            self.watch(name, args, result)
            return result

        return call

    def fail(self, name: str, function: Callable, args: tuple, options: dict) -> None:
        if self.fault == "error":
            raise OSError(errno.ENOSPC, "no space left on device")
        if self.fault == "interrupt after" and name != "fsync":
            self.watch(name, args, function(*args, **options))
            raise KeyboardInterrupt
        if self.fault == "interrupt after":
            raise KeyboardInterrupt
        if self.fault == "kill after" and name == "write":
            function(args[0], args[1][: len(args[1]) // 2])
        elif self.fault == "kill after" and name != "fsync":
            function(*args, **options)
        self.dead = True
        # What was not made durable is lost with a crash of the machine.
        for path in self.unsynced.values():
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
        raise Killed

    def watch(self, name: str, args: tuple, result: object) -> None:
        if name == "open" and isinstance(result, int) and not Path(args[0]).is_dir():
            self.unsynced[result] = Path(args[0])
        elif name == "fsync":
            self.unsynced.pop(args[0], None)


PAIRS = [(old, new) for old in ("none", "single", "shards", "shards twice") for new in ("single", "shards")]


@pytest.mark.parametrize("fault", ["error", "interrupt after", "kill before", "kill after"])
@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_every_file_operation_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, fault: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    at, done = 0, False
    while not done:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        if old != "none":
            save_value(folder, 1, sharded=old != "single")
        if old == "shards twice":
            save_value(folder, 1, sharded=True)
        before = {name: (folder / name).read_bytes() for name in names(folder)}
        faulty = FaultyOS(at, fault)
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", faulty)
            patch.setattr(save, "os", faulty)
            try:
                save_value(folder, 2, sharded=new == "shards")
                failed = False
            except (OSError, KeyboardInterrupt, Killed):
                failed = True
            except UserWarning as warning:
                # Only what is left over could not be removed.
                assert "the checkpoint is saved" in str(warning)
                failed = False
        done = faulty.calls < at
        found = value_in(folder)
        assert found in ((None, 2) if old == "none" else (1, 2)), f"operation {at}"
        if not failed:
            assert found == 2
        if fault in ("error", "interrupt after"):
            check_rolled_back(folder, before, found, failed)
        # Whatever was left, the next save is whole and clean.
        save_value(folder, 3, sharded=new == "shards")
        assert value_in(folder) == 3
        assert not [n for n in names(folder) if n.startswith(".phyla")]
        assert len(names(folder)) == (4 if new == "shards" else 2)
    assert at > 12


def check_rolled_back(folder: Path, before: dict[str, bytes], found: int | None, failed: bool) -> None:
    """After an error the folder is as before, or as after the save, config.json included."""
    now = {name: (folder / name).read_bytes() for name in names(folder)}
    if failed and found != 2:
        assert now == before
    else:
        assert json.loads(now["config.json"]) == {"value": 2}
    if failed:
        assert not [n for n in now if n.startswith(".phyla")]


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device.*model\.safetensors"):
        save_weights(checkpoint(1), tmp_path)
    assert names(tmp_path) == []


def test_atomic_write_keeps_the_old_file_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    atomic.atomic_write(path, b"old")
    for at in range(1, 8):
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", FaultyOS(at, "error"))
            try:
                atomic.atomic_write(path, b"new")
            except OSError:
                assert path.read_bytes() in (b"old", b"new")
        assert names(tmp_path) == ["config.json"]
    atomic.atomic_write(path, b"x" * 1000)
    assert path.read_bytes() == b"x" * 1000


def test_two_savers_and_a_reader(tmp_path: Path) -> None:
    save_value(tmp_path, 1, sharded=True)
    faults: list[BaseException] = []
    stop = threading.Event()

    def saver(value: int) -> None:
        try:
            for i in range(15):
                save_value(tmp_path, value + 2 * (i % 2), sharded=i % 3 > 0)
        except BaseException as error:
            faults.append(error)

    def reader() -> None:
        try:
            while not stop.is_set():
                assert value_in(tmp_path) in (1, 2, 3, 4)
        except BaseException as error:
            faults.append(error)

    watching = threading.Thread(target=reader)
    savers = [threading.Thread(target=saver, args=(value,)) for value in (1, 2)]
    for thread in (watching, *savers):
        thread.start()
    for thread in savers:
        thread.join()
    stop.set()
    watching.join()
    if faults:
        raise faults[0]
    assert value_in(tmp_path) in (1, 2, 3, 4)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from test_saving import save_value, value_in

folder = Path(sys.argv[1])
save_value(folder, 1, sharded=True)
for attempt in range(12):
    child = os.fork()
    if not child:
        value = attempt
        while True:
            value = value % 8 + 1
            save_value(folder, value, sharded=value % 3 > 0)
    time.sleep(random.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert value_in(folder) in range(1, 9), attempt
print("whole")
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "whole\n", done.stderr


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=10).filter(lambda n: n.isprintable() and n != "__metadata__"),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=6,
    ),
    st.integers(1, 100),
)
def test_any_tensors_round_trip(tmp_path_factory: pytest.TempPathFactory, kinds: dict, limit: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    tensors = {name: torch.arange(torch.Size(s).numel()).view(s).to(d) for name, (d, s) in kinds.items()}
    save_weights(tensors, folder, limit)
    read = dict(open_weights(folder).read_many())
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
