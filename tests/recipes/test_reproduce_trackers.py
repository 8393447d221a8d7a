"""A repetition of a run is told to the run's trackers, as the run was."""

import json

from small_settings import SMALL_SETTINGS

from kitchen import Kitchen
from kitchen.recipes.reproduce import manifest, reproduce


def test_a_repetition_is_told_to_the_trackers(tmp_path, monkeypatch):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path))
    with Kitchen("sft", backend="toy", trackers=["jsonl"], **SMALL_SETTINGS["sft"]) as kitchen:
        kitchen.run()
        recorded = manifest(kitchen.run_record)
    again = reproduce(recorded)
    assert again.agrees
    told = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in (tmp_path / "tracked").glob("*.jsonl")}
    assert set(told) == {recorded["run_id"], again.run.name}
    for lines in told.values():
        assert len(lines) > recorded["losses"]["count"] and "run.stop" in json.dumps(lines)
