"""Strategies for many devices: their files, what is refused, and two CPU processes under each of them.

Every test of a strategy asserts that it is really at work: accelerate leaves out what it does not know without a word.
"""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import device_runs
import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from device_runs import CONFIGS, STAGES, STEPPED, STRATEGIES, environment, launched, run_ranks
from peft import PeftModel
from small_trainings import (
    ROWS,
    TASK,
    adversarial_tokenizer,
    arguments,
    assert_same_steps,
    codebook,
    gradients,
    large_batches,
    make_processor,
    stages,
)
from torch.distributed.fsdp import CPUOffloadPolicy
from training_runs import make_trainer

from neurolm_hf import NeuroLMForCausalLM, NeuroLMVQForPreTraining, devices
from neurolm_hf.devices import check_devices, require_deepspeed, sharding, shares_weights, transformer_layers
from neurolm_hf.recipes import StageTrainingArguments
from neurolm_hf.training import NeuroLMTrainer
from neurolm_hf.validation import answer_counts


FILES = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
ZERO = tuple(name for name in STRATEGIES if name.startswith("zero"))
MEASURED = ("loss", "accuracy", "usage", "perplexity")


def deepspeed_file(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


# --- files


@pytest.mark.parametrize("name", FILES)
def test_accelerate_knows_every_setting(name: str) -> None:
    load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # refuses what it does not know, but not inside sections
    options = {action.dest for action in launch_command_parser()._actions}
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    sections = [key for section in ("deepspeed_config", "fsdp_config") for key in content.get(section, {})]
    assert set(sections) <= options
    assert launched(name, "--num_processes", "6").num_processes == 6


@pytest.mark.parametrize("name", FILES)
def test_files_are_of_the_strategy_that_they_are_named_for(name: str) -> None:
    args = launched(name)
    assert args.use_deepspeed == name.startswith("zero")
    assert args.use_fsdp == name.startswith("fsdp")
    assert args.multi_gpu == name.startswith("ddp")


@pytest.mark.parametrize("name", ZERO)
def test_accelerate_reads_the_deepspeed_files(name: str) -> None:
    asked = environment(name)
    assert asked["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert asked["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    file = CONFIGS.parent / asked["ACCELERATE_DEEPSPEED_CONFIG_FILE"]
    assert file == CONFIGS / f"{name}.json"
    config = HfDeepSpeedConfig(str(file))
    assert config.is_zero3() == ("3" in name)
    assert config.is_offload() == name.endswith("offload")


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-offload"])
def test_accelerate_reads_the_fsdp_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) == name.endswith("offload")
    devices._check_fsdp(plugin, skips_batches=False)


@pytest.mark.slow  # DeepSpeed is there for `make test-slow`
@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_knows_every_setting(name: str) -> None:
    constants = vars(importlib.import_module("deepspeed.runtime.constants")).values()
    zero = importlib.import_module("deepspeed.runtime.zero.config")
    content = deepspeed_file(name)
    assert set(content) <= {*(value for value in constants if isinstance(value, str)), "zero_optimization"}
    settings = {key: value for key, value in content["zero_optimization"].items() if value != "auto"}
    assert content["zero_optimization"].keys() <= zero.DeepSpeedZeroConfig.model_fields.keys() | {
        field.alias for field in zero.DeepSpeedZeroConfig.model_fields.values()
    }
    zero.DeepSpeedZeroConfig(**settings)  # pydantic: offload's own fields too
    with pytest.raises(ValueError, match="typo"):
        zero.DeepSpeedZeroConfig(**settings, typo=1)


# --- what is refused


def plan(zero: dict[str, Any] | None = None, **content: Any) -> SimpleNamespace:
    """DeepSpeed's part of training arguments."""
    return SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2, **(zero or {})}, **content})


@pytest.mark.parametrize(
    ("plugin", "changes", "words"),
    [
        (plan(optimizer={"type": "AdamW"}), {}, "section 'optimizer'.*leave the section out"),
        (plan(scheduler={"type": "WarmupLR"}), {}, "section 'scheduler'"),
        (plan(tensor_parallel={"autotp_size": 2}), {}, "leave autotp_size out"),
        (plan(), {"fp16": True}, "fp16 must be False"),
        (plan({"stage": 3}), {}, "stage3_gather_16bit_weights_on_model_save"),
        (plan({"offload_optimizer": {"device": "cpu"}}), {"optim": "sgd"}, "its own Adam in place of sgd"),
    ],
)
def test_deepspeed_settings_that_would_train_something_else(
    tmp_path: Path, plugin: Any, changes: dict[str, Any], words: str
) -> None:
    args = arguments(tmp_path, optim=changes.get("optim", "adamw_torch"))
    args.deepspeed_plugin, args.fp16 = plugin, changes.get("fp16", False)
    with pytest.raises(ValueError, match=words):
        devices._check_deepspeed(args)


def test_deepspeed_files_of_ours_are_not_refused(tmp_path: Path) -> None:
    for name in ZERO:
        args = arguments(tmp_path)
        args.deepspeed_plugin = SimpleNamespace(deepspeed_config=deepspeed_file(name))
        devices._check_deepspeed(args)
        assert sharding(args) == f"ZeRO-{name[4]}{' with offload' * name.endswith('offload')} on 1 processes"
        assert shares_weights(args) == ("3" in name)


@pytest.mark.parametrize(
    ("changes", "skips", "words"),
    [
        ({"fsdp_version": 1}, False, "fsdp_version must be 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, False, "FULL_STATE_DICT"),
        ({"cpu_ram_efficient_loading": True}, False, "cpu_ram_efficient_loading must be false"),
        ({}, True, "skip_bad_batches must be off"),
    ],
)
def test_fsdp_settings_that_cannot_work(changes: dict[str, Any], skips: bool, words: str) -> None:
    fitting = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    with pytest.raises(ValueError, match=words):
        devices._check_fsdp(SimpleNamespace(**{**fitting, **changes}), skips)


@pytest.mark.parametrize(
    ("variables", "changes", "words"),
    [
        ({"WORLD_SIZE": "2"}, {}, "2 processes were started.*--use-cpu true"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP is asked for, but accelerate runs NO"),
        ({}, {"use_liger_kernel": True}, "use_liger_kernel"),
    ],
)
def test_trainings_that_would_not_be_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], changes: dict[str, Any], words: str
) -> None:
    trainer = NeuroLMTrainer(model=adversarial_tokenizer(), args=arguments(tmp_path), train_dataset=ROWS)
    for name, value in changes.items():
        setattr(trainer.args, name, value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        check_devices(trainer, skips_batches=False)


def test_deepspeed_that_accelerate_ignores_on_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = NeuroLMTrainer(model=adversarial_tokenizer(), args=arguments(tmp_path), train_dataset=ROWS)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is asked for, but accelerate runs NO: leave --use-cpu out"):
        check_devices(trainer, skips_batches=False)


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_models_are_not_split_within_a_row(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    trainer = NeuroLMTrainer(model=adversarial_tokenizer(), args=arguments(tmp_path), train_dataset=ROWS)
    names = ("tp_size", "cp_size", "sp_size")
    trainer.accelerator = SimpleNamespace(
        distributed_type=trainer.accelerator.distributed_type,
        parallelism_config=SimpleNamespace(**dict(zip(names, sizes, strict=True))),
    )
    with pytest.raises(ValueError, match="leave tensor, context and sequence parallelism out"):
        check_devices(trainer, skips_batches=False)


def test_a_model_that_was_made_in_shares_is_refused(tmp_path: Path) -> None:
    trainer = NeuroLMTrainer(model=adversarial_tokenizer(), args=arguments(tmp_path), train_dataset=ROWS)
    next(trainer.model.parameters()).ds_id = 0  # as DeepSpeed marks them
    with pytest.raises(ValueError, match=r"settle_deepspeed\(args\)"):
        check_devices(trainer, skips_batches=False)


def test_weights_that_are_shared_out_are_not_compiled(tmp_path: Path) -> None:
    trainer = NeuroLMTrainer(model=adversarial_tokenizer(), args=arguments(tmp_path), train_dataset=ROWS)
    trainer.args.torch_compile = True
    trainer.args.deepspeed_plugin = plan({"stage": 3, "stage3_gather_16bit_weights_on_model_save": True})
    with pytest.raises(ValueError, match="torch_compile"):
        check_devices(trainer, skips_batches=False)


def test_a_missing_deepspeed_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = r'pip install wheel "setuptools>=80" and then pip install --no-build-isolation "deepspeed'
    with pytest.raises(ImportError, match=words):
        require_deepspeed()
    with pytest.raises(ImportError, match=words):
        StageTrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=str(CONFIGS / "zero2.json"))


def test_a_run_belongs_to_the_strategy_that_can_read_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    assert sharding(args) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding(args) == "FSDP"
    args.deepspeed_plugin = plan({"stage": 2})
    assert sharding(args) == "ZeRO-2 on 1 processes"


@pytest.mark.parametrize(
    ("stage", "layers"), [("vq", ["EEGLayer"]), ("labram-masked", ["EEGLayer"]), ("lora", ["EEGLayer", "GPT2Block"])]
)
def test_fsdp_shares_out_the_layers_of_any_decoder(stage: str, layers: list[str]) -> None:
    assert transformer_layers(stages()[stage].model()) == layers


# --- two processes


def expected_evaluation(folder: Path, stage: str) -> dict[str, float]:
    """The figures of one process with all windows."""
    tuned = stage in ("instruction", "lora")
    asks = {"processing_class": make_processor(), "answer_sets": {"mine": (TASK, ROWS[:5])}} if tuned else {}
    trainer = NeuroLMTrainer(
        model=stages()[stage].model(),
        args=arguments(folder, per_device_eval_batch_size=2),
        eval_dataset=ROWS,
        data_collator=stages()[stage].collator(0 if tuned else 1),
        **asks,
    )
    return measured(trainer.evaluate())


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.endswith(MEASURED)}


@pytest.fixture(scope="module", params=STRATEGIES)
def strategy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, folder and, for each rank, what `strategy_results` found."""
    folder = tmp_path_factory.mktemp(request.param)
    ranks = run_ranks(device_runs.strategy_results, folder, request.param)
    return SimpleNamespace(name=request.param, folder=folder, ranks=ranks)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STEPPED)
def test_the_strategy_is_at_work(strategy: Any, stage: str) -> None:
    zero = strategy.name.startswith("zero")
    for rank in strategy.ranks:
        found = rank["steps"][stage]
        assert found["type"] == ("DEEPSPEED" if zero else "MULTI_CPU")
        assert found["wrapped"] == ("DeepSpeedEngine" if zero else "DistributedDataParallel")
        trained = sum(whole for _, whole, _ in found["shares"])
        if zero:
            # half of the optimiser's state, and what rounds it up for each parameter
            assert trained / 2 <= found["optimizer_share"] <= trained / 2 + len(found["shares"])
        # ZeRO-3 keeps whole what is smaller than ten times the model's width
        away = [(share, whole) for share, whole, here in found["shares"] if here == 0]
        assert bool(away) == ("zero3" in strategy.name)
        assert all(share == -(-whole // 2) for share, whole in away)
        assert sum(whole for _, whole in away) > 0.5 * trained or not away


@pytest.mark.slow
@pytest.mark.parametrize("stage", STEPPED)
def test_gradients_and_codebook_are_those_of_large_batches(strategy: Any, stage: str) -> None:
    expected = large_batches(stages()[stage], [ROWS[:4], ROWS[4:] + ROWS[:1]])
    last = [{name: step.pop(name) for name in list(step) if name.endswith("codebook")} for step in expected][-1]
    for rank in strategy.ranks:
        found = rank["steps"][stage]
        assert_same_steps(found["gradients"], expected)
        assert_same_steps([found["codebook"]], [last])
        for name, tensor in found["codebook"].items():
            assert torch.equal(tensor, strategy.ranks[0]["steps"][stage]["codebook"][name])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STEPPED)
def test_figures_and_answers_are_those_of_one_process(strategy: Any, stage: str, tmp_path: Path) -> None:
    expected = expected_evaluation(tmp_path, stage)
    assert ("eval_mine_balanced_accuracy" in expected) == (stage in ("instruction", "lora"))
    for rank in strategy.ranks:
        assert measured(rank["steps"][stage]["evaluation"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_goes_on_exactly(strategy: Any, stage: str) -> None:
    for rank in strategy.ranks:
        found = rank["runs"][stage]
        assert found["stopped"] == (15, 2, 3)
        saved = found["saved"]
        assert saved["whole"].keys() == saved["stopped"].keys() == saved["again"].keys()
        # DeepSpeed's Adam for the host keeps powers of its betas, and takes them anew where a run goes on
        least = 1e-6 if "offload" in strategy.name else 0.0
        for name, tensor in saved["whole"].items():
            torch.testing.assert_close(saved["stopped"][name], tensor, atol=least, rtol=0, msg=lambda m, n=name: n + m)
            assert torch.equal(saved["again"][name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_saved_model_is_the_trained_one(strategy: Any, stage: str, tmp_path: Path) -> None:
    folder = strategy.folder / stage / "whole"
    if stage == "lora":
        model = PeftModel.from_pretrained(make_trainer("instruction", tmp_path).model, folder, is_trainable=True)
    else:
        kind = NeuroLMVQForPreTraining if stage == "vq" else NeuroLMForCausalLM
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
    loaded = dict(model.named_parameters()) | dict(model.named_buffers())
    start = dict(make_trainer(stage, tmp_path).model.named_parameters())
    for rank in strategy.ranks:
        weights = rank["runs"][stage]["weights"]
        assert {name for name, p in model.named_parameters() if p.requires_grad} <= weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(loaded[name], tensor), name
        assert any(not torch.equal(start[name], tensor) for name, tensor in weights.items() if name in start)


@pytest.mark.slow
def test_a_bad_batch_of_one_process_is_left_out_of_the_step_of_both(strategy: Any) -> None:
    stage = stages()["vq"]
    model = stage.model().train()
    whole, good = stage.collator(1)(ROWS[:4]), stage.collator(1)(ROWS[:3])
    model(**good, num_items_in_batch=model.count_loss_items(**whole)).loss.backward()
    # the second process, which met it, has nothing to say about the codebook
    of_codebook = stage.model().train()
    of_codebook(**stage.collator(1)([ROWS[0], ROWS[2]]))
    of_codebook.update_codebook()
    for rank in strategy.ranks:
        assert_same_steps(rank["bad"]["gradients"], [gradients(model)])
        assert_same_steps([rank["bad"]["codebook"]], [codebook(of_codebook)])
        assert rank["bad"]["log"]["skipped_batches"] == 1


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_reaches_no_weight(strategy: Any) -> None:
    for rank in strategy.ranks:
        assert "gradient of step 1 is not finite" in rank["not finite"]["said"]
        assert rank["not finite"]["moved"] == []


@pytest.mark.slow
def test_bfloat16_is_for_weights_and_not_for_signals_and_codebook(strategy: Any) -> None:
    stage = stages()["vq"]
    batch = stage.collator(1)(ROWS[:4])
    batch.pop("rows")
    expected = float(stage.model().train()(**batch).loss)
    for rank in strategy.ranks:
        found = rank["bfloat16"]
        assert found["weights"] == ["torch.bfloat16" if strategy.name.startswith("zero") else "torch.float32"]
        assert found["buffers"] == ["torch.bool", "torch.float32"]
        assert found["signals"] == ["torch.float32"]
        assert found["loss"] == pytest.approx(expected, rel=1e-2)
        assert found["loss"] != pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_stream_reaches_each_process_once(tmp_path: Path) -> None:
    ranks = run_ranks(device_runs.streamed, tmp_path)
    assert all(len(rank["recordings"]) == 4 for rank in ranks)
    assert {name for rank in ranks for name in rank["recordings"]} == {f"{number}.edf" for number in range(8)}
    assert all("without split_dataset_by_node" in rank["said"] for rank in ranks)


@pytest.mark.slow
def test_fsdp_shares_out_every_weight_and_changes_no_gradient(tmp_path: Path) -> None:
    ranks = run_ranks(device_runs.fsdp_results, tmp_path)
    for stage in STEPPED:
        batch = stages()[stage].collator(1)(ROWS[:4])
        batch.pop("rows")
        exact = float(stages()[stage].model().train()(**batch).loss)
        for rank in ranks:
            found = rank["bfloat16"][stage]
            assert (found["signals"], found["loss"].dtype) == (["torch.float32"], torch.float32)
            assert found["gradients"] == ["torch.float32"]
            assert float(found["loss"]) == pytest.approx(exact, rel=2e-2)
            assert float(found["loss"]) != pytest.approx(exact, rel=1e-6)
    for stage in (*STEPPED, "unfrozen"):
        model = stages()[stage].model()
        expected = large_batches(stages()[stage], [ROWS[:4]])
        state = model.state_dict()
        layers = {*transformer_layers(model), type(model).__name__}
        for rank in ranks:
            found = rank[stage]
            assert set(found["groups"]) == {f"FSDP{name}" for name in layers}
            assert found["not shared out"] == []
            assert_same_steps(found["gradients"], expected)
            assert found["state"].keys() == state.keys()
            assert all(torch.equal(found["state"][name], tensor) for name, tensor in state.items())
            if stage in ("instruction", "lora"):
                counts = answer_counts(model.eval(), make_processor(), TASK, ROWS[:4], 2)
                assert torch.equal(found["answers"], counts)
