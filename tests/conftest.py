"""One thread and no network: the same on every machine."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The native kernel appears when its build has ended: numbers would change in their last bits in mid-test.
os.environ["PHYLA_NATIVE"] = "0"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
for variable in ("NO_COLOR", "FORCE_COLOR", "HF_TOKEN", "HF_HOME", "PHYLA_DEBUG"):
    os.environ.pop(variable, None)

# With PHYLA_CHECK_SHAPES=1 the shapes in the signatures of blocks are checked at every call (test_shapes.py).
if os.environ.get("PHYLA_CHECK_SHAPES"):
    from jaxtyping import install_import_hook

    install_import_hook("phyla.blocks", "beartype.beartype")

# A shared machine may be slow at any moment: time says nothing. CI draws the same cases every time.
settings.register_profile("phyla", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("phyla")
