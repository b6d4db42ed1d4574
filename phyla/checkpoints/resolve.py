"""From what a user names (folder, file, hub id, installed weight package) to a folder or file on disk."""

import logging
import os
import re
import socket
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from phyla.checkpoints.paths import safe_join
from phyla.errors import ArgumentError, CheckpointError, MissingFileError, nearest, require

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin")
# What a model folder may hold beside its weights.
_SMALL_FILES = (".json", ".jsonl", ".txt", ".model", ".tiktoken", ".jinja", ".bpe", ".spm", ".vocab")
_HUB_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def resolve(
    source: str | os.PathLike,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    subfolder: str = "",
    file: str = "",
    weights: bool = True,
    choose: Callable[[list[str]], list[str]] | None = None,
) -> Path:
    """The folder or file that `source` names: a path, an installed weight package, or a hub id (cached or
    downloaded).

    `file` picks one file of it (such as one of several GGUF files); with `weights=False` a download leaves
    the weights out; `choose` picks the files of a repository to download itself.
    Raises MissingFileError with the nearest names, or ArgumentError for what is neither a path nor a hub id.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise ArgumentError(f"a model must be named by a path, a hub id or a package, but is {source!r}")
    text = os.fspath(source)
    if "\0" in text:
        raise ArgumentError(f"a model's name may not hold NUL characters, but is {text!r}")
    path = Path(os.path.expanduser(text))
    if os.path.lexists(path):
        return _inside(path, subfolder, file)
    if isinstance(source, os.PathLike) or _looks_like_path(text):
        raise _no_such_path(path)
    package = _package_root(text) if "/" not in text else None
    if package is not None:
        return _inside(package, subfolder, file)
    _check_hub_id(text)
    choose = choose or (lambda names: choose_files(names, subfolder, file, weights))
    folder = _hub_folder(text, revision, cache_dir, local_files_only, token, choose)
    return _inside(folder, subfolder, file)


def _inside(path: Path, subfolder: str, file: str) -> Path:
    for part in (subfolder, file):
        if part:
            if not path.is_dir():
                raise ArgumentError(f"{path} is a file, so {part!r} cannot lie inside it")
            path = safe_join(path, part, "the argument subfolder or file")
            if not path.exists():
                raise _no_such_path(path)
    return path


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~", "\\"))
        or "\\" in text
        or text.count("/") > 1
        or text.endswith(WEIGHT_SUFFIXES)
    )


def _no_such_path(path: Path) -> MissingFileError:
    parent = path.parent
    try:
        hint = (
            nearest(path.name, os.listdir(parent))
            if parent.is_dir()
            else f" There is no folder {parent} either."
        )
    except OSError:
        hint = ""
    return MissingFileError(f"there is no file or folder {path}.{hint}")


def _check_hub_id(text: str) -> None:
    parts = text.split("/")
    plain = len(text) <= 96 and all(_HUB_PART.fullmatch(part) for part in parts) and len(parts) <= 2
    if not plain or ".." in text or "--" in text:
        raise MissingFileError(
            f"{text[:200]!r} is no path on this machine, and cannot be a hub id, which must be 'name' "
            "or 'owner/name' of letters, "
            "digits, '-', '_' and '.'"
        )


def _package_root(name: str) -> Path | None:
    """The folder or file of weights that an installed distribution brings, or None if there is no such
    distribution."""
    if not _DISTRIBUTION.fullmatch(name):
        return None
    import importlib.metadata

    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    files = [f for f in distribution.files or [] if f.suffix in WEIGHT_SUFFIXES]
    if not files:
        return None
    configs = {f.parent for f in distribution.files or [] if f.name == "config.json"}
    folders = sorted({str(f.parent) for f in files if f.parent in configs})
    ggufs = [f for f in files if f.suffix == ".gguf"]
    if len(folders) == 1:
        found = Path(str(distribution.locate_file(folders[0])))
    elif not folders and len(ggufs) == 1:
        found = Path(str(distribution.locate_file(ggufs[0])))
    else:
        shown = ", ".join(folders or [str(f) for f in files[:20]])
        raise CheckpointError(
            f"the package {name} holds several models; give the path of one of them: {shown}"
        )
    if not found.exists():
        raise MissingFileError(
            f"the package {name} should hold {found}, but it is gone; install the package again"
        )
    return found


def _weight_packages() -> list[str]:
    """Names of installed distributions that hold weight files (for hints)."""
    import importlib.metadata

    found = []
    for distribution in importlib.metadata.distributions():
        if any(f.suffix in (".safetensors", ".gguf") for f in distribution.files or []):
            found.append(distribution.metadata["Name"])
    return found


def _hub_folder(
    source: str,
    revision: str | None,
    cache_dir: str | os.PathLike | None,
    local_files_only: bool,
    token: str | bool | None,
    choose: Callable[[list[str]], list[str]],
) -> Path:
    hub = require("huggingface_hub", "hub", f"loading {source!r} from the hub")
    from huggingface_hub import constants, errors

    options = {"revision": revision, "cache_dir": cache_dir, "token": token}
    if local_files_only or constants.HF_HUB_OFFLINE:
        why = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE=1"
        reason = f"the hub may not be asked ({why})"
    elif not _reachable(constants.ENDPOINT):
        reason = "the hub cannot be reached"
    else:
        try:
            names = hub.HfApi(token=token).list_repo_files(source, revision=revision)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            reason = (
                f"it is not open to you on the hub ({_first_line(error)}; give token=... if it is private)"
            )
        except Exception as error:
            # The errors of the network layer differ between versions of the hub library; none is final.
            reason = f"the hub cannot be reached ({_first_line(error)})"
            logger.warning("%s; looking for %s in the cache", reason, source)
        else:
            return _download(hub, source, choose(names), options)
    try:
        return Path(hub.snapshot_download(source, local_files_only=True, **options))
    except errors.LocalEntryNotFoundError as error:
        # A snapshot of only the files that were needed is known to the hub library as incomplete.
        partial = getattr(error, "snapshot_path", None)
        if partial:
            return Path(partial)
        cache = cache_dir or constants.HF_HUB_CACHE
        at = f" at revision {revision!r}" if revision else ""
        hint = nearest(source, [*_cached_ids(cache), *_weight_packages()])
        raise MissingFileError(
            f"{source!r} is no folder here and no installed weight package, {reason}, "
            f"and the hub cache {cache} does not hold it{at}.{hint}"
        ) from error


def _reachable(endpoint: str) -> bool:
    """Whether the hub's machine answers at all; the hub library itself would try for half a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urllib.parse.urlsplit(endpoint)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _download(hub, source: str, names: list[str], options: dict) -> Path:
    escaped = [re.sub(r"([*?\[])", r"[\1]", name) for name in names]
    try:
        return Path(hub.snapshot_download(source, allow_patterns=escaped, **options))
    except Exception as error:
        raise MissingFileError(
            f"downloading {source!r} from the hub failed: {_first_line(error)}; try again"
        ) from error


def choose_files(names: list[str], subfolder: str, file: str, weights: bool) -> list[str]:
    """The files of a repository to download: the small ones, and one kind of weights (safetensors before .bin
    before GGUF)."""
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    small = [name for name in names if name.endswith(_SMALL_FILES)]
    if file:
        return [*small, *[name for name in names if name == prefix + file]]
    if not weights:
        return small
    here = [name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :]]
    for start, suffix in (
        ("model", ".safetensors"),
        ("", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("qmodel", ".pt"),
        ("", ".gguf"),
    ):
        found = [name for name in here if name[len(prefix) :].startswith(start) and name.endswith(suffix)]
        if found and suffix == ".gguf" and len(found) > 1:
            raise MissingFileError(
                f"there are {len(found)} GGUF files; name one of them (file=...): {', '.join(found[:40])}"
            )
        if found:
            return [*small, *found]
    return small


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _cached_ids(cache: str | os.PathLike) -> list[str]:
    try:
        names = os.listdir(cache)
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/") for name in names if name.startswith("models--")]
