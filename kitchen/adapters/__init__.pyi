# made from the modules' __all__ by `make prepare`
from . import embeddings as embeddings
from . import files as files
from . import huggingface as huggingface
from . import openai as openai
from . import procs as procs
from . import profilers as profilers
from . import ray as ray
from . import tinker as tinker
from . import torch as torch
from . import toy as toy
