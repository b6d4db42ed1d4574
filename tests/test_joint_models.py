"""Models made of whole models: joining checkpoints, generating, retrieving passages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import phyla
from phyla.errors import ArgumentError, ConfigError, UnsafeFormatError
from phyla.families.rag import ExactIndex
from phyla.testing.goldens import read_pack

GOLDENS = Path(__file__).with_name("goldens")
CONTEXT = torch.tensor(
    [[5, 17, 33, 41, 8, 2, 1, 1], [9, 61, 77, 12, 45, 30, 21, 2], [15, 7, 3, 4, 48, 2, 1, 1],
     [9, 6, 7, 12, 4, 30, 2, 1]]
)  # fmt: skip
FOUND: dict[str, Any] = {
    "context_input_ids": CONTEXT,
    "context_attention_mask": (CONTEXT != 1).long(),
    "doc_scores": torch.tensor([[0.5, -1.25], [1.5, 0.25]]),
}


def checkpoint(model_type: str, name: str, folder: Path) -> Path:
    golden = next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.name == name)
    folder.mkdir(exist_ok=True)
    golden.write_checkpoint(folder)
    return folder


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    mine, theirs = left.state_dict(), right.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [(("vit", "ViTModel"), ("gpt2", "GPT2LMHeadModel")), (("vit", "ViTModel"), ("bert", "BertForMaskedLM"))],
)
def test_an_image_encoder_joins_a_decoder(encoder: tuple, decoder: tuple, tmp_path: Path) -> None:
    sources = checkpoint(*encoder, tmp_path / "a"), checkpoint(*decoder, tmp_path / "b")
    model = phyla.VisionEncoderDecoderModel.from_encoder_decoder_pretrained(*sources)
    assert model.config.decoder.is_decoder and model.config.decoder.add_cross_attention
    alone = phyla.AutoModel.from_pretrained(sources[0])
    assert same(alone, model.get_encoder())
    model.save_pretrained(tmp_path / "c")
    again = phyla.AutoModelForVision2Seq.from_pretrained(tmp_path / "c")
    assert same(model, again)
    size = model.config.encoder.image_size
    pixels = torch.randn(2, 3, size, size)
    settings = {"max_new_tokens": 5, "decoder_start_token_id": 1, "pad_token_id": 0}
    for beams in (1, 3):
        wanted = model.generate(pixels, num_beams=beams, **settings)
        assert torch.equal(again.generate(pixels, num_beams=beams, **settings), wanted)
        uncached = model.generate(pixels, num_beams=beams, use_cache=False, **settings)
        assert torch.equal(uncached, wanted)


def test_sides_can_be_tied(tmp_path: Path) -> None:
    sources = [checkpoint("bert", name, tmp_path / name) for name in ("BertModel", "BertLMHeadModel")]
    apart = phyla.EncoderDecoderModel.from_encoder_decoder_pretrained(*sources)
    tied = phyla.EncoderDecoderModel.from_encoder_decoder_pretrained(*sources, tie_encoder_decoder=True)
    assert tied.num_parameters() < 0.7 * apart.num_parameters()
    tied.save_pretrained(tmp_path / "c")
    assert same(phyla.EncoderDecoderModel.from_pretrained(tmp_path / "c"), tied)


def test_labels_make_decoder_inputs(tmp_path: Path) -> None:
    model = phyla.EncoderDecoderModel.from_pretrained(
        checkpoint("encoder-decoder", "EncoderDecoderModel", tmp_path)
    )
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, -100]])
    given = model(input_ids=ids, decoder_input_ids=torch.tensor([[1, 8, 9]]), labels=labels)
    assert torch.allclose(model(input_ids=ids, labels=labels).loss, given.loss)
    model.config.decoder_start_token_id = None
    with pytest.raises(ArgumentError, match="decoder_start_token_id"):
        model(input_ids=ids, labels=labels)


def test_a_joint_model_needs_both_parts() -> None:
    with pytest.raises(ArgumentError, match="decoder"):
        phyla.EncoderDecoderModel()


def test_a_decoder_must_attend(tmp_path: Path) -> None:
    sources = (
        checkpoint("bert", "BertModel", tmp_path / "a"),
        checkpoint("llama", "LlamaForCausalLM", tmp_path / "b"),
    )
    with pytest.raises(ConfigError, match="cross-attention"):
        phyla.EncoderDecoderModel.from_encoder_decoder_pretrained(*sources)
    encoder = phyla.AutoModel.from_pretrained(sources[0])
    decoder = phyla.BertLMHeadModel.from_pretrained(sources[0], is_decoder=True)
    with pytest.raises(ConfigError, match="BertLMHeadModel"):
        phyla.EncoderDecoderModel(encoder=encoder, decoder=decoder)


# Recorded with the reference (4.50.3) from the same weights.
TOKEN = {
    1: [[2, 11, 11, *[3] * 16, 2], [2, *[34] * 18, 2]],
    3: [[2, 34, 34, 34, 11, *[3] * 14, 2], [2, 34, 34, 67, *[44] * 15, 2]],
}
SEQUENCE = {
    (1, 9, None): [[2, *[34] * 7, 2], [2, *[34] * 7, 2]],
    (3, 12, False): [
        [2, *[34] * 10, 2], [2, *[34] * 7, 67, 34, 34, 2], [2, *[44] * 10, 2], [2, *[34] * 10, 2],
    ],
}  # fmt: skip


@pytest.mark.parametrize("beams", TOKEN)
def test_tokens_from_all_passages(beams: int, tmp_path: Path) -> None:
    model = phyla.RagTokenForGeneration.from_pretrained(checkpoint("rag", "RagTokenForGeneration", tmp_path))
    assert model.generate(**FOUND, num_beams=beams).tolist() == TOKEN[beams]


@pytest.mark.parametrize(("beams", "length", "single"), SEQUENCE)
def test_texts_from_each_passage(beams: int, length: int, single: bool | None, tmp_path: Path) -> None:
    source = checkpoint("rag", "RagSequenceForGeneration", tmp_path)
    model = phyla.RagSequenceForGeneration.from_pretrained(source)
    found = model.generate(
        **FOUND, num_beams=beams, max_length=length, do_deduplication=single,
        num_return_sequences=1 if beams == 1 else 2,
    )  # fmt: skip
    assert found.tolist() == SEQUENCE[beams, length, single]


class Words:
    """A tokenizer of one id a word."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in ids]

    def __call__(self, texts: list[str], others: Any = None, max_length: int = 9, **options: Any) -> dict:
        self.texts = texts
        rows = [[sum(map(ord, w)) % 90 + 5 for w in t.split()][:max_length] for t in texts]
        ids = torch.tensor([r + [1] * (max_length - len(r)) for r in rows])
        return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def index(width: int = 32) -> ExactIndex:
    vectors = np.random.default_rng(0).normal(size=(6, width))
    return ExactIndex(vectors, [f'"t{i}"' for i in range(6)], [f"some  text {i}" for i in range(6)])


def test_the_nearest_passages_are_found() -> None:
    found = index()
    ids, vectors = found.get_top_docs(found.vectors[[4, 1]] * 3, 2)
    assert ids[:, 0].tolist() == [4, 1]
    assert np.array_equal(vectors[0, 0], found.vectors[4])
    assert found.get_doc_dicts(ids)[0]["title"][0] == '"t4"'
    with pytest.raises(ArgumentError, match="at most the 6"):
        found.get_top_docs(found.vectors, 7)


@pytest.mark.parametrize("name", ["RagTokenForGeneration", "RagSequenceForGeneration"])
def test_a_question_alone_is_enough_with_a_retriever(name: str, tmp_path: Path) -> None:
    source = checkpoint("rag", name, tmp_path)
    config = phyla.RagConfig.from_pretrained(source)
    config.max_combined_length = 12
    reader = Words()
    retriever = phyla.RagRetriever(config, Words(), reader, index=index())
    model = getattr(phyla, name).from_pretrained(source, retriever=retriever)
    ids = torch.tensor([[5, 9, 13], [7, 8, 9]])
    out = model(input_ids=ids, labels=torch.tensor([[0, 7, 2], [0, 9, 2]]), output_retrieved=True)
    assert out.retrieved_doc_ids.shape == out.doc_scores.shape == (2, 2)
    assert (
        reader.texts[0]
        == f"t{out.retrieved_doc_ids[0, 0]} / some text {out.retrieved_doc_ids[0, 0]} // 5 9 13"
    )
    best = model.question_encoder(ids)[0].detach().numpy() @ retriever.index.vectors.T
    assert out.retrieved_doc_ids[:, 0].tolist() == best.argmax(1).tolist()
    out.loss.sum().backward()
    assert model.question_encoder.backbone.embed.tokens.weight.grad.abs().sum() > 0
    found = retriever(ids, model.question_encoder(ids)[0].detach().numpy(), return_tensors="pt")
    scores = torch.einsum(
        "be,bne->bn", model.question_encoder(ids)[0].double(), found["retrieved_doc_embeds"].double()
    )
    given = model.generate(
        context_input_ids=found["context_input_ids"], context_attention_mask=found["context_attention_mask"],
        doc_scores=scores.float(), num_beams=2, max_length=8,
    )  # fmt: skip
    assert torch.equal(model.generate(ids, num_beams=2, max_length=8), given)


def test_what_retrieval_needs_is_said(tmp_path: Path) -> None:
    model = phyla.RagModel.from_pretrained(checkpoint("rag", "RagModel", tmp_path))
    with pytest.raises(ArgumentError, match="set_retriever"):
        model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[2]]))
    config = model.config
    config.index_name = "legacy"
    with pytest.raises(UnsafeFormatError, match="pickle"):
        phyla.RagRetriever(config, None, None)
