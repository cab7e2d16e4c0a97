"""The gate before the web server: it turns away uploads that are too large before a byte of them is on the disk.

Gradio limits each file of an upload, and not how many there are.
"""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

import uploads


Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

# What all visitors together may have on the disk.
MAX_HELD_BYTES = 10 * uploads.MAX_BYTES
# What a form says around its files.
_AROUND = uploads.MEGABYTE


class UploadGate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        upload_folder: where the web server puts uploads.
    """

    def __init__(self, app: Application, upload_folder: Path):
        self.app, self.upload_folder = app, upload_folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload")
        if is_upload and (refusal := self._refusal(dict(scope["headers"]))):
            status, text = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text.encode()})
            return
        await self.app(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411, "The upload does not say how large it is."
        if int(length) > uploads.MAX_BYTES + _AROUND:
            return 413, uploads.too_large(int(length))
        if sum(self._sizes()) + int(length) > MAX_HELD_BYTES:
            return 503, "Too many uploads are here at the moment. Try again in some minutes."
        return None

    def _sizes(self) -> Iterator[int]:
        for path in self.upload_folder.rglob("*"):
            try:
                yield path.lstat().st_size
            except FileNotFoundError:  # removed meanwhile
                continue
