"""The one place that sends bytes to a chat server: address and key, requests, time and size bounds, faults."""

import asyncio
import base64
import json
import mimetypes
import os
import ssl
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from uni_dpo.data.image_state import encoded_oddity, encoded_type
from uni_dpo.data.videos import Video
from uni_dpo.errors import UniDPOError, plain
from uni_dpo.models.backends.base import Request
from uni_dpo.models.backends.replies import UnusableReplyError, read_body, read_error, sound
from uni_dpo.models.backends.settings import OpenAIOptions, without_secrets
from uni_dpo.models.prompt import load_vision, open_image, png_url

LONGEST_WAIT = 60.0
"""Seconds that a server's Retry-After is followed, at most."""
LARGEST_REPLY = 64 * 2**20
"""Bytes of one reply, unpacked."""
PROBE_TIMEOUT = 10.0
_SECRET = 8
"""Characters of a key that is masked: shorter ones, such as `EMPTY`, are words."""


class Server:
    """One server: its address, its key, and the only place that sends bytes to it.

    Redirects are not followed, so the key stays with the host of the setting. Whatever the server sends is masked
    before anything reads it.
    """

    def __init__(self, options: OpenAIOptions) -> None:
        key = (os.environ.get(options.api_key_env) or "").strip()
        if not key and options.base_url is None:
            raise UniDPOError(f"model {options.model!r}: the environment variable {options.api_key_env} is not set")
        if not (key.isascii() and key.isprintable()):
            raise UniDPOError(f"{options.api_key_env} holds characters that no key has; set it again")
        self.options = options
        self.key = key
        self._left_out = set() if options.send_temperature else {"temperature", "top_p"}
        address = options.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        named = f"model {options.model!r}: base_url {without_secrets(address)!r}"
        try:
            self.url = httpx.URL(address.strip().rstrip("/"))
        except (httpx.InvalidURL, ValueError) as error:
            raise UniDPOError(f"{named} is no address: {error}") from error
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise UniDPOError(f"{named} has to begin with http:// or https://")
        if not 0 < (self.url.port or 1) < 65536:
            raise UniDPOError(f"{named}: no port has the number {self.url.port}")
        self.name = without_secrets(str(self.url))

    def fields(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sent of a request: without the fields that this server refuses."""
        sent = {name: value for name, value in body.items() if name not in self._left_out}
        if "max_tokens" in self._left_out and "max_tokens" in body:
            sent["max_completion_tokens"] = body["max_tokens"]
        return sent

    def leave_out(self, field: str, value: Any) -> None:
        """Send a field no more: without `seed`, or a `temperature` of 1, answers mean the same, and `n` times one is n.

        Raises:
            UniDPOError: answers would mean something else without it.
        """
        if field in ("temperature", "top_p") and value != 1:
            raise UniDPOError(
                f"the server of {self.options.model!r} at {self.name} takes no {field} {value:g}; ask with {field} 1, "
                "or set send_temperature: false for this model, so that the server chooses"
            )
        if field not in self._left_out:
            self._left_out.add(field)
            print(f"\n{self.options.model} at {self.name} takes no {field}: it is asked without", file=sys.stderr)

    def client(self) -> httpx.AsyncClient:
        """Return a client whose requests may only go to this server."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency)
        headers = {"Authorization": f"Bearer {self.key or 'none'}"}
        tls = _tls()
        try:
            return httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False, limits=limits, verify=tls)
        except (ValueError, ImportError) as error:  # of another scheme, or SOCKS without its package
            raise UniDPOError(
                f"the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: {error}; correct or unset "
                f"it, or add {self.url.host} to NO_PROXY"
            ) from error

    async def call(
        self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> tuple[httpx.Response, bytes]:
        """Send one request and read its reply whole, within `timeout` seconds in all.

        Raises:
            TimeoutError, httpx.HTTPError: no whole reply came.
            UnusableReplyError: the reply is larger than `LARGEST_REPLY`.
        """
        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if sent else {}
        method = "GET" if sent is None else "POST"
        stream = client.stream(method, self._at(path), content=sent, headers=headers)
        async with asyncio.timeout(timeout), stream as reply:
            received = bytearray()
            async for chunk in reply.aiter_bytes():
                received += chunk
                if len(received) > LARGEST_REPLY:
                    raise UnusableReplyError("reply too large")
        return reply, bytes(received.replace(self.key.encode(), b"***") if len(self.key) >= _SECRET else received)

    def _at(self, path: str) -> httpx.URL:
        """The address of one of its paths; a query such as Azure's `?api-version=…` stays behind it."""
        return self.url.copy_with(path=self.url.path.rstrip("/") + path)

    def mask(self, text: str) -> str:
        """Return a text without the key and without control characters."""
        return plain(sound(text.replace(self.key, "***") if len(self.key) >= _SECRET else text))

    def final_fault(self, reply: httpx.Response, received: bytes) -> Exception:
        """Return the error of a reply that another attempt would not change: fatal where every request would get it."""
        option = self.options
        if reply.is_redirect:
            return UniDPOError(
                f"the server of {option.model!r} at {self.name} redirects to another address, which is not "
                "followed, since the key would go there; set base_url to that address if you trust it"
            )
        message, code = read_error(received)
        said = f"HTTP {reply.status_code}: {message}"
        if reply.status_code in (401, 402, 403, 404, 405) or code == "insufficient_quota":
            return UniDPOError(
                f"the server of {option.model!r} at {self.name} says {self.mask(said)}; "
                f"check model, base_url and {option.api_key_env}"
            )
        return BadRequestError(said)

    def probe(self) -> None:
        """Ask for its models, which costs nothing, before anything is asked of any.

        A server that lists no models is taken as it is. One that lists others is sent an empty chat, which only one
        that does not know the model refuses with 404.

        Raises:
            UniDPOError: no server is there, it refuses the key, sends elsewhere, or does not know the model.
        """
        try:
            submit(self._probe()).result()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError) as error:
            proxy = getproxies().get(self.url.scheme) or getproxies().get("all")
            through = (
                f" through the proxy {without_secrets(proxy)}" if proxy and not proxy_bypass(self.url.host) else ""
            )
            raise UniDPOError(
                f"no OpenAI-compatible server answers at {self.name}{through}: {self.mask(why(error))}; "
                f"start it, or correct base_url of {self.options.model!r}"
            ) from error
        except (TimeoutError, httpx.HTTPError, UnusableReplyError):
            return  # something is there; what it says to a question is counted then

    async def _probe(self) -> None:
        model = self.options.model
        async with self.client() as client:
            reply, body = await self.call(client, "/models", None, min(self.options.timeout, PROBE_TIMEOUT))
            if reply.status_code in (401, 403) or reply.is_redirect:
                raise self.final_fault(reply, body)
            if reply.status_code != 200:
                return
            listed = read_body(body).get("data")
            names = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
            if names and model not in names:
                empty = {"model": model, "messages": []}
                reply, body = await self.call(client, "/chat/completions", empty, PROBE_TIMEOUT)
                if reply.status_code == 404:
                    raise self.final_fault(reply, body)


class BadRequestError(Exception):
    """A request that another attempt would not help."""


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of a process, in a thread of its own, so that callers with or without a loop can wait for it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="servers").start()
    return loop


def submit(work: Coroutine[Any, Any, Any]) -> Any:
    """Start a coroutine; its future."""
    return asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The certificates, which take a while to read, once."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise UniDPOError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}"
        ) from error


def retry_after(reply: httpx.Response) -> float | None:
    """Return the seconds that a server asks for, as a number or as a date, `LONGEST_WAIT` at most; None for none."""
    said = reply.headers.get("retry-after", "")
    try:
        wanted = float(said)
    except ValueError:
        try:
            wanted = max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return min(LONGEST_WAIT, wanted) if wanted >= 0 else None


def why(error: BaseException) -> str:
    return str(error) or type(error).__name__


def request_body(model: str, request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a chat request sends; of `settings`, `answer` is the beginning of the reply and no field."""
    content: Any = sound(request.prompt)
    if request.content:
        content = _resized(request.content)
    elif request.images or request.videos:
        content = [{"type": "image_url", "image_url": {"url": _data_url(path)}} for path in request.images]
        content += [{"type": "video_url", "video_url": {"url": _video_url(video)}} for video in request.videos]
        content.append({"type": "text", "text": sound(request.prompt)})
    messages = [{"role": "system", "content": sound(request.system)}] if request.system is not None else []
    messages.append({"role": "user", "content": content})
    if "answer" in settings:
        messages.append({"role": "assistant", "content": sound(settings.pop("answer"))})
    return {"model": model, "messages": messages, **settings}


def _resized(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items in the order of the asker, images within their own pixel limits."""
    images, videos, _ = load_vision(items)
    if videos:
        raise UniDPOError("backend openai sends images only; evaluate videos with backend transformers")
    pictures = iter(images)
    return [
        {"type": "image_url", "image_url": {"url": png_url(next(pictures))}}
        if item["type"] == "image"
        else {"type": "text", "text": sound(item["text"])}
        for item in items
    ]


@lru_cache(maxsize=64)
def _data_url(path: str) -> str:
    """The bytes of the file; where a server may show other pixels than training does, the pixels that training sees."""
    encoded = Path(path).read_bytes()
    if encoded_oddity(encoded):
        return png_url(open_image(path))
    kind = encoded_type(encoded)  # the name of a file may say another, which servers refuse
    if kind not in ("image/png", "image/jpeg", "image/webp", "image/gif"):
        return png_url(open_image(path))
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def _video_url(video: Video) -> str:
    """The bytes of the file; not kept, since it may be large."""
    if not isinstance(video, str):
        raise UniDPOError(
            "backend openai sends videos as files only; ask about lists of frames with backend transformers"
        )
    kind = mimetypes.guess_type(video)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(Path(video).read_bytes()).decode()}"
