"""Evaluations of a suite share the features that they embed."""

import pytest

from pipelines.config.suite import SuiteConfig
from pipelines.errors import UserError
from ray_jobs.suite import evaluations


def test_evaluations_share_a_cache_unless_one_names_its_own(tmp_path):
    own = str(tmp_path / "own")
    config = SuiteConfig.model_validate(
        {
            "checkpoint": str(tmp_path / "checkpoint"),
            "output": str(tmp_path / "card"),
            "suite": [
                {"config": "smoke", "name": "probes", "settings": {"measures": ["linear"]}},
                {"config": "smoke", "name": "neighbors", "settings": {"measures": ["knn"]}},
                {"config": "smoke", "name": "apart", "settings": {"cache": own}},
            ],
        }
    )
    found = {name: one.cache for name, one in evaluations(config).items()}
    shared = str(tmp_path / "card/features")
    assert found == {"probes": shared, "neighbors": shared, "apart": own}


def test_a_configuration_that_does_not_exist_is_named_with_its_evaluation(tmp_path):
    config = SuiteConfig.model_validate(
        {
            "checkpoint": str(tmp_path / "checkpoint"),
            "output": str(tmp_path / "card"),
            "suite": [{"config": "smokey", "name": "probes"}],
        }
    )
    with pytest.raises(UserError, match=r"suite \(probes\): config \(smokey\) must be .* smoke\?"):
        evaluations(config)
