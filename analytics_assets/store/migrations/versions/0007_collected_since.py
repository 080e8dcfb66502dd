"""Since when each metric is collected: known after its first collected day has expired, too."""

from alembic import op

revision = "0007"
down_revision = "0006"

_TABLE = """
create table analytics.collected_since (
    asset text primary key,
    first_day date not null
);

insert into analytics.collected_since select asset, min(event_date) from analytics.collected_days group by asset;

create function analytics.note_first_day() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into analytics.collected_since as since values (new.asset, new.event_date)
    on conflict (asset) do update set first_day = excluded.first_day where since.first_day > excluded.first_day;
    return null;
end
$$;

create trigger note_first_day after insert on analytics.collected_days
for each row execute function analytics.note_first_day();
"""


def upgrade() -> None:
    """Create the table, which a trigger fills."""
    op.execute(_TABLE)
