"""Tokens, traders, rules and nodes by the names of their fields: what commands list, change and import.

An import is one transaction: all of its entries, or none. Unknown fields are refused, since a mistyped one would
otherwise leave a default in its place.
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from ringlog.errors import PostgresValueError
from ringlog.naming import did_you_mean
from ringlog.postgres import nodes, orders, tokens, traders
from ringlog.postgres.pools import Operation, Statement, Steps, transaction
from ringlog.postgres.rules import OrderRule, checked_rule
from ringlog.settings import Secret

MASK = "[REDACTED]"


class Kind(NamedTuple):
    """What one table holds. `kept` names the fields that the database alone sets."""

    name: str
    single: str
    struct: type[msgspec.Struct]
    key: str
    table: str
    get: Callable[[str], Operation[Any]]
    get_all: Callable[[], Operation[dict[str, Any]]]
    check: Callable[[Any], object]
    save: Callable[[Any, str], Operation[Any]]  # with who changes it
    kept: frozenset[str] = frozenset()


class Entry(NamedTuple):
    """One object of a file: its number and its line, both from 1."""

    value: Any
    number: int
    line: int

    def __str__(self) -> str:
        return f"entry {self.number} (line {self.line})"


def _rule_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise PostgresValueError(f"rule: got {text!r:.60}, wanted an id, as `ringlog rules list` shows it") from None


@transaction
def _save_config(config: traders.TraderConfig, changed_by: str, change_id: uuid.UUID) -> Steps[None]:
    """Over what is there: over the version that the configuration names, or any where it names none."""
    stored = yield from traders.get(config.trader_id).start()
    if stored is None:
        config = msgspec.structs.replace(config, version=0)
    elif _content(config) == _content(stored):
        return  # no new version of the same
    elif not config.version:
        config = msgspec.structs.replace(config, version=stored.version)
    yield from traders.save(config, changed_by, change_id).start()


def _content(config: traders.TraderConfig) -> traders.TraderConfig:
    return msgspec.structs.replace(config, version=0, changed_by="", changed_at=None)


_RULE_KEPT = (
    "state", "trigger_reason", "trigger_price", "fill_price", "tx_signature", "cancel_reason", "armed_at",
    "triggered_at", "ended_at",
)  # fmt: skip
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "tokens", "token", tokens.Token, "address", "tokens", tokens.get, tokens.get_all,
            tokens.checked_token, lambda token, _: tokens.save(token),
        ),
        Kind(
            "traders", "trader", traders.TraderConfig, "trader_id", "trader_configs", traders.get, traders.get_all,
            traders.checked_config, lambda config, who: _save_config(config, who, uuid.uuid4()),
            frozenset({"version", "changed_by", "changed_at"}),
        ),
        Kind(
            "rules", "rule", OrderRule, "id", "order_rules", lambda key: orders.get(_rule_id(key)), orders.get_all,
            checked_rule, lambda rule, _: orders.arm(rule), frozenset(_RULE_KEPT),
        ),
        Kind(
            "nodes", "node", nodes.Node, "name", "rpc_nodes", nodes.get, nodes.get_all,
            nodes.checked_node, lambda node, _: nodes.save(node),
        ),
    )
}  # fmt: skip


def plain(value: Any, *, reveal: bool = False) -> Any:
    """`value` as JSON's types; secrets are masked unless they are to be revealed."""
    return msgspec.to_builtins(value, enc_hook=lambda secret: secret.reveal() if reveal else MASK)


def key_of(kind: Kind, value: Any) -> str:
    return str(getattr(value, kind.key))


def entries(kind: Kind, text: bytes) -> list[Entry]:
    """The objects of a JSON array, of the object that `list --json` prints, or of NDJSON; a single object as well.

    Raises PostgresValueError that names the first entry that cannot be kept, and why.
    """
    found: list[Entry] = []
    numbers: dict[str, Entry] = {}
    for number, (raw, line) in enumerate(_raws(kind, text), 1):
        place = Entry(None, number, line)
        try:
            value = _decoded(kind, raw)
            kind.check(value)
        except PostgresValueError as error:
            raise PostgresValueError(f"{place}: {error}") from None
        entry = place._replace(value=value)
        if other := numbers.get(key_of(kind, value)):
            raise PostgresValueError(
                f"{place}: got {kind.key} {key_of(kind, value)!r:.60} of {other} again, wanted it once"
            )
        numbers[key_of(kind, value)] = entry
        found.append(entry)
    return found


def _raws(kind: Kind, text: bytes) -> Iterator[tuple[bytes, int]]:
    """Each object as it stands in the text, and its line."""
    body = text.removeprefix(b"\xef\xbb\xbf")
    if not body.strip():
        return
    raws: Sequence[msgspec.Raw] | None = None
    try:
        if body.lstrip()[:1] == b"[":
            raws = msgspec.json.decode(body, type=list[msgspec.Raw])
        elif list(whole := msgspec.json.decode(body, type=dict[str, msgspec.Raw]))[:1] == [kind.name]:
            raws = msgspec.json.decode(whole[kind.name], type=list[msgspec.Raw])
        else:
            raws = [msgspec.Raw(body.strip())]
    except (msgspec.DecodeError, RecursionError) as error:
        if body.lstrip()[:1] != b"{":
            raise PostgresValueError(
                f"{_line_of(body, error)}got no JSON ({error}), wanted an array of {kind.name}, or one object a line"
            ) from None
    if raws is None:
        lines = enumerate(body.split(b"\n"), 1)
        yield from ((line, number) for number, line in lines if line.strip())
        return
    at, line, counted = 0, 1, 0
    for raw in raws:
        found = body.index(bytes(raw), at)
        line += body.count(b"\n", counted, found)
        at, counted = found + len(bytes(raw)), found
        yield bytes(raw), line


def _line_of(body: bytes, error: BaseException) -> str:
    found = re.search(r"\(byte (\d+)\)", str(error))
    return f"line {body[: int(found[1])].count(10) + 1}: " if found else ""  # 10: a line feed


def _decoded(kind: Kind, raw: bytes) -> Any:
    try:
        _refuse_unknown(msgspec.json.decode(raw), kind.struct, "")
        return msgspec.json.decode(raw, type=kind.struct, dec_hook=_secret)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PostgresValueError(f"{kind.single}: {error}") from None


def _secret(wanted: type, value: Any) -> Any:
    if wanted is not Secret or not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}, wanted a text")
    if value == MASK:
        raise ValueError("got the mask of a secret, wanted the secret: `list --reveal` shows it")
    return Secret(value)


def _refuse_unknown(value: Any, wanted: Any, path: str) -> None:
    for each in get_args(wanted):
        if isinstance(value, list) and get_origin(wanted) is tuple:
            for one in value:
                _refuse_unknown(one, each, path)
            return
    if not isinstance(value, dict) or not isinstance(wanted, type) or not issubclass(wanted, msgspec.Struct):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(wanted)}
    for name, each in value.items():
        if name not in fields:
            raise PostgresValueError(f"{path}{name}: {_unknown(name, fields)}")
        _refuse_unknown(each, fields[name], f"{path}{name}.")


def _unknown(name: str, fields: Mapping[str, Any]) -> str:
    return f"got an unknown field{did_you_mean(name, fields, ', wanted one of ' + ', '.join(fields))}"


class Import:
    """All entries in one transaction; `at` is the one that it was at, to be named where it fails."""

    def __init__(self, kind: Kind, found: Sequence[Entry], changed_by: str) -> None:
        self._kind, self._entries, self._changed_by = kind, found, changed_by
        # Made once, so that a second try after a lost answer finds what the first one did.
        self._saves = [kind.save(entry.value, changed_by) for entry in found]
        self.at: Entry | None = None

    def operation(self) -> Operation[int]:
        return Operation(self._steps, transaction=True)

    def _steps(self) -> Steps[int]:
        for entry, save in zip(self._entries, self._saves, strict=True):
            self.at = entry
            yield from save.start()
        self.at = None
        return len(self._entries)


@transaction
def change(kind: Kind, key: str, changes: Mapping[str, str], changed_by: str) -> Steps[Any]:
    """Sets fields, by their paths, of what has that key, or makes it; returns it as it is stored."""
    yield Statement(f"select 1 from {kind.table} where {kind.key}::text = %s for update", (key,))
    stored = yield from kind.get(key).start()
    value = changed(kind, key, stored, changes)
    kind.check(value)
    yield from kind.save(value, changed_by).start()
    return (yield from kind.get(key).start())


def changed(kind: Kind, key: str, stored: Any, changes: Mapping[str, str]) -> Any:
    """`stored` with other fields, or a new one where it is None. Raises PostgresValueError that names the field."""
    document = {kind.key: key} if stored is None else plain(stored, reveal=True)
    for path, text in changes.items():
        if path in kind.kept or path == kind.key:
            raise PostgresValueError(
                f"{path}: got a change, wanted none: "
                + ("it is the key" if path == kind.key else "the database keeps it")
            )
        _put(document, kind.struct, path, path.split("."), text)
    try:
        return msgspec.convert(document, kind.struct, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise PostgresValueError(f"{kind.single} {key!r:.60}: {error}") from None


def _put(document: dict[str, Any], struct: Any, path: str, names: Sequence[str], text: str) -> None:
    name, *rest = names
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        if name not in fields:
            raise PostgresValueError(f"{path}: {_unknown(name, fields)}")
        wanted = fields[name]
    else:
        wanted = Any
    if not rest:
        document[name] = _value(path, wanted, text)
        return
    inner = document.setdefault(name, {})
    is_inner = (
        get_origin(wanted) is dict or wanted is Any or (isinstance(wanted, type) and issubclass(wanted, msgspec.Struct))
    )
    if not is_inner or not isinstance(inner, dict):
        raise PostgresValueError(f"{path}: got a path into {name}, which has no fields")
    _put(inner, wanted, path, rest, text)


def _value(path: str, wanted: Any, text: str) -> Any:
    convert = functools.partial(msgspec.convert, type=wanted, dec_hook=_secret)
    if wanted is not Any:
        try:
            return plain(convert(text, strict=False), reveal=True)
        except msgspec.ValidationError as error:
            reason = str(error)
    try:
        return plain(convert(msgspec.json.decode(text)), reveal=True)
    except msgspec.ValidationError as error:
        reason = str(error)
    except (msgspec.DecodeError, RecursionError):
        if wanted is Any:
            return text  # settings of a trader: JSON, or else a text
    if get_origin(wanted) is Literal:
        reason = f"wanted one of {', '.join(get_args(wanted))}{did_you_mean(text, get_args(wanted))}"
    raise PostgresValueError(f"{path}: got {text!r:.60}: {reason}")


def is_secret(kind: Kind, path: str) -> bool:
    return any(field.encode_name == path and field.type is Secret for field in msgspec.structs.fields(kind.struct))


def flat(document: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested objects by their paths, as `changed` takes them."""
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
