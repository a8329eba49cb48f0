"""Protectors that stand in for the method, so that the batch is tested without models."""

import math
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dladiff.core.exchange import IdentityOut, PhotoIn, PhotoOut
from dladiff.errors import ModelError

SMALL = np.zeros((64, 64, 3), np.uint8)
STEPS = {"zero_shot_layer": {"perturbation": 50}}


class AddNoise:
    """Adds one grey level below 255. Identities "raises", "dies" and "stalls" do as they say."""

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        self.seed = seed

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        if identity == "dies":
            os._exit(1)
        if identity == "raises":
            raise ValueError("a bug in the method")
        if identity == "stalls":
            time.sleep(3600)
        outs = [self._one(photo, len(clean)) for photo in photos]
        model = {"name": "fake", "role": "surrogate", "sha256": "0", "licence": "none"}
        return IdentityOut(outs, {"zero_shot_layer": 0.1}, 1, "cpu", [model], {"numpy": np.__version__}, steps=STEPS)

    @staticmethod
    def _one(photo: PhotoIn, clean: int) -> PhotoOut:
        pixels = np.where(photo.pixels < 255, photo.pixels + 1, 255).astype(np.uint8)
        changed = float((photo.pixels < 255).mean())
        return PhotoOut(
            key=photo.key,
            pixels=pixels,
            status="protected",
            reason=f"{clean} clean" if clean else "",
            faces=[{"box": [0.0, 0.0, 9.0, 9.0], "landmarks": [[1.0, 2.0]] * 5, "score": 0.9}],
            linf=1 / 255,
            linf_face=1 / 255,
            psnr=20 * math.log10(255) - 10 * math.log10(changed) if changed else math.inf,
            psnr_face=float("inf"),
            ssim=0.99,
            ssimulacra2=90.0,
            ssimulacra2_face=80.0,
            similarity=[{"encoder": "fake", "optimised": True, "before": 1.0, "after": 0.1}],
            retained=1.0,
        )


class OneThenStalls(AddNoise):
    """Protects one identity, whichever comes first; the next never ends."""

    ended = 0

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        if self.ended:
            time.sleep(3600)
        self.ended += 1
        return super().protect_identity(identity, photos, clean)


class NoModel:
    """Cannot be built."""

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        raise ModelError("no weights at nowhere; set method.model")


class Slow(AddNoise):
    """Takes DLADIFF_FAKE_SECONDS an identity, so that a test can strike in the middle; names choose other ends."""

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        time.sleep(float(os.environ.get("DLADIFF_FAKE_SECONDS", "0")))
        if identity == "exits":
            raise SystemExit(3)
        if identity == "swallows":
            resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
            bytearray(8_000_000_000)
        return super().protect_identity(identity, photos, clean)


class WaitsAtGate(AddNoise):
    """Works once the file DLADIFF_FAKE_GATE is there; creates DLADIFF_FAKE_BEGUN, if that is set, before it waits."""

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        if begun := os.environ.get("DLADIFF_FAKE_BEGUN"):
            Path(begun).touch()
        while not Path(os.environ["DLADIFF_FAKE_GATE"]).exists():
            time.sleep(0.05)
        return super().protect_identity(identity, photos, clean)


class Dies(AddNoise):
    """Ends its process, as the kernel does without memory."""

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        os._exit(1)


class NoFace(AddNoise):
    """Finds no face, and protects nothing."""

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        done = super().protect_identity(identity, photos, clean)
        none: dict[str, Any] = {"faces": [], "similarity": [], "ssimulacra2_face": math.nan}
        failed: dict[str, Any] = {"status": "failed", "reason": "no face found: nothing protects it"}
        return replace(done, photos=[replace(photo, **none, **failed) for photo in done.photos])


class Hungry(AddNoise):
    """Takes 180 bytes a pixel of one photo after another, as the method does on the CPU."""

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        outs = []
        for photo in photos:
            np.ones(photo.pixels.size * 60, np.uint8)
            outs.append(replace(self._one(PhotoIn(key=photo.key, pixels=SMALL), 0), pixels=photo.pixels.copy()))
        model = {"name": "fake", "role": "surrogate", "sha256": "0", "licence": "none"}
        return IdentityOut(outs, {"zero_shot_layer": 0.1}, 1, "cpu", [model], {})


class Placed(AddNoise):
    """Takes a second an identity and writes its node's name into the reason; on a node named "bad" it has no weights.

    On one named "tires" it loses them after two identities.

    DLADIFF_NODE is a node's name, set with `Cluster.add_node(env_vars=...)`.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        super().__init__(settings, seed, threads)
        self.node, self.ended = os.environ.get("DLADIFF_NODE", ""), 0
        if self.node.startswith("bad"):
            raise ModelError(f"no weights on {self.node}")

    def protect_identity(self, identity: str, photos: Sequence[PhotoIn], clean: Sequence[Any]) -> IdentityOut:
        time.sleep(1)
        self.ended += 1
        if self.node.startswith("tires") and self.ended > 2:
            raise ModelError(f"weights lost on {self.node}")
        out = super().protect_identity(identity, photos, clean)
        return replace(out, photos=[replace(photo, reason=self.node) for photo in out.photos])
