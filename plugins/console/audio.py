"""One clip at a time, from where its bytes lie to the browser: whole, or the range that a player asks for."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from fastapi import Request, Response, status

# Whoever plays a clip plays the next ones of its row group, which is in memory anyway when the first is read.
READ_AHEAD = 8
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class BusyError(Exception):
    """As many clips are waited for already as may be."""


class ClipCache:
    """The clips that were read last, so that a player's ranges and the next clips cost no reading.

    Args:
        most_bytes: Bytes of all clips that are kept.
        most_waiting: Calls that may wait for another's reading. Each holds one of the 40 threads in which the API
            server answers everything else too, heartbeats of tasks among it.
    """

    def __init__(self, most_bytes: int = 64 << 20, most_waiting: int = 4) -> None:
        self._most_bytes = most_bytes
        self._clips: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + most_waiting)

    def get(self, row_group: str, row: int, read: Callable[[], Sequence[bytes | None]]) -> bytes | None:
        """Return a clip; None if the corpus has none for that row.

        Args:
            row_group: Identity of the row group that it lies in, the revision included.
            row: Its row.
            read: Reads it and those that follow. Never called twice at once: memory holds one row group at most.

        Raises:
            BusyError: If it has to be read, and too many wait for that already.
        """
        if (clip := self._look_up(row_group, row)) is not None:
            return clip
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            with self._reading:
                if (clip := self._look_up(row_group, row)) is not None:
                    return clip
                clips = read()
                for offset in reversed(range(len(clips))):  # the wanted one last, so that it is the last to go
                    self._keep((row_group, row + offset), clips[offset])
            return clips[0]
        finally:
            self._places.release()

    def _look_up(self, row_group: str, row: int) -> bytes | None:
        with self._lock:
            clip = self._clips.get((row_group, row))
            if clip is not None:
                self._clips.move_to_end((row_group, row))
            return clip

    def _keep(self, key: tuple[str, int], clip: bytes | None) -> None:
        if clip is None or len(clip) > self._most_bytes:
            return
        with self._lock:
            self._bytes += len(clip) - len(self._clips.pop(key, b""))
            self._clips[key] = clip
            while self._bytes > self._most_bytes:
                _, dropped = self._clips.popitem(last=False)
                self._bytes -= len(dropped)


def media_type(clip: bytes) -> str | None:
    """Name a clip's format by its first bytes; None if they are of no audio format that corpora hold."""
    if clip[:4] == b"RIFF" and clip[8:12] == b"WAVE":
        return "audio/wav"
    if clip[:4] == b"fLaC":
        return "audio/flac"
    if clip[:4] == b"OggS":
        return "audio/ogg"
    # An ID3 tag, or an MPEG frame of layer 3: eleven bits of sync, then version and layer (0 is reserved).
    if clip[:3] == b"ID3" or (len(clip) > 1 and clip[0] == 0xFF and clip[1] & 0xE6 == 0xE2):
        return "audio/mpeg"
    if clip[4:8] == b"ftyp" and clip[8:11] in (b"M4A", b"mp4", b"iso"):
        return "audio/mp4"
    return None


def clip_response(request: Request, clip: bytes, kind: str, etag: str) -> Response:
    """Answer with a clip or the range that was asked for, in such a way that it can only be played.

    Args:
        request: May hold one range; several are answered with the whole, as RFC 9110 allows.
        clip: Its bytes.
        kind: Its media type.
        etag: Identity of its bytes.
    """
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"', "Content-Disposition": "inline"}
    wanted = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if_range = request.headers.get("if-range")
    if wanted is None or not any(wanted.groups()) or (if_range and if_range != headers["ETag"]):
        return Response(clip, media_type=kind, headers=headers)
    first, last = wanted.groups()
    if first:
        start, end = int(first), min(int(last), len(clip) - 1) if last else len(clip) - 1
    else:  # the last so many bytes
        start, end = max(len(clip) - int(last), 0), len(clip) - 1
    if start > end:
        headers["Content-Range"] = f"bytes */{len(clip)}"
        return Response(status_code=status.HTTP_416_RANGE_NOT_SATISFIABLE, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(clip)}"
    return Response(
        clip[start : end + 1], status_code=status.HTTP_206_PARTIAL_CONTENT, media_type=kind, headers=headers
    )
