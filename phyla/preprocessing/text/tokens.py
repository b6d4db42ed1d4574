"""Special and added tokens: the named roles (`bos_token`, `pad_token`, ...) and the tokens added to a
vocabulary.
"""

import copy
from collections.abc import Iterable

from tokenizers import AddedToken

from phyla.errors import TokenizerInputError, UnknownArgumentError, nearest

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LIST_ROLE = "additional_special_tokens"
ALL_ROLES = (*ROLES, LIST_ROLE)

__all__ = ["ALL_ROLES", "LIST_ROLE", "ROLES", "AddedToken", "SpecialTokens", "TokenIdError", "token_state"]


class TokenIdError(TokenizerInputError, IndexError):
    """An id outside the vocabulary."""


def token_state(token: AddedToken, special: bool = True) -> dict:
    """The public JSON form of an added token, with or without its `special` flag."""
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word") + (("special",) if special else ())
    return {key: getattr(token, key) for key in keys}


def special(text: str) -> AddedToken:
    """A special token that matches exactly, without normalisation."""
    return AddedToken(text, lstrip=False, rstrip=False, normalized=False, special=True)


class SpecialTokens:
    """The named special tokens of a tokenizer: one text (or AddedToken) a role, and a list of further ones.

    `tokenizer.eos_token` is text or None, `tokenizer.eos_token_id` its id; both can be set.
    """

    SPECIAL_TOKENS_ATTRIBUTES = list(ALL_ROLES)

    def _init_special_tokens(self, values: dict) -> None:
        roles = [*ALL_ROLES, *(values.get("extra_special_tokens") or {})]
        object.__setattr__(self, "SPECIAL_TOKENS_ATTRIBUTES", roles)
        object.__setattr__(self, "_special_tokens_map", dict.fromkeys(roles))
        self._special_tokens_map[LIST_ROLE] = []
        for role, value in {**values, **(values.get("extra_special_tokens") or {})}.items():
            if value is not None and role in roles:
                setattr(self, role, value)

    @staticmethod
    def _checked(role: str, value):
        if role == LIST_ROLE:
            if not isinstance(value, (list, tuple)) or not all(
                isinstance(t, (str, AddedToken)) for t in value
            ):
                raise TokenizerInputError(
                    f"{role} must be a list of strings or AddedTokens, but is {value!r}"
                )
            return list(value)
        if value is not None and not isinstance(value, (str, AddedToken)):
            found = type(value).__name__
            raise TokenizerInputError(f"{role} must be a string or an AddedToken, but is {value!r} ({found})")
        return value

    def __setattr__(self, name: str, value) -> None:
        roles = self.__dict__.get("_special_tokens_map")
        if roles is not None:
            if name in roles:
                roles[name] = self._checked(name, value)
                return
            role = name[:-4] if name.endswith(("_token_ids", "_tokens_ids")) else name.removesuffix("_id")
            if role != name and role in roles:
                tokens = None if value is None else self.convert_ids_to_tokens(value)
                roles[role] = [] if tokens is None and role == LIST_ROLE else tokens
                return
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str):
        roles = self.__dict__.get("_special_tokens_map")
        if roles is not None:
            if name in roles:
                value = roles[name]
                if name == LIST_ROLE:
                    return [str(token) for token in value]
                return None if value is None else str(value)
            role = name[:-4] if name.endswith("_tokens_ids") else name.removesuffix("_id")
            if role != name and role in roles:
                value = getattr(self, role)
                return None if value is None else self.convert_tokens_to_ids(value)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def pad_token_type_id(self) -> int:
        """The token type of padding."""
        return self.__dict__.get("_pad_token_type_id", 0)

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Role to text, of the roles that are set."""
        return {role: getattr(self, role) for role, value in self._special_tokens_map.items() if value}

    @property
    def special_tokens_map_extended(self) -> dict:
        """Role to text or AddedToken, as given, of the roles that are set."""
        return {role: value for role, value in self._special_tokens_map.items() if value}

    @property
    def all_special_tokens_extended(self) -> list[str | AddedToken]:
        """All special tokens in the order of the roles, as text or AddedToken, once (but for lists)."""
        found: list[str | AddedToken] = []
        seen: set[str] = set()
        for value in self.special_tokens_map_extended.values():
            tokens = value if isinstance(value, list) else [value]
            new = [token for token in tokens if str(token) not in seen]
            found += new
            seen.update(map(str, new))
        return found

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of all special tokens, once each, in the order of the roles."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        """Add one token or a list of them to the vocabulary; returns how many were new."""
        if not new_tokens:
            return 0
        tokens = list(new_tokens) if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        for token in tokens:
            if not isinstance(token, (str, AddedToken)):
                found = type(token).__name__
                raise TokenizerInputError(
                    f"a new token must be a string or an AddedToken, but is {token!r} ({found})"
                )
        return self._add_tokens(tokens, special_tokens=special_tokens)

    def add_special_tokens(
        self, special_tokens_dict: dict, replace_additional_special_tokens: bool = True
    ) -> int:
        """Set roles to tokens and add those that the vocabulary lacks; returns how many were new."""
        if not special_tokens_dict:
            return 0
        added = []
        for role, value in special_tokens_dict.items():
            if role not in self.SPECIAL_TOKENS_ATTRIBUTES:
                hint = nearest(role, self.SPECIAL_TOKENS_ATTRIBUTES)
                raise UnknownArgumentError(f"{role!r} is not the name of a special token.{hint}")
            value = self._checked(role, value)
            if role == LIST_ROLE:
                known = [] if replace_additional_special_tokens else self.additional_special_tokens
                tokens = [special(t) if isinstance(t, str) else t for t in value]
                tokens = [t for t in tokens if str(t) not in known]
                if replace_additional_special_tokens and tokens:
                    self._special_tokens_map[role] = list(tokens)
                else:
                    self._special_tokens_map[role].extend(tokens)
                added += tokens
            else:
                token = special(value) if isinstance(value, str) else value
                setattr(self, role, token)
                if token not in added:
                    added.append(token)
        return self.add_tokens(added, special_tokens=True)

    def sanitize_special_tokens(self) -> int:
        """Add to the vocabulary every special token that it lacks; returns how many were new."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)


def as_plain(value, with_special: bool = False, typed: bool = False):
    """Replace AddedTokens in nested settings by their public JSON form (`typed` marks them as such)."""
    if isinstance(value, AddedToken):
        state = token_state(value, special=with_special)
        return {"__type": "AddedToken", **state} if typed else state
    if isinstance(value, dict):
        return {key: as_plain(item, with_special, typed) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item, with_special, typed) for item in value]
    return copy.copy(value)


def from_plain(value):
    """The AddedToken that a JSON form stands for; other values as they are."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return AddedToken(**{key: item for key, item in value.items() if key != "__type"})
    return value


def ids_of(tokens: Iterable[str], table: dict[str, int]) -> list[int]:
    """The ids of tokens that the table has."""
    return [table[token] for token in tokens if token in table]


SpecialTokensMixin = SpecialTokens  # the public name
