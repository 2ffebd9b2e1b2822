"""Every jaxtyping shape in the three packages is checked at run time while tests run (beartype)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(["copyscope"], "beartype.beartype")
