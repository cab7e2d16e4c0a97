"""Every recipe is read whole, and trains by the paper's schedule step by step."""

import ast
import importlib
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import torch
import yaml
from tiny import language_model, vq_model
from torch import nn

from neurolm_hf import NeuroLMVQForPreTraining
from neurolm_hf.recipes import StageTrainingArguments, parse_arguments, recipe_arguments
from neurolm_hf.training import AlignmentScheduleCallback, NeuroLMTrainer


REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
STAGES = {
    "vq": "train_vq",
    "pretrain": "pretrain",
    "instruction": "instruction_tune",
    "classifier": "finetune_classifier",
    "labram-vq": "train_vq",
    "labram-pretrain": "pretrain_masked",
    "labram-finetune": "finetune_classifier",
}
SCRIPTS = sorted(set(STAGES.values()))
KINDS = {
    "train_vq": "VQOptions",
    "pretrain": "PretrainingOptions",
    "instruction_tune": "InstructionOptions",
    "finetune_classifier": "ClassifierOptions",
    "pretrain_masked": "MaskedOptions",
}
TEXT = ("--text-data", "text")
# What a stage cannot do without, and no recipe says.
STARTS = {
    "vq": ["--from-scratch", "--text-model", "somewhere", *TEXT],
    "pretrain": ["--vq", "somewhere", "--text-from-scratch", "gpt2", "--text-tokenizer", "somewhere", *TEXT],
    "instruction": ["--model", "somewhere", *TEXT],
    "classifier": ["--model", "somewhere"],
    "labram-vq": ["--from-scratch"],
    "labram-pretrain": ["--from-scratch", "--vq", "somewhere"],
    "labram-finetune": ["--model", "somewhere"],
}
# The paper's. The lowest rates of L and XL are not known; B's share of the rate is taken.
PAPER = {
    "vq-paper": {"rate": 5e-5, "lowest": 1e-5, "betas": (0.9, 0.999), "decay": 1e-4, "epochs": 50, "clip": 0},
    "pretrain-b": {"rate": 6e-4, "lowest": 6e-5, "betas": (0.9, 0.95), "decay": 0.1, "epochs": 20, "clip": 1},
    "instruction-b": {"rate": 5e-4, "lowest": 5e-5, "betas": (0.9, 0.95), "decay": 0.1, "epochs": 5, "clip": 1},
    "instruction-l": {"rate": 5e-5, "lowest": 5e-6, "betas": (0.9, 0.95), "decay": 0.1, "epochs": 5, "clip": 1},
    "instruction-xl": {"rate": 2e-5, "lowest": 2e-6, "betas": (0.9, 0.95), "decay": 0.1, "epochs": 3, "clip": 1},
}
PAPER |= {
    "vq-one-gpu": PAPER["vq-paper"],
    "pretrain-l": PAPER["pretrain-b"],
    "pretrain-xl": PAPER["pretrain-b"],
    "pretrain-one-gpu": PAPER["pretrain-b"],
    "instruction-one-gpu": PAPER["instruction-b"],
}
# LaBraM's, by its paper and its authors' code, which warms up over a tenth of the epochs too.
PAPER |= {
    "labram-vq-paper": {"rate": 4e-4, "lowest": 1e-5, "betas": (0.9, 0.99), "decay": 1e-4, "epochs": 100, "clip": 0},
    "labram-pretrain": {"rate": 5e-4, "lowest": 1e-5, "betas": (0.9, 0.98), "decay": 0.05, "epochs": 50, "clip": 3},
    "labram-finetune-base": {
        "rate": 5e-4, "lowest": 1e-6, "betas": (0.9, 0.999), "decay": 0.05, "epochs": 50, "clip": 0,
    },
}  # fmt: skip
PAPER |= {f"labram-finetune-{size}": PAPER["labram-finetune-base"] | {"epochs": 30} for size in ("large", "huge")}
# Windows and texts that a step of the paper takes on its eight GPUs.
STEP = {
    "vq": (8 * 64, 8 * 16),
    "pretrain": (8 * 60, 8 * 4),
    "instruction": (8 * 64, 8 * 16),
    "labram-vq": (1024, None),
    "labram-pretrain": (512, None),
    "labram-finetune": (512, None),
}


@dataclass
class Options:
    """Options of a stage of these tests."""

    train_data: list[str] = field(default_factory=list)
    lora: bool = False
    vq_config: str | None = None


def stage_of(name):
    return next(stage for stage in STAGES if f"{name}-".startswith(f"{stage}-"))


def script_of(recipe):
    return STAGES[stage_of(recipe.stem)]


def script_module(name):
    """A script as a module."""
    return importlib.import_module(f"scripts.{name}")


def parsed(recipe, *arguments):
    """(options, arguments of the Trainer) of a shipped recipe, by its script."""
    script = script_of(recipe)
    kind = getattr(script_module(script), KINDS[script])
    needed = ["--train-data", "data", "--output-dir", "out", "--use-cpu", *STARTS[stage_of(recipe.stem)]]
    options, args, path = parse_arguments(kind, "", [str(recipe), *needed, *arguments])
    assert path == str(recipe)
    return options, args


def write(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def read(file, *arguments):
    return parse_arguments(Options, "", [str(file), "--output-dir", "out", "--use-cpu", *arguments])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_key_of_a_recipe_arrives(recipe):
    options, args = parsed(recipe)
    content = yaml.safe_load(recipe.read_text())
    for key, value in content.items():
        arrived = getattr(options if hasattr(options, key) else args, key)
        if isinstance(value, dict) and isinstance(arrived, str):
            arrived = json.loads(arrived)
        if isinstance(arrived, (int, float)) and not isinstance(arrived, bool):
            value = float(value)
        assert arrived == value, key
    assert args.train_batch_size * args.gradient_accumulation_steps == args.total_train_batch_size


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read_by_the_code(script):
    """An option that nothing reads would be a promise that nothing keeps."""
    files = (REPOSITORY / "scripts" / f"{script}.py", REPOSITORY / "neurolm_hf" / "stages.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    kind = getattr(script_module(script), KINDS[script])
    assert {one.name for one in fields(kind)} <= names_read(nodes)


def names_read(nodes):
    """What `options.NAME` reads, and from what `__post_init__` makes the attributes that are read so."""
    read_names = attributes_of(nodes, "options")
    for node in nodes:
        if isinstance(node, ast.Assign) and attributes_of(node.targets, "self") & read_names:
            read_names |= attributes_of(ast.walk(node.value), "self")
    return read_names


def attributes_of(nodes, owner):
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner
    }


def test_a_check_alone_reads_no_option():
    source = """
def __post_init__(self):
    self.made = json_object(self.raw)
    self.unread = json_object(self.other)
    if self.checked < 0:
        raise ValueError(self.checked)

def run(options):
    return options.made, options.seen
"""
    assert names_read(list(ast.walk(ast.parse(source)))) == {"made", "raw", "seen"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_own_option(script, capsys):
    kind = getattr(script_module(script), KINDS[script])
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(kind, script_module(script).__doc__, ["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "python scripts/" in shown
    assert all(f"--{one.name}" in shown and one.metadata["help"] for one in fields(kind))
    assert "--total_train_batch_size" in shown
    assert "--hub_revision" not in shown
    assert "\nNEUROLM_TRACEBACK=1 in the environment" in shown


def test_there_is_a_recipe_for_every_size_and_machine():
    assert {recipe.stem for recipe in RECIPES} == {
        *("vq-paper", "vq-one-gpu", "vq-cpu"),
        *(f"pretrain-{kind}" for kind in ("b", "l", "xl", "one-gpu", "cpu")),
        *(f"instruction-{kind}" for kind in ("b", "l", "xl", "one-gpu", "cpu", "lora")),
        "classifier",
        *("labram-vq-paper", "labram-vq-cpu", "labram-pretrain", "labram-pretrain-cpu"),
        *(f"labram-finetune-{kind}" for kind in ("base", "large", "huge", "cpu")),
    }


def test_fine_tuning_of_labram_by_size():
    made = {
        size: parsed(REPOSITORY / "recipes" / f"labram-finetune-{size}.yaml") for size in ("base", "large", "huge")
    }
    assert {size: (options.layer_decay, options.drop_path) for size, (options, _) in made.items()} == {
        "base": (0.65, 0.1),
        "large": (0.8, 0.1),
        "huge": (0.8, 0.2),
    }
    assert {args.label_smoothing_factor for _, args in made.values()} == {0.1}


@pytest.mark.parametrize("name", PAPER)
def test_the_schedule_is_the_papers_at_every_step(name):
    """Linear warm-up over a tenth of the steps, then a cosine down to the lowest rate; decay of matrices only."""
    recipe = REPOSITORY / "recipes" / f"{name}.yaml"
    paper, steps = PAPER[name], 200
    short = ("--max-steps", str(steps), "--save-strategy", "no", "--load-best-model-at-end", "false")
    _, args = parsed(recipe, *short, "--label-smoothing-factor", "0")
    assert (args.num_train_epochs, args.max_grad_norm, args.warmup_steps) == (paper["epochs"], paper["clip"], 0.1)
    trainer = NeuroLMTrainer(model=nn.Linear(3, 3), args=args, eval_dataset=[0])
    trainer.create_optimizer_and_scheduler(steps)
    decays = {group["weight_decay"]: group["params"] for group in trainer.optimizer.param_groups}
    assert {decay: [tuple(p.shape) for p in group] for decay, group in decays.items()} == {
        paper["decay"]: [(3, 3)],
        0.0: [(3,)],
    }
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {paper["betas"]}
    warmup = steps // 10
    for step in range(steps):
        if step < warmup:
            expected = paper["rate"] * step / warmup
        else:
            share = (step - warmup) / (steps - warmup)
            expected = paper["lowest"] + (paper["rate"] - paper["lowest"]) * (1 + math.cos(math.pi * share)) / 2
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        assert rates == pytest.approx([expected, expected], rel=1e-9), step
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == pytest.approx([paper["lowest"]] * 2, abs=1e-4 * paper["rate"])


@pytest.mark.parametrize("name", PAPER)
def test_a_step_takes_as_many_windows_and_texts_as_the_papers(name):
    options, args = parsed(REPOSITORY / "recipes" / f"{name}.yaml")
    windows, texts = STEP[stage_of(name)]
    assert args.total_train_batch_size == windows
    assert getattr(options, "text_batch_size", None) == texts


@pytest.mark.parametrize("model", [vq_model(NeuroLMVQForPreTraining), language_model()], ids=["vq", "lm"])
def test_weight_decay_goes_to_matrices_and_embeddings_only(model):
    _, args = parsed(REPOSITORY / "recipes" / "pretrain-b.yaml", "--eval-strategy", "no")
    trainer = NeuroLMTrainer(model=model, args=args)
    trainer.create_optimizer()
    decayed, others = sorted(trainer.optimizer.param_groups, key=lambda group: -group["weight_decay"])
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {p.dim() for p in others["params"]} == {1}
    assert min(p.dim() for p in decayed["params"]) == 2
    trained = sum(p.requires_grad for p in model.parameters())
    assert len(decayed["params"]) + len(others["params"]) == trained


def test_the_reversal_grows_with_the_share_of_the_training_done():
    """2 / (1 + exp(-10 p)) - 1, which is tanh(5 p)."""

    class State:
        max_steps = 40

    model, callback = vq_model(NeuroLMVQForPreTraining), AlignmentScheduleCallback()
    for step in range(State.max_steps):
        State.global_step = step
        callback.on_step_begin(None, State, None, model=model)
        assert model.reversal_strength == pytest.approx(math.tanh(5 * step / State.max_steps), abs=1e-12)


def test_the_command_line_counts_more_than_the_recipe(tmp_path):
    file = write(tmp_path, "learning_rate: 1e-3\ntrain_data: [a, b]\nlora: true\nvq_config: {hidden_size: 8}\n")
    options, args, _ = read(file, "--learning-rate", "2e-3")
    assert (args.learning_rate, options.train_data, options.lora) == (2e-3, ["a", "b"], True)
    assert json.loads(options.vq_config) == {"hidden_size": 8}
    options, args, _ = read(file, "--train-data", "c", "--lora", "false")
    assert (args.learning_rate, options.train_data, options.lora) == (1e-3, ["c"], False)


def test_numbers_in_yaml_are_numbers(tmp_path):
    file = write(tmp_path, "learning_rate: 5e-4\nlr_scheduler_kwargs: {min_lr: 1e-5}\nmax_grad_norm: 0\n")
    _, args, _ = read(file)
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert (args.learning_rate, args.max_grad_norm) == (5e-4, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", "recipe.yaml: there is no option 'learning_rat'"),
        ("learning-rate: 1", "recipe.yaml: there is no option 'learning-rate'"),
        ("seed: 1\nlora: true\nseed: 2", "recipe.yaml: seed stands there twice"),
        ("seed:", "recipe.yaml: seed has no value"),
        ("- seed", "recipe.yaml is no recipe"),
        ("", "recipe.yaml is no recipe"),
        ("seed: [1", "recipe.yaml is not YAML"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=r"recipe\.yaml") as error:
        recipe_arguments(write(tmp_path, text), (Options, StageTrainingArguments))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["--output-dir", "out", "--no-such", "1"], "there is no option --no-such 1"),
        (["--lora"], "give --output-dir"),
        (["--output-dir", "out", "--total-train-batch-size", "12"], "12 is no multiple of the 8 windows"),
        (
            [
                *("--output-dir", "out", "--total-train-batch-size", "16"),
                *("--gradient-accumulation-steps", "4"),
            ],
            "gradient_accumulation_steps is 4, but total_train_batch_size 16 makes it 2",
        ),
        (["--output-dir", "out", "--load-best-model-at-end"], "save and eval strategy to match"),
        *(
            (["--output-dir", "out", f"--{name}", value], f"{name} must stay {stays}: ")
            for name, value, stays in (
                ("remove_unused_columns", "true", "false"),
                ("train_sampling_strategy", "group_by_length", '"random"'),
                ("auto_find_batch_size", "true", "false"),
                ("resume_from_checkpoint", "out/checkpoint-2", "null"),
                ("batch_eval_metrics", "true", "false"),
                ("eval_do_concat_batches", "false", "true"),
            )
        ),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(Options, "", [*arguments, "--use-cpu"])
    assert exit_.value.code == 2
    usage, error, *rest = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage:")
    assert words in error
    assert not rest


def test_without_a_recipe_the_rate_falls_to_a_tenth_by_a_cosine():
    args = StageTrainingArguments(output_dir="out", use_cpu=True, learning_rate=1.0, max_steps=20)
    trainer = NeuroLMTrainer(model=nn.Linear(3, 3), args=args)
    trainer.create_optimizer_and_scheduler(20)
    rates = []
    for _ in range(20):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:4] == pytest.approx([0, 0.5, 1, 0.1 + 0.45 * (1 + math.cos(math.pi / 18))])
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.1)
    # what belongs to the cosine is not handed to another schedule
    assert (
        StageTrainingArguments(output_dir="out", use_cpu=True, lr_scheduler_type="linear").lr_scheduler_kwargs is None
    )


def test_precision_follows_the_device(monkeypatch):
    gpu = "neurolm_hf.recipes.is_torch_bf16_gpu_available"
    monkeypatch.setattr(gpu, lambda: True)
    assert StageTrainingArguments(output_dir="out", use_cpu=True).bf16 is False
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    assert StageTrainingArguments(output_dir="out").bf16 is True
    assert StageTrainingArguments(output_dir="out", bf16=False).bf16 is False
    monkeypatch.setattr(gpu, lambda: False)
    assert StageTrainingArguments(output_dir="out").bf16 is False
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("known", "emulated"), [("avx512_bf16", False), ("amx_bf16", False), ("avx2", True)])
def test_a_cpu_computes_in_bf16_if_it_is_asked_to(monkeypatch, known, emulated):
    """Not by itself: its figures shall not depend on which CPU it is."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {known: True})
    said = []
    monkeypatch.setattr("neurolm_hf.recipes.logger.warning", said.append)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert StageTrainingArguments(output_dir="out").bf16 is False
    args = StageTrainingArguments(output_dir="out", bf16=True)
    assert (args.mixed_precision, args.device.type, args.use_cpu) == ("bf16", "cpu", True)
    assert len(said) == emulated
    assert all("is emulated: slower" in line for line in said)
