# ruff: noqa: E501, E731, SIM115, SIM118, SIM905, RUF046
"""Inputs of the processor goldens, drawn by rule: the same call gives the same bytes on every machine.

Images, videos, sounds, masks, boxes and model-like outputs are made from integer arithmetic and one integer hash (no library random
numbers, no library drawing), so that a golden only has to name a function and its arguments. Needs numpy and PIL; torch only where a
golden asks for a torch tensor.

A golden writes an input as {"rule": NAME, "args": [...], "kw": {...}}; `resolve` turns such a description into the value.
"""

import json
import math
import os
import tempfile

import numpy as np

MASK = (1 << 64) - 1


# ---------------------------------------------------------------- numbers


def bits(n, seed=0):
    """n uint64 hashes of 0..n-1 under a seed (splitmix64)."""
    with np.errstate(over="ignore"):
        z = np.arange(n, dtype=np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x1234567) & MASK)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(shape, seed=0, low=0.0, high=1.0, dtype="float32"):
    """Values in [low, high) on a 2^-24 grid."""
    n = int(np.prod(shape)) if len(shape) else 1
    u = (bits(n, seed) >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return (low + u * (high - low)).reshape(tuple(shape)).astype(dtype)


def normal(shape, seed=0, mean=0.0, std=1.0, dtype="float32"):
    """Near-normal values: the sum of twelve uniforms less six."""
    n = int(np.prod(shape)) if len(shape) else 1
    total = np.zeros(n, dtype=np.float64)
    for k in range(12):
        total += (bits(n, seed * 12 + k + 77) >> np.uint64(40)).astype(np.float64) / (1 << 24)
    return (mean + std * (total - 6.0)).reshape(tuple(shape)).astype(dtype)


def integers(shape, seed=0, low=0, high=10, dtype="int64"):
    n = int(np.prod(shape)) if len(shape) else 1
    return (
        (low + (bits(n, seed) % np.uint64(high - low)).astype(np.int64)).reshape(tuple(shape)).astype(dtype)
    )


def full(shape, value, dtype="float32"):
    return np.full(tuple(shape), value, dtype=dtype)


def smooth(shape, seed=0, scale=6.0, dtype="float32"):
    """Smooth blobs along the last two axes (mask-logit-like): one signed bump per leading index, on a 2^-16 grid."""
    shape = tuple(shape)
    lead, (h, w) = int(np.prod(shape[:-2])) if len(shape) > 2 else 1, shape[-2:]
    out = np.empty((lead, h, w), dtype=np.float64)
    ys, xs = np.arange(h)[:, None] / max(h - 1, 1), np.arange(w)[None, :] / max(w - 1, 1)
    par = uniform((lead, 4), seed, dtype="float64")
    for i in range(lead):
        cy, cx, ry, rx = par[i, 0], par[i, 1], 0.15 + 0.3 * par[i, 2], 0.15 + 0.3 * par[i, 3]
        out[i] = scale * (1.0 - ((ys - cy) / ry) ** 2 - ((xs - cx) / rx) ** 2)
    out = np.clip(out, -2 * scale, 2 * scale) + normal(
        (lead, h, w), seed + 5, std=0.05 * scale, dtype="float64"
    )
    return (np.round(out * 65536) / 65536).reshape(shape).astype(dtype)


# ---------------------------------------------------------------- pictures


def pixels(w, h, c=3, seed=0, style="scene"):
    """uint8 picture (h, w, c). Styles: scene (gradients, shapes, noise), text (dark marks on white, with a margin), flat, noise, depth, bright."""
    y, x = np.arange(h, dtype=np.int64)[:, None], np.arange(w, dtype=np.int64)[None, :]
    noise = bits(h * w * c, seed * 7 + 3).reshape(h, w, c)
    if style == "flat":
        return np.broadcast_to(
            np.array([(40 + 61 * k + 17 * seed) % 256 for k in range(c)], dtype=np.uint8), (h, w, c)
        ).copy()
    if style == "noise":
        return (noise % np.uint64(256)).astype(np.uint8)
    if style == "text":
        img = np.full((h, w, c), 255, dtype=np.int64)
        top, left = h // 8, w // 6
        cell_h, cell_w = max(h // 16, 2), max(w // 40, 2)
        marks = bits(((h // cell_h) + 1) * ((w // cell_w) + 1), seed + 11).reshape(
            (h // cell_h) + 1, (w // cell_w) + 1
        ) % np.uint64(5)
        grid = marks[(y // cell_h), (x // cell_w)]
        ink = (
            (grid < 3) & ((y // cell_h) % 2 == 0) & (y >= top) & (y < h - top) & (x >= left) & (x < w - left)
        )
        img[ink] = 20
        return img.astype(np.uint8)
    img = np.empty((h, w, c), dtype=np.int64)
    for k in range(c):
        a, b = (3 * k + seed) % 5 + 1, (2 * k + seed) % 3 + 1
        img[..., k] = (x * 255 * a // max(w - 1, 1) + y * 255 * b // max(h - 1, 1) + 40 * k) % 511
    img = np.where(img > 255, 510 - img, img)
    if style == "depth":
        return (img // 2 + 60).astype(np.uint8)
    shapes = bits(24, seed + 101)
    for s in range(4):
        cx, cy = int(shapes[s * 6] % np.uint64(max(w, 1))), int(shapes[s * 6 + 1] % np.uint64(max(h, 1)))
        r = 1 + int(shapes[s * 6 + 2] % np.uint64(max(min(w, h) // 3, 1)))
        colour = [int(v) for v in (bits(c, seed * 31 + s) % np.uint64(256))]
        inside = (
            (np.abs(x - cx) <= r) & (np.abs(y - cy) <= r // 2 + 1)
            if s % 2
            else ((x - cx) ** 2 + (y - cy) ** 2 <= r * r)
        )
        img[inside] = colour
    img = img + (noise % np.uint64(17)).astype(np.int64) - 8
    if style == "bright":
        img = 128 + img // 2
    return np.clip(img, 0, 255).astype(np.uint8)


def image(w, h, mode="RGB", seed=0, style="scene"):
    """PIL picture of a mode: RGB, L, RGBA, LA, P, 1, CMYK, I;16, F, PA (P with transparency)."""
    from PIL import Image

    if mode == "RGB":
        return Image.fromarray(pixels(w, h, 3, seed, style))
    if mode == "RGBA":
        rgb = pixels(w, h, 3, seed, style)
        alpha = pixels(w, h, 1, seed + 50, "scene")
        return Image.fromarray(np.concatenate([rgb, alpha], -1))
    if mode == "L":
        return Image.fromarray(pixels(w, h, 1, seed, style)[..., 0])
    if mode == "LA":
        return Image.merge(
            "LA", [Image.fromarray(pixels(w, h, 1, seed + i, style)[..., 0]) for i in range(2)]
        )
    if mode == "1":
        return Image.frombytes(
            "1", (w, h), np.packbits(pixels(w, h, 1, seed, style)[..., 0] > 127, axis=1).tobytes()
        )
    if mode in ("P", "PA"):
        img = Image.frombytes("P", (w, h), (pixels(w, h, 1, seed, style)[..., 0] // 16).tobytes())
        img.putpalette([int(v) for v in bits(48, seed + 9) % np.uint64(256)])
        if mode == "PA":
            img.info["transparency"] = 3
        return img
    if mode == "CMYK":
        return Image.frombytes("CMYK", (w, h), pixels(w, h, 4, seed, style).tobytes())
    if mode == "I;16":
        return Image.fromarray(pixels(w, h, 1, seed, style)[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(pixels(w, h, 1, seed, style)[..., 0].astype(np.float32) / 255)
    raise ValueError(mode)


def array(w, h, c=3, layout="HWC", dtype="uint8", seed=0, style="scene", unit=False):
    """The picture as a numpy array: layout HWC, CHW or HW; float values are 0..255, or 0..1 with unit."""
    a = pixels(w, h, c, seed, style)
    a = a[..., 0] if layout == "HW" else a.transpose(2, 0, 1) if layout == "CHW" else a
    a = np.ascontiguousarray(a).astype(dtype)
    return (a / np.asarray(255, dtype=dtype)).astype(dtype) if unit else a


def video(frames, w, h, seed=0, form="pil", dtype="uint8"):
    """A short video, one picture a frame: list of PIL pictures, list of HWC arrays (numpy), one THWC array (stack), one TCHW array (tchw)."""
    if form == "pil":
        return [image(w, h, "RGB", seed * 100 + t) for t in range(frames)]
    each = [array(w, h, 3, "HWC", dtype, seed * 100 + t) for t in range(frames)]
    if form == "numpy":
        return each
    return np.stack(each) if form == "stack" else np.ascontiguousarray(np.stack(each).transpose(0, 3, 1, 2))


def label_map(w, h, labels=5, seed=0, ignore=False, form="numpy", dtype="uint8"):
    """Segmentation map (h, w): blocks of labels 0..labels-1, some pixels 255 where ignore."""
    by, bx = max(h // 5, 1), max(w // 5, 1)
    cells = bits(((h // by) + 1) * ((w // bx) + 1), seed + 21).reshape(
        (h // by) + 1, (w // bx) + 1
    ) % np.uint64(labels)
    m = cells[(np.arange(h) // by)[:, None], (np.arange(w) // bx)[None, :]].astype(np.int64)
    if ignore:
        m[: max(h // 10, 1), : max(w // 10, 1)] = 255
    m = m.astype(dtype)
    if form == "pil":
        from PIL import Image

        return Image.fromarray(m.astype(np.uint8))
    return m


def trimap(w, h, seed=0, form="numpy"):
    """0 / 128 / 255 rings."""
    y, x = np.arange(h)[:, None], np.arange(w)[None, :]
    d = (x - w // 2 - seed) ** 2 + (y - h // 2) ** 2
    r = (min(w, h) // 3) ** 2
    m = np.where(d < r // 2, 255, np.where(d < r, 128, 0)).astype(np.uint8)
    if form == "pil":
        from PIL import Image

        return Image.fromarray(m)
    return m


def depth_map(w, h, seed=0, dtype="uint16"):
    return (pixels(w, h, 1, seed, "depth")[..., 0].astype(np.int64) * 20 + 100).astype(dtype)


def boxes(n, w, h, seed=0, form="xyxy", integer=True):
    """n boxes inside w x h: xyxy, xywh, cxcywh, or unit cxcywh / unit xyxy (fractions of the size)."""
    u = uniform((n, 4), seed, dtype="float64")
    x0, y0 = u[:, 0] * 0.6 * w, u[:, 1] * 0.6 * h
    bw, bh = (0.1 + 0.3 * u[:, 2]) * w, (0.1 + 0.3 * u[:, 3]) * h
    if integer and not form.startswith("unit"):
        x0, y0, bw, bh = (np.floor(v) for v in (x0, y0, np.maximum(bw, 1), np.maximum(bh, 1)))
    if form == "xyxy":
        out = np.stack([x0, y0, x0 + bw, y0 + bh], -1)
    elif form == "xywh":
        out = np.stack([x0, y0, bw, bh], -1)
    elif form == "unit":
        out = np.stack([(x0 + bw / 2) / w, (y0 + bh / 2) / h, bw / w, bh / h], -1)
    elif form == "unit_xyxy":
        out = np.stack([x0 / w, y0 / h, (x0 + bw) / w, (y0 + bh) / h], -1)
    else:
        out = np.stack([x0 + bw / 2, y0 + bh / 2, bw, bh], -1)
    return out.astype(np.float64)


def box_list(n, w, h, seed=0, form="xyxy", kind="int"):
    return [[(int if kind == "int" else float)(v) for v in row] for row in boxes(n, w, h, seed, form)]


def coco_detection(n, w, h, seed=0, image_id=1, keypoints=False, crowd=False):
    """COCO detection annotation of one picture, without masks."""
    items = []
    for i, (x, y, bw, bh) in enumerate(boxes(n, w, h, seed, "xywh")):
        item = {
            "image_id": image_id,
            "category_id": (3 * i + seed) % 7,
            "iscrowd": int(crowd and i == n - 1),
            "area": float(bw * bh),
            "bbox": [float(x), float(y), float(bw), float(bh)],
        }
        if keypoints:
            item["keypoints"] = [int(v) for v in integers((9,), seed + i, 0, min(w, h))]
        items.append(item)
    return {"image_id": image_id, "annotations": items}


def coco_panoptic(w, h, segments=4, seed=0, image_id=1, name="one.png"):
    """COCO panoptic annotation of one picture; `panoptic_folder` writes its mask."""
    m = label_map(w, h, segments, seed, dtype="int64")
    info = []
    for s in sorted(int(v) for v in np.unique(m)):
        ys, xs = np.nonzero(m == s)
        info.append(
            {
                "id": s * 300 + 7,
                "category_id": (s * 2 + seed) % 9,
                "iscrowd": 0,
                "area": int(len(ys)),
                "bbox": [
                    int(xs.min()),
                    int(ys.min()),
                    int(xs.max() - xs.min() + 1),
                    int(ys.max() - ys.min() + 1),
                ],
            }
        )
    return {"image_id": image_id, "file_name": name, "segments_info": info}


def panoptic_folder(files):
    """Folder with the masks of `coco_panoptic` as RGB PNG (id = r + 256 g + 65536 b); files: [[name, w, h, segments, seed], ...]."""
    from PIL import Image

    folder = tempfile.mkdtemp(prefix="panoptic_")
    for name, w, h, segments, seed in files:
        ids = label_map(w, h, segments, seed, dtype="int64") * 300 + 7
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
            os.path.join(folder, name)
        )
    return folder


def json_folder(name, content):
    """Folder holding one JSON file (a class-info file, for example)."""
    folder = tempfile.mkdtemp(prefix="rule_")
    json.dump(content, open(os.path.join(folder, name), "w"))
    return folder


# ---------------------------------------------------------------- sound


def audio(kind, samples, rate=16000, seed=0, dtype="float32", channels=1, loud=0.5):
    """Sound on a 16-bit grid. Kinds: tone, chord, noise, silence, chirp, speech (amplitude-modulated harmonics), click. channels > 1 gives (channels, samples)."""

    def one(s):
        t = np.arange(samples, dtype=np.float64) / rate
        if kind == "silence":
            v = np.zeros(samples)
        elif kind == "tone":
            v = np.sin(2 * math.pi * (220.0 + 55 * s) * t)
        elif kind == "chord":
            v = (
                np.sin(2 * math.pi * 261.6 * t)
                + np.sin(2 * math.pi * 329.6 * t)
                + np.sin(2 * math.pi * (392.0 + 10 * s) * t)
            ) / 3
        elif kind == "noise":
            v = uniform((samples,), s + 1, -1.0, 1.0, "float64")
        elif kind == "chirp":
            v = np.sin(
                2 * math.pi * (100.0 * t + (0.2 * rate - 100.0) * t * t / (2 * max(samples / rate, 1e-9)))
            )
        elif kind == "click":
            v = np.zeros(samples)
            v[:: max(samples // 7, 1)] = 0.9
        elif kind == "speech":
            f0 = 110.0 + 15 * (s % 5)
            v = (
                sum(np.sin(2 * math.pi * f0 * k * t + 0.3 * k) / k for k in range(1, 12))
                * (0.5 + 0.5 * np.sin(2 * math.pi * 3.1 * t))
                / 3
            )
            v = v + 0.02 * uniform((samples,), s + 9, -1.0, 1.0, "float64")
        else:
            raise ValueError(kind)
        return np.round(np.clip(loud * v, -1, 1) * 32767) / 32768

    out = one(seed) if channels == 1 else np.stack([one(seed + k) for k in range(channels)])
    return out.astype(dtype)


def audio_list(kind, samples, rate=16000, seed=0):
    """The same as a plain list of floats."""
    return [float(v) for v in audio(kind, samples, rate, seed, "float64")]


# ---------------------------------------------------------------- words and objects

WORDS = "the a quick brown fox jumps over lazy dog cat sits on red mat photo of two small birds near blue water describe this image please what is in it and how many people are there hello world".split()


def words(n, seed=0):
    return [WORDS[int(v)] for v in bits(n, seed + 301) % np.uint64(len(WORDS))]


def sentence(n, seed=0):
    return " ".join(words(n, seed))


class Outputs(dict):
    """Model-like output: values by name, as attributes and by position."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)


def outputs(**values):
    return Outputs(values)


def torch_tensor(value, dtype=None):
    import torch

    out = (
        torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, np.ndarray)
        else torch.tensor(value)
    )
    return out.to(getattr(torch, dtype)) if dtype else out


def tuple_(*items):
    return tuple(items)


def set_(*items):
    return set(items)


def int_dict(pairs):
    """A mapping with integer keys (JSON has none)."""
    return {int(k): v for k, v in pairs}


def numpy_(value, dtype=None):
    return np.asarray(value, dtype=dtype)


RULES = {
    f.__name__.rstrip("_"): f
    for f in (
        bits,
        uniform,
        normal,
        integers,
        full,
        smooth,
        pixels,
        image,
        array,
        video,
        label_map,
        trimap,
        depth_map,
        boxes,
        box_list,
        coco_detection,
        coco_panoptic,
        panoptic_folder,
        json_folder,
        audio,
        audio_list,
        words,
        sentence,
        outputs,
        torch_tensor,
        tuple_,
        set_,
        int_dict,
        numpy_,
    )
}


def resolve(described):
    """The value that a description stands for; lists and dicts are followed."""
    if isinstance(described, dict):
        if "rule" in described:
            return RULES[described["rule"]](
                *[resolve(v) for v in described.get("args", [])],
                **{k: resolve(v) for k, v in described.get("kw", {}).items()},
            )
        return {k: resolve(v) for k, v in described.items()}
    if isinstance(described, list):
        return [resolve(v) for v in described]
    return described


# ---------------------------------------------------------------- what is kept of an output

SAMPLES = 2048


def sample(flat, most=SAMPLES):
    """At most `most` values of a flat array: positions i * (n - 1) // (most - 1) for i in 0..most-1; all of it where n <= most."""
    n = len(flat)
    return flat if n <= most else flat[np.arange(most, dtype=np.int64) * (n - 1) // (most - 1)]


def flatten(value, path="", out=None):
    """{dotted path: leaf}. Leaves: ("torch" | "numpy", array), ("pil", array, mode), ("value", plain). Lists of numbers stay whole."""
    out = {} if out is None else out
    kind = type(value).__module__.split(".")[0] + "." + type(value).__name__
    join = lambda k: f"{path}.{k}" if path else str(k)
    if kind in ("torch.Tensor", "torch.Parameter"):
        import torch

        v = value.detach().cpu()
        out[path] = (
            "torch",
            (v.float() if v.dtype == torch.bfloat16 else v).numpy(),
            str(v.dtype).split(".")[-1],
        )
    elif isinstance(value, np.ndarray) and value.dtype != object:
        out[path] = ("numpy", value, str(value.dtype))
    elif isinstance(value, np.ndarray):
        out[path] = ("value", {"object array of shape": list(value.shape)})
        for i, v in enumerate(value.tolist()):
            flatten(v, join(i), out)
    elif isinstance(value, np.generic):
        out[path] = ("value", value.item())
    elif hasattr(value, "getbands") and hasattr(value, "tobytes"):
        out[path] = ("pil", np.asarray(value), value.mode)
    elif hasattr(value, "keys"):
        if not len(value.keys()):
            out[path] = ("value", {})
        for k in value.keys():
            flatten(value[k], join(k), out)
    elif isinstance(value, (set, frozenset)):
        out[path] = ("value", sorted(value))
    elif isinstance(value, (list, tuple)):
        if plain(value):
            big = rectangle(value)
            out[path] = ("list", big, str(big.dtype)) if big is not None else ("value", unpack(value))
        else:
            for i, v in enumerate(value):
                flatten(v, join(i), out)
    elif isinstance(value, (str, int, float, bool)) or value is None:
        out[path] = ("value", value)
    else:
        out[path] = ("value", {"object": type(value).__name__})
    return out


def plain(value):
    if isinstance(value, (list, tuple)):
        return all(plain(v) for v in value)
    return isinstance(value, (str, int, float, bool, np.generic)) or value is None


def rectangle(value):
    """A rectangular list of more than 64 numbers as an array, else None."""
    try:
        a = np.asarray(value)
    except ValueError:
        return None
    return a if a.size > 64 and a.dtype.kind in "iufb" else None


def unpack(value):
    if isinstance(value, (list, tuple)):
        return [unpack(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
