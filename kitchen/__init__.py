"""Fine-tune language models in Jupyter, step by step: recipes, workflows, ports and adapters, with reproducible reports."""

__version__ = "0.1.0"

import lazy_loader

# names and modules come when first used, so that `import kitchen` stays light; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
