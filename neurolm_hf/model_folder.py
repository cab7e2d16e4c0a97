"""What lies in the folder of a model or an adapter: which kind it is, what it has been through, and its weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from .prepared_set import read_object


Kind = Literal["answers", "features", "tokenizer", "classifier"]
# Of their configurations: the neural tokenizers are told from what learns their codes.
NEURAL_TOKENIZERS = ("neurolm_vq", "labram_vq")
MODEL_TYPES = ("neurolm", "labram", *NEURAL_TOKENIZERS)
# The shipped code of this package.
CODE = ("*_neurolm.py", "*_labram.py")
ADAPTER_CONFIG = "adapter_config.json"
# Of the safetensors format: whole models and adapters, in one file or in several with an index.
WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
# Weights that are pickles.
PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelFolder:
    """A model or an adapter, as its files describe it.

    Attributes:
        path: the folder.
        config: `config.json`; empty for an adapter that PEFT alone has saved.
        adapter: `adapter_config.json`, None for a whole model.
        kind: `answers`, a language model that was tuned on questions; `features`, one that was not, or a LaBraM's
            encoder; `tokenizer`, a neural tokenizer alone; `classifier`, any of them with a head for classes.
        recipe: the preprocessing fields of its feature extractor, None where there is no processor.
        settings: of the training that wrote the folder (`running.SETTINGS`), None where none did.
        results: what that training has found (`stages.RESULTS`), None where none did.
    """

    path: Path
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    kind: Kind
    recipe: dict[str, Any] | None
    settings: dict[str, Any] | None
    results: dict[str, Any] | None

    @property
    def is_neural_tokenizer(self) -> bool:
        """Whether it turns EEG into codes and nothing else, or was that before it got its head for classes."""
        return self.config.get("model_type") in NEURAL_TOKENIZERS

    @property
    def is_labram(self) -> bool:
        """Whether it is a LaBraM or the tokenizer of one."""
        return str(self.config.get("model_type")).startswith("labram")

    @property
    def predicts_masked(self) -> bool:
        """Whether it is a LaBraM with its head for the codes of masked patches."""
        return "LaBraMForMaskedEEGModeling" in (self.config.get("architectures") or [])

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """Configuration of the neural tokenizer that it is or holds; empty where it does neither."""
        if self.is_neural_tokenizer:
            return self.config
        # the other LaBraMs only remember by whose codes they were trained
        return self.config.get("eeg_config") or (self.predicts_masked and self.config.get("vq_config")) or {}

    @property
    def _parts(self) -> list[dict[str, Any]]:
        """Configurations that say where weights come from, the first to be trained first."""
        return [self.config.get("eeg_config") or self.config.get("vq_config") or {}, self.config]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """What it was taught to answer, as `NeuroLMConfig.tasks` has it."""
        return list(self.config.get("tasks") or [])

    @property
    def base_model(self) -> str | None:
        """Of an adapter: the folder or the Hub id of the model it belongs to."""
        return None if self.adapter is None else self.adapter.get("base_model_name_or_path")

    def history(self) -> list[dict[str, Any]]:
        """The trainings that its weights went through, the first one first: what `stages.provenance` wrote of each."""
        return [step for part in self._parts for step in reversed([*_trainings(part.get("provenance"))])]

    def origins(self) -> list[dict[str, Any]]:
        """The released files that its weights were converted from, with their hashes."""
        found = [one for part in self._parts for one in _origins(part)]
        return list({one["sha256"]: one for one in found}.values())

    def untrained_channels(self) -> list[str]:
        """Channels whose rows in a converted LaBraM no training has moved, as the conversion found them."""
        provenance = _before_trainings(self.config.get("provenance"))
        return list(provenance.get("untrained_channels") or []) if isinstance(provenance, dict) else []

    def parameters(self) -> int:
        """Numbers in its weights, by the heads of its files.

        Raises:
            ValueError: a file is damaged.
        """
        count = 0
        for file in weight_files(self.path):
            try:
                with safe_open(file, framework="np") as tensors:
                    shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is damaged: {error}.") from error
            for shape in shapes:
                size = 1
                for length in shape:
                    size *= length
                count += size
        return count


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Reads the descriptions of a model or an adapter; no weights.

    Raises:
        ValueError: it is neither, or one of its files is no JSON object.
        FileNotFoundError: no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder.")
    config, adapter = _object(path / "config.json"), _object(path / ADAPTER_CONFIG)
    if config is None and adapter is None:
        raise ValueError(f"{path} holds no model: there is neither a config.json nor an {ADAPTER_CONFIG}.")
    if config is not None and config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{path} holds a {config.get('model_type')!r}, which is no NeuroLM and no LaBraM.")
    processor = _object(path / "processor_config.json") or {}
    extractor = processor.get("feature_extractor") or _object(path / "preprocessor_config.json")
    return ModelFolder(
        path=path,
        config=config or {},
        adapter=adapter,
        kind=_kind(config or {}, adapter),
        recipe=extractor,
        settings=read_object(path / "settings.json"),
        results=read_object(path / "training.json"),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's or an adapter's weights, in name order."""
    return sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})


def _kind(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> Kind:
    names = config.get("architectures") or []
    sequence_classification = adapter is not None and adapter.get("task_type") == "SEQ_CLS"
    if sequence_classification or any(name.endswith("ForSequenceClassification") for name in names):
        return "classifier"
    if config.get("model_type") in NEURAL_TOKENIZERS:
        return "tokenizer"
    # PEFT alone says of an adapter only that it is for a model that writes
    return "answers" if not config or config.get("stage") == "instruction-tuned" else "features"


def _trainings(provenance: Any) -> Iterator[dict[str, Any]]:
    """The last training first."""
    while isinstance(provenance, dict) and "made_by" in provenance:
        yield provenance
        before = provenance.get("started_from")
        provenance = before.get("provenance") if isinstance(before, dict) else None


def _origins(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What stands at the start of a provenance that a conversion wrote: a file, or several by what they are."""
    provenance = _before_trainings(config.get("provenance"))
    if isinstance(provenance, dict) and "made_by" not in provenance:
        entries = [provenance] if "sha256" in provenance else list(provenance.values())
        yield from (one for one in entries if isinstance(one, dict) and "sha256" in one)


def _before_trainings(provenance: Any) -> Any:
    """What stands at the start of a provenance, before the first training."""
    for step in _trainings(provenance):
        before = step.get("started_from")
        provenance = before.get("provenance") if isinstance(before, dict) else None
    return provenance


def _object(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object.")
    return content
