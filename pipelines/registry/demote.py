"""Gives an alias back to an earlier version; nothing is registered or removed."""

from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.promote import DemoteConfig
from pipelines.errors import JobFailed, UserError
from pipelines.redaction import one_line
from pipelines.registry.alias import move_alias
from pipelines.registry.versions import CODE_TAG
from pipelines.tracking.server import check_tracking, tracking_uri
from pipelines.tracking.sqlite import sqlite_file


@dataclass(frozen=True)
class Demotion:
    """A move of an alias between two versions."""

    model: str
    alias: str
    old: str
    new: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.model}: alias {self.alias} from version {self.old} to version {self.new}"


def plan_demotion(config: DemoteConfig) -> Demotion:
    """Finds the versions of a demotion, and changes nothing.

    Raises:
        UserError: If the model, the alias or the version does not exist, or it has the alias.
    """
    check_tracking(config.tracking)
    client = _client(config)
    name, alias = config.model, config.alias
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        raise UserError(f"model ({name}) is not registered") from error
    if alias not in aliases:
        there = ", ".join(sorted(aliases)) or "none"
        raise UserError(f"alias ({alias}) is not given to a version of {name}; aliases: {there}")
    old = str(aliases[alias])
    new = str(config.to) if config.to else _before(client, name, alias, old)
    if new == old:
        raise UserError(f"to ({new}) must be another version: it has the alias {alias} of {name}")
    versions = {str(one.version): one for one in client.search_model_versions(f"name = '{name}'")}
    if new not in versions:
        there = ", ".join(sorted(versions, key=int))
        raise UserError(f"to ({new}) must be a version of {name}, which has {there}")
    if CODE_TAG not in versions[new].tags:
        raise UserError(
            f"to ({new}) was registered by an older release, whose code would not run beside this "
            "one: promote its checkpoint again"
        )
    return Demotion(name, alias, old, new)


def _before(client: MlflowClient, name: str, alias: str, number: str) -> str:
    before = client.get_model_version(name, number).tags.get(f"xkd.alias.{alias}.before")
    if before is None:
        raise UserError(
            f"to must be given: nothing is recorded of who had the alias {alias} before version "
            f"{number} of {name}"
        )
    return before


def demote(config: DemoteConfig) -> Demotion:
    """Moves the alias and records it on both versions.

    Raises:
        UserError: As `plan_demotion`.
        JobFailed: If MLflow refuses.
    """
    plan = plan_demotion(config)
    why = f"demoted version {plan.old}" + (f": {config.reason}" if config.reason else "")
    try:
        move_alias(_client(config), plan.model, plan.alias, plan.new, why, is_way_back=True)
    except MlflowException as error:
        raise JobFailed(
            f"MLflow did not move the alias {plan.alias}: {one_line(error)}. The same command "
            "tries again"
        ) from error
    return plan


def _client(config: DemoteConfig) -> MlflowClient:
    uri = tracking_uri(config.tracking)
    if (database := sqlite_file(uri)) is not None and not database.exists():
        raise UserError(f"model ({config.model}) is not registered: there is no {uri}")
    return MlflowClient(uri)
