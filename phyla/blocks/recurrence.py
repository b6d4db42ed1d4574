"""Recurrent layers with gates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from phyla.blocks.matmul import is_inference_on_cpu, linear

# (gates (T, B, 4W), weight (4W, W)) -> states (T, B, W), or None: see phyla/fast/recurrent.py.
native: Callable[[Tensor, Tensor], Tensor | None] | None = None


def lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Layers of an LSTM over x (T, B, W), each after the other, from states of zero -> (T, B, W).

    Hochreiter & Schmidhuber 1997. weights: for each layer the input's (4W, W), the state's (4W, W), and both
    biases (4W), in the order of gates of torch.nn.LSTM.
    """
    layers = [weights[i : i + 4] for i in range(0, len(weights), 4)]
    if native is not None and is_inference_on_cpu(x):
        y = x
        for of_input, of_state, *biases in layers:
            found = native(linear(y, of_input, biases[0] + biases[1]), of_state)
            if found is None:
                break
            y = found
        else:
            return y
    start = x.new_zeros(len(layers), x.shape[1], x.shape[2])
    return torch.lstm(x, (start, start), list(weights), True, len(layers), 0.0, False, False, False)[0]
