"""Verdicts on the claims of the paper (arXiv 2409.09281), from scored runs.

What the room offers is in `__init__.pyi`; each name is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
