"""Partitions of many days at once: `create_days` instead of `create_day`."""

from alembic import op

revision = "0009"
down_revision = "0008"

# After a partition is attached, PostgreSQL reads its parent anew before another one can be made like it. So all of them
# are made first, then attached.
_CREATE_DAYS = """
drop function if exists analytics.create_day(date);

create or replace function analytics.create_days(variadic days date[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    parent text;
    day date;
    missing date[];
begin
    if exists (
        select from unnest(days) as d where d is null or d < analytics.first_kept_day() or d >= analytics.today()
    ) then
        raise exception 'only a finished day inside the retention period can be kept' using errcode = 'AN001';
    end if;
    perform pg_advisory_xact_lock(hashtext('analytics partition'), d - date '2000-01-01')
    from (select distinct d from unnest(days) as d order by d) as ordered;
    for parent in
        select c.relname from pg_partitioned_table p join pg_class c on c.oid = p.partrelid
        where c.relnamespace = 'analytics'::regnamespace order by 1
    loop
        select coalesce(array_agg(distinct d), '{}') into missing from unnest(days) as d
        where to_regclass(format('analytics.%I', parent || to_char(d, '_YYYYMMDD'))) is null;
        -- Made apart, then attached: creating it in place would lock out every reader of the parent.
        foreach day in array missing loop
            execute format('create table analytics.%I (like analytics.%I including all)',
                           parent || to_char(day, '_YYYYMMDD'), parent);
            execute format('alter table analytics.%I replica identity full', parent || to_char(day, '_YYYYMMDD'));
        end loop;
        foreach day in array missing loop
            execute format('alter table analytics.%I attach partition analytics.%I for values from (%L) to (%L)',
                           parent, parent || to_char(day, '_YYYYMMDD'), day, day + 1);
        end loop;
    end loop;
end
$$;
"""


def upgrade() -> None:
    """Replace the function."""
    # Without parameters, or the driver would read the % of format() as one.
    op.get_bind().exec_driver_sql(_CREATE_DAYS, execution_options={"no_parameters": True})
