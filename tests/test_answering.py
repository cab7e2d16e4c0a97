"""What is opened for an evaluation: models, adapters, splits of prepared sets; and what is refused or doubted."""

import dataclasses
import json

import pytest
import torch
from prepared_folders import write_prepared
from stage_folders import (
    write_language_model,
    write_other_recipe,
    write_sets,
    write_text_model,
    write_tokenizer,
    write_vq,
)
from test_lora import stir
from tiny_labram import labram_classifier

from neurolm_hf import (
    EEGFeatureExtractor,
    NeuroLMForCausalLM,
    NeuroLMProcessor,
    NeuroLMVQConfig,
    NeuroLMVQForSequenceClassification,
)
from neurolm_hf.answering import (
    Answering,
    Classifying,
    check_recipe,
    check_set,
    doubts_of_subjects,
    open_any,
    open_model,
    open_set,
)
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT
from neurolm_hf.published_protocol import PUBLISHED_WINDOWS
from neurolm_hf.scoring import score_rows
from neurolm_hf.starting_models import load_classifier
from neurolm_hf.storage import row_signal
from neurolm_hf.tasks import load_task


WORKLOAD, HMC = load_task("Workload"), load_task("HMC")
SPLITS = {"train": 4, "validation": 2, "test": 3}


def tune(folder, *tasks):
    """Lets a saved model or adapter say that it was tuned on tasks."""
    file = folder / "config.json"
    entries = [task.config_entry() for task in tasks]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": "instruction-tuned", "tasks": entries}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder."""
    root = tmp_path_factory.mktemp("answering")
    made = {"tokenizer": write_tokenizer(root / "tokenizer")}
    made["text"] = write_text_model(root / "text", made["tokenizer"])
    made["vq"] = write_vq(root / "vq")
    made["pretrained"] = write_language_model(root / "pretrained", made["vq"], made["text"])
    made["tuned"] = tune(write_language_model(root / "tuned", made["vq"], made["text"]), WORKLOAD)
    made["workload"] = write_sets(root / "workload", splits=SPLITS)
    made["corpus"] = write_sets(root / "corpus", "Corpus")
    made["rescaled"] = write_other_recipe(root / "rescaled")
    base = NeuroLMForCausalLM.from_pretrained(made["pretrained"])
    adapted = stir(add_adapter(base, made["pretrained"], lora_config(base)))
    made["bare"], made["adapter"] = root / "bare", root / "adapter"
    for name in ("bare", "adapter"):
        adapted.save_pretrained(made[name])
    # as scripts/instruction_tune.py leaves it
    base.config.save_pretrained(made["adapter"])
    NeuroLMProcessor.from_pretrained(made["pretrained"]).save_pretrained(made["adapter"])
    tune(made["adapter"], WORKLOAD)
    return made


def scores(folders, name):
    given, answering = open_set(str(folders["workload"])), open_model(str(folders[name]))
    return torch.stack([row for _, row in score_rows(answering.model, answering.processor, given.rows, WORKLOAD, 4)])


def test_an_adapter_opens_with_its_model(folders):
    base, adapted, bare = (scores(folders, name) for name in ("pretrained", "adapter", "bare"))
    assert not torch.allclose(base, adapted, atol=1e-3)
    torch.testing.assert_close(adapted, bare)
    assert not open_model(str(folders["adapter"])).model.training


def test_a_set_is_of_the_split_behind_its_colon(folders):
    folder = str(folders["workload"])
    sets = {split: open_set(f"{folder}:{split}") for split in SPLITS}
    assert {split: len(one.rows) for split, one in sets.items()} == {"train": 8, "validation": 4, "test": 6}
    assert open_set(folder).split == "test"
    assert {one.folder for one in sets.values()} == {folder}
    assert sets["test"].task == WORKLOAD


def test_the_published_protocol(folders, tmp_path, monkeypatch):
    folder = str(folders["workload"])
    assert open_set(folder).protocol.departures == ["the set has another number of windows"]
    monkeypatch.setitem(PUBLISHED_WINDOWS, "Workload", 18)
    given = open_set(folder)
    assert given.protocol.departures == []
    assert open_set(f"{folder}:validation").protocol.departures
    # it is the rows at hand that count
    assert dataclasses.replace(given, rows=given.rows.select([0])).protocol.departures
    own = write_prepared(tmp_path / "own", [("a.edf", "a", "test")], name="Mine")
    assert open_set(str(own)).protocol.departures


def test_sets_that_cannot_be_evaluated(folders, tmp_path):
    with pytest.raises(ValueError, match="prepared for Corpus, which asks nothing: evaluation needs a task"):
        open_set(str(folders["corpus"]))
    with pytest.raises(ValueError, match="no rows in split 'test'; splits with rows: train, validation"):
        open_set(str(write_sets(tmp_path / "set")))
    with pytest.raises(FileNotFoundError, match="holds no prepared recordings"):
        open_set(str(tmp_path / "absent"))


def test_windows_of_another_recipe_are_refused(folders):
    answering = open_model(str(folders["tuned"]))
    check_recipe(open_set(str(folders["workload"])), answering)
    with pytest.raises(ValueError, match=r"another recipe than that of .*tuned: scale 10.0 and 100.0.*--model"):
        check_recipe(open_set(f"{folders['rescaled']}:validation"), answering)


def test_doubts(folders):
    given, tuned = open_set(str(folders["workload"])), open_model(str(folders["tuned"]))
    asked = {task.name: dataclasses.replace(given, task=task) for task in (WORKLOAD, HMC)}
    assert tuned.doubts(asked["Workload"]) == []
    (doubt,) = tuned.doubts(asked["HMC"])
    assert doubt.endswith("was never tuned on this question; its tasks are Workload.")
    # it is the question that counts, not the name
    for change, doubts in (({"name": "Mine"}, 0), ({"question": "Question: Is it?"}, 1)):
        changed = dataclasses.replace(given, task=dataclasses.replace(WORKLOAD, **change))
        assert len(tuned.doubts(changed)) == doubts
    assert open_model(str(folders["adapter"])).doubts(given) == []
    (doubt,) = open_model(str(folders["bare"])).doubts(given)
    assert doubt.endswith("does not say which tasks it was tuned on.")
    (doubt,) = open_model(str(folders["pretrained"])).doubts(given)
    assert doubt.endswith("was never instruction-tuned: its answers mean nothing.")


def test_subjects_whom_the_model_was_tuned_on(folders):
    given, tuned = open_set(str(folders["workload"])), open_model(str(folders["tuned"]))
    for task, subjects, doubts in (
        ("Workload", ["train0", "test2", "test0"], 1),
        ("Workload", ["train0"], 0),
        ("HMC", ["train0"], 0),
    ):
        tuned.config.provenance = {"data": [{"task": task, "subjects": subjects}]}
        assert len(tuned.doubts(given)) == doubts
    tuned.config.provenance = {"data": [{"task": "Workload", "subjects": ["test2", "test0"]}]}
    assert tuned.doubts(given)[0] == "The model was trained on 2 of these subjects."
    # trained on before that
    tuned.config.provenance = {"data": [], "started_from": {"provenance": tuned.config.provenance}}
    assert tuned.doubts(given)[0] == "The model was trained on 2 of these subjects."
    # a published model may keep the names to itself
    tuned.config.provenance = {"data": [{"task": "Workload", "subject_count": 3}]}
    assert tuned.doubts(given)[0].startswith("The model does not name the subjects of Workload")


def test_subjects_of_other_sets_and_of_the_neural_tokenizer(folders):
    given, tuned = open_set(str(folders["workload"])), open_model(str(folders["tuned"]))
    data = [{"task": "Corpus", "subjects": ["test0", "test1"]}, {"task": "Workload", "subjects": ["test1"]}]
    tuned.config.provenance = {"data": data[:1]}
    (doubt,) = tuned.doubts(given)
    assert doubt == (
        "The model was trained on sets of Corpus that share 2 names of subjects with this one: they may be the same "
        "people."
    )
    tuned.config.provenance = None
    tuned.config.eeg_config.provenance = {"data": data}
    certain, possible = tuned.doubts(given)
    assert certain == "The model was trained on 1 of these subjects."
    assert "share 1 names of subjects" in possible
    # a tokenizer by itself; subjects of the Temple University are the same in all of its corpora
    named = given.rows.map(lambda row: {**row, "subject": "aaaaabcd"}).with_format("numpy")
    config = NeuroLMVQConfig(provenance={"data": [{"task": "TUEG", "subjects": ["aaaaabcd"]}]})
    (doubt,) = doubts_of_subjects(config, dataclasses.replace(given, rows=named))
    assert doubt == "The model was trained on 1 of these subjects."


def test_what_answers_nothing(folders, tmp_path):
    for name, message in (("vq", "is a neurolm_vq, which answers nothing"), ("text", "is a gpt2, which answers")):
        with pytest.raises(ValueError, match=message):
            open_model(str(folders[name]))
    with pytest.raises(ValueError, match=r"holds no model: there is no config\.json"):
        open_model(str(tmp_path))
    classifier = write_language_model(tmp_path / "classifier", folders["vq"], folders["text"])
    file = classifier / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["NeuroLMForSequenceClassification"]}))
    with pytest.raises(ValueError, match="is a NeuroLMForSequenceClassification, which reads no questions"):
        open_model(str(classifier))


# Classifiers -----------------------------------------------------------------------------------------


def write_classifier(folder, source, provenance=None, prompts=None):
    """A classifier of Workload whose head is not at its start, on a neural tokenizer or a language model."""
    torch.manual_seed(1)
    model, processor = load_classifier(str(source), WORKLOAD.classes)
    torch.nn.init.normal_(model.score.weight)
    model.config.provenance = provenance
    if prompts is not None:
        model.config.classifier_prompts = prompts
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folders, tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("of-vq"), folders["vq"])


def logits_of(model, processor, rows, with_question=False):
    """Of all rows in one batch."""
    batch = ClassificationCollator(processor, with_question, WORKLOAD)([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        return model(**{name: values for name, values in batch.items() if name not in ("rows", "labels")}).logits


def scored(answering, given):
    return torch.stack(list(answering.score(given.rows, given.task, 4)))


def test_a_language_model_and_a_classifier_open_alike(folders, classifier):
    given = open_set(str(folders["workload"]))
    for name in ("tuned", "adapter", "bare"):
        opened = open_any(str(folders[name]), WORKLOAD)
        assert (type(opened), opened.kind) == (Answering, "answers")
        torch.testing.assert_close(scored(opened, given), scores(folders, name))
    opened = open_any(str(classifier), WORKLOAD)
    assert (type(opened), opened.kind, opened.model.training) == (Classifying, "classifier", False)
    expected = logits_of(opened.model, opened.processor, given.rows)
    assert expected.shape == (6, 2)
    assert expected.std(0).min() > 1e-3
    torch.testing.assert_close(scored(opened, given), expected)
    for source, message in ((folders["text"], "is a gpt2, which answers"), ("/absent", "is no folder here")):
        with pytest.raises(ValueError, match=message):
            open_any(str(source), WORKLOAD)


def test_a_head_is_asked_as_it_was_trained(folders, tmp_path):
    given = open_set(str(folders["workload"]))
    asked, silent, unknown = (
        open_any(str(write_classifier(tmp_path / name, folders["pretrained"], prompts=prompts)), WORKLOAD)
        for name, prompts in (("asked", [WORKLOAD.prompt()]), ("silent", []), ("unknown", None))
    )
    for opened, with_question in ((asked, True), (silent, False), (unknown, False)):
        expected = logits_of(opened.model, opened.processor, given.rows, with_question)
        torch.testing.assert_close(scored(opened, given), expected)
    assert not torch.allclose(scored(asked, given), scored(silent, given), atol=1e-3)
    said = [any("whether it was trained with a question" in doubt for doubt in one.doubts(given)) for one in
            (asked, silent, unknown)]  # fmt: skip
    assert said == [False, False, True]
    other = dataclasses.replace(WORKLOAD, question="Question: Is there effort?")
    with pytest.raises(ValueError, match=r"asked was trained with .*workload.* behind the EEG, not with .*effort"):
        asked.check_task(other)
    silent.check_task(other)


def test_an_adapter_of_a_classifier(folders, tmp_path):
    torch.manual_seed(1)
    base, processor = load_classifier(str(folders["pretrained"]), WORKLOAD.classes, "mean")
    base.config.classifier_prompts = [WORKLOAD.prompt()]
    adapted = stir(add_adapter(base, folders["pretrained"], lora_config(base)))
    adapted.save_pretrained(tmp_path)
    base.config.save_pretrained(tmp_path)
    merged, given = adapted.merge_and_unload().eval(), open_set(str(folders["workload"]))
    opened = open_any(str(tmp_path), WORKLOAD)
    torch.testing.assert_close(scored(opened, given), logits_of(merged, processor, given.rows, True))


def test_one_output_is_the_second_of_two_answers(folders):
    given = open_set(str(folders["workload"]))
    config = NeuroLMVQConfig.from_pretrained(
        folders["vq"], num_labels=1, id2label={0: "Yes"}, problem_type="multi_label_classification"
    )
    torch.manual_seed(2)
    model = NeuroLMVQForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)
    opened = Classifying("one", model, NeuroLMProcessor.from_pretrained(folders["vq"]), config)
    positive = torch.sigmoid(logits_of(model, opened.processor, given.rows)[:, 0])
    expected = torch.stack([1 - positive, positive], dim=1)
    torch.testing.assert_close(scored(opened, given).softmax(1), expected)
    opened.check_task(WORKLOAD)
    for name, fits in (("LABEL_0", True), ("No", False)):
        config.id2label = {0: name}
        if fits:
            opened.check_task(WORKLOAD)
        else:
            with pytest.raises(ValueError, match="one is a classifier of No; Workload is answered by No, Yes"):
                opened.check_task(WORKLOAD)


def write_labram(folder, provenance=None, **labels):
    """A LaBraM that classifies, behind the recipe of `write_sets`."""
    labels = labels or {"id2label": {0: "No", 1: "Yes"}, "label2id": {"No": 0, "Yes": 1}}
    labram_classifier(provenance=provenance, **labels).save_pretrained(folder)
    NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50, **LABRAM_LAYOUT)).save_pretrained(folder)
    return folder


ONE_LOGIT = {"num_labels": 1, "id2label": {0: "Yes"}, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize("labels", [{}, ONE_LOGIT], ids=["two classes", "one logit"])
def test_a_labram_reads_the_same_windows_channel_after_channel(folders, tmp_path, labels):
    given = open_set(str(folders["workload"]))
    opened = open_any(str(write_labram(tmp_path, **labels)), WORKLOAD)
    check_set(given, opened)
    found = scored(opened, given).softmax(1)
    assert found.std(0).min() > 1e-4
    ids = torch.tensor([[1 + CHANNEL_VOCABULARY.index(name)] * 4 for name in ("FP1", "FP2")]).reshape(1, 8)
    for row, probabilities in zip(given.rows, found, strict=True):
        patches = torch.from_numpy(row_signal(row)).reshape(1, 8, 200)
        with torch.no_grad():
            logits = opened.model(patches, ids, torch.arange(4).repeat(2)[None]).logits[0]
        expected = torch.stack([1 - logits[0].sigmoid(), logits[0].sigmoid()]) if labels else logits.softmax(0)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_what_a_labram_cannot_read(folders, tmp_path):
    given, opened = open_set(str(folders["workload"])), open_any(str(write_labram(tmp_path)), WORKLOAD)
    name = CHANNEL_VOCABULARY[LABRAM_LAYOUT["known_channels"]]
    for change, message in (
        (lambda row: {"channels": ["FP1", name]}, f"test-1\\.edf at 0 s .* has no row for {name}"),
        (lambda row: {"signal": [*row["signal"]] * 5}, r"test-1\.edf at 0 s .* 20 s, and this model reads 16 s"),
    ):
        rows = given.rows.map(
            lambda row, place, change=change: row | (change(row) if place > 1 else {}), with_indices=True
        )
        with pytest.raises(ValueError, match=f"cannot read all windows of .*workload: {message}"):
            check_set(dataclasses.replace(given, rows=rows.with_format("numpy")), opened)


def test_classes_that_are_not_the_answers(folders, classifier):
    with pytest.raises(ValueError, match=r"is a classifier of No, Yes; these sets have \(A\), \(B\)"):
        open_any(str(classifier), HMC)
    opened, given = open_any(str(classifier), WORKLOAD), open_set(str(folders["workload"]))
    check_set(given, opened)
    with pytest.raises(ValueError, match=r"is a classifier of No, Yes; HMC is answered by"):
        check_set(dataclasses.replace(given, task=HMC), opened)


def test_doubts_of_a_classifier(folders, classifier):
    given, opened = open_set(str(folders["workload"])), open_any(str(classifier), WORKLOAD)
    assert opened.doubts(given) == ["The model does not say which tasks it was trained on."]
    opened.config.provenance = {"data": [{"task": "Workload", "subjects": ["train0", "test0"]}]}
    assert opened.doubts(given) == ["The model was trained on 1 of these subjects."]
    opened.config.provenance = {"data": [{"task": "Mine", "subjects": []}]}
    assert opened.doubts(given) == ["The model was never trained on Workload, but on Mine."]
    # a released one
    opened.config.provenance = {"labram": {}, "untrained_channels": ["A1", "FP2"]}
    assert opened.doubts(given)[1:] == ["No training has moved the model's rows of the channels FP2."]
    # a LaBraM keeps the tokenizer whose codes it has learnt to predict
    opened.config.vq_config = NeuroLMVQConfig(provenance={"data": [{"task": "Workload", "subjects": ["test1"]}]})
    assert opened.doubts(given)[2:] == ["The model was trained on 1 of these subjects."]


def test_a_window_that_a_model_cannot_read_is_told_before_the_others_are_scored(folders, classifier, monkeypatch):
    given, opened = open_set(str(folders["workload"])), open_any(str(classifier), WORKLOAD)
    read = []
    score = Classifying.score

    def noted(self, rows, *given):
        read.extend((row["recording"], len(row["channels"])) for row in rows)
        return score(self, rows, *given)

    monkeypatch.setattr(Classifying, "score", noted)
    check_set(given, opened)
    # one of each montage and length, here all alike
    assert read == [("test-0.edf", 2)]
    longer = given.rows.map(
        lambda row, place: {**row, "signal": [*row["signal"], *row["signal"]]} if place == 3 else row,
        with_indices=True,
    )
    opened.model.encoder.config.max_seconds = 6
    message = (
        r"cannot read all windows of .*workload: test-1\.edf at 4 s \(test1\): A segment of 8 .* Leave this model out"
    )
    with pytest.raises(ValueError, match=message):
        check_set(dataclasses.replace(given, rows=longer.with_format("numpy")), opened)
    assert read[1:] == [("test-0.edf", 2), ("test-1.edf", 2)]
