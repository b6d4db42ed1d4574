"""Public keys of adapters in AdapterHub files: one table of what sets families apart, the rest from NAMES.

A rule `o:1` is the public path of the projection o without its last segment; `layer:x` is x below the layer.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from phyla.adapters.places import LayerPlaces, Place, Survey, is_encoder
from phyla.checkpoints.names import Line
from phyla.checkpoints.state import layout_of, saves_prefix


@dataclass(frozen=True)
class Rules:
    """Where the bottlenecks of a family lie in files, by the role of their branch."""

    attn: str = "layer:attention_adapters"
    cross: str = "layer:cross_attention_adapters"
    ffn: str = "layer:output_adapters"
    cross_is_attn: bool = False  # cross-attention has a bottleneck where self-attention has one


_DENSE = Rules("o:1", "o:1", "down:1", cross_is_attn=True)
_BLOCKS = Rules("o:2", "o:2", "down:2")

RULES = {
    "albert": Rules(attn="layer:attention.attention_adapters"),
    "bert": _DENSE,
    "bert-generation": _DENSE,
    "camembert": _DENSE,
    "deberta": _DENSE,
    "deberta-v2": _DENSE,
    "electra": _DENSE,
    "mt5": _BLOCKS,
    "roberta": _DENSE,
    "t5": _BLOCKS,
    "vit": Rules(ffn="layer:output.output_adapters"),
    "xlm-roberta": _DENSE,
    "xmod": _DENSE,
}


@dataclass(frozen=True)
class Spot:
    """Where in a branch public bottlenecks stand, and what they take for the stream and the norm behind them.

    reads: `stream`, what the residual sum starts from; `normed`, the mixer's input; `nothing`; `exchanged`:
    the branch's output and the stream have changed places. norm: of this branch, or `last:attn.out_norm` that
    of the tower's last layer; empty for none.
    """

    slot: str = "site"
    reads: str = "stream"
    norm: str = "post_norm"


_SANDWICH = {
    "attn": Spot("mix_site", norm="last:attn.out_norm"),
    "ffn": Spot("mix_site", norm="last:ffn.out_norm"),
}
SPOTS: dict[str, dict[str, Spot]] = {
    "albert": {"attn": Spot(reads="exchanged")},
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "modernbert": {
        "attn": Spot(reads="normed", norm="last:ffn.pre_norm"),
        "ffn": Spot(reads="normed", norm=""),
    },
    "phi": {"ffn": Spot(reads="nothing")},
}

# Families whose files undo invertible adapters before the output matrix; theirs stand right behind the table.
INVERTED = {"gemma2", "gemma3_text", "modernbert", "phi", "qwen2", "qwen3"}

# Families whose files call the LoRA of `down` intermediate and that of `up` output.
SWAPPED = {"llama", "mistral"}

# Models of two whole models: their files repeat in both what adapters share.
NESTED = {"encoder-decoder"}

# Families whose files scale a projection before its bias (IA3 on queries, keys and values).
BIAS_BEHIND = {"deberta"}

# Families that take no prompts ahead of their states, or no prefixes in their attention, and why not.
_MAPS = "its layers or outputs lay the states out as a map, in which longer rows have no place"
NO_PROMPTS = {
    "blip-2": "its queries stand ahead of the text and count its positions themselves",
    "depth_anything": _MAPS,
    "musicgen": "its text is masked between encoder and decoder by the length of the ids",
    "paligemma": "its masks are made for each pair of positions that the caller gave",
    "qwen2_vl": "its positions have three axes, which it continues behind a cache by itself",
    "reformer": "its positions and chunks are those of rows of fixed lengths",
    "sam": _MAPS,
    "udop": "its encoder joins the text with the places of an image by the length of the ids",
    "vilt": "its embedding joins text and image itself",
    "vitpose": _MAPS,
    "vitpose_backbone": _MAPS,
    "xlnet": "its two streams see positions by permutation masks of the length of the ids",
    "yolos": "its layers add a table of positions to rows of fixed lengths",
}
# Families whose mixers know of no mask, so that rows of one batch must have prompts of one length.
MASKLESS = {"fnet"}
_OWN_KEYS = "its attention computes with keys and values of its own form"
NO_PREFIXES = {"conditional_detr": _OWN_KEYS, "perceiver": _OWN_KEYS, "vits": _OWN_KEYS, "xlnet": _OWN_KEYS}

# Streams side by side in a layer's output where it is not one (0: no tensor of rows, positions and width).
STREAMS = {"reformer": 2, "superglue": 0}

# Names of groups of prefixes that differ from the usual ones, by (group, tower).
PREFIXES: dict[str, dict[tuple[str, str], str]] = {
    "clip": {
        ("self_prefix", "backbone.text"): "clip_text_model_self_prefix",
        ("self_prefix", "backbone.image"): "clip_vision_model_self_prefix",
    },
    "distilbert": {("self_prefix", ""): "self"},
}


def branch_flag(model_type: str, flag: str) -> str:
    """The configuration's flag that asks for a bottleneck at a branch."""
    return "mh_adapter" if flag == "cross_adapter" and RULES.get(model_type, Rules()).cross_is_attn else flag


def spot_of(layer: LayerPlaces, role: str) -> Spot:
    """Where the bottlenecks of a branch stand."""
    return SPOTS.get(layer.model_type, {}).get(role, Spot())


def norm_of(spot: Spot, layer: LayerPlaces, branch: Any, where: Survey) -> Any:
    """The norm that a spot names, or None."""
    if not spot.norm.startswith("last:"):
        return getattr(branch, spot.norm, None) if spot.norm else None
    last = [other for other in where.layers if other.tower == layer.tower][-1].module
    name, _, slot = spot.norm.removeprefix("last:").partition(".")
    return getattr(getattr(last, name), slot)


class Dialect:
    """The public keys of one model's adapters, without `ahead`: the prefix of its backbone in its files."""

    def __init__(self, model: Any, where: Survey) -> None:
        self.model_type: str = model.config.model_type
        layout = layout_of(model)
        self.prefix, self.where = layout.prefix, where
        self.ahead = f"{layout.prefix}." if layout.prefix and saves_prefix(model) else ""
        self.lines: dict[str, tuple[str, Line]] = {}
        for line in layout.backbone:
            for ours in line.ours:
                path, _, leaf = ours.rpartition(".")
                if path not in self.lines or leaf == "weight":
                    public, _, last = line.theirs[0].rpartition(".")
                    self.lines[path] = (public if last == leaf else line.theirs[0], line)
        self.layers = {layer.index: layer for layer in where.layers}
        self.below = {layer.index: self._layer(layer) for layer in where.layers}
        told = list(self.below.values())
        for layer in where.layers:  # what files call one layer may be several here
            if told.count(self.below[layer.index]) > 1:
                self.below[layer.index] = self._layer(layer, numbered=False)

    def _layer(self, layer: LayerPlaces, numbered: bool = True) -> str:
        """The public path of a layer: what all its names begin with, up to the last number if numbered."""
        common = self._common(layer.path)
        while numbered and common and not common[-1].isdigit():
            common.pop()
        return ".".join(common)

    def _common(self, path: str) -> list[str]:
        """What all public names below one of our paths begin with, piece by piece."""
        ahead = path + "."
        names = [public.split(".") for ours, (public, _) in self.lines.items() if ours.startswith(ahead)]
        alike = takewhile(lambda pieces: len(set(pieces)) == 1, zip(*names, strict=False))
        return [pieces[0] for pieces in alike]

    def linear(self, place: Place) -> str:
        """The public path of a projection."""
        return self.lines[place.path][0]

    def fused(self, place: Place) -> Line | None:
        """The line of a projection that files hold together with others, or None."""
        line = self.lines[place.path][1]
        return line if len(line.ours) > 1 else None

    def branch(self, place: Place) -> str:
        """The public path of what holds a branch's bottlenecks."""
        layer = self.layers[place.layer]
        rules = RULES.get(layer.model_type, Rules())
        how, _, rest = getattr(rules, place.role).partition(":")
        if how == "layer":
            return f"{self.below[place.layer]}.{rest}"
        linear = next(p for p in layer.linears if p.path == f"{place.path}.{how}")
        return ".".join(self.linear(linear).split(".")[: -int(rest)])

    @cached_property
    def owners(self) -> list[str]:
        """The public paths of the models inside of a model of two; nothing for others."""
        towers = self.where.towers if self.model_type in NESTED else []
        return [".".join(self._common(tower)) for tower in towers]

    def pool(self, key: str) -> tuple[str, str]:
        """(path of what holds a group of prefixes, the group's public name), given our key `group@tower`."""
        group = self.group(key)
        if not self.owners:
            return "", group
        inside = self.owners[0 if group == "encoder_prefix" else -1]
        return f"{inside}.", "self_prefix" if group == "encoder_prefix" else group

    def attention(self, place: Place) -> str:
        """The public path of what holds an attention's prefixes."""
        return self.lines[f"{place.path}.q"][0].rpartition(".")[0]

    def tower(self, place: Place) -> str:
        """The public path of the tower that holds an embedding's adapters."""
        if len(self.where.towers) == 1:
            return ""
        for layer in self.where.layers:
            if layer.tower == place.tower:
                return self.below[layer.index].split(".")[0]
        encoder = next((x for x in self.where.layers if is_encoder(x.tower)), self.where.layers[0])
        return self.below[encoder.index].split(".")[0]

    def group(self, key: str) -> str:
        """The public name of a group of prefixes, given our key `group@tower`."""
        group, _, tower = key.partition("@")
        table = PREFIXES.get(self.model_type, {})
        if not tower or len(self.where.towers) == 1:
            return table.get((group, tower)) or table.get((group, "")) or group
        # Towers side by side have prefixes each; public files know of such groups for one family alone.
        return table.get((group, tower)) or f"{tower.removeprefix('backbone.').replace('.', '_')}_{group}"
