"""The reference's own numbers, reproduced: 1e-5 absolute in float32, codes and greedy tokens exact.

`tests/parity` holds what the reference implementation of NeuroLM (the authors' released code, arXiv 2409.00101)
computed on one CPU in float32:

- `VQ.pt`, `NeuroLM-base.pt`, `NeuroLM-large.pt`, `NeuroLM-nobias.pt`: tiny checkpoints in the released layout, random
  weights, none at its initial value (hidden size 48, 64 codes of 16, 509 words padded to 512 rows; `large` has a wider
  language model behind a linear bridge, `nobias` a GPT-2 without biases).
- `inputs`: three recordings in microvolts at 200 Hz (their channels in `inputs.json`) and what the reference's loader
  makes of them, padded to 36 patches.
- `tokenizer_single_outputs`, and `single.*` of `neurolm_*_outputs`: each recording alone and unpadded. Our default
  mode must give these, whether we pad or not.
- `tokenizer_outputs`, `pretrain.*` and `instruct.*`: the three recordings as one padded batch, in which the
  reference's padding changes features, codes and losses. Ours gives these with `padding_enters_statistics=True`.

They cannot be made again from this repository; nothing here may change them.

Each function named `*_numbers` gives our values under the names of the golden file, so that the last test can see
whether any golden tensor was forgotten.
"""

import functools
import json
from collections.abc import Callable

import pytest
import torch
from golden import (
    BLOCK_SIZE,
    PAD_ID,
    PARITY,
    RECORDINGS,
    SIZES,
    TEXT_ROWS,
    batch,
    golden,
    language_model,
    metadata,
    patches,
    prompt_of,
    recording,
    tokenizer_model,
)

from neurolm_hf import EEGFeatureExtractor, NeuroLMForCausalLM
from neurolm_hf.modeling_neurolm import block_ids, previous_second


TOLERANCE = 1e-5
REVERSAL_STRENGTH = 0.37

# our value, or our value and the entries that are compared (the others are padding)
Numbers = dict[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]


def assert_golden(ours: Numbers, file: str) -> None:
    for name, value in ours.items():
        expected = golden(file)[name]
        if isinstance(value, tuple):
            value, where = value
            assert value.shape == expected.shape, name
            value, expected = value[where], expected[where]
        assert value.shape == expected.shape, name
        if not expected.is_floating_point():
            assert torch.equal(value.to(expected.dtype), expected), name
            continue
        # gradients are small: the absolute bound alone would let wrong ones pass
        bound = min(TOLERANCE, 1e-3 * float(expected.abs().max()))
        assert float((value.detach() - expected).abs().max()) <= bound, name


# --- the loader ------------------------------------------------------------------------------------------------------


@functools.cache
def input_numbers() -> Numbers:
    inputs = golden("inputs")
    raw = [inputs[f"raw_uv.{i}"].numpy() for i in RECORDINGS]
    names = [one["ch_names"] for one in metadata()["recordings"]]
    # the golden recordings are filtered already
    extractor = EEGFeatureExtractor(do_filter=False, do_notch=False, pad_to_patches=BLOCK_SIZE)
    made = extractor(raw, ch_names=names, sampling_rate=200, unit="uV", return_tensors="pt")
    model = tokenizer_model()
    with torch.no_grad():
        outputs = model(**batch())
    real = inputs["input_mask"]
    return {
        "X": made["input_values"],
        "input_chans": made["eeg_channel_ids"],
        "input_time": made["eeg_time_ids"],
        "input_mask": made["eeg_attention_mask"].bool(),
        "num_tokens": made["eeg_attention_mask"].sum(1),
        "num_chans": ((made["eeg_time_ids"] == 0) & made["eeg_attention_mask"].bool()).sum(1),
        "Y_freq": outputs.target_frequency,
        "Y_raw": outputs.target_raw,
        "gpt_mask": (_staircase(made, real), real[:, None, :, None].expand(inputs["gpt_mask"].shape)),
    }


def _staircase(inputs: dict[str, torch.Tensor], real: torch.Tensor) -> torch.Tensor:
    blocks = block_ids(real, inputs["eeg_time_ids"], None, real.long())
    return _attention(real, blocks)


def _attention(real: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """(batch, 1, tokens, tokens), True where the language model lets a token see another."""
    config = language_model("base").config
    embeds = torch.zeros(*real.shape, config.get_text_config().hidden_size)
    return NeuroLMForCausalLM.create_masks_for_generate(config, embeds, real.long(), None, mm_token_type_ids=blocks)


def test_inputs_of_the_reference_loader():
    assert_golden(input_numbers(), "inputs")


# --- the neural tokenizer --------------------------------------------------------------------------------------------


@functools.cache
def tokenizer_single_numbers(index: int, padded: bool) -> Numbers:
    model, inputs, real = tokenizer_model(), recording(index, padded), slice(patches(index))
    with torch.no_grad():
        outputs = model(**inputs)
        loss = model.vq(**inputs).loss
    numbers = {
        "features": outputs.features[:, real],
        "codes": outputs.codes[0, real],
        "quantized": outputs.quantized[:, real],
        "rec_freq": outputs.frequency[:, real],
        "rec_raw": outputs.raw[:, real],
        "target_freq": outputs.target_frequency[:, real],
        "target_raw": outputs.target_raw[:, real],
        "loss": loss,
        "quant_loss": outputs.commitment_loss,
        "domain_loss_eeg": outputs.eeg_alignment_loss,
        "log.total_loss": loss,
        "log.rec_freq_loss": outputs.frequency_loss,
        "log.rec_raw_loss": outputs.raw_loss,
        "log.quant_loss": outputs.commitment_loss,
        "log.domain_loss": outputs.eeg_alignment_loss,
    }
    model.train()
    model(**inputs, reversal_strength=REVERSAL_STRENGTH).loss.backward()
    model.update_codebook()
    encoder = model.vq.encoder
    numbers |= {
        "train.grad.domain_classifier_0": model.alignment_classifier[0].weight.grad,
        "train.grad.encode_task_0": encoder.to_codebook[0].weight.grad,
        "train.grad.encoder_first_conv": encoder.patch_embedding.conv1.weight.grad.unsqueeze(2),
        "train.codebook_after": encoder.quantizer.codebook,
        "train.cluster_size_after": encoder.quantizer.cluster_size,
    }
    return {f"{index}.{name}": value for name, value in numbers.items()}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("index", RECORDINGS)
def test_tokenizer_of_one_recording(index, padded):
    assert_golden(tokenizer_single_numbers(index, padded), "tokenizer_single_outputs")


@functools.cache
def tokenizer_batch_numbers() -> Numbers:
    model, inputs = tokenizer_model(padding_enters_statistics=True), batch()
    texts = golden("tokenizer_outputs")["text_ids"]
    real = inputs["eeg_attention_mask"].bool()
    with torch.no_grad():
        outputs = model(**inputs, text_input_ids=texts)
        loss = model.vq(**inputs).loss
    numbers: Numbers = {
        "eval.encoder_features": outputs.features,
        "eval.codes": outputs.codes,
        "eval.quantized": outputs.quantized,
        "eval.rec_freq": (outputs.frequency, real),
        "eval.rec_raw": (outputs.raw, real),
        "eval.loss": loss,
        "eval.quant_loss": outputs.commitment_loss,
        "eval.domain_loss_eeg": outputs.eeg_alignment_loss,
        "eval.domain_loss_text": outputs.text_alignment_loss,
        "eval.log.total_loss": loss,
        "eval.log.rec_freq_loss": outputs.frequency_loss,
        "eval.log.rec_raw_loss": outputs.raw_loss,
        "eval.log.quant_loss": outputs.commitment_loss,
        "eval.log.domain_loss": outputs.eeg_alignment_loss,
    }
    model.train()
    outputs = model(**inputs, text_input_ids=texts, reversal_strength=REVERSAL_STRENGTH)
    outputs.loss.backward()
    model.update_codebook()
    encoder = model.vq.encoder
    return numbers | {
        "train.loss": outputs.frequency_loss + outputs.raw_loss + outputs.commitment_loss,
        "train.domain_loss_eeg": outputs.eeg_alignment_loss,
        "train.domain_loss_text": outputs.text_alignment_loss,
        "train.grad.domain_classifier_0": model.alignment_classifier[0].weight.grad,
        "train.grad.encode_task_0": encoder.to_codebook[0].weight.grad,
        "train.grad.encoder_first_conv": encoder.patch_embedding.conv1.weight.grad.unsqueeze(2),
        "train.grad.encoder_pos": encoder.transformer.channel_embedding.weight.grad,
        "train.codebook_after": encoder.quantizer.codebook,
        "train.cluster_size_after": encoder.quantizer.cluster_size,
    }


def test_tokenizer_of_a_padded_batch():
    assert_golden(tokenizer_batch_numbers(), "tokenizer_outputs")


# --- the language model ----------------------------------------------------------------------------------------------


def _pretraining_targets(codes: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(batch, patches) as the reference writes them: the code of the next second; -513 where there is none."""
    mask = inputs.get("eeg_attention_mask")
    predictors = previous_second(inputs["eeg_channel_ids"], inputs["eeg_time_ids"], None, mask)
    targets = torch.full_like(codes, -1 - TEXT_ROWS)
    rows, columns = (predictors >= 0).nonzero(as_tuple=True)
    targets[rows, predictors[rows, columns]] = codes[rows, columns]
    return targets


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    wanted = targets >= 0
    return (logits.argmax(-1)[wanted] == targets[wanted] + TEXT_ROWS).float().mean()


@functools.cache
def neurolm_single_numbers(size: str, index: int) -> Numbers:
    model, inputs = language_model(size), recording(index)
    placeholders = torch.full((1, patches(index)), model.config.eeg_token_id)
    prompt = prompt_of(size, index, model.config.eeg_token_id)
    golden_tokens = golden(f"neurolm_{size}_outputs")[f"single.{index}.greedy"]
    new_tokens = golden_tokens.shape[1] - (prompt.shape[1] - patches(index))
    with torch.no_grad():
        pretraining = model(input_ids=placeholders, labels=placeholders, **inputs)
        instruction = model(input_ids=prompt, **inputs)
    generated = model.generate(
        input_ids=prompt, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=PAD_ID, **inputs
    )
    targets = _pretraining_targets(pretraining.eeg_codes, inputs)
    numbers = {
        "eeg_embeds": model.get_eeg_features(**inputs),
        "codes": model.get_eeg_codes(**inputs)[0],
        "pretrain_targets": targets[0],
        "pretrain_logits": pretraining.logits,
        "pretrain_loss": pretraining.eeg_loss,
        "pretrain_accuracy": _accuracy(pretraining.logits, targets),
        "logits": instruction.logits,
        "greedy": generated[:, patches(index) :],
    }
    return {f"single.{index}.{name}": value for name, value in numbers.items()}


@pytest.mark.parametrize("index", RECORDINGS)
@pytest.mark.parametrize("size", SIZES)
def test_language_model_of_one_recording(size, index):
    assert_golden(neurolm_single_numbers(size, index), f"neurolm_{size}_outputs")


@functools.cache
def neurolm_text_numbers(size: str) -> Numbers:
    model, ids = language_model(size), golden(f"neurolm_{size}_outputs")["text.ids"]
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=ids)
    return {"text.logits": outputs.logits[:, :-1], "text.loss": outputs.text_loss}


@pytest.mark.parametrize("size", SIZES)
def test_language_model_of_text(size):
    assert_golden(neurolm_text_numbers(size), f"neurolm_{size}_outputs")


@functools.cache
def neurolm_pretraining_numbers(size: str) -> Numbers:
    model, inputs = language_model(size, padding_enters_statistics=True), batch()
    real = inputs["eeg_attention_mask"].bool()
    ids = torch.where(real, model.config.eeg_token_id, PAD_ID)
    arguments = {"input_ids": ids, "attention_mask": real.long(), **inputs}
    labels = torch.where(real, ids, -100)
    model.train()
    loss = model(labels=labels, **arguments).loss
    loss.backward()
    model.eval()
    with torch.no_grad():
        outputs = model(labels=labels, **arguments)
    targets = _pretraining_targets(outputs.eeg_codes, inputs)
    gpt2 = model.model.language_model
    return {
        "pretrain.targets": targets,
        "pretrain.loss": loss,
        "pretrain.accuracy": _accuracy(outputs.logits, targets),
        "pretrain.logits": (outputs.logits, real),
        "pretrain.grad.h0_c_attn": gpt2.h[0].attn.c_attn.weight.grad.T,
        "pretrain.grad.pos_embed": model.model.channel_embedding.weight.grad,
        "pretrain.grad.wpe": gpt2.wpe.weight.grad,
    }


@pytest.mark.parametrize("size", SIZES)
def test_pretraining_on_a_padded_batch(size):
    assert_golden(neurolm_pretraining_numbers(size), f"neurolm_{size}_outputs")


@functools.cache
def neurolm_instruction_numbers(size: str) -> Numbers:
    """The reference puts text behind the padding of the EEG, ours behind the EEG: the same tokens at other places."""
    expected = golden(f"neurolm_{size}_outputs")
    model, inputs = language_model(size, padding_enters_statistics=True), batch()
    lengths = expected["instruct.len"].tolist()
    rows, tokens = expected["instruct.ids"].shape
    shape = (rows, BLOCK_SIZE + tokens)
    ids, labels = torch.full(shape, PAD_ID), torch.full(shape, -100)
    positions, theirs = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    # the reference's text positions follow the longest recording of the batch
    first = int(inputs["eeg_time_ids"].max()) + 1
    for row, length in enumerate(lengths):
        eeg, text = slice(patches(row)), slice(patches(row), patches(row) + length)
        ids[row, eeg] = model.config.eeg_token_id
        ids[row, text] = expected["instruct.ids"][row, :length]
        positions[row, eeg] = inputs["eeg_time_ids"][row, eeg]
        positions[row, text] = first + torch.arange(length)
        theirs[row, eeg] = torch.arange(patches(row))
        theirs[row, text] = BLOCK_SIZE + torch.arange(length)
        targets = expected["instruct.targets"][row, : length - 1]
        labels[row, patches(row) + 1 : patches(row) + length] = targets.masked_fill(targets < 0, -100)
    real = theirs >= 0
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=real.long(), position_ids=positions, labels=labels, **inputs)
    logits = torch.zeros(expected["instruct.logits"].shape)
    mask = torch.zeros(expected["instruct.mask"].shape, dtype=torch.bool)
    compared = torch.zeros(shape, dtype=torch.bool)
    attention = _attention(
        real, block_ids(ids == model.config.eeg_token_id, inputs["eeg_time_ids"], None, inputs["eeg_attention_mask"])
    )
    for row in range(rows):
        places = theirs[row][real[row]]
        compared[row, places] = True
        logits[row, places] = outputs.logits[row][real[row]]
        mask[row, 0, places[:, None], places] = attention[row, 0][real[row]][:, real[row]]
    return {
        "instruct.loss": outputs.loss,
        "instruct.logits": (logits, compared),
        "instruct.mask": (mask, compared[:, None, :, None].expand(mask.shape)),
    }


@pytest.mark.parametrize("size", SIZES)
def test_instructions_on_a_padded_batch(size):
    assert_golden(neurolm_instruction_numbers(size), f"neurolm_{size}_outputs")


# --- nothing forgotten -----------------------------------------------------------------------------------------------

# golden tensors that are given to the model or the extractor, not compared with what they give
GIVEN = {
    "inputs": {f"raw_uv.{i}": "the recordings themselves" for i in RECORDINGS},
    "tokenizer_outputs": {"text_ids": "the text of the adversary"},
    "tokenizer_single_outputs": {},
    **{
        f"neurolm_{size}_outputs": {
            "text.ids": "the text batch",
            "instruct.ids": "prompts and answers",
            "instruct.len": "their lengths",
            "instruct.prompt_len": "where the answers begin, which instruct.targets say as well",
            "instruct.targets": "given as labels; a wrong shift would show in instruct.loss",
            **{f"single.{i}.prompt": "a prompt" for i in RECORDINGS},
        }
        for size in SIZES
    },
}
COMPARED: dict[str, list[Callable[[], Numbers]]] = {
    "inputs": [input_numbers],
    "tokenizer_outputs": [tokenizer_batch_numbers],
    "tokenizer_single_outputs": [functools.partial(tokenizer_single_numbers, i, False) for i in RECORDINGS],
    **{
        f"neurolm_{size}_outputs": [
            *[functools.partial(neurolm_single_numbers, size, i) for i in RECORDINGS],
            functools.partial(neurolm_text_numbers, size),
            functools.partial(neurolm_pretraining_numbers, size),
            functools.partial(neurolm_instruction_numbers, size),
        ]
        for size in SIZES
    },
}


def test_every_golden_file_is_used():
    used = {f"{name}.safetensors" for name in COMPARED} | {f"NeuroLM-{size}.pt" for size in SIZES}
    used |= {"VQ.pt", "inputs.json", "meta.json"}
    assert {path.name for path in PARITY.iterdir() if path.is_file()} == used
    facts = json.loads((PARITY / "meta.json").read_text())
    config = language_model("base").config
    assert facts == {
        "text_vocab_raw": config.eeg_config.alignment_vocab_size,
        "text_vocab_padded": config.get_text_config().vocab_size,
        "eeg_codes": config.eeg_config.codebook_size,
        "codebook_dim": config.eeg_config.codebook_dim,
        "sep_token_id_in_these_fixtures": int(golden("neurolm_base_outputs")["single.0.prompt"][0, 0]),
        "pad_text_id": PAD_ID,
    }


@pytest.mark.parametrize("file", COMPARED)
def test_every_golden_tensor_is_used(file):
    compared = {name for numbers in COMPARED[file] for name in numbers()}
    assert compared | GIVEN[file].keys() == golden(file).keys()
    assert not compared & GIVEN[file].keys()
