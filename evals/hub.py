"""The Hugging Face hub: is it reachable, and the local folder of a model."""

import contextlib
import sys
import threading
from pathlib import Path

from evals.errors import UserError, first_line

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
SECONDS = 10.0
"""for the hub's first answer about a model; then the cache is used"""
ANSWER_SECONDS = 2.0
"""for the hub to answer at all"""


def ask_hub() -> bool:
    """Whether the hub answers within ANSWER_SECONDS, in a thread because a DNS lookup may outlast any timeout.

    If not, the cache is used from now on, and what it lacks fails at once instead of after retries.
    """
    import httpx
    from huggingface_hub import constants

    answered: list[int] = []

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answered.append(httpx.head(constants.ENDPOINT, timeout=ANSWER_SECONDS).status_code)

    if not constants.HF_HUB_OFFLINE:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
    if not answered:
        constants.HF_HUB_OFFLINE = True
        if config := sys.modules.get("datasets.config"):
            config.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return bool(answered)


def is_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or Path(model).exists()


def model_folder(model: str, *, weights: bool = True) -> Path:
    """The folder of a model; for a hub id, ORG/NAME or ORG/NAME@REVISION, its snapshot, downloaded if needed.

    weights: with the *.safetensors. Raises UserError for a folder that is not a model, and for a failed download.
    """
    if is_local(model):
        folder = Path(model).expanduser()
        if not (folder / "config.json").is_file():
            is_run = (folder / "checkpoints").is_dir()
            raise UserError(
                f"{model}: not a model folder (no config.json in it). Expected a Hugging Face folder, or a hub id."
                + f" It is a training run: name one of {folder}/checkpoints (evals.run: --checkpoints)." * is_run
            )
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = model.partition("@")
    wanted = [*SMALL_FILES, *(["*.safetensors"] if weights else [])]
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=wanted, etag_timeout=SECONDS)
    except (OSError, HfHubHTTPError, HFValidationError) as e:
        raise UserError(
            f"cannot get the model {model} from the Hugging Face hub, nor from its cache: "
            f"{first_line(e).removeprefix('Got: ').rstrip('.')}. Check the id and the network, or "
            "give the path of a local folder."
        ) from e
    return Path(found)


def commit_of(model: str) -> str:
    """The current commit of a hub id; "" for a local folder."""
    return "" if is_local(model) else model_folder(model, weights=False).name
