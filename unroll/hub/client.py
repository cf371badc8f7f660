"""The Hugging Face Hub through huggingface_hub, whose errors become one line."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unroll.errors import ShareError, one_line
from unroll.hub.files import choose, limit

SIGN_IN = "hf auth login, or HF_TOKEN, gives one with permission to write"


def connect() -> Any:
    """Return the hub's client, with the token of the environment or of ``hf auth login``.

    Raises:
        ShareError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise ShareError("unroll share needs huggingface_hub: pip install 'unroll-rl[share]'") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="unroll")


def upload(api: Any, folder: Path, repository: str, private: bool) -> str:
    """Make ``repository`` hold the files in ``folder``, in one commit; return its address.

    Files of a run that was there before go, anything else stays.

    Raises:
        ShareError: there is no token, no way there, or something else in the repository.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    if not (api.token or get_token()):
        raise ShareError(f"{repository}: the hub wants a token: {SIGN_IN}")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    with explained(repository):
        # Files of a run that are not in this upload are of an earlier one, and go.
        there = make_or_list(api, repository, private)
        gone = [CommitOperationDelete(name) for name in there if limit(name) and name not in names]
        new = [CommitOperationAdd(name, str(folder / name)) for name in names]

        # The commit is named by the checkpoint's folder, step_….
        step = next(name for name in names if name.startswith("checkpoints/")).split("/")[1]
        commit = api.create_commit(repository, [*gone, *new], commit_message=f"A run of unroll, {step}")
        return str(commit.repo_url)


def make_or_list(api: Any, repository: str, private: bool) -> list[str]:
    """Return the names of the files in ``repository``; make the repository if it is not there.

    Raises:
        ShareError: it is public against the user's wish, or it holds something that is not a run.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private)
        return []

    if private and not info.private:
        raise ShareError(f"{repository}: exists and is public; another name, or its settings on the hub")
    there = [file.rfilename for file in info.siblings or []]
    if set(there) - {".gitattributes"} and "config.yaml" not in there:
        raise ShareError(f"{repository}: holds something that is not a run, so it is left alone; another name")
    return there


def download(api: Any, repository: str, revision: str | None, folder: Path, events: bool) -> str:
    """Fetch the files of a run into the empty ``folder``; return the commit that they are of.

    Raises:
        ShareError: there is no such repository, no way there, no run in it, or too much.
    """
    with explained(repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        names = choose(sizes, events)
        if "config.yaml" not in names or not any(name.startswith("checkpoints/") for name in names):
            raise ShareError(f"{repository}: holds no run: no config.yaml with a checkpoint")

        # Sizes are checked before anything is fetched: a repository may hold anything.
        for name in names:
            most = limit(name) or 0
            if sizes[name] > most:
                raise ShareError(f"{repository}/{name}: {sizes[name]:,} bytes, where {most:,} are the most")
        total = sum(sizes[name] for name in names)
        free = shutil.disk_usage(folder).free
        if total > free:
            raise ShareError(f"{repository}: {total:,} bytes, and {folder.parent} has room for {free:,}")

        for name in names:
            api.hf_hub_download(repository, name, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes
    return str(info.sha)


@contextlib.contextmanager
def explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Raise what the client raises as a ShareError that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ShareError(f"{repository}: its owner asks who wants it; ask for access on its page on the hub") from None
    except errors.RevisionNotFoundError:
        raise ShareError(f"{repository}: has no revision {revision!r}; a branch, a tag or a commit is one") from None
    except errors.RepositoryNotFoundError:
        hint = "no such repository, or a private one that your token does not open"
        raise ShareError(f"{repository}: {hint}") from None
    except errors.HFValidationError as error:
        raise ShareError(one_line(error)) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        why = f"the hub answers {code}"
        if code in (401, 403):
            why = f"the hub does not take your token: {SIGN_IN}"
        raise ShareError(f"{repository}: {why} ({one_line(error, 200)})") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise ShareError(f"{repository}: the hub cannot be reached ({one_line(error, 200)})") from None
