"""Models, adapters and prepared sets on their way to the Hub: what goes, what must not, and what failures say."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RemoteEntryNotFoundError

from . import __version__
from .configuration_neurolm import without_local_names
from .dataset_card import read_description
from .model_card import CARD, CardOptions, dropped, has_edited_card, is_edited, model_card
from .model_folder import ADAPTER_CONFIG, CODE, PICKLED_WEIGHTS, WEIGHTS, ModelFolder, read_model_folder, weight_files


# All that a model or an adapter needs, and nothing of its training: no optimiser, no checkpoints, no pickles.
_OF_MODELS = (
    *("config.json", "generation_config.json", ADAPTER_CONFIG),
    *(*WEIGHTS, "*.safetensors.index.json"),
    *(*CODE, "processor_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
_OF_SETS = (CARD, "preparation.json", "summary.json", "data/*/*.parquet", "reports/*.json")
# JSON files that may say where files lay, or who the subjects were.
_CLEANED = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
# As the shipped files import each other.
_IMPORTED = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


@dataclass(frozen=True)
class Parcel:
    """What goes to a repository.

    Attributes:
        folder: where it comes from.
        files: name in the repository -> a file, or its content where that differs from the folder's.
        left_out: what else lies in the folder.
        edited_card: whether a person has written the card that goes.
    """

    folder: Path
    files: dict[str, Path | bytes]
    left_out: list[str]
    edited_card: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files.values())


def is_prepared_set(folder: str | Path) -> bool:
    """Whether a folder is a prepared set, or part of one, and no model."""
    return (Path(folder) / "preparation.json").is_file()


def pack(folder: str | Path, options: CardOptions | None = None, *, subject_names: bool = False) -> Parcel:
    """A model or an adapter as it is to be published, checked to be complete.

    Its JSON files go without the paths of this machine. An adapter goes with the Hub id of its model.

    Args:
        folder: as the scripts of this package, or `save_pretrained` of model and processor, wrote it.
        options: what its card says.
        subject_names: whether the names of the training subjects go along, by which others can tell leakage. Their
            number always does.

    Raises:
        ValueError: something is missing, damaged or a pickle, or the adapter's model is a folder of this machine.
        FileNotFoundError: no such folder.
    """
    options = options or CardOptions()
    model = read_model_folder(folder)
    if options.base_model is not None and model.adapter is None:
        raise ValueError(f"{folder} is a whole model: a base model is given for an adapter.")
    _check_weights(model)
    _check_code(model)
    names = sorted(file.name for file in model.path.iterdir() if file.is_file() and _fits(file.name, _OF_MODELS))
    files: dict[str, Path | bytes] = {name: model.path / name for name in names}
    for name in _CLEANED:
        if name in files:
            content = json.loads((model.path / name).read_text(encoding="utf-8"))
            files[name] = _json(without_local_names(content, subject_names))
    if model.adapter is not None:
        files[ADAPTER_CONFIG] = _json(model.adapter | {"base_model_name_or_path": _base_model(model, options)})
    edited = has_edited_card(model.path)
    files[CARD] = model.path / CARD if edited else model_card(folder, options).encode()
    others = sorted(f"{one.name}/" if one.is_dir() else one.name for one in model.path.iterdir())
    return Parcel(model.path, files, [name for name in others if name not in files], edited)


def publish(
    parcel: Parcel,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    replace_card: bool = False,
) -> CommitInfo:
    """Uploads a model or an adapter in one commit, which is there as a whole or not at all.

    Weights, code and vocabularies of an earlier upload that are not in this one are removed by the same commit. A card
    that a person has edited in the repository stays, unless the one in the folder is a person's too.

    Args:
        parcel: from `pack`.
        repo_id: `name/of-the-repository`, which is made if it is not there.
        private: whether it is to be private.
        revision: a branch, which is made if it is not there; None: `main`.
        replace_card: whether a card of ours may lose the licence, the evaluation or the data sets that it names there.

    Returns:
        The commit; its `oid` is what `revision=` pins.

    Raises:
        ValueError: the repository is public though it is to be private, or private though it is to be public, or its
            card names what the new one does not.
        OSError: what the Hub refuses (`huggingface_hub.errors.HfHubHTTPError`), or the connection broke.
    """
    api = HfApi()
    with said_clearly(repo_id):
        repo_id = _open_repository(api, repo_id, "model", private, revision)
        files = dict(parcel.files)
        there = None if parcel.edited_card else _card_there(api, repo_id, revision)
        if there is not None and is_edited(there):
            warnings.warn(
                f"The card in {repo_id} was edited by hand and stays; the new one is not sent.", stacklevel=2
            )
            del files[CARD]
        elif there is not None and not replace_card:
            new = files[CARD]
            lost = dropped(there, new.decode() if isinstance(new, bytes) else new.read_text(encoding="utf-8"))
            if lost:
                raise ValueError(
                    f"The card in {repo_id} has {', '.join(lost)}, which the new one would not have: give "
                    f"scripts/publish.py {', '.join(lost.values())} again, or --replace-card to do without."
                )
        names = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in names if name not in files and _fits(name, _OF_MODELS)]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=f"{parcel.folder.resolve().name}, by neurolm_hf {__version__}",
            revision=revision,
        )


def push_prepared(
    folder: str | Path, repo_id: str, *, private: bool = True, revision: str | None = None
) -> CommitInfo:
    """Uploads a prepared folder to a dataset repository of the Hub, which is made if it is not there.

    Sent are the card, the two JSON files, the shards and the reports; nothing else that may lie in the folder. The
    token is the one that `hf auth login` has kept.

    Args:
        folder: a finished prepared set with its card.
        repo_id: `name/of-the-repository`.
        private: whether it is to be private.
        revision: a branch, which is made if it is not there; None: `main`.

    Returns:
        The commit.

    Raises:
        ValueError: the folder holds no finished set, or no card, or the repository is public though it is to be
            private, or private though it is to be public.
        OSError: what the Hub refuses (`huggingface_hub.errors.HfHubHTTPError`), or the connection broke.
    """
    folder = Path(folder)
    preparation, summary = read_description(folder)
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} has no card: write it with write_card first.")
    api = HfApi()
    with said_clearly(repo_id):
        repo_id = _open_repository(api, repo_id, "dataset", private, revision)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=os.fspath(folder),
            allow_patterns=[*_OF_SETS],
            delete_patterns=[*_OF_SETS],  # shards of an earlier upload that this folder does not have
            commit_message=f"{preparation['task']}, fingerprint {summary['fingerprint'][:12]}",
            revision=revision,
        )


@contextmanager
def said_clearly(repo_id: str) -> Iterator[None]:
    """Turns a broken connection, which huggingface_hub raises in several ways, into a ConnectionError."""
    try:
        yield
    except HfHubHTTPError:
        raise
    except (HTTPError, RuntimeError) as error:
        if isinstance(cause := error.__cause__, HfHubHTTPError):
            raise cause from error
        reason = f"{error} {cause or ''}".strip().rstrip(".")
        raise ConnectionError(
            f"The upload to {repo_id} was interrupted: {reason}. What was not committed is not to be seen there; "
            "start the same command again: files that have arrived are not sent twice."
        ) from error


def _open_repository(api: HfApi, repo_id: str, kind: str, private: bool, revision: str | None) -> str:
    """Makes the repository and the branch where they are not there. Returns the repository's full name."""
    api.whoami()  # a wrong token is told here, before anything is made
    repo_id = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
    is_private = bool(api.repo_info(repo_id, repo_type=kind).private)
    if private and not is_private:
        raise ValueError(
            f"{repo_id} is there already, and public: give scripts/publish.py --public if that is what you want."
        )
    if is_private and not private:
        # what was meant for few would be shown with it: that is for a person to decide
        raise ValueError(
            f"{repo_id} is there already, and private: publish without --public, then show it, with all that was ever "
            "committed to it, on its settings page on the Hub; or take another name."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
    return repo_id


def _card_there(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The card in a repository, None where there is none."""
    try:
        return Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return None


def _check_weights(model: ModelFolder) -> None:
    """A ValueError where they are no complete safetensors files."""
    files = weight_files(model.path)
    if not files:
        found = sorted(file.name for pattern in PICKLED_WEIGHTS for file in model.path.glob(pattern))
        if found:
            raise ValueError(
                f"{model.path} has its weights in {', '.join(found)}, which are pickles: load and save them again, "
                "which writes safetensors."
            )
        raise ValueError(f"{model.path} has no weights: there is no safetensors file.")
    for index in model.path.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards - {file.name for file in files}):
            raise ValueError(f"{model.path} lacks {', '.join(missing)}, which {index.name} names.")
    model.parameters()  # reads the heads of all files


def _check_code(model: ModelFolder) -> None:
    """A ValueError where the folder would not open by itself. An adapter that PEFT alone has saved has no code."""
    if not model.config:
        return
    if model.recipe is None:
        raise ValueError(f"{model.path} has no processor: save it into the folder, with processor.save_pretrained.")
    wanted = {"config.json": set(_modules(model.config))}
    processor = model.path / "processor_config.json"
    if processor.is_file():
        wanted[processor.name] = set(_modules(json.loads(processor.read_text(encoding="utf-8"))))
    for file in [file for pattern in CODE for file in model.path.glob(pattern)]:
        wanted[file.name] = {f"{name}.py" for name in _IMPORTED.findall(file.read_text(encoding="utf-8"))}
    for source, modules in wanted.items():
        if missing := sorted(name for name in modules if not (model.path / name).is_file()):
            raise ValueError(
                f"{model.path} lacks {', '.join(missing)}, the code that {source} names: save it again with this "
                "version of neurolm_hf."
            )


def _modules(config: Mapping[str, Any]) -> Iterator[str]:
    """Names of the files in which a configuration and its parts say that their classes are."""
    named = [*config.get("auto_map", {}).values()]
    named += [how["impl"] for how in config.get("custom_pipelines", {}).values()]
    yield from (f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in named)
    for part in config.values():
        if isinstance(part, Mapping) and "auto_map" in part:
            yield from _modules(part)


def _base_model(model: ModelFolder, options: CardOptions) -> str:
    """The Hub id of an adapter's model."""
    base = options.base_model or str(model.base_model)
    if options.base_model is None and Path(base).is_absolute():
        raise ValueError(
            f"{model.path} is an adapter of {base}, a folder of this machine: publish that model first, and give its "
            "name on the Hub as the base model."
        )
    return base


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
