"""The house rules that a machine can check: floors, names, budgets, safety, what an import costs."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "phyla"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Lowest first; a module may import from its own floor and from those before it.
FLOORS = [
    ["errors", "lazy"],
    ["blocks"],
    ["outputs"],
    ["heads"],
    ["config", "registry", "model", "skeletons", "family", "checkpoints", "quantization", "vocabulary"],
    ["families"],
    ["auto", "describe", "mappings"],
    ["preprocessing"],
    ["generation"],
    ["adapters"],
    ["pipelines"],
    ["training"],
    ["fast"],
    ["frameworks"],
    ["serving"],
    ["cli"],
    ["testing"],
]
# The one table of all families is data that the registry reads; it imports none of them.
DATA_OF_THE_REGISTRY = "phyla.families._index"
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

# Tables that map public names of families to something: data, although Python files.
DATA_TABLES = {
    "phyla/__init__.py",  # public names
    "phyla/adapters/dialect.py",  # where public adapter files of a family have what
    "phyla/checkpoints/gguf_config.py",  # GGUF architectures and the configs they stand for
    "phyla/checkpoints/gguf_names.py",  # their tensor names
    "phyla/preprocessing/_names.py",  # public names
    "phyla/preprocessing/audio/auto_table.py",  # model_type -> feature extractor classes
    "phyla/preprocessing/audio/rows.py",  # what sets the public feature extractor classes apart
    "phyla/preprocessing/joint/auto_table.py",  # model_type -> joint processor classes
    "phyla/preprocessing/joint/rows.py",  # what sets the public joint processor classes apart
    "phyla/preprocessing/joint/rows_woven.py",  # likewise
    "phyla/preprocessing/image/auto_table.py",  # model_type -> image processor classes
    "phyla/preprocessing/image/fast_rows.py",  # what sets the fast image processors apart
    "phyla/preprocessing/image/rows_dense.py",  # what sets the public image processor classes apart
    "phyla/preprocessing/image/rows_language.py",  # likewise
    "phyla/preprocessing/image/rows_pictures.py",  # likewise
    "phyla/preprocessing/text/auto_table.py",  # model_type -> tokenizer classes
    "phyla/preprocessing/text/letter_rows.py",  # what sets the public tokenizer classes apart
    "phyla/preprocessing/text/more_rows.py",  # likewise
    "phyla/preprocessing/text/rows.py",  # likewise
    "phyla/preprocessing/text/word_rows.py",  # likewise
    "phyla/preprocessing/text/gguf_tokenizer.py",  # the format calls its tokenizer kinds so
    "phyla/preprocessing/text/pretokenizer_names.py",  # likewise
    "phyla/preprocessing/text/language_codes.py",  # the languages of public checkpoints
}
# Families whose names are also words of the field (a mixer, to clip): they cannot be told apart.
COMMON_WORDS = {
    "opt", "clip", "t5", "vit", "bit", "git", "led", "esm", "dac", "sam", "ctrl", "bert", "mamba",
    "encoder_decoder", "rag",
}  # fmt: skip

PEERS = "transformers adapters peft timm curated_transformers diffusers sentence_transformers llama_cpp"
LONGEST_FILE, LONGEST_FAMILY, LONGEST_ODDBALL, MOST_FIELDS = 600, 120, 400, 12


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def floor(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, at module level) of each import that runs, relative ones made absolute."""
    typing_only = {
        id(n)
        for block in ast.walk(tree(path))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for n in ast.walk(statement)
    }
    inside = {id(n) for f in ast.walk(tree(path)) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = ["phyla", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "phyla":
                for alias in node.names:
                    yield f"phyla.{alias.name}", node.lineno, id(node) not in inside
            else:
                yield module, node.lineno, id(node) not in inside


def test_every_module_has_a_floor() -> None:
    unknown = {floor(path) for path in FILES} - LEVEL.keys() - {"__init__", "__main__"}
    assert not unknown, f"say in FLOORS where these stand: {sorted(unknown)}"


def test_imports_point_downward() -> None:
    wrong = []
    for path in FILES:
        own = LEVEL.get(floor(path))
        if own is None:
            continue
        for module, line, _ in imported(path):
            parts = module.split(".")
            if module == DATA_OF_THE_REGISTRY:
                continue
            if parts[0] == "phyla" and len(parts) > 1 and LEVEL.get(parts[1], -1) > own:
                wrong.append(f"{name(path)}:{line} imports {module}")
    assert not wrong, "these import a higher floor:\n" + "\n".join(wrong)


def test_modules_do_not_import_each_other_in_a_ring() -> None:
    modules = {name(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    needs = {
        module: {m for m, _, top in imported(path) if top and m in modules and m != module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, "ring of imports: " + " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for needed in sorted(needs[module]):
                visit(needed, (*above, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())


def family_names() -> set[str]:
    return {p.stem for p in (PACKAGE / "families").glob("*.py") if not p.stem.startswith("_")}


def code_words(path: Path) -> Iterator[tuple[str, int]]:
    """Identifiers and string constants of a file, documentation left out."""
    notes = {id(n.value) for n in ast.walk(tree(path)) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree(path)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield node.id, line
        elif isinstance(node, ast.Attribute):
            yield node.attr, line
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, line
        elif isinstance(node, ast.arg):
            yield node.arg, line
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in notes:
            if re.fullmatch(r"[\w.-]+", node.value):
                yield node.value, line


def test_no_family_is_named_outside_families() -> None:
    from phyla.generation._names import NAMES

    families = family_names() - COMMON_WORDS
    assert families, "phyla/families holds no family"
    wrong = []
    for path in FILES:
        if floor(path) in ("families", "testing") or name(path) in DATA_TABLES:
            continue
        for word, line in code_words(path):
            if re.search(r"Output(With\w+)?$", word):
                continue  # public output classes keep their public names
            if word in NAMES or word in NAMES.values():
                continue  # so do logits processors
            parts = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower().replace("-", "_").split("_"))
            if word.lower() in families or parts & families:
                wrong.append(f"{name(path)}:{line} says {word!r}")
    assert not wrong, "family names belong into families/ and data tables:\n" + "\n".join(wrong)


def block_classes() -> list[type]:
    from phyla.blocks.spec import Block

    classes = []
    for package in ("phyla.blocks", "phyla.heads", "phyla.families"):
        root = importlib.import_module(package)
        for found in pkgutil.iter_modules(root.__path__, package + "."):
            module = importlib.import_module(found.name)
            classes += [
                c for c in vars(module).values()
                if inspect.isclass(c) and issubclass(c, Block) and c.__module__ == module.__name__
            ]  # fmt: skip
    return classes


def test_a_block_has_at_most_twelve_fields() -> None:
    classes = block_classes()
    assert len(classes) > 10
    counts = {
        f"{c.__module__}.{c.__name__}": len(inspect.signature(c.__init__).parameters) - 1 for c in classes
    }
    wrong = {block: count for block, count in counts.items() if count > MOST_FIELDS}
    assert not wrong, f"more than {MOST_FIELDS} constructor fields: {wrong}"


def test_files_are_short() -> None:
    wrong = []
    for path in FILES:
        lines, budget = len(path.read_text(encoding="utf-8").splitlines()), LONGEST_FILE
        if floor(path) == "families" and not path.stem.startswith("_"):
            classes = [
                n for n in tree(path).body if isinstance(n, ast.ClassDef) and not n.name.endswith("Config")
            ]
            budget = LONGEST_ODDBALL if classes else LONGEST_FAMILY
            lines = code_lines(path)
        if lines > budget:
            wrong.append(f"{name(path)} has {lines} lines, its budget is {budget}")
    assert not wrong, "\n".join(wrong)


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor part of the docstring at the top."""
    first = tree(path).body[0]
    documented = range(first.lineno, (first.end_lineno or 0) + 1) if isinstance(first, ast.Expr) else ()
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return sum(bool(line.strip()) and number not in documented for number, line in lines)


def test_no_code_comes_from_data() -> None:
    wrong = []
    for path in FILES:
        for module, line, _ in imported(path):
            if module.split(".")[0] in ("marshal", "shelve", "dill", "cloudpickle", "joblib"):
                wrong.append(f"{name(path)}:{line} imports {module}")
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            # The exceptions of pickle may be caught; nothing else of it may be used.
            unpickles = re.fullmatch(r"(pickle\.)?(loads?|dumps?|_?Unpickler|_?Pickler)", called)
            if called in ("eval", "exec", "compile", "__import__") or (unpickles and uses_pickle(path)):
                wrong.append(f"{name(path)}:{node.lineno} calls {called}")
            if called == "torch.load":
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if options.get("weights_only") != "True":
                    wrong.append(f"{name(path)}:{node.lineno} calls torch.load without weights_only=True")
    assert not wrong, "\n".join(wrong)


def uses_pickle(path: Path) -> bool:
    return any(module == "pickle" for module, _, _ in imported(path))


def test_no_peer_is_imported() -> None:
    peers = set(PEERS.split())
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for path in [*FILES, *sorted((ROOT / "tests").glob("*.py"))]
        for module, line, _ in imported_anywhere(path)
        if module.split(".")[0] in peers
    ]
    assert not wrong, "\n".join(wrong)


def imported_anywhere(path: Path) -> Iterator[tuple[str, int, bool]]:
    if PACKAGE in path.parents:
        yield from imported(path)
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno, True


def test_what_is_imported_is_declared() -> None:
    declared = {canonical(re.split(r"[<>=\[; ]", d)[0]) for d in PROJECT["dependencies"]}
    wrong = set()
    for path in FILES:
        for module, line, _ in imported(path):
            root = module.split(".")[0]
            if root != "phyla" and root not in sys.stdlib_module_names and canonical(root) not in declared:
                wrong.add(
                    f"{name(path)}:{line} imports {root}: declare it, or reach it through errors.require"
                )
    assert not wrong, "\n".join(sorted(wrong))


def canonical(package: str) -> str:
    return package.strip().lower().replace("-", "_")


def test_no_unfinished_work() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|(?<![\w.])/(work|root|home)/")
    wrong = [
        f"{name(path)}:{number} {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_drawers_for_odds_and_ends() -> None:
    stems = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
    wrong = [name(path) for path in FILES if path.stem in stems]
    wrong += [
        f"{name(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and re.search(r"(Manager|Helper|Utils)$", node.name)
    ]
    assert not wrong, f"name the concept instead: {wrong}"


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running some code."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_is_light() -> None:
    modules = loaded_after("import phyla") - loaded_after("pass")
    heavy = {"torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "rich", "typer"}
    assert not modules & heavy, f"import phyla loads {sorted(modules & heavy)}"
    assert not [m for m in modules if m.startswith("phyla.families")]
    assert len(modules) <= 60, f"import phyla loads {len(modules)} modules"


@pytest.mark.parametrize(
    "code",
    [
        "from phyla import AutoTokenizer",
        "import phyla.cli.app",
        "import phyla.errors, phyla.checkpoints",
    ],
)
def test_these_do_without_torch(code: str) -> None:
    assert "torch" not in loaded_after(code)


def test_version_is_one() -> None:
    import phyla

    assert phyla.__version__ == PROJECT["version"]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)) or not path.read_text().strip(), f"{name(path)} needs a docstring"
