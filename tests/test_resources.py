import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import BACKBONES, EEG, language_model, lm_batch, vq_batch, vq_model
from transformers import TrainingArguments

from neurolm_hf import resources
from neurolm_hf.resources import check_resources, disk_needed, free_memory, memory_needed


def arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(output_dir),
            "use_cpu": True,
            "report_to": [],
            "per_device_train_batch_size": 2,
            **changes,
        }
    )


def lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*c_attn", fan_in_fan_out=True))


def kept_for_gradients(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of everything that a forward pass keeps for the backward pass, weights apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.train()(**batch)
    return sum(kept.values())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("adapted", [False, True])
def test_activations_are_a_lower_bound(tmp_path: Path, backbone: str, adapted: bool) -> None:
    model = language_model(backbone)
    if adapted:
        targets = r".*language_model.*\.(c_attn|c_fc|q_proj|k_proj|v_proj|up_proj|gate_proj)"
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=backbone == "gpt2"))
    batch = lm_batch([[EEG((1, 2, 3, 4), 8, seed=1)], [EEG((1, 2, 3, 4), 8, seed=2)]])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    bound = memory_needed(model, arguments(tmp_path), longest_row=32)["activations"]
    kept = kept_for_gradients(model, {**batch, "labels": labels})
    assert 0.1 * kept < bound < kept if not adapted else 0 < bound < kept


def test_activations_of_the_tokenizer_are_a_lower_bound(tmp_path: Path) -> None:
    model = vq_model()
    bound = memory_needed(model, arguments(tmp_path), longest_row=24)["activations"]
    kept = kept_for_gradients(model, vq_batch(*(EEG((1, 2, 3), 8, seed=seed) for seed in range(2))))
    # two rows of 24 patches: 2 encoder and 2 decoder layers with inputs of 32, 32 and 128 numbers of 4 bytes
    assert bound == 2 * 24 * 4 * (32 + 32 + 128) * 4
    assert bound < kept


def test_memory_is_counted_by_what_is_trained(tmp_path: Path) -> None:
    model = language_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = memory_needed(model, arguments(tmp_path), longest_row=10)
    assert needed == {
        "weights": 0,  # they are in this memory already
        "gradients": 4 * trained,
        "optimiser": 8 * trained,
        # two layers: attention 32, then 32 and 128
        "activations": 2 * 10 * 2 * (32 + 32 + 128) * 4,
    }
    assert trained < sum(p.numel() for p in model.parameters())
    assert memory_needed(model, arguments(tmp_path, optim="sgd"), 10)["optimiser"] == 0
    assert memory_needed(model, arguments(tmp_path, bf16=True), 10)["activations"] == needed["activations"] // 2
    checkpointed = memory_needed(model, arguments(tmp_path, activation_checkpointing=True), 10)
    assert checkpointed["activations"] == 2 * 10 * 2 * 32 * 4
    adapters = memory_needed(lora(model), arguments(tmp_path), 10)
    # two layers of A (2, 32) and B (96, 2)
    assert adapters["gradients"] == 4 * 2 * (2 * 32 + 96 * 2)
    assert adapters["optimiser"] == 2 * adapters["gradients"]


def test_weights_that_must_be_moved_count(tmp_path: Path) -> None:
    model = language_model().to("meta")
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert memory_needed(model, arguments(tmp_path), 10)["weights"] == size


def test_memory_that_cannot_suffice_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = language_model(), arguments(tmp_path, save_strategy="no")
    needed = sum(memory_needed(model, args, 10).values())
    monkeypatch.setattr(resources, "free_memory", lambda device: needed)
    check_resources(model, args, longest_row=10, steps=5)
    monkeypatch.setattr(resources, "free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match="needs at least") as caught:
        check_resources(model, args, longest_row=10, steps=5)
    message = str(caught.value)
    assert f"at least {needed / 1e9:.3g} GB on cpu, and {(needed - 1) / 1e9:.3g} GB are free" in message
    assert "2 rows of 10 tokens" in message
    for remedy in ("per_device_train_batch_size", "gradient_accumulation_steps", "activation_checkpointing", "LoRA"):
        assert remedy in message
    one = arguments(tmp_path, per_device_train_batch_size=1, activation_checkpointing=True)
    monkeypatch.setattr(resources, "free_memory", lambda device: 0)
    with pytest.raises(ValueError, match="To fit: tune with LoRA"):
        check_resources(model, one, longest_row=10, steps=5)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"save_strategy": "no"}, 1),
        ({"save_strategy": "steps", "save_steps": 30}, 4),
        ({"save_strategy": "steps", "save_steps": 0.25}, 4),
        ({"save_strategy": "steps", "save_steps": 30, "save_total_limit": 2}, 3),
        ({"save_strategy": "steps", "save_steps": 60, "save_total_limit": 2}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 7}, 7),
    ],
)
def test_checkpoints_that_exist_at_once(tmp_path: Path, changes: dict, count: int) -> None:
    assert disk_needed(language_model(), arguments(tmp_path, **changes), steps=100)[1] == count


@pytest.mark.parametrize("adapted", [False, True])
def test_a_checkpoint_is_as_large_as_it_is_said_to_be(tmp_path: Path, adapted: bool) -> None:
    model = lora(language_model()) if adapted else language_model()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    written = sum(file.stat().st_size for file in tmp_path.iterdir() if file.suffix in (".safetensors", ".pt"))
    said, _ = disk_needed(model, arguments(tmp_path), steps=1)
    assert 0.2 * written < said < written


def test_disk_that_cannot_suffice_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model()
    args = arguments(tmp_path / "not" / "there", save_steps=10, save_total_limit=2)
    checkpoint, count = disk_needed(model, args, steps=100)
    final = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    needed = 3 * checkpoint + final
    assert count == 3
    usage, free = shutil.disk_usage(tmp_path), [needed]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    check_resources(model, args, longest_row=10, steps=100)
    free[0] = needed - 1
    with pytest.raises(ValueError, match="3 at once") as caught:
        check_resources(model, args, longest_row=10, steps=100)
    assert f"{needed / 1e9:.3g} GB more" in str(caught.value)
    assert "save_total_limit" in str(caught.value)
    # what is there already will make room
    (tmp_path / "not" / "there" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "not" / "there" / "checkpoint-5" / "model.safetensors").write_bytes(b"m")
    check_resources(model, args, longest_row=10, steps=100)


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(tmp_path: Path, version: int) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    base = tmp_path / "memory" if version == 1 else tmp_path
    limit, usage, reclaimable = names[version]
    unlimited = "9223372036854771712" if version == 1 else "max"
    for folder, most, used in (
        (base, unlimited, 9),
        (base / "job", "1000", 700),
        (base / "job" / "step", "5000", 600),
    ):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{reclaimable} 50\n")
    membership = tmp_path / "cgroup"
    membership.write_text("9:name=systemd:/\n4:cpu,memory:/job/step\n" if version == 1 else "0::/job/step\n")
    free = resources._control_group_free(tmp_path, membership)
    assert min(free) == 1000 - 700 + 50
    assert 5000 - 600 + 50 in free
    # a container sees its own group at the root, whatever its name is outside
    membership.write_text("4:memory:/outside\n" if version == 1 else "0::/outside\n")
    assert all(left > 10**15 for left in resources._control_group_free(tmp_path, membership))
    assert resources._control_group_free(tmp_path, tmp_path / "missing") == []


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(torch.device("cpu"))
    assert alone > 10**7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)
