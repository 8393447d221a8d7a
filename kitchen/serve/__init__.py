"""A server over any backend: the Tinker wire for training, the OpenAI wire for answers."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
