"""Tables of the documentation that come from the code: `python tools/tables.py` rewrites them.

docs/families.md lists what is there, docs/models.md what of the public rows (tools/rows.json) works.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import phyla
from phyla.adapters.composition import BLOCKS, Meaning
from phyla.registry import Row, families
from phyla.testing.goldens import read_names

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "goldens"

FAMILIES = """# Families

Made by `make docs` from phyla/families/_index.py. `phyla models` shows the same on the command line.

| family | modality | class | task |
|---|---|---|---|
"""

MODELS = """# Models, row by row

Made by `make docs` from the registry, the packed goldens and the table of public rows (tools/rows.json).

- classes: public model classes that phyla has, of those that the row has.
- goldens: classes held against recorded outputs of the reference: values, loss, greedy tokens, saved files.
- options: recorded cases of other settings.
- preprocessors: public tokenizer, image, audio and joint processor classes that phyla has, of the row's.
- adapters attach to the sites of every row that works: docs/adapters.md. TensorFlow and JAX: not yet.

{summary}

| row | model_type | classes | goldens | options | preprocessors | missing |
|---|---|---|---|---|---|---|
"""


ADAPTERS = """# Adapters: method by family, method by block

Made by `make docs` from tools/adapter_matrix.json, which tests/test_adapters.py runs through, and from the
rules that activation checks. Each `yes` stands for: it attaches; where it should be neutral at the start,
outputs stay; only its parameters get gradients, and all do; saved and loaded it computes the same; one batch
with and without it equals single runs; merged equals unmerged, where it can be merged; inactive it leaves
nothing behind. The families are a sample of all kinds; the methods see sites, not families.

{table}
{notes}
{composed}
## Families that a method has no meaning for

tests/test_adapter_families.py tries six methods on every family; these are the only errors, with reasons.
PEFT's LoRA, IA3, LoHa and LoKr stand at convolutions as well.

{absent}
## PEFT's types

Made from tools/peft_table.json, which tests/test_adapters_peft.py runs through on four families.

{peft}"""


def families_page() -> str:
    """docs/families.md."""
    rows = [
        f"| {row.model_type} | {row.modality} | `{name}` | {task} |\n"
        for row in families()
        for name, task in row.classes.items()
    ]
    return FAMILIES + "".join(rows)


def option_cases(model_type: str) -> int:
    """Recorded cases of other settings than the goldens'."""
    path = GOLDENS / "options" / f"{model_type}.json.xz"
    return len(json.loads(lzma.decompress(path.read_bytes()))["goldens"]) if path.exists() else 0


def held(model_type: str) -> set[str]:
    """Classes of a family that have a packed golden."""
    path = GOLDENS / f"{model_type}.tar.xz"
    return set(read_names(path)) if path.exists() else set()


def lines() -> Iterator[tuple[str, bool, bool]]:
    """Each row of docs/models.md, whether it has a model class, and whether nothing is missing."""
    known: dict[str, Row] = {row.model_type: row for row in families()}
    names = set(phyla._all_names())
    for public in json.loads((ROOT / "tools" / "rows.json").read_text()):
        types = [t for t in public["types"] if t in known]
        classes = public["classes"]
        there = [c for c in classes if c in names]
        goldens = set().union(*(held(t) for t in types)) & set(there)
        tools = [*public["tokenizers"], *public["processors"]]
        tools_there = [t for t in tools if t in names]
        missing = [n for n in (*classes, *tools) if n not in names]
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        shown = ", ".join(f"`{n}`" for n in missing[:4]) + more
        yield (
            f"| {public['row']} | {', '.join(types or public['types'])} | {len(there)} / {len(classes)} "
            f"| {len(goldens) or ''} | {sum(map(option_cases, types)) or ''} "
            f"| {len(tools_there)} / {len(tools)} | {shown} |\n",
            bool(there),
            not missing,
        )


def models_page() -> str:
    """docs/models.md."""
    found = list(lines())
    begun, whole = sum(there for _, there, _ in found), sum(done for _, _, done in found)
    summary = f"{len(found)} public rows: {begun} have model classes, {whole} are whole with preprocessors."
    return MODELS.format(summary=summary) + "".join(line for line, _, _ in found)


def adapters_page() -> str:
    """docs/adapters_matrix.md."""
    matrix = json.loads((ROOT / "tools" / "adapter_matrix.json").read_text())
    notes: dict[str, int] = {}

    def cell(method: str, family: str) -> str:
        short, marks = method.split("|")[0].split("[")[0], ["yes"]
        for table in ("without", "apart", "uneven"):
            why = matrix[table].get(short, {}).get(family)
            if why is not None:
                number = notes.setdefault(why, len(notes) + 1)
                marks = ["–" if table == "without" else marks[0], *marks[1:], f"({number})"]
        return " ".join(marks)

    methods = matrix["methods"]
    head = " | ".join(f"`{m.split('[')[0] if '|' not in m else 'union'}`" for m in methods)
    rows = [f"| {f} | " + " | ".join(cell(m, f) for m in methods) + " |\n" for f in matrix["families"]]
    table = f"| family | {head} |\n|{'---|' * (len(methods) + 1)}\n" + "".join(rows)
    blocks = list(BLOCKS)
    kinds = [
        f"| {kind} | " + " | ".join("yes" if BLOCKS[b] in allowed else "error" for b in blocks) + " |\n"
        for kind, allowed in sorted(Meaning.table.items())
    ]
    composed = f"| method | {' | '.join(blocks)} |\n|{'---|' * (len(blocks) + 1)}\n" + "".join(kinds)
    listed = "".join(f"{number}. {why}\n" for why, number in notes.items())
    absent = "| method | families | why |\n|---|---|---|\n" + "".join(
        f"| {method} | {', '.join(named)} | {why} |\n"
        for method, reasons in matrix["absent"].items()
        for why, named in reasons.items()
    )
    return ADAPTERS.format(table=table, notes=listed, composed=composed, absent=absent, peft=peft_table())


def peft_table() -> str:
    """PEFT's types: which are there, and what can be done with them."""
    rows = json.loads((ROOT / "tools" / "peft_table.json").read_text())
    public = json.loads((ROOT / "tests" / "data" / "adapter_configs.json").read_text())["peft_types"]
    heads = ["read", "written", "trained", "merged", "stands at"]
    lines = [f"| {kind} | " + " | ".join(row[h] for h in heads) + " |\n" for kind, row in rows.items()]
    rest = ", ".join(kind for kind in public if kind not in rows)
    return (
        f"| type | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}\n{''.join(lines)}\nAn error: {rest}.\n"
    )


PAGES = {"adapters_matrix.md": adapters_page, "families.md": families_page, "models.md": models_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page())
        print(f"{name}: {len(page().splitlines())} lines")
