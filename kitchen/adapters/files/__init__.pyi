# made from the modules' __all__ by `make prepare`
from . import blobs as blobs
from . import datasets as datasets
from . import readers as readers
from . import registry as registry
from . import tracker as tracker
from .blobs import FileBlobs as FileBlobs
from .datasets import DatasetSource as DatasetSource
from .datasets import FileDatasets as FileDatasets
from .datasets import builtin_rows as builtin_rows
from .readers import NumberedRows as NumberedRows
from .readers import READERS as READERS
from .readers import file_ending as file_ending
from .readers import read_file as read_file
from .registry import FileRegistry as FileRegistry
from .tracker import JsonlOptions as JsonlOptions
from .tracker import JsonlTracker as JsonlTracker
