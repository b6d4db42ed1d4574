"""Tokenizers from and to folders: tokenizer_config.json, vocabulary files, added tokens, chat templates."""

import copy
import shutil
from pathlib import Path

from phyla.errors import MissingFileError, TokenizerFileError

from .jsonfile import read_json, read_text, write_json, write_text
from .tokens import ALL_ROLES, LIST_ROLE, AddedToken, SpecialTokens, as_plain, from_plain, token_state

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates"
_NOT_SAVED = (
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "device_map",
    "gguf_file",
    "from_slow",
)


def locate(
    source,
    cache_dir=None,
    local_files_only=False,
    token=None,
    revision=None,
    subfolder="",
    force_download=False,
) -> Path:
    """The local folder or file that `source` names: a path, a hub id or an installed weight package."""
    path = Path(source).expanduser()
    if not path.exists():
        from phyla.checkpoints import resolve

        path = Path(
            resolve(
                source,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                subfolder=subfolder,
            )
        )
        return path
    return path / subfolder if subfolder and path.is_dir() else path


def read_config(folder: Path) -> dict:
    """The settings in tokenizer_config.json, checked; empty where there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    config = read_json(path)
    for role in ALL_ROLES:
        value = config.get(role)
        good = value is None or (isinstance(value, (str, dict)) and role != LIST_ROLE)
        if role == LIST_ROLE and isinstance(value, list):
            good = all(isinstance(item, (str, dict)) for item in value)
        if not good:
            wants = (
                "a list of strings or token objects" if role == LIST_ROLE else "a string or a token object"
            )
            raise TokenizerFileError(f"{path}: {role} must be {wants}, but is {value!r}")
    limit = config.get("model_max_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 0):
        raise TokenizerFileError(f"{path}: model_max_length must be a number of tokens, but is {limit!r}")
    return config


def read_templates(folder: Path):
    """The chat template that stands in files of its own, or None."""
    templates = {}
    if (folder / TEMPLATE_FILE).is_file():
        templates["default"] = read_text(folder / TEMPLATE_FILE)
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.stem] = read_text(path)
    if not templates and (folder / TEMPLATE_JSON).is_file():
        return read_json(folder / TEMPLATE_JSON).get("chat_template")
    return templates["default"] if list(templates) == ["default"] else templates or None


def _added_token(state, path: Path, where: str) -> AddedToken:
    if isinstance(state, AddedToken):
        return state
    if not isinstance(state, dict) or not isinstance(state.get("content"), str):
        raise TokenizerFileError(f"{path}: {where} must be a token object with `content`, but is {state!r}")
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{key: value for key, value in state.items() if key in known})


def read_added_tokens(
    folder: Path, settings: dict, given: dict, with_json: bool, names_once: bool = True
) -> dict[int, AddedToken]:
    """Added tokens by id, from the settings or, in folders of older versions, from the files beside them.

    Special tokens in `settings` are replaced by the AddedToken of the same text.
    """
    path = folder / CONFIG_FILE
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        table = settings["added_tokens_decoder"] or {}
        for index, state in table.items():
            if not str(index).isdigit():
                raise TokenizerFileError(
                    f"{path}: added_tokens_decoder has the id {index!r}; ids are whole numbers"
                )
            added[int(index)] = _added_token(state, path, f"added_tokens_decoder[{index}]")
        names: dict[str, int] = {}
        for index, token in added.items():
            if names_once and names.setdefault(token.content, index) != index:
                raise TokenizerFileError(
                    f"{path}: added_tokens_decoder gives {token.content!r} two ids,"
                    f" {names[token.content]} and {index}"
                )
    else:
        if (folder / SPECIAL_FILE).is_file():
            _read_special_map(folder / SPECIAL_FILE, settings, given)
        if (folder / ADDED_FILE).is_file():
            special: set[str] = set()
            for role in ALL_ROLES:
                value = settings.get(role)
                special.update(
                    map(str, value) if isinstance(value, list) else [] if value is None else [str(value)]
                )
            for text, index in read_json(folder / ADDED_FILE).items():
                if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                    raise TokenizerFileError(
                        f"{folder / ADDED_FILE}: {text!r} must have an id, but has {index!r}"
                    )
                if index in added:
                    other = added[index].content
                    raise TokenizerFileError(
                        f"{folder / ADDED_FILE}: {other!r} and {text!r} share the id {index}"
                    )
                added[index] = AddedToken(text, normalized=text not in special, special=text in special)
        if with_json and (folder / TOKENIZER_FILE).is_file():
            for state in read_json(folder / TOKENIZER_FILE).get("added_tokens") or []:
                added[state["id"]] = _added_token(state, folder / TOKENIZER_FILE, "/added_tokens")
    by_text = {token.content: token for token in added.values()}
    for role in ALL_ROLES[:-1]:
        value = settings.get(role)
        if value is not None:
            text = value.get("content") if isinstance(value, dict) else value
            settings[role] = by_text.get(str(text), value)
    return added


def _read_special_map(path: Path, settings: dict, given: dict) -> None:
    for role, value in read_json(path).items():
        if given.get(role):
            continue
        if isinstance(value, dict):
            value = _added_token({**value, "special": True}, path, role)
        elif role == LIST_ROLE and isinstance(value, list):
            tokens = list(settings.pop(LIST_ROLE, None) or [])
            for item in value:
                token = (
                    _added_token({**item, "special": True}, path, role) if isinstance(item, dict) else item
                )
                if token not in tokens:
                    tokens.append(token)
            value = tokens
        elif value is not None and not isinstance(value, str):
            raise TokenizerFileError(f"{path}: {role} must be a string or a token object, but is {value!r}")
        settings[role] = value


class TokenizerFiles(SpecialTokens):
    """The part of a tokenizer that reads and writes folders."""

    is_fast = False
    vocab_files_names: dict[str, str] = {}
    names_once = True  # an added token has one id
    slow_tokenizer_class = None

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the vocabulary files of the Python class can be written."""
        return True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *init_inputs,
        cache_dir=None,
        force_download: bool = False,
        local_files_only: bool = False,
        token=None,
        revision: str | None = None,
        subfolder: str = "",
        trust_remote_code: bool = False,
        **settings,
    ):
        """A tokenizer from a folder, a tokenizer.json, a vocabulary file, a GGUF file, a hub id or a weight
        package.

        Further settings override those of the folder. Raises MissingFileError or TokenizerFileError naming
        the file.
        """
        found = locate(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            subfolder=subfolder,
            force_download=force_download,
        )
        return cls._from_path(found, str(pretrained_model_name_or_path), init_inputs, settings)

    @classmethod
    def _from_path(cls, found: Path, name: str, init_inputs: tuple, given: dict):
        if (found.is_file() and found.suffix == ".gguf") or given.get("gguf_file"):
            return cls._from_gguf(found / given.pop("gguf_file") if found.is_dir() else found, name, given)
        folder = found if found.is_dir() else found.parent
        settings = read_config(folder)
        for key in (
            "tokenizer_class",
            "tokenizer_file",
            "auto_map",
            "added_tokens_file",
            "special_tokens_map_file",
        ):
            settings.pop(key, None)
        saved_inputs = settings.pop("init_inputs", ())
        templates = read_templates(folder)
        if templates is not None:
            settings["chat_template"] = templates
        settings = {key: from_plain(value) for key, value in settings.items()}
        settings.update(given)
        files = cls._files_in(folder, found if found.is_file() else None)
        with_json = cls.is_fast or "tokenizer_file" in cls.vocab_files_names
        settings["added_tokens_decoder"] = read_added_tokens(
            folder, settings, given, with_json, cls.names_once
        )
        for role in ALL_ROLES:
            value = settings.get(role)
            if isinstance(value, dict):
                settings[role] = _added_token({**value, "special": True}, folder / CONFIG_FILE, role)
            elif isinstance(value, list):
                settings[role] = [
                    _added_token({**item, "special": True}, folder / CONFIG_FILE, role)
                    if isinstance(item, dict)
                    else item
                    for item in value
                ]
        for key, path in files.items():
            settings.setdefault(key, path)
        settings["name_or_path"] = name
        return cls(*(init_inputs or saved_inputs), **settings)

    @classmethod
    def _files_in(cls, folder: Path, single: Path | None) -> dict[str, str]:
        """The vocabulary files of this class that the folder has, by argument name."""
        names = {**cls.vocab_files_names, **({"tokenizer_file": TOKENIZER_FILE} if cls.is_fast else {})}
        files = {key: str(folder / name) for key, name in names.items() if name and (folder / name).is_file()}
        if single is not None and single.name not in names.values():
            key = (
                "tokenizer_file"
                if cls.is_fast and single.suffix == ".json"
                else next(iter(cls.vocab_files_names))
            )
            files = {key: str(single)}
        if names and not files:
            wanted = ", ".join(name for name in names.values() if name)
            raise MissingFileError(
                f"{cls.__name__} needs one of {wanted} in {folder}, but finds none of them"
            )
        return files

    @classmethod
    def _from_gguf(cls, path: Path, name: str, given: dict):
        from .gguf import load_gguf

        return load_gguf(path, name, given, cls)

    # ------------------------------------------------------------------ saving

    def save_pretrained(
        self, save_directory, legacy_format: bool | None = None, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the tokenizer's files to a folder (made where missing); returns their paths.

        `legacy_format` True writes only vocabulary files, False only tokenizer.json; None writes both where
        both exist.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise FileExistsError(f"{folder} must be a folder, but is a file")
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = [
            write_json(folder / (prefix + CONFIG_FILE), self._saved_settings()),
            write_json(folder / (prefix + SPECIAL_FILE), as_plain(self.special_tokens_map_extended)),
        ]
        return (*paths, *self._save_files(folder, prefix, legacy_format))

    def _saved_settings(self) -> dict:
        settings = copy.deepcopy(self.init_kwargs)
        for key in {*settings, "model_max_length", "clean_up_tokenization_spaces"}:
            if hasattr(self, key):
                settings[key] = getattr(self, key)
        settings.update(self.special_tokens_map)
        settings["extra_special_tokens"] = self.extra_special_tokens
        template = settings.pop("chat_template", None) or self.chat_template
        if template:
            named = isinstance(template, dict)
            settings["chat_template"] = (
                [{"name": name, "template": text} for name, text in template.items()] if named else template
            )
        if self.init_inputs:
            settings["init_inputs"] = list(self.init_inputs)
        for key in (*_NOT_SAVED, *self.vocab_files_names):
            settings.pop(key, None)
        settings = as_plain(settings, with_special=True, typed=True)
        settings["added_tokens_decoder"] = {
            str(i): token_state(t) for i, t in self.added_tokens_decoder.items()
        }
        name = type(self).__name__
        if name.endswith("Fast") and self.slow_tokenizer_class is not None:
            name = name.removesuffix("Fast")
        settings["tokenizer_class"] = name
        if self._processor_class is not None:
            settings["processor_class"] = self._processor_class
        return settings

    def _save_added(self, folder: Path, prefix: str) -> list[str]:
        """added_tokens.json with the tokens beyond the vocabulary, where there are any."""
        added = {text: index for text, index in self.added_tokens_encoder.items() if index >= self.vocab_size}
        return [write_json(folder / f"{prefix}{ADDED_FILE}", added)] if added else []

    def _save_files(self, folder: Path, prefix: str, legacy_format: bool | None) -> list[str]:
        if legacy_format is False:
            raise TokenizerFileError(
                f"{type(self).__name__} has no tokenizer.json to save: legacy_format must not be False"
            )
        return [
            *self.save_vocabulary(str(folder), filename_prefix=prefix[:-1] or None),
            *self._save_added(folder, prefix),
        ]

    def _copy_vocabulary(self, folder: Path, prefix: str, keys) -> tuple[str, ...]:
        """Copies of vocabulary files as they were read."""
        paths = []
        for key in keys:
            source, target = getattr(self, key, None), folder / (prefix + self.vocab_files_names[key])
            if source is None or not Path(source).is_file():
                raise MissingFileError(f"{key} ({source}) is gone, so {target.name} cannot be written")
            if Path(source).resolve() != target.resolve():
                shutil.copyfile(source, target)
            paths.append(str(target))
        return tuple(paths)


def write_lines(path: Path, lines) -> str:
    """Write one entry a line."""
    return write_text(path, "".join(f"{line}\n" for line in lines))
