"""Schedules of the compared methods, and the settings that a method's name implies."""

import pytest

from dladiff.errors import ConfigError
from dladiff.settings.schedules import METHODS, SCHEDULES
from dladiff.settings.schema import method_config


def test_every_method_has_a_schedule_and_the_paper_s_bound():
    bounds = {"fsmg": 6.4, "aspl": 6.4, "disdiff": 6.4, "anti-diffusion": 7.8, "mist": 7, "caat": 6.4, "ace": 4}
    bounds |= {"photoguard": 16, "pid": 12.75, "sds": 16, "metacloak": 11, "simac": 6.4}
    assert {name: round(SCHEDULES[name].eta * 255, 3) for name in bounds} == bounds


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_takes_a_method_with_its_bound_and_without_layer_2(method):
    config = method_config("tiny", None, {"protection": method})
    assert (config.layers, config.finetuning.eta) == ("finetuning", SCHEDULES[method].eta)
    assert method_config("tiny", None, {"protection": method, "finetuning": {"eta": 0.02}}).finetuning.eta == 0.02
    with pytest.raises(ConfigError, match="has no layer 2"):
        method_config("tiny", None, {"protection": method, "layers": "both"})


def test_ablations_leave_out_what_they_name_and_keep_the_number_of_steps():
    for preset, left_out in (("without_dsur", ("iter_ft", "iter_1")), ("without_adft", ("iter_2", "iter_3"))):
        layer = method_config("tiny", preset, {}).finetuning
        assert all(getattr(layer, name) == 0 for name in left_out)
        assert layer.iter_1 + layer.iter_2 == 6
    assert method_config("tiny", "without_layer2", {}).layers == "finetuning"
