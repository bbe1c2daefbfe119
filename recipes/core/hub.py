"""The Hugging Face Hub: repositories that are pushed to, and its refusals in one line that holds no token."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from recipes.core.errors import UserError

HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError)
"""What huggingface_hub raises for a wrong id, a missing token, no network, an upload that broke off."""


@contextmanager
def hub_errors_as_user_errors(doing: str) -> Iterator[None]:
    """UserError in one line for whatever the Hub answers; of its own words none, they may repeat what was sent."""
    try:
        yield
    except HUB_ERRORS as error:
        raise UserError(f"{doing}: {_reason(error)}; what was uploaded stays: the same command goes on") from error


def _reason(error: Exception) -> str:
    name = type(error).__name__
    cause = error.__cause__ if type(error) is RuntimeError and isinstance(error.__cause__, HUB_ERRORS) else error
    if isinstance(cause, LocalTokenNotFoundError):
        return "the Hub wants an access token, found none; set HF_TOKEN or run `hf auth login`"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"the Hub refused ({type(cause).__name__}, HTTP {status}); check the id and the token's rights"
    if isinstance(cause, httpx.TransportError | ConnectionError):
        return f"the Hub cannot be reached ({type(cause).__name__}); check the network"
    return f"the Hub refused ({name}); check the id, the network and the access token"


def ensure_repository(api: HfApi, repository: str, repo_type: str, private: bool) -> None:
    """Make the repository where there is none. UserError for a public one where a private one is wanted."""
    api.create_repo(repository, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(repository, repo_type=repo_type).private:
        raise UserError(
            f"push to {repository}: expected a private repository, found a public one; make it private on the Hub, "
            "name another, or ask for a public push"
        )
