"""Connections to the file of an index: many readers, each with one consistent state, and one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from camp_sdk.index.schema import MAKE_AGAIN, check_schema, create_tables
from camp_sdk.runtime.errors import BundleError, BusyError, InputError
from camp_sdk.runtime.forks import abandon, watch_forks
from camp_sdk.runtime.messages import brief

PAGE_BYTES = 8192  # of 4 to 32 KiB, the smallest that reads and writes rows of 74 kB close to as fast as the largest
SETTINGS = (
    # An index is data: nothing that its schema says is run, whatever a later version of SQLite would run.
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "temp_store = MEMORY",
    "synchronous = FULL",  # a commit is on the disk before it is acknowledged
    "cache_size = -4096",  # KiB, of each connection
    f"journal_size_limit = {64 << 20}",  # of the write-ahead log, after it was emptied
)
VALUE_BYTES = 1 << 28  # the most that a value of the file may take
SQLITE_LIMIT_LENGTH = 0


class Database:
    """The file of an index.

    Args:
        path: The file.
        timeout_s: How long a writer waits for another one.

    Raises:
        BundleError: There is no file, or it is not an index.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        self.path, self.timeout_s = path, timeout_s
        self._idle: list[sqlite3.Connection] = []
        self._pool, self._writing = threading.Lock(), threading.Lock()
        self._closed = False
        self._file: tuple[int, int] | None = None  # what distinguishes it from one that takes its place
        self._immutable = False
        _check_file(path)
        watch_forks(self)
        with self._errors():
            self._idle.append(self._open_first())

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction: all that is read through it is of one state."""
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The transaction of the only writer: it is committed, or undone if an error is raised.

        Raises:
            BusyError: Another one has been writing all the time.
            OSError: The disk is full, or the file cannot be written; nothing has changed.
        """
        if not self._writing.acquire(timeout=self.timeout_s):
            raise BusyError(self._who_writes())
        try:
            with self._errors(), self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    with self._recorded():
                        yield connection
                    connection.execute("COMMIT")
                finally:
                    _roll_back(connection)
        finally:
            self._writing.release()

    def run_alone(self, statement: str) -> None:
        """Run a statement that cannot be part of a transaction, such as VACUUM.

        Raises:
            BusyError: Another one is writing.
            OSError: There is no space for it.
        """
        if not self._writing.acquire(timeout=self.timeout_s):
            raise BusyError(self._who_writes())
        try:
            with self._errors(), self._connection() as connection, self._recorded():
                connection.execute(statement)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._writing.release()

    def close(self) -> None:
        """Close all connections that are not in use; the others are closed when they are no longer in use."""
        with self._pool:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def forked(self) -> None:
        """Begin without connections: a file that another process opened cannot be used in this one."""
        abandon(self._idle)
        self._idle, self._pool, self._writing = [], threading.Lock(), threading.Lock()

    def beside(self, ending: str) -> Path:
        """The path of a file that belongs to the index."""
        return self.path.with_name(f"{self.path.name}-{ending}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._pool:
            if self._closed:
                raise InputError(f"the index {self.path} is closed: open it again")
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._open()
        try:
            yield connection
        finally:
            with self._pool:
                keep = not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _open_first(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            if "unable to open" not in str(error) or self.beside("wal").exists():
                raise
        # In a folder where nothing can be written, SQLite can read a file that nobody is writing to.
        self._immutable = True
        return self._open()

    def _open(self) -> sqlite3.Connection:
        mode = "mode=ro&immutable=1" if self._immutable else "mode=rw"
        connection = _connect(f"{self.path.as_uri()}?{mode}", self.timeout_s)
        try:
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
            check_schema(connection, str(self.path))
            self._check_same()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_same(self) -> None:
        """Raise BundleError if another file has taken the place of the one that the first connection opened."""
        found = self.path.stat()
        self._file = self._file or (found.st_dev, found.st_ino)
        if self._file != (found.st_dev, found.st_ino):
            raise BundleError(f"{self.path} was replaced by another file while it was open: open it again")

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Leave a note of who is writing, for others who wait."""
        note = self.beside("writer")
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        written = {"pid": os.getpid(), "host": os.uname().nodename, "since": since}
        with suppress(OSError):
            note.write_text(json.dumps(written), encoding="utf-8")
        try:
            yield
        finally:
            with suppress(OSError):
                note.unlink(missing_ok=True)

    def _who_writes(self) -> str:
        who = "another process"
        with suppress(OSError, ValueError, KeyError, TypeError):
            with self.beside("writer").open(encoding="utf-8", errors="replace") as file:
                note = json.loads(file.read(1000))
            who = f"process {note['pid']:d} on {brief(note['host'])}, since {brief(note['since'])}"
        return f"{self.path} is being written by {who}; waited {self.timeout_s:g} s: try again later, or wait longer"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of SQLite as those of this package."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for messages with text of a damaged file
            if "locked" in str(error) or "busy" in str(error):
                raise BusyError(self._who_writes()) from None
            raise _translated(error, self.path) from None


def create_file(path: Path, kind: str, bundle: str, precision: str) -> None:
    """Write an empty index, completely or not at all. If there is one already, it is left as it is.

    Raises:
        OSError: The file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        connection = _connect(f"{fresh.as_uri()}?mode=rwc", 0)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            create_tables(connection, kind, bundle, precision)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _translated(error, path) from None
        finally:
            connection.close()
        _publish(fresh, path)


def _publish(fresh: Path, path: Path) -> None:
    """Give a new file its name, unless another process was faster."""
    with suppress(FileExistsError):
        try:
            os.link(fresh, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if not path.exists():
                fresh.rename(path)


def _connect(uri: str, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, timeout_s, isolation_level=None, check_same_thread=False, uri=True)
    if hasattr(connection, "setlimit"):  # Python 3.11
        connection.setlimit(SQLITE_LIMIT_LENGTH, VALUE_BYTES)
    return connection


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _check_file(path: Path) -> None:
    """Raise BundleError unless this is a file. SQLite alone opens it: closing it here would end SQLite's locks."""
    if not path.exists():
        raise BundleError(f"{path} not found: expected an index; open_index(..., create=True) makes one")
    if not path.is_file():  # a named pipe would wait for its writer
        raise BundleError(f"{path} is not a file: expected the file of an index")


def _translated(error: Exception, path: Path) -> Exception:
    text = str(error)
    kinds: list[tuple[str, Callable[[], Exception]]] = [
        ("full", lambda: OSError(errno.ENOSPC, "no space left for this change, the index is as before it", str(path))),
        ("readonly", lambda: PermissionError(errno.EACCES, "the index cannot be written here", str(path))),
        ("unable to open", lambda: OSError(errno.EACCES, "the index cannot be opened here", str(path))),
        ("disk I/O", lambda: OSError(errno.EIO, "the index cannot be read or written", str(path))),
    ]
    for mark, made in kinds:
        if mark in text:
            return made()
    return BundleError(f"{path} is damaged ({text}): {MAKE_AGAIN}")
