"""`ringlog tokens`, `traders`, `rules` and `nodes`: what PostgreSQL keeps, listed, shown, changed and imported."""

from __future__ import annotations

import contextlib
import functools
import getpass
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import click
import msgspec

from ringlog.cli.output import say, say_json
from ringlog.errors import PostgresValueError, RinglogError, VersionConflict
from ringlog.naming import did_you_mean
from ringlog.postgres import Pool, catalogue, nodes, orders
from ringlog.postgres import tokens as token_operations
from ringlog.postgres.addresses import checked_address
from ringlog.postgres.catalogue import KINDS, Kind, plain
from ringlog.postgres.extensions import KINDS as KNOWN
from ringlog.settings import Settings

FILE_BYTES_MAX = 64 * 1024 * 1024

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
reveal_option = click.option("--reveal", is_flag=True, help="Show URLs, which may hold API keys.")


@contextlib.contextmanager
def _pool() -> Iterator[Pool]:
    settings = msgspec.structs.replace(Settings.from_environment(), postgres_pool_size_max=1)
    with Pool(settings) as pool:
        yield pool


def _user() -> str | None:
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return None


def _changed_by(kind: Kind) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of the one kind that keeps who changed it."""
    if kind.name != "traders":
        return lambda command: functools.wraps(command)(functools.partial(command, changed_by=""))
    return click.option("--changed-by", default=_user, required=True, help="Who changes it (by default this user).")


def _line(value: Any) -> str:
    """One entry on one line: its fields by their paths, as `set` takes them."""
    return " ".join(
        f"{name}={_text(each)}" for name, each in catalogue.flat(plain(value)) if each not in (None, "", [], ())
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _show(kind: Kind, value: Any, as_json: bool, reveal: bool) -> None:
    document = plain(value, reveal=reveal)
    if as_json:
        say_json({kind.single: document})
        return
    for name, each in catalogue.flat(document):
        say(f"{name}={_text(each)}")


def _say_list(kind: Kind, found: list[Any], as_json: bool, reveal: bool = False, **beside: Any) -> None:
    if as_json:
        say_json({kind.name: [plain(each, reveal=reveal) for each in found], **beside})
        return
    for each in found:
        say(_line(each))
    say(f"{len(found)} {kind.name}")


def _refuse_unknown(option: str, name: str, known: Iterable[str]) -> None:
    """A mistyped name is no answer of 0."""
    known = list(known)
    if name not in known:
        raise click.UsageError(f"{option}: got {name!r:.80}, which is none that is known{did_you_mean(name, known)}")


def _not_found(kind: Kind, key: str, pool: Pool) -> RinglogError:
    known = pool.run(kind.get_all())
    names = [*known, *(each.symbol for each in known.values())] if kind.name == "tokens" else list(known)
    return RinglogError(
        f"got no {kind.single} {key!r:.80}{did_you_mean(key, names, f': `ringlog {kind.name} list` shows all')}"
    )


def _group(name: str, help_text: str) -> click.Group:
    """A group with the commands that all kinds have in common."""
    kind = KINDS[name]
    group = click.Group(name, help=help_text)

    @group.command("show", help=f"Show a {kind.single}, a field a line, as `set` takes them.")
    @click.argument("key", metavar=kind.key.upper())
    @as_json_option
    @reveal_option
    def show(key: str, as_json: bool, reveal: bool) -> None:
        with _pool() as pool:
            found = _found(kind, key, pool)
            if not found:
                raise _not_found(kind, key, pool)
        for value in found:
            _show(kind, value, as_json, reveal)

    @group.command("set", help=_set_help(kind))
    @click.argument("key", metavar=kind.key.upper())
    @click.argument("changes", metavar="FIELD=VALUE...", nargs=-1, required=True)
    @_changed_by(kind)
    @as_json_option
    def change(key: str, changes: tuple[str, ...], changed_by: str, as_json: bool) -> None:
        wanted = _changes(kind, changes)
        if kind.name == "rules" and key == "new":
            key = str(uuid.uuid4())
        with _pool() as pool:
            stored = pool.run(catalogue.change(kind, key, wanted, changed_by))
        _show(kind, stored, as_json, reveal=False)

    @group.command("import", help=_import_help(kind))
    @click.argument("file", type=click.File("rb"))
    @_changed_by(kind)
    @as_json_option
    def import_file(file: IO[bytes], changed_by: str, as_json: bool) -> None:
        _import(kind, file, changed_by, as_json)

    return group


def _found(kind: Kind, key: str, pool: Pool) -> list[Any]:
    """What has that key; of tokens also what has that symbol."""
    if kind.name == "tokens":
        try:
            checked_address("address", key)
        except PostgresValueError:
            is_symbol = len(key.encode(errors="replace")) <= token_operations.SYMBOL_BYTES_MAX
            return pool.run(token_operations.by_symbol(key)) if is_symbol else []
    value = pool.run(kind.get(key))
    return [] if value is None else [value]


def _set_help(kind: Kind) -> str:
    example = {
        "tokens": "symbol=USDC decimals=6",
        "traders": "limits.position_max=1000 mev_protection.route=public enabled=false settings.note=fast",
        "rules": "trader_id=t1 token=ADDRESS quantity=250 entry_price=1.00 stop_loss=0.95",
        "nodes": "url=@FILE failures_max=3",
    }[kind.name]
    beside = {
        "rules": " ID `new` makes one. A rule is armed once: cancel it, and arm another, to change it.",
        "nodes": " The URL may hold an API key, so it is read from a file, or from stdin: url=@-.",
        "traders": " The trader gets a new version.",
        "tokens": "",
    }[kind.name]
    return f"Change fields of a {kind.single}, or make it: {example}. An object or a list is JSON, or @FILE.{beside}"


def _import_help(kind: Kind) -> str:
    return (
        f"Write all {kind.name} of a JSON FILE (- is stdin), or none: an array, one object a line, or what "
        "`list --json` prints. The first entry that can't be kept is named with its line."
    )


def _changes(kind: Kind, words: tuple[str, ...]) -> dict[str, str]:
    changes: dict[str, str] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise click.UsageError(f"got {word!r:.80}, wanted FIELD=VALUE")
        if path in changes:
            raise click.UsageError(f"got {path} twice, wanted it once")
        is_secret = catalogue.is_secret(kind, path)
        if is_secret and not text.startswith("@"):
            raise click.UsageError(
                f"{path}: got a value that others on this machine can see in the list of processes, wanted {path}=@FILE"
            )
        if text.startswith("@") and (is_secret or path.split(".")[0] in ("extensions", "settings")):
            text = _file_text(path, text[1:])
        changes[path] = text
    return changes


def _file_text(path: str, name: str) -> str:
    try:
        with click.open_file(name, "rb") as file:  # - is stdin
            return bytes(file.read()).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.UsageError(f"{path}: got {name!r}, wanted a readable file ({reason})") from None


def _import(kind: Kind, file: IO[bytes], changed_by: str, as_json: bool) -> None:
    name = "stdin" if (name := getattr(file, "name", "-")) in ("-", "<stdin>") else name
    text = file.read(FILE_BYTES_MAX + 1)
    if len(text) > FILE_BYTES_MAX:
        raise PostgresValueError(f"{name}: got more than {FILE_BYTES_MAX} bytes, wanted less: import it in parts")
    try:
        entries = catalogue.entries(kind, text)
    except PostgresValueError as error:
        raise PostgresValueError(f"{name}: {error}: nothing was imported") from None
    if not entries:
        raise PostgresValueError(f"{name}: got no {kind.name}, wanted at least one")
    work = catalogue.Import(kind, entries, changed_by)
    try:
        with _pool() as pool:
            count = pool.run(work.operation())
    except (PostgresValueError, VersionConflict) as error:
        kept_type = VersionConflict if isinstance(error, VersionConflict) else PostgresValueError
        raise kept_type(f"{name}: {work.at or 'commit'}: {error}: nothing was imported") from None
    if as_json:
        say_json({"imported": count})
    else:
        say(f"{count} {kind.name} imported")


tokens = _group("tokens", "List, show, set and import tokens and their Token-2022 extensions.")
traders = _group("traders", "List, show, set and import traders' configurations, each change a version.")
rules = _group("rules", "List, show, arm, cancel and import order rules.")
nodes_group = _group("nodes", "List, show, set and import RPC nodes, with their health.")


@tokens.command("list")
@click.option("--symbol", help="Only those of this symbol, in any case.")
@click.option("--extension", help="Only those with an extension of this kind, as transferHook.")
@as_json_option
def list_tokens(symbol: str | None, extension: str | None, as_json: bool) -> None:
    """List tokens by address."""
    with _pool() as pool:
        found = list(pool.run(token_operations.get_all()).values())
    if symbol is not None:
        _refuse_unknown("--symbol", symbol.upper(), [each.symbol.upper() for each in found])
        found = [each for each in found if each.symbol.upper() == symbol.upper()]
    if extension is not None:
        _refuse_unknown("--extension", extension, [*KNOWN, *(one.kind for each in found for one in each.extensions)])
        found = [each for each in found if each.extension(extension) is not None]
    _say_list(KINDS["tokens"], found, as_json)


@traders.command("list")
@as_json_option
def list_traders(as_json: bool) -> None:
    """List the newest configuration of each trader."""
    with _pool() as pool:
        found = list(pool.run(KINDS["traders"].get_all()).values())
    _say_list(KINDS["traders"], found, as_json)


@rules.command("list")
@click.option("--trader", help="Only this trader's.")
@click.option("--state", type=click.Choice(["armed", "triggered", "filled", "cancelled"]), help="Only those in it.")
@as_json_option
def list_rules(trader: str | None, state: str | None, as_json: bool) -> None:
    """List order rules, oldest first."""
    with _pool() as pool:
        found = list(pool.run(orders.get_all()).values())
        known = pool.run(KINDS["traders"].get_all()) if trader is not None else {}
    if trader is not None:
        _refuse_unknown("--trader", trader, known)
    chosen = [each for each in found if trader in (None, each.trader_id) and state in (None, each.state)]
    _say_list(KINDS["rules"], chosen, as_json)


@rules.command()
@click.argument("key", metavar="ID")
@click.option("--reason", required=True, help="Why: kept with the rule.")
@as_json_option
def cancel(key: str, reason: str, as_json: bool) -> None:
    """Give up an armed or triggered rule."""
    kind = KINDS["rules"]
    with _pool() as pool:
        rule = pool.run(kind.get(key))
        if rule is None:
            raise _not_found(kind, key, pool)
        cancelled = pool.run(orders.cancel(rule.id, reason))
    if cancelled is None:
        raise RinglogError(f"rule {key}: got one that is {rule.state}, wanted one that is armed or triggered")
    _show(kind, cancelled, as_json, reveal=False)


@nodes_group.command("list")
@as_json_option
@reveal_option
def list_nodes(as_json: bool, reveal: bool) -> None:
    """List nodes by name, with what all processes know of their health."""
    with _pool() as pool:
        found = list(pool.run(KINDS["nodes"].get_all()).values())
        health = pool.run(nodes.health())
    if as_json:
        _say_list(KINDS["nodes"], found, as_json, reveal, health=[plain(each) for each in health.values()])
        return
    for node in found:
        known = health.get(node.name)
        beside = (
            f" state={known.state} latency_us={known.latency_us or '-'} error_ratio={known.error_ratio:.3f}"
            if known
            else ""
        )
        url = f" url={node.url.reveal()}" if reveal else ""
        say(f"{_line(node)}{beside}{url}")
    say(f"{len(found)} nodes")
