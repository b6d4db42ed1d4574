"""The product of few rows on a CPU as a small native kernel (gemv.cpp), built once by the system's compiler.

Optional: without a compiler, or with PHYLA_NATIVE=0, everything runs as before. The kernel takes its threads
from the OpenMP runtime that torch has loaded; a second runtime beside it would compete for the same cores.
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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from phyla.blocks import matmul

SOURCE = Path(__file__).with_name("gemv.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared")
BUILD_SECONDS = 60
# Where the processor multiplies bfloat16 itself, oneDNN is the faster from five rows on.
MAX_ROWS = {torch.float32: 8, torch.bfloat16: 4 if matmul.HAS_BFLOAT16 else 8}
_FAILURES = (OSError, AttributeError, RuntimeError, TypeError, ValueError, subprocess.SubprocessError)

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_started = False
_builder: threading.Thread | None = None


def enable(background: bool = True) -> None:
    """Put the kernel into `matmul.few_rows`: at once where it was built before, else when a thread built it.

    Only the first call does something. Never raises: what is missing is one line in the debug log.
    """
    global _started, _builder
    with _lock:
        if _started:
            return
        _started = True
        if os.environ.get("PHYLA_NATIVE") == "0":
            _log.debug("native kernel: switched off by PHYLA_NATIVE=0")
        elif not background or _is_built():
            _install()
        else:
            _builder = threading.Thread(target=_install, name="phyla-native", daemon=True)
            _builder.start()


def wait() -> bool:
    """Wait until what `enable` began has ended; whether the kernel is in use."""
    builder = _builder
    if builder is not None:
        builder.join()
    return matmul.few_rows is not None


def load() -> Kernel | None:
    """The kernel, built where it has to be; None (and a debug line saying why) where it cannot be had."""
    try:
        parallel = _torch_threads()
        return _kernel(ctypes.CDLL(str(_built())), parallel)
    except _FAILURES as error:
        _log.debug("native kernel: not in use: %s", error)
        return None


def _install() -> None:
    matmul.few_rows = load()


def _forget_builder() -> None:
    """In a forked child: the parent's building thread is not here; what the parent has loaded is."""
    global _builder, _started, _lock
    _lock = threading.Lock()
    if _builder is not None and matmul.few_rows is None:
        _started = False
    _builder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_builder)


def _torch_threads() -> int:
    """The address of the GOMP_parallel that torch itself calls, looked up in the loader's own order."""
    libraries = [ctypes.CDLL(None)]
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if torch_cpu.exists():
        libraries.append(ctypes.CDLL(str(torch_cpu)))
    for library in libraries:
        if hasattr(library, "GOMP_parallel"):
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    raise RuntimeError("torch's OpenMP runtime has no GOMP_parallel")


def _cpu() -> str:
    """What -march=native depends on: the model and flags of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read(8192).split("\n\n")[0]
    except OSError:
        return platform.processor()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    return "\n".join(line for line in text.splitlines() if line.startswith(kept))


def _target() -> Path:
    """Where the library for this source and this machine lies, whether it is built or not."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    parts = (SOURCE.read_text(encoding="utf-8"), *FLAGS, platform.machine(), platform.system(), _cpu())
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
        command = [*compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
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


def _kernel(library: ctypes.CDLL, parallel: int) -> Kernel:
    """few_rows(x, weight, bias): x W^T + b for x (..., K) of 1 to 8 rows, None where it does not apply."""
    number, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    product = library.phyla_few_rows
    product.restype = ctypes.c_int
    product.argtypes = [
        ctypes.c_int, number, number, number, pointer, number, pointer, pointer, pointer, number,
        ctypes.c_uint, pointer,
    ]  # fmt: skip
    dispatched = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)

    def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        dtype = weight.dtype
        # Anything that watches or changes what torch does must see torch's own operation.
        if (
            type(x) is not Tensor
            or type(weight) not in (Tensor, nn.Parameter)
            or x.dtype != dtype
            or dtype not in MAX_ROWS
            or not (x.is_cpu and weight.is_cpu)
            or dispatched()
            or torch.is_autocast_enabled("cpu")
            or torch._C._get_tracing_state() is not None
            or weight.dim() != 2
        ):
            return None
        outs, width = weight.shape
        rows = x.numel() // width if width else 0
        if x.shape[-1] != width or not 1 <= rows <= MAX_ROWS[dtype] or not weight.is_contiguous():
            return None
        if bias is not None:
            if bias.dtype != dtype or bias.shape != (outs,) or not bias.is_cpu or not bias.is_contiguous():
                return None
        flat = x if x.is_contiguous() else x.reshape(rows, width)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        stride = width if flat is x else flat.stride(0)
        y = x.new_empty((*x.shape[:-1], outs))
        try:
            failed = product(
                dtype == torch.bfloat16, rows, outs, width, flat.data_ptr(), stride, weight.data_ptr(),
                None if bias is None else bias.data_ptr(), y.data_ptr(), outs, torch.get_num_threads(),
                parallel,
            )  # fmt: skip
        except RuntimeError:  # a tensor without memory of its own (vmap and the like)
            return None
        return None if failed else y

    return few_rows
