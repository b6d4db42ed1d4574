"""Heads of models whose parts bring heads of their own: they add none."""

from dataclasses import dataclass
from typing import ClassVar

from phyla.heads.base import Head


@dataclass(frozen=True)
class JointSeq2Seq(Head):
    """Text to text."""

    task: ClassVar[str] = "seq2seq-lm"


@dataclass(frozen=True)
class JointImageToText(Head):
    """Image to text."""

    task: ClassVar[str] = "image-text-to-text"


@dataclass(frozen=True)
class JointSpeechToText(Head):
    """Speech to text."""

    task: ClassVar[str] = "speech-seq2seq"
