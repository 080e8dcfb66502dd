"""Several workers: steps go through Redis to processes on any machine, by dagster-celery.

What a step does is the same wherever it runs, and belongs to `defs`.
"""

from __future__ import annotations

import os
from typing import Any, Final

import dagster as dg
from celery import Celery
from celery.signals import worker_process_init
from dagster._core.execution.retries import RetryMode
from dagster_celery.config import DEFAULT_CONFIG, dict_wrapper
from dagster_celery.executor import CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from analytics_assets.settings import PAGES_QUEUE, Settings, SettingsError
from analytics_assets.sources.dump_folder import remove_left_copies

LOST_AFTER = 3600
"""Seconds after which a step whose worker has vanished with its machine is given to another worker.

Redis cannot tell a vanished worker from a slow one. So a step that takes longer is given away, too, and again after as
long: it is done several times at once.
"""

_TASKS_PER_PROCESS: Final = 25
"""A task of dagster-celery leaves two connections to Dagster's database open, of the event log and of the run storage.
They close with the process at the latest."""


def make_executor(broker_url: str) -> dg.ExecutorDefinition:
    """Return the executor that hands each step to a worker."""
    broker_url = _verified(broker_url)

    @dg.executor(name="celery", requirements=dg.multiple_process_executor_requirements())
    def celery(_: dg.InitExecutorContext) -> CeleryExecutor:
        # Not by `configured`: the URL may hold a password, and Dagster stores and shows configuration.
        return CeleryExecutor(RetryMode.ENABLED, broker=broker_url, backend=broker_url, config_source=_configuration())

    return celery


def make_worker(broker_url: str) -> Celery:
    """Return the application of a worker."""
    broker_url = _verified(broker_url)
    app = make_app(
        {
            "broker": broker_url,
            "backend": broker_url,
            # Before the first step, so that a wrong setting stops the worker and not the step.
            "include": ["analytics_assets.definitions"],
            "config_source": dict_wrapper(_configuration()),
        }
    )
    # Celery would log what a step returns: its events, which name days.
    create_task(app, resultrepr_maxsize=0)
    return app


def _verified(broker_url: str) -> str:
    """Return the URL with the parameter that Celery demands of TLS. Certificates are verified unless it says no."""
    if not broker_url.startswith("rediss://") or "ssl_cert_reqs=" in broker_url:
        return broker_url
    return f"{broker_url}{'&' if '?' in broker_url else '?'}ssl_cert_reqs=required"


def run_worker(settings: Settings, *, pages: bool = False) -> None:
    """Execute steps until a signal ends this process.

    Raises:
        SettingsError: no broker is set, or a database would be one of this machine.
    """
    if settings.broker_url is None:
        raise SettingsError("ANALYTICS_EXECUTOR is not set to the URL of a broker (redis://host:6379/0): no steps come")
    for name, url in {
        "ANALYTICS_DATABASE_URL": settings.database_url,
        "DAGSTER_POSTGRES_URL": settings.dagster_url,
    }.items():
        if url is None:
            raise SettingsError(f"{name} is not set: workers share the databases that the URLs name")
    if settings.dump_url is None and settings.dump_dir == settings.data_dir / "dumps":
        raise SettingsError("ANALYTICS_DUMP_DIR is not set: workers share the folder of the dumps, or its URL")
    # By default, Dagster writes the events of a range run one by one.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")
    start(make_worker(settings.broker_url), pages=pages)


def start(app: Celery, *, pages: bool = False) -> None:
    """Execute steps, one at a time, until a signal ends this process."""
    # A process for steps is started at first, and again when it was killed.
    worker_process_init.connect(_remove_left_copies)
    queue = str(app.conf.task_default_queue)
    app.worker_main(
        [
            "worker",
            *("--queues", f"{queue},{PAGES_QUEUE}" if pages else queue),
            *("--concurrency", "1"),
            *("--max-tasks-per-child", str(_TASKS_PER_PROCESS)),
            *("--hostname", f"{os.getpid()}@%h"),  # two on a machine need two names
            *("--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle"),
        ]
    )


def _remove_left_copies(**_: object) -> None:
    remove_left_copies()


def _configuration() -> dict[str, Any]:
    """Return the configuration of Celery that workers and those who wait for them have in common."""
    return DEFAULT_CONFIG | {
        # A step is done once its result is stored. One whose process was killed goes back to the queue.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # Redis gives an unfinished step to another worker as soon as the connection is lost.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # A broker that restarts is waited for, by those who start before it, too.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_publish_retry_policy": {"max_retries": 60, "interval_start": 0, "interval_step": 1, "interval_max": 5},
        "result_backend_always_retry": True,
        "result_backend_max_retries": 60,
        "broker_transport_options": {
            "visibility_timeout": LOST_AFTER,
            "unacked_restore_interval": max(1, LOST_AFTER // 10),
            "unacked_restore_throttle": 1,
        },
        # Results name days. Nobody reads one again after the second in which it came.
        "result_expires": 3600,
    }
