"""Services that train by the verbs of the Tinker SDK: Tinker itself, Fireworks, Together, and servers of one's own."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
