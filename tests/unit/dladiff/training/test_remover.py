"""The trained remover: it learns a known pattern, continues to the same bytes, and works on photos of any size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from dladiff.errors import ModelError
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from dladiff.training import remover_network
from dladiff.training.pairs import Pair, load_pairs, split
from dladiff.training.remover import Options, batch_of, loss_of, measured, rate_at, train
from dladiff.training.remover_network import KIND, Remover, fresh, load_remover, removed, write

PEOPLE = [f"person{i}" for i in range(6)]


def photos(side: int = 48) -> list[Pair]:
    """Smooth pictures, and the same with stripes of 8 grey levels, as no smooth picture has them."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    stripes = 8 * np.sin(2 * np.pi * (x + y) / 4 + 0.4)[..., None]
    found = []
    for person in PEOPLE:
        small = Image.fromarray(rng.integers(40, 215, (4, 4, 3), dtype=np.uint8))
        clean = np.array(small.resize((side, side), Image.Resampling.BICUBIC))
        found.append(Pair(person, clean, np.clip(np.rint(clean + stripes), 0, 255).astype(np.uint8)))
    return found


def options(**changes: float) -> Options:
    given = {"steps": 60, "batch": 4, "patch": 32, "rate": 3e-3, "held_out": 0.2, "seed": 0} | changes
    return Options(**given)  # type: ignore[arg-type]


def test_stripes_are_removed_from_a_person_that_took_no_part(tmp_path):
    said: list[dict] = []
    network = train(photos(), tmp_path / "r.safetensors", options(), 20, torch.device("cpu"), said.append)
    assert said[0]["people"] == 5 and said[0]["held_out_people"] == 1 and 500_000 < said[0]["parameters"] < 1_000_000
    losses = [fact["loss"] for fact in said[1:]]
    assert [fact["step"] for fact in said[1:]] == [20, 40, 60] and losses[-1] < 0.7 * losses[0]
    checks = said[-1]["held_out"]
    assert 25 < checks["before"] < 40 and checks["after"] < 0.5 * checks["before"]
    assert checks == measured(network, split(photos(), 0.2)[1])
    loaded = load_remover(tmp_path / "r.safetensors")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    purify = PREPROCESSINGS["remover"].prepare(str(tmp_path / "r.safetensors"))
    pair = split(photos(), 0.2)[1][0]
    found = purify(pair.protected)
    error = np.square(found.astype(float) - pair.clean).mean()
    assert error == pytest.approx(checks["after"], rel=0.1, abs=0.3) and np.array_equal(found, purify(pair.protected))


def test_a_training_continues_to_the_same_weights(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(fact: dict) -> None:
        if fact.get("loss"):
            raise StoppedError

    def weights(name: str) -> bytes:
        return (tmp_path / name).read_bytes()

    settings, pairs, cpu = options(steps=6, patch=16), photos(), torch.device("cpu")
    train(pairs, tmp_path / "whole", settings, 3, cpu, lambda _: None)
    with pytest.raises(StoppedError):
        train(pairs, tmp_path / "parts", settings, 3, cpu, stop)
    assert weights("parts") != weights("whole")
    said: list[dict] = []
    train(pairs, tmp_path / "parts", settings, 3, cpu, said.append)
    assert [fact["step"] for fact in said] == [3, 6] and weights("parts") == weights("whole")
    train(pairs, tmp_path / "parts", settings, 3, cpu, said.append)  # done: says only what there is
    assert said[-1]["step"] == 6 and "loss" not in said[-1]
    with pytest.raises(ModelError, match="other settings"):
        train(pairs, tmp_path / "parts", options(steps=6, patch=16, seed=1), 3, cpu, said.append)
    (tmp_path / "parts.state").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="delete it"):
        train(pairs, tmp_path / "parts", settings, 3, cpu, said.append)


def test_a_batch_depends_on_seed_and_step_and_has_clean_photos_and_small_ones():
    pairs = [*photos(), Pair("small", np.full((5, 40, 3), 7, np.uint8), np.full((5, 40, 3), 9, np.uint8))]
    once, again, other = (batch_of(pairs, step, options(batch=40)) for step in (3, 3, 4))
    assert torch.equal(once[0], again[0]) and not torch.equal(once[0], other[0])
    assert once[0].shape == once[1].shape == (40, 3, 32, 32)
    added = (once[0] - once[1]).abs().amax((1, 2, 3))
    assert 1 <= int((added == 0).sum()) <= 20
    assert any(float(row.max() * 255) == pytest.approx(2, abs=1e-3) for row in (once[0] - once[1]))


def test_the_loss_is_the_mean_distance_and_the_rate_a_rise_and_half_a_cosine():
    zero = torch.zeros(2, 3, 4, 4)
    assert float(loss_of(zero, zero)) == pytest.approx(0, abs=1e-7)
    assert float(loss_of(zero + 0.2, zero)) == pytest.approx(0.2 - 1e-3, abs=1e-5)
    settings = options(steps=2000, rate=0.1)
    rates = [rate_at(step, settings) for step in (0, 99, 1000, 1999)]
    assert rates == pytest.approx([0.001, 0.1, 0.05, 0], abs=1e-3)


def noisy_network() -> Remover:
    network = fresh(0).eval()
    torch.nn.init.normal_(network.out.weight, std=0.05, generator=Generator().manual_seed(1))
    return network


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (150, 61)])
def test_tiles_of_a_photo_of_any_size_meet_without_a_seam(size, monkeypatch):
    network, x = noisy_network(), torch.rand(1, 3, *size, generator=Generator().manual_seed(0))
    whole = removed(network, x)
    monkeypatch.setattr(remover_network, "TILE", 32)
    tiled = removed(network, x)
    assert tiled.shape == x.shape and float((whole - x).abs().max()) > 0.01
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_a_fresh_network_changes_nothing_and_a_seed_is_a_network():
    x = torch.rand(1, 3, 20, 20, generator=Generator().manual_seed(0))
    assert torch.equal(removed(fresh(0), x), x)
    one, same, other = (fresh(seed).into.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_files_that_are_no_remover_are_refused(tmp_path):
    path = tmp_path / "r.safetensors"
    with pytest.raises(ModelError, match="name its file"):
        PREPROCESSINGS["remover"].prepare(str(path))
    with pytest.raises(ModelError, match="no remover at"):
        load_remover(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not a readable"):
        load_remover(path)
    good = fresh(0).state_dict()
    bad = good | {"out.bias": torch.tensor([0.0, float("nan"), 0.0])}
    for tensors, kind, text in (
        (good, "another", "this version"),
        ({"a": torch.zeros(1)}, KIND, "this version"),
        (bad, KIND, "finite"),
    ):
        write(path, tensors, {"kind": kind})
        with pytest.raises(ModelError, match=text):
            load_remover(path)
    write(path, good, {"kind": KIND})
    assert load_remover(path).out.weight.requires_grad is False


def test_the_command_trains_from_folders_and_says_what_is_wrong(tmp_path: Path):
    for pair in photos(24):
        for folder, name, pixels in (("clean", "1.png", pair.clean), ("out", "1.0123456789ab.png", pair.protected)):
            place = tmp_path / folder / pair.person / name
            place.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(place)
    assert len(load_pairs(tmp_path / "clean", tmp_path / "out")[0]) == len(PEOPLE)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dladiff.training.remover", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out = tmp_path / "new" / "r.safetensors"
    done = run("--pairs", str(tmp_path / "clean"), str(tmp_path / "out"), "--out", str(out), "--steps", "2",
               "--batch", "2", "--patch", "16", "--every", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert done.stdout == out.with_name("r.safetensors.jsonl").read_text() and load_remover(out)
    failed = run("--pairs", str(tmp_path / "absent"), str(tmp_path / "out"), "--out", str(out))
    assert failed.returncode == 2 and "name the folders" in failed.stderr and "Traceback" not in failed.stderr
