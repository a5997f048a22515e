"""Every error ringlog raises, under one root.

    RinglogError
    ├── ConfigurationError      mend the settings
    ├── RecordError             mend the call: the record was not accepted
    │   ├── RecordTypeError     (also a TypeError) wrong type, unknown or missing field
    │   └── RecordValueError    (also a ValueError) too long, out of range, not finite, not UTF-8 ...
    ├── DeclarationError        (also a TypeError) mend the record type's class
    ├── LaneError               a segment, lock file or runtime directory cannot be used
    │   ├── SegmentRefused      wrong magic, version, size, owner or type; the file is left as it is
    │   ├── SharedMemoryFull    /dev/shm has no room for the segment
    │   └── SharedMemoryUnusable    /dev/shm is absent or read-only: no segment can be made there
    ├── SpoolError              the local disk queue cannot take or give records; nothing was dropped
    │   ├── SpoolFull           its cap or the disk is reached: the same call may succeed later
    │   └── SpoolUnusable       missing, unwritable, someone else's, of another version, foreign: mend it by hand
    ├── WriterRunning           another writer holds this instance's lease
    ├── RetentionRunning        another retention run holds this instance's lock
    ├── SchemaMismatch          a server's table differs from the record type: run `ringlog migrate`
    ├── ServerError             a database or the way to it
    │   ├── ServerUnavailable   down, slow or restarting: the call may be tried again
    │   ├── ServerRefused       answered, and will refuse the same request again
    │   │   └── ConsumerGroupMissing    create the group first
    │   └── ServerTooOld        needs an upgrade
    ├── RedisValueError         (also a ValueError) mend the price, pool state, event or key that was passed
    ├── PostgresValueError      (also a ValueError) mend the token, configuration, rule or node that was passed
    ├── VersionConflict         read the configuration again: somebody else changed it first
    └── QueryError              mend the query or its filter
        └── QueryTimeout        the query ran out of time

A full lane is no error: `append()` returns False.
"""


def one_line(error: object) -> str:
    """What a client library says, as a part of one line: without the questions that libpq asks below its errors."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if not line.startswith("\t")]
    return "; ".join(filter(None, lines)).removeprefix("connection failed: ") or type(error).__name__


def system_error(error: OSError) -> str:
    """What a system call met, and at which file, in one line."""
    said = error.strerror or one_line(error)
    return said if error.filename is None else f"{error.filename}: got {said}"


class RinglogError(Exception):
    """The root of all errors that ringlog raises on purpose."""


class ConfigurationError(RinglogError):
    """A setting is missing or wrong; the message names the setting, what was got and what was wanted."""


class RecordError(RinglogError):
    """A record was not accepted because of what the caller passed."""


class RecordTypeError(RecordError, TypeError):
    """A field has the wrong type, is unknown, or is missing."""


class RecordValueError(RecordError, ValueError):
    """A field has the right type but a value that cannot be stored as it is."""


class DeclarationError(RinglogError, TypeError):
    """A record type's class is declared in a way that has no layout."""


class LaneError(RinglogError):
    """A lane, its segment, its lock file or the runtime directory cannot be used."""


class SegmentRefused(LaneError):
    """A segment is not what it must be; it is left untouched."""


class SharedMemoryFull(LaneError):
    """Shared memory has no room for a segment; the message says how much was needed."""


class SharedMemoryUnusable(LaneError):
    """No segment can be made at all: /dev/shm is absent, or cannot be written."""


class SpoolError(RinglogError):
    """The local disk (spool, ledger, dead letters) cannot take or give records; nothing was dropped."""


class SpoolFull(SpoolError):
    """The spool's cap or the disk is reached: nothing of this call was kept, and it may succeed later."""


class SpoolUnusable(SpoolError):
    """A directory or file is not what it must be; it is left as it is, and the message names it."""


class WriterRunning(RinglogError):
    """Another writer holds the lease of this instance; the message names the holder."""


class RetentionRunning(RinglogError):
    """Another retention run is going on; the message names its lock."""


class SchemaMismatch(RinglogError):
    """A table differs from its record type; the message names table, column, got and wanted."""


class ServerError(RinglogError):
    """Something went wrong between ringlog and a database."""


class ServerUnavailable(ServerError):
    """The server is down, slow or restarting; the same call may succeed later."""


class ServerRefused(ServerError):
    """The server answered and will refuse the same request again.

    `line` is the row of the request that it complained of, counted from 1, where it named one.
    """

    line: int | None = None


class ConsumerGroupMissing(ServerRefused):
    """A stream has no such consumer group; the message names both."""


class ServerTooOld(ServerError):
    """The server's version is below what ringlog relies on."""


class RedisValueError(RinglogError, ValueError):
    """A value, symbol, address or event that cannot be kept in Redis as it is; nothing was sent."""


class PostgresValueError(RinglogError, ValueError):
    """A token, configuration, order rule or node that PostgreSQL cannot keep as it is; nothing was written."""


class VersionConflict(RinglogError):
    """The configuration is not at the version that the caller has seen; the message names both."""


class QueryError(RinglogError):
    """A query or its filter is wrong."""


class QueryTimeout(QueryError):
    """A query ran out of time."""
