"""PyTorch in actors of Ray on one machine or many: trainers and samplers, exact, and made again when one of them dies."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
