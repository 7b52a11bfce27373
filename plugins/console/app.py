"""The console's web application: routes, what every answer is guarded by, and how a page is rendered.

It does not know Airflow: who may read is decided by what it is given. Every route but the style sheet and the script
asks that; everything is read, nothing written, on connections that cannot write.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psycopg
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from include.settings import Settings
from include.sources import RECIPES
from include.sources.corpus import SourceError, SourceUnavailableError
from include.sources.reader import Place, read_clips
from include.storage.console import find_sample, read_only
from include.storage.warehouse import Warehouse
from plugins.console import formats, views
from plugins.console.audio import READ_AHEAD, BusyError, ClipCache, clip_response, media_type

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
HERE = Path(__file__).parent
PAGES = (
    ("coverage", "Coverage"),
    ("samples", "Samples"),
    ("labels", "Labels"),
    ("quality", "Quality"),
    ("releases", "Releases"),
)
# Texts of corpora and models are data. Even if one got into a page as markup, nothing of it could run, load or send.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create_console(
    open_warehouse: Callable[[], Warehouse], settings: Callable[[], Settings], may_read: Callable[..., Any]
) -> FastAPI:
    """Make the application.

    Args:
        open_warehouse: Called for each request, so that a changed connection needs no restart.
        settings: Called likewise.
        may_read: FastAPI dependency that ends a request with 401 or 403, unless its user may read the data.
    """
    app = FastAPI(
        title="SIFT console", dependencies=[Depends(may_read)], docs_url=None, redoc_url=None, openapi_url=None
    )
    static = HERE / "static"
    app.mount("/static", StaticFiles(directory=static), name="static")
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= formats.FILTERS
    templates.globals |= {"pages": PAGES, "version": _version(static)}
    clips = ClipCache()

    def warehouse() -> Warehouse:
        return read_only(open_warehouse())

    def render(request: Request, page: str, values: dict[str, Any], status: int = 200) -> HTMLResponse:
        root = request.scope["root_path"].rstrip("/")
        shell = root.rpartition("/")[0]  # Airflow's own address: the console is mounted below it
        text = templates.get_template(f"{page}.html.j2").render(values, page=page, root=root, shell=shell)
        return HTMLResponse(text, status)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        is_static = request.url.path.startswith(f"{request.scope['root_path']}/static/")
        response = await call_next(request)
        response.headers.update(SECURITY_HEADERS)
        if is_static:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"  # their address has a version
        return response

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        shown = {"status": error.status_code, "message": str(error.detail)}
        response = render(request, "error", shown, error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        message = f"{first['loc'][-1]}: {first['msg']}"
        return render(request, "error", {"status": 422, "message": message}, 422)

    @app.exception_handler(psycopg.Error)
    async def warehouse_failed(request: Request, error: psycopg.Error) -> Response:
        if isinstance(error, psycopg.errors.QueryCanceled):
            message = "This took too long, so it was ended. Narrow the search: choose a source, or leave out a filter."
            return render(request, "error", {"status": 504, "message": message}, 504)
        log.error("the warehouse cannot be read", exc_info=error)
        message = "The warehouse cannot be read just now; the API server's log says why."
        return render(request, "error", {"status": 503, "message": message}, 503)

    @app.get("/", response_class=HTMLResponse)
    @app.get("/coverage", response_class=HTMLResponse)
    def coverage(request: Request) -> Response:
        return render(request, "coverage", views.coverage(warehouse(), settings()))

    @app.get("/run", response_class=HTMLResponse)
    def run(request: Request, dag_id: str, run_id: str) -> Response:
        return render(request, "run", views.run(warehouse(), dag_id, run_id))

    @app.get("/samples", response_class=HTMLResponse)
    def samples(request: Request, query: views.SampleQueryParams) -> Response:
        return render(request, "samples", views.samples(warehouse(), settings(), query))

    @app.get("/sample", response_class=HTMLResponse)
    def sample(request: Request, query: views.SampleInQueryParams) -> Response:
        found = views.sample(warehouse(), settings(), query)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such sample.")
        return render(request, "sample", found)

    @app.get("/audio")
    def audio(request: Request, sample_id: str) -> Response:
        return _audio(request, warehouse(), settings(), clips, sample_id)

    @app.get("/labels", response_class=HTMLResponse)
    def labels(request: Request, source: str | None = None) -> Response:
        return render(request, "labels", views.labels(warehouse(), source))

    @app.get("/quality", response_class=HTMLResponse)
    def quality(request: Request, source: str | None = None) -> Response:
        return render(request, "quality", views.quality(warehouse(), source))

    @app.get("/releases", response_class=HTMLResponse)
    def releases(request: Request) -> Response:
        return render(request, "releases", views.releases(warehouse()))

    return app


def _audio(request: Request, warehouse: Warehouse, settings: Settings, clips: ClipCache, sample_id: str) -> Response:
    source = sample_id.partition("/")[0]
    sample = find_sample(warehouse, source, sample_id) if source in RECIPES and "\0" not in sample_id else None
    if sample is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such sample.")
    place = Place(
        sample["revision"], sample["audio_file"], sample["audio_row_group"], sample["audio_row"], sample["blob_id"]
    )
    row_group = f"{source} {place.revision} {place.blob_id} {place.path} {place.row_group}"
    try:
        clip = clips.get(
            row_group, place.row, lambda: read_clips(RECIPES[source], settings.hub, place, count=READ_AHEAD)
        )
    except BusyError as error:
        message = "Too many people are listening just now; this clip can be played in a moment."
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": str(RETRY_AFTER_S)}) from error
    except SourceUnavailableError as error:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
    except SourceError as error:
        raise HTTPException(HTTPStatus.CONFLICT, str(error)) from error
    if clip is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "The corpus holds no audio for this sample.")
    kind = media_type(clip)
    if kind is None:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "What the corpus holds for this sample is not audio.")
    etag = hashlib.sha256(f"{row_group} {place.row}".encode()).hexdigest()[:32]
    return clip_response(request, clip, kind, etag)


def _version(static: Path) -> str:
    """Changes with the style sheet and the script, so that a browser never shows a page with old ones."""
    digest = hashlib.sha256()
    for file in sorted(static.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
