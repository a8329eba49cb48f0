"""RunConfig: every fault at once, YAML under the options, and a digest of what decides the output."""

from pathlib import Path
from typing import get_args

import pytest

from dladiff.errors import ConfigError
from dladiff.settings.presets import STRENGTHS
from pipeline.config import RunConfig, Strength, read_yaml, run_config

GIVEN = {"input": "in", "output": "out"}


def test_options_win_over_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\ninput: a\noutput: b\nmethod: {zero_shot: {threshold: 0.2}}\n")
    config = run_config(file, {"input": "c", "seed": None, "faces": ()})
    assert (config.input, config.output, config.seed) == ("c", "b", 3)
    assert config.method_config().zero_shot.threshold == 0.2


def test_roots_of_an_index_are_folders_and_decide_no_byte() -> None:
    config = run_config(None, GIVEN)
    allowed = run_config(None, GIVEN | {"allow_roots": ["/data", "photos"]})
    assert allowed.allow_roots == ("/data", "photos")
    assert allowed.config_digest() == config.config_digest()
    for wrong in ("/data", [""], ["s3://bucket/x"], [3], ["gs://x"]):
        with pytest.raises(ConfigError, match=r"allow_roots(\[0\])?: "):
            run_config(None, GIVEN | {"allow_roots": wrong})


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


def test_a_name_that_stands_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nmethod:\n  zero_shot: {threshold: 0.2, 'threshold': 0.3}\n\n  zero_shot: {}\nseed: 1\n")
    with pytest.raises(ConfigError) as caught:
        run_config(file, GIVEN)
    assert caught.value.faults == [
        f"{file}: threshold: is there twice (lines 3 and 3); keep one",
        f"{file}: zero_shot: is there twice (lines 3 and 5); keep one",
        f"{file}: seed: is there twice (lines 1 and 6); keep one",
    ]


def test_the_same_name_in_two_mappings_and_over_a_merge_stands_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\nd: {1: int, '1': text}\n")
    assert read_yaml(file) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 4, "y": 2},
        "d": {1: "int", "1": "text"},
    }


def test_digest_covers_what_decides_the_output_and_nothing_else() -> None:
    config = RunConfig(input="in", output="out")
    same = config.replaced(output="elsewhere", cpus_per_actor=2, max_actors=7, limit=1, layout="flat")
    assert same.config_digest() == config.config_digest()
    for change in (
        {"seed": 1},
        {"max_pixels": 5000},
        {"preset": "paper"},
        {"method": {"resolution": 256}},
    ):
        assert config.replaced(**change).config_digest() != config.config_digest()


def test_limits_of_photos_and_tasks_are_checked_and_decide_no_digest() -> None:
    config = RunConfig(input="in", output="out")
    limits = {"max_photo_bytes": 10**6, "max_photo_seconds": 1.5, "max_scans": 7, "max_task_bytes": 10**9}
    changed = run_config(None, GIVEN | limits)
    assert {name: getattr(changed, name) for name in limits} == limits
    assert changed.config_digest() == config.replaced(input="in").config_digest()
    wrong = {"max_photo_bytes": 2**31 + 1, "max_photo_seconds": 0, "max_scans": 0, "max_task_bytes": 7.5}
    with pytest.raises(ConfigError) as caught:
        run_config(None, GIVEN | wrong)
    assert [fault.split(":")[0] for fault in caught.value.faults] == list(wrong)
    with pytest.raises(ConfigError, match="max_task_bytes: 3999999 is less than 4 x max_photo_bytes = 4000000"):
        run_config(None, GIVEN | {"max_photo_bytes": 10**6, "max_task_bytes": 3999999})


def test_a_full_size_model_takes_a_gpu_where_nothing_else_is_said() -> None:
    full = {"profile": "sd21", "method": {"model": "m", "encoders": ["a"], "held_out": ["b"]}}
    assert run_config(None, GIVEN).gpus_per_actor == 0
    assert run_config(None, GIVEN | full).gpus_per_actor == 1
    assert run_config(None, GIVEN | full | {"gpus_per_actor": 0}).gpus_per_actor == 0
    assert [run_config(None, GIVEN | full | {"gpus_per_actor": n}).method_settings()["gpu"] for n in (0, 0.5)] == [0, 1]


def test_photos_of_a_task_have_room_for_the_largest_file() -> None:
    assert run_config(None, GIVEN | {"max_photo_bytes": 4096, "max_task_bytes": 16384}).max_task_bytes == 16384
    wrong = {"max_photo_bytes": 2 * 2**30 + 1, "max_photo_seconds": 0, "max_scans": 0, "max_task_bytes": 1}
    with pytest.raises(ConfigError) as caught:
        run_config(None, GIVEN | wrong)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == list(wrong)
    with pytest.raises(ConfigError, match=r"max_task_bytes: 8192 is less than 4 x max_photo_bytes = 16384"):
        run_config(None, GIVEN | {"max_photo_bytes": 4096, "max_task_bytes": 8192})


def test_a_number_too_long_to_write_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: 0x{'f' * 5000}\n")
    with pytest.raises(ConfigError, match="seed: a number of 20000 bits is outside 0"):
        run_config(file, GIVEN)


def test_faces_are_optimised_encoders() -> None:
    config = RunConfig(input="in", output="out").replaced(faces=("a", "b")).method_config()
    assert (config.encoders, config.detector) == (("a", "b"), "a")


def test_a_strength_is_the_preset_of_its_name(tmp_path: Path) -> None:
    assert get_args(Strength) == tuple(STRENGTHS)
    file = tmp_path / "run.yaml"
    file.write_text("strength: faint\n")
    digests = {run_config(None, GIVEN | {"preset": name}).config_digest() for name in STRENGTHS}
    assert len(digests) == len(STRENGTHS)
    for name, values in STRENGTHS.items():
        chosen = run_config(None, GIVEN | {"strength": name})
        assert chosen.method_config().visibility == values["visibility"]
        assert chosen.config_digest() == run_config(None, GIVEN | {"preset": name}).config_digest()
    assert run_config(file, GIVEN).method_settings()["preset"] == "faint"


def test_an_option_replaces_the_files_strength_or_preset_and_two_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: paper\n")
    assert run_config(file, GIVEN | {"strength": "faint"}).method_settings()["preset"] == "faint"
    assert run_config(file, GIVEN | {"strength": None}).method_settings()["preset"] == "paper"
    file.write_text("strength: strong\n")
    assert run_config(file, GIVEN | {"preset": "paper"}).method_settings()["preset"] == "paper"
    assert run_config(file, GIVEN | {"strength": "faint"}).method_settings()["preset"] == "faint"
    both = {"strength": "faint", "preset": "paper"}
    file.write_text("strength: faint\npreset: paper\n")
    for source, options in ((file, {}), (None, both), (file, both)):
        with pytest.raises(ConfigError) as caught:
            run_config(source, GIVEN | options)
        assert caught.value.faults == ["strength: faint and preset: paper contradict; give one of them"]
    with pytest.raises(ConfigError, match="strength: "):
        run_config(None, GIVEN | {"strength": "fain"})
