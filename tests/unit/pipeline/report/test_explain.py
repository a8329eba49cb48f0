import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from diffusers.models.attention_processor import Attention

from dladiff import explain as method
from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.errors import ConfigError
from dladiff.settings.schema import method_config
from pipeline.cli.main import main
from pipeline.config import run_config
from pipeline.records.output_format import encode_png
from pipeline.records.schema import PHOTOS
from pipeline.records.trace import Trace, read_trace, trace_key, traces_of, write_trace
from pipeline.report.explain import _rows, explain, render
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape
from pipeline.storage.open import open_storage

NAME = "<b>a & b</b>"


def write_manifest(storage: Storage, rows: list[dict[str, Any]]) -> None:
    manifest = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=PHOTOS), manifest)
    storage.put("manifest/photos.parquet", manifest.getvalue())


def photos(folder: Path, **more: str) -> tuple[Path, Path]:
    """An original beside the output of a run that holds its protected version: three grey levels of noise."""
    clean = np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])
    signs = np.random.default_rng(0).choice([-3, 3], clean.shape)
    protected = (clean.astype(int) + signs).clip(0, 255).astype(np.uint8)
    source, output = folder / "photo.png", folder / "out"
    data = encode_png(protected)
    identity = more.get("identity", NAME)
    key = f"photos/{escape(identity)}/b.png"
    source.write_bytes(encode_png(clean))
    row = {
        "identity": NAME,
        "status": "protected",
        "source_uri": f"file://{source}",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "output_key": key,
        "output_uri": f"file://{output}/{key}",
        "width": 256,
        "height": 256,
        "output_sha256": hashlib.sha256(data).hexdigest(),
    }
    storage = open_storage(output, create=True)
    storage.put(key, data)
    write_manifest(storage, [row | more])
    return source, output


@pytest.mark.networks
def test_page_shows_both_photos_under_three_weights_and_escapes_names(tmp_path: Path) -> None:
    source, output = photos(tmp_path)
    write_trace(open_storage(output), NAME, 0, {"Layer 1, attention steps": {"loss": [1.0, 3.0, 2.0]}})
    settings = run_config(
        None, {"input": "-", "output": str(output), "method": {"finetuning": {"iter_ft": 3, "lr_static": 5e-4}}}
    )
    found = explain(str(source), settings, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert found.identity == NAME and found.photos == 1
    assert set(found.correlations) == set(method.WEIGHTS)
    assert all(-1 <= value <= 1 for value in found.correlations.values())
    assert page.count("data:image/webp") == 2 + 2 * len(method.WEIGHTS)
    assert "<b>a" not in page and "&lt;b&gt;a &amp; b" in page
    assert 'points="0.0,120.0 160.0,0.0 320.0,60.0"' in page
    assert "http" not in page.replace("file://", "").replace("http-equiv", "")


def test_page_has_the_photo_s_scores() -> None:
    row = {"source_uri": "a.png", "identity": "ann", "status": "protected", "psnr": 31.04, "ssimulacra2": 84.26}
    page = render(row | {"ssimulacra2_face": 61.5}, [], [], [], "a photo", "m")
    assert "SSIMULACRA2 84.3, face 61.5; PSNR 31.0 dB" in page
    page = render(row | {"ssimulacra2_face": None, "psnr": None}, [], [], [], "a photo", "m")
    assert "SSIMULACRA2 84.3</p>" in page
    page = render(row | {"ssimulacra2_face": None, "ssimulacra2": None}, [], [], [], "a photo", "m")
    assert "SSIMULACRA2" not in page


def test_unknown_photo_is_refused(tmp_path: Path) -> None:
    _, output = photos(tmp_path)
    other = tmp_path / "other.png"
    other.write_bytes(encode_png(np.zeros((64, 64, 3), np.uint8)))
    settings = run_config(None, {"input": "-", "output": str(output)})
    with pytest.raises(ConfigError, match="no protected photo"):
        explain(str(other), settings, tmp_path / "page.html")
    with pytest.raises(ConfigError, match="No such file"):
        explain(str(tmp_path / "absent.png"), settings, tmp_path / "page.html")


def test_the_address_decides_and_then_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(b"the same").hexdigest()
    folder, storage = tmp_path.resolve() / "in", open_storage(tmp_path / "out", create=True)
    rows: list[dict[str, Any]] = [
        {"identity": name, "source_uri": uri, "source_sha256": sha256, "output_key": f"photos/{name}/1.png"}
        for name, uri in (("zoe", f"{folder}/zoe/1 a.png"), ("bob", f"{folder}/bob/1.png"), ("eve", "s3://b/c/1.png"))
    ]
    rows = [row | {"status": "protected"} for row in rows]
    lost = {
        "identity": "ann",
        "status": "failed",
        "source_uri": f"{folder}/ann/1.png",
        "reason": "too small",
        "output_key": None,
    }
    rows += [lost | {"source_sha256": sha256}, lost | {"source_uri": f"{folder}/ann/2.png", "source_sha256": None}]
    rows += [rows[0] | {"source_uri": f"{folder}/zoe/{n}.png", "source_sha256": str(n)} for n in range(9)]
    write_manifest(storage, rows)
    (folder / "zoe").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "one.png").symlink_to(folder / "zoe" / "1 a.png")
    monkeypatch.chdir(tmp_path)
    zoes = [
        "in/zoe/1 a.png",
        "./out/../in/zoe/1 a.png",
        "link/zoe/1 a.png",
        "one.png",
        f"file://{folder}/zoe/1%20a.png",
    ]
    for photo, name in (("s3://b/c/1.png", "eve"), (f"{folder}/bob/1.png", "bob"), *((zoe, "zoe") for zoe in zoes)):
        found, others = _rows(storage, sha256, photo)
        assert (found[0]["identity"], found[0]["source_sha256"], others) == (name, sha256, 0), photo
    assert [row["source_sha256"] for row in found] == [sha256, *"0123456"]
    for photo in ("copy.png", os.fsdecode(b"\xff.png"), "s3://b/copy.png"):
        found, others = _rows(storage, sha256, photo)
        assert (found[0]["identity"], others) == ("bob", 2)
    for photo in ("in/ann/1.png", "in/ann/2.png"):
        with pytest.raises(ConfigError, match="did not protect it: too small"):
            _rows(storage, sha256, photo)


@pytest.mark.networks
def test_command_tells_names_that_print_other_holders_and_other_settings(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"seed": 3, "method": {"finetuning": {"iter_ft": 1}}}))
    digest = run_config(config, {"input": "-", "output": "-"}).config_digest()
    source, output = photos(tmp_path, identity="a\x1b[2J", config_digest=digest)
    (row,) = pq.read_table(output / "manifest" / "photos.parquet").to_pylist()
    others = [row | {"identity": name, "output_key": f"photos/{name}/b.png"} for name in "bc"]
    write_manifest(open_storage(output), [others[0], row, others[1]])
    page = tmp_path / "page.html"
    call = ["explain", str(source), "--output", str(output), "--html", str(page), "--config", str(config)]
    first = CliRunner().invoke(main, call)
    assert first.exit_code == 0 and "identity: a\\x1b[2J\n" in first.stdout and "\x1b" not in first.output
    holders = "note: other identities that have the same photo: 2; give its address in the input to choose one\n"
    assert first.stderr == holders
    config.write_text(json.dumps({"seed": 4, "method": {"finetuning": {"iter_ft": 1}}}))
    other = CliRunner().invoke(main, [*call, "--json"])
    assert other.exit_code == 0 and json.loads(other.stdout)["identity"] == "a\x1b[2J"
    assert other.stderr.removeprefix(holders) == (
        "note: the photo was protected with other settings or weights; give the run's --config and --profile\n"
    )


def test_instance_map_is_the_mean_of_diffusers_own_attention_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention.get_attention_scores of diffusers, in a processor that keeps them, on the same latents and noise."""
    torch.set_num_threads(1)
    monkeypatch.setattr(method, "DRAWS", 2)
    surrogate, config = Surrogate("embedded", torch.device("cpu")), method_config("tiny", None, {})
    square = torch.rand(1, 3, 128, 128, generator=stream(1))
    found = method.instance_map(surrogate, surrogate.unet, square, config, 7)
    kept: list[torch.Tensor] = []

    def keeping(attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states=None, **_: object) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(t) for t in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = attn.get_attention_scores(query, key)
        if encoder_hidden_states is not None and scores.shape[1] == 256:
            kept.append(scores.mean(0))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(scores @ value)))

    prompt = surrogate.prompt(config.finetuning.prompt)
    surrogate.unet.set_attn_processor(keeping)
    with torch.no_grad():
        posterior = surrogate.encode_fixed(square, 1)
        for number in range(2):
            noise = surrogate.draw([stream(7, "explain", str(number))], 128)
            surrogate.predict(surrogate.unet, surrogate.latents(posterior, noise), noise, prompt)
    expected = torch.stack(kept).mean(0)[:, prompt.instance].reshape(16, 16).numpy()
    assert len(kept) == 2  # one layer at 16 x 16, two draws
    assert np.allclose(found, expected / expected.mean(), atol=1e-4)


def test_traces_go_through_storage_and_a_task_without_one_has_none(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out", create=True)
    write_trace(storage, "../x", 2, {"a": {"loss": [1.0, 1.0]}})
    assert read_trace(storage, "../x", 2) == Trace({"a": {"loss": [1.0, 1.0]}})
    assert read_trace(storage, "../x") is None
    write_trace(storage, "x" * 200, 0, {})
    assert traces_of(storage, "x" * 100) == []
    assert traces_of(storage, "../x") == [trace_key("../x", 2)]
    (curve,) = Trace({"a": {"loss": [1.0, 1.0], "none": []}, "b": {}}).curves()
    assert (curve.steps, curve.low, [name for name, _ in curve.lines]) == (2, 1.0, ["loss"])
