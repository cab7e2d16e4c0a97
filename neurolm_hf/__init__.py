"""NeuroLM, native to Hugging Face transformers.

Importing the package is cheap: nothing heavy is loaded until a name is used. The classes register themselves with
transformers' Auto classes as soon as both packages are there, so that `AutoModelForCausalLM.from_pretrained` opens a
NeuroLM folder without `trust_remote_code`.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


__version__ = "0.1.0"

_EXPORTS = {
    "NeuroLMConfig": "configuration_neurolm",
    "NeuroLMVQConfig": "configuration_neurolm",
    "NeuroLMModel": "modeling_neurolm",
    "NeuroLMForCausalLM": "modeling_neurolm",
    "NeuroLMForSequenceClassification": "modeling_neurolm",
    "NeuroLMVQModel": "modeling_neurolm",
    "NeuroLMVQForPreTraining": "modeling_neurolm",
    "NeuroLMVQForSequenceClassification": "modeling_neurolm",
    "LaBraMConfig": "configuration_labram",
    "LaBraMVQConfig": "configuration_labram",
    "LaBraMModel": "modeling_labram",
    "LaBraMForMaskedEEGModeling": "modeling_labram",
    "LaBraMForSequenceClassification": "modeling_labram",
    "LaBraMVQModel": "modeling_labram",
    "EEGFeatureExtractor": "processing_neurolm",
    "NeuroLMProcessor": "processing_neurolm",
    "EEGQuestionAnsweringPipeline": "pipeline_neurolm",
}

# auto module of transformers -> (Auto class, config, class), registered when that module has been loaded
_AUTO_CLASSES: dict[str, list[tuple[str, str, str]]] = {
    "transformers.models.auto.modeling_auto": [
        ("AutoModel", "NeuroLMVQConfig", "NeuroLMVQModel"),
        ("AutoModelForPreTraining", "NeuroLMVQConfig", "NeuroLMVQForPreTraining"),
        ("AutoModelForSequenceClassification", "NeuroLMVQConfig", "NeuroLMVQForSequenceClassification"),
        ("AutoModel", "NeuroLMConfig", "NeuroLMModel"),
        ("AutoModelForCausalLM", "NeuroLMConfig", "NeuroLMForCausalLM"),
        ("AutoModelForSequenceClassification", "NeuroLMConfig", "NeuroLMForSequenceClassification"),
        ("AutoModel", "LaBraMVQConfig", "LaBraMVQModel"),
        ("AutoModel", "LaBraMConfig", "LaBraMModel"),
        ("AutoModelForPreTraining", "LaBraMConfig", "LaBraMForMaskedEEGModeling"),
        ("AutoModelForSequenceClassification", "LaBraMConfig", "LaBraMForSequenceClassification"),
    ],
    "transformers.models.auto.feature_extraction_auto": [
        ("AutoFeatureExtractor", "NeuroLMConfig", "EEGFeatureExtractor"),
        ("AutoFeatureExtractor", "NeuroLMVQConfig", "EEGFeatureExtractor"),
        ("AutoFeatureExtractor", "LaBraMConfig", "EEGFeatureExtractor"),
        ("AutoFeatureExtractor", "LaBraMVQConfig", "EEGFeatureExtractor"),
    ],
    "transformers.models.auto.processing_auto": [("AutoProcessor", "NeuroLMConfig", "NeuroLMProcessor")],
}
_CONFIG_MODULE = "transformers.models.auto.configuration_auto"
_PIPELINES_MODULE = "transformers.pipelines"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


def _register(auto_module: ModuleType) -> None:
    if auto_module.__name__ == _CONFIG_MODULE:
        for name in ("NeuroLMConfig", "NeuroLMVQConfig", "LaBraMConfig", "LaBraMVQConfig"):
            config = __getattr__(name)
            auto_module.AutoConfig.register(config.model_type, config, exist_ok=True)
        return
    if auto_module.__name__ == _PIPELINES_MODULE:
        registry, name = auto_module.PIPELINE_REGISTRY, "eeg-question-answering"
        # its import may end in this very registration
        pipeline_class = __getattr__("EEGQuestionAnsweringPipeline")
        if name not in registry.supported_tasks:
            registry.register_pipeline(name, pipeline_class, pt_model=(auto_module.AutoModelForCausalLM,))
        return
    for auto_class, config, name in _AUTO_CLASSES[auto_module.__name__]:
        getattr(auto_module, auto_class).register(__getattr__(config), __getattr__(name), exist_ok=True)


class _RegisterWhenLoaded(importlib.abc.MetaPathFinder):
    """Lets the import of an auto module of transformers be followed by our registration with it.

    They import one another and ours import them: registration waits for the outermost of these imports to end.
    """

    def __init__(self) -> None:
        self.waits = {f"{__name__}.{module}" for module in (*_EXPORTS.values(), "layers_neurolm")}
        self.waits.add("transformers.modeling_layers")  # ours import it, and it imports the auto modules
        self.loading: set[str] = set()
        self.theirs = {_CONFIG_MODULE, _PIPELINES_MODULE, *_AUTO_CLASSES}
        self.loaded = {name for name in self.theirs if name in sys.modules}

    def register(self) -> None:
        if not self.loading:
            for name in sorted(self.loaded):
                _register(sys.modules[name])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waits | self.theirs:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                self.loading.add(fullname)
                try:
                    load(module)
                finally:
                    self.loading.discard(fullname)
                if fullname in self.theirs:
                    self.loaded.add(fullname)
                self.register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if not any(type(finder).__name__ == _RegisterWhenLoaded.__name__ for finder in sys.meta_path):
    # first: what its registration imports may import an auto module, too
    sys.meta_path.insert(0, _finder := _RegisterWhenLoaded())
    _finder.register()

__all__ = sorted(_EXPORTS)
