"""Prompts and prefixes where rows are padded, and ahead of encoders whose states a decoder reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phyla
import phyla.adapters as adapters
from phyla.adapters import AdapterModelInterface
from phyla.adapters.dialect import MASKLESS, NO_PREFIXES, NO_PROMPTS
from phyla.errors import AdapterError
from phyla.registry import families
from phyla.testing.goldens import read_pack

GOLDENS = Path(__file__).parent / "goldens"

IDS = torch.tensor([[5, 6, 7, 8, 9]])
DISTANCES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "bert-relative": ("Bert", {"position_embedding_type": "relative_key_query"}),
    "roberta": ("Roberta", {}),
    "albert": ("Albert", {"embedding_size": 16}),
    "deberta": ("Deberta", DISTANCES),
    "deberta-v2": ("DebertaV2", {**DISTANCES, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}),
    "deberta-v2-shared": ("DebertaV2", {**DISTANCES, "position_buckets": 4, "share_att_key": True,
                                        "position_biased_input": False}),
    "llama": ("Llama", {}),
    "gpt2": ("GPT2", {}),
    "opt": ("OPT", {}),
}  # fmt: skip
METHODS = [
    "prompt_tuning[prompt_length=4]",
    "prompt_tuning[prompt_length=4,combine=prefix_after_bos]",
    "prefix_tuning_flat[prefix_length=4]",
]
# Prefixes lie in the first slots, as published: padding on the left stands between them and the tokens.
APART = {("bert-relative", METHODS[2], "left")}


def stirred(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


def small(kind: str, more: dict[str, Any], name: str = "Model") -> Any:
    torch.manual_seed(0)
    config = getattr(phyla, f"{kind}Config").from_dict({
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "type_vocab_size": 2, "intermediate_size": 64, "pad_token_id": 1, "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64, **more,
    })  # fmt: skip
    return stirred(getattr(phyla, kind + name)(config))


def states(model: Any, side: str, skip: int, pad: int = 3) -> Tensor:
    """The states of prompts and tokens, prompts first, of one row with padding on a side."""
    fill = torch.ones(1, pad, dtype=torch.long)
    ids = torch.cat([IDS, fill] if side == "right" else [fill, IDS], 1)
    mask = (ids != 1).long()
    y = model(ids, attention_mask=mask).last_hidden_state
    added = y.shape[1] - ids.shape[1]
    tokens = torch.cat([y[:, :skip], y[:, skip + added :]], 1)
    tokens = tokens[:, : IDS.shape[1]] if side == "right" else tokens[:, pad:]
    return torch.cat([y[:, skip : skip + added], tokens], 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padding_beside_prompts_does_not_matter(name: str, method: str) -> None:
    model, skip = small(*MODELS[name]), int("after_bos" in method)
    model.add_adapter("a", config=method, set_active=True)
    bare = states(model, "right", skip, 0)
    for side in ("right", "left"):
        alike = torch.allclose(states(model, side, skip), bare, rtol=1e-4, atol=1e-5)
        assert alike != ((name, method, side) in APART)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_left_padded_rows_generate_what_they_do_alone(method: str) -> None:
    model = small("Llama", {}, "ForCausalLM")
    model.add_adapter("a", config=method, set_active=True)
    other = torch.tensor([[11, 12]])
    both = torch.cat([IDS, torch.cat([torch.ones(1, 3, dtype=torch.long), other], 1)])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 59}
    found = model.generate(both, attention_mask=(both != 1).long(), **options)
    for row, ids in zip(found, (IDS, other), strict=True):
        assert torch.equal(row[5:], model.generate(ids, **options)[0, ids.shape[1] :])


def t5(kind: str = "T5ForConditionalGeneration") -> Any:
    torch.manual_seed(0)
    config = phyla.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return stirred(getattr(phyla, kind)(config))


@pytest.mark.parametrize("method", METHODS[:2])
@torch.no_grad()
def test_prompts_of_an_encoder_are_seen_by_its_decoder(method: str) -> None:
    model = t5()
    plain = model(input_ids=IDS, labels=IDS)
    model.add_adapter("a", config=method, set_active=True)
    out = model(input_ids=IDS, labels=IDS)
    assert out.encoder_last_hidden_state.shape[1] == IDS.shape[1] + 4
    assert out.logits.shape == plain.logits.shape and not torch.allclose(out.logits, plain.logits, atol=1e-3)
    for left in (False, True):
        fill = torch.zeros(1, 3, dtype=torch.long)
        ids = torch.cat([fill, IDS] if left else [IDS, fill], 1)
        padded = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=IDS)
        torch.testing.assert_close(padded.logits, out.logits, rtol=1e-4, atol=1e-5)
    two = torch.cat([IDS, IDS + 1])
    mixed = model(input_ids=two, labels=two, adapter_names=["a", None]).logits
    torch.testing.assert_close(mixed[:1], out.logits, rtol=1e-4, atol=1e-5)
    model.set_active_adapters(None)
    bare = model(input_ids=two[1:], labels=two[1:]).logits
    torch.testing.assert_close(mixed[1:], bare, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prompts_of_an_encoder_serve_generation() -> None:
    model = t5()
    model.add_adapter("a", config="prompt_tuning[prompt_length=4]", set_active=True)
    fill = torch.zeros(1, 3, dtype=torch.long)
    ids, options = torch.cat([IDS, fill], 1), {"max_new_tokens": 5, "num_beams": 2}
    found = model.generate(ids, attention_mask=(ids != 0).long(), **options)
    assert torch.equal(found, model.generate(IDS, **options))
    tokens = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(5):
        scores = model(input_ids=IDS, decoder_input_ids=tokens).logits[:, -1]
        tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
    greedy = model.generate(IDS, max_new_tokens=5, eos_token_id=59)
    assert torch.equal(greedy, tokens[:, : greedy.shape[1]])


def test_prompts_of_an_encoder_learn_alone() -> None:
    model = t5()
    model.add_adapter("a", config="prompt_tuning[prompt_length=4]")
    model.train_adapter("a")
    model(input_ids=IDS, labels=IDS).loss.backward()
    learned = [k for k, p in model.named_parameters() if p.grad is not None]
    assert len(learned) == 1 and "prompt_embedding" in learned[0]


def test_the_tables_name_families() -> None:
    known = {row.model_type for row in families()}
    assert {*NO_PROMPTS, *NO_PREFIXES, *MASKLESS} <= known


def test_a_member_of_a_union_without_a_place_is_an_error() -> None:
    config = phyla.FNetConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, intermediate_size=64, max_position_embeddings=32
    )
    model: Any = phyla.FNetModel(config)
    with pytest.raises(AdapterError, match="PrefixTuningConfig finds no place"):
        model.add_adapter("a", config="seq_bn|prefix_tuning")


class Cached:
    """Keys that a model from outside keeps, under the name by which public caches tell their length."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[1]


class Outside(nn.Module):
    """A causal model of another library: one layer, learned positions, public names of arguments."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(30, 16), nn.Embedding(40, 16)
        self.whole = Whole(self.table, self.places) if inside else None
        layer = nn.Module()
        layer.attn = nn.Module()
        for name in ("q", "k", "v", "o"):
            setattr(layer.attn, name, nn.Linear(16, 16))
        layer.up, layer.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.layers = nn.ModuleList([layer])

    def add_adapter(self, adapter_config: Any) -> None:
        """As some libraries have it: adapters.init takes its place."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, inputs_embeds: Any = None, labels: Any = None,
    ) -> Tensor:  # fmt: skip
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if self.whole is not None:
            x = self.whole(input_ids, past)
        else:
            x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
            at = torch.arange(past, past + x.shape[1])[None] if position_ids is None else position_ids
            x = x + self.places(at)
        layer: Any = self.layers[0]
        k = layer.attn.k(x)
        if past_key_values is not None:
            past_key_values.keys = k = k if past == 0 else torch.cat([past_key_values.keys, k], 1)
        seen = torch.ones(x.shape[1], k.shape[1], dtype=torch.bool).tril(past)[None]
        seen = seen if attention_mask is None else seen & attention_mask[:, None].bool()
        scores = (layer.attn.q(x) @ k.mT).masked_fill(~seen, -1e9).softmax(-1)
        x = x + layer.attn.o(scores @ k)
        x = x + layer.down(torch.relu(layer.up(x)))
        if labels is not None:
            return nn.functional.cross_entropy((x @ self.table.weight.T)[:, :-1].mT, labels[:, 1:])
        return x


class Whole(nn.Module):
    """An embedding that adds positions itself."""

    def __init__(self, table: nn.Module, places: nn.Module) -> None:
        super().__init__()
        self.table, self.places = table, places

    def forward(self, ids: Tensor, past: int) -> Tensor:
        return self.table(ids) + self.places(torch.arange(past, past + ids.shape[1]))


def outside(inside: bool = False) -> Any:
    torch.manual_seed(0)
    model = Outside(inside).eval()
    adapters.init(model, interface=AdapterModelInterface(
        ["prompt_tuning"], "whole" if inside else "table", "layers", "attn", None, "o", "up", "down",
        attn_q_proj="q", attn_k_proj="k", attn_v_proj="v",
    ))  # fmt: skip
    model.add_adapter("a", config="prompt_tuning[prompt_length=4]", set_active=True)
    return model


@torch.no_grad()
def test_prompts_of_models_from_outside() -> None:
    model, ids = outside(), IDS % 30
    prompts = model.adapters.get("a").parts[0].prompt_embedding.weight[None]
    out = model(ids)
    with adapters.AdapterSetup(None):
        wanted = model(inputs_embeds=torch.cat([prompts, model.table(ids)], 1))
        plain = model(ids)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)), wanted)
    torch.testing.assert_close(model(inputs_embeds=model.table(ids)), wanted)
    model.set_active_adapters(None)
    assert torch.equal(model(ids), plain)


@torch.no_grad()
def test_prompts_of_models_from_outside_with_padding_and_a_cache() -> None:
    model, ids = outside(), IDS % 30
    wanted = model(ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask, places = torch.tensor([[0] * 3 + [1] * 5]), torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
    found = model(padded, attention_mask=mask, position_ids=places)
    torch.testing.assert_close(found[:, -5:], wanted[:, -5:])
    cache = Cached()
    first = model(ids[:, :3], past_key_values=cache)
    more = {"attention_mask": torch.ones(1, 5), "position_ids": torch.tensor([[3, 4]])}
    rest = model(ids[:, 3:], past_key_values=cache, **more)
    torch.testing.assert_close(torch.cat([first, rest], 1), wanted)


def test_prompts_of_models_from_outside_learn(tmp_path: Path) -> None:
    model, ids = outside(), IDS % 30
    model.train_adapter("a")
    model(ids, labels=ids).backward()
    assert [k for k, p in model.named_parameters() if p.grad is not None] == [
        "adapters.entries._a.parts.0.prompt_embedding.weight"
    ]
    model.save_adapter(tmp_path, "a")
    other = outside()
    other.load_adapter(tmp_path, load_as="b", set_active=True)
    assert torch.equal(other(ids), model(ids))


def test_embeddings_from_outside_that_add_positions_themselves() -> None:
    model, ids = outside(True), IDS % 30
    out = model(ids, attention_mask=torch.ones_like(ids))
    assert out.shape[1] == 9 and torch.equal(out, model(ids))
    with pytest.raises(AdapterError, match="prefix_tuning"):
        model.add_adapter("b", config="prefix_tuning")


@pytest.mark.parametrize("method", METHODS[:2])
@torch.no_grad()
def test_positions_of_answers_and_ends_count_behind_prompts(method: str) -> None:
    model = small("Bert", {}, "ForQuestionAnswering")
    model.add_adapter("a", config=method, set_active=True)
    out = model(IDS, start_positions=torch.tensor([1]), end_positions=torch.tensor([3]))
    assert out.start_logits.shape == (1, 9)
    wanted = -(out.start_logits.log_softmax(-1)[0, 5] + out.end_logits.log_softmax(-1)[0, 7]) / 2
    torch.testing.assert_close(out.loss, wanted)
    text = small("CLIPText", {"eos_token_id": 7, "projection_dim": 32})
    text.add_adapter("a", config=method, set_active=True)
    out = text(IDS)
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 6])


@torch.no_grad()
def test_prompts_stand_ahead_of_images() -> None:
    golden = next(g for g in read_pack(GOLDENS / "llava.tar.xz") if g.name == "LlavaForConditionalGeneration")
    torch.manual_seed(0)
    config = phyla.LlavaConfig.from_dict(golden.facts["config"])
    model: Any = stirred(phyla.LlavaForConditionalGeneration(config))
    call, options = golden.inputs(), {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    plain = model.generate(**call, **options)
    model.add_adapter("a", config=METHODS[0], set_active=True)
    found = model.generate(**call, **options)
    assert not torch.equal(found, plain)
    ids, mask = call["input_ids"], call["attention_mask"]
    for _ in range(4):
        again = {**call, "input_ids": ids, "attention_mask": mask}
        scores = model(**again, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    assert torch.equal(found, ids)


def by_name(name: str, kind: str) -> Any:
    """A class as its golden has it, with other weights, and the golden's inputs."""
    golden = next(g for g in read_pack(GOLDENS / f"{name}.tar.xz") if g.name == kind)
    torch.manual_seed(0)
    config = phyla.AutoConfig.for_model(**golden.facts["config"])
    model = stirred(getattr(phyla, kind)(config))
    for parameter in model.parameters():
        if not parameter.any():  # a gate is shut at first
            nn.init.constant_(parameter, 0.5)
    return model, golden.inputs()


def chosen(call: dict[str, Any]) -> dict[str, Any]:
    mask = torch.zeros_like(call["input_ids"])
    mask[0, 2], mask[1, :2] = 1, 1
    return {"global_attention_mask": mask}


def images(call: dict[str, Any]) -> dict[str, Any]:
    return {"token_type_ids": torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]).repeat(2, 1)}


def looks(call: dict[str, Any]) -> dict[str, Any]:
    """Vectors of an image, of which the tokens of a row see some, and the first four none."""
    seen = (torch.arange(12)[:, None] + torch.arange(6)) % 3 > 0
    told = (torch.arange(12) > 3).float()
    mask = (~seen & (told[:, None] > 0)) * torch.finfo(torch.float32).min
    return {
        "cross_attention_states": torch.randn(2, 6, 32), "cross_attention_mask": mask.expand(2, 1, -1, -1),
        "full_text_row_masked_out_mask": told[:, None].expand(2, 1, -1, -1),
    }  # fmt: skip


def tongues(call: dict[str, Any]) -> dict[str, Any]:
    return {"lang_ids": torch.tensor([1, 0])}


def nothing(call: dict[str, Any]) -> dict[str, Any]:
    return {}


# class -> family, embedding, more of a call, and the axis of tokens of what names each of them
TOLD: dict[str, tuple[str, str, Any, dict[str, int]]] = {
    "LongformerModel": ("longformer", "embed", chosen, {"global_attention_mask": 1}),
    "LongformerForSequenceClassification": ("longformer", "embed", nothing, {}),
    "LEDModel": ("led", "encoder.embed", chosen, {"global_attention_mask": 1}),
    "BigBirdModel": ("big_bird", "embed", nothing, {}),
    "XmodModel": ("xmod", "embed", tongues, {}),
    "CanineModel": ("canine", "embed", nothing, {}),
    "Gemma3ForConditionalGeneration": ("gemma3", "text.embed", images, {"token_type_ids": 1}),
    "MllamaForCausalLM": (
        "mllama", "embed", looks, {"cross_attention_mask": 2, "full_text_row_masked_out_mask": 2},
    ),
    "Gemma4TextModel": ("gemma4_text", "embed", nothing, {}),
}  # fmt: skip


def result(out: Any) -> Tensor:
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("kind", TOLD)
@torch.no_grad()
def test_what_is_told_of_tokens_moves_with_them(kind: str, method: str) -> None:
    name, path, more, axes = TOLD[kind]
    model, call = by_name(name, kind)
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][1, -2:] = 0
    call |= (told := more(call))
    embed, skip = model.backbone.get_submodule(path), int("after_bos" in method)
    embedded: list[Tensor] = []
    handle = embed.register_forward_hook(lambda *a: embedded.append(a[-1]))
    model(**call)
    handle.remove()
    model.add_adapter("a", config=method, set_active=True)
    found = result(model(**call))
    bare = result(model(**{k: v for k, v in call.items() if k not in told}))
    assert not told or not torch.allclose(found, bare, atol=1e-3)
    prompts = model.adapters.get("a").parts[0].prompt_embedding.weight.expand(2, -1, -1)
    model.set_active_adapters(None)

    def longer(t: Tensor, axis: int, new: Tensor) -> Tensor:
        first, rest = t.split([skip, t.shape[axis] - skip], axis)
        return torch.cat([first, new, rest], axis)

    def extended(t: Tensor, axis: int, fill: int) -> Tensor:
        shape = list(t.shape)
        shape[axis] = prompts.shape[1]
        return longer(t, axis, t.new_full(shape, fill))

    vectors = longer(embedded[0], 1, prompts)
    call = {k: extended(v, axes[k], 0) if k in axes else v for k, v in call.items()}
    call["attention_mask"] = extended(call["attention_mask"], 1, 1)
    ids = call.pop("input_ids")
    if name == "gemma4_text":  # what it has of each token beside its vector, prompts do not have
        call["inputs_embeds"] = vectors
    else:
        call["input_ids"] = extended(ids, 1, 5)
        embed.register_forward_hook(lambda *a: vectors)
    torch.testing.assert_close(found, result(model(**call)), rtol=1e-4, atol=1e-5)
