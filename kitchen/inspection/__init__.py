"""What one asks of a run or its model: rows, rollouts, other grades, a chat, a learning rate, a profile, a game."""

import lazy_loader

# names and modules come when first used; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
