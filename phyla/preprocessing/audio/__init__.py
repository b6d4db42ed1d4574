"""Sound to model inputs: filter banks, spectra, and the public feature extractors as rows of a table."""
