"""What steps do in common: jobs are submitted, waited for, and compared."""

import os
import subprocess
import time
from collections.abc import Callable

from mlflow.tracking import MlflowClient

from pipelines.storage import path_of
from tests.cluster.machines import Machine, wait_until
from tests.cluster.outcome import Outcome, difference, outcome_of
from tests.cluster.stand import HOME, Stand
from tests.helpers.programs import TINY

TRAINING = (
    "pretrain.epochs=40",
    "pretrain.log_every=1",
    "pretrain.checkpoint_every=5",
    "pretrain.num_workers=2",
)
NEVER = ("pretrain.checkpoint_every=1000000",)
STOPPED = os.EX_TEMPFAIL
USER_ERROR = 2
UNDISTURBED = "undisturbed"
JOB_SECONDS = 900.0
OUTAGE_SECONDS = 60.0
GRACE_SECONDS = 20
DECODING_SECONDS = 2.0
"""From the start of a decoder to the middle of its first unit."""
DISTURBED_AT = 15
"""Step from which on a training is disturbed."""


class Board:
    """Runs jobs on a stand.

    Args:
        stand: Where.
        reference: What the undisturbed job has left, if it has run before.
    """

    def __init__(self, stand: Stand, reference: Outcome | None) -> None:
        self.stand, self.reference = stand, reference
        self._complete = ""
        """Name of a main job that has ended on this stand as it should."""

    def _complete_job(self) -> str:
        """Returns the name of a complete main job, which is run if there is none."""
        if not self._complete:
            self._main_job(UNDISTURBED)
            self._difference(UNDISTURBED)
        return self._complete

    def _compared(
        self,
        name: str,
        disturb: Callable[[], None] | None,
        *settings: str,
        at: int | None = DISTURBED_AT,
    ) -> str:
        submitted = self._begin(name, *settings)
        if disturb is not None:
            if at is not None:
                self._wait_for_step(name, at)
            disturb()
        self._ended(submitted, name)
        return self._difference(name)

    def _difference(self, name: str) -> str:
        assert self.reference is not None, f"run the step {UNDISTURBED} first"
        text = difference(outcome_of(self.stand, name), self.reference)
        self._complete = name
        return text

    def _main_job(self, name: str, *settings: str) -> None:
        self._ended(self._begin(name, *settings), name)

    def _begin(self, name: str, *settings: str) -> "subprocess.Popen[bytes]":
        self._fill_up()
        return self._submitted(name, *settings)

    def _submitted(self, name: str, *settings: str) -> "subprocess.Popen[bytes]":
        return self.stand.submit("run", *self._job(name, *settings), log=name)

    def _job(self, name: str, *settings: str) -> tuple[str, ...]:
        return ("smoke", *TINY, *TRAINING, f"name={name}", *settings)

    def _submit(self, job: str, *arguments: str) -> None:
        self._fill_up()
        self._ended(self.stand.submit(job, *arguments, log=job), job)

    def _ended(self, submitted: "subprocess.Popen[bytes]", name: str) -> None:
        code = submitted.wait(JOB_SECONDS)
        assert code == 0, f"exit code {code}: {self._tail(name)}"
        assert "Traceback" not in self.stand.log(name), self._tail(name)

    def _fill_up(self) -> None:
        """Makes sure of two workers."""
        while len(self.stand.workers) < 2:
            self.stand.add_worker()
        self.stand.wait_for_workers()

    def _all_off(self) -> None:
        for machine in (self.stand.head, *self.stand.workers):
            machine.power_off()
        self.stand.workers.clear()

    def _power_off(self) -> None:
        self.stand.remove(self.stand.training_machines()[0])

    def _power_off_decoding(self) -> Machine:
        """Ends a machine while a unit is in flight on it; returns which."""
        self._wait_for(self.stand.decoding_machines, "a machine that decodes")
        begun = self.stand.decoding_machines()
        time.sleep(DECODING_SECONDS)
        machine = (self.stand.decoding_machines() or begun)[0]
        self.stand.remove(machine)
        return machine

    def _drain(self) -> None:
        machine = self.stand.training_machines()[0]
        self.stand.drain(machine, GRACE_SECONDS)
        time.sleep(GRACE_SECONDS)
        self.stand.remove(machine)

    def _away(self, machine: Machine) -> None:
        machine.cut()
        time.sleep(OUTAGE_SECONDS)
        machine.join()

    def _has(self, name: str) -> bool:
        return path_of(f"{HOME}/runs/{name}").exists()

    def _wait_for_step(self, name: str, step: int) -> None:
        self._wait_for(lambda: self._step(name) >= step, f"step {step} of {name}")

    def _wait_for(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, JOB_SECONDS / 2, what)

    def _step(self, name: str) -> int:
        """Returns the last step of a training that MLflow knows; -1 without one."""
        client = MlflowClient(self.stand.environment["MLFLOW_TRACKING_URI"])
        experiments = [one.experiment_id for one in client.search_experiments()]
        for run in client.search_runs(experiments, f"attributes.run_name = '{name}'"):
            if "loss/total" in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, "loss/total")
                return max(metric.step for metric in history)
        return -1

    def _tail(self, name: str) -> str:
        return "\n".join(self.stand.log(name).splitlines()[-30:])
