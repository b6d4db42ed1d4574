"""Small native kernels for the CPU (*.cpp beside this file), built once by the system's compiler.

Optional: without a compiler, or with PHYLA_NATIVE=0, everything runs as before. The kernels take their
threads from the OpenMP runtime that torch has loaded; a second one would compete for the same cores.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phyla.blocks import flat, gradient, matmul, parts, recurrence, scan, stack
from phyla.blocks.processor import description
from phyla.errors import NativeBuildError
from phyla.fast import codes
from phyla.fast.codes import Coder, coder_of
from phyla.fast.flat import alike_of, flat_attention_of
from phyla.fast.parts import Parts, parts_of
from phyla.fast.products import Product, product_of
from phyla.fast.recurrent import Memory, Scan, memory_of, scan_of
from phyla.fast.step import StackRunner, runner_of
from phyla.fast.train import Training, training_of

HEADERS = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "lanes.h", "codes.h", "step.h"))
SOURCES = tuple(
    Path(__file__).with_name(f"{name}.cpp")
    for name in ("gemv", "gemm", "step", "wide", "train", "loss", "parts", "scan", "flat", "codes")
)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared")
BUILD_SECONDS = 300
_FAILURES = (OSError, AttributeError, RuntimeError, TypeError, ValueError, subprocess.SubprocessError)


class Kernels(NamedTuple):
    """One function for each slot that the blocks have."""

    product: Product
    stack: StackRunner
    gradient: Training
    parts: Parts
    scan: Scan
    memory: Memory
    flat: flat.FlatAttention
    alike: Product
    codes: Coder


_log = logging.getLogger(__name__)
_lock = threading.Lock()
_started = False
_builder: threading.Thread | None = None
_ready: Kernels | None = None


def enable(background: bool = True) -> None:
    """Put the kernels into their slots: at once where they were built before, else at the first call after a
    thread has built them, so that they never change in the middle of a generation.

    Never raises: what is missing is one line in the debug log.
    """
    global _started, _builder
    with _lock:
        if _started:
            if _builder is not None and not _builder.is_alive():
                _adopt()
            return
        _started = True
        if os.environ.get("PHYLA_NATIVE") == "0":
            _log.debug("native kernels: switched off by PHYLA_NATIVE=0")
            codes.keeps_rows = True
        elif not background or _is_built():
            _install()
        else:
            _builder = threading.Thread(target=_prepare, name="phyla-native", daemon=True)
            _builder.start()


def is_coming() -> bool:
    """Whether a thread is building the kernels now."""
    return _builder is not None


def wait() -> bool:
    """Wait until what `enable` began has ended; whether the kernels are in use."""
    builder = _builder
    if builder is not None:
        builder.join()
        with _lock:
            _adopt()
    return matmul.native is not None


def load() -> Kernels | None:
    """The kernels, built where they have to be; None (and why, in the debug log) where they cannot be had."""
    try:
        runtime = _runtime()
        parallel, count, number = (_address(runtime, name) for name in _NEEDED)
        library = ctypes.CDLL(str(_built()))
        return Kernels(
            product_of(library, parallel),
            runner_of(library, parallel, count, number),
            training_of(library, parallel),
            parts_of(library, parallel),
            scan_of(library, parallel),
            memory_of(library, parallel, count, number),
            flat_attention_of(library, parallel),
            alike_of(library, parallel),
            coder_of(library, parallel),
        )
    except _FAILURES as error:
        _log.debug("native kernels: not in use: %s", error)
        codes.missing = str(error)
        return None


def build() -> Path:
    """Where the kernels lie, built first where they are not there yet.

    Raises NativeBuildError: without a compiler, where it fails, where the folder is not the user's own.
    """
    try:
        return _built()
    except _FAILURES as error:
        raise NativeBuildError(
            f"the native kernels cannot be built: {error}. Without them everything runs, but slower"
        ) from error


def _install() -> None:
    _put(load())


def _put(kernels: Kernels | None) -> None:
    """Fill the blocks' slots."""
    none: Any = (None,) * len(Kernels._fields)
    k = kernels or Kernels(*none)
    matmul.native, stack.native, gradient.native = k.product, k.stack, k.gradient
    scan.native, recurrence.native, flat.native = k.scan, k.memory, k.flat
    matmul.native_alike, parts.native, codes.native = k.alike, k.parts, k.codes
    codes.keeps_rows = kernels is None


def _prepare() -> None:
    global _ready
    _ready = load()


def _adopt() -> None:
    """Take what the builder has left, once."""
    global _builder, _ready
    if _builder is not None:
        _put(_ready)
    _builder = _ready = None


def _forget_builder() -> None:
    """In a forked child: the parent's building thread is not here; what the parent has loaded is."""
    global _builder, _started, _lock
    _lock = threading.Lock()
    if _builder is not None and matmul.native is None:
        _started = False
    _builder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_builder)


_NEEDED = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")


def _runtime() -> ctypes.CDLL:
    """The OpenMP runtime that torch itself calls, looked up in the loader's own order."""
    libraries = [ctypes.CDLL(None)]
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if torch_cpu.exists():
        libraries.append(ctypes.CDLL(str(torch_cpu)))
    for library in libraries:
        if all(hasattr(library, name) for name in _NEEDED):
            return library
    raise RuntimeError("torch's OpenMP runtime has no GOMP_parallel")


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _target() -> Path:
    """Where the library for this source and this machine lies, whether it is built or not."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    sources = [path.read_text(encoding="utf-8") for path in (*HEADERS, *SOURCES)]
    parts = (*sources, *FLAGS, platform.machine(), platform.system(), description())
    return cache / "phyla" / "kernels" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.so"


def _is_built() -> bool:
    try:
        return _target().exists()
    except (OSError, RuntimeError):
        return False


def _built() -> Path:
    """The library's file, built first where there is none."""
    target = _target()
    folder = target.parent
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for made in (folder.parent, folder):
        made.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder.parent, 0o022)
    _check_private(folder, 0o077)
    if not target.exists():
        _build(target)
    _check_private(target, 0o077)
    return target


def _check_private(path: Path, barred: int) -> None:
    """Raise PermissionError unless nobody else can have put code there."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & barred:
        raise PermissionError(
            f"{path} must be the user's own and closed to others, found owner {found.st_uid} and "
            f"mode {stat.filemode(found.st_mode)}; remove it, or set XDG_CACHE_HOME"
        )


def _build(target: Path) -> None:
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        command = [*compiler, *FLAGS, "-o", str(fresh), *map(str, SOURCES)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode or not fresh.exists():
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"{compiler[0]} ended with status {done.returncode}: {said}")
        fresh.chmod(0o700)
        fresh.replace(target)


def _compiler() -> list[str]:
    """The command of the C++ compiler: CXX where it is set, else the first that there is."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise RuntimeError("no C++ compiler (g++, clang++ or c++; or set CXX)")
