-- Trader configurations. The database itself counts versions, keeps the history and tells listeners, so that a change
-- made by hand in psql is versioned, kept and seen like any other.
create table trader_configs (
    trader_id      text primary key
                   constraint trader_configs_trader_id_length check (octet_length(trader_id) between 1 and 32),
    version        integer not null constraint trader_configs_version check (version >= 1),
    mode           text not null constraint trader_configs_mode check (mode in ('paper', 'live')),
    enabled        boolean not null default true,
    limits         jsonb not null constraint trader_configs_limits check (jsonb_typeof(limits) = 'object'),
    mev_protection jsonb not null constraint trader_configs_mev check (jsonb_typeof(mev_protection) = 'object'),
    settings       jsonb not null default '{}'
                   constraint trader_configs_settings check (jsonb_typeof(settings) = 'object')
                   constraint trader_configs_settings_size check (octet_length(settings::text) <= 65536),
    changed_by     text not null default current_user,
    changed_at     timestamptz not null default now(),
    change_id      uuid not null default gen_random_uuid()
);

create table trader_config_history (
    trader_id      text not null,
    version        integer not null,
    mode           text not null,
    enabled        boolean not null,
    limits         jsonb not null,
    mev_protection jsonb not null,
    settings       jsonb not null,
    changed_by     text not null,
    changed_at     timestamptz not null,
    -- Names the change across retries: a writer whose answer was lost finds here that it had succeeded.
    change_id      uuid not null constraint trader_config_history_change_id unique,
    primary key (trader_id, version)
);

create function trader_config_versioned() returns trigger language plpgsql as $$
begin
    -- Counted on from the history, so that a trader that was deleted and made again does not reuse a version.
    select coalesce(max(version), 0) + 1 into new.version
        from trader_config_history where trader_id = new.trader_id;
    new.changed_at := clock_timestamp();
    if tg_op = 'UPDATE' then
        new.trader_id := old.trader_id;
        if new.change_id = old.change_id then
            new.change_id := gen_random_uuid();
            new.changed_by := current_user;
        end if;
    end if;
    return new;
end $$;

create trigger trader_config_versioned before insert or update on trader_configs
    for each row execute function trader_config_versioned();

create function trader_config_recorded() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        perform pg_notify('ringlog_trader_configs', old.trader_id);
        return old;
    end if;
    insert into trader_config_history
        (trader_id, version, mode, enabled, limits, mev_protection, settings, changed_by, changed_at, change_id)
        values (new.trader_id, new.version, new.mode, new.enabled, new.limits, new.mev_protection, new.settings,
                new.changed_by, new.changed_at, new.change_id);
    perform pg_notify('ringlog_trader_configs', new.trader_id);
    return new;
end $$;

create trigger trader_config_recorded after insert or update or delete on trader_configs
    for each row execute function trader_config_recorded();
