"""Daily counts, one PostgreSQL partition a day.

Runs as `analytics_owner`, who then owns everything below. The checks of each table come from the contract and are put
in place afterwards by `setup.apply_contract`, the rights by `grants.RIGHTS`.
"""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
create table analytics.daily_event_counts (
    event_date date not null,
    event_name text not null,
    event_id text not null,
    source text,
    count bigint not null,
    constraint daily_event_counts_key unique nulls not distinct (event_date, event_name, event_id, source)
) partition by range (event_date);

create table analytics.daily_response_counts (
    event_date date not null,
    endpoint text not null,
    status_code bigint not null,
    count bigint not null,
    constraint daily_response_counts_key unique nulls not distinct (event_date, endpoint, status_code)
) partition by range (event_date);

create table analytics.collected_days (
    asset text not null,
    event_date date not null,
    rows bigint not null,
    collected_at timestamptz not null,
    primary key (asset, event_date)
);

create table analytics.settings (
    only_row boolean primary key default true check (only_row),
    retention_days integer not null check (retention_days between 1 and 3650),
    time_zone text not null
);

create view analytics.daily_error_rates as
select event_date, endpoint, status_code, count,
       sum(count) over whole as requests,
       coalesce(sum(count) filter (where status_code >= 400) over whole, 0) / sum(count) over whole as error_rate
from analytics.daily_response_counts
window whole as (partition by event_date, endpoint);
"""

# security definer: the writer owns no table, so these functions are its only way to make or drop a partition, and they
# refuse any day but the ones the retention period allows. pg_temp comes last in the search path, or a temporary object
# of the caller could stand in for ours.
_FUNCTIONS = """
create function analytics.today() returns date
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select (now() at time zone time_zone)::date from analytics.settings
$$;

create function analytics.first_kept_day() returns date
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select analytics.today() - retention_days from analytics.settings
$$;

create function analytics.create_day(day date) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    parent record;
    partition text := to_char(day, '_YYYYMMDD');
begin
    if day is null or day < analytics.first_kept_day() or day >= analytics.today() then
        raise exception 'only a finished day inside the retention period can be kept' using errcode = 'AN001';
    end if;
    perform pg_advisory_xact_lock(hashtext('analytics partition'), day - date '2000-01-01');
    for parent in
        select c.relname from pg_partitioned_table p join pg_class c on c.oid = p.partrelid
        where c.relnamespace = 'analytics'::regnamespace order by 1
    loop
        if to_regclass(format('analytics.%I', parent.relname || partition)) is null then
            -- Made apart, then attached: creating it in place would lock out every reader of the parent.
            execute format('create table analytics.%I (like analytics.%I including all)',
                           parent.relname || partition, parent.relname);
            execute format('alter table analytics.%I attach partition analytics.%I for values from (%L) to (%L)',
                           parent.relname, parent.relname || partition, day, day + 1);
        end if;
    end loop;
end
$$;

create function analytics.drop_day(day date) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
    delete from analytics.collected_days where event_date = day;
end
$$;
"""


def upgrade() -> None:
    """Create tables and functions."""
    for statements in (_TABLES, _FUNCTIONS):
        # Without parameters, or the driver would read the % of format() as one.
        op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
