"""Applications that test_end_to_end has real servers run, a day late: for the pipeline, today is not finished.

Only what a web application needs is imported here, because every worker of those servers does it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask, abort
from starlette.applications import Starlette

from analytics_assets.demo.app import build_app
from analytics_assets.demo.directory import DatabaseDirectory
from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry.wsgi import CountResponses


def yesterday() -> datetime:
    """A day before now."""
    return datetime.now(UTC) - timedelta(days=1)


def _telemetry() -> Telemetry:
    return Telemetry(
        os.environ["DEMO_APP_DUMP_DIR"],
        source="web",
        time_zone=os.environ["DEMO_APP_TIME_ZONE"],
        clock=lambda: yesterday().timestamp(),
    )


def asgi_app() -> Starlette:
    """The demonstration application."""
    return build_app(DatabaseDirectory(os.environ["DEMO_APP_DATABASE_URL"], yesterday), _telemetry())


def wsgi_app() -> Flask:
    """The pages of the demonstration application that need no data, in Flask."""
    telemetry = _telemetry()
    app = Flask(__name__)

    def found(event_id: int) -> str:
        if event_id > 12:
            abort(404)
        return "canary"

    @app.get("/events")
    def events() -> str:
        return "canary"

    @app.get("/events/<int:event_id>")
    def event(event_id: int) -> str:
        return found(event_id)

    @app.get("/events/<int:event_id>/directory")
    def directory(event_id: int) -> str:
        page = found(event_id)
        telemetry.count("directory_page_viewed", event_id=event_id)
        return page

    @app.get("/events/<int:event_id>/directory/search")
    def search(event_id: int) -> str:
        page = found(event_id)
        telemetry.count("directory_searched", event_id=event_id)
        return page

    @app.get("/organizer/events/<int:event_id>/signups")
    def organizer(event_id: int) -> str:
        page = found(event_id)
        telemetry.count("directory_page_viewed", event_id=event_id, source="admin")
        return page

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("this page fails on purpose")

    app.wsgi_app = CountResponses(app.wsgi_app, telemetry, exclude=_not_counted)  # type: ignore[method-assign]
    return app


def _not_counted(environ: Mapping[str, Any]) -> bool:
    return environ.get("HTTP_SEC_GPC") == "1"
