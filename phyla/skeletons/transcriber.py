"""The call of models that transcribe: speech models that decode by windows, languages and time stamps."""

from phyla.model import Lazy
from phyla.skeletons.speech import SpeechModel


class TranscriberModel(SpeechModel):
    """A speech model whose `generate` transcribes sounds of any length."""

    free_decoder_start = True  # the text before and the language stand in front of the usual start
    generate = Lazy("phyla.generation.transcribe", "transcribe", "method")
    detect_language = Lazy("phyla.generation.spoken", "detect_language", "method")

    @property
    def input_stride(self) -> int:
        """Frames of input for each state of the encoder."""
        embed = self.backbone.encoder.embed
        return embed.conv1.stride * embed.conv2.stride
