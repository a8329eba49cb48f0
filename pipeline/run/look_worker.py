"""The process behind `dladiff plan --look`: reads a task as JSON on stdin, prints what the faces say as JSON."""

import contextlib
import json
import sys
from typing import Any

import torch

from dladiff.core.grouping import different_people, median_cosine
from dladiff.errors import DladiffError
from dladiff.faces.largest import largest_faces
from dladiff.service import named_detector, named_encoder
from pipeline.config import RunConfig
from pipeline.run.actor import ProtectIdentity
from pipeline.run.reading import Reading


def main() -> None:
    """Compare the faces of each identity; an error of models or storage is printed as `error` and `kind`."""
    task = json.load(sys.stdin)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the answer
        try:
            answer: dict[str, Any] = {"found": _found(RunConfig(**task["run"]), task["identities"])}
        except DladiffError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
    json.dump(answer, out)


def _found(config: RunConfig, identities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    torch.set_num_threads(config.cpus_per_actor)
    method, device = config.method_config(), torch.device("cpu")
    settings = method.zero_shot
    detector = named_detector(method.detector, settings.min_face_px, settings.detector_threshold)
    encoders = [named_encoder(name) for name in method.encoders]
    actor = ProtectIdentity(config.to_dict(), "look", "")
    found = []
    for identity in identities:
        rows: dict[str, dict[str, Any]] = {p["uri"]: {"status": "", "reason": ""} for p in identity["photos"]}
        faces = []
        with Reading(config, actor.photo_bytes, lambda _: None) as reading:
            for group in reading.groups(reading.measure(identity["photos"], rows)):
                pixels = [photo.pixels for photo in reading.decode(group).values()]
                faces += largest_faces(pixels, detector, encoders, device)
                reading.free(group)
        found.append(
            {
                "identity": identity["identity"],
                "photos": len(rows),
                "faces": len(faces),
                "median": median_cosine(faces),
                "mixed": bool(different_people(faces)),
            }
        )
    return found


if __name__ == "__main__":
    main()
