"""Trouble for a minute: a step that loses its database is tried again within the run. A refusal never is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, TypeVar

import dagster as dg

from analytics_assets.database import UnreachableError

RETRIES: Final = 4
FIRST_WAIT: Final = 10
"""Seconds before the first retry. Each further wait is twice as long: two and a half minutes in all."""

HOST_DATABASE: Final = "host_database"
"""The concurrency pool of the steps that count in the host application's database; `dagster.yaml` has its limit."""

Step = TypeVar("Step", bound=Callable[..., Any])


def retried(step: Step) -> Step:
    """Let Dagster try a step again when a database was out of reach (UnreachableError), and after nothing else."""
    if inspect.isgeneratorfunction(step):

        @wraps(step)
        def run(*args: Any, **kwargs: Any) -> Any:
            with _request_retry():
                yield from step(*args, **kwargs)

    else:

        @wraps(step)
        def run(*args: Any, **kwargs: Any) -> Any:
            with _request_retry():
                return step(*args, **kwargs)

    return run  # type: ignore[return-value]  # `wraps` keeps what Dagster reads of the signature


@contextmanager
def _request_retry() -> Iterator[None]:
    try:
        yield
    except UnreachableError as error:
        attempt = dg.OpExecutionContext.get().retry_number
        raise dg.RetryRequested(RETRIES, FIRST_WAIT * 2**attempt) from error
