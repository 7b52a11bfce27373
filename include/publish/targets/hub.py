"""Releases in a dataset repository of the Hugging Face Hub: one commit a release, with a tag of its name.

Large files are uploaded beforehand and seen by nobody; the commit shows them all at once. Files that are the same stay,
files that are gone are deleted in the same commit. Old releases stay reachable by their tags.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from include.publish.card import CARD_NAME
from include.publish.manifest import MANIFEST_NAME, Base, FileEntry, Manifest, ReleaseError
from include.publish.targets import Pushed
from include.publish.targets.patience import asked_wait_s
from include.schema import BadInputError, HubAccount

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo
    from tenacity import RetryCallState

log = logging.getLogger(__name__)

DATA = "data/"
TRIES = 6

_Result = TypeVar("_Result")


class HubTarget:
    """A dataset repository.

    Args:
        repository: "<organisation>/<name>"; made by the first release.
        staging: See Target.
        account: Who pushes.
        private: Whether a repository that has to be made is made private. One that is there keeps its visibility.
    """

    is_remote = True

    def __init__(self, repository: str, staging: Path, account: HubAccount, *, private: bool) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils.tqdm import disable_progress_bars

        self.uri = f"hf://datasets/{repository}"
        self.staging = staging
        if constants.is_offline_mode():
            raise BadInputError(f"{self.uri} cannot be reached while HF_HUB_OFFLINE is set")
        disable_progress_bars()  # they would fill the task's log
        self._repository = repository
        self._api = HfApi(endpoint=account.endpoint, token=account.token)
        self._private = private

    def latest(self) -> Manifest | None:
        """See Target."""
        info = self._info()
        return self._manifest(info) if info else None

    def is_public(self) -> bool:
        """See Target."""
        info = self._info()
        return not (info.private if info else self._private)

    def fetch(self, release_id: str, file: FileEntry, path: Path) -> None:
        """See Target."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            try:
                fetched = self._patiently(lambda: self._download(file.path, "main", folder))
            except RemoteEntryNotFoundError as error:
                raise FileNotFoundError(f"{self.uri}/{file.path}") from error
            Path(fetched).rename(path)

    def push(self, release: Path, manifest: Manifest, base: Base | None = None) -> Pushed:
        """See Target."""
        before = self.latest()
        if base is not None:
            base.check(self.uri, manifest.release_id, before.release_id if before else None)
        if before is None or before.release_id != manifest.release_id:
            _check_card(release)
            if self._info() is None:
                self._patiently(self._create)
        # All of it again after an error: a commit whose answer was lost is found to be there.
        pushed = self._patiently(lambda: self._commit(release, manifest, before))
        commit = pushed.commit
        assert commit is not None
        self._patiently(
            lambda: self._api.create_tag(
                self._repository, repo_type="dataset", tag=manifest.release_id, revision=commit, exist_ok=True
            )
        )
        self._read_back(release, manifest, commit)
        return pushed

    def prune(self, keep: int) -> list[str]:
        """See Target: commits and tags stay; the Hub keeps what releases share once."""
        return []

    def _create(self) -> None:
        self._api.create_repo(self._repository, repo_type="dataset", private=self._private, exist_ok=True)

    def _commit(self, release: Path, manifest: Manifest, before: Manifest | None) -> Pushed:
        """Make the repository hold the release, in one commit on top of what it holds now."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        info = self._info()
        assert info is not None and info.sha is not None
        now = self._manifest(info)
        uri = f"{self.uri}@{manifest.release_id}"
        if now is not None and now.release_id == manifest.release_id:
            return Pushed(
                uri, info.sha, kept_files=len(manifest.files), kept_bytes=sum(file.bytes for file in manifest.files)
            )
        if now != before:
            name = now.release_id if now else "none"
            raise ReleaseError(f"{self.uri}: its release is {name} by now, somebody else's; run again, to build on it")
        there = {sibling.rfilename: sibling for sibling in info.siblings or []}
        data = {path for path in there if path.startswith(DATA)}
        if now is None and data:
            raise ReleaseError(
                f"{self.uri} holds {len(data)} data files that no manifest lists; use another repository, or empty it"
            )
        changed = [file for file in manifest.files if _lfs_sha256(there.get(file.path)) != file.sha256]
        kept = [file for file in manifest.files if file not in changed]
        paths = [*(file.path for file in changed), CARD_NAME, MANIFEST_NAME]
        gone = sorted(data - {file.path for file in manifest.files})
        made = self._api.create_commit(
            self._repository,
            repo_type="dataset",
            operations=[
                *(CommitOperationAdd(path, str(release / path)) for path in paths),
                *(CommitOperationDelete(path, is_folder=False) for path in gone),
            ],
            commit_message=f"Release {manifest.release_id}",
            parent_commit=info.sha,
        )
        return Pushed(
            uri,
            made.oid,
            sent_files=len(changed),
            sent_bytes=sum(file.bytes for file in changed),
            kept_files=len(kept),
            kept_bytes=sum(file.bytes for file in kept),
        )

    def _read_back(self, release: Path, manifest: Manifest, commit: str) -> None:
        """Hold what the Hub says of every file against the manifest, and card and manifest byte by byte."""
        info = self._info(commit)
        assert info is not None
        there = {sibling.rfilename: sibling for sibling in info.siblings or []}
        wrong = [
            file.path
            for file in manifest.files
            if _lfs_sha256(there.get(file.path)) != file.sha256 or there[file.path].size != file.bytes
        ]
        listed = {file.path for file in manifest.files}
        wrong += sorted(path for path in there if path.startswith(DATA) and path not in listed)
        if self._read(MANIFEST_NAME, commit) != manifest.to_json().encode():
            wrong.append(MANIFEST_NAME)
        card = release / CARD_NAME
        if card.exists() and self._read(CARD_NAME, commit) != card.read_bytes():
            wrong.append(CARD_NAME)
        if wrong:
            raise ReleaseError(f"{self.uri}: {', '.join(wrong)} of commit {commit} are not what was sent")

    def _info(self, revision: str | None = None) -> DatasetInfo | None:
        """The repository with its files; None if there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def ask() -> DatasetInfo:
            return self._api.dataset_info(self._repository, revision=revision, files_metadata=True)

        try:
            return self._patiently(ask)
        except RepositoryNotFoundError:
            return None

    def _manifest(self, info: DatasetInfo) -> Manifest | None:
        if info.sha is None or MANIFEST_NAME not in {sibling.rfilename for sibling in info.siblings or []}:
            return None
        try:
            return Manifest.model_validate_json(self._read(MANIFEST_NAME, info.sha))
        except ValidationError as error:
            raise ReleaseError(f"{self.uri}/{MANIFEST_NAME} is not ours, or damaged: {error}") from error

    def _read(self, path: str, revision: str) -> bytes:
        with TemporaryDirectory(prefix="sift-") as folder:
            return Path(self._patiently(lambda: self._download(path, revision, folder))).read_bytes()

    def _download(self, path: str, revision: str, folder: str) -> str:
        return self._api.hf_hub_download(
            self._repository, path, repo_type="dataset", revision=revision, local_dir=folder
        )

    def _patiently(self, call: Callable[[], _Result]) -> _Result:
        """Call again while the Hub is busy or away, as late as it asks for; name what no patience helps."""
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
        from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt

        patience = Retrying(
            retry=retry_if_exception(_is_passing),
            wait=_wait_s,
            stop=stop_after_attempt(TRIES),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        try:
            return patience(call)
        except GatedRepoError as error:
            raise BadInputError(f"{self.uri} is gated: {error}") from error
        except HfHubHTTPError as error:
            if not isinstance(error, RepositoryNotFoundError) and _status(error) in (401, 403):
                raise BadInputError(
                    f"{self.uri}: the token of the Airflow connection hub may not do that: {error}"
                ) from error
            raise


def _check_card(release: Path) -> None:
    """Refuse a card that would leave `datasets` guessing: with it the Hub's own metadata would be lost."""
    from huggingface_hub import DatasetCard

    data = DatasetCard.load(release / CARD_NAME).data.to_dict()
    missing = [name for name in ("configs", "dataset_info") if not data.get(name)]
    if missing:
        raise ReleaseError(f"{release.name}: the front matter of {CARD_NAME} has no {' and no '.join(missing)}")


def _lfs_sha256(sibling: Any) -> str | None:
    """Hex sha256 of a file that the Hub stores as a large one; None for any other, or none."""
    return str(sibling.lfs.sha256) if sibling is not None and sibling.lfs else None


def _is_passing(error: BaseException) -> bool:
    """Whether an error may be gone when one tries again."""
    import httpx2  # what huggingface_hub speaks HTTP with
    from huggingface_hub.errors import HfHubHTTPError

    error = _cause(error)
    if isinstance(error, HfHubHTTPError):
        status = _status(error)
        return status is None or status in (408, 409, 412, 429) or status >= 500
    return isinstance(error, httpx2.TransportError)


def _cause(error: BaseException) -> BaseException:
    """What went wrong; huggingface_hub wraps the errors of uploads and downloads."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, RuntimeError | LocalEntryNotFoundError)
    return error.__cause__ if wraps and error.__cause__ else error


def _status(error: Any) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _wait_s(state: RetryCallState) -> float:
    """Seconds until the next try: what the Hub's Retry-After says, else twice as long every time."""
    error = state.outcome.exception() if state.outcome else None
    response = getattr(_cause(error), "response", None) if error else None
    asked = asked_wait_s(response.headers) if response is not None else None
    return min(2.0 ** (state.attempt_number - 1), 60.0) if asked is None else asked
