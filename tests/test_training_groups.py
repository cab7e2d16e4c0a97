"""Layer-wise learning-rate decay and label smoothing: what the optimiser and a classifier get from the trainer."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_trainings import arguments
from tiny import vq_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from neurolm_hf.recipes import StageTrainingArguments
from neurolm_hf.training import NeuroLMTrainer


PARITY = Path(__file__).parent / "parity" / "labram"
WINDOWS = [{"values": torch.randn(6, generator=torch.Generator().manual_seed(n)), "labels": n % 3} for n in range(6)]


class Layered(nn.Module):
    """A classifier of three depths, which notes how it was smoothed."""

    def __init__(self, problem_type: str | None = "single_label_classification") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(problem_type=problem_type, codebook_size=1)
        self.embedding = nn.Linear(6, 8)
        self.block = nn.Linear(8, 8)
        self.table = nn.Embedding(2, 8)
        self.table.requires_grad_(False)
        self.score = nn.Linear(8, 3)
        self.smoothed: list[tuple[bool, float]] = []

    depths = 3

    def parameter_depth(self, name: str) -> int:
        return {"embedding": 0, "block": 1}.get(name.partition(".")[0], 2)

    def no_weight_decay(self, name: str) -> bool:
        return name.endswith("bias") or name.startswith("embedding")

    def count_loss_items(self, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([len(labels)]).float()

    def forward(
        self, values: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, smoothing: float = 0.0
    ) -> SequenceClassifierOutput:
        self.smoothed.append((self.training, smoothing))
        logits = self.score(self.block(self.embedding(values)).tanh())
        losses = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch[0]
        output = SequenceClassifierOutput(loss=losses.sum() / count, logits=logits)
        output["sample_losses"] = losses.detach()
        return output


def trainer_of(model: Any, folder: Path, layer_decay: float | None = None, **changes: Any) -> NeuroLMTrainer:
    return NeuroLMTrainer(
        model=model,
        args=arguments(folder, max_steps=4, weight_decay=0.1, **changes),
        train_dataset=WINDOWS,
        eval_dataset=WINDOWS,
        layer_decay=layer_decay,
    )


def test_each_depth_has_its_rate_and_follows_the_schedule(tmp_path: Path) -> None:
    model = Layered()
    trainer = trainer_of(model, tmp_path, 0.5, learning_rate=0.8, lr_scheduler_type="linear", warmup_steps=2)
    trainer.create_optimizer_and_scheduler(10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def rates() -> dict[str, tuple[float, float]]:
        groups = trainer.optimizer.param_groups
        return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    # the table is frozen
    scales = {
        "embedding.weight": (0.25, 0.0),
        "embedding.bias": (0.25, 0.0),
        "block.weight": (0.5, 0.1),
        "block.bias": (0.5, 0.0),
        "score.weight": (1.0, 0.1),
        "score.bias": (1.0, 0.0),
    }
    for factor in (0, 0.5, 1, 7 / 8, 6 / 8):
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.8 * factor)
        assert rates() == {name: (pytest.approx(0.8 * scale * factor), wd) for name, (scale, wd) in scales.items()}
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_a_weight_moves_by_its_own_rate(tmp_path: Path) -> None:
    """The first step of AdamW moves every weight by its learning rate, whatever its gradient."""
    model = Layered()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings: dict[str, Any] = {"lr_scheduler_type": "constant", "learning_rate": 1e-3, "adam_epsilon": 1e-12}
    trainer = trainer_of(model, tmp_path, 0.5, **settings)
    trainer.args.max_steps, trainer.args.weight_decay = 1, 0.0
    trainer.train()
    for name, rate in (("embedding.bias", 2.5e-4), ("block.bias", 5e-4), ("score.bias", 1e-3)):
        moved = (model.get_parameter(name) - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=0)


@pytest.mark.parametrize("decay", [None, 1.0])
def test_without_a_decay_there_are_two_groups_of_one_rate(tmp_path: Path, decay: float | None) -> None:
    model = Layered()
    decayed, rest = trainer_of(model, tmp_path, decay).create_optimizer().param_groups
    assert decayed["lr"] == rest["lr"] == 1e-2
    assert {id(p) for p in decayed["params"]} == {id(model.block.weight), id(model.score.weight)}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("model", "decay", "words"),
    [
        (nn.Linear(3, 3), 0.5, "A Linear does not say how deep its weights lie"),
        (Layered(), 0.0, "a share above 0 and up to 1, not 0.0"),
        (Layered(), 1.5, "a share above 0 and up to 1, not 1.5"),
    ],
)
def test_a_decay_that_cannot_be_is_refused(tmp_path: Path, model: Any, decay: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer_of(model, tmp_path, decay)


def test_labels_are_smoothed_while_training_and_by_the_model_alone(tmp_path: Path) -> None:
    model = Layered()
    trainer = trainer_of(model, tmp_path, label_smoothing_factor=0.2, learning_rate=0.0)
    trainer.train()
    plain, smooth = (
        model(**trainer.data_collator(WINDOWS), smoothing=smoothing).loss.item() for smoothing in (0.0, 0.2)
    )
    model.smoothed.clear()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)
    assert set(model.smoothed) == {(False, 0.0)}
    entries = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # three batches of two windows make an epoch
    assert sum(entries[:3]) / 3 == pytest.approx(smooth, rel=1e-4)
    assert smooth != pytest.approx(plain, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible")
@pytest.mark.parametrize("model", [vq_model(), Layered("multi_label_classification"), Layered("regression")])
def test_only_classifiers_of_single_labels_are_smoothed(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ValueError, match="label_smoothing_factor is for classifiers of single labels"):
        trainer_of(model, tmp_path, label_smoothing_factor=0.1)


def test_the_schedule_is_at_most_a_step_from_labram_s(tmp_path: Path) -> None:
    """Its code warms up over the same steps but ends at the full rate one earlier; then the two are equal."""
    theirs = json.loads((PARITY / "meta.json").read_text())["cosine_schedule"]["lr"]
    base, lowest, warmup, steps = 5e-4, 1e-6, 8, len(theirs)
    args = StageTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        learning_rate=base,
        warmup_steps=warmup,
        lr_scheduler_kwargs={"min_lr_rate": lowest / base},
    )
    trainer = NeuroLMTrainer(model=nn.Linear(3, 3), args=args)
    trainer.create_optimizer_and_scheduler(steps)
    ours = []
    for _ in range(steps):
        ours.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-6)
    assert ours[0] == theirs[0] == 0
    apart = [their - our for our, their in zip(ours[:warmup], theirs[:warmup], strict=True)]
    assert all(0 <= difference <= base / warmup + 1e-12 for difference in apart)
    assert max(apart) == pytest.approx(base / warmup)
