"""An OpenAI-compatible chat endpoint, asked patiently: tries, connections, key, budget, and a cache of its replies.

Knows neither what is asked nor what becomes of the reply. Light: httpx is imported by who asks.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # HTTP statuses that another try may cure
CONNECTING = 30.0  # seconds at most, however long a reply may take

CLIENTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Any]] = WeakKeyDictionary()
ASKED: Counter[tuple[str, str]] = Counter()  # requests of this process, by url and model


class NoReply(Exception):
    """No reply came, and no further try is worth it or left."""


class OverBudget(Exception):
    """As many requests were made as the recipe allows."""


class _Again(Exception):
    """This try failed, for a reason that may pass."""

    def __init__(self, why: str, wait: float = 0.0):
        """`wait`: the seconds that the server wants us to wait."""
        super().__init__(why)
        self.wait = wait


def content(completion: Any) -> str:
    """The text of a chat completion. Raises `LookupError` or `TypeError` where it has none."""
    text = completion["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("no text")
    return readable(text)


class Endpoint:
    """Asks, and asks again."""

    def __init__(
        self,
        url: str,
        client: Any,
        *,
        who: str,
        options: str,
        key: str = "",
        patience: float = 30.0,
        retries: int = 5,
        budget: int = 0,
        longest: float = math.inf,
    ):
        """`url` is the endpoint's base, such as http://host:8000/v1; `client` an httpx.AsyncClient, closed by its maker.

        In messages, `who` is asked ("the judge") and `options` is where the recipe says how (rewards.options.judge).
        `patience` is in seconds, from one sign of life of a request to the next; a Retry-After of more than `longest`
        seconds is not waited for. `budget` is the most requests of this process to a model of this endpoint, repeated
        ones included (0: no limit).
        """
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.client, self.who, self.options, self.key = client, who, options, key
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.patience, self.retries, self.budget, self.longest = patience, retries, budget, longest
        self.last = ""  # what the last failed try met with

    async def ask(self, body: dict[str, Any], read: Callable[[Any], str] = content) -> str:
        """What `read` makes of the completion (JSON already). Where it says by a `LookupError`, `TypeError` or
        `AttributeError` that this is none, another try is made.

        A failure that may pass is met with up to `retries` more tries, after 0.5 s, 1 s, 2 s, … 30 s, or as Retry-After
        says. Raises `NoReply` when no further try is worth it or none is left, `OverBudget`, and `ValueError` for a URL
        that is none.
        """
        why = ""
        for tries in range(self.retries + 1):
            self._spend(body["model"])
            try:
                return await self._try(body, read)
            except _Again as error:
                wait = error.wait
                self.last = why = f"the last time{error}"  # two names: others ask meanwhile
            if wait > self.longest:
                raise NoReply(f"{self.who} wants us to wait for {wait:.0f} s; {why}")
            if tries < self.retries:
                pause = min(0.5 * 2**tries, 30.0)
                await asyncio.sleep(max(wait, pause * random.uniform(0.5, 1.0)))  # jitter: not all at the same moment
        raise NoReply(f"{self.who} failed {self.retries + 1} times; {why}")

    async def _try(self, body: dict[str, Any], read: Callable[[Any], str]) -> str:
        """The reply. Raises `_Again` where another try is worth it."""
        import httpx

        patience = httpx.Timeout(self.patience, connect=min(self.patience, CONNECTING), pool=None)
        try:
            answer = await self.client.post(self.url, json=body, headers=self.headers, timeout=patience)
        except httpx.RequestError as error:  # time-outs among them
            raise _Again(f": {type(error).__name__} {error}".rstrip()) from None
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.options}.url: {error}") from None
        if answer.status_code in AGAIN:
            raise _Again(f": HTTP {answer.status_code}", retry_after(answer.headers.get("retry-after", "")))
        if answer.status_code != 200:
            hint = "is the key right?" if answer.status_code in (401, 403) else self._shown(answer.text)  # 401s echo keys
            raise NoReply(f"{self.who} answered HTTP {answer.status_code}: {hint}")
        try:
            return read(answer.json())
        except (ValueError, LookupError, TypeError, AttributeError):  # the first: no JSON
            raise _Again(f", what came was no chat completion with text: {self._shown(answer.text)!r}") from None

    def _shown(self, text: str) -> str:
        return (text.replace(self.key, "…") if self.key else text)[:200]

    def _spend(self, model: str) -> None:
        if self.budget and ASKED[self.url, model] >= self.budget:
            raise OverBudget(f"the budget of {self.budget} requests is used up ({self.options}.budget)")
        ASKED[self.url, model] += 1


def shared_client(connections: int) -> Any:
    """This event loop's httpx client of so many connections, kept open between requests for as long as the loop lives."""
    clients = CLIENTS.setdefault(asyncio.get_running_loop(), {})
    if connections not in clients:
        clients[connections] = new_client(connections)
    return clients[connections]


def new_client(connections: int) -> Any:
    """An httpx.AsyncClient that has at most so many connections open; further requests wait for one."""
    import httpx

    return httpx.AsyncClient(limits=httpx.Limits(max_connections=connections))


def wrong_url(url: str) -> str:
    """What is wrong with the base URL of an endpoint; "" if nothing is."""
    try:
        parts = urlsplit(url)
        named = parts.hostname and (parts.port or True)  # a port that is no number raises
    except ValueError as error:
        return f"{url!r} is no URL: {error}"
    if parts.username or parts.password:
        return "has a user or a password in it, which would be written down with the recipe; say key_file"
    if parts.scheme not in ("http", "https") or not named:
        return f"{url!r} does not begin with http:// or https:// and a host"
    return ""


def retry_after(told: str) -> float:
    """Seconds that a Retry-After header asks for: a number of them, or a date."""
    if told.strip().isdecimal():
        return float(told)
    try:
        when = parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def key(file: str, options: str) -> str:
    """The text of `file`, else $OPENAI_API_KEY, else "". Raises `ValueError`, which never tells the key.

    `options` is where the recipe names the file, for the message: rewards.options.judge.
    """
    if file:
        try:
            text = Path(file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{options}.key_file: {file} cannot be read: {type(error).__name__}") from None
    else:
        text = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (text.isascii() and text.isprintable()) or (file and not text):
        raise ValueError(f"{file or 'OPENAI_API_KEY'} does not hold a key")  # and not what it holds
    return text


def readable(text: str) -> str:
    """`text` without lone surrogates, which JSON in UTF-8 has none of."""
    return text.encode("utf-8", "replace").decode()


def digest(*values: Any) -> str:
    """A name for JSON values: the SHA-256 of them, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


async def remembered(cache: str, name: str, ask: Callable[[], Awaitable[str]]) -> str:
    """The reply that `cache` has under `name`; else what `ask` gives, which is kept there. "" is no cache.

    `cache` is a SQLite file that any number of processes may share. All of them go by the reply that was kept first.
    Nothing is kept where `ask` raises.
    """
    if not cache:
        return await ask()
    reply = await asyncio.to_thread(_recall, cache, name)
    return reply if reply is not None else await asyncio.to_thread(_keep, cache, name, await ask())


def _recall(file: str, name: str) -> str | None:
    if not Path(file).exists():
        return None
    with closing(_open(file)) as replies:
        row = replies.execute("SELECT reply FROM verdicts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _keep(file: str, name: str, reply: str) -> str:
    with closing(_open(file)) as replies, replies:
        replies.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", (name, reply, time.time()))
        return str(replies.execute("SELECT reply FROM verdicts WHERE name = ?", (name,)).fetchone()[0])


def _open(file: str) -> sqlite3.Connection:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    replies = sqlite3.connect(file, timeout=30)  # seconds to wait while another process writes
    # A judge's replies came first, and a table of another name would have them all asked, and paid for, again.
    replies.execute("CREATE TABLE IF NOT EXISTS verdicts (name TEXT PRIMARY KEY, reply TEXT, time REAL)")
    return replies
