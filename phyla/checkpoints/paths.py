"""Names that come from a checkpoint's files, turned into paths that stay inside it, and files opened without
surprises."""

import errno
import io
import os
import stat
import unicodedata
from pathlib import Path

from phyla.errors import CorruptFileError, MissingFileError, UnsafePathError

_LONGEST_NAME = 1024
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def name_fault(name: object) -> str | None:
    """Why a file name written in a checkpoint cannot be a path inside it, or None if it can."""
    if not isinstance(name, str):
        return f"it is {type(name).__name__}, not a string"
    if not name:
        return "it is empty"
    if len(name) > _LONGEST_NAME:
        return f"it is {len(name)} characters long, more than {_LONGEST_NAME}"
    # Full-width dots and slashes fold to plain ones on some file systems.
    for form in (name, unicodedata.normalize("NFKC", name)):
        if any(ord(c) < 32 or c == "\x7f" or 0xD800 <= ord(c) < 0xE000 for c in form):
            return "it holds control characters or surrogates"
        if form.startswith("/") or "\\" in form:
            return "it is absolute or holds a backslash"
        if ":" in form:
            return "it holds a colon (a drive letter or stream)"
        if any(part.rstrip(" .") == "" for part in form.split("/")):
            return "it holds an empty, '.' or '..' part"
    return None


def safe_join(folder: str | os.PathLike, name: str, where: str = "") -> Path:
    """The path of `name` below `folder`, for a name that came out of a file (`where` says which file and
    key).

    Links may lead to other places of the same folder, or of the same hub cache's blobs; raises
    UnsafePathError for all else.
    """
    folder = Path(folder)
    source = f"{where}: " if where else ""
    fault = name_fault(name)
    if fault:
        raise UnsafePathError(
            f"{source}file names must be plain paths inside {folder}, but {str(name)[:200]!r} cannot "
            f"be used: {fault}"
        )
    path = folder / name
    target = Path(os.path.realpath(path))
    allowed = [Path(os.path.realpath(folder)), *_hub_blobs(folder)]
    if not any(target.is_relative_to(root) for root in allowed):
        raise UnsafePathError(
            f"{source}{name!r} is a link that leads out of {folder}, to {target}; put the file itself there"
        )
    return path


def _hub_blobs(folder: Path) -> list[Path]:
    """The blob folders that links of a hub-cache snapshot (`models--a--b/snapshots/REVISION/...`) may lead
    to."""
    absolute = Path(os.path.abspath(folder))
    for parent in (absolute, *absolute.parents):
        repository = parent.parent.parent
        if parent.parent.name == "snapshots" and repository.name.startswith("models--"):
            # The second one is shared by all repositories of a cache.
            return [Path(os.path.realpath(root / "blobs")) for root in (repository, repository.parent)]
    return []


class RegularFile(io.FileIO):
    """A file that is closed when it is collected, without the warning: who reads weights need not close
    them."""

    def __del__(self) -> None:
        self.close()


def open_regular(path: str | os.PathLike) -> RegularFile:
    """Open a regular file for unbuffered binary reading, at once and without following links to nothing.

    Raises MissingFileError (absent, dangling link, loop of links) and CorruptFileError (directory, FIFO,
    device, unreadable).
    """
    path = Path(path)
    # Non-blocking, so that a FIFO put there after the first look does not hang the open.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            file = RegularFile(os.open(path, flags), "rb")
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    if not stat.S_ISREG(mode):
        raise CorruptFileError(
            f"{path} must be a regular file, but is {_KINDS.get(stat.S_IFMT(mode), 'something else')}"
        )
    return file


def _cannot_open(path: Path, error: OSError | ValueError) -> Exception:
    if isinstance(error, ValueError):
        return UnsafePathError(f"{str(path)!r} is no path: {error}")
    if error.errno == errno.ELOOP:
        return MissingFileError(
            f"{path} is a loop of links (to {_link_target(path)}); put the file itself there"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            return MissingFileError(
                f"{path} is a link to nothing (to {_link_target(path)}); put the file itself there"
            )
        return MissingFileError(f"there is no file {path}")
    return CorruptFileError(f"{path} cannot be opened: {error.strerror or error}")


def _link_target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "an unknown place"


def read_exactly(file: io.FileIO, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` from byte `offset` on; raises CorruptFileError if the file ends first (it was cut while
    open). Several threads may read one file where the system reads at a given place."""
    placed = hasattr(os, "preadv")
    if not placed:
        file.seek(offset)
    while buffer:
        try:
            count = os.preadv(file.fileno(), [buffer], offset) if placed else file.readinto(buffer)
        except OSError as error:
            raise CorruptFileError(
                f"{path} cannot be read at byte {offset}: {error.strerror or error}"
            ) from error
        if not count:
            raise CorruptFileError(f"{path} changed while it was read: byte {offset} is gone; load it again")
        buffer, offset = buffer[count:], offset + count
