"""The card of a model or an adapter: what its files, its training and its evaluation say, and nothing else.

What is not known is left out, or said to be unknown. A card ends with a hash of itself, by which a card that nobody
has changed is told from one that a person has edited and that is left alone.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from .dataset_card import hub_licence, markdown_table, plain_text, recipe_in_words
from .model_folder import ModelFolder, read_model_folder, weight_files
from .storage import write_text


if TYPE_CHECKING:
    from .evaluation_report import Evaluation

CARD = "README.md"
# In place of the folder's path or the repository's name, while a card lies in a folder.
PLACEHOLDER = "FOLDER"
PIPELINE = "eeg-question-answering"
# The Hub has no name for questions about EEG, and `other` for what it has no name for.
_HUB_TASKS = {
    "answers": "other",
    "classifier": "other",
    "features": "feature-extraction",
    "tokenizer": "feature-extraction",
}
_STAGES = {
    "train_vq.py": "Neural tokenizer",
    "pretrain.py": "Pre-training",
    "pretrain_masked.py": "Masked modelling",
    "instruction_tune.py": "Instruction tuning",
    "finetune_classifier.py": "Classifier",
}
# Settings of a training that a reader asks for, by what they are called there.
_SETTINGS = {
    "learning_rate": "learning rate",
    "total_train_batch_size": "windows a step",
    "text_batch_size": "blocks of text a step",
    "optim": "optimiser",
    "weight_decay": "weight decay",
    "channel_dropout": "channel dropout",
    "feature_noise": "feature noise",
    "dropout": "dropout",
    "layer_decay": "layer decay",
    "drop_path": "drop path",
    "label_smoothing_factor": "label smoothing",
    "pooling": "pooling",
    "seed": "seed",
}
_MARK = re.compile(r"\n<!-- Written by neurolm_hf [^\n]*? sha256 ([0-9a-f]{64}) -->\s*$")
# What huggingface_hub, transformers and peft write where there is no card, beside the template itself.
_OF_TEMPLATES = re.compile(r"This is the model card of a .* transformers model|### Framework versions|- PEFT \S+$")


@dataclass(frozen=True)
class CardOptions:
    """What a card says beside what it finds in a folder.

    Attributes:
        name: the repository's, which its code opens; None: `FOLDER` stands in its place.
        results: folder that `scripts/evaluate_tasks.py` has written about these weights.
        licence: of the weights: an identifier of the Hub such as `cc-by-4.0`, or words.
        base_model: of an adapter: the Hub id of its model; without, what its own config says.
        datasets: Hub ids of what it was trained on.
        tags: more of them than the model's own.
    """

    name: str | None = None
    results: str | Path | None = None
    licence: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()


def write_model_card(folder: str | Path) -> None:
    """Writes `README.md` beside a model or an adapter, unless a person has edited the one that is there.

    Raises:
        ValueError: what `model_card` refuses.
    """
    if not has_edited_card(folder):
        write_text(Path(folder) / CARD, model_card(folder))


def has_edited_card(folder: str | Path) -> bool:
    """Whether there is a card in a folder that a person has written or changed.

    To be asked before an adapter is saved: peft changes the head of whatever card it finds.
    """
    file = Path(folder) / CARD
    return file.is_file() and is_edited(file.read_text(encoding="utf-8"))


def is_edited(text: str) -> bool:
    """Whether a person has written or changed a card.

    Nobody has where its hash fits, or where all of its lines are of the template of huggingface_hub, which peft and
    transformers leave where there is no card.
    """
    if marked := _MARK.search(text):
        return hashlib.sha256(text[: marked.start()].encode()).hexdigest() != marked[1]
    body = text.split("\n---\n", 1)[1] if text.startswith("---\n") and "\n---\n" in text else text
    template = {line.strip() for line in str(ModelCard.from_template(ModelCardData())).splitlines()}
    lines = (line.strip() for line in body.splitlines())
    return any(line and line not in template and not _OF_TEMPLATES.match(line) for line in lines)


def dropped(old: str, new: str) -> dict[str, str]:
    """What a card has and a new one has not, by their heads -> the option of `scripts/publish.py` that gives it."""
    before, after = ModelCard(old).data.to_dict(), ModelCard(new).data.to_dict()
    return {
        what: option
        for name, what, option in (
            ("license", "a licence", "--licence"),
            ("model-index", "an evaluation", "--results"),
            ("datasets", "data sets", "--datasets"),
        )
        if name in before and name not in after
    }


def renew_card(folder: str | Path, repo_id: str) -> None:
    """Puts a model's card in place of the one that transformers is about to send, unless a person wrote that.

    Args:
        folder: as `push_to_hub` of transformers has written it, with the card of the repository or an empty one.
        repo_id: where it goes.
    """
    file = Path(folder) / CARD
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not weight_files(Path(folder)) or is_edited(text):
        return
    card = model_card(folder, CardOptions(name=repo_id, tags=ModelCard(text).data.to_dict().get("tags") or ()))
    if lost := dropped(text, card):
        warnings.warn(
            f"The card in {repo_id} has lost {', '.join(lost)}, which may not be of these weights: scripts/publish.py "
            f"with {', '.join(lost.values())} writes a card that has them.",
            stacklevel=5,  # who called push_to_hub
        )
    write_text(file, card)


def model_card(folder: str | Path, options: CardOptions | None = None) -> str:
    """The card of a model or an adapter, as Markdown with its YAML head.

    Args:
        folder: as the scripts of this package or `save_pretrained` wrote it.

    Raises:
        ValueError: the folder holds no NeuroLM and no LaBraM, a file in it is damaged, or the results are of other
            weights.
    """
    options = options or CardOptions()
    model = read_model_folder(folder)
    title = (options.name or model.path.resolve().name).rpartition("/")[2]
    evaluation = None if options.results is None else _evaluation_of(model, options.results, title)
    sections = [
        f"# {plain_text(title)}\n",
        *_what_it_is(model, options),
        *_use(model, options),
        *_training(model),
        *_evaluation(model, evaluation),
        *_limits(model, evaluation),
        *_licence(model, options),
        _CITATION.format(_LABRAM_PAPER if model.is_labram else _NEUROLM_PAPER),
    ]
    head = _head(model, options, evaluation, title).to_yaml()
    text = f"---\n{head}\n---\n\n" + "\n".join(sections)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- Written by neurolm_hf from what was run; edited, it is left alone. sha256 {digest} -->\n"


def _head(model: ModelFolder, options: CardOptions, evaluation: "Evaluation | None", title: str) -> ModelCardData:
    """The YAML that the Hub reads."""
    tasks = [" ".join(str(task["name"]).split()).lower() for task in model.tasks]
    lora = [] if model.adapter is None else ["lora"]
    about: dict[str, Any] = {
        "library_name": "transformers" if model.adapter is None else "peft",
        "pipeline_tag": _HUB_TASKS[model.kind],
        "tags": list(dict.fromkeys(["eeg", "labram" if model.is_labram else "neurolm", *lora, *tasks, *options.tags])),
    }
    if options.licence is not None:
        about["license"] = hub_licence(options.licence)
    if base := _base_model(model, options):
        about["base_model"] = base
    if options.datasets:
        about["datasets"] = list(options.datasets)
    if evaluation is not None and (results := evaluation.card_data().eval_results):
        about |= {"model_name": title, "eval_results": results}
    return ModelCardData(**about)


def _what_it_is(model: ModelFolder, options: CardOptions) -> Iterator[str]:
    reading = _reading(model)
    what = {
        "answers": "answers questions about EEG",
        "features": "turns EEG into features and predicts its next codes. It was never tuned to answer questions",
        "tokenizer": "turns every second of every EEG channel into a token",
        "classifier": reading.what,
    }[model.kind]
    if model.is_labram and model.kind == "features":
        codes = " and predicts the codes of patches that are masked" if model.predicts_masked else ""
        what = f"turns EEG into features{codes}. It was never tuned for a task"
    paper = f"[LaBraM]({_LABRAM})" if model.is_labram else f"[NeuroLM]({_NEUROLM})"
    who = f"A neural tokenizer of {paper}" if model.is_neural_tokenizer else f"A {paper}"
    if model.adapter is not None:
        base = _base_model(model, options)
        of = f"`{base}`, a" if base is not None else "a"
        who = f"An adapter ({plain_text(str(model.adapter.get('peft_type', 'PEFT')))}) of {of} {paper}"
    yield f"{who} that {what}. {_sizes(model)}\n"
    if model.kind == "classifier" and (classes := model.config.get("id2label")):
        yield f"{reading.of}: {', '.join(plain_text(str(name)) for name in classes.values())}.\n"
    if model.kind == "answers" and model.tasks:
        rows = [
            [
                plain_text(str(one["name"])),
                plain_text(str(one["question"])),
                ", ".join(map(plain_text, one["answers"])),
            ]
            for one in model.tasks
        ]
        yield markdown_table(["task", "question", "answers"], rows)


def _reading(model: ModelFolder) -> "_Reading":
    return _READINGS[model.config.get("problem_type") or "single_label_classification"]


def _sizes(model: ModelFolder) -> str:
    count = model.parameters()
    numbers = f"It has {count:,} weights" if count else "Its weights are not in this folder"
    if model.adapter is not None or not model.config:
        return f"{numbers}."
    encoder = model.config.get("eeg_config", model.config)
    parts = [f"an EEG encoder of {encoder['num_hidden_layers']} layers, {encoder['hidden_size']} wide"]
    if (tokenizer := model.tokenizer_config) and tokenizer.get("has_codebook", True):
        parts.append(f"{tokenizer['codebook_size']:,} codes of {tokenizer['codebook_dim']} numbers")
    if text := model.config.get("text_config"):
        layers = text.get("n_layer", text.get("num_hidden_layers"))
        width = text.get("n_embd", text.get("hidden_size"))
        parts.append(f"a language model ({plain_text(text['model_type'])}) of {layers} layers, {width} wide")
    return f"{numbers}: {', '.join(parts)}."


def _use(model: ModelFolder, options: CardOptions) -> Iterator[str]:
    name = options.name or PLACEHOLDER
    yield "## Use\n"
    if options.name is None:
        yield f"With the path of this folder, or the repository's name, in place of `{PLACEHOLDER}`:\n"
    yield f"```python\n{_example(model, name, _base_model(model, options))}```\n"
    yield (
        "`recording.edf` stands for any file that [MNE](https://mne.tools) reads; an `mne.io.Raw` or a NumPy array "
        "with its channel names, rate and unit does as well. `trust_remote_code=True` runs the Python files of this "
        'repository: read them, and pin what you have read with `revision="..."`, a commit hash.\n'
    )


def _example(model: ModelFolder, name: str, base: str | None) -> str:
    """Code that opens the model and uses it, for `recording.edf` in the working directory."""
    name = _quoted(name)
    if model.kind == "answers":
        if model.config and PIPELINE in model.config.get("custom_pipelines", {}):
            task = f", task={_quoted(model.tasks[0]['name'])}" if model.tasks else _ANY_QUESTION
            return _ASK.format(name=name, task=task)
        if model.adapter is not None:
            return _ASK_ADAPTER.format(name=name, base=_quoted(base or "BASE"), question=_ANY_QUESTION)
    if model.kind == "features" and model.is_labram:
        return _FEATURES.format(name=name)
    if model.kind != "classifier":
        auto = "AutoModel" if model.is_neural_tokenizer else "AutoModelForCausalLM"
        order = ", all seconds of a channel, then of the next" if model.is_labram else ""
        return _TOKENS.format(name=name, auto=auto, order=order)
    # what stood behind the EEG in its training is to stand there again
    prompts = model.config.get("classifier_prompts")
    text = f"text={_quoted(prompts[0])}, " if prompts else ""
    module, auto = "transformers", "AutoModelForSequenceClassification"
    if model.adapter is not None:
        module, auto = "peft", "AutoPeftModelForSequenceClassification"
    return _CLASSIFY.format(name=name, module=module, auto=auto, text=text, reading=_reading(model))


def _training(model: ModelFolder) -> Iterator[str]:
    yield "## Training\n"
    if model.recipe is not None:
        recipe, window = model.recipe, model.recipe.get("window_seconds")
        read = f", and read in windows of {window:g} s unless a task says otherwise" if window else ""
        yield (
            f"Recordings in microvolts are {recipe_in_words(recipe)}{read}. The processor of this repository does so "
            "with whatever it is given.\n"
        )
    for one in model.origins():
        origin = plain_text(str(one.get("repository") or one.get("file") or "a file"))
        licence = f", licence {plain_text(str(one['licence']))}" if one.get("licence") else ""
        yield f"Weights were converted from {origin} (sha256 `{one['sha256']}`{licence}).\n"
    history = model.history()
    if not history:
        yield "Nothing is known here of how these weights were trained.\n"
    for step in history:
        yield from _training_step(step)
    if model.settings is not None and history:
        told = {_SETTINGS[name]: model.settings[name] for name in _SETTINGS if model.settings.get(name) is not None}
        if model.settings.get("lora"):
            told["rank of LoRA"] = (model.adapter or {}).get("r") or model.settings.get("lora_rank")
        said = ", ".join(f"{name} {plain_text(str(value))}" for name, value in told.items() if value is not None)
        if said:
            yield f"Settings of the last training: {said}.\n"
    yield from _validation(model.results or {})


def _training_step(step: Mapping[str, Any]) -> Iterator[str]:
    """One training: by what, from what, how long, on which windows of whom."""
    script = str(step["made_by"]).partition(" ")[0]
    yield f"### {plain_text(str(step.get('stage') or _STAGES.get(script, 'Training')))}\n"
    with_ = [plain_text(str(step["made_by"]))]
    with_ += [f"{plain_text(name)} {plain_text(str(number))}" for name, number in step.get("versions", {}).items()]
    said = [f"By {', '.join(with_)}"]
    if step.get("recipe"):
        said.append(f"by the recipe {plain_text(str(step['recipe']))}")
    if step.get("steps") is not None:
        epochs = f" ({step['epochs']:.3g} epochs)" if step.get("epochs") else ""
        said.append(f"{step['steps']:,} steps{epochs}")
    before = step.get("started_from") or {}
    starts = [str(before[name]) for name in ("model", "vq", "text_model") if isinstance(before.get(name), str)]
    # the path of a folder means nothing elsewhere, and may say whose it is
    named = ", ".join(plain_text(Path(one).name if Path(one).is_absolute() else one) for one in starts)
    if named or (before and not any(before.values())):
        learns_codes = script == "pretrain_masked.py" and before.get("model") is None
        start = f"random weights, to the codes of {named}" if learns_codes else named or "random weights"
        said.append(f"from {start}")
    yield f"{', '.join(said)}.\n"
    if step.get("recordings"):
        yield f"Recordings: {plain_text(str(step['recordings']))}.\n"
    data = [one for one in step.get("data", []) if isinstance(one, Mapping)]
    if not data:
        return
    columns = {
        "data": [plain_text(str(one.get("folder", ""))) for one in data],
        "task": [plain_text(str(one.get("task", ""))) for one in data],
        "subjects": [_count(one.get("subject_count", len(one.get("subjects", [])) or None)) for one in data],
        "hours": ["" if one.get("hours") is None else f"{one['hours']:,.2f}" for one in data],
        "windows": [_count(one.get("windows")) for one in data],
        "of seconds": ["" if one.get("window_seconds") is None else f"{one['window_seconds']:g}" for one in data],
        "mains": ["" if one.get("notch_hz") is None else f"{one['notch_hz']:g} Hz" for one in data],
        "licence of the recordings": [plain_text(str(one.get("licence") or "")) for one in data],
        "fingerprint": [plain_text(str(one.get("fingerprint", "")))[:12] for one in data],
    }
    known = {head: cells for head, cells in columns.items() if any(cells)}
    yield markdown_table(list(known), list(zip(*known.values(), strict=True)))
    montages = {", ".join(map(plain_text, one["channels"])) for one in data if one.get("channels")}
    if montages:
        yield f"Channels: {'; '.join(sorted(montages))}.\n"
    if any("channels" in one and one["channels"] is None for one in data):
        yield "Of sets that name no channels: all those of each recording that are in the vocabulary.\n"


def _validation(results: Mapping[str, Any]) -> Iterator[str]:
    """Figures that the training itself has seen."""
    if results.get("skipped_rows"):
        yield f"{len(results['skipped_rows']):,} windows could not be used and were left out.\n"
    figures = results.get("validation")
    if not figures:
        return
    chosen = ""
    if results.get("best_checkpoint"):
        chosen = ", by which the checkpoint was chosen: they flatter it"
    yield f"On the validation windows while training{chosen}; without intervals:\n"
    rows = [[plain_text(name.removeprefix("eval_")), f"{value:.4g}"] for name, value in sorted(figures.items())]
    yield markdown_table(["", "value"], rows)


def _evaluation(model: ModelFolder, evaluation: "Evaluation | None") -> Iterator[str]:
    yield "## Evaluation\n"
    if evaluation is None:
        yield (
            "No evaluation of these weights is at hand: how they do on people whom they were not trained on is not "
            "known.\n"
        )
        return
    yield evaluation.summary()


def _limits(model: ModelFolder, evaluation: "Evaluation | None") -> Iterator[str]:
    yield "## Limits\n"
    lines = ["It is a tool of research and no medical device: nothing that it says is a finding about a person."]
    if model.is_labram and model.kind != "classifier":
        lines.append("It was not tuned for any task: what it makes of EEG says nothing about a person by itself.")
    elif model.kind in ("features", "tokenizer"):
        lines.append("It was not tuned on any question: whatever it writes about EEG has no meaning.")
    elif model.kind == "answers" or _reading(model).of == "Classes":
        lines.append("Its probabilities are shares among its answers, whether or not one of them is true.")
    if model.history():
        lines.append(
            "It has learnt from the people, channels and mains named above: others may be read worse, and other "
            "devices too."
        )
    else:
        lines.append("From whom it has learnt is not known here: any test may hold people whom it knows.")
    if untrained := model.untrained_channels():
        lines.append(f"No training has moved its rows of these channels: {', '.join(map(plain_text, untrained))}.")
    if any(step.get("recordings") == "simulated" for step in model.history()):
        lines.append(
            "Some or all of the recordings that it has learnt from are simulated, and its figures may be of such ones "
            "too: they say nothing about the EEG of people."
        )
    results = evaluation.results if evaluation else []
    doubts = [doubt for result in results for one in result.models.values() for doubt in one.doubts]
    lines += [f"About its evaluation: {plain_text(doubt)}" for doubt in dict.fromkeys(doubts)]
    yield "".join(f"- {line}\n" for line in lines)


def _licence(model: ModelFolder, options: CardOptions) -> Iterator[str]:
    yield "## Licence\n"
    if options.licence is not None:
        yield f"Of the weights: {plain_text(options.licence)}.\n"
    else:
        yield "No licence was given for these weights: ask whoever published them.\n"
    if model.config:
        yield "The Python files are neurolm_hf's, under Apache-2.0.\n"


def _evaluation_of(model: ModelFolder, results: str | Path, title: str) -> "Evaluation":
    """What an evaluation found about these weights, by the card's name, whatever they were called there."""
    # they load what no other part of a card needs, and in the end this module
    from .evaluation_report import read_evaluation
    from .starting_models import describe_source

    evaluation = read_evaluation(results)
    if (name := evaluation.name_of(describe_source(str(model.path)))) is None:
        of = ", ".join(one.source.get("folder") or one.source["id"] for one in evaluation.models.values())
        raise ValueError(
            f"{results} is an evaluation of other weights ({of}) than those in {model.path}: evaluate these with "
            "scripts/evaluate_tasks.py."
        )
    return evaluation.alone(name, title)


def _base_model(model: ModelFolder, options: CardOptions) -> str | None:
    """Of an adapter: the Hub id of its model, None where only a folder of this machine is known."""
    base = options.base_model or model.base_model
    if base is None or Path(base).is_dir():
        return None
    return base if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else None


def _quoted(text: str) -> str:
    """A string as Python code, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


_ANY_QUESTION = ', question="Is this person asleep?", candidate_answers=["No", "Yes"]'

_ASK = """\
from transformers import pipeline

pipe = pipeline("eeg-question-answering", model={name}, trust_remote_code=True)
answers = pipe("recording.edf"{task})
print(answers[0])  # of the first window: start, end, answer, probabilities
"""

_ASK_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoProcessor

model = AutoPeftModelForCausalLM.from_pretrained({name}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({base}, trust_remote_code=True)
answers = model.as_pipeline(processor)("recording.edf"{question})
print(answers[0])  # of the first window: start, end, answer, probabilities
"""

_TOKENS = """\
from transformers import {auto}, AutoProcessor

processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)
model = {auto}.from_pretrained({name}, trust_remote_code=True)
codes = processor.tokenize_eeg("recording.edf", model, unknown_channels="drop")  # (windows, patches){order}
"""

_FEATURES = """\
import torch
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)
model = AutoModel.from_pretrained({name}, trust_remote_code=True)
inputs = processor(eeg="recording.edf", unknown_channels="drop", return_tensors="pt")
with torch.no_grad():
    features = model(**inputs).last_hidden_state[:, 1:]  # (windows, patches, width), behind that of the cls token
"""

_CLASSIFY = """\
import torch
from {module} import {auto}
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)
model = {auto}.from_pretrained({name}, trust_remote_code=True)
inputs = processor(eeg="recording.edf", {text}unknown_channels="drop", return_tensors="pt")
with torch.no_grad():
    {reading.name} = model(**inputs).logits{reading.made}  # (windows, {reading.last_axis})
print(model.config.id2label, {reading.name}[0])
"""


@dataclass(frozen=True)
class _Reading:
    """What a classifier's logits are.

    Attributes:
        what: it does.
        of: what its config names.
        name, made, last_axis: a variable for them, how that is made of them, and what its last axis is.
    """

    what: str
    of: str
    name: str
    made: str
    last_axis: str


_READINGS = {
    "single_label_classification": _Reading(
        "sorts windows of EEG into classes", "Classes", "probabilities", ".softmax(dim=-1)", "classes"
    ),
    "multi_label_classification": _Reading(
        "tells which labels windows of EEG have", "Labels", "probabilities", ".sigmoid()", "labels"
    ),
    "regression": _Reading("tells values from windows of EEG", "Values", "values", "", "values"),
}

_NEUROLM = "https://arxiv.org/abs/2409.00101"
_LABRAM = "https://arxiv.org/abs/2405.18765"

_CITATION = """\
## Citation

```bibtex
{}```
"""

_NEUROLM_PAPER = """\
@inproceedings{jiang2025neurolm,
  title = {{NeuroLM}: A Universal Multi-task Foundation Model for Bridging the Gap between Language and {EEG} Signals},
  author = {Jiang, Wei-Bang and Wang, Yansen and Lu, Bao-Liang and Li, Dongsheng},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  url = {https://arxiv.org/abs/2409.00101}
}
"""

_LABRAM_PAPER = """\
@inproceedings{jiang2024labram,
  title = {Large Brain Model for Learning Generic Representations with Tremendous {EEG} Data in {BCI}},
  author = {Jiang, Wei-Bang and Zhao, Li-Ming and Lu, Bao-Liang},
  booktitle = {International Conference on Learning Representations},
  year = {2024},
  url = {https://arxiv.org/abs/2405.18765}
}
"""
