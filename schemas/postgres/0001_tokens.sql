-- Tokens: what a mint says of itself. Extensions are kept as Solana RPC's jsonParsed encoding gives them:
-- [{"extension": "transferFeeConfig", "state": {...}}, ...], kinds and fields that ringlog does not know included.
create table tokens (
    address    text primary key
               constraint tokens_address_base58 check (address ~ '^[1-9A-HJ-NP-Za-km-z]{32,44}$'),
    symbol     text not null constraint tokens_symbol_length check (octet_length(symbol) between 1 and 32),
    name       text not null default '' constraint tokens_name_length check (octet_length(name) <= 128),
    decimals   smallint not null constraint tokens_decimals_u8 check (decimals between 0 and 255),
    program    text not null constraint tokens_program check (program in ('spl-token', 'spl-token-2022')),
    extensions jsonb not null default '[]'
               constraint tokens_extensions_array check (jsonb_typeof(extensions) = 'array')
               constraint tokens_extensions_size check (octet_length(extensions::text) <= 65536),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint tokens_extensions_need_2022 check (program = 'spl-token-2022' or extensions = '[]')
);

-- Symbols are not unique on Solana, and people type them in any case.
create index tokens_symbol on tokens (upper(symbol));
-- Serves extensions @> '[{"extension": "transferHook"}]', and any value inside a state.
create index tokens_extensions on tokens using gin (extensions jsonb_path_ops);
