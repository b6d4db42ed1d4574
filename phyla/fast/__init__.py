"""Passes and parts that make a built model faster without changing what it computes.

codes.py: matrices of 4- and 8-bit codes and their product. ggml.py: quantised GGUF blocks as such matrices.
packed.py: the modules that hold them. install.py: those modules in a model that is being loaded.
coded.py: the maps of other quantised formats as such matrices.
pack.py: q, k, v and gate, up as one product each. native.py: small kernels built by the system's compiler;
step.py, wide.py and plan.py: whole stacks of layers; recurrent.py: scans and LSTMs; products.py: products.
shard.py: one model on several processes; shares.py, division.py, shard_plan.py, shard_adapters.py: its
parts.
"""
