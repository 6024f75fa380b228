#!/usr/bin/env python3
"""A long answer, token by token, through tidelog: what a language model's output, or the progress of a job, can look like.

Whoever writes does not hold the reader's connection. Each answer is a topic, `answers.<id>`: a thread publishes its tokens there and closes
it at the end. Pages follow the topic from its earliest event: so they can be reloaded, broken, or opened twice.

A publish without an answer may have happened or not. It is sent again under the same Idempotency-Key, and is in the log once.

Here the answer is a fixed text, cut into tokens. Python 3.9 or later, the standard library only.
"""

import argparse
import contextlib
import http.client
import json
import re
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

HERE = Path(__file__).resolve().parent
TIMEOUT = 10  # seconds, for each answer of tidelog
TRY_AGAIN = 0.1  # seconds between two attempts
WRITING_MAX = 20  # answers that are being written at a time: each is a thread
FINAL = (400, 403, 404, 405, 409, 413, 415, 422)  # statuses that another attempt would not change

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/tokens.js": ("tokens.js", "text/javascript; charset=utf-8"),
    "/tokens.css": ("tokens.css", "text/css; charset=utf-8"),
}
# Nothing from elsewhere but the stream.
POLICY = "default-src 'self'; img-src data:; connect-src http: https:"


def tokens():
    """What a model would give, one by one: here words, with the white space before them, and pieces of long ones."""
    return re.findall(r"\s*\S{1,7}|\s+$", (HERE / "answer.txt").read_text(encoding="utf-8"))


class Tidelog:
    """A publisher: one connection, for one thread."""

    def __init__(self, host):
        self.connection = http.client.HTTPConnection(host, timeout=TIMEOUT)  # opened by the first request, and again after close()

    def request(self, method, target, body=None, headers=None):
        """Tries until it is answered. Only for what may be sent twice: with an Idempotency-Key, or when the second time changes nothing."""
        told = False
        while True:
            try:
                self.connection.request(method, target, body, headers or {})
                answer = self.connection.getresponse()
                content = answer.read()
                if 200 <= answer.status < 300:
                    return content
                trouble = f"{method} {target}: {answer.status}: {content.decode(errors='replace')}"
                if answer.status in FINAL:
                    raise ValueError(trouble)
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                trouble = f"{method} {target}: {error!r}"
            if not told:
                print(f"{trouble}; trying again", file=sys.stderr, flush=True)
                told = True
            time.sleep(TRY_AGAIN)

    def publish(self, topic, data, key, event=None):
        target = f"/topics/{topic}" + (f"?event={event}" if event else "")
        # Text is stored byte for byte: a token's spaces and line ends are its own.
        self.request("POST", target, data.encode(), {"Content-Type": "text/plain; charset=utf-8", "Idempotency-Key": key})

    def close(self, topic):
        self.request("POST", f"/topics/{topic}/close")


def write(tidelog, topic, pause):
    """The whole answer. While tidelog is away, the writing waits; the readers go on when it is back."""
    for n, token in enumerate(tokens()):
        tidelog.publish(topic, token, key=f"{topic}-{n}")  # the same for each attempt, and for no other token
        time.sleep(pause)
    tidelog.close(topic)


def end_interrupted(tidelog):
    """Ends the answers that a former life of this program left unfinished, so that nobody waits for the rest for ever."""
    query = "/topics?prefix=answers."
    page = {"next": ""}
    while page["next"] is not None:
        page = json.loads(tidelog.request("GET", query + (f"&after={quote(page['next'])}" if page["next"] else "")))
        for topic in (found["topic"] for found in page["topics"] if not found["closed"]):
            with contextlib.suppress(ValueError):  # closed in the meantime, by the last request of that life
                tidelog.publish(topic, "the writer was restarted", key=f"{topic}-interrupted", event="interrupted")
            tidelog.close(topic)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/stream":  # where pages find tidelog
            return self.send(200, "application/json", json.dumps({"topics": f"{self.server.public}/topics"}).encode())
        if self.path not in FILES:
            return self.send(404, "text/plain", b"no such page\n")
        name, content_type = FILES[self.path]
        return self.send(200, content_type, (HERE / name).read_bytes())

    def do_POST(self):
        """POST /answers begins an answer: {"id": ...} before its first token is there."""
        if self.path != "/answers":
            return self.send(404, "text/plain", b"no such resource\n")
        # Any site's page may post a form to any host. For JSON a browser asks first, and this server does not say yes.
        if self.headers.get_content_type() != "application/json":
            return self.send(415, "text/plain", b"send application/json\n")
        if not self.server.places.acquire(blocking=False):
            return self.send(503, "text/plain", b"too many answers are being written\n")
        answer = secrets.token_hex(8)
        threading.Thread(target=self.write, args=(self.server, f"answers.{answer}"), daemon=True).start()
        return self.send(200, "application/json", json.dumps({"id": answer}).encode())

    @staticmethod
    def write(server, topic):
        try:
            write(Tidelog(server.tidelog), topic, server.pause)
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            server.places.release()

    def send(self, status, content_type, content):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code="-", size="-"):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # the standard library's 5 is less than one browser opens at once

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that goes away in the middle is no matter
            super().handle_error(request, client_address)


def main():
    options = argparse.ArgumentParser(description="Answers, token by token, followed through tidelog.")
    options.add_argument("--listen", default="127.0.0.1:4245", metavar="ADDR:PORT")
    options.add_argument("--tidelog", default="http://127.0.0.1:4242", metavar="URL", help="where this program reaches tidelog (default %(default)s)")
    options.add_argument("--public", metavar="URL", help="where browsers reach tidelog (default: the same)")
    options.add_argument("--pause", default=0.05, type=float, metavar="SECONDS", help="between two tokens (default %(default)s)")
    options = options.parse_args()

    address, _, port = options.listen.rpartition(":")
    server = Server((address, int(port)), Handler)
    server.tidelog = urlsplit(options.tidelog).netloc
    server.public = (options.public or options.tidelog).rstrip("/")
    server.pause = options.pause
    server.places = threading.BoundedSemaphore(WRITING_MAX)
    end_interrupted(Tidelog(server.tidelog))
    print(f"tokens on http://{address}:{server.server_port}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
