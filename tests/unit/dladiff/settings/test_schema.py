import pytest

from dladiff.errors import ConfigError
from dladiff.settings.merge import digest
from dladiff.settings.presets import PROFILES
from dladiff.settings.schema import encoder_fault, method_config


def test_paper_preset_keeps_the_paper_schedule() -> None:
    config = method_config("tiny", "paper", {})
    layer = config.finetuning
    assert (layer.iter_ft, layer.iter_opt, layer.iter_1, layer.iter_2, layer.iter_3) == (400, 50, 3, 3, 3)
    assert config.finetuning.eta == 7 / 255 and config.zero_shot.eta == 11 / 255


def test_every_fault_is_listed_at_once() -> None:
    overrides = {
        "finetunning": {},
        "finetuning": {"eta": 3, "iter_opt": "many", "gradient": "up"},
        "zero_shot": {"drawz": 1},
    }
    with pytest.raises(ConfigError) as caught:
        method_config("tinny", None, overrides)
    text = str(caught.value)
    assert len(caught.value.faults) == 6
    for part in (
        "tinny",
        "did you mean tiny",
        "did you mean finetuning",
        "iter_opt",
        "gradient",
        "eta: 3",
        "did you mean draws",
    ):
        assert part in text


def test_ranges_and_consistency() -> None:
    with pytest.raises(ConfigError) as caught:
        method_config("tiny", None, {"finetuning": {"eta": 3}, "resolution": 100, "held_out": ["embedded:residual"]})
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"gpu_memory": ["24GB"]}, "gpu_memory"),
        ({"protection": ["mist"]}, "protection"),
        ({"profile": "tiny"}, "no setting of the method"),
        ({"finetuning": {"eta": 10**400}}, "too large"),
        (
            {"zero_shot": {"encoder_weights": [float("nan")]}},
            r"zero_shot\.encoder_weights\[0\]: nan is not a finite number",
        ),
        ({"zero_shot": {"encoder_weights": [-1]}}, r"zero_shot\.encoder_weights\[0\]: -1 is not above 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        method_config("tiny", None, settings)


def test_a_model_without_a_name_says_so() -> None:
    with pytest.raises(ConfigError, match=r"set method\.model"):
        method_config("sd21", None, {"model": ""})


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "tiny"])
def test_a_full_size_profile_has_no_encoders_of_its_own(profile: str) -> None:
    config = method_config(profile, None, {})
    assert (config.encoders, config.held_out) == ((), ())
    fault = encoder_fault(config)
    assert fault and all(name in fault for name in (profile, "buffalo_l", "antelopev2", "insightface", "DLADIFF_FACES"))
    assert encoder_fault(method_config(profile, None, {"layers": "finetuning"})) is None
    assert encoder_fault(method_config(profile, None, {"protection": "aspl"})) is None
    assert encoder_fault(method_config(profile, None, {"encoders": ["embedded:residual"]})) is None
    assert encoder_fault(method_config("tiny", None, {})) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"fits": "24GB"}, "fits: renamed to gpu_memory"),
        ({"finetuning": {"step": 1e-3}}, "finetuning.step: renamed to step_size"),
        ({"finetuning": {"least_psnr": 30.0}}, "finetuning.least_psnr: renamed to min_psnr"),
        ({"zero_shot": {"ths": 0.2}}, "zero_shot.ths: renamed to threshold"),
        ({"zero_shot": {"step": 1e-3}}, "zero_shot.step: renamed to step_size"),
        ({"zero_shot": {"weights": [1.0]}}, "zero_shot.weights: renamed to encoder_weights"),
        ({"zero_shot": {"robust": True}}, "zero_shot.robust: renamed to eot"),
    ],
)
def test_a_renamed_setting_names_its_present_name(old: dict[str, object], new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        method_config("tiny", None, old)
    assert caught.value.faults == [new]


def test_digest_ignores_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    one = method_config("tiny", None, {}).to_dict()
    assert one["finetuning"]["eta"] == 7 / 255 and isinstance(one["encoders"], list)


@pytest.mark.parametrize("profile", ["tiny", "sd21"])
def test_the_preset_paper_is_the_paper_s_method(profile: str) -> None:
    """Sign steps in L-inf balls of 7 and 11 levels, Algorithm 2's own noise and space, whatever the profile changes."""
    config = method_config(profile, "paper", {})
    assert (config.visibility, config.layers, config.protection) == (0, "both", "dladiff")
    layer1, layer2 = config.finetuning, config.zero_shot
    assert (round(layer1.eta * 255, 6), layer1.step_size, layer1.min_psnr) == (7, 2.5e-3, 0)
    assert (layer1.iter_ft, layer1.iter_opt, layer1.iter_1, layer1.iter_2, layer1.iter_3) == (400, 50, 3, 3, 3)
    assert (round(layer2.eta * 255, 6), layer2.step_size, layer2.max_steps, layer2.check_every) == (11, 4e-4, 200, 1)
    assert (layer2.threshold, layer2.space, layer2.draws, layer2.eot) == (0.1, "aligned", 1, False)
    assert (layer2.linear_noise, layer2.shift_noise, layer2.encoder_weights) == (1e-3, 0.5, ())
    assert layer2.threshold - layer2.margin < -1  # no hinge: every encoder has a gradient until the stop rule ends


def test_strengths_differ_in_visibility_and_balanced_is_the_default() -> None:
    faint, balanced, strong = (method_config("tiny", name, {}) for name in ("faint", "balanced", "strong"))
    assert faint.visibility > balanced.visibility > strong.visibility > 0
    assert balanced == method_config("tiny", None, {})


def test_a_compared_method_keeps_its_own_bound_unless_a_visibility_is_given() -> None:
    assert method_config("tiny", None, {"protection": "aspl"}).visibility == 0
    assert method_config("tiny", None, {"protection": "aspl", "visibility": 75}).visibility == 75
