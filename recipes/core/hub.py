"""Uploads to the Hugging Face Hub: repositories, and the Hub's errors as one line without access tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from recipes.core.errors import UserError

HUB_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError)
"""Exceptions of huggingface_hub: an invalid id, a missing token, no network, an upload that was cut off."""


@contextmanager
def hub_errors_as_user_errors(action: str) -> Iterator[None]:
    """Raise UserError, starting with `action`, if the body raises one of `HUB_ERRORS`.

    The message never contains the Hub's own text, because that may repeat what was sent, such as an access token.
    """
    try:
        yield
    except HUB_ERRORS as error:
        raise UserError(
            f"{action}: {_reason(error)}; files that were uploaded are kept, run the same command again to continue"
        ) from error


def _reason(error: Exception) -> str:
    """Describe the error by its type and its HTTP status only."""
    name = type(error).__name__
    cause = error.__cause__ if type(error) is RuntimeError and isinstance(error.__cause__, HUB_ERRORS) else error
    if isinstance(cause, LocalTokenNotFoundError):
        return "expected an access token for the Hub, found none; set HF_TOKEN or run `hf auth login`"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"the Hub refused ({type(cause).__name__}, HTTP {status}); check the id and the token's permissions"
    if isinstance(cause, httpx.TransportError | ConnectionError):
        return f"the Hub cannot be reached ({type(cause).__name__}); check the network"
    return f"the Hub refused ({name}); check the id, the network and the access token"


def ensure_repository(api: HfApi, repository: str, repo_type: str, private: bool) -> None:
    """Create the repository if it does not exist. Raises UserError if `private` is asked for and it is public."""
    api.create_repo(repository, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(repository, repo_type=repo_type).private:
        raise UserError(
            f"push to {repository}: expected a private repository, found a public one; make it private on the Hub, "
            "use another name, or allow a public push"
        )
