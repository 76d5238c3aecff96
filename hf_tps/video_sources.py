# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Any video source (path, URL, bytes, file object) as one open file that can be trusted to end."""

import copy
import http.client
import io
import os
import socket
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

from .plain_text import printable

MAX_DOWNLOAD_BYTES = 2 * 1024**3
DOWNLOAD_TIMEOUT = 30.0
DOWNLOAD_SECONDS = 600.0

_CHUNK_BYTES = 1 << 20


@contextmanager
def opened_video(source: Any, download: "Download") -> Iterator["CheckedFile"]:
    """The source as a seekable binary file; closed afterwards if we opened it."""
    name = name_of(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        with io.BytesIO(source) as file:
            yield CheckedFile(file, name)
    elif _is_url(source):
        with tempfile.TemporaryFile() as file:
            download.fetch(source, file)
            yield CheckedFile(file, name)
    elif isinstance(source, (str, os.PathLike)):
        with _open_path(source) as file:
            yield CheckedFile(file, name)
    elif hasattr(source, "read") and hasattr(source, "seek"):
        try:
            position = source.tell()
            source.seek(position)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot seek: read it and pass its bytes instead.") from error
        try:
            yield CheckedFile(source, name)
        finally:
            source.seek(position)
    else:
        raise ValueError(
            f"Cannot read a video from a {type(source).__name__}: pass a path, an http(s) URL, bytes or a binary file."
        )


def name_of(source: Any) -> str:
    """The source in a message."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{memoryview(source).nbytes} bytes>"
    if _is_url(source):
        return without_query(source)
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source))
    return f"file object {printable(getattr(source, 'name', type(source).__name__))}"


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


class CheckedFile:
    """A file as PyAV needs it, the same whatever lies behind.

    PyAV copies all that `read` returns, past the end of its buffer as well, and a damaged file sends it to places that
    files on a disk refuse and bytes in memory do not. Several views of one file can be read from several threads.

    Args:
        file: the file.
        name: of its source, for messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name, self.lock = file, name, threading.Lock()
        self.size = file.seek(0, os.SEEK_END)
        self.position = 0

    def view(self) -> "CheckedFile":
        """The same file and lock with a position of its own, at the start."""
        view = copy.copy(self)
        view.position = 0
        return view

    def read(self, size: int = -1) -> bytes:
        with self.lock:
            self.file.seek(self.position)
            data = self.file.read(size)
        if isinstance(data, str):
            raise ValueError(f"{self.name} is open as text: open it in binary mode ('rb').")
        if not isinstance(data, (bytes, bytearray, memoryview)) or 0 <= size < len(data):
            raise ValueError(f"{self.name} is no binary file: read({size}) gave {printable(repr(data)[:40])}.")
        self.position += len(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, min(start + offset, self.size))
        return self.position

    def tell(self) -> int:
        return self.position


def _open_path(path: str | os.PathLike) -> BinaryIO:
    # Only regular files: a pipe or a device would block or never end.
    if os.path.isfile(path):
        return open(path, "rb")
    shown = f"'{printable(os.fsdecode(path))}'"
    if os.path.isdir(path):
        raise FileNotFoundError(f"{shown} is a folder, not a video file: pass the path of one file in it.")
    raise FileNotFoundError(
        f"There is no file {shown}. A string must be the path of an existing video file or an http(s) URL; "
        "other protocols and FFmpeg's own notations are not followed."
    )


# --- downloads -------------------------------------------------------------------------------------------------------


class _HttpOnlyRedirects(urllib.request.HTTPRedirectHandler):
    """A server must not send us on to file:, ftp: or anything else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError("redirected to what is not http(s)")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connections:
    """The connections of one download, which can be cut from another thread.

    A time limit of a socket starts anew with every byte: a server that sends one now and then is never given up.
    """

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.are_cut = False

    def cut(self) -> None:
        self.are_cut = True
        for each in self.sockets:
            with suppress(OSError):  # closed meanwhile
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close those that an error left open."""
        for each in self.sockets:
            each.close()

    def watched(self, connection_class: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        """The class with its sockets noted here."""
        connections = self

        class Watched(connection_class):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                connections.sockets.append(self.sock)
                if connections.are_cut:
                    connections.cut()

        return Watched


class _WatchedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """http and https over connections that are noted."""

    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self.connections = connections

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self.connections.watched(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self.connections.watched(http.client.HTTPSConnection), req)


@dataclass(frozen=True)
class Download:
    """How much and how long is fetched from a URL."""

    max_bytes: int
    timeout: float  # seconds without an answer
    max_seconds: float  # in all

    def fetch(self, url: str, file: BinaryIO) -> None:
        """Write what is at the URL to the file; `ValueError` if that fails."""
        name = without_query(url)
        connections = _Connections()
        alarm = threading.Timer(self.max_seconds, connections.cut)
        alarm.daemon = True
        alarm.start()
        try:
            declared, received = self._copy(_opener(connections), url, file)
        # ValueError: a malformed address or header; HTTPException: an answer that breaks off.
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = self._took_too_long() if connections.are_cut else _reason(error)
            raise ValueError(
                f"Could not download {name}: {reason}. Check the address, or download the file and pass its path."
            ) from None  # the original's text may hold the query of the address
        finally:
            alarm.cancel()
            connections.close()
        if max(declared, received) > self.max_bytes:
            raise ValueError(
                f"{name} is larger than the limit of {self.max_bytes} bytes for a download. Download it and pass its "
                "path, or call read_video with a larger max_download_bytes."
            )
        if connections.are_cut:
            raise ValueError(f"Could not download {name}: {self._took_too_long()}.")
        if received < declared:
            raise ValueError(f"The download of {name} ended after {received} of {declared} bytes. Try again.")

    def _copy(self, opener: urllib.request.OpenerDirector, url: str, file: BinaryIO) -> tuple[int, int]:
        """Bytes that the server declared, and that came."""
        request = urllib.request.Request(url, headers={"User-Agent": "hf_tps"})
        with opener.open(request, timeout=self.timeout) as response:
            declared = int(response.headers.get("Content-Length") or 0)
            received = 0
            # The declared length stops a large file at once, the count one that says nothing or lies.
            while max(declared, received) <= self.max_bytes and (chunk := response.read1(_CHUNK_BYTES)):
                received += len(chunk)
                file.write(chunk)
        return declared, received

    def _took_too_long(self) -> str:
        return f"it took more than {self.max_seconds:g} seconds (max_download_seconds of read_video)"


def _opener(connections: _Connections) -> urllib.request.OpenerDirector:
    # Put together by hand: urllib's ready-made opener would also fetch file:, ftp: and data: addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _WatchedHandler(connections),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _HttpOnlyRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: Exception) -> str:
    """Why a download failed, without any text that may repeat the address: its query may hold a password."""
    if isinstance(error, urllib.error.HTTPError):
        # The standard's words: the server's own may repeat the address.
        words = http.client.responses.get(error.code, "")
        return f"HTTP Error {error.code}: {words}" + (", which is not allowed" if 300 <= error.code < 400 else "")
    if isinstance(error, urllib.error.URLError):
        return _reason(error.reason) if isinstance(error.reason, Exception) else printable(error.reason)
    if isinstance(error, TimeoutError):
        return "no answer in time (timeout of read_video)"
    if isinstance(error, OSError):
        return printable(error.strerror or type(error).__name__)
    return {
        http.client.InvalidURL: "the address is not a valid one",
        http.client.IncompleteRead: "the answer broke off",
    }.get(type(error), f"the address or the answer is malformed ({type(error).__name__})")


def without_query(url: str) -> str:
    # The query and the user part of an address may hold a password or a signature: not for messages and logs.
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "the address"
    return printable(urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))
