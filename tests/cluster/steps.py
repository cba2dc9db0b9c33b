"""What is done to the cluster: each step runs jobs, disturbs them, and says what was seen."""

import json
import os
import signal

from pipelines.storage import path_of, size_of
from tests.cluster.board import DISTURBED_AT, JOB_SECONDS, NEVER, STOPPED, UNDISTURBED, Board
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
        sizes = {path.name: size_of(path) for path in path_of(f"{HOME}/page").glob("*.html")}
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
        removed = []

        def disturb() -> None:
            self._wait_for(self.stand.decoding_machines, "a machine that decodes")
            removed.append(self.stand.decoding_machines()[0])
            self.stand.remove(removed[0])

        text = self._compared("killed-in-ingest", disturb, at=None)
        log = self.stand.log("killed-in-ingest")
        gone = [line for line in log.splitlines() if "is gone" in line or "was lost" in line]
        return f"{removed[0].name} gone, {text}; lines: {'; '.join(gone)[:300]}"

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
        submitted = self._begin(name, *NEVER)
        self._wait_for_step(name, DISTURBED_AT)
        lines = self.stand.log(name).splitlines()
        job = next(line.split()[1] for line in lines if line.startswith("submitted "))
        assert self.stand.submit("stop", job, log="stop").wait(JOB_SECONDS) == 0
        code = submitted.wait(JOB_SECONDS)
        assert code == STOPPED, f"exit code {code}: {self._tail(name)}"
        self._main_job(name, *NEVER)
        return f"exit code 75; later {self._difference(name)}"

    def twice(self) -> str:
        """The same job is submitted twice at once."""
        name = "twice"
        both = [self._submitted(name), self.stand.submit("run", *self._job(name), log="second")]
        codes = [one.wait(JOB_SECONDS) for one in both]
        assert sorted(codes) == [0, 2], codes
        loser = self.stand.log((name, "second")[codes.index(2)])
        line = next(line for line in loser.splitlines() if "is being written by" in line)
        return f"{self._difference(name)}; the other ended with 2: {line[:160]}"

    def from_zero(self) -> str:
        """Ingest, a training and a sweep on a cluster that an autoscaler grows from nothing."""
        self._all_off()
        self.stand.start_head(is_autoscaled=True)
        model = [one.removeprefix("pretrain.") for one in TINY if "model" in one]
        clips = "dataset=zero/clips"
        size = ("synthetic.num_clips=24", "sources_per_shard=6", "output=zero/clips")
        training = (clips, "output=zero/runs", "epochs=2", "batch_size=8", "num_workers=2", *model)
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

    def _need_undisturbed(self) -> None:
        if not self._has(f"{UNDISTURBED}/report.html"):
            self.undisturbed()
