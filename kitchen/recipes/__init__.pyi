# made from the modules' __all__ by `make prepare`
from . import plan as plan
from . import registry as registry
from . import reproduce as reproduce
from .plan import Plan as Plan
from .plan import stage_rows as stage_rows
from .registry import RECIPES as RECIPES
from .registry import Recipe as Recipe
from .registry import get_recipe as get_recipe
from .registry import notebook_path as notebook_path
from .reproduce import COUNT_UNITS as COUNT_UNITS
from .reproduce import Comparison as Comparison
from .reproduce import Reproduction as Reproduction
from .reproduce import final_metrics as final_metrics
from .reproduce import initial_values as initial_values
from .reproduce import manifest as manifest
from .reproduce import metric_name as metric_name
