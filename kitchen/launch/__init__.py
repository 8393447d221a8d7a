"""`kitchen serve` on rented or shared machines: by ssh, as a job of Slurm, on Modal."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
