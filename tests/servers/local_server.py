"""A real HTTP server on a port of this machine, for tests whose servers answer in their own ways."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        """A client that was killed or does not wait breaks its connections; that is no fault of the server."""


class LocalServer:
    """Serves from the start until `close`.

    Attributes:
        url: its address, up to `/v1`.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        quiet = type(handler.__name__, (handler,), {"log_message": lambda *_: None})  # no line for each request
        self._http = _Server(("127.0.0.1", port), quiet)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
