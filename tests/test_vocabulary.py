"""More or fewer rows of the token table: scores of known tokens stay, ties hold, files load."""

from pathlib import Path
from typing import Any

import pytest
import torch

import phyla
from phyla.heads.lm import TokenScores
from phyla.registry import table as families
from phyla.testing.goldens import read_pack

PACKS = Path(__file__).parent / "goldens"
KINDS = [
    ("bert", "BertForMaskedLM"), ("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForCausalLM"),
    ("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration"),
    ("marian", "MarianMTModel"), ("mllama", "MllamaForConditionalGeneration"),
    ("llava", "LlavaForConditionalGeneration"), ("albert", "AlbertForMaskedLM"),
    ("electra", "ElectraForMaskedLM"), ("xlnet", "XLNetLMHeadModel"), ("opt", "OPTForCausalLM"),
    ("whisper", "WhisperForConditionalGeneration"), ("deberta-v2", "DebertaV2ForMaskedLM"),
]  # fmt: skip


def load(model_type: str, name: str, folder: Path) -> tuple[Any, Any]:
    golden = next(g for g in read_pack(PACKS / f"{model_type}.tar.xz") if g.class_name == name)
    golden.write_checkpoint(folder)
    return getattr(phyla, name).from_pretrained(folder), golden


@pytest.mark.parametrize(("model_type", "name"), KINDS)
def test_more_rows_leave_the_scores_of_known_tokens(model_type: str, name: str, tmp_path: Path) -> None:
    model, golden = load(model_type, name, tmp_path)
    inputs, config = golden.inputs(), model.config.get_text_config(decoder=True)
    old = config.vocab_size
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        before = model(**inputs)[0]
        table = model.resize_token_embeddings(old + 5)
        after = model(**inputs)[0]
    assert table is model.get_input_embeddings() and config.vocab_size == old + 5
    assert after.shape[-1] == before.shape[-1] + 5
    torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=1e-5, atol=1e-5)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path / "grown")
    again = getattr(phyla, name).from_pretrained(tmp_path / "grown")
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs)[0], after)
        shrunk = model.resize_token_embeddings(old)
        assert len(shrunk.weight) == len(table.weight) and config.vocab_size == old
        torch.testing.assert_close(model(**inputs)[0], before, rtol=1e-5, atol=1e-5)


def tiny() -> Any:
    return phyla.LlamaForCausalLM(
        phyla.LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def test_new_rows_stand_near_the_mean_or_are_drawn() -> None:
    model = tiny()
    mean = model.get_input_embeddings().weight.mean(0)
    model.resize_token_embeddings(31, pad_to_multiple_of=8)
    rows = model.get_input_embeddings().weight
    assert len(rows) == 32 and model.get_output_embeddings().weight.shape == (32, 16)
    torch.testing.assert_close(rows[30:], mean.expand(2, -1), rtol=0, atol=1e-5)
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.get_input_embeddings().weight[32:].std() > 0.01


def test_gradients_reach_the_new_rows() -> None:
    model = tiny()
    model.resize_token_embeddings(33)
    ids = torch.tensor([[1, 32, 4]])
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[32].abs().sum() > 0
    assert model.get_output_embeddings().weight.grad[32].abs().sum() > 0


@pytest.mark.parametrize("count", [0, -3, 2.5, True])
def test_counts_that_are_none(count: Any) -> None:
    with pytest.raises(phyla.ArgumentError, match="new_num_tokens"):
        tiny().resize_token_embeddings(count)


def test_a_model_without_a_token_table_says_so() -> None:
    model = phyla.ViTModel(phyla.ViTConfig(num_hidden_layers=1))
    with pytest.raises(phyla.ArgumentError, match="ViTModel has no table of tokens"):
        model.resize_token_embeddings(9)


def test_tables_are_replaced_and_tied() -> None:
    model = tiny()
    new = torch.nn.Embedding(30, 16)
    model.set_input_embeddings(new)
    torch.testing.assert_close(model.get_input_embeddings().weight, new.weight)
    model.set_output_embeddings(torch.nn.Linear(16, 30, bias=False))
    with pytest.raises(phyla.ArgumentError, match="rows, 16"):
        model.set_input_embeddings(torch.nn.Embedding(30, 8))
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert model.get_memory_footprint(return_buffers=False) == parameters < model.get_memory_footprint()
    assert phyla.BertModel(phyla.BertConfig(num_hidden_layers=1)).get_output_embeddings() is None


def test_inputs_can_carry_gradients() -> None:
    model = tiny()
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(torch.tensor([[1, 2]])).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(torch.tensor([[1, 2]])).logits.requires_grad


def test_every_head_over_a_vocabulary_is_of_one_kind() -> None:
    """`resize_token_embeddings` changes `TokenScores`; a family with another kind of head would be missed."""
    scoring = {"causal-lm", "masked-lm", "seq2seq-lm", "image-text-to-text"}
    missed = []
    for row in families().values():
        pack = PACKS / f"{row.model_type}.tar.xz"
        names = [n for n, task in row.classes.items() if task in scoring] if pack.exists() else []
        for golden in read_pack(pack) if names else []:
            if golden.class_name in names:
                cls = getattr(phyla, golden.class_name)
                with torch.device("meta"):
                    model = cls(cls.config_class.from_dict(golden.facts["config"]))
                if not any(isinstance(m, TokenScores) for m in model.modules()):
                    missed.append(golden.class_name)
    assert sorted(missed) == OTHERS, missed


# They score codes of sound, and frames of sound: there is no table of tokens to change.
OTHERS = ["MusicgenForCausalLM", "Wav2Vec2ForMaskedLM"]
