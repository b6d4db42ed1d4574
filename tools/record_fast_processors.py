"""Record what the reference's fast image processors compute, for tools/pack_processor_goldens.py.

usage: PYTHONPATH=tests REFERENCE_PYTHON tools/record_fast_processors.py FOLDER
It needs an interpreter with Transformers 4.50 and torchvision, and writes FOLDER/fast/CLASS/CASE.json.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from processor_inputs import flatten, resolve, sample
from safetensors.numpy import save_file

SAMPLES = 320


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> dict:
    return {"rule": "image", "args": [width, height, mode], "kw": {"seed": seed}}


def tensor(width: int, height: int, seed: int = 0) -> dict:
    array = {"rule": "array", "args": [width, height, 3, "CHW"], "kw": {"seed": seed}}
    return {"rule": "torch_tensor", "args": [array]}


def coco(width: int, height: int, seed: int = 0) -> dict:
    return {"rule": "coco_detection", "args": [3, width, height], "kw": {"seed": seed}}


SQUARE = {"size": {"height": 40, "width": 36}}
EDGE = {"size": {"shortest_edge": 40}, "crop_size": {"height": 33, "width": 48}}
BOUND = {"size": {"shortest_edge": 40, "longest_edge": 70}}
TILES = {"image_grid_pinpoints": [[24, 48], [48, 24], [48, 48], [72, 24]]}
INIT = {
    "Blip": [SQUARE, {**SQUARE, "do_normalize": False}],
    "CLIP": [EDGE, {**EDGE, "resample": 2, "do_rescale": False}],
    "ConvNext": [{"size": {"shortest_edge": 40}, "crop_pct": 0.8}, {"size": {"shortest_edge": 384}}],
    "DeformableDetr": [BOUND, SQUARE],
    "DeiT": [{**SQUARE, "crop_size": {"height": 29, "width": 50}}, SQUARE],
    "DepthPro": [SQUARE, {**SQUARE, "resample": 3}],
    "Detr": [BOUND, {"size": {"max_height": 50, "max_width": 60}}],
    "Gemma3": [
        SQUARE,
        {
            **SQUARE,
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 12,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
    ],
    "GotOcr2": [SQUARE, {**SQUARE, "crop_to_patches": True, "max_patches": 5}],
    "Llava": [EDGE, {**EDGE, "do_pad": True}],
    "LlavaNext": [{"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, **TILES}],
    "LlavaOnevision": [{"size": {"height": 24, "width": 24}, **TILES}],
    "Pixtral": [{"size": {"longest_edge": 50}, "patch_size": {"height": 8, "width": 8}}],
    "Qwen2VL": [{"min_pixels": 1568, "max_pixels": 7840}],
    "RTDetr": [SQUARE, {**SQUARE, "do_pad": True, "pad_size": {"height": 60, "width": 50}}],
    "Siglip2": [{"patch_size": 8, "max_num_patches": 30}],
    "Siglip": [SQUARE],
    "ViT": [SQUARE, {**SQUARE, "resample": 0, "rescale_factor": 0.01}],
}
INPUTS = {
    "batch": [picture(64, 48), picture(70, 90, seed=1)],
    "tensor": tensor(80, 53),
    "gray": [picture(50, 60, "RGB", 3), picture(61, 47, "RGB", 4)],
}


def crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).astype(np.int64).tobytes())


def facts_of(result: object) -> tuple[dict, dict]:
    """What a golden says of every output, and the sampled values."""
    outputs: dict = {}
    kept: dict = {}
    for path, leaf in flatten(result).items():
        if leaf[0] == "value":
            outputs[path] = {"kind": "value", "value": leaf[1]}
            continue
        array = leaf[1]
        fact = {"kind": leaf[0], "shape": list(array.shape), "dtype": leaf[2]}
        if array.dtype.kind == "f":
            fact.update(
                range=[float(array.min()), float(array.max())], mean=float(array.astype(float).mean())
            )
        else:
            fact["crc32"] = crc(array)
        outputs[path] = fact
        kept[f"out.{path}"] = np.ascontiguousarray(sample(array.reshape(-1), SAMPLES))
    return outputs, kept


def write_golden(folder: Path, golden: dict, case: str, outputs: dict, kept: dict) -> None:
    """One golden as FOLDER/KIND/CLASS/CASE.json, with its arrays beside it."""
    target = folder / golden["kind"] / golden["class"]
    target.mkdir(parents=True, exist_ok=True)
    facts = {**golden, "samples": SAMPLES, "outputs": outputs}
    (target / f"{case}.json").write_text(json.dumps(facts))
    if kept:
        save_file(kept, str(target / f"{case}.safetensors"))


def record(folder: Path, name: str, case: str, init: dict, images: object, call: dict) -> None:
    processor = getattr(transformers, name)(**init)
    golden = {
        "kind": "fast",
        "class": name,
        "config": json.loads(processor.to_json_string()),
        "init": init,
        "method": "__call__",
        "args": [images],
        "call": call,
    }
    write_golden(folder, golden, case, *facts_of(processor(resolve(images), **resolve(call))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for short, settings in INIT.items():
        for number, init in enumerate(settings):
            for kind, images in INPUTS.items():
                call = {"return_tensors": "pt"}
                if "Detr" in short and kind == "batch":
                    call["annotations"] = [coco(64, 48), coco(70, 90, 1)]
                if short in ("Blip", "CLIP") and kind == "gray":
                    images = [picture(50, 60, "L", 3), picture(61, 47, "RGBA", 4)]
                record(
                    Path(sys.argv[1]), f"{short}ImageProcessorFast", f"{kind}_{number}", init, images, call
                )
