"""MLflow on a machine of its own, as `docker/compose.yaml` runs it if all of that is installed.

With PostgreSQL's programs, psycopg2 and Flask-WTF: on PostgreSQL, with logins. Else on SQLite.
"""

import importlib.util
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.machines import Machine

_DATABASE = """
set -e
install --directory --owner=65534 --group=65534 /tmp/database
cd /tmp/database
as="setpriv --reuid=65534 --regid=65534 --clear-groups"
$as "$1/initdb" --pgdata=/tmp/database --username=mlflow --auth=trust
$as "$1/postgres" --single -D /tmp/database postgres <<< 'CREATE DATABASE mlflow'
exec $as "$1/postgres" -D /tmp/database -k /tmp/database -h 127.0.0.1
"""


def start_mlflow(machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """Starts the server; returns the variables that clients need besides its address."""
    command = ["server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1"]
    command += ["--artifacts-destination", "/tmp/artifacts", "--allowed-hosts", "*"]
    settings, clients = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, {}
    programs, packages = _programs(), _packages()
    if programs is not None and packages is not None:
        machine.start(["bash", "-c", _DATABASE, "-", str(programs)], environment)
        password = secrets.token_hex(16)
        clients = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        settings |= {
            "PYTHONPATH": str(packages),
            "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://mlflow@127.0.0.1:5432/mlflow",
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        command += ["--app-name", "basic-auth"]
    else:
        command += ["--backend-store-uri", "sqlite:////tmp/mlflow.db"]
    print("MLflow on", "PostgreSQL, with logins" if clients else "SQLite, without logins")
    program = str(Path(sys.executable).with_name("mlflow"))
    # The file of users is written to the working directory; the database takes a moment.
    again = 'cd /tmp; until "$@"; do sleep 2; done'
    machine.start(["sh", "-c", again, "-", program, *command], {**environment, **settings})
    return clients


def _programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _packages() -> Path | None:
    """Returns the folder that has what MLflow needs for PostgreSQL and logins."""
    found = [importlib.util.find_spec(name) for name in ("psycopg2", "flask_wtf")]
    if not all(found) or found[0] is None or found[0].origin is None:
        return None
    return Path(found[0].origin).parents[1]
