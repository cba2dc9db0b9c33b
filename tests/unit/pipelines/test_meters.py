"""Measures for Prometheus, and that the dashboard and the alerts ask for what the code emits."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.meters import METERS

REPOSITORY = Path(__file__).resolve().parents[3]
MONITORING = REPOSITORY / "docker" / "monitoring"
NAME = re.compile(r"\bray_xkd_\w+")
EXPORTED = {meter.exported(name) for name, meter in METERS.items()}


def dashboard_expressions():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    return {panel["title"]: panel["targets"][0]["expr"] for panel in panels}


def alert_expressions():
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_the_dashboard_shows_every_measure_and_no_other():
    assert set(NAME.findall(" ".join(dashboard_expressions().values()))) == EXPORTED


def test_alerts_ask_for_measures_that_exist():
    alerts = alert_expressions()
    assert {"XkdCollapse", "XkdStarvation", "XkdRejects", "XkdNoProgress"} <= alerts.keys()
    assert set(NAME.findall(" ".join(alerts.values()))) <= EXPORTED
    assert all(NAME.search(expression) for expression in alerts.values())


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_alerts_fire_when_they_should_and_no_earlier():
    for command in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = subprocess.run(
            ["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_expressions_are_balanced_and_group_by_tags_that_measures_have():
    tags = {meter.tag for meter in METERS.values()}
    for name, expression in (dashboard_expressions() | alert_expressions()).items():
        assert expression.count("(") == expression.count(")"), name
        assert set(re.findall(r"(?:by|on) \((\w+)\)", expression)) <= tags, name


def test_the_code_emits_every_measure():
    emitted = set()
    for package in ("pipelines", "ray_jobs"):
        for file in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("show", "count"):
                    emitted |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    from pipelines.meters import _OF_RECORDS

    assert emitted | set(_OF_RECORDS.values()) == METERS.keys()
