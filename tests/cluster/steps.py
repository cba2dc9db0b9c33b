"""What is done to the cluster: each step runs jobs, disturbs them, and says what was seen."""

import json
import os
import signal
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
UNDISTURBED = "undisturbed"
_JOB_SECONDS = 900.0
_OUTAGE_SECONDS = 60.0
_GRACE_SECONDS = 20
_DISTURBED_AT = 15
"""Step from which on a training is disturbed."""


class Steps:
    """The steps on one stand.

    Args:
        stand: Where.
        reference: What the undisturbed job has left, if it has run before.
    """

    def __init__(self, stand: Stand, reference: Outcome | None) -> None:
        self.stand, self.reference = stand, reference

    def undisturbed(self) -> str:
        """The main job: ingest, training on two machines, evaluation, registration, report."""
        self._main_job(UNDISTURBED)
        found = outcome_of(self.stand, UNDISTURBED)
        before, self.reference = self.reference, found
        again = f"; as before: {difference(found, before)}" if before else ""
        return f"{found.rows} rows, {len(found.losses)} losses{again}"

    def evaluate(self) -> str:
        """Scores the undisturbed job's checkpoint once more, by a job of its own."""
        self._need_undisturbed()
        folder = f"runs/{UNDISTURBED}"
        where = (f"checkpoint={folder}/pretrain/{UNDISTURBED}", f"dataset={folder}/clips")
        self._submit("evaluate", "smoke", *where, "output=scores")
        there, here = (
            json.loads(path_of(f"{HOME}/{name}/scores.json").read_text())["modalities"]
            for name in ("scores", f"{folder}/evaluate")
        )
        assert there == here
        return "scores equal to those of the main job"

    def embed(self) -> str:
        """Embeds the clips, and the media themselves, with the registered model."""
        self._need_undisturbed()
        counts = []
        for name, media in (("of-clips", "clips"), ("of-media", "videos")):
            folder = f"input=runs/{UNDISTURBED}/{media}"
            self._submit("embed", "smoke", folder, f"output={name}")
            manifest = json.loads(path_of(f"{HOME}/{name}/manifest.json").read_text())
            counts.append(manifest["clips"])
        assert self.reference is not None
        assert counts[0] == self.reference.rows
        return f"{counts[0]} embeddings of clips, {counts[1]} of media"

    def dataset(self) -> str:
        """The page about the clips."""
        self._need_undisturbed()
        self._submit("dataset", f"{HOME}/runs/{UNDISTURBED}/clips", "output=page")
        sizes = {path.name: path.size() for path in path_of(f"{HOME}/page").glob("*.html")}
        assert sizes
        return f"a page in the bucket: {sizes}"

    def sweep(self) -> str:
        """A sweep of four trials, at most as many at once as there are machines."""
        self._need_undisturbed()
        model = [one.removeprefix("pretrain.") for one in TINY if "model" in one]
        settings = [f"pretrain.{one}" for one in model]
        settings += ["search.num_trials=4", "search.startup_trials=2", "scoring.num_rungs=2"]
        settings += ["pretrain.batch_size=8", "name=sweep"]
        where = (f"dataset=runs/{UNDISTURBED}/clips", "output=sweeps")
        self._submit("sweep", "smoke", *where, *settings)
        report = path_of(f"{HOME}/sweeps/sweep/report.html")
        return f"four trials, a report of {report.size():,} bytes"

    def killed(self) -> str:
        """A machine that trains loses its power."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        return self._compared("killed", self._power_off)

    def killed_in_ingest(self) -> str:
        """A machine loses its power while it decodes."""

        def disturb() -> None:
            self._wait_for(lambda: self._has("killed-in-ingest/clips/clips"), "a shard")
            self.stand.remove(self.stand.workers[0])

        return self._compared("killed-in-ingest", disturb, at=None)

    def drained(self) -> str:
        """A machine that trains is drained with 20 s left and then loses its power."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        return self._compared("drained", self._drain, *NEVER)

    def drained_alone(self) -> str:
        """The same without another machine: exit code 75, and the same command goes on later."""
        name = "drained-alone"
        submitted = self._begin(name, *NEVER)
        self._wait_for_step(name, _DISTURBED_AT)
        self._drain()
        code = submitted.wait(_JOB_SECONDS)
        assert code == STOPPED, f"exit code {code}: {self._tail(name)}"
        self._fill_up()
        self._main_job(name, *NEVER)
        return f"exit code 75; later {self._difference(name)}"

    def added(self) -> str:
        """A job that finds no machine waits; two machines join later."""
        for worker in list(self.stand.workers):
            self.stand.remove(worker)
        name = "added"
        submitted = self._submitted(name, "ray.wait_seconds=300")
        self._wait_for(lambda: "waiting for nodes" in self.stand.log(name), "the line")
        self._fill_up()
        self._ended(submitted, name)
        return f"waited for nodes, then {self._difference(name)}"

    def terminated(self) -> str:
        """SIGTERM to the raylet of a machine that trains."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        ended = []

        def disturb() -> None:
            ended.append(self.stand.training_machines()[0])
            for process in ended[0].processes("raylet/raylet"):
                os.kill(process, signal.SIGTERM)

        text = self._compared("terminated", disturb)
        self.stand.remove(ended[0])
        return text

    def head(self) -> str:
        """The head loses its power; a new one starts, and the same command goes on."""
        name = "head"
        submitted = self._begin(name)
        self._wait_for_step(name, _DISTURBED_AT)
        for machine in (self.stand.head, *self.stand.workers):
            machine.power_off()
        self.stand.workers.clear()
        self.stand.start_head()
        self._fill_up()
        code = submitted.wait(_JOB_SECONDS)
        self._main_job(name)
        return f"the first submission ended with {code}; then {self._difference(name)}"

    def stopped(self) -> str:
        """`xkd submit stop` while it trains, far from a checkpoint; the same command goes on."""
        name = "stopped"
        submitted = self._begin(name, *NEVER)
        self._wait_for_step(name, _DISTURBED_AT)
        lines = self.stand.log(name).splitlines()
        job = next(line.split()[1] for line in lines if line.startswith("submitted "))
        assert self.stand.submit("stop", job, log="stop").wait(_JOB_SECONDS) == 0
        code = submitted.wait(_JOB_SECONDS)
        assert code == STOPPED, f"exit code {code}: {self._tail(name)}"
        self._main_job(name, *NEVER)
        return f"exit code 75; later {self._difference(name)}"

    def twice(self) -> str:
        """The same job is submitted twice at once."""
        name = "twice"
        both = [self._submitted(name), self.stand.submit("run", *self._job(name), log="second")]
        codes = [one.wait(_JOB_SECONDS) for one in both]
        assert sorted(codes) == [0, 2], codes
        loser = self.stand.log((name, "second")[codes.index(2)])
        line = next(line for line in loser.splitlines() if "is being written by" in line)
        return f"{self._difference(name)}; the other ended with 2: {line[:160]}"

    def slow(self) -> str:
        """One of two machines is behind a link of 50 ms that loses one packet in a hundred."""
        for worker in list(self.stand.workers):
            self.stand.remove(worker)
        self.stand.add_worker()
        far = self.stand.add_worker(slow=True)
        self.stand.wait_for_workers()
        text = self._compared("slow", None)
        assert far.slow_link is not None
        passed, lost = far.slow_link.passed, far.slow_link.lost
        self.stand.remove(far)
        return f"{text}; {passed:,} packets passed, {lost:,} lost"

    def mlflow_away(self) -> str:
        """MLflow is off the network for a minute."""
        return self._compared("mlflow-away", lambda: self._away(self.stand.mlflow))

    def bucket_away(self) -> str:
        """The bucket is off the network for a minute."""
        return self._compared("bucket-away", lambda: self._away(self.stand.store))

    def _compared(
        self,
        name: str,
        disturb: Callable[[], None] | None,
        *settings: str,
        at: int | None = _DISTURBED_AT,
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
        return difference(outcome_of(self.stand, name), self.reference)

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
        code = submitted.wait(_JOB_SECONDS)
        assert code == 0, f"exit code {code}: {self._tail(name)}"
        assert "Traceback" not in self.stand.log(name), self._tail(name)

    def _need_undisturbed(self) -> None:
        if not self._has(f"{UNDISTURBED}/report.html"):
            self.undisturbed()

    def _fill_up(self) -> None:
        """Makes sure of two workers."""
        while len(self.stand.workers) < 2:
            self.stand.add_worker()
        self.stand.wait_for_workers()

    def _power_off(self) -> None:
        self.stand.remove(self.stand.training_machines()[0])

    def _drain(self) -> None:
        machine = self.stand.training_machines()[0]
        self.stand.drain(machine, _GRACE_SECONDS)
        time.sleep(_GRACE_SECONDS)
        self.stand.remove(machine)

    def _away(self, machine: Machine) -> None:
        machine.cut()
        time.sleep(_OUTAGE_SECONDS)
        machine.join()

    def _has(self, name: str) -> bool:
        return path_of(f"{HOME}/runs/{name}").exists()

    def _wait_for_step(self, name: str, step: int) -> None:
        self._wait_for(lambda: self._step(name) >= step, f"step {step} of {name}")

    def _wait_for(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, _JOB_SECONDS / 2, what)

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
