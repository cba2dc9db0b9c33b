"""Nodes of the connected Ray: those that work, those about to leave, and waiting for more.

A cluster with an autoscaler, or whose nodes start late, may have no node when a job begins. A job
that needs more than there is waits for it, holding a demand that the autoscaler sees.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.autoscaler import autoscaler_limits
from pipelines.errors import UserError
from pipelines.quantities import counted, duration

logger = logging.getLogger(__name__)

Resources = Mapping[str, float]
_Found = TypeVar("_Found")

_SCALING_SECONDS = 600.0
"""Default patience where nodes may come: machines of clouds take minutes to start."""
_POLL_SECONDS = 1.0
_REMIND_SECONDS = 60.0
_WATCH_SECONDS = 5.0
_seen: set[str] = set()
"""IDs of the nodes that were alive since `watched_nodes` began."""


def working_nodes(leaving: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns the nodes that are alive and stay, as `ray.nodes` describes them.

    Args:
        leaving: IDs of nodes that are known to leave.
    """
    gone = {*leaving, *draining_nodes()}
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]


def draining_nodes() -> list[str]:
    """Returns the IDs of nodes that are about to leave; none through `ray://`."""
    if ray.util.client.ray.is_connected():
        return []
    return list(ray._private.state.state.get_draining_nodes())  # Ray has no public call


def has_autoscaler() -> bool:
    """Returns whether the cluster has an autoscaler; False through `ray://`."""
    return not ray.util.client.ray.is_connected() and autoscaler_limits() is not None


def wait_for_nodes(
    check: Callable[[Sequence[Resources]], _Found],
    bundles: Sequence[Resources],
    seconds: float | None,
    leaving: Sequence[str] = (),
) -> _Found:
    """Calls a check until it passes on the resources of the working nodes.

    Args:
        check: Called with the resources of each node; raises `UserError` if they do not suffice.
        bundles: What an autoscaler should make room for, each on one node.
        seconds: How long to wait. None: `_SCALING_SECONDS` with an autoscaler, or if a node was
            lost since `watched_nodes` began, as another may take its place; else not at all.
        leaving: IDs of nodes that are known to leave.

    Returns:
        What the check returns.

    Raises:
        UserError: If the check still fails after that time.
    """
    if seconds is None:
        seconds = _SCALING_SECONDS if has_autoscaler() or _has_lost_nodes() else 0.0
    until, remind_at = time.monotonic() + seconds, 0.0
    with ExitStack() as stack:
        while True:
            now = time.monotonic()
            try:
                return check([node["Resources"] for node in working_nodes(leaving)])
            except UserError as error:
                if now >= until:
                    waited = f"; waited {duration(seconds)} (ray.wait_seconds)" if seconds else ""
                    raise UserError(f"{error}{waited}") from error
                if now >= remind_at:
                    if not remind_at:
                        stack.enter_context(_demand(bundles))
                    logger.warning("%s; waiting for nodes, %s left", error, duration(until - now))
                    remind_at = now + _REMIND_SECONDS
            time.sleep(min(_POLL_SECONDS, max(until - now, 0.01)))


@contextmanager
def watched_nodes() -> Iterator[None]:
    """Logs each node that joins, leaves or is about to, in one line, while the block runs.

    A job goes on with nodes that join later, so one without any node for tasks says each minute
    what it waits for.
    """
    finished = threading.Event()
    states = _states()
    _seen.update(_alive(states))

    def watch() -> None:
        before, remind_at = states, 0.0
        while not finished.wait(_WATCH_SECONDS):
            with suppress(Exception):  # a cluster that restarts answers again later
                now = _states()
                _seen.update(_alive(now))
                for text in _changes(before, now):
                    logger.warning("%s", text)
                before = now
                if _has_cpu():
                    remind_at = 0.0
                elif time.monotonic() >= remind_at:
                    logger.warning("no node of Ray has a CPU for tasks; waiting for nodes")
                    remind_at = time.monotonic() + _REMIND_SECONDS

    thread = threading.Thread(target=watch, daemon=True, name="nodes")
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=5)
        _seen.clear()


def _has_lost_nodes() -> bool:
    return bool(_seen - {node["NodeID"] for node in ray.nodes() if node["Alive"]})


def _has_cpu() -> bool:
    return any(node["Resources"].get("CPU", 0.0) >= 1 for node in working_nodes())


def _states() -> dict[str, tuple[str, str]]:
    """Returns a name and a state for each node by its ID."""
    leaving = set(draining_nodes())
    states = {}
    for node in ray.nodes():
        identity = node["NodeID"]
        state = "gone" if not node["Alive"] else "leaving" if identity in leaving else "here"
        name = f"node {identity[:12]} ({node['NodeManagerHostname']} {node['NodeManagerAddress']})"
        states[identity] = name, state
    return states


def _alive(states: Mapping[str, tuple[str, str]]) -> set[str]:
    return {identity for identity, (_, state) in states.items() if state != "gone"}


def _changes(
    before: Mapping[str, tuple[str, str]], now: Mapping[str, tuple[str, str]]
) -> list[str]:
    texts = {"gone": "is gone", "leaving": "is about to leave", "here": "has joined"}
    number = sum(state == "here" for _, state in now.values())
    return [
        f"{name} {texts[state]}; {counted(number, 'node')} now"
        for identity, (name, state) in now.items()
        if before.get(identity, ("", "gone"))[1] != state
    ]


@contextmanager
def _demand(bundles: Sequence[Resources]) -> Iterator[None]:
    """Shows an autoscaler what is needed while the block runs."""
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        yield
    finally:
        remove_placement_group(group)
