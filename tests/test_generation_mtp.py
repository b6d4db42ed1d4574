"""Drafts that read the model's states: heads that guess further tokens, held against the reference."""

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import phyla
from phyla import generation
from phyla.checkpoints.ahead import heads_ahead
from phyla.errors import ArgumentError, GenerationError, MissingWeightsError
from phyla.generation.ahead import HeadsDraft
from phyla.testing.goldens import read_pack
from phyla.testing.seeded import seeded_weight

GOLDENS = Path(__file__).parent / "goldens"
KINDS = {"deepseek_v3": "DeepseekV3ForCausalLM", "glm4_moe": "Glm4MoeForCausalLM"}


def checkpoint(folder: Path, family: str, depths: int, words: int = 5, copies: bool = True) -> dict:
    """A public checkpoint with heads behind the last layer; the tensors written."""
    golden = next(g for g in read_pack(GOLDENS / f"{family}.tar.xz") if g.name == KINDS[family])
    config = {**golden.facts["config"], "vocab_size": words, "num_nextn_predict_layers": depths}
    config |= {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    shapes = {n: [words if d == 99 else d for d in shape] for n, shape, _ in golden.facts["tensors"]}
    count, width = config["num_hidden_layers"], config["hidden_size"]
    last = f"model.layers.{count - 1}."
    for number in range(count, count + depths):
        own = f"model.layers.{number}."
        shapes |= {own + n.removeprefix(last): s for n, s in list(shapes.items()) if n.startswith(last)}
        shapes |= {own + f"{n}.weight": [width] for n in ("enorm", "hnorm", "shared_head.norm")}
        shapes[own + "eh_proj.weight"] = [width, 2 * width]
    tensors = {n: torch.from_numpy(seeded_weight(n, s)).reshape(s) for n, s in shapes.items()}
    tensors["lm_head.weight"] *= 3
    for number in range(count, count + depths) if copies else ():
        tensors[f"model.layers.{number}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"model.layers.{number}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


RECORDED = {
    "mtp-1": {"cls": "DeepseekV3ForCausalLM", "depths": 1, "asked": {"use_mtp": True}},
    "mtp-3": {"cls": "Glm4MoeForCausalLM", "depths": 3, "asked": {"use_mtp": True}},
    "dflash-window": {
        "cls": "LlamaForCausalLM", "draft": "MuseGlimmerAssistantModel",
        "asked": {"speculation_type": "dflash"},
        "settings": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    },
    "one-place": {"cls": "Gemma4ForCausalLM", "draft": "Gemma4AssistantForCausalLM", "asked": {}},
    "one-place-groups": {
        "cls": "Gemma4ForCausalLM", "draft": "Gemma4AssistantForCausalLM", "asked": {},
        "settings": {"use_ordered_embeddings": True, "num_centroids": 4, "centroid_intermediate_top_k": 2},
    },
}  # fmt: skip
# What a draft of Gemma 4 differs in from its model: no vectors of layers, and no keys of its own.
GUESSER = {
    "model_type": "gemma4_text", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"1": {"head_dim": 16}},
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
    "use_double_wide_mlp": False,
}  # fmt: skip
for _case in RECORDED.values():
    _case |= {"prompt": [1, 4, 2, 2, 3, 1, 4], "new": 16}


def plain_checkpoint(folder: Path, family: str, cls: str, words: int | None = None, **config) -> None:
    """A checkpoint like a golden's, with some settings changed and with fewer words."""
    golden = next(g for g in read_pack(GOLDENS / f"{family}.tar.xz") if g.name == cls)
    old = golden.facts["config"].get("vocab_size")
    tensors = {}
    for name, shape, _ in golden.facts["tensors"]:
        shape = [words if words and d == old and ("embed" in name or "lm_head" in name) else d for d in shape]
        tensors[name] = torch.from_numpy(seeded_weight(name, shape)).reshape(shape)
    if "lm_head.weight" in tensors:
        tensors["lm_head.weight"] *= 3
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0} if words else {}
    (folder / "config.json").write_text(json.dumps({**golden.facts["config"], **sizes, **config}))


def write_gemma(folder: Path, cls: str, config: dict) -> None:
    """A checkpoint of Gemma 4 or of its draft, whose factors of layers stand near 1."""
    folder.mkdir(exist_ok=True)
    made = getattr(phyla, cls)(getattr(phyla, cls).config_class.from_dict(dict(config))).state_dict_public()
    tensors = {n: torch.from_numpy(seeded_weight(n, t.shape)).reshape(t.shape) for n, t in made.items()}
    for name, tensor in tensors.items():
        tensors[name] = 1 + tensor if name.endswith("layer_scalar") else tensor
    tensors["model.embed_tokens.weight"] *= 3
    if "masked_embedding.token_ordering" in made:
        tensors["masked_embedding.token_ordering"] = torch.tensor([3, 1, 0, 7, 5, 2, 6, 4])
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [cls]}))


def write_case(folder: Path, case: dict) -> dict[str, Path]:
    """The checkpoints of a recorded case: of the model, and of its draft where it has one."""
    paths = {"model": folder / "model"}
    if case["cls"].startswith("Gemma4"):
        golden = next(g for g in read_pack(GOLDENS / "gemma4_text.tar.xz") if g.name == case["cls"])
        sizes = {"vocab_size": 8, "vocab_size_per_layer_input": 8, "eos_token_id": None, "sliding_window": 40}
        main = {**golden.facts["config"], **sizes}
        write_gemma(paths["model"], case["cls"], main)
        paths["draft"] = folder / "draft"
        more = {"text_config": {**main, **GUESSER}, "backbone_hidden_size": 32, **case.get("settings", {})}
        write_gemma(paths["draft"], case["draft"], {"model_type": "gemma4_assistant", **more})
        note = {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant"}
        (paths["draft"] / "generation_config.json").write_text(json.dumps(note))
        return paths
    if "depths" in case:
        family = next(f for f, cls in KINDS.items() if cls == case["cls"])
        checkpoint(paths["model"], family, case["depths"])
    else:
        plain_checkpoint(paths["model"], "llama", case["cls"], 5)
    if "draft" in case:
        paths["draft"] = folder / "draft"
        settings = {"target_layer_ids": [0, 1], "mask_token_id": 4, **case["settings"]}
        plain_checkpoint(paths["draft"], "muse_glimmer_assistant", case["draft"], **settings)
    return paths


@pytest.mark.parametrize("name", RECORDED)
@torch.no_grad()
def test_candidates_are_the_references(tmp_path, name):
    case, paths = RECORDED[name], write_case(tmp_path, RECORDED[name])
    golden = json.loads((GOLDENS / "generation_drafts.json").read_text())[name]
    model = getattr(phyla, case["cls"]).from_pretrained(paths["model"])
    config, asked = phyla.GenerationConfig(pad_token_id=0), dict(case["asked"])
    if "draft" in case:
        asked["assistant_model"] = getattr(phyla, case["draft"]).from_pretrained(paths["draft"])
    if case["cls"].startswith("Gemma4"):
        look, config = (
            model.backbone.embed.vectors,
            phyla.GenerationConfig(num_assistant_tokens=3),
        )
        source = generation.SinglePositionMultiTokenCandidateGenerator(asked["assistant_model"], look, config)
    elif "draft" in case:
        tables = model.get_input_embeddings(), model.get_output_embeddings()
        source = generation.DFlashTokenCandidateGenerator(asked["assistant_model"], *tables, config)
    else:
        source = generation.MTPCandidateGenerator(model, config)
    prompt, tokens = torch.tensor([case["prompt"]]), torch.tensor([golden["tokens"]])
    assert torch.equal(model.generate(prompt, max_new_tokens=case["new"], **asked), tokens)
    assert source.get_candidates(prompt, is_first_iteration=True)[0] is prompt
    fed, start = prompt, 0
    for length, wanted, scores in golden["steps"]:
        out = model(fed, output_hidden_states=True)
        states = SimpleNamespace(hidden_states=[h[:, start:] for h in out.hidden_states])
        if case["cls"].startswith("Gemma4"):
            slots = model(tokens[:, : length - 1], use_cache=True).past_key_values.slots
            kept = {"sliding_attention": 2, "full_attention": 3}
            states.shared_kv_states = {
                kind: slots[model.backbone.layers[layer].attn.slot].read() for kind, layer in kept.items()
            }
        found, chances = source.get_candidates(
            tokens[:, :length], model_outputs=states, n_last_matches=length - start - 2 if start else 0
        )
        found, chances = found[:, : length + len(wanted)], chances[:, : len(wanted)]  # no more at the end
        assert found[0, length:].tolist() == wanted
        torch.testing.assert_close(chances[0], torch.tensor(scores), atol=1e-4, rtol=1e-4)
        fed, start = found, length - 1


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(family, depths) -> a model read from a checkpoint of its own."""
    made = {}

    def get(family: str = "deepseek_v3", depths: int = 2):
        if (family, depths) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{depths}")
            checkpoint(folder, family, depths)
            made[family, depths] = getattr(phyla, KINDS[family]).from_pretrained(folder)
        return made[family, depths]

    return get


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A model, and what asks for its draft that fills blanks."""
    paths = write_case(tmp_path_factory.mktemp("filled"), RECORDED["dflash-window"])
    draft = phyla.MuseGlimmerAssistantModel.from_pretrained(paths["draft"])
    asked = {"assistant_model": draft, "speculation_type": "dflash"}
    return phyla.LlamaForCausalLM.from_pretrained(paths["model"]), asked


@pytest.fixture(scope="module")
def guessed(tmp_path_factory):
    """A model with short windows, and what asks for its draft that guesses from one place."""
    folder = tmp_path_factory.mktemp("guessed")
    paths = write_case(folder, RECORDED["one-place"])
    draft = phyla.Gemma4AssistantForCausalLM.from_pretrained(paths["draft"])
    return phyla.Gemma4ForCausalLM.from_pretrained(paths["model"], sliding_window=4), {
        "assistant_model": draft
    }


def batch(seed: int, lengths: tuple[int, ...], side: str = "left"):
    torch.manual_seed(seed)
    width = max(lengths)
    rows = [(torch.randint(1, 5, (n,)), torch.zeros(width - n, dtype=torch.long)) for n in lengths]
    ids = torch.stack([torch.cat((pad, row) if side == "left" else (row, pad)) for row, pad in rows])
    real = [(torch.ones(n, dtype=torch.long), torch.zeros(width - n, dtype=torch.long)) for n in lengths]
    mask = torch.stack([torch.cat((pad, one) if side == "left" else (one, pad)) for one, pad in real])
    return {"input_ids": ids, "attention_mask": mask}


CASES = [
    ("deepseek_v3", 1, "left"),
    ("deepseek_v3", 3, "right"),
    ("glm4_moe", 2, "left"),
    ("blanks", 0, "left"),
]


@pytest.mark.parametrize(("family", "depths", "side"), CASES)
@pytest.mark.parametrize(
    "more", [{}, {"eos_token_id": 3}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3}]
)
def test_greedy_tokens_are_the_models_own(models, filled, guessed, family, depths, side, more):
    others = {"blanks": filled, "place": guessed}
    model, way = others[family] if family in others else (models(family, depths), {"use_mtp": True})
    asked = {**batch(depths, (4, 9, 1, 6), side), "max_new_tokens": 17, "pad_token_id": 0, **more}
    assert torch.equal(model.generate(**asked, **way), model.generate(**asked))


def test_heads_save_steps(models):
    model, calls = models("deepseek_v3", 3), []
    hook = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    for word in range(1, 5):
        model.generate(torch.tensor([[word, 2, 3]]), max_new_tokens=30, use_mtp=True)
    hook.remove()
    assert len(calls) < 4 * 26


def guesses(monkeypatch, found, first=0):
    """Keep what is guessed: (row, its text) -> tokens; `first`: the number of the first row."""
    whole = HeadsDraft.propose

    def noted(self, ids, lengths, going, most):
        made = whole(self, ids, lengths, going, most)
        for row, on in enumerate(going):
            if on and made is not None and made.counts[row]:
                text = ids[row, int(self.lead[row]) : lengths[row]].tolist()
                found[(first + row, *text)] = made.ids[row, : made.counts[row]].tolist()
        return made

    monkeypatch.setattr(HeadsDraft, "propose", noted)


def test_a_row_is_guessed_the_same_in_any_batch(models, monkeypatch):
    model, inputs, together, alone = models("glm4_moe", 2), batch(7, (3, 8, 5)), {}, {}
    guesses(monkeypatch, together)
    model.generate(**inputs, max_new_tokens=14, use_mtp=True)
    for number, (row, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        monkeypatch.undo()
        guesses(monkeypatch, alone, number)
        model.generate(row[mask > 0][None], max_new_tokens=14, use_mtp=True)
    assert len(alone) > 12 and together == alone


def test_a_prompt_may_come_in_chunks_and_behind_a_cache(models):
    model, ids = models("deepseek_v3", 2), torch.tensor([[1, 4, 2, 2, 3, 1, 4, 4, 2, 1]])
    want = model.generate(ids, max_new_tokens=12)
    assert torch.equal(model.generate(ids, max_new_tokens=12, use_mtp=True, prefill_chunk_size=3), want)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    assert torch.equal(model.generate(ids, max_new_tokens=12, use_mtp=True, past_key_values=cache), want)


@pytest.mark.parametrize("kind", ["heads", "blanks"])
def test_drawn_tokens_have_the_models_chances(models, filled, kind):
    model, way = filled if kind == "blanks" else (models("deepseek_v3", 2), {"use_mtp": True})
    rows = 4000
    prompt = torch.tensor([[1, 3, 2]])
    asked = {"do_sample": True, "top_k": 0, "temperature": 1.3, "max_new_tokens": 3}
    drawn = model.generate(prompt, **asked, **way, num_return_sequences=rows, seed=5)
    found = Counter(map(tuple, drawn[:, 3:].tolist()))
    texts = torch.tensor([(*prompt[0].tolist(), *t) for t in itertools.product(range(5), repeat=3)])
    with torch.no_grad():
        chances = (model(texts).logits / 1.3).softmax(-1)
    exact = torch.stack([chances[:, 2 + i].gather(1, texts[:, 3 + i, None])[:, 0] for i in range(3)]).prod(0)
    observed = torch.tensor([found[tuple(t[3:].tolist())] / rows for t in texts])
    assert float((observed - exact).abs().sum()) / 2 < 1.3 * (len(texts) / (2 * torch.pi * rows)) ** 0.5


def test_a_drawn_row_with_a_seed_does_not_depend_on_the_others(models):
    model, inputs = models("deepseek_v3", 3), batch(2, (5, 5, 5))
    asked = {"do_sample": True, "max_new_tokens": 12, "use_mtp": True}
    together = model.generate(**inputs, **asked, seed=[4, 9, 1])
    alone = [model.generate(inputs["input_ids"][i, None], **asked, seed=[s]) for i, s in enumerate((4, 9, 1))]
    assert torch.equal(together, torch.cat(alone))


def test_scores_and_streamers(models):
    model, ids, heard = models("deepseek_v3", 3), torch.tensor([[1, 2, 3, 4, 1]]), []
    asked = {"max_new_tokens": 15, "return_dict_in_generate": True, "output_scores": True}
    want = model.generate(ids, **asked)
    streamer = SimpleNamespace(put=lambda x: heard.extend(x.flatten().tolist()), end=lambda: None)
    found = model.generate(ids, **asked, use_mtp=True, streamer=streamer)
    assert heard == found.sequences[0].tolist() == want.sequences[0].tolist()
    torch.testing.assert_close(torch.stack(found.scores), torch.stack(want.scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "blanks"])
def test_the_engine_takes_them(models, filled, kind):
    model, way = filled if kind == "blanks" else (models(kind, 2), {"use_mtp": True})
    ids = [1, 2, 3, 4, 1]
    with phyla.Engine(model, max_batch_tokens=64, max_requests=4) as engine:
        handle = engine.submit(ids, max_new_tokens=9, **way)
        plain = engine.submit(ids, max_new_tokens=9)
        assert (
            list(handle)
            == list(plain)
            == model.generate(torch.tensor([ids]), max_new_tokens=9)[0, 5:].tolist()
        )


def test_files_keep_the_heads(tmp_path, caplog):
    tensors = checkpoint(tmp_path / "one", "deepseek_v3", 2)
    with caplog.at_level(logging.WARNING, logger="phyla"):
        model, info = phyla.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "one", output_loading_info=True)
        model.save_pretrained(tmp_path / "two")
        heads_ahead(model)
        model.save_pretrained(tmp_path / "three", max_shard_size="40KB")
    assert not caplog.records and not info["unexpected_keys"] and not info["missing_keys"]
    assert not any("ahead" in name for name, _ in model.named_parameters())
    for folder in ("two", "three"):
        saved = {}
        for file in (tmp_path / folder).glob("*.safetensors"):
            saved |= safetensors.torch.load_file(file)
        assert saved.keys() == tensors.keys()
        assert all(torch.equal(saved[name], tensors[name]) for name in tensors)
    again = phyla.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "three", torch_dtype=torch.bfloat16)
    assert {p.dtype for p in heads_ahead(again).parameters()} == {torch.bfloat16}
    assert len(list((tmp_path / "three").glob("*.safetensors"))) > 2
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(
        again.generate(ids, use_mtp=True, max_new_tokens=5), again.generate(ids, max_new_tokens=5)
    )
    again.float()
    assert {p.dtype for p in heads_ahead(again).parameters()} == {torch.float32}


def test_a_moved_checkpoint_is_said_to_be_gone(tmp_path, caplog):
    checkpoint(tmp_path / "one", "glm4_moe", 1)
    model = phyla.Glm4MoeForCausalLM.from_pretrained(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="phyla"):
        model.save_pretrained(tmp_path / "two")
    assert "without the heads" in caplog.text
    saved = safetensors.torch.load_file(tmp_path / "two" / "model.safetensors")
    assert saved and not any("layers.3." in name for name in saved)


def test_errors_say_what_is_missing(tmp_path, models):
    ids = torch.tensor([[1, 2, 3]])
    checkpoint(tmp_path / "none", "glm4_moe", 0)
    config = json.loads((tmp_path / "none" / "config.json").read_text())
    (tmp_path / "none" / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    bare = phyla.Glm4MoeForCausalLM.from_pretrained(tmp_path / "none")
    with pytest.raises(MissingWeightsError, match="must hold the heads"):
        bare.generate(ids, use_mtp=True)
    with pytest.raises(MissingWeightsError, match="from_pretrained"):
        phyla.Glm4MoeForCausalLM(bare.config).generate(ids, use_mtp=True)
    bare.config.num_mtp_layers = 0
    with pytest.raises(ArgumentError, match="num_nextn_predict_layers"):
        bare.generate(ids, use_mtp=True)
    llama = phyla.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ArgumentError, match="must have heads"):
        phyla.LlamaForCausalLM(llama).generate(ids, use_mtp=True)
    with pytest.raises(GenerationError, match="beam"):
        models().generate(ids, use_mtp=True, num_beams=2)
    with pytest.raises(GenerationError, match="use_mtp must be True or False"):
        phyla.GenerationConfig(use_mtp=3)


def test_drafts_of_blanks_must_fit(filled, models):
    ids, (model, asked) = torch.tensor([[1, 2, 3]]), filled
    with pytest.raises(ArgumentError, match="fills blocks"):
        model.generate(ids, assistant_model=model, speculation_type="dflash")
    with pytest.raises(ArgumentError, match="one stack"):
        narrow = phyla.LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        phyla.LlamaForCausalLM(narrow).generate(ids, **asked)
    with pytest.raises(GenerationError, match="dflash"):
        phyla.GenerationConfig(speculation_type="eagle")
    with pytest.raises(ArgumentError, match="context_hidden_states"):
        asked["assistant_model"](
            noise_embeds=torch.zeros(1, 4, 32), context_hidden_states=torch.zeros(1, 4, 7)
        )
    assert model.generate(ids, speculation_type="dflash").shape == (1, 23)  # without a draft: plain


def test_drafts_from_one_place_must_fit(filled, guessed):
    ids, (model, asked) = torch.tensor([[1, 2, 3]]), guessed
    with pytest.raises(ArgumentError, match="does not keep"):
        filled[0].generate(ids, **asked)
    with pytest.raises(ArgumentError, match="shared_kv_states"):
        asked["assistant_model"](inputs_embeds=torch.zeros(1, 1, 64))
    drawn = model.generate(ids, **asked, do_sample=True, seed=3, max_new_tokens=9)
    assert torch.equal(drawn, model.generate(ids, **asked, do_sample=True, seed=3, max_new_tokens=9))
