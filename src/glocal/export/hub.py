"""Upload a model to a repository of the hub, in any format.

Nothing is uploaded before `confirm` was given the list of files. A repository is private unless the caller wants it
public, and one that exists keeps who may see it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.export.format import Precision
from glocal.files import reason, short

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Upload:
    """What is about to be uploaded."""

    repository: str
    """OWNER/NAME."""
    address: str
    """Where it will be seen."""
    exists: bool
    """Whether the repository is there already: files of the same names are replaced, others are kept."""
    private: bool
    """Whether only its owners see it."""
    files: dict[str, int]
    """Bytes of each file, by its path in the repository."""


def push(
    source: str | Path,
    repository: str,
    to: str = "glocal",
    *,
    public: bool = False,
    confirm: Callable[[Upload], bool] = lambda upload: True,
    precision: Precision = "float32",
    cache: bool = False,
    license: str = "unknown",
) -> str | None:
    """Upload a model and its card, and return the address of the commit; None where `confirm` returns False.

    Args:
        source: a run, a model's folder, or a hub id.
        repository: OWNER/NAME; it is made where it does not exist.
        to: the format, one of `glocal.export.FORMATS`.
        public: whether everyone may see it.
        confirm: is given what is about to be uploaded, and returns whether to do it.
        precision: of the weights, as for `glocal.export`.
        cache: as for `glocal.export`.
        license: as for `glocal.export`.

    The token is that of `hf auth login`, or HF_TOKEN. Raises GlocalError if there is none, where the hub refuses it,
    and where a private upload would go into a repository that everyone sees.
    """
    if not isinstance(repository, str) or not REPOSITORY.fullmatch(repository):
        raise GlocalError(f"repository {short(repository)}; expected OWNER/NAME")
    if get_token() is None:
        raise GlocalError("no token for the hub was found; run `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(library_name="glocal")
    visibility = find_visibility(api, repository)
    if visibility == "public" and not public:
        raise GlocalError(f"{repository} exists, and everyone sees it; give --public to upload there, or another name")
    with TemporaryDirectory() as folder:
        written = export(source, Path(folder) / "model", to, precision=precision, cache=cache, license=license)
        files = {
            path.relative_to(written).as_posix(): path.stat().st_size
            for path in sorted(written.rglob("*"))
            if path.is_file()
        }
        private = visibility == "private" if visibility else not public
        address = f"{api.endpoint}/{repository}"
        if not confirm(Upload(repository, address, visibility is not None, private, files)):
            return None
        return upload(api, written, files, repository, private, f"glocal push --to {to}")


def find_visibility(api: HfApi, repository: str) -> str | None:
    """Return `private` or `public` for a repository that exists, else None. Raises GlocalError for a refusal."""
    try:
        return "private" if api.model_info(repository).private else "public"
    except (HTTPError, OSError) as error:
        if isinstance(error, RepositoryNotFoundError) and error.response.status_code == 404:
            return None
        raise GlocalError(refused(repository, error)) from None


def upload(api: HfApi, folder: Path, files: Iterable[str], repository: str, private: bool, message: str) -> str:
    """Make the repository where it is missing, upload files in one commit, and return the commit's address."""
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message=message)
    except (HTTPError, OSError) as error:
        raise GlocalError(refused(repository, error)) from None
    return str(commit.commit_url)


def refused(repository: str, error: Exception) -> str:
    """Say why nothing was uploaded."""
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return f"the hub refuses the token for {repository}: it needs the right to write there; see hf auth login"
    return f"nothing was uploaded to {repository}: {reason(error)}"
