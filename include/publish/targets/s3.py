"""Releases in an S3 bucket: `<prefix>/<release id>/...`, and `<prefix>/latest.json`, which names the latest one.

Data files go first, the manifest last, then `latest.json` in one conditional write: a reader that starts from it never
sees half a release. Any server with the S3 protocol will do. One that does not honour conditional writes (it is asked,
by trying) gets a lock object instead, which is weaker: it is asked for, not enforced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from include.publish.card import CARD_NAME
from include.publish.manifest import (
    MANIFEST_NAME,
    Base,
    FileEntry,
    Manifest,
    ReleaseError,
    UnreadableError,
    is_own_id,
    is_release_id,
    parse_manifest,
)
from include.publish.targets import Pushed
from include.publish.targets.patience import asked_wait_s
from include.schema import BadInputError

log = logging.getLogger(__name__)

POINTER = "latest.json"
LOCK = "lock.json"
LOCK_S = 3600
"""Seconds after which a lock is taken for one whose holder died; it is renewed with every file."""

PART_BYTES = 64 << 20
"""Bytes of one part of an upload; S3 takes at most 10,000 parts, so files up to 640 GB."""

_EVERYBODY = {  # whoever has an account at AWS can read what the second may
    "http://acs.amazonaws.com/groups/global/AllUsers",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
}
_ABSENT = ("NoSuchKey", "404", "NotFound")
_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "412")
_BUSY = (429, 503)
_MOST_BUSY_ANSWERS = 8
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket")


@dataclass(frozen=True)
class _File:
    """A file of a release, as it is to be: path within it, bytes, hex sha256."""

    path: str
    bytes: int
    sha256: str


class S3Target:
    """A prefix of a bucket.

    Args:
        bucket: The bucket; it must be there.
        prefix: Within it, without slashes at its ends; "" is the whole bucket.
        staging: See Target.
        client: A boto3 client for S3.
        private: Whether it is meant for members only. A bucket that says it is public is public all the same.
    """

    is_remote = True

    def __init__(self, bucket: str, prefix: str, staging: Path, client: Any, *, private: bool) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.staging = staging
        self._bucket = bucket
        self._prefix = prefix
        self._client = client
        self._private = private
        # botocore tries again by itself, but neither after a plain 429 nor as late as the server asks for.
        client.meta.events.register_first("needs-retry.s3", _wait_as_asked)

    def latest(self) -> Manifest | None:
        """See Target."""
        release_id, _ = self._pointer()
        if release_id is None:
            return None
        name = f"{release_id}/{MANIFEST_NAME}"
        content = self._read(name)
        if content is None:
            raise UnreadableError(f"{POINTER} names {release_id}, but there is no {name}")
        manifest = parse_manifest(content, name)
        if manifest.release_id != release_id:
            raise UnreadableError(f"{name} is the manifest of {manifest.release_id}")
        return manifest

    def is_public(self) -> bool:
        """See Target; what the server does not tell is taken from the setting."""
        from botocore.exceptions import ClientError

        if not self._private:
            return True
        try:
            status = self._client.get_bucket_policy_status(Bucket=self._bucket)
            if status.get("PolicyStatus", {}).get("IsPublic"):
                return True
        except ClientError as error:  # no policy, or a server without policies
            log.debug("%s: %s", self.uri, error)
        try:
            grants = self._client.get_bucket_acl(Bucket=self._bucket).get("Grants", [])
        except ClientError as error:
            log.debug("%s: %s", self.uri, error)
            return False
        return any(grant.get("Grantee", {}).get("URI") in _EVERYBODY for grant in grants)

    def fetch(self, release_id: str, file: FileEntry, path: Path) -> None:
        """See Target."""
        if self._head(f"{release_id}/{file.path}") is None:
            raise FileNotFoundError(f"{self.uri}/{release_id}/{file.path}")
        with self._explained():
            self._client.download_file(self._bucket, self._key(f"{release_id}/{file.path}"), str(path))

    def push(self, release: Path, manifest: Manifest, base: Base | None = None) -> Pushed:
        """See Target."""
        if base is not None:  # before a lock is taken, which a refusal would leave behind
            base.check(self.uri, manifest.release_id, self._pointer()[0])
        conditional = self._honours_conditions()
        if not conditional:
            log.warning(
                "%s does not honour conditional writes: a lock object keeps publishers apart, if all ask for it",
                self.uri,
            )
        with nullcontext() if conditional else self._locked(manifest.release_id):
            before, etag = self._pointer()
            if before == manifest.release_id:
                kept = [file.bytes for file in manifest.files]
                return Pushed(f"{self.uri}/{before}", kept_files=len(kept), kept_bytes=sum(kept))
            if base is not None:
                base.check(self.uri, manifest.release_id, before)
            pushed = self._send(release, manifest, renew_lock=not conditional)
            self._read_back(release, manifest)
            self._point_to(manifest, etag, conditional)
        return pushed

    def prune(self, keep: int) -> list[str]:
        """See Target."""
        latest, _ = self._pointer()
        if latest is None:
            return []
        whole: list[str] = []
        abandoned: list[str] = []
        for release_id in self._release_ids():
            # Ids begin with their time. A newer one may be on its way, and is so until `latest.json` names it: another
            # deployment may be about to write that.
            if release_id < latest:
                there = self._head(f"{release_id}/{MANIFEST_NAME}") is not None
                (whole if there else abandoned).append(release_id)
        removed = [*abandoned, *(sorted(whole, reverse=True)[keep - 1 :] if keep else [])]
        for release_id in removed:
            self._abort_uploads(release_id)
            # The manifest first: what is left if this dies is one that was abandoned.
            self._client.delete_object(Bucket=self._bucket, Key=self._key(f"{release_id}/{MANIFEST_NAME}"))
            for key in list(self._keys(f"{release_id}/")):
                self._client.delete_object(Bucket=self._bucket, Key=key)
        return removed

    def _send(self, release: Path, manifest: Manifest, *, renew_lock: bool) -> Pushed:
        """Bring all files to the release's prefix, the manifest last; returns what had to be done for it."""
        self._abort_uploads(manifest.release_id)
        before = None
        with suppress(UnreadableError):  # then everything is sent
            before = self.latest()
        known = {file.sha256: f"{before.release_id}/{file.path}" for file in before.files} if before else {}
        sizes: dict[str, list[int]] = {"sent": [], "copied": [], "kept": []}
        for entry in manifest.files:
            file = _File(entry.path, entry.bytes, entry.sha256)
            sizes[self._bring(release, manifest.release_id, file, known.get(entry.sha256))].append(entry.bytes)
            if renew_lock:
                self._write_lock(manifest.release_id)
        for name in (CARD_NAME, MANIFEST_NAME):
            self._upload(release, manifest.release_id, _described(release, name))
        return Pushed(
            f"{self.uri}/{manifest.release_id}",
            sent_files=len(sizes["sent"]),
            sent_bytes=sum(sizes["sent"]),
            copied_files=len(sizes["copied"]),
            copied_bytes=sum(sizes["copied"]),
            kept_files=len(sizes["kept"]),
            kept_bytes=sum(sizes["kept"]),
        )

    def _bring(self, release: Path, release_id: str, file: _File, known: str | None) -> str:
        """Bring one data file to its key: it is there, or is copied from the release before, or is uploaded."""
        if self._holds(f"{release_id}/{file.path}", file, release):
            return "kept"
        if known and self._holds(known, file, release):
            with self._explained():
                self._client.copy_object(
                    Bucket=self._bucket,
                    Key=self._key(f"{release_id}/{file.path}"),
                    CopySource={"Bucket": self._bucket, "Key": self._key(known)},
                    ChecksumAlgorithm="SHA256",  # of the whole copy, computed by the server
                )
            return "copied"
        self._upload(release, release_id, file)
        return "sent"

    def _upload(self, release: Path, release_id: str, file: _File) -> None:
        """Upload a file in parts, each with its checksum, which the server compares."""
        from boto3.s3.transfer import TransferConfig

        types = {".md": "text/markdown; charset=utf-8", ".json": "application/json"}
        kind = types.get(Path(file.path).suffix, "application/octet-stream")
        with self._explained():
            self._client.upload_file(
                str(release / file.path),
                self._bucket,
                self._key(f"{release_id}/{file.path}"),
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": file.sha256}, "ContentType": kind},
                Config=TransferConfig(
                    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
                ),
            )

    def _read_back(self, release: Path, manifest: Manifest) -> None:
        """Hold what the server says of every object against what was sent, and the manifest byte by byte."""
        files = [_File(file.path, file.bytes, file.sha256) for file in manifest.files]
        files += [_described(release, CARD_NAME)]
        wrong = [file.path for file in files if not self._holds(f"{manifest.release_id}/{file.path}", file, release)]
        if self._read(f"{manifest.release_id}/{MANIFEST_NAME}") != (release / MANIFEST_NAME).read_bytes():
            wrong.append(MANIFEST_NAME)
        if wrong:
            raise ReleaseError(
                f"{self.uri}: {', '.join(wrong)} of {manifest.release_id} did not arrive as they were sent"
            )

    def _holds(self, path: str, file: _File, release: Path) -> bool:
        """Whether an object is this file: by size, and by whichever checksum the server gives."""
        head = self._head(path)
        if head is None or head["ContentLength"] != file.bytes:
            return False
        etag = head.get("ETag", "").strip('"')
        in_parts = "-" in etag  # then the checksum is one of checksums
        if not in_parts and "ChecksumSHA256" in head:
            return bool(head["ChecksumSHA256"] == base64.b64encode(bytes.fromhex(file.sha256)).decode())
        metadata = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        if "sha256" in metadata:  # ours; each part was compared when it was uploaded
            return bool(metadata["sha256"] == file.sha256)
        with (release / file.path).open("rb") as content:
            return bool(etag == hashlib.file_digest(content, "md5").hexdigest())

    def _point_to(self, manifest: Manifest, etag: str | None, conditional: bool) -> None:
        """Make the release the latest, unless somebody else published since `etag` was read."""
        from botocore.exceptions import ClientError

        body = {
            "release_id": manifest.release_id,
            "uri": f"{self.uri}/{manifest.release_id}",
            "created_at": manifest.created_at.isoformat(),
        }
        condition = ({"IfMatch": etag} if etag else {"IfNoneMatch": "*"}) if conditional else {}
        try:
            self._write(POINTER, body, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _CONDITION_FAILED:
                raise
            now, _ = self._pointer()
            # A write whose answer was lost is tried again, and finds itself done.
            if now != manifest.release_id:
                raise ReleaseError(
                    f"{self.uri}: release {now} was published meanwhile by somebody else; run again, to build on it"
                ) from error

    def _pointer(self) -> tuple[str | None, str | None]:
        """The latest release's id, and the ETag of what says so."""
        with self._explained():
            found = self._get(POINTER)
        if found is None:
            return None, None
        try:
            release_id = str(json.loads(found["Body"].read())["release_id"])
            if not is_release_id(release_id):  # it becomes part of keys
                raise ValueError(release_id)
            return release_id, found["ETag"]
        except (ValueError, KeyError, TypeError):
            raise ReleaseError(
                f"{self.uri}/{POINTER} is not ours, or damaged: remove it, or use another prefix"
            ) from None

    def _honours_conditions(self) -> bool:
        """Ask the server by trying: write a new object over one that is there."""
        from botocore.exceptions import ClientError

        probe = f".probe-{uuid.uuid4().hex}"
        with self._explained():
            try:
                self._write(probe, {})
                for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123456789abcdef0123456789abcdef"'}):
                    try:
                        self._write(probe, {}, **condition)
                    except ClientError as error:
                        if error.response["Error"]["Code"] not in (*_CONDITION_FAILED, "NotImplemented"):
                            raise
                        if error.response["Error"]["Code"] == "NotImplemented":
                            return False
                    else:
                        return False
                return True
            finally:
                self._client.delete_object(Bucket=self._bucket, Key=self._key(probe))

    @contextmanager
    def _locked(self, release_id: str) -> Iterator[None]:
        """Hold the lock object; one that this release's dead push left is taken over."""
        found = self._get(LOCK)
        if found is not None:
            held = json.loads(found["Body"].read())
            age = time.time() - found["LastModified"].timestamp()
            if held["release_id"] != release_id and age < LOCK_S:
                raise RuntimeError(
                    f"{self.uri}: release {held['release_id']} is being published from {held['host']} since "
                    f"{held['at']}; if that process is dead, remove {self.uri}/{LOCK} or wait until {LOCK_S} s are over"
                )
        self._write_lock(release_id)
        mine = self._read(LOCK)
        if mine is None or json.loads(mine)["release_id"] != release_id:
            raise RuntimeError(f"{self.uri}: somebody else took the lock in the same moment; try again")
        yield
        # Only after success: after a failure the next try of this release takes it over, others wait.
        self._client.delete_object(Bucket=self._bucket, Key=self._key(LOCK))

    def _write_lock(self, release_id: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._write(
            LOCK, {"release_id": release_id, "host": f"{socket.gethostname()}, process {os.getpid()}", "at": at}
        )

    def _release_ids(self) -> list[str]:
        """Ids of what we pushed here, in whole or in part; whatever else lies below the prefix is not ours."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._key(""), Delimiter="/"
        )
        prefixes = [each["Prefix"] for page in pages for each in page.get("CommonPrefixes", [])]
        return [name for prefix in prefixes if is_own_id(name := prefix.removeprefix(self._key("")).rstrip("/"))]

    def _keys(self, folder: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(folder))
        for page in pages:
            yield from (each["Key"] for each in page.get("Contents", []))

    def _abort_uploads(self, release_id: str) -> None:
        """Drop what half-finished uploads of a release left: nobody sees it, but it is paid for."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._key(f"{release_id}/"))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchUpload", "NotImplemented"):  # how some say: none
                return
            raise
        for upload in found.get("Uploads", []):
            log.info("dropping a half-finished upload of %s", upload["Key"])
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            head: dict[str, Any] = self._client.head_object(
                Bucket=self._bucket, Key=self._key(path), ChecksumMode="ENABLED"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in _ABSENT:
                return None
            raise
        return head

    def _get(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            found: dict[str, Any] = self._client.get_object(Bucket=self._bucket, Key=self._key(path))
        except ClientError as error:
            if error.response["Error"]["Code"] in _ABSENT:
                return None
            raise
        return found

    def _read(self, path: str) -> bytes | None:
        found = self._get(path)
        return found["Body"].read() if found else None

    def _write(self, path: str, value: dict[str, Any], **condition: str) -> None:
        body = json.dumps(value, indent=2).encode() + b"\n"
        self._client.put_object(
            Bucket=self._bucket, Key=self._key(path), Body=body, ContentType="application/json", **condition
        )

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what no retry can mend into an error that says what to do."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            raise BadInputError(f"{self.uri}: no credentials; set the Airflow connection aws_default") from error
        except (ClientError, S3UploadFailedError) as error:
            cause = error if isinstance(error, ClientError) else error.__context__
            code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
            if code in _REFUSED:
                raise BadInputError(
                    f"{self.uri}: {code}; the bucket must be there, and the Airflow connection aws_default must be "
                    "allowed to read and write it"
                ) from error
            raise


def _described(release: Path, name: str) -> _File:
    content = (release / name).read_bytes()
    return _File(name, len(content), hashlib.sha256(content).hexdigest())


def _wait_as_asked(response: tuple[Any, dict[str, Any]] | None, attempts: int, **_: Any) -> float | None:
    """Tell botocore the seconds to wait before it tries again; None leaves that to its own rules."""
    status = response[0].status_code if response else None
    if response is None or status not in _BUSY or attempts >= _MOST_BUSY_ANSWERS:
        return None
    asked = asked_wait_s({name.lower(): value for name, value in response[0].headers.items()})
    return min(2.0**attempts, 60.0) if asked is None and status == 429 else asked
