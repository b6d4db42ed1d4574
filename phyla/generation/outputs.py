"""What `generate` returns with `return_dict_in_generate=True`, under the public names.

Tuples run over the generated tokens; their entries are per layer where a model has layers. Shapes: sequences
(rows, length) with the prompt for decoder-only models; scores and logits (rows, vocabulary) a step.
"""

from typing import Any

from torch import Tensor

from phyla.outputs import ModelOutput

Steps = tuple[Tensor, ...] | None
LayerSteps = tuple[tuple[Tensor, ...], ...] | None


class GenerateDecoderOnlyOutput(ModelOutput):
    """Greedy decoding and sampling of a decoder-only model."""

    sequences: Tensor | None = None
    scores: Steps = None
    logits: Steps = None
    attentions: LayerSteps = None
    hidden_states: LayerSteps = None
    past_key_values: Any = None


class GenerateEncoderDecoderOutput(ModelOutput):
    """Greedy decoding and sampling of an encoder-decoder."""

    sequences: Tensor | None = None
    scores: Steps = None
    logits: Steps = None
    encoder_attentions: Steps = None
    encoder_hidden_states: Steps = None
    decoder_attentions: LayerSteps = None
    cross_attentions: LayerSteps = None
    decoder_hidden_states: LayerSteps = None
    past_key_values: Any = None


class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Beam search of a decoder-only model; `beam_indices` (rows, new tokens) names the beam each token came
    from.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: Steps = None
    logits: Steps = None
    beam_indices: Tensor | None = None
    attentions: LayerSteps = None
    hidden_states: LayerSteps = None
    past_key_values: Any = None


class GenerateBeamEncoderDecoderOutput(ModelOutput):
    """Beam search of an encoder-decoder; `beam_indices` (rows, new tokens) names the beam each token came
    from.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: Steps = None
    logits: Steps = None
    beam_indices: Tensor | None = None
    encoder_attentions: Steps = None
    encoder_hidden_states: Steps = None
    decoder_attentions: LayerSteps = None
    cross_attentions: LayerSteps = None
    decoder_hidden_states: LayerSteps = None
    past_key_values: Any = None


class DiffusionGemmaGenerationOutput(ModelOutput):
    """Text written from noise; tokens_per_forward (rows,) counts without padding. The last block is not in
    the cache. logits, scores and hidden_states stay None.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    past_key_values: Any = None
    logits: Steps = None
    scores: Steps = None
    hidden_states: LayerSteps = None


# older public names of the same outputs
GreedySearchDecoderOnlyOutput = SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
ContrastiveSearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
GreedySearchEncoderDecoderOutput = SampleEncoderDecoderOutput = GenerateEncoderDecoderOutput
ContrastiveSearchEncoderDecoderOutput = GenerateEncoderDecoderOutput
BeamSearchDecoderOnlyOutput = BeamSampleDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
BeamSearchEncoderDecoderOutput = BeamSampleEncoderDecoderOutput = GenerateBeamEncoderDecoderOutput
