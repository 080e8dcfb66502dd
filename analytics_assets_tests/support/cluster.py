"""Several machines on one: a daemon that starts the runs, and workers that share databases, broker and dumps."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import dagster as dg
import psutil
import redis
import yaml
from dagster._core.execution.backfill import PartitionBackfill

from analytics_assets.local.server import ROOT, dagster_instance
from analytics_assets.operations.runs import days_of_run
from analytics_assets.settings import Settings
from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.namespaces import Network
from analytics_assets_tests.support.pipeline import ALL, Pipeline
from analytics_assets_tests.support.processes import free_port, wait_until

PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
BACKFILL = "all"
HOME, TEMPORARY = "home", "tmp"


def dagster_yaml() -> str:
    """The project's dagster.yaml with the sections of the page in the place of its own."""
    (block,) = re.findall(r"^```yaml\n# dagster.yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    return str(yaml.safe_dump(ours | yaml.safe_load(block)))


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and all that belongs to it."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.wait()


@dataclass
class Broker:
    """A Redis of the test, as the page configures it."""

    folder: Path
    address: str
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=secrets.token_hex)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.address}:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        options = {"port": self.port, "dir": self.folder, "bind": self.address, "appendonly": "yes"}
        options |= {"appendfsync": "always", "save": "", "requirepass": self.password}
        command = [
            program("redis-server"),
            *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
        ]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers)

    def kill(self) -> None:
        """As a crash of its machine would end it."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        client = redis.Redis(self.address, self.port, password=self.password)
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()


@dataclass
class Worker:
    """A worker with a machine of its own, as far as one machine has several."""

    folder: Path
    """Its working folder. Its data folder, its home, its DAGSTER_HOME and its temporary files are below."""
    process: subprocess.Popen[bytes]

    @property
    def kept(self) -> list[str]:
        """What is on its machine: files, and copies of dumps. Python leaves empty folders there for processes."""
        found = {*self.copies, *(path for path in self.folder.rglob("*") if not path.is_dir())}
        return sorted(str(path.relative_to(self.folder)) for path in found)

    @property
    def copies(self) -> list[Path]:
        """The copies of dumps that it reads, or was reading when it was killed."""
        return list((self.folder / TEMPORARY).glob("analytics-dumps-*"))

    @property
    def log(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text(encoding="utf-8")

    @property
    def given(self) -> int:
        """How many steps it was given."""
        return len(re.findall(r"Task execute_plan\[\S+\] received", self.log))

    @property
    def done(self) -> int:
        """How many steps it has done."""
        return len(re.findall(r"Task execute_plan\[\S+\] succeeded", self.log))

    def kill(self) -> None:
        """End it and its processes at once, as a power failure would."""
        kill_session(self.process)


@dataclass
class Cluster:
    """A main machine with Dagster's daemon, a broker, and workers."""

    settings: Settings
    network: Network
    folder: Path
    broker: Broker
    stack: ExitStack
    pipeline: Pipeline

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, network: Network, folder: Path) -> Iterator[Cluster]:
        """Open one whose settings name what all machines reach."""
        broker = Broker(folder / "redis", network.address)
        settings = replace(settings, executor=broker.url, data_dir=folder / "main")
        home = settings.data_dir / HOME
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(dagster_yaml())
        with ExitStack() as stack:
            instance = stack.enter_context(dagster_instance(settings, home))
            stack.callback(broker.kill)
            yield cls(settings, network, folder, broker, stack, Pipeline(settings, instance))

    def start_daemon(self) -> subprocess.Popen[bytes]:
        """Start what launches runs."""
        command = [sys.executable, "-m", "dagster._daemon", "run", "--module-name", "analytics_assets.definitions"]
        return self._start(command, self.settings, self.settings.data_dir)

    def start_worker(self, machine: str, lost_after: int = 900) -> Worker:
        """Start a worker on a machine."""
        folder = self.folder / machine
        settings = replace(self.settings, data_dir=folder / "data", publish_dir=folder / "data/pages")
        code = f"from analytics_assets import workers; workers.LOST_AFTER = {lost_after};"
        code += "from analytics_assets.cli import main; main(['worker'])"
        command = [*self.network.enter(machine), sys.executable, "-c", code]
        return Worker(folder, self._start(command, settings, folder))

    def _start(self, command: list[str], settings: Settings, folder: Path) -> subprocess.Popen[bytes]:
        home, temporary = folder / HOME, folder / TEMPORARY
        for path in (home, temporary):
            path.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_")}
        environment |= settings.environment() | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}
        environment |= {"DAGSTER_EVENT_BATCH_SIZE": "1000", "HOME": str(home), "TMPDIR": str(temporary)}
        with self.folder.joinpath(f"{folder.name}.log").open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
            )
        self.stack.callback(kill_session, process)  # what is left to do is of no interest
        return process

    def backfill(self, days: Sequence[date]) -> None:
        """Put a backfill of every metric where the daemon looks for it, when it starts and every half minute."""
        with warnings.catch_warnings():
            # Dagster calls a function of its own that it has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pipeline.instance.add_backfill(
                PartitionBackfill.from_asset_partitions(
                    backfill_id=BACKFILL,
                    asset_graph=self.pipeline.definitions().resolve_asset_graph(),
                    partition_names=list(map(str, days)),
                    asset_selection=[dg.AssetKey(asset) for asset in ALL],
                    backfill_timestamp=time.time(),
                    tags={},
                    dynamic_partitions_store=self.pipeline.instance,
                    all_partitions=False,
                    title=None,
                    description=None,
                    run_config=None,
                )
            )

    def runs(self) -> list[dg.DagsterRun]:
        """The runs of the backfill."""
        return list(self.pipeline.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": BACKFILL})))

    def collected(self, days: Sequence[date]) -> bool:
        """Whether every day was in a run that has succeeded."""
        runs = self.runs()
        assert not [run for run in runs if run.status is dg.DagsterRunStatus.FAILURE]
        succeeded = [run for run in runs if run.status is dg.DagsterRunStatus.SUCCESS]
        return {day for run in succeeded for day in days_of_run(run.tags)} == set(days)
