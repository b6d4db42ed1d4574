"""One flat file for every public model_type; `_index.py` is the table of all of them."""
