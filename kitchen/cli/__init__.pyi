# made from the modules' __all__ by `make prepare`
from . import lab as lab
from . import main as main
