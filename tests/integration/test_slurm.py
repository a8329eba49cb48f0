"""cluster/slurm/array.sh as Slurm calls it: its variables are set by hand, each task starts a Ray of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.photo_bytes import flat_photo

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "array.sh"


def call(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    (command := folder / "dladiff").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "DLADIFF": str(command), "RAY_worker_niceness": "0"} | variables
    )
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_tasks_of_an_array_protect_the_collection_together(tmp_path: Path) -> None:
    people = ("ann", "bob", "cleo", "dora")
    for name in people:
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(flat_photo(1))
    settings = {"input": str(tmp_path / "in"), "protector": "tests.support.fakes:AddNoise", "max_actors": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    done: list[str] = []
    for task in ("1", "2"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        ended = call(tmp_path, "run.yaml", str(tmp_path / "out"), **array)
        assert ended.returncode == 0, ended.stderr
        records = (tmp_path / "out" / f"{task}-of-2").glob("done/*.json")  # a part may hold nobody
        done += [json.loads(record.read_text())["identity"] for record in records]
    assert sorted(done) == sorted(people)


def test_a_call_without_an_array_or_without_an_output_says_how(tmp_path: Path) -> None:
    for arguments, text in (
        (["run.yaml", "out"], "submit it with sbatch --array=1-N"),
        (["run.yaml"], "usage: sbatch"),
    ):
        ended = call(tmp_path, *arguments)
        assert ended.returncode != 0 and text in ended.stderr
