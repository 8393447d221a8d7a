"""Rows of any common format, data sets by name, batches in an order that can be continued exactly, data made by rule."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
