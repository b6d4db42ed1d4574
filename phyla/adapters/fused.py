"""Low-rank parts of projections that public files hold as one matrix (q|k|v, gate|up)."""

from typing import Any

import torch
from torch import Tensor

from phyla.adapters.dialect import Dialect
from phyla.adapters.lora import Low
from phyla.adapters.registry import Entry
from phyla.errors import MissingWeightsError

ORDER = "qkv"
APART = "parts."  # stands before parts that a file holds each for itself, as only phyla writes them


def _mixed(line: Any) -> bool:
    """Whether the rows of the parts alternate, so that the file's blocks of rows are not our parts."""
    return getattr(line.op, "groups", 1) > 1


def add_missing(entry: Entry, dialect: Dialect, name: str) -> None:
    """Add parts at projections that the configuration does not name, but whose rows the file changes."""
    there = {place.path for place in entry.places}
    for place, part in list(entry.items()):
        if not isinstance(part, Low):
            continue
        line = dialect.fused(place)
        if line is None or (place.role != "ffn" and not _mixed(line)):
            continue
        for layer in dialect.where.layers:
            for other in layer.linears:
                if f"{other.path}.weight" in line.ours and other.path not in there:
                    there.add(other.path)
                    made = Low(part.config, other.module, part.pair)  # type: ignore[arg-type]
                    made.bias_behind = part.bias_behind
                    like = next(part.parameters())
                    entry.parts.append(made.to(like.device, like.dtype))
                    entry.places.append(other)


class RowGate(torch.nn.Module):
    """Gates of the file's blocks of rows, (..., in) -> (..., out): each of our rows has its block's."""

    def __init__(self, blocks: torch.nn.Linear, index: Tensor) -> None:
        super().__init__()
        self.blocks = blocks  # shared by the parts of one matrix
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)[..., self.index]


def _gate_rows(
    members: list[tuple[Any, Low]], line: Any, shapes: list[torch.Size], enabled: list[str], rest: dict
) -> None:
    weight, bias = rest["gate.weight"], rest["gate.bias"]
    blocks = torch.nn.Linear(weight.shape[1], weight.shape[0]).to(members[0][1].lora_B)
    blocks.load_state_dict({"weight": weight, "bias": bias})
    block = sum(s[0] for s in shapes) // 3
    number = torch.zeros(3 * block, 1)  # rows of blocks that are not adapted are zero: any gate will do
    for i, letter in enumerate(enabled):
        number[ORDER.index(letter) * block : (ORDER.index(letter) + 1) * block] = i
    rows = line.op.load([number], [torch.Size((s[0], 1)) for s in shapes])
    by_path = dict(zip((ours.rpartition(".")[0] for ours in line.ours), rows, strict=True))
    for place, part in members:
        part.gate = RowGate(blocks, by_path[place.path][:, 0].long())  # type: ignore[assignment]


def _expressible(config: Any, line: Any, parts: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether public files have words for these parts (path -> place, part) of one matrix.

    They know LoRA and IA3 on the thirds of q, k and v, and on all rows of other matrices with one lora_A.
    """
    if config.use_dora or config.vera_d is not None or hasattr(config, "n_up_projection"):
        return False
    places = [place for place, _ in parts.values()]
    if places[0].role == "ffn" or _mixed(line):
        first = next(iter(parts.values()))[1]
        whole = len(parts) == len(sizes) and (places[0].role == "ffn" or len(sizes) == 3)
        alike = config.composition_mode == "scale" or all(
            torch.equal(part.lora_A, first.lora_A) for _, part in parts.values()
        )
        return whole and alike
    return len(sizes) == 3 and len(set(sizes.values())) == 1 and all(p.part in ORDER for p in places)


def _sizes(dialect: Dialect, line: Any) -> dict[str, int]:
    """The rows of each of our projections in one matrix, in the order of the file."""
    paths = [ours.rpartition(".")[0] for ours in line.ours]
    found: dict[str, Any] = {}
    for layer in dialect.where.layers:
        found |= {p.path: p.module.out_features for p in layer.linears if p.path in paths}
    return {path: found[path] for path in paths if path in found}


def _read_apart(path: str, members: list[tuple[Any, Low]], tensors: dict[str, Tensor], entry: Entry) -> None:
    """Fill parts that a file holds each for itself; those that `add_missing` made in vain go again."""
    empty: set[int] = set()
    for place, part in members:
        ahead = f"{APART}{place.part}."
        values = {k.removeprefix(ahead): v for k, v in tensors.items() if k.startswith(ahead)}
        if not values and not part.config.wants(place):
            empty.add(id(part))
            continue
        missing = sorted(set(part.to_file()) - set(values))
        if missing:
            raise MissingWeightsError(f"the adapter file has no tensor {path}.{ahead}{missing[0]}")
        part.from_file(values)
    kept = [(place, part) for place, part in entry.items() if id(part) not in empty]
    entry.places, entry.parts = [p for p, _ in kept], torch.nn.ModuleList(part for _, part in kept)


def read_fused(
    path: str, members: list[tuple[Any, Low]], tensors: dict[str, Tensor], dialect: Dialect, entry: Entry
) -> None:
    """Fill the parts of one fused matrix from its file tensors."""
    line = dialect.fused(members[0][0])
    assert line is not None
    if any(key.startswith(APART) for key in tensors):
        _read_apart(path, members, tensors, entry)
        return
    if "lora_B" not in tensors:
        raise MissingWeightsError(f"the adapter file has no tensor {path}.lora_B")
    config, sizes = members[0][1].config, _sizes(dialect, line)
    paths, total = list(sizes), sum(sizes.values())
    low, high = tensors.get("lora_A"), tensors["lora_B"]
    role = members[0][0].role
    enabled = [m for m in ORDER if m in config.attn_matrices] if role != "ffn" else []
    if (role != "ffn" and len(enabled) < 3) or (
        role != "ffn" and low is not None and low.shape[0] > high.shape[1]
    ):
        rank, block = high.shape[1], total // 3
        columns = rank * len(enabled) if low is not None else 1
        start = high.new_zeros(total, columns) if low is not None else high.new_ones(total, 1)
        for i, letter in enumerate(enabled):
            at = ORDER.index(letter) * block
            into = slice(i * rank, (i + 1) * rank) if low is not None else slice(0, 1)
            start[at : at + block, into] = high[i * block : (i + 1) * block]
        high = start
    shapes = [torch.Size((sizes[p], high.shape[1])) for p in paths]
    whole = high.T if getattr(line.op, "transpose", False) else high
    rows = dict(zip(paths, line.op.load([whole], shapes), strict=True))
    rest = {k: v for k, v in tensors.items() if k not in ("lora_A", "lora_B")}
    for place, part in members:
        b, a = rows[place.path].contiguous(), low
        if a is not None and role != "ffn" and not _mixed(line):
            index = enabled.index(place.part) if len(enabled) else 0
            if a.shape[0] == b.shape[1] and len(enabled) * tensors["lora_B"].shape[1] == a.shape[0]:
                step = tensors["lora_B"].shape[1]
                keep = slice(index * step, (index + 1) * step)
                a, b = a[keep], b[:, keep]
        if "gate.weight" in rest and _mixed(line):
            gates = {}
        elif "gate.weight" in rest and role != "ffn":
            leaves = ("gate.weight", "gate.bias")
            if place.part in enabled:
                at = enabled.index(place.part)
                gates = {k: rest[k][at : at + 1] for k in leaves}
            else:  # its rows change nothing
                gates = {k: part.state_dict()[k] for k in leaves}
        else:
            gates = {}
        values = {"lora_B": b} if a is None else {"lora_A": a, "lora_B": b}
        if "gate.weight" in rest and _mixed(line):
            part.gate = None
        part.from_file({**values, **{k: v for k, v in rest.items() if k in part.state_dict()}, **gates})
    if "gate.weight" in rest and _mixed(line):
        _gate_rows(members, line, shapes, enabled, rest)


def write_fused(path: str, members: list[tuple[Any, Low]], dialect: Dialect) -> dict[str, Tensor]:
    """The file tensors of one fused matrix; each part's own where public files have no words for them."""
    line = dialect.fused(members[0][0])
    assert line is not None
    order = [ours.rpartition(".")[0] for ours in line.ours]
    parts = {place.path: (place, part) for place, part in members}
    config, role = members[0][1].config, members[0][0].role
    present = [parts[p][1] for p in order if p in parts]
    if not _expressible(config, line, parts, _sizes(dialect, line)):
        return {
            f"{APART}{place.part}.{leaf}": value
            for place, part in members
            for leaf, value in part.to_file().items()
        }
    rest = {k: v for k, v in present[0].to_file().items() if k not in ("lora_A", "lora_B")}
    if role == "ffn" or _mixed(line):
        rows = [p.lora_B for p in present]
        whole = line.op.save([r.detach() for r in rows])[0]
        high = whole.T if getattr(line.op, "transpose", False) else whole
        if role != "ffn":
            letters = [ORDER.index(m) for m in ORDER if m in config.attn_matrices]
            block = high.shape[0] // 3
            rank = config.r
            pieces = []
            for i, at in enumerate(letters):
                columns = (
                    slice(i * rank, (i + 1) * rank) if config.composition_mode != "scale" else slice(0, 1)
                )
                pieces.append(high[at * block : (at + 1) * block, columns])
            high = torch.cat(pieces)
        found = {"lora_B": high.contiguous()}
        if config.composition_mode != "scale":
            found["lora_A"] = present[0].lora_A.detach()
        if isinstance(present[0].gate, RowGate):
            rest = {k: v for k, v in rest.items() if not k.startswith("gate.")}
            rest |= {f"gate.{k}": v for k, v in present[0].gate.blocks.state_dict().items()}
        elif role != "ffn":
            named = [p for place, p in members if place.part in config.attn_matrices]
            named.sort(key=lambda p: next(ORDER.index(place.part) for place, q in members if q is p))
            for leaf in ("gate.weight", "gate.bias"):
                if leaf in rest:
                    rest[leaf] = torch.cat([p.state_dict()[leaf] for p in named])
        return found | rest
    found = {"lora_B": torch.cat([p.lora_B.detach() for p in present])}
    if config.composition_mode != "scale":
        found["lora_A"] = torch.cat([p.lora_A.detach() for p in present])
    for leaf in ("gate.weight", "gate.bias"):
        if leaf in rest:
            rest[leaf] = torch.cat([p.state_dict()[leaf] for p in present])
    return found | rest
