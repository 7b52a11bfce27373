"""`docker-compose.yaml` as data: what each service runs and what it is told, with `.env` filled in.

Only what our file uses is understood. Docker's own reading of the file is tested with `docker-compose config`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from dotenv import dotenv_values

from include.settings import PROJECT_ROOT

COMPOSE_FILE = PROJECT_ROOT / "docker-compose.yaml"
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """One service.

    Attributes:
        name: As in the file.
        command: Program and arguments.
        environment: Its variables.
        restart: Whether it is started again when it ends.
        profiles: It runs if one of them is asked for; none: always.
        devices: GPUs that it alone is given, by the host's numbers.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    restart: bool
    profiles: frozenset[str]
    devices: list[str]


def read_services(variables: Mapping[str, str]) -> dict[str, Service]:
    """Read all services.

    Args:
        variables: What `.env` holds.

    Raises:
        ValueError: If the file asks for a variable that is not there, with what it says to do.
    """
    content = yaml.safe_load(COMPOSE_FILE.read_text())
    return {name: _service(name, fields, variables) for name, fields in content["services"].items()}


def read_variables(env_file: str) -> dict[str, str]:
    """Read a `.env`."""
    return {name: value for name, value in dotenv_values(env_file, interpolate=False).items() if value is not None}


def _service(name: str, fields: dict[str, Any], variables: Mapping[str, str]) -> Service:
    command = fields.get("command", [])
    words = shlex.split(command) if isinstance(command, str) else command
    environment = {}
    for variable, value in fields.get("environment", {}).items():
        if value is not None:
            environment[variable] = _filled(str(value), variables)
        elif variable in variables:
            environment[variable] = variables[variable]
    reserved = fields.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    return Service(
        name=name,
        command=[_filled(word, variables) for word in words],
        environment=environment,
        restart=fields.get("restart") == "unless-stopped",
        profiles=frozenset(fields.get("profiles", [])),
        devices=[device for entry in reserved for device in entry["device_ids"]],
    )


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """Fill in `${NAME}`, `${NAME:-default}` and `${NAME:?message}`; `$$` is a dollar."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        if given := variables.get(found["name"]):
            return given
        if found["kind"] == "?":
            raise ValueError(f"{found['name']}: {found['rest']}")
        return found["rest"] or ""

    return _VARIABLE.sub(value, text)
