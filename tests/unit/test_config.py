"""RunConfig: every fault at once, YAML under the options, and a digest of what decides the output."""

from dataclasses import replace
from pathlib import Path

import pytest

from dladiff.errors import ConfigError
from pipeline.config import RunConfig, run_config

GIVEN = {"input": "in", "output": "out"}


def test_options_win_over_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\ninput: a\noutput: b\nmethod: {zero_shot: {ths: 0.2}}\n")
    config = run_config(file, {"input": "c", "seed": None, "faces": ()})
    assert (config.input, config.output, config.seed) == ("c", "b", 3)
    assert config.method_config().zero_shot.ths == 0.2


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        run_config(None, {"profil": "tiny", "seed": "x", "limit": 0, "layout": "folder", "profile": "tny"})
    text = "\n".join(caught.value.faults)
    for part in (
        "did you mean profile?",
        "seed: expected int",
        "limit: 0",
        "did you mean folders?",
        "input: is missing",
    ):
        assert part in text
    assert "did you mean tiny?" in text


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "7"])
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        run_config(file, GIVEN)


def test_digest_covers_what_decides_the_output_and_nothing_else() -> None:
    config = RunConfig(input="in", output="out")
    same = replace(config, output="elsewhere", cpus_per_actor=2, max_actors=7, limit=1, layout="flat")
    assert same.config_digest() == config.config_digest()
    for change in (
        {"seed": 1},
        {"max_pixels": 5000},
        {"preset": "paper"},
        {"method": {"resolution": 256}},
    ):
        assert replace(config, **change).config_digest() != config.config_digest()


def test_a_full_size_model_takes_a_gpu_where_nothing_else_is_said() -> None:
    full = {"profile": "sd21", "method": {"model": "m", "encoders": ["a"], "held_out": ["b"]}}
    assert run_config(None, GIVEN).gpus_per_actor == 0
    assert run_config(None, GIVEN | full).gpus_per_actor == 1
    assert run_config(None, GIVEN | full | {"gpus_per_actor": 0}).gpus_per_actor == 0
    assert [run_config(None, GIVEN | full | {"gpus_per_actor": n}).method_settings()["gpu"] for n in (0, 0.5)] == [0, 1]


def test_faces_are_optimised_encoders() -> None:
    config = replace(RunConfig(input="in", output="out"), faces=("a", "b")).method_config()
    assert (config.encoders, config.detector) == (("a", "b"), "a")
