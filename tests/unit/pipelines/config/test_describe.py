"""Every setting that a job takes says what it does, in the help and in the code."""

import importlib
import pkgutil

import pytest
from pydantic import BaseModel

import pipelines.config
import xkd_core.config
from pipelines.config.describe import section_description, setting_descriptions
from ray_jobs.cli.jobs import JOBS

MODULES = [
    xkd_core.config,
    *(
        importlib.import_module(f"pipelines.config.{module.name}")
        for module in pkgutil.iter_modules(pipelines.config.__path__)
    ),
]
SCHEMAS = sorted(
    {
        member
        for module in MODULES
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, BaseModel)
        and member.__module__ == module.__name__
    },
    key=lambda schema: (schema.__module__, schema.__name__),
)


def test_all_schemas_are_found():
    assert {job.schema() for job in JOBS.values()} < set(SCHEMAS)
    assert len(SCHEMAS) > 30


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_a_setting_says_what_it_does(schema):
    assert [setting.name for setting in setting_descriptions(schema) if not setting.meaning] == []


@pytest.mark.parametrize("name", JOBS)
def test_a_section_says_what_it_is_about(name):
    schema = JOBS[name].schema()
    sections = {setting.name.rpartition(".")[0] for setting in setting_descriptions(schema)}
    assert len(sections) > 1
    assert [
        section for section in sections - {""} if not section_description(schema, section)
    ] == []


def test_a_description_of_the_field_goes_before_that_of_its_class():
    schema = JOBS["pretrain"].schema()
    about = section_description(schema, "views.global_crop_area")
    assert about == "Area of the crop of a global view, as a share of the frame."
    assert section_description(schema, "tracking") == "The MLflow that a job logs to."


def test_a_setting_that_its_section_gives_by_default_is_not_required():
    defaults = {one.name: one.default for one in setting_descriptions(JOBS["pretrain"].schema())}
    assert defaults["model.encoder.width"] == "768"
    assert defaults["model.decoder.width"] == "384"
    assert defaults["views.crop_ratio.low"] == "0.75"
    assert defaults["epochs"] == "required"
    required = {name for name, default in defaults.items() if default == "required"}
    assert not any(name.startswith(("model.", "views.")) for name in required)
