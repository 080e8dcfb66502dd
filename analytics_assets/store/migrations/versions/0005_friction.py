"""What friction has found, day by day."""

from alembic import op

revision = "0005"
down_revision = "0004"

_TABLE = """
create table analytics.friction (
    event_date date not null,
    event_name text not null,
    series text not null,
    kind text not null,
    score double precision not null,
    primary key (event_date, event_name, series, kind)
);

create trigger refuse_expired after insert on analytics.friction
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('event_date');
"""


def upgrade() -> None:
    """Create the table. The trigger's function is that of what is published."""
    op.execute(_TABLE)
