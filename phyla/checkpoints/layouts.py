"""Public names that many families share: those of the toolkits that their first files came from."""

from phyla.checkpoints.names import NameMap

_ATTENTIONS = {"attn": "self_attn", "cross": "encoder_attn"}


def side_names(ours: str, theirs: str, place: str = "post") -> dict[str, str]:
    """Lines of one side of a fairseq model, our paths beginning with `ours`; place: "pre" or "post" norms."""
    at, to = f"{ours}layers.{{i}}", f"{theirs}layers.{{i}}"
    lines = {
        f"{ours}embed.position": f"{theirs}embed_positions",
        f"{ours}embed.norm": f"{theirs}layernorm_embedding",
    }
    for branch, attention in _ATTENTIONS.items():
        lines[f"{at}.{branch}.{place}_norm"] = f"{to}.{attention}_layer_norm"
        for part, public in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}.items():
            lines[f"{at}.{branch}.{part}"] = f"{to}.{attention}.{public}"
    if place == "pre":
        lines[f"{ours}norm"] = f"{theirs}layer_norm"
    return lines | {
        f"{at}.ffn.up": f"{to}.fc1",
        f"{at}.ffn.down": f"{to}.fc2",
        f"{at}.ffn.{place}_norm": f"{to}.final_layer_norm",
    }


def both_names(place: str = "post") -> NameMap:
    """Names of encoder and decoder as fairseq's files have them."""
    return NameMap(
        side_names("encoder.", "encoder.", place)
        | side_names("decoder.", "decoder.", place)
        | {"encoder.embed.tokens": "shared"},
        prefix="model",
        aliases={"encoder.embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens")},
    )


def decoder_names(place: str = "post") -> NameMap:
    """Names of a decoder alone, as fairseq's files have them."""
    return NameMap(
        side_names("", "decoder.", place) | {"embed.tokens": "decoder.embed_tokens"},
        prefix="model",
        aliases={"embed.tokens": ("shared",)},
        ignore=(r"(model\.)?encoder\..*", "final_logits_bias"),
    )


def mesh_names(sides: dict[str, str], gated: bool) -> NameMap:
    """Names of the sides, ours -> theirs, as Mesh TensorFlow's encoder-decoders have them."""
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    lines: dict[str, str] = {}
    for ours, theirs in sides.items():
        cross = {"cross": "EncDecAttention"} if theirs == "decoder." else {}
        lines[f"{ours}norm"] = f"{theirs}final_layer_norm"
        lines[f"{ours}position"] = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias"
        branches = {"attn": "SelfAttention", **cross, "ffn": "DenseReluDense"}
        for index, (branch, public) in enumerate(branches.items()):
            mine, at = f"{ours}layers.{{i}}.{branch}", f"{theirs}block.{{i}}.layer.{index}"
            lines[f"{mine}.pre_norm"] = f"{at}.layer_norm"
            for part, leaf in (maps if branch == "ffn" else {p: p for p in "qkvo"}).items():
                lines[f"{mine}.{part}"] = f"{at}.{public}.{leaf}"
    first = next(iter(sides))
    lines[f"{first}embed.tokens"] = "shared"
    aliases = {f"{first}embed.tokens": ("encoder.embed_tokens", "decoder.embed_tokens")}
    # Some old files carry a table of distances for cross-attention that no layer reads.
    stray = r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    return NameMap(lines, aliases=aliases, ignore=(stray,))
