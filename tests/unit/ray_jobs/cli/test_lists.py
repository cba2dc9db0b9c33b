"""A setting that is a text or a list of them, on the command line and in messages."""

import pytest

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from ray_jobs.cli.settings import load_settings

REST = ("name=n", "output=/o", "epochs=40", "batch_size=4")


def load(*overrides):
    return load_settings(PretrainConfig, None, [*REST, *overrides])


@pytest.mark.parametrize(
    ("text", "datasets"),
    [
        ("/a", "/a"),
        ("[/a]", ("/a",)),
        ("[/a, s3://bucket/a b, 's3://bucket/c,d']", ("/a", "s3://bucket/a b", "s3://bucket/c,d")),
        ("/data/[old]", "/data/[old]"),
    ],
)
def test_datasets_are_a_text_or_a_list(text, datasets):
    assert load(f"dataset={text}").dataset == datasets


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("dataset=[]", "dataset ([]) must have at least 1 value"),
        ("dataset=[[/a]]", "dataset.0 (['/a']): input should be a valid string"),
        ("dataset=[/a,3]", "dataset.1 (3): input should be a valid string"),
        ("dataset=s3://", "dataset (s3://) must name a bucket after ://"),
        ("dataset=", "dataset (''): string should have at least 1 character"),
        ("num_workers=[1]", "num_workers.1 is missing"),
        ("num_workers=[1,0]", "num_workers.1 (0): input should be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_without_the_types_of_the_schema(override, line):
    datasets = () if override.startswith("dataset") else ("dataset=/a",)
    with pytest.raises(UserError) as error:
        load(*datasets, override)
    assert str(error.value) == f"settings: {line}"
