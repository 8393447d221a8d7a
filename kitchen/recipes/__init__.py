"""Recipes by name, their plan before a run, and doing a run again from its report."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
