-- Order rules: stop-loss and take-profit of a holding, fixed or trailing. Prices are in quote units per token.
create table order_rules (
    id                       uuid primary key,
    trader_id                text not null references trader_configs (trader_id),
    token                    text not null references tokens (address),
    quantity                 numeric not null,
    entry_price              numeric not null,
    stop_loss                numeric,
    stop_loss_trailing_bps   integer,
    take_profit              numeric,
    take_profit_trailing_bps integer,
    highest_price            numeric not null, -- seen since the rule was armed; what trailing prices trail
    state                    text not null default 'armed',
    trigger_reason           text,
    trigger_price            numeric,
    claim                    uuid, -- of the one call that triggered the rule: its retry finds its own work done
    fill_price               numeric,
    tx_signature             text,
    cancel_reason            text,
    armed_at                 timestamptz not null default now(),
    triggered_at             timestamptz,
    ended_at                 timestamptz,
    -- NaN sorts above Infinity in PostgreSQL, so these bounds refuse both.
    constraint order_rules_quantity check (quantity > 0 and quantity < 'Infinity'),
    constraint order_rules_entry_price check (entry_price > 0 and entry_price < 'Infinity'),
    constraint order_rules_stop_loss check (stop_loss > 0 and stop_loss < 'Infinity'),
    constraint order_rules_take_profit check (take_profit > 0 and take_profit < 'Infinity'),
    constraint order_rules_highest_price check (highest_price >= entry_price and highest_price < 'Infinity'),
    constraint order_rules_stop_below_profit check (stop_loss < take_profit),
    constraint order_rules_something_to_do check (num_nonnulls(stop_loss, stop_loss_trailing_bps, take_profit) > 0),
    constraint order_rules_stop_trailing check (stop_loss_trailing_bps between 1 and 9999),
    constraint order_rules_profit_trailing check (
        take_profit_trailing_bps is null or take_profit is not null and take_profit_trailing_bps between 1 and 9999),
    constraint order_rules_state check (state in ('armed', 'triggered', 'filled', 'cancelled')),
    constraint order_rules_trigger_reason check (trigger_reason in ('stop_loss', 'take_profit')),
    constraint order_rules_triggered check (
        num_nonnulls(trigger_reason, trigger_price, claim, triggered_at) in (0, 4)
        and (state <> 'armed' or claim is null)
        and (state not in ('triggered', 'filled') or claim is not null)),
    constraint order_rules_filled check ((state = 'filled') = (fill_price is not null)),
    constraint order_rules_ended check ((state in ('filled', 'cancelled')) = (ended_at is not null))
);

create index order_rules_armed on order_rules (token) where state = 'armed';
create index order_rules_trader on order_rules (trader_id, state);
create index order_rules_claim on order_rules (claim) where claim is not null;

create function order_rule_transition() returns trigger language plpgsql as $$
begin
    if (old.state, new.state) not in (('armed', 'armed'), ('armed', 'triggered'), ('armed', 'cancelled'),
                                      ('triggered', 'filled'), ('triggered', 'cancelled')) then
        raise exception 'order rule %: got % to %, wanted armed to triggered or cancelled, triggered to filled or cancelled',
            old.id, old.state, new.state using errcode = 'check_violation', constraint = 'order_rules_transition';
    end if;
    return new;
end $$;

create trigger order_rule_transition before update on order_rules
    for each row execute function order_rule_transition();
