"""Pack the recorded adapter cases that hold: pack_adapter_goldens.py FOLDER [MODEL_TYPE] ...

For some architectures every method, variant and composition, for the others a few methods; see WHOLE and FEW.
"""

import sys
from pathlib import Path

import phyla
from phyla.testing.adapters import check, read_case, write_pack

TARGET = Path(__file__).parent.parent / "tests" / "goldens" / "adapters"
WHOLE = ("bert", "llama", "t5")
FEW = (
    "seq_bn",
    "par_bn",
    "double_seq_bn",
    "compacter",
    "lora_all",
    "ia3",
    "prefix_tuning",
    "loreft",
    "unipelt",
)
LEFT = ("h.",)


def main(folder: str, *types: str) -> None:
    """Write one pack for each model_type."""
    for family in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
        if types and family.name not in types:
            continue
        kept = []
        for meta in sorted(family.glob("*/meta.json")):
            name = meta.parent.name
            if name.startswith(LEFT) or (family.name not in WHOLE and name not in FEW):
                continue
            try:
                faults = check(read_case(meta.parent), phyla)
            except Exception as error:
                faults = [str(error)]
            if faults:
                print(f"left out {family.name}/{name}: {faults[0][:120]}", flush=True)
            else:
                kept.append(meta.parent)
        if kept:
            path = TARGET / f"{family.name}.tar.xz"
            write_pack(kept, path)
            print(f"{family.name}: {len(kept)} cases, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
