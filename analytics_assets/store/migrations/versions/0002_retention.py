"""Retention: a ledger of what was removed, functions that remove, and a floor that no longer setting can lower."""

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = """
alter table analytics.settings add column kept_since date;

create table analytics.retention_ledger (
    id bigint generated always as identity primary key,
    removed_at timestamptz not null default now(),
    run_id text not null,
    cutoff date not null,
    store text not null,
    days bigint not null,
    rows bigint not null,
    oldest_remaining date
);
"""

_FUNCTIONS = """
create or replace function analytics.first_kept_day() returns date
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select greatest(analytics.today() - retention_days, kept_since) from analytics.settings
$$;

drop function analytics.drop_day(date);

-- A reader who keeps a table open makes it fail instead of queueing everybody else behind it.
create function analytics.drop_day(day date) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    parent record;
begin
    -- Names of partitions have no era: a day BC would name the partition of a day that is kept.
    if day is null or day >= analytics.first_kept_day() or day < date '2000-01-01' then
        raise exception 'only a day past the retention period can be dropped' using errcode = 'AN001';
    end if;
    perform pg_advisory_xact_lock(hashtext('analytics partition'), day - date '2000-01-01');
    for parent in
        select c.relname from pg_partitioned_table p join pg_class c on c.oid = p.partrelid
        where c.relnamespace = 'analytics'::regnamespace order by 1
    loop
        execute format('drop table if exists analytics.%I', parent.relname || to_char(day, '_YYYYMMDD'));
    end loop;
    -- Counting the rows themselves would read the whole day.
    return (select coalesce(sum(rows), 0) from analytics.collected_days where event_date = day);
end
$$;

create function analytics.forget_days(before date, out days bigint, out rows bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
begin
    if before is null or before > analytics.first_kept_day() then
        raise exception 'only days past the retention period can be forgotten' using errcode = 'AN001';
    end if;
    -- A day whose partition could not be dropped keeps its notes, which say how much was in it.
    with gone as (
        delete from analytics.collected_days where event_date < before and not exists (
            select from pg_partitioned_table p join pg_class c on c.oid = p.partrelid
            where c.relnamespace = 'analytics'::regnamespace
              and to_regclass(format('analytics.%I', c.relname || to_char(event_date, '_YYYYMMDD'))) is not null
        ) returning event_date
    )
    select count(distinct event_date), count(*) into days, rows from gone;
end
$$;

create function analytics.refuse_expired() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if new.event_date < analytics.first_kept_day() then
        raise exception 'only a day inside the retention period can be kept' using errcode = 'AN001';
    end if;
    return new;
end
$$;

create trigger refuse_expired before insert or update on analytics.collected_days
for each row execute function analytics.refuse_expired();
"""


def upgrade() -> None:
    """Add the ledger, the floor and the functions."""
    for statements in (_TABLES, _FUNCTIONS):
        # Without parameters, or the driver would read the % of format() as one.
        op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
