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
LEFT = ("h.", "p.")
DEPARTING = ("deberta/prompt_tuning", "deberta-v2/prompt_tuning")  # tests/test_adapters_goldens.py says why
# Every case of PEFT's methods of these, also those that do not hold: tests/test_adapters_peft.py says which.
PEFT = ("bart", "bert", "gpt2", "llama", "mixtral", "t5", "vit", "whisper")
# Cases with heads, in packs of their own.
HEADS = {
    "albert": ("masked_lm",), "bart": ("classification", "seq2seq_lm"), "beit": ("image_classification",),
    "bert": ("causal_lm", "classification_id2label", "dependency_parsing", "head_alone", "masked_lm",
             "multilabel", "multiple_choice", "parallel_two_heads", "qa", "stack_head_setup", "tagging"),
    "bert-generation": ("masked_lm",),
    "gpt2": ("causal_lm", "classification"), "roberta": ("dependency_parsing",),
    "t5": ("classification", "qa", "seq2seq_lm"), "vit": ("image_classification", "parallel_two_heads"),
    "whisper": ("seq2seq_lm",), "xmod": ("causal_lm", "masked_lm"),
}  # fmt: skip


def main(folder: str, *types: str) -> None:
    """Write one pack for each model_type."""
    for family in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
        if types and family.name not in types:
            continue
        pack_peft(family)
        kept = []
        for meta in sorted(family.glob("*/meta.json")):
            name = meta.parent.name
            if f"{family.name}/{name}" in DEPARTING:
                kept.append(meta.parent)
                continue
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
        heads = [family / f"h.{name}" for name in HEADS.get(family.name, ())]
        for stem, cases in ((family.name, kept), (f"{family.name}-heads", heads)):
            if cases:
                path = TARGET / f"{stem}.tar.xz"
                write_pack(cases, path)
                print(f"{stem}: {len(cases)} cases, {path.stat().st_size} bytes", flush=True)


def pack_peft(family: Path) -> None:
    """Write the packs of PEFT's cases of one model_type, and of what record_peft_parameters.py recorded."""
    cases = sorted(family.glob("p.*")) if family.name in PEFT else []
    for stem, found in (
        (family.name, cases),
        (f"{family.name}-parameters", sorted(family.glob("parameters.*"))),
    ):
        if found:
            path = TARGET.parent / "adapters_peft" / f"{stem}.tar.xz"
            path.parent.mkdir(exist_ok=True)
            write_pack(found, path)
            print(f"{stem}, PEFT: {len(found)} cases, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
