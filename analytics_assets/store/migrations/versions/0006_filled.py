"""Of each published day and week: whether it was filled later as a series of its own, and its base."""

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = """
alter table published.days add column filled boolean not null default false, add column base integer;
alter table published.weeks add column filled boolean not null default false, add column base integer;

update published.days set filled = noted.filled, base = noted.base
from (select distinct on (event_name, event_date) * from analytics.publications
      order by event_name, event_date, filled desc) noted
where noted.event_name = days.event_name and noted.event_date = days.event_date;
update published.weeks set filled = noted.filled, base = noted.base
from (select distinct on (event_name, event_date) * from analytics.publications
      order by event_name, event_date, filled desc) noted
where noted.event_name = weeks.event_name and noted.event_date = weeks.week_start;

-- Until now there was one base. A note that was lost is what check only_fives reports.
update published.days set base = 5 where base is null;
update published.weeks set base = 5 where base is null;
alter table published.days alter column base set not null;
alter table published.weeks alter column base set not null;

drop function analytics.mark_filled(date, text);

create function analytics.mark_filled(day date, name text, new_base integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update published.days set state = 'published', filled = true, base = new_base
    where event_date = day and event_name = name and state = 'not_collected';
    update published.weeks set state = 'published', filled = true, base = new_base
    where week_start = day and event_name = name and state = 'not_collected';
end
$$;
"""


def upgrade() -> None:
    """Add the columns, and fill them from the notes on what was published."""
    op.execute(_STATEMENTS)
