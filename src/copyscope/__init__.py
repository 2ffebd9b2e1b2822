"""Watch a language model learn to copy: `import copyscope as cs`.

The names are in `__init__.pyi`; each is imported when it is first used, so that `import copyscope` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
