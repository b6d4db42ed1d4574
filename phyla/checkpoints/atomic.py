"""Files that appear whole or not at all: written beside their place, made durable, then renamed into it."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = (".phyla-", ".tmp")
_CHUNK = 64 << 20


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Write a small file such that readers see the old or the new content, also after a crash; raises OSError
    naming it."""
    path = Path(path)
    temporary = write_temporary(path, [memoryview(data)])
    try:
        os.replace(temporary, path)
    except BaseException:
        discard([temporary])
        raise
    sync_folder(path.parent)


def write_temporary(path: Path, parts: Iterable[memoryview]) -> Path:
    """Write `parts` to a new file beside `path`, durably; its name, for os.replace. Nothing is left if that
    fails."""
    temporary = path.parent / f"{_TEMPORARY[0]}{secrets.token_hex(8)}{_TEMPORARY[1]}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(temporary, flags, 0o666)
        try:
            _keep_mode(handle, path)
            for part in parts:
                _write(handle, part)
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException as error:
        discard([temporary])
        if isinstance(error, OSError):
            # Disk-full errors come without a name, and the temporary name says nothing.
            error.filename = str(path)
        raise
    return temporary


def _keep_mode(handle: int, path: Path) -> None:
    with suppress(OSError):
        old = os.lstat(path)
        if stat.S_ISREG(old.st_mode) and hasattr(os, "fchmod"):
            os.fchmod(handle, stat.S_IMODE(old.st_mode))


def _write(handle: int, part: memoryview) -> None:
    part = part.cast("B")
    while part:
        part = part[os.write(handle, part[:_CHUNK]) :]


def discard(paths: Iterable[Path]) -> list[Path]:
    """Remove files if they are there; those that could not be removed."""
    left = []
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:
            left.append(path)
    return left


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable (where the system can)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def prepare_folder(folder: Path) -> None:
    """Make a folder to save to, before any work; raises OSError naming it if it is a file or cannot be
    written."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "a checkpoint must be saved to a folder, but this is a file", str(folder)
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, "a checkpoint must be saved to a folder that can be written", str(folder)
        )


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Hold a folder against other savers until the block ends or the process dies; False where the system has
    no such locks."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = True
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.EBADF):
                raise
            held = False
        yield held
    finally:
        os.close(handle)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that a killed save left in a folder."""
    return [
        folder / n for n in os.listdir(folder) if n.startswith(_TEMPORARY[0]) and n.endswith(_TEMPORARY[1])
    ]
