"""Schema `published`, whose rows are inserted and never changed, and what is kept to publish the next day."""

from alembic import op

revision = "0004"
down_revision = "0003"

_TABLES = """
create table analytics.publications (
    event_name text not null,
    event_date date not null,
    filled boolean not null,
    base integer not null,
    fingerprint text not null,
    published_at timestamptz not null default now(),
    primary key (event_name, event_date, filled)
);

create table analytics.published_carries (
    event_name text not null,
    event_id text not null,
    carry integer not null,
    base integer not null,
    event_date date not null,
    primary key (event_name, event_id)
);

create table published.daily_counts (
    event_date date not null,
    event_name text not null,
    event_id text not null,
    count bigint not null,
    primary key (event_date, event_name, event_id)
);

create table published.days (
    event_date date not null,
    event_name text not null,
    state text not null,
    primary key (event_date, event_name)
);

create table published.weekly_counts (
    week_start date not null,
    event_name text not null,
    count bigint not null,
    primary key (week_start, event_name)
);

create table published.weeks (
    week_start date not null,
    event_name text not null,
    state text not null,
    primary key (week_start, event_name)
);

create view published.daily as
select event_date, event_name, series.event_id,
       case days.state when 'published' then coalesce(counts.count, 0) end as count,
       case when days.state = 'not_collected' then 'not_collected'
            when counts.count is null then 'below' else 'value' end as state
from published.days
join (select distinct event_name, event_id from published.daily_counts) series using (event_name)
left join published.daily_counts counts using (event_date, event_name, event_id);
"""

# security definer: the writer may only insert into what is published. These functions are its only way to remove what
# has expired, and to say that a day which was not collected has been published after all.
_FUNCTIONS = """
create function analytics.refuse_expired_rows() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    expired boolean;
begin
    -- In a subquery, or the function would be called for every row.
    execute format('select exists (select from inserted where %I < (select analytics.first_kept_day()))', tg_argv[0])
        into expired;
    if expired then
        raise exception 'only a day inside the retention period can be published' using errcode = 'AN001';
    end if;
    return null;
end
$$;

create trigger refuse_expired after insert on analytics.publications
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('event_date');
create trigger refuse_expired after insert on analytics.published_carries
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('event_date');
create trigger refuse_expired after insert on published.daily_counts
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('event_date');
create trigger refuse_expired after insert on published.days
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('event_date');
create trigger refuse_expired after insert on published.weekly_counts
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('week_start');
create trigger refuse_expired after insert on published.weeks
referencing new table as inserted for each statement execute function analytics.refuse_expired_rows('week_start');

create function analytics.mark_filled(day date, name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update published.days set state = 'published'
    where event_date = day and event_name = name and state = 'not_collected';
    update published.weeks set state = 'published'
    where week_start = day and event_name = name and state = 'not_collected';
end
$$;

create function analytics.forget_published(before date, out days bigint, out rows bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
begin
    if before is null or before > analytics.first_kept_day() then
        raise exception 'only days past the retention period can be forgotten' using errcode = 'AN001';
    end if;
    with counted as (
        delete from published.daily_counts where event_date < before returning event_date as day
    ), stated as (
        delete from published.days where event_date < before returning event_date as day
    ), weekly as (
        delete from published.weekly_counts where week_start < before returning week_start as day
    ), weeks as (
        delete from published.weeks where week_start < before returning week_start as day
    ), noted as (
        delete from analytics.publications where event_date < before returning event_date as day
    )
    select count(distinct day), count(*) into days, rows from (
        table counted union all table stated union all table weekly union all table weeks union all table noted
    ) gone;
end
$$;

create function analytics.forget_carries(before date, out days bigint, out rows bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
begin
    if before is null or before > analytics.first_kept_day() then
        raise exception 'only days past the retention period can be forgotten' using errcode = 'AN001';
    end if;
    with gone as (delete from analytics.published_carries where event_date < before returning event_date)
    select count(distinct event_date), count(*) into days, rows from gone;
end
$$;
"""


def upgrade() -> None:
    """Create tables, view and functions. `setup.init_db` has created the schema."""
    for statements in (_TABLES, _FUNCTIONS):
        # Without parameters, or the driver would read the % of format() as one.
        op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
