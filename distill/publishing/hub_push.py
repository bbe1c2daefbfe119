"""A finished release to the Hub: one commit, one tag, private unless the recipe says otherwise."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from distill.publishing.release_folder import release_tag, released_files, verify_checksums
from recipes.core.errors import UserError
from recipes.core.hub import ensure_repository, hub_errors_as_user_errors
from recipes.engine.flow import active_stages
from recipes.engine.freshness import read_record, stage_freshness
from recipes.schema.recipe import Recipe


def push_release(recipe: Recipe, repository: str | None, again: str) -> None:
    """Upload `runs/NAME/release` as one commit and tag it; `again` is the command that mends the run.

    A commit holds the whole release or is not there. Large files go first and stay when the rest breaks off, so that
    the next try sends the others alone. Raises UserError for a run that is not fit (`refuse_unfit`), without a token
    (after saying what would be uploaded), and for whatever the Hub refuses.
    """
    assert recipe.release is not None
    check_pushable(recipe, again)
    repository, folder = repository or recipe.release.repository, recipe.root / "release"
    if repository is None:
        raise UserError("push: expected a repository, found none; give --repository owner/name or release.repository")
    tag, files = release_tag(recipe.name, folder), released_files(folder)
    doing = f"push to {repository}"
    if get_token() is None:
        print(_plan(folder, files, repository, tag, recipe.release.private))
        raise UserError(f"{doing}: expected an access token, found none; set HF_TOKEN or run `hf auth login`")
    api = HfApi()
    with hub_errors_as_user_errors(doing):
        ensure_repository(api, repository, "model", recipe.release.private)
        if tag in (ref.name for ref in api.list_repo_refs(repository).tags):
            print(f"{repository}: {tag} is there already")
            return
        print(_plan(folder, files, repository, tag, recipe.release.private))
        names = {file.relative_to(folder).as_posix(): file for file in files}
        old = [name for name in api.list_repo_files(repository) if name not in names and name != ".gitattributes"]
        added = [CommitOperationAdd(name, file) for name, file in names.items()]
        removed = [CommitOperationDelete(name) for name in old]
        commit = api.create_commit(repository, [*added, *removed], commit_message=tag)
        api.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    print(f"pushed to {api.endpoint}/{repository}/tree/{tag}")


def check_pushable(recipe: Recipe, again: str) -> None:
    """UserError for a release that is missing, stale or changed, that missed a required budget, or that came from code
    nobody else can have: changes that were never committed."""
    root = recipe.root
    if not (found := stage_freshness(recipe, "release")).current:
        raise UserError(f"push: {root / 'release'} is {found.reason}; run `{again}` first")
    records = {spec.name: read_record(root / spec.name) or {} for spec in active_stages(recipe)}
    required = recipe.budget is not None and recipe.budget.required
    if required and records["report"]["metrics"]["budget_kept"] is False:
        raise UserError(f"push: {root} missed its required budget {recipe.budget.device.stem}; see the report")  # type: ignore[union-attr]
    if dirty := [name for name, record in records.items() if (record.get("commit") or "").endswith("+")]:
        raise UserError(
            f"push: {', '.join(dirty)} of {root} came from uncommitted changes; commit them, then run "
            f"`{again} --from {dirty[0]}`"
        )
    verify_checksums(root / "release")


def _plan(folder: Path, files: list[Path], repository: str, tag: str, private: bool) -> str:
    """What goes where: a line a file, with its size in 10^6 bytes."""
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size / 1e6 for file in files}
    lines = [f"{size:10.3f} MB  {name}" for name, size in sizes.items()]
    seen = "private" if private else "public"
    head = f"{folder} to {repository} ({seen}), revision {tag}: {len(files)} files, {sum(sizes.values()):.1f} MB"
    return "\n".join([head, *lines])
