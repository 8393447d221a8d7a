# made from the modules' __all__ by `make prepare`
from . import base as base
from . import distillation as distillation
from . import feedback_loop as feedback_loop
from . import preference as preference
from . import rl as rl
from . import rlhf as rlhf
from . import sft as sft
