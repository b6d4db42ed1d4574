"""What public libraries make of folders that phyla saved: adapter_exports_peer.py FOLDER

Run by tools/record_adapter_exports.py with the interpreter of `adapters` or `peft`. FOLDER/cases.json lists
the cases; FOLDER/out gets a file of outputs, or a text with the error, for each of them.
"""

import ast
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    """Load and run every case."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    (folder / "out").mkdir(exist_ok=True)
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        target = folder / "out" / str(number)
        try:
            model, how = (of_peft if case["kind"] == "peft" else of_adapters)(folder, number, case)
            inputs = load_file(folder / "inputs" / f"{number}.safetensors")
            with torch.no_grad():
                out = model.eval()(**inputs)
            found = [o[0] for o in out.head_outputs] if hasattr(out, "head_outputs") else [out[0]]
            whole = torch.cat([f.detach().float().flatten() for f in found])
            save_file({"out": whole.contiguous()}, f"{target}.safetensors", metadata={"how": how})
        except Exception as error:
            text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
            text = re.sub(r"0x[0-9a-f]+", "#", text)
            Path(f"{target}.txt").write_text(text[:300])


def of_peft(folder: Path, number: int, case: dict[str, Any]) -> tuple[Any, str]:
    """A model with the adapter of a PEFT folder."""
    import peft

    base = _loaded(getattr(transformers, case["public"]), folder / "bases" / case["base"])
    return peft.PeftModel.from_pretrained(base, folder / "saved" / str(number)), "PeftModel.from_pretrained"


def of_adapters(folder: Path, number: int, case: dict[str, Any]) -> tuple[Any, str]:
    """A model with what a folder of AdapterHub's kind holds."""
    import adapters
    import adapters.composition as composition

    saved, base = folder / "saved" / str(number), folder / "bases" / case["base"]
    static = getattr(transformers, case["public"])
    setup = _setup(composition, ast.parse(case["active"], mode="eval").body)
    if case["kind"] == "whole":
        return _whole(adapters, saved, static, case, setup)
    if case["flexible"]:
        model = _loaded(adapters.AutoAdapterModel, base)
    else:
        model = _loaded(static, base)
        before = set(model.state_dict())
        adapters.init(model)
        with torch.no_grad():  # in some families it adds biases of uninitialised memory
            for name, parameter in model.named_parameters():
                if name not in before and name.endswith(".bias"):
                    parameter.zero_()
    if case["kind"] == "setup":
        model.load_adapter_setup(str(saved), set_active=True, use_safetensors=True)
        return model, "load_adapter_setup"
    safe = (saved / "adapter.safetensors").exists()
    model.load_adapter(str(saved), set_active=True, use_safetensors=safe)
    return model, "load_adapter"


def _setup(composition: Any, node: ast.expr) -> Any:
    """The composition that a text means."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        children = (_setup(composition, a) for a in node.args)
        return getattr(composition, node.func.id)(*children, **named)
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _whole(adapters: Any, saved: Path, static: Any, case: dict[str, Any], setup: Any) -> tuple[Any, str]:
    """A checkpoint with adapters inside; where the library cannot read such ones, through its state dict."""
    how = "from_pretrained"
    try:
        if case["flexible"]:
            model = _loaded(adapters.AutoAdapterModel, saved)
        else:
            model = adapters.load_model(str(saved), static, attn_implementation="eager")
    except TypeError:
        how = "load_state_dict"
        config = transformers.AutoConfig.from_pretrained(saved)
        config._attn_implementation = "eager"
        model = static(config)
        adapters.init(model)
        found = load_file(saved / "model.safetensors")
        left = model.load_state_dict(found, strict=False)
        model.tie_weights()
        wrong = [k for k in left.missing_keys if any(f".{n}." in k for n in config.adapters["adapters"])]
        if left.unexpected_keys or [k for k in wrong if ".pool." not in k]:
            raise KeyError(f"{left.unexpected_keys[:3]} {wrong[:3]}") from None
    model.set_active_adapters(setup)
    if case["flexible"]:
        model.active_head = case["head"]
    return model, how


def _loaded(cls: Any, folder: Path) -> Any:
    return cls.from_pretrained(str(folder), attn_implementation="eager")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
