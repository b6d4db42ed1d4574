"""Tables of the documentation that come from the code: `python tools/tables.py` rewrites docs/families.md."""

from pathlib import Path

from phyla.registry import families

TARGET = Path(__file__).resolve().parent.parent / "docs" / "families.md"
HEAD = """# Families

Made by `make docs` from phyla/families/_index.py. `phyla models` shows the same on the command line.

| family | modality | class | task |
|---|---|---|---|
"""


def text() -> str:
    """The whole page."""
    rows = [
        f"| {row.model_type} | {row.modality} | `{name}` | {task} |\n"
        for row in families()
        for name, task in row.classes.items()
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    TARGET.write_text(text())
    print(f"{TARGET.name}: {len(families())} families")
