"""`./sift doctor`: looks at a deployment and says in a line each what is wrong, and how to mend it.

It runs in two places: beside the embedded stack, and within any process of a deployment, which it knows by Airflow's
environment. What a process was given decides what is asked of it: a worker knows nothing of Airflow's metadata, a
scheduler nothing of the warehouse. A check is one function; one that breaks, or takes too long, is a finding itself.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
from packaging.requirements import Requirement
from pydantic import ValidationError
from pydantic_settings import SettingsError

from include.generation.device import OCCUPIED_MIB, device_candidates, lease_dir, nvml_memory_use
from include.local.model import find_gguf
from include.local.stack import environment_of, read_state
from include.schema import Finding
from include.settings import EMBEDDED_MODEL, PROJECT_ROOT, Settings, describe_refused, get_settings
from include.sources import RECIPES

CHECK_TIMEOUT_S = 40.0
HTTP_TIMEOUT_S = 5.0
FREE_GIB = 5.0
"""Free on a disk, or it is wrong: a release is built beside the one that it replaces."""
WRITING_CONNECTIONS = ("WAREHOUSE", "WAREHOUSE_INGEST", "WAREHOUSE_GENERATE", "WAREHOUSE_PUBLISH")
"""One of them is given to every process that runs tasks."""
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")

Check = Callable[[], Iterable[Finding]]


def examine(free_gib: float = FREE_GIB) -> Iterator[Finding]:
    """Run every check that this place allows.

    Args:
        free_gib: GiB that must be free on the disks that are written to.

    Yields:
        Findings, the machine's first.
    """
    yield from _found("packages", check_packages)
    yield from _found(".env", check_env_file)
    try:
        settings = get_settings()
    except (ValidationError, SettingsError) as error:
        for said in describe_refused(error):
            yield Finding("settings", "wrong", said, "correct it; .env.example has them all")
        return
    yield Finding("settings", "ok", f"profile {settings.profile}, engine {settings.engine}, home {settings.home}")
    yield from _found("home", lambda: check_home(settings, written=writes_home(os.environ)))
    yield from _found("disk", lambda: check_disk(settings, free_gib))
    yield from _found("leases", check_leases)
    if "AIRFLOW__CORE__EXECUTOR" not in os.environ:
        state = read_state(settings.home)
        if state is None:
            yield Finding("airflow", "warn", "not running, so the rest was not looked at", "./sift up, then this again")
            yield from _found("corpora", lambda: check_corpora(settings))
            yield from _found("model", lambda: check_model(settings))
            yield from _found("gpu", lambda: check_gpu(settings))
            return
        os.environ.update(environment_of(settings, state))
    yield from _examine_airflow(settings)


def _examine_airflow(settings: Settings) -> Iterator[Finding]:
    """What needs Airflow's environment, which is read when Airflow is imported: so not before."""
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"  # the findings say it all
    from include.orchestration import health

    metadata = _found("metadata", health.check_metadata)
    yield from metadata
    if all(finding.state == "ok" for finding in metadata):  # else they would only say the same again
        yield from _found("parts", health.check_parts)
        yield from _found("dags", health.check_dags)
        yield from _found("pool", lambda: health.check_gpu_pool(settings))
    yield from _found("api-server", health.check_api_server)
    yield from _found("plugins", health.check_plugins)
    yield from _found("queues", health.check_queues)
    yield from _found("warehouse", health.check_warehouse)
    if health.serves("ingest"):
        yield from _found("corpora", lambda: check_corpora(settings))
    if health.serves("generate"):
        yield from _found("model", lambda: check_model(settings))
        yield from _found("gpu", lambda: check_gpu(settings))
        yield from _found("llm_server", lambda: health.check_server(settings))
    if health.serves("publish"):
        yield from _found("credentials", lambda: health.check_credentials(settings))
        yield from _found("target", lambda: check_target(settings))


def _found(name: str, check: Check) -> list[Finding]:
    """What a check finds; that it breaks, or does not end, is a finding too. Passwords in addresses are left out."""
    findings: list[Finding] = []

    def run() -> None:
        try:
            findings.extend(check())
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            findings.append(Finding(name, "wrong", f"{type(error).__name__}: {first}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(CHECK_TIMEOUT_S)
    if thread.is_alive():
        findings.append(Finding(name, "wrong", f"no answer within {CHECK_TIMEOUT_S:g} s", "look at the network"))
    hidden = (tuple(_PASSWORD_IN_URL.sub("***", text) for text in (each.said, each.mend)) for each in list(findings))
    return [Finding(each.check, each.state, *texts) for each, texts in zip(list(findings), hidden, strict=True)]


def check_packages(lock: Path = PROJECT_ROOT / "requirements.txt") -> Iterator[Finding]:
    """What is installed is what the lock says."""
    other, missing = [], []
    for line in lock.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            missing.append(wanted.name)
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            other.append(f"{wanted.name} {installed} (locked{wanted.specifier})")
    mend = f"pip install --no-deps -r {lock.name}; ./sift does it by itself"
    if any(name.startswith("celery ") for name in other):
        mend += ". The Celery provider does not work with celery 5.7"
    if other:
        yield Finding("packages", "wrong", f"{len(other)} not as locked: {', '.join(other[:5])}", mend)
    if missing:
        said = f"{len(missing)} of the lock are not installed: {', '.join(missing[:5])}"
        yield Finding("packages", "warn", said, "right for an image that leaves them out; else " + mend)
    if not other and not missing:
        yield Finding("packages", "ok", "as locked")


def check_env_file(file: Path = PROJECT_ROOT / ".env") -> Iterator[Finding]:
    """Nobody else can read the passwords in `.env`."""
    if not file.exists():
        return
    names = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith(("#", "SIFT_"))]
    if names and file.stat().st_mode & 0o077:
        yield Finding(".env", "wrong", f"others may read {file}, which holds passwords", f"chmod 600 {file}")
    else:
        yield Finding(".env", "ok", "only its owner can read it" if names else "it holds no passwords")


def writes_home(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment writes SIFT_HOME: it runs tasks, or stands beside the embedded stack.

    Those that own Airflow's metadata and run no tasks are handed the folder for reading, or not at all.
    """
    if "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in environment:
        return True
    works = any(environment.get(f"AIRFLOW_CONN_{name}") for name in WRITING_CONNECTIONS)
    return works or "LocalExecutor" in environment.get("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")


def check_home(settings: Settings, *, written: bool = True) -> Iterator[Finding]:
    """SIFT_HOME can be written to, where this process does so.

    Args:
        settings: Name the folder.
        written: Whether it does.
    """
    place = _existing(settings.home)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if not written:
            yield Finding("home", "ok", f"{place} is read only here, as it should be: no task runs here")
            return
        mend = "give it to the user that Airflow runs as, or set SIFT_HOME"
        yield Finding("home", "wrong", f"{place} cannot be written to: {error.strerror}", mend)
    else:
        yield Finding("home", "ok", f"{place} can be written to")


def check_disk(settings: Settings, free_gib: float) -> Iterator[Finding]:
    """There is room where state and releases are written."""
    places = {"home": settings.home, "releases": settings.releases_dir}
    if settings.target.startswith("/"):
        places["target"] = Path(settings.target)
    seen = set()
    for name, path in places.items():
        place = _existing(path)
        if place.stat().st_dev in seen:
            continue
        seen.add(place.stat().st_dev)
        free = shutil.disk_usage(place).free / (1 << 30)
        said = f"{free:.1f} GiB free for {name} ({place})"
        if free < free_gib:
            mend = "SIFT_KEEP_RELEASES and SIFT_KEEP_LOGS_DAYS keep less; docs/operations.md says what takes the room"
            yield Finding("disk", "wrong", f"{said}, {free_gib:g} are needed", mend)
        else:
            yield Finding("disk", "ok", said)


def check_leases() -> Iterator[Finding]:
    """The folder in which GPUs are leased is ours."""
    yield Finding("leases", "ok", f"{lease_dir()} is ours")


def check_gpu(settings: Settings) -> Iterator[Finding]:
    """GPUs can be seen, and the driver can be asked about them."""
    if settings.engine != "transformers":
        return
    devices = device_candidates()
    if not devices:
        said = "none is visible here: what generates here does so on the CPU"
        yield Finding("gpu", "warn", said, "right without a GPU; in a container, hand the device in")
    for device in devices:
        use = nvml_memory_use(device)
        if use is None:
            yield Finding("gpu", "warn", f"GPU {device}: the driver cannot be asked", "nvidia-smi says why")
        elif use.mib >= OCCUPIED_MIB and not use.processes:
            yield Finding("gpu", "warn", f"GPU {device}: {use.mib} MiB in use by somebody", "nvidia-smi on the host")
        else:
            yield Finding("gpu", "ok", f"GPU {device}: {use.mib} MiB in use")


def check_corpora(settings: Settings) -> Iterator[Finding]:
    """The corpora can be reached: the folder is there, or the Hub answers."""
    if settings.hub.startswith("hf://"):
        wrong = _hub_unreachable()
        if wrong:
            mend = "open the network, or give SIFT_HUB a folder in the Hub's layout"
            yield Finding("corpora", "wrong", f"{settings.hub}: {wrong}", mend)
        else:
            yield Finding("corpora", "ok", f"{settings.hub}: the Hub answers")
        return
    there = [name for name, recipe in RECIPES.items() if (Path(settings.hub) / recipe.repository).is_dir()]
    if not there:
        said = f"{settings.hub} holds none of the corpora"
        yield Finding("corpora", "wrong", said, "set SIFT_HUB to a folder in the Hub's layout, or hf://datasets")
    else:
        yield Finding("corpora", "ok", f"{settings.hub} holds {', '.join(there)}")


def check_model(settings: Settings) -> Iterator[Finding]:
    """The model's files are here, or can be had."""
    name = settings.model_name
    if settings.engine == "fake":
        yield Finding("model", "warn", "the fake engine writes: for tests only", "SIFT_ENGINE=transformers or openai")
    elif name == EMBEDDED_MODEL:
        if (settings.models_dir / name).is_dir():
            yield Finding("model", "ok", f"{name} is converted")
        else:
            find_gguf()
            yield Finding("model", "ok", f"{name} is installed; the first run converts it")
    elif Path(name).is_dir():
        yield Finding("model", "ok", f"folder {name}")
    else:
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "config.json", revision=settings.model_revision), str):
            yield Finding("model", "ok", f"{name} is in the cache")
        elif wrong := _hub_unreachable():
            said = f"{name} at {settings.model_revision} is not in the cache, and {wrong}"
            yield Finding("model", "warn", said, "open the network, fill HF_HOME, or set SIFT_MODEL_NAME to a folder")
        else:
            yield Finding("model", "ok", f"{name} will be downloaded by the first run")


def check_target(settings: Settings) -> Iterator[Finding]:
    """The target can be reached, with the credentials that are known here."""
    from include.orchestration.connections import hub_account, s3_client
    from include.publish.targets import open_target

    mend = "correct SIFT_TARGET, or the connection that it needs"
    try:
        target = open_target(
            settings.target,
            settings,
            private=settings.target_private,
            s3_client=s3_client,
            hub_account=hub_account,
        )
        latest = target.latest()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        yield Finding("target", "wrong", f"{settings.target}: {type(error).__name__}: {first}", mend)
        return
    holds = f"its latest release is {latest.release_id}" if latest else "no release yet"
    yield Finding("target", "ok", f"{target.uri}: {holds}")


def _hub_unreachable() -> str | None:
    """Why the Hub does not answer; None if it does."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(constants.ENDPOINT, timeout=HTTP_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
