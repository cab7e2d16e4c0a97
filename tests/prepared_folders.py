"""Small prepared sets for the tests, written as `prepare_data` writes them, without recordings."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from neurolm_hf import EEGFeatureExtractor
from neurolm_hf.storage import STORAGE, ShardWriter, encode_row
from neurolm_hf.tasks import load_task


def write_shard(rows, path, task):
    """Rows from `encode_row` as a shard."""
    writer = ShardWriter(path, task)
    for row in rows:
        writer.add(row)
    writer.commit()


def write_prepared(folder, recordings, task="Workload", name=None, **changes):
    """A prepared set of two windows a recording.

    `recordings` holds (key, subject, split) or (key, subject, split, fields of its entry in the summary).
    """
    folder, task = Path(folder), load_task(task)
    recipe = EEGFeatureExtractor(notch_frequency=task.notch_hz or 50)
    channels = ["FP1", "FP2"]
    entries, subjects, windows = {}, {}, {}
    for index, (key, subject, split, *more) in enumerate(recordings):
        signal = np.random.default_rng(index).normal(size=(2, 800))
        answer = task.classes[index % len(task.classes)] if task.classes else None
        of_row = {"sampling_rate": 200, "unit": "100uV", "subject": subject, "recording": key}
        rows = [
            encode_row(signal, channels, **of_row, start=start, recipe_id=recipe.recipe_id, task=task, answer=answer)
            for start in (0.0, 4.0)
        ]
        write_shard(rows, folder / "data" / split / f"{index}.parquet", task)
        entry = entries.setdefault(key, {"recording": key, "subject": subject, "windows": {}})
        entry["sha256"] = hashlib.sha256(f"{folder} {key}".encode()).hexdigest()
        entry |= {"bytes": 1000 + index, "hours": 0.5, "left_out": [], "warnings": [], "error": None}
        entry |= more[0] if more else {}
        entry["windows"][split] = 2
        subjects.setdefault(split, set()).add(subject)
        windows[split] = windows.get(split, 0) + 2
    preparation = {
        "neurolm_hf": "0.1.0",
        "task": name or task.name,
        "task_file": asdict(task) | {"name": name or task.name},
        "recipe": recipe.recipe,
        "recipe_id": recipe.recipe_id,
        "storage": STORAGE,
        "split_rule": "published",
        "shares": None,
        "seed": 0,
    }
    splits = [split for split in ("train", "validation", "test") if split in windows]
    summary = {
        "files": [entries[key] for key in sorted(entries)],
        "windows": {split: windows[split] for split in splits},
        "hours": {split: windows[split] * 4 / 3600 for split in splits},
        "subjects": {split: len(subjects[split]) for split in splits},
        "missing": [],
        "notes": [],
        "fingerprint": "f" * 64,
    }
    summary |= changes
    (folder / "preparation.json").write_text(json.dumps(preparation))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
