"""A run's result onto the model hub: first what would be uploaded, then that and nothing else."""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from trainer.core.errors import CheckpointError, RecipeError, TrainerError
from trainer.core.files import printable
from trainer.core.redacting import redacted_text
from trainer.recipe.recipe import Recipe
from trainer.reporting.card import card_of
from trainer.reporting.pictures import open_picture
from trainer.reporting.record import RunRecord
from trainer.reporting.usage import result_of

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")
_LONGEST: Final = 1024  # pixels of a picture
_TEXT: Final = 300  # letters of a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file that would be uploaded."""

    name: str  # in the repository
    content: Path | bytes
    what: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """All that would be uploaded, with the card as a person reads it."""

    repository: str
    private: bool
    card: str
    uploads: tuple[Upload, ...]


def publication_of(
    record: RunRecord, repository: str, *, private: bool, license_id: str = "", pictures: int = 8
) -> Publication:
    """What publishing a run would upload; nothing is sent, and no network asked.

    Args:
        record: of a finished run.
        repository: OWNER/NAME on the hub.
        private: whether only the owner may see it.
        license_id: as the hub knows licences; "" says none.
        pictures: the most previews that are published.

    Raises:
        RecipeError: that is no name of a repository or of a licence.
        CheckpointError: there is no result yet.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise RecipeError(
            f"{printable(repository)!r} is no name of a repository.", where="--to", mend="Write OWNER/NAME."
        )
    if license_id and not _LICENSE.fullmatch(license_id):
        raise RecipeError(
            f"{printable(license_id)!r} is no name of a licence.",
            where="--license",
            mend="Use the hub's own names, such as openrail++, creativeml-openrail-m, apache-2.0 or other.",
        )
    recipe, found = record.recipe, record.result
    if recipe is None or found is None:
        raise CheckpointError(
            f"There is no result to publish{f': {record.recipe_problem}' if record.recipe_problem else ''}".rstrip(".")
            + ".",
            where=str(record.folder.root),
            mend="Finish the run first.",
        )
    shown = _pictures(record, recipe, pictures)
    result = result_of(recipe, record.folder.result)
    card = card_of(recipe, result, record.step, [(one.name, one.what) for one in shown], license_id)
    uploads = [
        Upload(name="README.md", content=card.encode("utf-8"), what="the model card, as above"),
        *_files(found, recipe),
        *shown,
    ]
    return Publication(repository=repository, private=private, card=card, uploads=tuple(uploads))


def publish(publication: Publication) -> str:
    """Upload what was listed, in one commit; gives the address.

    The token is that of HF_TOKEN or of `hf auth login`; the hub's library reads it, and we never see it.

    Raises:
        TrainerError: nobody is logged in, the repository is public where a private one is asked for, or the hub
            refuses.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise TrainerError(
            "Nobody is logged in to the model hub.",
            where="HF_TOKEN",
            mend="Log in with: hf auth login; or set HF_TOKEN. A token never stands on a command line or in a recipe.",
        )
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    operations = [
        CommitOperationAdd(
            path_in_repo=one.name, path_or_fileobj=one.content if isinstance(one.content, bytes) else str(one.content)
        )
        for one in publication.uploads
    ]
    try:
        try:
            is_public = hub.model_info(publication.repository).private is False
        except RepositoryNotFoundError:
            is_public = False
            hub.create_repo(publication.repository, private=publication.private)
        if is_public and publication.private:
            raise RecipeError(
                "This repository is there already, and everybody can see it.",
                where=publication.repository,
                mend="Make it private on the hub first, choose another name, or leave out --private.",
            )
        done = hub.create_commit(publication.repository, operations, commit_message="Upload from sd-trainer")
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise TrainerError(
            f"The hub did not take it: {printable(redacted_text(str(error).strip().partition(chr(10))[0]))}",
            where=publication.repository,
            mend="Check the network, the name, and whether the token may write there.",
        ) from error
    return str(done.repo_url)


def _files(found: Path, recipe: Recipe) -> list[Upload]:
    """The result's own files, and those of new words that belong to it."""
    what = "the result, which says how often each tag stands" if recipe.export.tag_counts else "the result"
    words = [path for path in recipe.adapter.word_files(found).values() if path.is_file() and path != found]
    if found.is_file():
        return [Upload(name=path.name, content=path, what=what) for path in (found, *words)]
    inside = [path for path in sorted(found.rglob("*")) if path.is_file() and not path.is_symlink()]
    own = [Upload(name=path.relative_to(found).as_posix(), content=path, what=what) for path in inside]
    return [*own, *(Upload(name=path.name, content=path, what=what) for path in words)]


def _pictures(record: RunRecord, recipe: Recipe, most: int) -> list[Upload]:
    """The newest previews, made anew, so that nothing but their pixels is published; `what` is the prompt."""
    drawn = [step for step in record.previews if step > 0]
    if not drawn:
        return []
    prompts = recipe.previews.prompts
    shown: list[Upload] = []
    for place, path in record.previews[drawn[-1]].items():
        picture = open_picture(path) if len(shown) < most and place < len(prompts) else None
        if picture is not None:
            text = prompts[place] if len(prompts[place]) <= _TEXT else f"{prompts[place][:_TEXT]}…"
            shown.append(Upload(name=f"pictures/{place:02d}.png", content=_png(picture), what=text))
    return shown


def _png(picture: Image.Image) -> bytes:
    plain = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    plain.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    plain.save(file, "PNG")
    return file.getvalue()


def listed(uploads: Sequence[Upload]) -> list[str]:
    """A line for each file: its name, size, and what it is."""
    return [f"  {one.name}  {one.size:,} bytes  ({printable(one.what)})" for one in uploads]
