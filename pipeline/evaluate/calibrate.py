"""`dladiff calibrate`: thresholds of verification for encoders, from a folder of photos of each person."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dladiff.errors import BusyError, ConfigError, PhotoError, StorageError
from dladiff.evaluation.verification import FAR, Calibration, Calibrations, calibrated
from pipeline.sources import shards
from pipeline.sources.decode import decode
from pipeline.sources.find import find_identities
from pipeline.sources.originals import MAX_PHOTO
from pipeline.storage.keys import shown
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dladiff.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)


def calibrate(
    people: str,
    encoders: Sequence[str],
    out: Path,
    *,
    far: float = FAR,
    source: str = "",
    echo: Callable[[str], None] = lambda line: None,
) -> tuple[Calibration, ...]:
    """Embed every photo of the people, write the calibrations to `out` as JSON, and return them.

    Works in this process. `echo` receives a line per person. Photos that cannot be read or show no face are left out.
    Raises ConfigError (too few people), ModelError, StorageError.
    """
    from dladiff.evaluation.evaluator import load_evaluator

    if not encoders or len(set(encoders)) < len(encoders):
        raise ConfigError(["--evaluator: name one or more encoders, each once"])
    found = _embedded(people, load_evaluator(encoders), echo)
    calibrations = tuple(
        calibrated(own, encoder=name, sha256=sha256, without_face=found.without_face, source=source, far=far)
        for (name, sha256), own in found.embeddings.items()
    )
    text = json.dumps(Calibrations(encoders=calibrations).to_dict(), indent=2, sort_keys=True) + "\n"
    open_storage(out.absolute().parent, create=True).put(out.name, text.encode(), "application/json")
    return calibrations


class _Found:
    """Embeddings by (encoder, digest) and person, and the number of photos left out."""

    def __init__(self, evaluator: "Evaluator") -> None:
        self.embeddings: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {
            (encoder.name, encoder.sha256): {} for encoder in evaluator.encoders
        }
        self.without_face = 0


def _embedded(people: str, evaluator: "Evaluator", echo: Callable[[str], None]) -> _Found:
    import numpy as np

    storage, found = open_storage(people), _Found(evaluator)
    for person in find_identities(storage):
        vectors = []
        for photo in (*person.clean, *person.photos):
            try:
                embedded = evaluator.embed(decode(shards.read(storage, photo.key, MAX_PHOTO)).pixels)
            except BusyError:
                raise
            except (PhotoError, StorageError) as error:
                log.warning("%s: left out: %s", shown(photo.uri), error)
                embedded = None
            if embedded is not None:
                vectors.append(embedded.embeddings)
        found.without_face += len(person.clean) + len(person.photos) - len(vectors)
        echo(f"{shown(person.name)}: {len(vectors)} photos")
        for (name, _), own in found.embeddings.items():
            if vectors:
                own[person.name] = np.stack([one[name] for one in vectors])
    return found
