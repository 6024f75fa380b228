#!/usr/bin/env python3
"""A shared board: the state is in SQLite, its changes come through tidelog.

How does a page load and then stay in sync, with nothing lost in between? By three rules:

1. The state is handed out with the place from which to follow it. `snapshot` asks tidelog for its newest id, N, and reads
   the database after that; the page subscribes with last_event_id=N. In the other order, a change that is made between
   the two would be in neither.
2. A change and its event are one transaction. `change` writes the row and, into the table `outbox`, the event. So
   neither exists without the other, whenever this program dies.
3. One relay publishes the outbox in order, and takes an event out when tidelog has confirmed it. A publish without an
   answer may have happened or not: it is sent again with the same Idempotency-Key, and tidelog appends it once.

What is left: between N and the read, changes are made whose events come after N, so the page gets them twice, in the state and
as an event. Each item therefore carries a version, and the page takes only what is newer than what it has (board.js).

Python 3.9 or later, the standard library only.
"""

import argparse
import contextlib
import http.client
import json
import re
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
TOPIC = "board"
STAGES = ("todo", "doing", "done")
TEXT_MAX = 200  # characters of an item's text
BODY_MAX = 4096  # bytes of a request: enough for that, escaped as JSON
TIMEOUT = 10  # seconds, for each answer of tidelog
TRY_AGAIN = 0.1  # seconds from a failed publish to the next attempt
LOOK_AGAIN = 1  # seconds: how often an idle relay looks without being woken
KEEP_DELETED = 3600  # seconds: more than any page takes from its N to its state

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/board.js": ("board.js", "text/javascript; charset=utf-8"),
    "/board.css": ("board.css", "text/css; charset=utf-8"),
}
# Nothing from elsewhere but the stream.
POLICY = "default-src 'self'; img-src data:; connect-src http: https:"

# AUTOINCREMENT: a number that was given once is never given again, not even after its row is deleted.
SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    version    INTEGER NOT NULL,  -- 1, 2, 3, ...: one more with every change
    text       TEXT NOT NULL,
    stage      TEXT NOT NULL,
    deleted_at REAL               -- a deleted item stays for a while, so that its version still tells what is older
);
CREATE TABLE IF NOT EXISTS outbox (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    key  TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),  -- its Idempotency-Key
    data TEXT NOT NULL
);
"""


class Board:
    """The database. One connection, one thread at a time."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.changed = threading.Event()  # wakes the relay
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode = WAL")
        # What is committed is on disk, before its event goes out. With less, a power cut could take a change back that was published.
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.executescript(SCHEMA)

    @contextlib.contextmanager
    def transaction(self):
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def items(self):
        """All of them, the newly deleted ones too."""
        with self.lock:
            return [as_json(row) for row in self.db.execute("SELECT * FROM items ORDER BY id")]

    def create(self, text):
        return self.change("INSERT INTO items (version, text, stage) VALUES (1, ?, 'todo')", text)

    def update(self, item, text=None, stage=None):
        return self.change(
            "UPDATE items SET version = version + 1, text = coalesce(?, text), stage = coalesce(?, stage)"
            " WHERE id = ? AND deleted_at IS NULL", text, stage, item, item=item)

    def delete(self, item):
        return self.change(
            "UPDATE items SET version = version + 1, deleted_at = ? WHERE id = ? AND deleted_at IS NULL",
            time.time(), item, item=item)

    def change(self, statement, *values, item=None):
        """One change and its event, both or neither. Gives the item as it is now, None when there is no such item."""
        with self.transaction() as db:
            done = db.execute(statement, values)
            if done.rowcount == 0:
                return None
            row = db.execute("SELECT * FROM items WHERE id = ?", (done.lastrowid if item is None else item,)).fetchone()
            now = as_json(row)
            db.execute("INSERT INTO outbox (data) VALUES (?)", (dumps(now),))
        self.changed.set()
        return now

    # For the relay:

    def oldest(self):
        with self.lock:
            return self.db.execute("SELECT * FROM outbox ORDER BY seq LIMIT 1").fetchone()

    def published(self, seq):
        with self.transaction() as db:
            db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def forget_deleted(self):
        """Called when the outbox is empty, so that no event of these is yet to come."""
        with self.transaction() as db:
            db.execute("DELETE FROM items WHERE deleted_at < ?", (time.time() - KEEP_DELETED,))


def as_json(row):
    return {"id": row["id"], "version": row["version"], "text": row["text"], "stage": row["stage"],
            "deleted": row["deleted_at"] is not None}


def dumps(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def relay(board, host):
    """Publishes what is in the outbox, the oldest first, one at a time. Runs for ever.

    Whatever is not confirmed is sent again, for whatever reason, and nothing overtakes it: what comes after a change would be
    wrong without it.
    """
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT)  # opened by the first request, and again after close()
    told = None
    while True:
        board.changed.clear()  # before looking: a change that comes after the look sets it again
        trouble = None
        try:
            if not publish_oldest(board, connection):
                board.forget_deleted()
                board.changed.wait(LOOK_AGAIN)
        except (OSError, http.client.HTTPException, sqlite3.Error) as error:
            connection.close()
            trouble = repr(error)
        if trouble != told:
            print(f"relay: {trouble or 'goes on'}", file=sys.stderr, flush=True)
            told = trouble
        if trouble is not None:
            time.sleep(TRY_AGAIN)


def publish_oldest(board, connection):
    """False when the outbox is empty. Raises when the event is not confirmed: then it may be in the log or not."""
    row = board.oldest()
    if row is None:
        return False
    # The key is the row's, so an attempt that follows this one, even from a new life of this program, appends nothing twice.
    headers = {"Content-Type": "application/json", "Idempotency-Key": row["key"]}
    connection.request("POST", f"/topics/{TOPIC}", row["data"].encode(), headers)
    answer = connection.getresponse()
    body = answer.read()
    if not 200 <= answer.status < 300:
        raise OSError(f"tidelog answered {answer.status}: {body.decode(errors='replace')}")
    board.published(row["seq"])
    return True


def tail(host):
    """The newest id of the log, and the log's name. Raises OSError when tidelog is away."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
    try:
        connection.request("HEAD", f"/topics/{TOPIC}")
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"tidelog answered {answer.status}")
        return int(answer.headers["Tidelog-Tail"]), answer.headers["Tidelog-Log"]
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from error
    finally:
        connection.close()


def snapshot(board, host, public):
    """The state and the place from which to follow it. The order is the point: N first, the database after it."""
    last_event_id, log = tail(host)
    return {"last_event_id": last_event_id, "log": log, "stream": f"{public}/topics/{TOPIC}", "items": board.items()}


class Refused(Exception):
    """A request that is answered with this status and reason."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/board":
            try:
                state = snapshot(self.server.board, self.server.tidelog, self.server.public)
            except OSError as error:
                # Without N the state would be of no use: the page could not go on from it. It asks again.
                return self.answer(503, {"error": f"tidelog is away: {error}"})
            return self.answer(200, state)
        if self.path not in FILES:
            return self.answer(404, {"error": "no such page"})
        name, content_type = FILES[self.path]
        return self.send(200, content_type, (HERE / name).read_bytes())

    def do_POST(self):
        self.write()

    def do_PATCH(self):
        self.write()

    def do_DELETE(self):
        self.write()

    def write(self):
        """POST /items {"text"}, PATCH /items/7 {"text"?, "stage"?}, DELETE /items/7: answers the item as it is then."""
        try:
            item = self.act()
        except Refused as refused:
            status, reason = refused.args
            return self.answer(status, {"error": reason})
        if item is None:
            return self.answer(404, {"error": "no such item"})
        return self.answer(200, item)

    def act(self):
        board = self.server.board
        if self.command == "POST" and self.path == "/items":
            return board.create(fields(self.body(), required=("text",))["text"])
        target = re.fullmatch(r"/items/([0-9]{1,15})", self.path)
        if target is None or self.command == "POST":
            raise Refused(404, "no such resource")
        item = int(target[1])
        if self.command == "DELETE":
            return board.delete(item)
        return board.update(item, **fields(self.body(), optional=("text", "stage")))

    def body(self):
        # Any site's page may send a text to any host. For JSON a browser asks first, and this server does not say yes.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(411, "send a Content-Length")
        if int(length) > BODY_MAX:
            raise Refused(413, f"send at most {BODY_MAX} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"not JSON: {error}") from error

    def answer(self, status, value):
        self.send(status, "application/json", dumps(value).encode())

    def send(self, status, content_type, content):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code="-", size="-"):
        pass  # every change of everybody would be a line


def fields(given, required=(), optional=()):
    """The fields of a request, checked."""
    if not isinstance(given, dict) or not given or not set(required) <= set(given) <= {*required, *optional}:
        raise Refused(400, f"send an object with {' or '.join((*required, *optional))}")
    if "text" in given:
        text = given["text"]
        if not isinstance(text, str) or not 0 < len(text.strip()) <= TEXT_MAX or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
            raise Refused(400, f"text: a line of 1 to {TEXT_MAX} characters")
    if "stage" in given and given["stage"] not in STAGES:
        raise Refused(400, f"stage: one of {', '.join(STAGES)}")
    return given


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the standard library's 5 is less than one browser opens at once

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that goes away in the middle is no matter
            super().handle_error(request, client_address)


def main():
    options = argparse.ArgumentParser(description="A shared board in SQLite, followed through tidelog.")
    options.add_argument("--listen", default="127.0.0.1:4244", metavar="ADDR:PORT")
    options.add_argument("--database", default="board.sqlite", metavar="FILE")
    options.add_argument("--tidelog", default="http://127.0.0.1:4242", metavar="URL", help="where this program reaches tidelog (default %(default)s)")
    options.add_argument("--public", metavar="URL", help="where browsers reach tidelog (default: the same)")
    options = options.parse_args()

    address, _, port = options.listen.rpartition(":")
    server = Server((address, int(port)), Handler)
    server.board = Board(options.database)
    server.tidelog = urlsplit(options.tidelog).netloc
    server.public = (options.public or options.tidelog).rstrip("/")
    threading.Thread(target=relay, args=(server.board, server.tidelog), daemon=True).start()
    print(f"board on http://{address}:{server.server_port}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
