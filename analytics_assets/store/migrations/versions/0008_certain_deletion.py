"""Deleting needs certainty: the cut-off that is known to be right, and who may confirm one; replica identities."""

from alembic import op

revision = "0008"
down_revision = "0007"

_COLUMNS = """
alter table analytics.settings add column cutoff date, add column cutoff_at timestamptz;

update analytics.settings set
    cutoff = coalesce((select l.cutoff from analytics.retention_ledger l order by id desc limit 1),
                      analytics.first_kept_day()),
    cutoff_at = coalesce((select l.removed_at from analytics.retention_ledger l order by id desc limit 1), now());
"""

# A person confirms exactly the date that has been shown, so that a cut-off which has moved again is not confirmed.
_CONFIRM = """
create function analytics.confirm_cutoff(day date) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if day is distinct from analytics.first_kept_day() then
        raise exception 'the date is not the cut-off, which is %', analytics.first_kept_day() using errcode = 'AN001';
    end if;
    update analytics.settings set cutoff = day, cutoff_at = now();
end
$$;
"""

# A publication for all tables refuses to delete rows of a table without a replica identity. The unique key of the
# counts cannot be one, because source may be null. The parents' identity is not inherited.
_REPLICA_IDENTITY = """
do $$
declare
    counts record;
begin
    for counts in
        select format('%I.%I', n.nspname, c.relname) as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'analytics' and (c.relkind = 'p' or c.relispartition and c.relkind = 'r')
    loop
        execute 'alter table ' || counts.name || ' replica identity full';
    end loop;
end
$$;

create or replace function analytics.create_day(day date) returns void
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
            execute format('alter table analytics.%I replica identity full', parent.relname || partition);
            execute format('alter table analytics.%I attach partition analytics.%I for values from (%L) to (%L)',
                           parent.relname, parent.relname || partition, day, day + 1);
        end if;
    end loop;
end
$$;
"""


def upgrade() -> None:
    """Add the columns and the function, and give every table of counts a replica identity."""
    for statements in (_COLUMNS, _CONFIRM, _REPLICA_IDENTITY):
        # Without parameters, or the driver would read the % of format() as one.
        op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
