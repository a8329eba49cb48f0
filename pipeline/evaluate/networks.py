"""The networks of an evaluation's worker, loaded at first use: evaluator, base models, attacks, preprocessing."""

from collections.abc import Callable
from typing import Any

from dladiff.core.arrays import Pixels
from dladiff.errors import ConfigError
from dladiff.evaluation.attacks import ATTACKS, ENCODER_ONLY, AttackSettings
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS
from pipeline.evaluate.config import EvaluateConfig

Pictures = dict[str, list[Pixels]]
"""Prompt to pictures."""


class EvaluationModels:
    """Loads the networks and keeps them from row to row. Torch is imported at first use, on the worker."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self._networks: Any = None
        self._checked = False
        self._bases: dict[str, tuple[Any, Any]] = {}
        self._preprocessings: dict[str, Callable[[Pixels], Pixels]] = {}

    @property
    def networks(self) -> Any:
        """The networks of the metrics, a `dladiff.evaluation.scores.Networks`. Raises ModelError."""
        if self._networks is None:
            from dladiff.evaluation.evaluator import embedded_features, load_evaluator, use_device
            from dladiff.evaluation.scores import Networks
            from dladiff.faces.image_network import ImageNetwork

            use_device(self.config.cpus, False)
            files = {"features": self.config.features, "quality": self.config.fiqa, "lpips": self.config.lpips}
            loaded = {role: ImageNetwork(path, role) if path else None for role, path in files.items()}
            self._networks = Networks(
                evaluator=load_evaluator(self.config.evaluators),
                features=loaded["features"] or embedded_features(),
                fiqa=loaded["quality"],
                lpips=loaded["lpips"],
            )
        return self._networks

    def check(self) -> None:
        """Load all networks of the evaluation, before its first row. Raises ModelError, ConfigError: one is missing."""
        if self._checked:
            return
        for name in (*self.config.preprocessings, *self.config.rescores):
            self.preprocessing(name)
        for base in self.config.bases:
            for name in self.config.attacks:
                self.attack(name, base)
        self._checked = True

    def attack(self, name: str, base: str) -> Callable[[list[Pixels], int], Pictures] | None:
        """Return the attack as a function (crops, seed) of the pictures; None for `encoder_only`.

        Raises ModelError or ConfigError: weights are missing or a setting is unknown.
        """
        if name == ENCODER_ONLY:
            return None
        from dladiff.evaluation.attackers.base import settings_for

        record = ATTACKS[name]
        model = self.base(base)[0]
        changed = self.config.settings.get(name, {})
        settings, faults = AttackSettings.load(dict(settings_for(name, model)) | changed, f"{name}.")
        if settings is None:
            raise ConfigError(faults)
        if record.check:
            record.load(record.check)(model, settings)
        attack = record.load()
        return lambda crops, seed: attack(model, crops, settings, self.config.prompts, self.config.count, seed)

    def base(self, folder: str) -> tuple[Any, Any]:
        """Return a base model and its safety checker, or None for the checker if it has none."""
        if folder not in self._bases:
            from dladiff.evaluation.attackers.base import load_base
            from dladiff.evaluation.evaluator import use_device
            from dladiff.evaluation.safety import safety_checker

            device = use_device(self.config.cpus, bool(self.config.gpus))
            self._bases[folder] = (load_base(folder, device), safety_checker(folder))
        return self._bases[folder]

    def preprocessing(self, name: str) -> Callable[[Pixels], Pixels]:
        """Return a preprocessing's function of a photo. `name` is NAME, or NAME=PATH of a purifier's weights."""
        if name not in self._preprocessings:
            from dladiff.evaluation.evaluator import use_device

            record, _, folder = name.partition("=")
            device = use_device(self.config.cpus, bool(self.config.gpus))
            self._preprocessings[name] = PREPROCESSINGS[record].prepare(folder, device)
        return self._preprocessings[name]

    def crops(self, photos: list[Pixels], base: str) -> list[Pixels]:
        """Return the attacker's training crops; photos without a detected face are dropped."""
        from dladiff.evaluation.crop import attacker_crop

        model = self.base(base)[0]
        crops = [attacker_crop(p, model.region, model.resolution, self.networks.evaluator.detector) for p in photos]
        return [crop for crop in crops if crop is not None]
