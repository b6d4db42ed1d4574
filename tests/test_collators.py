"""Data collators, held against recorded behaviour, and what must hold of all of them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from processor_goldens import faults, goldens, write_files

import phyla
from phyla.errors import ArgumentError
from phyla.preprocessing.collators import masking, padded, permutation, plain


@pytest.mark.parametrize("name", sorted(goldens("collator")))
def test_goldens(name: str, tmp_path: Path) -> None:
    wrong = []
    for golden in goldens("collator")[name]:
        folder = tmp_path / golden.name
        folder.mkdir(parents=True)
        wrong += [f"{golden.name}: {fault}" for fault in faults(golden, folder)]
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of word pieces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    golden = next(one for one in goldens("collator")["DataCollatorForLanguageModeling"] if one.facts["files"])
    write_files(golden, folder)
    return phyla.AutoTokenizer.from_pretrained(folder)


def test_every_collator_is_public() -> None:
    for module in (masking, padded, permutation, plain):
        for name in vars(module):
            if "DataCollator" in name:
                assert getattr(phyla, name) is getattr(module, name)


@pytest.fixture
def examples(tokenizer) -> list[dict]:
    texts = ["the quick brown fox jumps", "hello", "a cat sits on the mat near the water"]
    return [dict(tokenizer(text)) for text in texts]


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("words", [False, True])
def test_masking_hides_only_text(kind: str, words: bool, tokenizer, examples) -> None:
    cls = phyla.DataCollatorForWholeWordMask if words else phyla.DataCollatorForLanguageModeling
    collate = cls(tokenizer, mlm_probability=0.5, return_tensors=kind)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    batch = collate(examples)
    plain_ids = tokenizer.pad({"input_ids": [one["input_ids"] for one in examples]}, return_tensors=kind)
    ids, labels = np.asarray(plain_ids["input_ids"]), np.asarray(batch["labels"])
    hidden = labels != -100
    assert hidden.any() and (labels[hidden] == ids[hidden]).all()
    assert (np.asarray(batch["input_ids"])[~hidden] == ids[~hidden]).all()
    assert not np.isin(ids[hidden], [tokenizer.pad_token_id, tokenizer.cls_token_id]).any()


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_a_seed_repeats(kind: str, tokenizer, examples) -> None:
    def drawn(seed: int) -> np.ndarray:
        collate = phyla.DataCollatorForLanguageModeling(tokenizer, return_tensors=kind, seed=seed)
        return np.concatenate([np.asarray(collate(examples)["input_ids"]).ravel() for _ in range(3)])

    assert (drawn(5) == drawn(5)).all()
    assert (drawn(5) != drawn(6)).any()


def test_sentence_order(tokenizer, examples) -> None:
    with pytest.warns(FutureWarning):
        collate = phyla.DataCollatorForSOP(tokenizer)
    rows = [
        {
            "input_ids": torch.tensor(one["input_ids"]),
            "token_type_ids": torch.tensor(one["token_type_ids"]),
            "sentence_order_label": torch.tensor(i % 2),
        }
        for i, one in enumerate(examples)
    ]
    batch = collate(rows)
    assert batch["sentence_order_label"].tolist() == [0, 1, 0]
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == batch["attention_mask"].shape


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_permutations_hide_targets_from_themselves(kind: str, tokenizer) -> None:
    rows = [{"input_ids": list(range(10, 34))}, {"input_ids": list(range(20, 44))}]
    batch = phyla.DataCollatorForPermutationLanguageModeling(tokenizer, return_tensors=kind)(rows)
    hidden, labels = np.asarray(batch["perm_mask"]), np.asarray(batch["labels"])
    for i, j in zip(*np.nonzero(labels != -100), strict=True):
        assert hidden[i, j, j] == 1 and np.asarray(batch["input_ids"])[i, j] == tokenizer.mask_token_id
    assert (np.asarray(batch["target_mapping"]) == np.eye(24)).all()
    odd = [{"input_ids": [10, 11, 12]}]
    with pytest.raises(ArgumentError, match="even"):
        phyla.DataCollatorForPermutationLanguageModeling(tokenizer)(odd)


def test_examples_stay_as_they_are(tokenizer) -> None:
    rows = [{"input_ids": [[10, 11], [12]], "label": 1}]
    phyla.DataCollatorForMultipleChoice(tokenizer)(rows)
    assert rows == [{"input_ids": [[10, 11], [12]], "label": 1}]


def test_decoder_inputs_come_from_the_model(tokenizer) -> None:
    class Shifts:
        def prepare_decoder_input_ids_from_labels(self, labels):
            return labels.roll(1, dims=1)

    rows = [{"input_ids": [10, 11], "labels": [12, 13]}, {"input_ids": [10], "labels": [14]}]
    batch = phyla.DataCollatorForSeq2Seq(tokenizer, model=Shifts())(rows)
    assert batch["decoder_input_ids"].tolist() == [[13, 12], [-100, 14]]


def test_objects_with_attributes_are_examples() -> None:
    class Example:
        def __init__(self, label):
            self.x, self.label = [1, 2], label

    batch = phyla.default_data_collator([Example(0.5), Example(1.5)])
    assert batch["labels"].dtype == torch.float and batch["x"].shape == (2, 2)


def test_errors(tokenizer) -> None:
    with pytest.raises(ArgumentError, match="return_tensors"):
        phyla.default_data_collator([{"x": 1}], return_tensors="tf")
    for bad in ({"mlm_probability": 2.0}, {"mask_replace_prob": 0.8, "random_replace_prob": 0.5}):
        with pytest.raises(ArgumentError):
            phyla.DataCollatorForLanguageModeling(tokenizer, **bad)
