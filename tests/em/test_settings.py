import pytest

from nemo_rpo.em import BufferSettings, EMSettings
from nemo_rpo.errors import ConfigError


def test_defaults_are_the_papers():
    settings = EMSettings()
    settings.validate()
    assert (settings.eta_init, settings.alpha) == (0.9, 0.1)
    assert (settings.estimator, settings.objective) == ("buffer", "auto")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "Induced"),
        ("estimator", "sgd"),
        ("sweep", True),
        ("eta_clamp", 0.0),
        ("eta_clamp", 0.5),
        ("eta_floor", 1.0),
        ("eta_floor", -0.1),
        ("eta_init", 1.0),
        ("eta_init", "0.9"),
        ("eta_init", float("nan")),
        ("alpha", 0.0),
        ("alpha", 1.1),
        ("alpha_per_labels", 0),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("link_tau", 0.0),
        ("link_tau", float("inf")),
        ("prior", (1.0,)),
        ("prior", (1.0, -1.0)),
        ("prior", 4),
        ("prior", "31"),
        ("sweep_max_iterations", 0),
        ("sweep_tolerance", 0.0),
    ],
)
def test_a_bad_value_names_its_field(field, value):
    with pytest.raises(ConfigError, match=rf"^model\.rpo\.{field} must .*{str(value)[:4].strip('(')}") as error:
        EMSettings(**{field: value}).validate()
    assert "\n" not in str(error.value)


def test_a_start_below_the_floor_is_refused():
    with pytest.raises(ConfigError, match=r"model\.rpo\.eta_init must be between 0\.5 and"):
        EMSettings(eta_init=0.4, eta_floor=0.5).validate()


def test_yaml_gives_lists_for_pairs():
    EMSettings(prior=[2, 1]).validate()


@pytest.mark.parametrize(
    ("field", "value"),
    [("margins", "last"), ("refit_every", 0), ("min_information", 1.0), ("temperature_max_error", 0.0)],
)
def test_a_bad_buffer_value_names_its_path(field, value):
    with pytest.raises(ConfigError, match=rf"^model\.rpo\.buffer\.{field} must .*{value}"):
        EMSettings(buffer=BufferSettings(**{field: value})).validate()


def test_the_buffer_needs_a_proper_prior():
    EMSettings(estimator="ema", prior=(0, 0)).validate()
    with pytest.raises(ConfigError, match=r"model\.rpo\.prior must be above 0 twice under estimator: buffer"):
        EMSettings(estimator="buffer", prior=(3, 0)).validate()
