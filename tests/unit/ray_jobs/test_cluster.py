"""Which Ray a job runs on."""

import pytest

from pipelines.config import RayConfig
from pipelines.errors import UserError
from ray_jobs.cluster import check_ray, ray_address


@pytest.mark.parametrize(
    ("setting", "variable", "address"),
    [
        (None, "", None),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
    ],
)
def test_local_is_a_ray_of_its_own_with_its_settings(monkeypatch, setting, variable, address):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert ray_address(RayConfig(address=setting)) == address


@pytest.mark.parametrize("address", ["host", "host:", "host:port", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match=r"ray.address \(.*\) must be auto, HOST:PORT or ray://"):
        check_ray(RayConfig(address=address))
