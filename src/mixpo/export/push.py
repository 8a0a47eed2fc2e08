"""A trained model of a run on the Hugging Face Hub, with its card. Nothing else of the run leaves the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixpo import sealed
from mixpo.errors import RunError, first_line
from mixpo.masking import masked
from mixpo.report.model_card import CardSubject, card, is_hub_id
from mixpo.stages.models import check_trained
from mixpo.vlm.folder import is_complete

CARD = "README.md"
UNKNOWN = "unknown"
"""What the hub calls a licence that nobody has stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What goes to the hub. files: names in `folder`, without the card."""

    repository: str
    folder: Path
    files: tuple[str, ...]
    card: str


def prepare(model: Path, repository: str, licence: str = "") -> Upload:
    """Gather what would be uploaded. model: RUN/models/NAME. licence: of the weights; by default the base model's, if its card states one.

    Raises RunError when this is no trained model of a run, or the run has no report that contains it.
    """
    if not is_hub_id(repository):
        raise RunError(f"{repository}: not a model name on the Hub; write it as ORGANISATION/NAME", code="hub-name", key=repository)
    run = model.absolute().parent.parent
    if model.absolute().parent.name != "models" or not (model / "config.json").is_file():
        raise RunError(
            f"{model}: not a trained model of a run; give RUN/models/NAME (`mixpo status RUN` lists them)",
            code="no-trained-model",
            path=model,
        )
    if not is_complete(model):
        raise RunError(f"{model}: the model folder is incomplete; `mixpo run` trains it again", code="model-incomplete", path=model)
    check_trained(model.resolve())
    report, recipe = _read(run / "report.json", "`mixpo report`"), _read(run / "recipe.json", "`mixpo run`")
    if model.name not in report["trained"]:
        raise RunError(
            f"{run / 'report.json'}: does not contain {model.name}; update it with `mixpo report`",
            code="report-outdated",
            path=run / "report.json",
        )
    folder = model.resolve()
    files = tuple(sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != CARD and not path.name.startswith(".")))
    subject = CardSubject(name=model.name, base=_base(run, recipe), licence=licence or _licence(run, recipe) or UNKNOWN)
    return Upload(repository=repository, folder=folder, files=files, card=card(subject, report, recipe))


def push(upload: Upload, private: bool, api: Any = None) -> str:
    """Create the repository if it is not there, upload, and return its address. api: an HfApi, by default one with the stored login.

    Raises RunError when the hub refuses, or when the repository is public and `private` is asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = api or HfApi()
    try:
        address = str(api.create_repo(upload.repository, private=private, exist_ok=True))
        if private and not api.repo_info(upload.repository).private:
            raise RunError(
                f"{upload.repository}: already exists and is public; add --public, or choose another name",
                code="hub-public",
                key=upload.repository,
            )
        api.upload_folder(
            repo_id=upload.repository,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message="Model trained with mixpo",
        )
        api.upload_file(repo_id=upload.repository, path_or_fileobj=upload.card.encode(), path_in_repo=CARD, commit_message="Model card")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = masked(first_line(error), str(getattr(api, "token", None) or ""))
        raise RunError(
            f"{upload.repository}: the Hub refused the upload or cannot be reached ({reason}); log in with `hf auth login`",
            code="hub-refused",
            key=upload.repository,
        ) from error
    return address


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        return sealed.load(path)
    except FileNotFoundError:
        raise RunError(f"{path}: is missing; make it with {command}", code="file-missing", path=path) from None
    except ValueError as error:
        raise RunError(f"{path}: is broken ({error}); make it again with {command}", code="file-broken", path=path) from None


def _base_folder(run: Path, recipe: dict[str, Any]) -> Path:
    """Where the recipe's model is, if it is a folder."""
    base: str = _read(run / "command.json", "`mixpo run`")["recipe_folder"]
    return Path(base, recipe["model"]["path"])


def _base(run: Path, recipe: dict[str, Any]) -> str:
    path = recipe["model"]["path"]
    return path if is_hub_id(path) and not _base_folder(run, recipe).exists() else ""


def _licence(run: Path, recipe: dict[str, Any]) -> str:
    """What the front matter of the base model's card says, where the model lies in a folder with one."""
    try:
        lines = (_base_folder(run, recipe) / CARD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return next((line.split(":", 1)[1].strip().strip("\"'") for line in front if line.startswith("license:")), "")
