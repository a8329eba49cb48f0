"""`plan --look`: identities are sampled, their photos read in a process of its own, strangers reported."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from dladiff.errors import ConfigError
from pipeline.cli.main import main
from pipeline.config import run_config
from pipeline.run import look as module
from pipeline.run.look import Look, advice, look
from pipeline.sources.find import Identity, Photo


def folder(root: Path, people: dict[str, int]) -> dict[str, str]:
    for name, count in people.items():
        (root / "in" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (64, 64)).save(root / "in" / name / f"{i:02}.png")
    return {"input": str(root / "in"), "output": str(root / "out")}


def test_sampled_are_identities_of_four_photos_and_eight_spread_photos_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(None, folder(tmp_path, {"few": 3, "ann": 4, "bob": 20, "cy": 5}))
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(
        module, "_looked", lambda _, chosen: seen.append({c["identity"]: len(c["photos"]) for c in chosen})
    )
    for count in (9, 2):
        look(config, count)
    assert seen[0] == {"ann": 4, "bob": 8, "cy": 5} and len(seen[1]) == 2
    person = Identity("x", tuple(Photo(str(i), "", "", 0) for i in range(16)))
    assert [photo.key for photo in module._spread(person)] == [str(i) for i in range(0, 16, 2)]


@pytest.mark.networks
def test_faces_are_compared_in_a_process_that_reads_the_photos(tmp_path: Path) -> None:
    config = run_config(None, folder(tmp_path, {"ann": 4}))
    assert look(config, 1) == [Look(identity="ann", photos=4, faces=0, median=None, mixed=False)]


@pytest.mark.networks
def test_without_encoders_or_weights_it_says_what_to_do(tmp_path: Path) -> None:
    given = folder(tmp_path, {"ann": 4})
    with pytest.raises(ConfigError, match="profile sd21 has no identity encoders of its own"):
        look(run_config(None, given | {"profile": "sd21"}), 1)
    none = {"profile": "sd21", "method": {"layers": "finetuning"}}
    with pytest.raises(ConfigError, match="give --faces or"):
        look(run_config(None, given | none), 1)
    place = ["--input", given["input"], "--output", given["output"]]
    result = CliRunner().invoke(main, ["plan", "--look", "1", "--faces", "/no/pack", *place])
    assert result.exit_code == 2 and "error: nothing at /no/pack" in result.stderr


def test_the_last_line_says_what_to_do() -> None:
    own = Look(identity="a", photos=8, faces=8, median=0.6, mixed=False)
    other = Look(identity="b\n", photos=8, faces=7, median=0.021, mixed=True)
    assert own.line() == "look: a: one person (median similarity 0.60 of 8 faces)"
    assert other.line() == "look: b\\n: different people (median similarity 0.02 of 7 faces)"
    assert advice([own, other]) == "look: 1 of 2 identities look like different people; give --layout flat"
    assert advice([own]) == "look: none of 1 identities looks like different people"
    assert "no identity has 4 photos" in advice([])


@pytest.mark.networks
def test_strangers_in_one_folder_are_found_and_a_person_is_not(tmp_path: Path, assets: Path) -> None:
    for name, source in (("strangers", "distractors"), ("person", "celebahq_103")):
        shutil.copytree(assets / "photos" / source, tmp_path / "in" / name)
        for file in (tmp_path / "in" / name).iterdir():
            file.chmod(0o644)
            file.rename(file.with_name(file.name.replace("set_", "")))
    place = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--layout", "folders"]
    result = CliRunner().invoke(main, ["plan", "--look", "5", "--json", *place])
    assert result.exit_code == 0, result.output
    assert {one["identity"]: one["mixed"] for one in json.loads(result.stdout)["look"]} == {
        "strangers": True,
        "person": False,
    }
    result = CliRunner().invoke(main, ["plan", "--look", "5", *place])
    assert result.stdout.endswith("look: 1 of 2 identities look like different people; give --layout flat\n")
