"""T5's sentinel tokens `<extra_id_0>`, `<extra_id_1>`, ...: places that the decoder fills."""

from phyla.errors import ArgumentError

from .tokens import AddedToken


def sentinel(name: str) -> AddedToken:
    """A sentinel, which takes the spaces around it."""
    return AddedToken(str(name), single_word=False, lstrip=True, rstrip=True, special=True, normalized=False)


def with_sentinels(settings: dict, owner: str) -> list[str]:
    """Complete `additional_special_tokens` in the settings by `extra_ids` sentinels; returns the names of
    these.
    """
    count = settings.get("extra_ids", 100)
    given = settings.get("additional_special_tokens")
    names = [f"<extra_id_{i}>" for i in range(count)]
    if given is None:
        settings["additional_special_tokens"] = names
        return names
    found = [str(token) for token in given if "<extra_id_" in str(token)]
    if not found:
        settings["additional_special_tokens"] = [*given, *names]
        return names
    if count > 0 and count != len(found):
        raise ArgumentError(
            f"{owner}: extra_ids ({count}) must be the number of <extra_id_...> tokens in"
            f" additional_special_tokens ({len(found)})"
        )
    return found
