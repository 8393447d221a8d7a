# made from the modules' __all__ by `make prepare`
from . import check as check
from . import cook as cook
from . import doctor as doctor
from . import errors as errors
from . import kernel as kernel
from . import lab as lab
from . import launch as launch
from . import main as main
from . import new as new
from . import parameters as parameters
from . import recipes as recipes
from . import render as render
from . import runs as runs
from . import serve as serve
