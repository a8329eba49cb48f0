"""The networks that an evaluation's worker holds: judge, base models, attacks, preprocessing; loaded when needed."""

from collections.abc import Callable
from typing import Any

from dladiff.core.arrays import Pixels as UInt8
from dladiff.errors import ConfigError
from dladiff.evaluation.attacks import ATTACKS, AttackSettings
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from pipeline.evaluate.config import ENCODER_ONLY, EvaluateConfig

Images = dict[str, list[UInt8]]
"""Prompt to pictures."""


class EvaluationModels:
    """Everything of `dladiff.evaluation` that outlives a row. Torch comes in at the first use, on the worker."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self._networks: Any = None
        self._checked = False
        self._bases: dict[str, tuple[Any, Any]] = {}
        self._ways: dict[str, Callable[[UInt8], UInt8]] = {}

    @property
    def networks(self) -> Any:
        """Return `dladiff.evaluation.scores.Networks`. Raises ModelError."""
        if self._networks is None:
            from dladiff.evaluation.devices import prepare
            from dladiff.evaluation.judge import embedded_features, load_judge
            from dladiff.evaluation.scores import Networks
            from dladiff.faces.image_network import ImageNetwork

            prepare(self.config.cpus, False)
            given = {"features": self.config.features, "quality": self.config.fiqa, "lpips": self.config.lpips}
            found = {role: ImageNetwork(path, role) if path else None for role, path in given.items()}
            self._networks = Networks(
                judge=load_judge(self.config.judges),
                features=found["features"] or embedded_features(),
                fiqa=found["quality"],
                lpips=found["lpips"],
            )
        return self._networks

    def check(self) -> None:
        """Load whatever the evaluation will ask for: what is missing is told before the first row, not hours later.

        Raises ModelError or ConfigError.
        """
        if self._checked:
            return
        for way in self.config.preprocessings:
            self.way(way)
        for base in self.config.bases:
            for name in self.config.attacks:
                self.attack(name, base)
        self._checked = True

    def attack(self, name: str, base: str) -> Callable[[list[UInt8], int], Images] | None:
        """Return the attack as (squares, seed) to pictures; None for `encoder_only`, which generates nothing.

        Raises ModelError or ConfigError for weights that are missing or a setting that is not known.
        """
        if name == ENCODER_ONLY:
            return None
        from dladiff.evaluation.attackers.settings import settings_for

        record = ATTACKS[name]
        model = self.base(base)[0]
        changed = self.config.settings.get(name, {})
        settings, faults = AttackSettings.load(dict(settings_for(name, model)) | changed, f"{name}.")
        if settings is None:
            raise ConfigError(faults)
        if record.check:
            record.load(record.check)(model, settings)
        attack = record.load()
        return lambda squares, seed: attack(model, squares, settings, self.config.prompts, self.config.count, seed)

    def base(self, folder: str) -> tuple[Any, Any]:
        """Return a base model and its safety checker, if it has one."""
        if folder not in self._bases:
            from dladiff.evaluation.attackers.base import load_base
            from dladiff.evaluation.devices import prepare
            from dladiff.evaluation.safety import safety_checker

            device = prepare(self.config.cpus, bool(self.config.gpus))
            self._bases[folder] = (load_base(folder, device), safety_checker(folder))
        return self._bases[folder]

    def way(self, name: str) -> Callable[[UInt8], UInt8]:
        """Return a preprocessing, or a purifier, by NAME or NAME=FOLDER."""
        if name not in self._ways:
            from dladiff.evaluation.devices import prepare

            plain, _, folder = name.partition("=")
            device = prepare(self.config.cpus, bool(self.config.gpus))
            self._ways[name] = PREPROCESSINGS[plain].prepare(folder, device)
        return self._ways[name]

    def squares(self, photos: list[UInt8], base: str) -> list[UInt8]:
        """Cut what the thief trains on; photos in which it finds no face are missing."""
        from dladiff.evaluation.squares import thief_square

        model = self.base(base)[0]
        cut = [thief_square(p, model.region, model.resolution, self.networks.judge.detector) for p in photos]
        return [square for square in cut if square is not None]
