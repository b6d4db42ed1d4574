"""Heads that write down what was said."""

from dataclasses import dataclass
from typing import ClassVar

from phyla.heads.lm import Seq2SeqLM
from phyla.outputs import ModelOutput, Seq2SeqLMOutput


@dataclass(frozen=True)
class SpeechToText(Seq2SeqLM):
    """Next-token scores of a decoder behind an encoder of sounds; labels are the decoder's targets."""

    task: ClassVar[str] = "speech-seq2seq"
    output: type[ModelOutput] = Seq2SeqLMOutput
