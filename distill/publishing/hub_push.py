"""Push a finished release to the Hub, as one commit with one tag."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from distill.publishing.release_folder import release_tag, released_files, verify_checksums
from recipes.core.errors import UserError
from recipes.core.hub import ensure_repository, hub_errors_as_user_errors
from recipes.engine.freshness import Freshness
from recipes.engine.stage_record import StageRecord


def check_pushable(
    folder: Path, freshness: Freshness, records: Mapping[str, StageRecord], required_budget: str | None, rerun: str
) -> None:
    """Raise UserError if a release must not be published.

    That is the case if it is not current, if it misses a required budget, if a stage was run with uncommitted changes
    of the code (nobody else could repeat it), or if its files were changed since.

    Args:
        folder: The release folder.
        freshness: Whether the stage `release` is current.
        records: Records of all stages of the run.
        required_budget: Name of the budget that the run must keep, or None.
        rerun: The command that runs the stages again, for the messages.
    """
    run = folder.parent
    if not freshness.current:
        raise UserError(f"push: {folder} is {freshness.reason}; run `{rerun}` first")
    if required_budget is not None and records["report"]["metrics"]["budget_kept"] is False:
        raise UserError(f"push: {run} missed its required budget {required_budget}; see the report")
    if uncommitted := [name for name, record in records.items() if (record["commit"] or "").endswith("+")]:
        raise UserError(
            f"push: {', '.join(uncommitted)} of {run} came from uncommitted changes; commit them, then run "
            f"`{rerun} --from {uncommitted[0]}`"
        )
    verify_checksums(folder)


def push_release(folder: Path, name: str, repository: str | None, *, private: bool) -> None:
    """Upload a release folder as one commit, and tag the commit.

    The commit contains the whole release or is not made at all. Large files are uploaded before it and kept if the
    upload is interrupted, so that the next attempt sends only those that are missing. Files of an earlier release that
    this one does not have are deleted in the same commit.

    Raises UserError without a repository, without an access token (after showing what would be uploaded), and for
    every error of the Hub.

    Args:
        folder: The release folder.
        name: Name of the run, the first part of the tag.
        repository: Hub id, `owner/name`.
        private: Whether the repository must be private.
    """
    if repository is None:
        raise UserError("push: expected a repository, found none; give --repository owner/name or release.repository")
    tag, files = release_tag(name, folder), released_files(folder)
    action = f"push to {repository}"
    listing = (
        f"{folder} to {repository} ({'private' if private else 'public'}), revision {tag}: {_listing(folder, files)}"
    )
    if get_token() is None:
        print(listing)
        raise UserError(f"{action}: expected an access token, found none; set HF_TOKEN or run `hf auth login`")
    api = HfApi()
    with hub_errors_as_user_errors(action):
        ensure_repository(api, repository, "model", private)
        if tag in (ref.name for ref in api.list_repo_refs(repository).tags):
            print(f"{repository}: already has {tag}")
            return
        print(listing)
        new = {file.relative_to(folder).as_posix(): file for file in files}
        old = [path for path in api.list_repo_files(repository) if path not in new and path != ".gitattributes"]
        added = [CommitOperationAdd(path, file) for path, file in new.items()]
        removed = [CommitOperationDelete(path) for path in old]
        commit = api.create_commit(repository, [*added, *removed], commit_message=tag)
        api.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    print(f"pushed to {api.endpoint}/{repository}/tree/{tag}")


def _listing(folder: Path, files: Sequence[Path]) -> str:
    """Return number and size of all files, then a line per file with its size in MB (10^6 bytes)."""
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size / 1e6 for file in files}
    lines = [f"{size:10.3f} MB  {path}" for path, size in sizes.items()]
    return "\n".join([f"{len(files)} files, {sum(sizes.values()):.1f} MB", *lines])
