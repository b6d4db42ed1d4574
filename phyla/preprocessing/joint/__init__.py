"""Joint processors: text with pictures, videos or sound to the inputs of one model, as rows of a table."""
