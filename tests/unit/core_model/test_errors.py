"""Errors carry what the front door prints, also across processes."""

import pickle

import pytest

from core_model import errors


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        (errors.LearningConfigError, "config", 3),
        (errors.DataError, "data", 6),
        (errors.UserCodeError, "policy", 4),
        (errors.ManifestError, "manifest-mismatch", 4),
        (errors.TrainingError, "training", 6),
    ],
)
def test_attributes_survive_a_trip_between_processes(kind, code, status):
    error = pickle.loads(pickle.dumps(kind("It broke.", "Mend it.")))
    assert type(error) is kind
    assert (error.code, error.exit_code, error.message, error.hint) == (code, status, "It broke.", "Mend it.")
    assert str(error) == "It broke."
