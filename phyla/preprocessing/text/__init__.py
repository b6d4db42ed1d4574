"""Tokenizers: text to token ids and back, built on the Rust library `tokenizers`."""
