# made from the modules' __all__ by `make prepare`
from . import client as client
from .client import ToySamplingClient as ToySamplingClient
from .client import ToyService as ToyService
from .client import ToyTokenizer as ToyTokenizer
from .client import ToyTrainingClient as ToyTrainingClient
