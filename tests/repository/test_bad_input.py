"""Whatever comes in wrong is answered by one clear sentence of kitchen's own, and leaves nothing behind."""

import gc
import random
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bad_input import all_cases, answer_problem, file_mutations, fuzz_doors, words_problem

from kitchen.types import KitchenError

pytestmark = pytest.mark.whole_run

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.id[:120] for case in CASES])
def test_it_is_answered_well(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = answer_problem(case, tmp_path)
    assert not problem, f"{case.id}: {problem}"
    left = [path for path in (tmp_path / "runs").glob("*") if not path.name.startswith("index.sqlite")]  # the table of runs is no run
    assert not left, f"{case.id} left {left[0]}"


def test_there_are_many_cases():
    assert len(CASES) >= 500 and len({case.door for case in CASES}) == 10


@pytest.mark.parametrize("door", sorted(fuzz_doors()))
def test_damaged_files_are_read_or_refused(door, tmp_path):
    """Files of a kind with bytes flipped, cut out, doubled and exchanged: read, or refused in kitchen's own words."""
    content, name, read = fuzz_doors()[door]
    draws = random.Random(f"bad input/{door}")
    for number, changed in enumerate(file_mutations(content, draws, 60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(changed)
        try:
            read(folder / name)
        except KitchenError as error:
            assert not words_problem(str(error), ""), str(error)
        except Exception as error:
            raise AssertionError(f"{door}, change {number}: {type(error).__name__}: {error}; {changed[:200]!r}") from error
    gc.collect()
