"""Clips: what is served as audio, in which ranges, and what is kept of them."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from include.settings import Settings
from plugins.console import app as console
from plugins.console.audio import ClipCache, clip_response, media_type

CLIP = b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(88))


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.get("/clip")(_clip)
    return TestClient(app)


def _clip(request: Request):
    return clip_response(request, CLIP, "audio/wav", "abc")


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        (None, 200, 0, 100),
        ("bytes=0-", 206, 0, 100),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=90-5000", 206, 90, 100),
        ("bytes=-7", 206, 93, 100),
        ("bytes=-5000", 206, 0, 100),
        ("bytes=-", 200, 0, 100),
        ("bytes=0-1,5-6", 200, 0, 100),  # several ranges: the whole is allowed
        ("lines=0-1", 200, 0, 100),
    ],
)
def test_ranges(client: TestClient, wanted: str | None, status: int, start: int, end: int) -> None:
    answer = client.get("/clip", headers={"Range": wanted} if wanted else {})
    assert answer.status_code == status
    assert answer.content == CLIP[start:end]
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers.get("content-range") == (f"bytes {start}-{end - 1}/100" if status == 206 else None)


@pytest.mark.parametrize("wanted", ["bytes=100-", "bytes=5000-6000", "bytes=7-3", "bytes=-0"])
def test_a_range_beyond_the_clip_is_refused(client: TestClient, wanted: str) -> None:
    answer = client.get("/clip", headers={"Range": wanted})
    assert (answer.status_code, answer.headers["content-range"], answer.content) == (416, "bytes */100", b"")


def test_a_range_of_another_clip_is_answered_with_the_whole(client: TestClient) -> None:
    assert client.get("/clip", headers={"Range": "bytes=0-1", "If-Range": '"abc"'}).status_code == 206
    assert client.get("/clip", headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200


@pytest.mark.parametrize(
    ("clip", "kind"),
    [
        (CLIP, "audio/wav"),
        (b"fLaC....", "audio/flac"),
        (b"OggS....", "audio/ogg"),
        (b"ID3\x04....", "audio/mpeg"),
        (b"\xff\xfb\x90\x00", "audio/mpeg"),
        (b"\xff\xf3\x90\x00", "audio/mpeg"),
        (b"\x00\x00\x00\x20ftypM4A ", "audio/mp4"),
        (b"<!doctype html><script>", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", None),
        (b"RIFF\x00\x00\x00\x00AVI ", None),
        (b"%PDF-1.7", None),
        (b"\x7fELF", None),
        (b"\xff\xd8\xff\xe0", None),  # JPEG begins like an MPEG frame
        (b"\xff\xfe<\x00", None),  # UTF-16 text, too
        (b"", None),
    ],
)
def test_only_audio_has_a_type(clip: bytes, kind: str | None) -> None:
    assert media_type(clip) == kind


def test_clips_are_kept_up_to_a_size_and_the_next_ones_are_there() -> None:
    cache, reads = ClipCache(most_bytes=350), []

    def read(first: int):
        reads.append(first)
        return [bytes([row]) * 100 for row in range(first, first + 5)]

    assert cache.get("group", 0, lambda: read(0)) == bytes(100)
    assert cache.get("group", 1, lambda: read(1)) == b"\x01" * 100
    assert cache.get("group", 2, lambda: read(2)) == b"\x02" * 100
    assert reads == [0]
    cache.get("group", 3, lambda: read(3))  # was dropped: 350 bytes hold three clips
    assert reads == [0, 3]
    assert cache.get("other revision", 3, lambda: [b"x"]) == b"x"


def test_a_row_without_a_clip_and_one_that_is_too_large_to_keep() -> None:
    cache, reads = ClipCache(most_bytes=10), []

    def read():
        reads.append(1)
        return [b"x" * 20, None]

    assert cache.get("group", 0, read) == b"x" * 20
    assert cache.get("group", 0, read) == b"x" * 20
    assert len(reads) == 2
    assert cache.get("group", 9, lambda: [None]) is None


def test_one_row_group_is_read_at_a_time() -> None:
    cache, inside, most = ClipCache(), [0], [0]
    barrier = threading.Barrier(4)

    def read():
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.05)
        inside[0] -= 1
        return [b"clip"]

    def play(number: int) -> None:
        barrier.wait()
        cache.get(f"group {number}", 0, read)

    players = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for player in players:
        player.start()
    for player in players:
        player.join()
    assert most == [1]


def test_players_that_wait_leave_threads_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server has 40 threads for all that is not asynchronous; heartbeats of tasks are answered there, too."""
    sample = {"revision": "r", "audio_file": "f", "audio_row_group": 0, "audio_row": 0, "blob_id": "b"}
    begun, go_on = threading.Event(), threading.Event()

    def read_slowly(*place: object, **options: object) -> list[bytes]:
        begun.set()
        assert go_on.wait(60)
        return [CLIP]

    def find(warehouse: object, source: str, sample_id: str) -> dict[str, object]:
        return {**sample, "audio_row_group": int(sample_id.partition("/")[2])}

    monkeypatch.setattr(console, "find_sample", find)
    monkeypatch.setattr(console, "read_only", lambda warehouse: warehouse)
    monkeypatch.setattr(console, "read_clips", read_slowly)
    app = FastAPI()
    app.get("/heartbeat")(lambda: "heard")
    app.mount("/sift", console.create_console(lambda: None, Settings, lambda: None))

    async def listen() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://airflow") as client:
            players = [
                asyncio.create_task(client.get("/sift/audio", params={"sample_id": f"meld/{number}"}))
                for number in range(44)
            ]
            try:
                await asyncio.to_thread(begun.wait, 30)
                # While the first clip is being read, and all others were asked for.
                heard = await asyncio.wait_for(client.get("/heartbeat"), 30)
                assert heard.json() == "heard" and not go_on.is_set()
                while sum(player.done() for player in players) < 39:
                    await asyncio.sleep(0.01)
            finally:
                go_on.set()
            return await asyncio.gather(*players)

    answers = asyncio.run(listen())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert [answer.content for answer in answers if answer.status_code == 200] == [CLIP] * 5
    assert len(refused) == 39
    for answer in refused:
        assert answer.headers["Retry-After"] == "5" and "can be played in a moment" in answer.text
