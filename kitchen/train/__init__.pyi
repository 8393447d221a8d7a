# made from the modules' __all__ by `make prepare`
from . import distillation as distillation
from . import ppo as ppo
from . import preference as preference
from . import rl as rl
from . import rollouts as rollouts
from . import schedules as schedules
from . import sft as sft
from . import trajectories as trajectories
