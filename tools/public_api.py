"""The public names of phyla, one a line: `python tools/public_api.py` writes them to tests/public_api.txt."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import phyla

SNAPSHOT = Path(__file__).resolve().parent.parent / "tests" / "public_api.txt"
# What `dir` shows beside public names: modules that were imported, and private parts.
NAMES = [n for n in dir(phyla) if not n.startswith("_") and n in phyla._all_names()]


def lines() -> Iterator[str]:
    """Each public name with its kind; functions, and methods written in the class, with their arguments."""
    for name in NAMES:
        value = getattr(phyla, name)
        if inspect.isclass(value):
            yield f"class {name}"
            for method, member in sorted(vars(value).items()):
                function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
                if inspect.isfunction(function) and (not method.startswith("_") or method == "__call__"):
                    yield f"    {method}({arguments(function)})"
        elif callable(value):
            yield f"function {name}({arguments(value)})"
        else:
            yield f"value {name}"


def arguments(function: object) -> str:
    """Names of the arguments; a star marks where names become necessary, = a default."""
    parts, starred = [], False
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.VAR_KEYWORD:
            parts.append("**" + parameter.name)
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
            parts.append("*" + parameter.name)
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            parts.append("*")
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    return ", ".join(parts)


def main() -> None:
    SNAPSHOT.write_text("\n".join(lines()) + "\n")
    print(f"{SNAPSHOT.name}: {len(NAMES)} public names")


if __name__ == "__main__":
    main()
