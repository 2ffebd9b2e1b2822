"""In-context tasks beyond copying: prompts with one right answer, and how well a model answers them.

What the room offers is in `__init__.pyi`; each name is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
