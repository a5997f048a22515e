-- RPC nodes, and what all processes together know of their health.
create table rpc_nodes (
    name            text primary key constraint rpc_nodes_name_length check (octet_length(name) between 1 and 64),
    url             text not null constraint rpc_nodes_url check (url ~ '^(https?|wss?)://'), -- may carry an API key
    enabled         boolean not null default true,
    failures_max    integer not null constraint rpc_nodes_failures_max check (failures_max >= 1),
    cooldown_s      double precision not null constraint rpc_nodes_cooldown check (cooldown_s between 0 and 86400),
    trial_timeout_s double precision not null
                    constraint rpc_nodes_trial_timeout check (trial_timeout_s > 0 and trial_timeout_s <= 86400)
);

create table node_health (
    node                 text primary key references rpc_nodes (name) on delete cascade,
    state                text not null default 'closed'
                         constraint node_health_state check (state in ('closed', 'open', 'half_open')),
    latency_us           double precision, -- exponentially weighted mean of successful calls
    error_ratio          double precision not null default 0, -- exponentially weighted, 0..1
    successes            bigint not null default 0,
    failures             bigint not null default 0,
    consecutive_failures integer not null default 0,
    opened_at            timestamptz,
    trial                bigint not null default 0, -- number of the newest trial; only its outcome moves a half-open node
    trial_until          timestamptz,
    updated_at           timestamptz not null default now()
);

create index node_health_best on node_health (state, latency_us);
