"""Data collators: lists of examples to batches."""
