"""Which of the published days and weeks were filled later, each as a series of its own."""

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = """
alter table published.days add column filled boolean not null default false;
alter table published.weeks add column filled boolean not null default false;

update published.days set filled = true
where (event_name, event_date) in (select event_name, event_date from analytics.publications where filled);
update published.weeks set filled = true
where (event_name, week_start) in (select event_name, event_date from analytics.publications where filled);

create or replace function analytics.mark_filled(day date, name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update published.days set state = 'published', filled = true
    where event_date = day and event_name = name and state = 'not_collected';
    update published.weeks set state = 'published', filled = true
    where week_start = day and event_name = name and state = 'not_collected';
end
$$;
"""


def upgrade() -> None:
    """Add the columns, and fill them from the notes on what was published."""
    op.execute(_STATEMENTS)
