"""Passes and parts that make a built model faster without changing what it computes.

linear.py: the arithmetic of a plain matmul by number of rows. nibbles.py: matrices of 4-bit codes. ggml.py: quantised
GGUF blocks as such matrices. packed.py: the modules that hold them. pack.py: q, k, v and gate, up as one matmul each.
"""
