"""PyTorch in several processes of this machine: data parallel, exact, and made again when one of them dies."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
