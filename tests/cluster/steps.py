"""What is done to the cluster: each step runs jobs, disturbs them, and says what was seen."""

import json
import os
import signal
import subprocess

from pipelines.storage import path_of, size_of
from tests.cluster.board import (
    DISTURBED_AT,
    JOB_SECONDS,
    NEVER,
    STOPPED,
    UNDISTURBED,
    USER_ERROR,
    Board,
)
from tests.cluster.outcome import difference, outcome_of
from tests.cluster.stand import HOME
from tests.helpers.programs import TINY


class Steps(Board):
    """The steps on one stand."""

    def undisturbed(self) -> str:
        """The main job: ingest, training on two machines, evaluation, registration, report."""
        self._main_job(UNDISTURBED)
        found = outcome_of(self.stand, UNDISTURBED)
        before, self.reference = self.reference, found
        self._complete = UNDISTURBED
        again = f"; as before: {difference(found, before)}" if before else ""
        return f"{found.rows} rows, {len(found.losses)} losses{again}"

    def evaluate(self) -> str:
        """Scores the checkpoint of a main job once more, by a job of its own."""
        name = self._complete_job()
        folder = f"runs/{name}"
        where = (f"checkpoint={folder}/pretrain/{name}", f"dataset={folder}/clips")
        self._submit("evaluate", "smoke", *where, "output=scores")
        there, here = (
            json.loads(path_of(f"{HOME}/{name}/scores.json").read_text())["modalities"]
            for name in ("scores", f"{folder}/evaluate")
        )
        assert there == here
        return "scores equal to those of the main job"

    def embed(self) -> str:
        """Embeds the clips, and the media themselves, with the registered model."""
        job = self._complete_job()
        counts = []
        for name, media in (("of-clips", "clips"), ("of-media", "videos")):
            folder = f"input=runs/{job}/{media}"
            self._submit("embed", "smoke", folder, f"output={name}")
            manifest = json.loads(path_of(f"{HOME}/{name}/manifest.json").read_text())
            counts.append(manifest["clips"])
        assert self.reference is not None
        assert counts[0] == self.reference.rows
        return f"{counts[0]} embeddings of clips, {counts[1]} of media"

    def dataset(self) -> str:
        """The page about the clips."""
        clips = f"{HOME}/runs/{self._complete_job()}/clips"
        self._submit("dataset", clips, "output=page")
        sizes = {path.name: size_of(path) for path in path_of(f"{HOME}/page").glob("*.html")}
        assert sizes
        return f"a page in the bucket: {sizes}"

    def sweep(self) -> str:
        """A sweep of four trials, at most as many at once as there are machines."""
        job = self._complete_job()
        model = [one.removeprefix("pretrain.") for one in TINY if "model" in one]
        settings = [f"pretrain.{one}" for one in model]
        settings += ["search.num_trials=4", "search.startup_trials=2", "scoring.num_rungs=2"]
        settings += ["pretrain.batch_size=8", "name=sweep"]
        where = (f"dataset=runs/{job}/clips", "output=sweeps")
        self._submit("sweep", "smoke", *where, *settings)
        report = path_of(f"{HOME}/sweeps/sweep/report.html")
        return f"four trials, a report of {size_of(report):,} bytes"

    def killed(self) -> str:
        """A machine that trains loses its power."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        return self._compared("killed", self._power_off)

    def killed_in_ingest(self) -> str:
        """One of three machines loses its power while it decodes."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        name, removed = "killed-in-ingest", []

        def disturb() -> None:
            removed.append(self._power_off_decoding())

        text = self._compared(name, disturb, at=None)
        log = self.stand.log(name)
        gone = [line for line in log.splitlines() if "is gone" in line or "was lost" in line]
        return f"{removed[0].name} gone, {text}; lines: {'; '.join(gone)[:300]}"

    def storm(self) -> str:
        """In one job: a machine goes in ingest, then one in training and the bucket with it."""
        name = "storm"
        for _ in range(2):
            self.stand.add_worker()
        submitted = self._begin(name)
        self._power_off_decoding()
        self._wait_for_step(name, DISTURBED_AT)
        self._power_off()
        self._away(self.stand.store)
        self._ended(submitted, name)
        return self._difference(name)

    def drained(self) -> str:
        """A machine that trains is drained with 20 s left and then loses its power."""
        self.stand.add_worker()
        self.stand.wait_for_workers()
        return self._compared("drained", self._drain, *NEVER)

    def drained_alone(self) -> str:
        """The same without another machine: exit code 75, and the same command goes on later."""
        name = "drained-alone"
        submitted = self._begin(name, *NEVER)
        self._wait_for_step(name, DISTURBED_AT)
        self._drain()
        code = submitted.wait(JOB_SECONDS)
        assert code == STOPPED, f"exit code {code}: {self._tail(name)}"
        self._fill_up()
        self._main_job(name, *NEVER)
        return f"exit code 75; later {self._difference(name)}"

    def added(self) -> str:
        """A job that finds no machine waits; two machines join later."""
        self._remove_workers()
        self._wait_for(lambda: self.stand.num_nodes() == 1, "a cluster of the head alone")
        return self._goes_on_with_nodes("added", "ray.wait_seconds=300")

    def emptied(self) -> str:
        """All machines lose their power and a job begins before Ray knows; two join later."""
        self._remove_workers()
        return self._goes_on_with_nodes("emptied")

    def _goes_on_with_nodes(self, name: str, *settings: str) -> str:
        submitted = self._submitted(name, *settings)
        self._wait_for(lambda: "waiting for nodes" in self.stand.log(name), "the line")
        self._fill_up()
        self._ended(submitted, name)
        line = next(x for x in self.stand.log(name).splitlines() if "waiting for nodes" in x)
        return f"{line[:120]!r}, then {self._difference(name)}"

    def _remove_workers(self) -> None:
        for worker in list(self.stand.workers):
            self.stand.remove(worker)

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
        self._wait_for_step(name, DISTURBED_AT)
        self._all_off()
        self.stand.start_head()
        self._fill_up()
        code = submitted.wait(JOB_SECONDS)
        self._main_job(name)
        return f"the first submission ended with {code}; then {self._difference(name)}"

    def stopped(self) -> str:
        """`xkd submit stop` while it trains, far from a checkpoint; the same command goes on."""
        name = "stopped"
        return self._stop_and_go_on(name, self._begin(name, *NEVER))

    def _stop_and_go_on(
        self, name: str, submitted: "subprocess.Popen[bytes]", log: str = ""
    ) -> str:
        self._wait_for_step(name, DISTURBED_AT)
        lines = self.stand.log(log or name).splitlines()
        job = next(line.split()[1] for line in lines if line.startswith("submitted "))
        assert self.stand.submit("stop", job, log="stop").wait(JOB_SECONDS) == 0
        code = submitted.wait(JOB_SECONDS)
        assert code == STOPPED, f"exit code {code}: {self._tail(name)}"
        self._main_job(name, *NEVER)
        return f"exit code 75; later {self._difference(name)}"

    def twice(self) -> str:
        """The same job is submitted twice at once; the one that runs is stopped and goes on."""
        names = ("twice", "second")
        job = self._job("twice", *NEVER)
        both = {name: self.stand.submit("run", *job, log=name) for name in names}
        self._wait_for(lambda: any(one.poll() is not None for one in both.values()), "one to end")
        loser, winner = sorted(names, key=lambda name: both[name].poll() is None)
        assert both[loser].returncode == USER_ERROR, self._tail(loser)
        log = self.stand.log(loser).splitlines()
        line = next(line for line in log if "is being written by" in line)
        text = self._stop_and_go_on("twice", both[winner], log=winner)
        return f"one ended with 2: {line[:160]}; the other, stopped: {text}"

    def from_zero(self) -> str:
        """Ingest, a training and a sweep on a cluster that an autoscaler grows from nothing."""
        self._all_off()
        self.stand.start_head(is_autoscaled=True)
        model = [one.removeprefix("pretrain.") for one in TINY if "model" in one]
        clips = "dataset=zero/clips"
        size = ("synthetic.num_clips=24", "sources_per_shard=6", "output=zero/clips")
        training = (clips, "output=zero/runs", "epochs=2", "batch_size=8", "num_workers=2", *model)
        training += ("optimizer.warmup_epochs=1",)
        trials = ("search.num_trials=2", "search.startup_trials=1", "scoring.num_rungs=2")
        pretrain = (f"pretrain.{one}" for one in ("batch_size=8", *model))
        sweep = (clips, "output=zero/sweeps", "name=zero", *trials, *pretrain)
        seen = []
        for job, settings in (("ingest", size), ("pretrain", training), ("sweep", sweep)):
            self._wait_for(lambda: self.stand.num_nodes() == 1, "a cluster of the head alone")
            name = f"{job}-from-zero"
            self._ended(self.stand.submit(job, "smoke", *settings, log=name), name)
            lines = self.stand.log(name).splitlines()
            seen.append(next(line for line in lines if "waiting for nodes" in line)[:160])
        self._all_off()
        self.stand.start_head()
        return "; ".join(seen)

    def slow(self) -> str:
        """One of two machines is behind a link of 50 ms that loses one packet in a hundred."""
        self._remove_workers()
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
