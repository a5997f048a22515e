"""`ringlog tokens`, `traders`, `rules` and `nodes` against a real server (issue 22, section 4)."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from postgres_platform import PYUSD, SOL, USDC, execute

from ringlog.cli import main
from ringlog.postgres import AsyncPool, AsyncTokens, Extension, Nodes, Pool, Token, Tokens, TraderConfigs
from ringlog.postgres.catalogue import KINDS, Import, entries
from ringlog.settings import Settings
from ringlog.text import shown

HOSTILE = "\x1b[31mred\x07\u202e"
LIMITS = {"position_max": "1000.10", "trade_max": 100, "daily_loss_max": 0.1}


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(database: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with the settings of `database`; `stdin` is what it reads."""
    for name, text in database.to_environment().items():
        monkeypatch.setenv(name, text)

    def run(*arguments: str, stdin: str | bytes = "") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        assert [each for each in printed.out + printed.err if each != "\n" and shown(each) != each] == []
        return Done(int(ended.value.code or 0), printed.out, printed.err)

    return run


def tokens_of(settings: Settings) -> dict[str, Token]:
    with Pool(settings) as pool:
        return Tokens(pool).get_all()


def test_tokens_are_set_shown_and_listed(run: Run, database: Settings) -> None:
    """`set` makes a token and changes single fields of it; hostile text is stored as it is and shown escaped."""
    made = run("tokens", "set", USDC, "symbol=USDC", "decimals=6", f"name={HOSTILE}")
    assert made.status == 0
    assert run("tokens", "set", USDC, "program=spl-token-2022", 'extensions=[{"extension":"later"}]').status == 0
    wanted = Token(
        address=USDC,
        symbol="USDC",
        decimals=6,
        name=HOSTILE,
        program="spl-token-2022",
        extensions=(Extension("later"),),
    )
    assert tokens_of(database) == {USDC: wanted}
    assert run("tokens", "show", "usdc", "--json").json == {"token": json.loads(msgspec.json.encode(wanted))}
    assert "decimals=6\n" in run("tokens", "show", USDC).out
    assert run("tokens", "list", "--extension", "later", "--json").json["tokens"][0]["name"] == HOSTILE
    assert run("tokens", "list", "--extension", "transferHook").out == "0 tokens\n"
    assert run("tokens", "list", "--symbol", "usdc").out.endswith("\n1 tokens\n")


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("tokens", "set", USDC, "decimls=6"), 1, "decimls: got an unknown field, did you mean decimals?"),
    (("tokens", "set", USDC, "symbol=A", "decimals=256"), 1, "token.decimals: got 256, wanted 0 to 255"),
    (("tokens", "set", USDC, "symbol=A", "decimals=x"), 1, "decimals: got 'x'"),
    (("tokens", "set", USDC, "symbol=A"), 1, "missing required field `decimals`"),
    (("tokens", "set", USDC, "address=B"), 1, "address: got a change, wanted none: it is the key"),
    (("tokens", "set", "short", "symbol=A", "decimals=6"), 1, "got 'short', wanted 32 to 44 base58"),
    (("tokens", "set", USDC, "symbol"), 2, "got 'symbol', wanted FIELD=VALUE"),
    (("tokens", "set", USDC, "symbol=A", "symbol=B"), 2, "got symbol twice"),
    (("tokens", "set", USDC, "symbol.a=A"), 1, "symbol.a: got a path into symbol, which has no fields"),
    (("tokens", "show", "WIFF"), 1, "got no token 'WIFF', did you mean WIF?"),
    (("tokens", "list", "--symbol", "wiff"), 2, "got 'WIFF', which is none that is known, did you mean WIF?"),
    (("tokens", "list", "--extension", "transferHok"), 2, "did you mean transferHook?"),
    (("traders", "set", "t1", "version=3"), 1, "version: got a change, wanted none: the database keeps it"),
    (
        ("traders", "set", "t1", "limits.trade_mx=3"),
        1,
        "limits.trade_mx: got an unknown field, did you mean trade_max?",
    ),
    (("traders", "set", "t1", "mode=lve"), 1, "mode: got 'lve': wanted one of paper, live, did you mean live?"),
    (("traders", "show", "t2"), 1, "got no trader 't2'"),
    (("rules", "show", "x"), 1, "got 'x', wanted an id"),
    (("rules", "cancel", str(uuid.UUID(int=1)), "--reason", "r"), 1, "got no rule"),
    (("rules", "list", "--trader", "t9"), 2, "--trader: got 't9'"),
    (("nodes", "set", "main", "url=https://rpc.example/?key=canary"), 2, "wanted url=@FILE"),
    (("nodes", "set", "main", "url=@/nowhere"), 2, "url: got '/nowhere', wanted a readable file"),
]


@pytest.mark.parametrize("wrong", [WRONG[:2], pytest.param(WRONG[2:], marks=pytest.mark.slow)], ids=["two", "rest"])
def test_wrong_input_is_named(run: Run, wrong: list[tuple[tuple[str, ...], int, str]]) -> None:
    """Each names the field or option, what was got and what is wanted, and changes nothing; no secret is repeated."""
    assert run("tokens", "set", SOL, "symbol=WIF", "decimals=9").status == 0
    for arguments, status, said in wrong:
        done = run(*arguments)
        assert (done.status, done.out) == (status, ""), arguments
        assert said in done.err
        assert "canary" not in done.err
    assert [each["symbol"] for each in run("tokens", "list", "--json").json["tokens"]] == ["WIF"]


def test_a_trader_gets_a_version_for_each_change(run: Run, database: Settings) -> None:
    """Numbers are exact, settings take any JSON or text by path, and who changed it is kept."""
    amounts = ("limits.position_max=1000.10", "limits.trade_max=100", "limits.daily_loss_max=0.1")
    assert run("traders", "set", "t1", *amounts, "settings.a.b=[1]", "settings.note=fast").status == 0
    changed = run(
        "traders", "set", "t1", "mev_protection.route=public", "enabled=false", "--changed-by", "ann", "--json"
    )
    assert changed.json["trader"]["version"] == 2
    with Pool(database) as pool:
        config = TraderConfigs(pool).get("t1")
    assert config is not None
    assert (config.version, config.changed_by, config.enabled) == (2, "ann", False)
    assert (config.limits.position_max, config.limits.daily_loss_max) == (Decimal("1000.10"), Decimal("0.1"))
    assert (config.mev_protection.route, config.settings) == ("public", {"a": {"b": [1]}, "note": "fast"})
    assert "limits.position_max=1000.10\n" in run("traders", "show", "t1").out
    assert run("traders", "list").out.endswith("\n1 traders\n")


def test_a_rule_is_armed_and_cancelled_once(run: Run) -> None:
    """`set new` arms a rule under an id of its own; a rule that was armed is not changed, and ends once."""
    entry = {"trader_id": "t1", "limits": LIMITS}
    assert run("tokens", "set", USDC, "symbol=USDC", "decimals=6").status == 0
    assert run("traders", "import", "-", stdin=json.dumps([entry])).status == 0
    fields = ("trader_id=t1", f"token={USDC}", "quantity=250", "entry_price=1.00", "stop_loss=0.95")
    rule = run("rules", "set", "new", *fields, "--json").json["rule"]
    assert (rule["state"], rule["stop_loss"]) == ("armed", "0.95")
    other = run("rules", "set", rule["id"], "stop_loss=0.90")
    assert other.status == 1
    assert "taken by a rule with another stop_loss" in other.err
    assert run("rules", "list", "--trader", "t1", "--state", "armed", "--json").json["rules"] == [rule]
    assert run("rules", "cancel", rule["id"], "--reason", "sold").status == 0
    again = run("rules", "cancel", rule["id"], "--reason", "sold again")
    assert again.status == 1
    assert "wanted one that is armed or triggered" in again.err
    assert run("rules", "list", "--state", "armed").out == "0 rules\n"


def test_a_nodes_url_is_read_from_a_file_and_shown_on_demand(run: Run, database: Settings, tmp_path: Path) -> None:
    """URLs may hold API keys: they come from a file or stdin, and only --reveal shows them."""
    file = tmp_path / "url"
    file.write_text("https://rpc.example/?key=canary\n")
    assert run("nodes", "set", "main", f"url=@{file}", "failures_max=2").status == 0
    assert run("nodes", "set", "main", "cooldown_s=5").status == 0
    for arguments in (("list",), ("list", "--json"), ("show", "main"), ("show", "main", "--json")):
        assert "canary" not in run("nodes", *arguments).out
        assert "canary" in run("nodes", *arguments, "--reveal").out
    with Pool(database) as pool:
        node = Nodes(pool).get_all()["main"]
    assert (node.url.reveal(), node.failures_max, node.cooldown_s) == ("https://rpc.example/?key=canary", 2, 5.0)
    masked = run("nodes", "list", "--json").out
    refused = run("nodes", "import", "-", stdin=masked)
    assert refused.status == 1
    assert "entry 1 (line 1)" in refused.err
    assert "--reveal" in refused.err
    execute(database, "delete from node_health")
    execute(database, "delete from rpc_nodes")
    back = json.dumps({"nodes": [{"name": "main", "url": "https://rpc.example/?key=canary", "failures_max": 2}]})
    assert run("nodes", "import", "-", "--json", stdin=back).json == {"imported": 1}


A, B, BAD = (
    f'{{"address":"{key}","symbol":"{name}","decimals":6}}' for key, name in ((USDC, "A"), (SOL, "B"), ("x", "C"))
)


UNKEPT: list[tuple[str | bytes, str]] = [
    (f"[{A},\n\n {BAD}]", "entry 2 (line 3): token.address: got 'x'"),
    (f"{A}\n\n{BAD}\n", "entry 2 (line 3): token.address: got 'x'"),
    (f'{{"tokens":[{A},\n{BAD}]}}', "entry 2 (line 2): token.address: got 'x'"),
    (f"[{A},\n{A}]", f"entry 2 (line 2): got address '{USDC}' of entry 1 (line 1) again"),
    (
        f"[{A},\n{B.replace('symbol', 'symbl')}]",
        "entry 2 (line 2): symbl: got an unknown field, did you mean symbol?",
    ),
    (f"[{A},\n{B.replace('6', '1e3')}]", "entry 2 (line 2): token"),
    (f"[{A},\n{B.replace('6', '[' * 5000 + ']' * 5000)}]", "recursion"),
    (f"[{A},\n{A[:-1]},]", "line 2: got no JSON"),
    (f"[{A},", "got no JSON"),
    (f"{A}\n{A[:-1]}", "entry 2 (line 2): token: "),
    ("[1]", "entry 1 (line 1): token: "),
    ("7", "wanted an array of tokens, or one object a line"),
    ("", "got no tokens, wanted at least one"),
    ("[]", "got no tokens, wanted at least one"),
    (b'[{"address":"\xff"}]', "UTF-8"),
]


def test_an_import_is_all_or_nothing(run: Run, database: Settings) -> None:
    """A file with an entry that cannot be kept changes nothing, and the entry is named with its line."""
    assert run("tokens", "set", SOL, "symbol=WIF", "decimals=9").status == 0
    for text, said in UNKEPT:
        done = run("tokens", "import", "-", stdin=text)
        assert (done.status, done.out) == (1, ""), text
        assert done.err.startswith("ringlog: stdin: ")
        assert said in done.err
    assert [token.symbol for token in tokens_of(database).values()] == ["WIF"]


FORMS = ["[{},\n{}]", "{}\r\n{}\r\n", '{{"tokens":[{},{}]}}', "\ufeff[{},{}]"]


@pytest.mark.parametrize("forms", [FORMS[:1], pytest.param(FORMS[1:], marks=pytest.mark.slow)], ids=["one", "rest"])
def test_an_import_takes_each_form(run: Run, database: Settings, forms: list[str]) -> None:
    """An array, one object a line, and what `list --json` prints; twice is as good as once."""
    for form in forms:
        for _ in range(2):
            assert run("tokens", "import", "-", stdin=form.format(A, B)).out == "2 tokens imported\n", form
        assert {token.symbol for token in tokens_of(database).values()} == {"A", "B"}
        execute(database, "delete from tokens")


def test_what_the_database_refuses_is_named_too(run: Run, database: Settings) -> None:
    """The second rule's trader is unknown: the entry, its line and the key are named, and the first is not armed."""
    assert run("tokens", "set", USDC, "symbol=USDC", "decimals=6").status == 0
    assert run("traders", "import", "-", stdin=json.dumps({"trader_id": "t1", "limits": LIMITS})).status == 0
    rule = {"trader_id": "t1", "token": USDC, "quantity": "1", "entry_price": 0.1, "stop_loss": 0.05}
    lines = [json.dumps(rule), json.dumps({**rule, "trader_id": "nobody"})]
    done = run("rules", "import", "-", stdin="\n".join(lines))
    assert done.status == 1
    assert "stdin: entry 2 (line 2): " in done.err
    assert "Key (trader_id)=(nobody) is not present" in done.err
    assert done.err.endswith(": nothing was imported\n")
    assert execute(database, "select count(*) from order_rules") == [(0,)]


def test_traders_are_restored_and_conflicts_refused(run: Run, database: Settings) -> None:
    """What `list --json` printed is imported again without new versions; over a newer version it is a conflict."""
    entry = {"trader_id": "t1", "limits": LIMITS}
    assert run("traders", "import", "-", stdin=json.dumps([entry, {**entry, "trader_id": "t2"}])).status == 0
    printed = run("traders", "list", "--json").out
    assert run("traders", "import", "-", stdin=printed).status == 0
    assert execute(database, "select max(version) from trader_config_history") == [(1,)]
    assert run("traders", "set", "t2", "enabled=false").status == 0
    conflict = run("traders", "import", "-", stdin=printed)
    assert conflict.status == 1
    assert "entry 2 (line 1): trader 't2': got version 1, the database has version 2" in conflict.err
    execute(database, "truncate trader_configs, trader_config_history cascade")
    assert run("traders", "import", "-", stdin=printed).status == 0
    assert execute(database, "select trader_id, version from trader_configs order by 1") == [("t1", 1), ("t2", 1)]


async def test_the_api_lists_all_tokens_and_imports_async(database: Settings) -> None:
    """`get_all` and an import do the same in an AsyncPool; a second run of an import changes nothing."""
    found = entries(KINDS["tokens"], f"[{A},{B}]".encode())
    work = Import(KINDS["tokens"], found, "")
    async with AsyncPool(database) as pool:
        assert [await pool.run(work.operation()) for _ in range(2)] == [2, 2]
        known = await AsyncTokens(pool).get_all()
    assert known == tokens_of(database)
    assert {token.symbol for token in known.values()} == {"A", "B"}


def test_a_file_that_is_too_long_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: a file beyond the limit is not read to its end."""
    monkeypatch.setattr("ringlog.cli.catalogue.FILE_BYTES_MAX", 10)
    done = run("tokens", "import", "-", stdin=f"[{A}]")
    assert done.status == 1
    assert "got more than 10 bytes" in done.err


def test_extensions_are_imported_whole(run: Run, database: Settings) -> None:
    """Kinds and states that this version does not know are kept; a known kind whose state does not fit is refused."""
    token = {"address": PYUSD, "symbol": "PYUSD", "decimals": 6, "program": "spl-token-2022"}
    later = {"extension": "fromALaterVersion", "state": {"kept": "as it came"}}
    assert run("tokens", "import", "-", stdin=json.dumps({**token, "extensions": [later]})).status == 0
    assert tokens_of(database)[PYUSD].extensions == (Extension("fromALaterVersion", {"kept": "as it came"}),)
    bad = {**token, "extensions": [{"extension": "transferFeeConfig", "state": {}}]}
    done = run("tokens", "import", "-", stdin=json.dumps(bad))
    assert done.status == 1
    assert "extension transferFeeConfig" in done.err
    typo = {**token, "extensions": [{"extention": "transferHook"}]}
    assert "did you mean extension?" in run("tokens", "import", "-", stdin=json.dumps(typo)).err
