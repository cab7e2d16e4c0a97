"""The demo in a few steps, its outputs, its errors, and the README, whose blocks run on what it leaves."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from documents import blocks_of, commands_of, run_command, run_python
from transformers import AutoModelForCausalLM

from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.report import CAPTIONS
from neurolm_hf.simulation import CHANNEL_NAMES, SAMPLING_RATE, simulate_recordings
from neurolm_hf.tasks import load_task


ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FEW_STEPS = [
    "--subjects",
    "4",
    "--tokenizer-steps",
    "6",
    "--pretraining-steps",
    "3",
    "--instruction-steps",
    "3",
    "--batch-size",
    "8",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo ran, as a user's clone would look after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--output", "demo-output", *FEW_STEPS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Balanced accuracy +0\.\d+ ", done.stdout)
    assert "AUROC" in done.stdout
    return folder


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["demo"] = module
    specification.loader.exec_module(module)
    return module


def test_metrics(folder: Path) -> None:
    metrics = json.loads((folder / "demo-output/metrics.json").read_text())
    for name in ("balanced_accuracy", "auroc", "baseline_balanced_accuracy", "baseline_auroc"):
        assert 0 <= metrics[name] <= 1
    assert metrics["chance"] == 0.5
    assert set(metrics["split"]["train"]).isdisjoint(metrics["split"]["test"])
    assert sorted(metrics["split"]["train"] + metrics["split"]["test"]) == [f"Subject{i:02d}" for i in range(4)]
    assert metrics["counts"] == {"train": {"No": 87, "Yes": 87}, "test": {"No": 29, "Yes": 29}}


def test_report(folder: Path) -> None:
    page = (folder / "demo-output/report/index.html").read_text()
    for name in CAPTIONS:
        assert (folder / f"demo-output/report/{name}.png").stat().st_size > 5000
        assert CAPTIONS[name].split(".")[0].split("“")[0][:30] in page


def test_model_records_what_it_has_been_through(folder: Path) -> None:
    trained_on = json.loads((folder / "demo-output/metrics.json").read_text())["split"]["train"]
    for name in ("base", "model", "adapter"):
        card = (folder / "demo-output" / name / "README.md").read_text()
        assert "demo.py of neurolm_hf" in card
        training, limits = card.split("## Training")[1].split("## Evaluation")
        stages = ["Neural tokenizer", "Pre-training", *(["Instruction tuning"] if name != "base" else [])]
        assert re.findall(r"^### (.*)", training, re.MULTILINE) == stages
        assert training.count("Recordings: simulated.") == len(stages)
        for number in (6, 3):
            assert f", {number} steps" in training
        for column in ("subjects", "hours", "windows", "of seconds", "mains"):
            assert f"| {column} |" in training
        assert "it has learnt from are simulated" in limits
    base = AutoModelForCausalLM.from_pretrained(folder / "demo-output/base", trust_remote_code=True)
    tuned = AutoModelForCausalLM.from_pretrained(folder / "demo-output/model", trust_remote_code=True)
    assert base.config.stage == "pretrained"
    assert tuned.config.stage == "instruction-tuned"
    assert tuned.config.tasks == [load_task("Workload").config_entry()]
    for model in (base, tuned):
        assert model.config.provenance["recordings"] == "simulated"
        assert model.config.provenance["data"][0]["subjects"] == trained_on
        assert model.config.eeg_config.provenance["data"][0]["subjects"] == trained_on
    (dense,) = tuned.config.provenance["data"]
    assert dense["windows"] > 174
    assert (dense["folder"], dense["window_seconds"], dense["notch_hz"], tuned.config.provenance["steps"]) == (
        "dense",
        4,
        50,
        3,
    )
    assert dense["hours"] > 0
    assert "channels" in dense
    assert tuned.model.eeg_encoder.quantizer.initialized


def test_adapter_on_the_base_is_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoProcessor

    monkeypatch.chdir(folder)  # the adapter names its base as the demo was told to write it
    adapted = AutoPeftModelForCausalLM.from_pretrained("demo-output/adapter", trust_remote_code=True).eval()
    model = AutoModelForCausalLM.from_pretrained("demo-output/model", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained("demo-output/model", trust_remote_code=True)
    recording = "demo-output/recordings/Subject01_1.edf"
    inputs = processor(eeg=recording, text=load_task("Workload").prompt(), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    assert not any("eeg_encoder" in name for name, _ in adapted.named_parameters() if "lora" in name)


def test_readme_runs_from_top_to_bottom(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, and its commands but git and make."""
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    printed, commands = "", 0
    for block in blocks_of(README):
        if block.language == "python":
            printed += run_python(block, README, namespace)
        for command in commands_of(block) if block.language == "console" else ():
            printed += run_command(command, folder)
            commands += 1
    assert namespace["answers"][-1]["end"] == 64
    assert namespace["codes"].shape == (16, 76)  # 64 s in windows of 4 s, 19 channels
    assert namespace["codes"].min() >= 0
    assert printed.startswith("{'start': 0.0, 'end': 4.0, 'answer': ")
    assert "60-64" in printed
    assert commands == 6
    assert (folder / "recording-report/index.html").is_file()
    assert json.loads((folder / "results/results.json").read_text())


def test_readme_names_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two subjects' recordings, to be spoilt."""
    simulate_recordings(tmp_path / "recordings", subjects=2, seconds=40)
    return tmp_path / "recordings"


def write_edf(path: Path, signal_uv: np.ndarray, names: tuple[str, ...] = CHANNEL_NAMES, unit: str = "uV") -> None:
    """An EDF whose header says `unit`, whatever the numbers are."""
    from edfio import Edf, EdfSignal

    signals = [
        EdfSignal(values, sampling_frequency=SAMPLING_RATE, label=name, physical_dimension=unit)
        for name, values in zip(names, signal_uv, strict=True)
    ]
    path.unlink()
    Edf(signals).write(path)


def spoil(path: Path, how: str) -> None:
    rng = np.random.default_rng(0)
    microvolts = rng.normal(scale=20, size=(len(CHANNEL_NAMES), 40 * SAMPLING_RATE))
    if how == "text":
        path.write_text("This is not a recording.\n" * 40)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-50_000])
    elif how == "volts":
        write_edf(path, microvolts * 1e-6)
    elif how == "unknown":
        write_edf(path, microvolts, names=("XYZ9", *CHANNEL_NAMES[1:]))
    elif how == "flat":
        write_edf(path, np.zeros_like(microvolts) + 1e-9 * rng.normal(size=microvolts.shape))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "Subject01_2.edf"),
        ("truncated", "Subject01_2.edf.*(cut short|truncated|shorter|size)"),
        ("volts", "Subject01_2.edf.*unit"),
        ("unknown", "Subject01_2.edf.*XYZ9"),
    ],
)
def test_bad_recording_is_named(demo: ModuleType, good: Path, tmp_path: Path, how: str, message: str) -> None:
    spoil(good / "Subject01_2.edf", how)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        demo.main(demo.DemoArguments(output=tmp_path / "out", recordings=good))


def test_nan_is_named() -> None:
    signal = np.random.default_rng(0).normal(scale=20, size=(2, 1000))
    signal[1, 450] = np.nan
    with pytest.raises(ValueError, match=r"C4.*2\.25"):
        EEGFeatureExtractor()(signal, ch_names=["C3", "C4"], sampling_rate=200, unit="uV")


@pytest.mark.parametrize("given", ["empty", "missing", "file"])
def test_command_ends_in_one_line_not_a_trace(tmp_path: Path, given: str) -> None:
    recordings = tmp_path / "recordings"
    if given == "empty":
        recordings.mkdir()
    elif given == "file":
        recordings.write_text("")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/demo.py", "--output", tmp_path / "out", "--recordings", recordings],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(recordings) in last


def test_output_that_is_not_the_demo_s_is_left_alone(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        demo.main(demo.DemoArguments(output=tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_earlier_output_is_replaced(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old.txt").write_text("old")
    demo.prepare_output(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_learns(tmp_path: Path) -> None:
    """The demo as `make demo` runs it, on its own recordings: the figure that the issue of the demo asks for."""
    subprocess.run(
        [sys.executable, ROOT / "scripts/demo.py", "--output", tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["balanced_accuracy"] >= 0.9
    assert metrics["auroc"] >= 0.95
