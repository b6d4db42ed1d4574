"""Adapters on the Hugging Face hub: uploading them with a card, and finding those of others."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from phyla.adapters.hub import save_adapter, save_adapter_setup
from phyla.checkpoints.atomic import atomic_write
from phyla.checkpoints.resolve import _first_line, _reachable
from phyla.errors import CheckpointError, MissingFileError, require
from phyla.model import PreTrainedModel

TAG = "adapter-transformers"  # what the hub knows adapters by
TEXT = "<!-- Add some description here -->"
CARD = """---
tags:
{tags}
---

# Adapter `{repo}` for {model}

An adapter for `{model}`{data}{head}, in the format of AdapterHub: phyla reads it, and so does the library
[adapters](https://github.com/Adapter-Hub/adapters).

## Usage

```python
from phyla.adapters import AutoAdapterModel

model = AutoAdapterModel.from_pretrained("{model}")
name = model.{load}("{repo}", set_active=True)
```

## Architecture & Training

{architecture_training}

## Evaluation results

{results}

## Citation

{citation}
"""


def adapter_card(
    model: PreTrainedModel, adapter_name: str, repo_id: str, datasets_tag: str | None = None,
    tags: list[str] | None = None, language: str | None = None, license: str | None = None,
    metrics: list[str] | None = None, architecture_training: str = TEXT, results: str = TEXT,
    citation: str = TEXT, load: str = "load_adapter",
) -> str:  # fmt: skip
    """The text of an adapter's README.md."""
    lines = [f"- {tag}" for tag in dict.fromkeys([TAG, model.config.model_type, *(tags or [])])]
    lists = {"datasets": [datasets_tag] if datasets_tag else [], "language": [language] if language else []}
    for key, items in {**lists, "metrics": metrics or []}.items():
        if items:
            lines += [f"{key}:", *(f"- {item}" for item in items)]
    if license:
        lines.append(f'license: "{license}"')
    heads = getattr(model, "heads", None) or {}
    data = (
        f", trained on [{datasets_tag}](https://huggingface.co/datasets/{datasets_tag}/)"
        if datasets_tag
        else ""
    )
    return CARD.format(
        tags="\n".join(lines), repo=repo_id,
        model=getattr(model.config, "_name_or_path", "") or "a local model",
        data=data, head=", with a prediction head" if adapter_name in heads else "", load=load,
        architecture_training=architecture_training, results=results, citation=citation,
    )  # fmt: skip


def push_adapter_to_hub(
    self: PreTrainedModel, repo_id: str, adapter_name: str, datasets_tag: str | None = None,
    local_path: Any = None, commit_message: str | None = None, private: bool | None = None,
    token: bool | str | None = None, overwrite_adapter_card: bool = False, create_pr: bool = False,
    revision: str | None = None, commit_description: str | None = None,
    adapter_card_kwargs: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Upload an adapter with its card; the address of the commit. adapter_card_kwargs: see `adapter_card`."""
    card = {"datasets_tag": datasets_tag, **(adapter_card_kwargs or {})}
    return _push(
        self, repo_id, local_path, lambda folder: save_adapter(self, folder, adapter_name),
        lambda whole: adapter_card(self, adapter_name, whole, **card), overwrite_adapter_card,
        private, token,
        {
            "commit_message": commit_message or f"Upload adapter {adapter_name}", "create_pr": create_pr,
            "revision": revision, "commit_description": commit_description,
        },
    )  # fmt: skip


def push_adapter_setup_to_hub(
    self: PreTrainedModel, repo_id: str, adapter_setup: Any, head_setup: Any = None,
    datasets_tag: str | None = None, local_path: Any = None, commit_message: str | None = None,
    private: bool | None = None, token: bool | str | None = None, overwrite_adapter_card: bool = False,
    create_pr: bool = False, revision: str | None = None, commit_description: str | None = None,
    adapter_card_kwargs: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Upload a composition with its adapters, fusions and heads; the address of the commit."""
    card = {"datasets_tag": datasets_tag, "load": "load_adapter_setup", **(adapter_card_kwargs or {})}
    return _push(
        self, repo_id, local_path, lambda folder: save_adapter_setup(self, folder, adapter_setup, head_setup),
        lambda whole: adapter_card(self, "", whole, **card), overwrite_adapter_card, private, token,
        {
            "commit_message": commit_message or "Upload adapter setup", "create_pr": create_pr,
            "revision": revision, "commit_description": commit_description,
        },
    )  # fmt: skip


def _push(
    model: Any, repo_id: str, local_path: Any, save: Any, card: Any, overwrite: bool, private: bool | None,
    token: bool | str | None, commit: dict[str, Any],
) -> str:  # fmt: skip
    what = f"uploading to {repo_id!r}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(local_path or temporary)
        save(folder)
        made = _ask(what, token, lambda api: api.create_repo(repo_id, private=private, exist_ok=True))
        if overwrite or not (folder / "README.md").exists():
            atomic_write(folder / "README.md", card(made.repo_id).encode())
        upload = {"repo_id": made.repo_id, "folder_path": folder, **commit}
        return str(_ask(what, token, lambda api: api.upload_folder(**upload)))


def _ask(what: str, token: bool | str | None, call: Callable[[Any], Any]) -> Any:
    """What the hub answers; MissingFileError for what it does not have, CheckpointError where it says no or
    cannot be reached.
    """
    hub = require("huggingface_hub", "hub", what)
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{what} needs the hub, which may not be asked (HF_HUB_OFFLINE=1)")
    if not _reachable(constants.ENDPOINT):
        raise CheckpointError(f"{what} needs the hub, but {constants.ENDPOINT} cannot be reached; try again")
    try:
        return call(hub.HfApi(token=token))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise MissingFileError(
            f"{what}: the hub has no such repository or revision, or it is not open to you "
            f"({_first_line(error)}); give token=... if it is private"
        ) from error
    except Exception as error:  # the errors of the network layer differ between versions of the hub library
        raise CheckpointError(f"{what} failed: {_first_line(error)}") from error


class AdapterInfo(NamedTuple):
    """One adapter on the hub; model_name: what it was trained for, where the hub tells."""

    source: str
    adapter_id: str
    model_name: str | None
    username: str | None
    sha1_checksum: str | None


def list_adapters(model_name: str | None = None) -> list[AdapterInfo]:
    """The adapters on the hub, of one model or of all; CheckpointError where the hub cannot be asked."""
    found = _ask(
        "listing adapters", None,
        lambda api: [_info(item) for item in api.list_models(filter=TAG, full=True, fetch_config=True)],
    )  # fmt: skip
    return [info for info in found if model_name is None or info.model_name == model_name]


def get_adapter_info(adapter_id: str) -> AdapterInfo:
    """What the hub knows about one adapter; MissingFileError where it has none of that name."""
    return _ask(f"asking for {adapter_id!r}", None, lambda api: _info(api.model_info(adapter_id)))


def _info(item: Any) -> AdapterInfo:
    config = getattr(item, "config", None) or {}
    told = config.get("adapter_transformers") or config.get("adapters") or {}
    author = getattr(item, "author", None) or (item.id.split("/")[0] if "/" in item.id else None)
    return AdapterInfo("hf", item.id, told.get("model_name"), author, getattr(item, "sha", None))
