"""The command without Ray: what is planned, errors as one line each, exit codes, and what is not imported."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.run import engine
from pipeline.run.live import safe
from tests.support.model_layouts import write_layout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place in ("ann/1.png", "ann/2.png", "bob/1.png"):
        file = tmp_path / "in" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(file)
    return tmp_path / "in"


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", [["plan"], ["protect", "--dry-run"]])
def test_plan_counts_and_writes_nothing(photos: Path, tmp_path: Path, command: list[str]) -> None:
    code, out, _ = call(*command, "--input", str(photos), "--output", str(tmp_path / "out"), "--json")
    assert code == 0
    assert {k: json.loads(out)[k] for k in ("new_identities", "new_photos", "done")} == {
        "new_identities": 2,
        "new_photos": 3,
        "done": 0,
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["plan", "protect"])
def test_strength_and_preset_together_are_one_line(photos: Path, tmp_path: Path, command: str) -> None:
    place = ["--input", str(photos), "--output", str(tmp_path / "out")]
    code, out, err = call(command, *place, "--strength", "faint", "--preset", "paper")
    assert (code, out) == (2, "")
    assert err == "error: strength: faint and preset: paper contradict; give one of them\n"
    code, _, err = call(command, *place, "--strength", "fain")
    assert code == 2 and "'faint', 'balanced', 'strong'" in err


def test_every_fault_is_a_line(photos: Path) -> None:
    code, _, err = call("protect", "--input", str(photos), "--profile", "tny", "--layout", "flt")
    assert code == 2
    assert len(err.splitlines()) == 3
    assert all(line.startswith("error: ") for line in err.splitlines())


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("output: 2026-02-30", "not YAML"),
        ("seed: !!int foo", "not YAML"),
        ("seed: 9223372036854775808", "seed: 9223372036854775808 is outside 0..9223372036854775807"),
        ("gpus_per_actor: 1.5", "neither a part of one GPU"),
        ("gpus_per_actor: .nan", "gpus_per_actor: nan"),
        ("gpus_per_actor: .inf", "gpus_per_actor: inf is not a finite number"),
        ("patience_s: .nan", "patience_s: nan"),
        ("output: http://x/y", "output: unknown storage"),
        ("output: s3://", "names no bucket"),
        ("seed: 1\nlimit: 2\nseed: 1", "seed: is there twice (lines 1 and 3)"),
    ],
)
def test_a_setting_that_cannot_be_is_bad_usage(photos: Path, tmp_path: Path, setting: str, text: str) -> None:
    (tmp_path / "run.yaml").write_text(setting)
    output = [] if setting.startswith("output") else ["--output", str(tmp_path / "out")]
    code, _, err = call("plan", "--input", str(photos), "--config", str(tmp_path / "run.yaml"), *output)
    assert code == 2 and text in err and err.startswith("error: "), err


@pytest.mark.parametrize("setting", ["model", "detector"])
def test_a_name_longer_than_files_have_is_one_line(photos: Path, tmp_path: Path, setting: str) -> None:
    (tmp_path / "run.yaml").write_text(f"method:\n  {setting}: {300 * 'a'}")
    code, _, err = call(
        "plan", "--input", str(photos), "--output", str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")
    )
    assert code == 3 and err.startswith("error: aaa") and err.endswith("aaa: File name too long\n")


@pytest.mark.parametrize("address", ["", "ray://head:10001"])
@pytest.mark.parametrize(
    ("command", "word", "ends"), [("plan", "note", 0), ("protect --dry-run", "note", 0), ("protect", "error", 2)]
)
def test_a_full_size_profile_without_encoders_is_reported_before_anything_begins(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, command: str, word: str, ends: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(engine, "started", lambda: pytest.fail("Ray was started"))
    write_layout(tmp_path / "sd15", "sd15")
    (tmp_path / "run.yaml").write_text(f"profile: sd15\nmethod: {{model: {tmp_path / 'sd15'}}}\n")
    place = ["--input", str(photos), "--output", str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")]
    code, out, err = call(*command.split(), *place, "--json")
    (line,) = err.splitlines()
    assert code == ends and line.startswith(f"{word}: encoders: the profile sd15 has no identity encoders of its own; ")
    assert "buffalo_l" in line and "antelopev2" in line and "DLADIFF_FACES" in line
    if ends == 0:
        assert json.loads(out)["notes"][0] == line.removeprefix("note: ")
        (tmp_path / "run.yaml").write_text(
            f"profile: sd15\nmethod: {{model: {tmp_path / 'sd15'}, layers: finetuning}}\n"
        )
        assert "encoders" not in call(*command.split(), *place)[2]


@pytest.mark.parametrize(
    ("command", "word", "ends"),
    [(["plan"], "note", 0), (["protect", "--dry-run"], "note", 0), (["protect"], "error", 2)],
)
def test_weights_that_are_not_here_are_reported_before_anything_begins(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], word: str, ends: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engine, "started", lambda: pytest.fail("Ray was started"))
    (tmp_path / "run.yaml").write_text("method: {held_out: ['embedded:foo'], model: /nosuch}")
    config = ["--config", str(tmp_path / "run.yaml"), "--faces", "/nosuch/pack"]
    place = ["--input", str(photos), "--output", str(tmp_path / "out")]
    code, out, err = call(*command, *place, *config)
    assert (code, bool(out)) == (ends, ends == 0)
    assert [line.split("; ")[0] for line in err.splitlines() if "clean set" not in line] == [
        f"{word}: model: /nosuch: no folder of a VAE or model here, and none fetched",
        f"{word}: encoders, detector: nothing at /nosuch/pack: name an ONNX file, an InsightFace pack folder, "
        "or a pack (buffalo_l)",
        f"{word}: held_out: no embedded encoder named 'foo'",
    ]
    assert not (tmp_path / "out").exists()


def test_weights_of_a_cluster_lie_with_its_workers(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ["--input", str(photos), "--output", str(tmp_path / "out"), "--faces", "/nosuch/pack"]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert call("plan", *place)[0] == 0


def test_a_price_is_a_number(photos: Path, tmp_path: Path) -> None:
    place = ["--input", str(photos), "--output", str(tmp_path / "out")]
    assert [call("plan", *place, "--price", text)[0] for text in ("nan", "inf", "2.5")] == [2, 2, 0]


def test_originals_are_never_taken_for_leavings(photos: Path, tmp_path: Path) -> None:
    (photos.parent / "photos").mkdir()
    photos.rename(photos.parent / "photos" / "own")
    index = tmp_path / "index.csv"
    index.write_text("uri,identity\nphotos/own/ann/1.png,ann\n")
    for place in (tmp_path / "photos", tmp_path / "photos" / "own", index):
        code, _, err = call("protect", "--input", str(place), "--output", str(tmp_path))
        assert code == 2 and "hold photos of the input" in err, err
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_no_photos_says_what_is_understood(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code, _, err = call("protect", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert code == 2
    assert "set_A" in err and "one folder an identity" in err and len(err.splitlines()) == 1


def test_missing_input_is_storage_out_of_reach(tmp_path: Path) -> None:
    code, _, err = call("protect", "--input", str(tmp_path / "no"), "--output", str(tmp_path / "out"))
    assert code == 3
    assert err.startswith("error: no such folder") and len(err.splitlines()) == 1


def test_status_asks_for_a_place_or_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for arguments, text in ((["status"], "give --output URI"), (["status", "--job", "x"], "needs --address")):
        code, _, err = call(*arguments)
        assert code == 2 and text in err


def test_status_and_failed_of_an_empty_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, out, _ = call("status", "--output", str(tmp_path), "--json")
    assert (code, json.loads(out)["done"]) == (0, 0)
    assert caplog.messages == [f"no run has written to {tmp_path}; check the address"]
    assert call("failed", "--output", str(tmp_path))[0] == 0
    code, out, _ = call("failed", "--output", str(tmp_path), "--retry", "--json")
    assert (code, json.loads(out)) == (0, {"forgotten": 0})
    for command in ("verify", "finalise"):
        assert call(command, "--output", str(tmp_path))[0] == 3
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_there_yet_may_be_a_file_uri(photos: Path, tmp_path: Path) -> None:
    output = f"file://{tmp_path}/new%20folder"
    code, out, err = call("plan", "--input", str(photos), "--output", output, "--json")
    assert (code, json.loads(out)["photos"]) == (0, 3), err
    assert not (tmp_path / "new folder").exists()


def test_names_are_shown_as_text() -> None:
    assert safe("[red]a\x1b[2J") == r"\[red]a\x1b[2J"


def test_advice_follows_what_happened() -> None:
    from pipeline.run.driver import Summary

    assert Summary(1, 1, 1, done=1).advice("out dir") == [
        "next: dladiff report --output 'out dir' shows before and after"
    ]
    assert "dladiff failed --output out" in Summary(1, 1, 1, failed=1).advice("out")[0]
    assert "same command" in Summary(1, 1, 1, skipped=1, left=1).advice("out")[0]


def test_the_summary_advises_flat_for_an_identity_of_strangers() -> None:
    from pipeline.run.driver import Summary

    assert "--layout flat" in Summary(1, 1, 1, done=1, mixed_identities=1).advice("out")[0]


def test_one_note_where_photos_are_their_own_clean_set(photos: Path, tmp_path: Path) -> None:
    place = ["--input", str(photos), "--output", str(tmp_path / "out")]
    _, out, err = call("plan", *place, "--json", "--preset", "paper")
    (note,) = json.loads(out)["notes"]
    assert err == f"note: {note}\n" and note.startswith("2 of 2 identities have no clean set, so the surrogate learns")
    for trains_none in ("layers: zero_shot, visibility: 0", "visibility: 75"):
        (tmp_path / "run.yaml").write_text(f"method: {{{trains_none}}}")
        assert json.loads(call("plan", *place, "--json", "--config", str(tmp_path / "run.yaml"))[1])["notes"] == []
    for name in ("set_A_1.png", "set_B_1.png"):
        (tmp_path / "sets" / "ann").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "sets" / "ann" / name)
    assert call("plan", "--input", str(tmp_path / "sets"), "--output", str(tmp_path / "out"))[2] == ""


def test_missing_weights_of_adapters_are_one_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DLADIFF_FACES", "DLADIFF_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    photo = tmp_path / "photos" / "ann" / "1.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(photo)
    places = ("--input", str(tmp_path / "photos"), "--output", str(tmp_path / "out"))
    result = CliRunner().invoke(main, ["protect", *places, "--against", "infiniteyou,pulid", "--against", "faceid"])
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if "adapters infiniteyou, pulid, faceid need" in line]
    for part in ("ir_se50.safetensors", "EVA02_CLIP", "buffalo_l/", "licence", "huggingface.co"):
        assert part in line
    assert not (tmp_path / "out" / "photos").exists()
    planned = CliRunner().invoke(main, ["plan", *places, "--against", "faceid"])
    assert planned.exit_code == 0 and "adapter faceid needs" in planned.output
    wrong = CliRunner().invoke(main, ["plan", *places, "--against", "facid"])
    assert wrong.exit_code == 2 and "did you mean faceid" in wrong.output
