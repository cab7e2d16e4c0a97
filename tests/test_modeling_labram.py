"""LaBraM: mixed batches, masks, the cls token's place, codebook, drop path, heads, initialisation, what is refused.

Numbers of the reference are held by `test_golden_labram.py`, weights on disk by `test_loading_labram.py`.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import EEG, PATCH_SIZE
from tiny_labram import (
    labram_batch,
    labram_classifier,
    labram_config,
    labram_vq,
    labram_vq_config,
    masked_model,
)

from neurolm_hf import (
    LaBraMForMaskedEEGModeling,
    LaBraMForSequenceClassification,
    LaBraMModel,
    LaBraMVQModel,
)
from neurolm_hf.modeling_labram import draw_masked, masked_counts, spectrum_targets


SAMPLES = (EEG((4, 8), 2, seed=1), EEG((1, 4, 6), 3, seed=2), EEG((10,), 4, seed=3))
MASKS = tuple(
    torch.tensor(mask, dtype=torch.bool) for mask in ([1, 0, 0, 1], [0, 1, 1, 0, 0, 1, 0, 1, 1], [0, 0, 1, 1])
)
LABELS = {
    "single_label_classification": torch.tensor([2, 0, 1]),
    "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    "regression": torch.tensor([[0.3, -2.0, 1.0], [0.0, 0.5, 0.1], [1.0, 2.0, -1.0]]),
}
TOGETHER = [
    pytest.param(attention, side, id=f"{attention}-{side}")
    for attention, side in (("sdpa", "right"), ("sdpa", "left"), ("eager", "right"), ("eager", "left"))
]


def alone(sample):
    """A batch of one, in the way of the reference: nothing is padding."""
    return {name: values for name, values in labram_batch(sample).items() if name != "eeg_attention_mask"}


def together(side="right", extra_padding=2):
    """(batch, real patches of each row); what padding holds is arbitrary."""
    batch = labram_batch(*SAMPLES, extra_padding=extra_padding, padding_side=side)
    batch["input_values"][batch["eeg_attention_mask"] == 0] = 7.0
    return batch, list(batch["eeg_attention_mask"].bool())


def padded(rows, reals, fill=0):
    """Values of each row's real patches, laid into (batch, patches)."""
    laid = torch.full((len(reals), len(reals[0])), fill, dtype=rows[0].dtype)
    for row, (values, real) in enumerate(zip(rows, reals, strict=True)):
        laid[row, real] = values
    return laid


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual, expected, atol=2e-6):
    """Two dictionaries, or two lists, of tensors."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = list(actual.values()), list(expected.values())
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)


# --- mixed montages and lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "side"), TOGETHER)
def test_a_mixed_batch_is_tokenized_as_each_sample_alone(attention, side):
    model = labram_vq()
    model.set_attn_implementation(attention)
    batch, reals = together(side)
    output, singles = model(**batch), [model(**alone(sample)) for sample in SAMPLES]
    for row, (single, real) in enumerate(zip(singles, reals, strict=True)):
        assert torch.equal(output.codes[row, real], single.codes[0])
        assert (output.codes[row, ~real] == -1).all()
        for name in ("features", "quantized", "amplitude", "phase", "target_amplitude", "target_phase"):
            torch.testing.assert_close(output[name][row, real], single[name][0], atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(output.patch_losses[row, real], single.patch_losses[0], atol=2e-6, rtol=1e-4)
        for name in ("target_amplitude", "target_phase", "patch_losses"):
            assert not output[name][row, ~real].any()
    shares = torch.tensor([sample.patches for sample in SAMPLES]) / sum(sample.patches for sample in SAMPLES)
    for name in model(**batch).PATCH_LOSSES:
        expected = sum(share * single[name] for share, single in zip(shares, singles, strict=True))
        torch.testing.assert_close(output[name], expected, atol=2e-6, rtol=1e-4)
    expected = gradients(model, sum(share * single.loss for share, single in zip(shares, singles, strict=True)))
    assert_same(gradients(model, output.loss), expected)
    assert all(values.any() for name, values in expected.items() if "channel_embedding" in name)


@pytest.mark.parametrize(("attention", "side"), TOGETHER)
def test_codes_are_predicted_in_a_mixed_batch_as_alone(attention, side):
    model = masked_model()
    model.set_attn_implementation(attention)
    batch, reals = together(side)
    output = model(**batch, masked=padded(MASKS, reals))
    singles = [model(**alone(sample), masked=mask[None]) for sample, mask in zip(SAMPLES, MASKS, strict=True)]
    for row, (single, real) in enumerate(zip(singles, reals, strict=True)):
        for name in ("labels", "masked", "patch_hits"):
            assert torch.equal(output[name][row, real], single[name][0]), name
        for name in ("patch_losses", "logits"):
            torch.testing.assert_close(output[name][row, real], single[name][0], atol=2e-6, rtol=1e-4)
            assert not output[name][row, ~real].any()
        assert not output.masked[row, ~real].any()
        assert (output.labels[row, ~real] == -1).all()
    hidden, seen = (sum(float((mask == which).sum()) for mask in MASKS) for which in (True, False))
    pairs = list(zip(singles, MASKS, strict=True))
    masked_loss = sum(single.masked_loss * mask.sum() for single, mask in pairs) / hidden
    complement_loss = sum(single.complement_loss * (~mask).sum() for single, mask in pairs) / seen
    torch.testing.assert_close(output.masked_loss, masked_loss, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(output.complement_loss, complement_loss, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(output.loss, output.masked_loss + output.complement_loss)
    assert_same(gradients(model, output.loss), gradients(model, masked_loss + complement_loss))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("attention", "side"), TOGETHER)
def test_a_mixed_batch_is_classified_as_each_sample_alone(pooling, attention, side):
    model = labram_classifier(classifier_pooling=pooling, num_labels=3)
    model.set_attn_implementation(attention)
    labels = LABELS["single_label_classification"]
    output = model(**together(side)[0], labels=labels)
    singles = [model(**alone(sample), labels=label[None]) for sample, label in zip(SAMPLES, labels, strict=True)]
    for name in ("logits", "features"):
        expected = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(output[name], expected, atol=2e-6, rtol=1e-4)
        assert (expected[0] - expected[1]).abs().max() > 1e-2
    loss = sum(single.loss for single in singles) / 3
    torch.testing.assert_close(output.loss, loss, atol=2e-6, rtol=1e-4)
    assert_same(gradients(model, output.loss), gradients(model, loss))


def test_a_row_of_padding_alone_is_harmless():
    batch, rest = labram_batch(*SAMPLES), labram_batch(*SAMPLES[1:])
    batch["eeg_attention_mask"][0] = 0
    vq, masked = labram_vq().train(), masked_model().train()
    mask = padded(MASKS[1:], list(rest["eeg_attention_mask"].bool()))
    for model, more, expected in (
        (vq, {}, vq(**rest)),
        (masked, {"masked": torch.cat([torch.ones_like(mask[:1]), mask])}, masked(**rest, masked=mask)),
    ):
        output = model(**batch, **more)
        torch.testing.assert_close(output.loss, expected.loss, atol=2e-6, rtol=1e-4)
        assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())
        assert model.count_loss_items(**batch, **more).sum() == model.count_loss_items(**rest).sum()
    for pooling in ("mean", "cls"):
        with pytest.raises(ValueError, match="Sample 0 has no EEG"):
            labram_classifier(classifier_pooling=pooling)(**batch)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_input_gives_no_nan(value):
    model, batch = labram_vq().train(), labram_batch(*SAMPLES)
    batch["input_values"] = torch.full_like(batch["input_values"], value)
    output = model(**batch)
    assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())
    assert not spectrum_targets(batch["input_values"] * 0, None)[0].any()


# --- the cls token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_cls_token_stands_at_the_first_channel_in_masked_modelling_alone(side):
    model, labels = masked_model(), LABELS["single_label_classification"]
    batch, reals = together(side)
    output = model(**batch, masked=padded(MASKS, reals))
    rows = gradients(model, output.loss)["labram.transformer.channel_embedding.weight"]
    assert not rows[0].any()
    assert rows[[4, 8, 1, 6, 10]].any(1).all()
    for pooling in ("mean", "cls"):
        tuned = labram_classifier(classifier_pooling=pooling, num_labels=3)
        rows = gradients(tuned, tuned(**batch, labels=labels).loss)["labram.transformer.channel_embedding.weight"]
        assert rows[0].any()

    # the same as if row 0 were the first channel's
    transformer, mask = model.labram.transformer, batch["eeg_attention_mask"].bool()
    embeds = model.labram.patch_embedding(batch["input_values"], mask)
    ids = batch["eeg_channel_ids"], batch["eeg_time_ids"], mask
    moved = transformer(embeds, *ids, cls_at_first_channel=True)
    for row, sample in enumerate(SAMPLES):
        same = copy.deepcopy(transformer)
        same.channel_embedding.weight.data[0] = transformer.channel_embedding.weight[sample.channels[0]]
        real = F.pad(reals[row], (1, 0), value=True)
        torch.testing.assert_close(same(embeds, *ids)[row, real], moved[row, real])
        assert (transformer(embeds, *ids)[row, real] - moved[row, real]).abs().max() > 1e-3


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_encode_and_decode():
    model, batch = labram_vq(), labram_batch(*SAMPLES)
    encoded = model.encode(**batch)
    rows, patches = batch["eeg_time_ids"].shape
    assert list(encoded) == ["features", "quantized", "codes"]
    assert encoded.features.shape == (rows, patches, 100)
    assert encoded.quantized.shape == (rows, patches, 8)
    assert encoded.codes.shape == (rows, patches)
    ids = {name: values for name, values in batch.items() if name != "input_values"}
    real = batch["eeg_attention_mask"].bool()
    torch.testing.assert_close(encoded.quantized[real], model.encoder.quantizer.codebook[encoded.codes[real]])
    decoded, output = model.decode(encoded.codes, **ids), model(**batch)
    from_vectors = model.decode(quantized=encoded.quantized, **ids)
    assert list(decoded) == ["amplitude", "phase"]
    for name in decoded:
        assert decoded[name].shape == (rows, patches, PATCH_SIZE)
        for other in (from_vectors, output):
            torch.testing.assert_close(other[name][real], decoded[name][real])
    assert len(encoded.codes[real].unique()) > 3, "the codes tell something"


def test_one_second_decodes_too():
    """The reference's decoder mixes its axes up there."""
    model = labram_vq()
    batch = alone(EEG((4, 8, 2), 1, seed=5))
    output = model(**batch)
    assert output.amplitude.shape == (1, 3, PATCH_SIZE)
    ids = {name: values for name, values in batch.items() if name != "input_values"}
    torch.testing.assert_close(model.decode(output.codes, **ids).phase, output.phase)
    assert output.loss.isfinite()


def test_targets_are_z_scores_of_the_two_sided_spectrum():
    values = SAMPLES[1].values()[None]
    amplitude, phase = spectrum_targets(values, None)
    spectrum = torch.fft.fft(values.double())
    for target, expected in ((amplitude, spectrum.abs()), (phase, spectrum.angle())):
        expected = (expected - expected.mean()) / expected.std()
        # at 0 and at 100 Hz a full transform leaves the phase's sign to rounding
        inner = [bin_ for bin_ in range(PATCH_SIZE) if bin_ not in (0, 100)]
        torch.testing.assert_close(target[..., inner].double(), expected[..., inner], atol=2e-2, rtol=0)
    assert (phase[..., [0, 100]].unique().diff() > 1).all(), "0 or pi"
    assert phase[..., [0, 100]].unique().numel() == 2


def test_weights_of_the_losses():
    batch = labram_batch(*SAMPLES)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        model = labram_vq(amplitude_weight=weights[0], phase_weight=weights[1], commitment_weight=0.3)
        output = model(**batch)
        expected = weights[0] * output.amplitude_loss + weights[1] * output.phase_loss + output.commitment_loss
        torch.testing.assert_close(output.loss, expected)
        torch.testing.assert_close(output.commitment_loss, 0.3 * labram_vq()(**batch).commitment_loss)
        output.loss.backward()
        reached = [bool(h[0].weight.grad.any()) for h in (model.decoder.amplitude_head, model.decoder.phase_head)]
        assert reached == [weight > 0 for weight in weights]


def test_kmeans_places_the_codebook_and_steps_move_it():
    torch.manual_seed(0)
    model, batch = LaBraMVQModel(labram_vq_config(codebook_size=4)), labram_batch(*SAMPLES)
    quantizer = model.encoder.quantizer
    fresh = quantizer.codebook.clone()
    torch.testing.assert_close(fresh.norm(dim=1), torch.ones(4))
    model.eval()(**batch)
    model.update_codebook()
    assert torch.equal(quantizer.codebook, fresh), "evaluation teaches nothing"
    output = model.train()(**batch)
    assert quantizer.initialized
    placed = quantizer.codebook.clone()
    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)[output.codes >= 0].detach()
    codes = output.codes[output.codes >= 0]
    assert torch.equal(codes, torch.cdist(vectors, placed).argmin(1))
    model.update_codebook()
    means = torch.stack([vectors[codes == code].sum(0) for code in range(4)])
    means = torch.where(means.any(1, keepdim=True), F.normalize(means, dim=1), placed)
    expected = F.normalize(0.99 * placed + 0.01 * means, dim=1)
    torch.testing.assert_close(quantizer.codebook, expected, atol=1e-6, rtol=1e-5)
    model(**batch)
    model.drop_codebook_step()
    moved = quantizer.codebook.clone()
    model.update_codebook()
    assert torch.equal(quantizer.codebook, moved)


@torch.no_grad()
def test_dead_codes_are_revived():
    model = labram_vq(dead_code_threshold=0.1).train()
    quantizer = model.encoder.quantizer
    quantizer.cluster_size.fill_(1.0)
    unused = sorted(set(range(32)) - set(model.encode(**labram_batch(*SAMPLES)).codes.unique().tolist()))
    quantizer.cluster_size[unused[0]] = 0.0
    output = model(**labram_batch(*SAMPLES))
    model.update_codebook()
    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)[output.codes >= 0]
    assert (vectors - quantizer.codebook[unused[0]]).norm(dim=1).min() < 1e-6


# --- masked modelling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_as_many_patches_as_asked_are_masked_in_each_sample(ratio):
    real = torch.arange(12)[None] < torch.arange(13)[:, None]
    left = real.flip(1)
    torch.manual_seed(0)
    for mask in (real, left):
        drawn = draw_masked(mask, ratio)
        lengths = torch.arange(13)
        expected = [length - int(length * (1 - ratio)) for length in lengths.tolist()]
        assert drawn.sum(1).tolist() == masked_counts(mask, ratio).tolist() == expected
        assert not (drawn & ~mask).any()
    draws = torch.stack([draw_masked(real[-1:], ratio)[0] for _ in range(600)]).float()
    torch.testing.assert_close(draws.mean(0), torch.full((12,), ratio), atol=0.1, rtol=0)


def test_masks_follow_torchs_generator():
    model, batch = masked_model(), labram_batch(*SAMPLES)
    torch.manual_seed(1)
    first = model(**batch)
    second = model(**batch)
    torch.manual_seed(1)
    assert torch.equal(model(**batch).masked, first.masked)
    assert not torch.equal(second.masked, first.masked)
    assert first.masked.sum(1).tolist() == [2, 5, 2]
    assert model.count_loss_items(**batch).tolist() == [9.0, 8.0]


def test_every_patch_is_predicted_once_from_the_others():
    model, sample = masked_model(), SAMPLES[1]
    batch, mask = alone(sample), MASKS[1][None]
    output = model(**batch, masked=mask)
    embeds = model.labram.patch_embedding(batch["input_values"])
    logits = torch.empty(1, sample.patches, 32)
    for hidden in (mask, ~mask):
        seen = torch.where(hidden[..., None], model.mask_token, embeds)
        states = model.labram.transformer(
            seen, batch["eeg_channel_ids"], batch["eeg_time_ids"], cls_at_first_channel=True
        )
        logits[hidden] = model.code_head(states[:, 1:])[hidden]
    torch.testing.assert_close(output.logits, logits)
    losses = F.cross_entropy(logits[0], output.labels[0], reduction="none")
    torch.testing.assert_close(output.patch_losses[0], losses)
    torch.testing.assert_close(output.masked_loss, losses[mask[0]].mean())
    torch.testing.assert_close(output.complement_loss, losses[~mask[0]].mean())
    assert torch.equal(output.patch_hits, output.logits.argmax(-1) == output.labels)
    # the complement of a mask is the same two passes
    other = model(**batch, masked=~mask)
    torch.testing.assert_close(other.logits, output.logits)
    torch.testing.assert_close(other.masked_loss, output.complement_loss)
    # while training the logits of all codes are not kept
    assert model.train()(**batch, masked=mask).logits is None


def test_labels_are_the_frozen_tokenizers_codes():
    model, tokenizer = masked_model(), labram_vq()
    model.vq.load_state_dict(tokenizer.encoder.state_dict())
    state = copy.deepcopy(model.vq.state_dict())
    batch = labram_batch(*SAMPLES)
    codes = tokenizer.encode(**batch).codes
    output = model.train()(**batch)
    assert torch.equal(output.labels, codes)
    assert torch.equal(model.get_eeg_codes(**batch), codes)
    assert not model.vq.training
    assert model.labram.training
    got = gradients(model, output.loss)
    assert got.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("vq.") for name in got)
    assert not model.vq.quantizer._pending_batches
    assert_same(model.vq.state_dict(), state, atol=0)
    # labels that are given count
    given = codes.clamp(min=0).roll(1, 0)
    assert torch.equal(model(**batch, labels=given).labels, given.masked_fill(codes < 0, -1))
    # and without both there is nothing to lose
    bare = masked_model(vq_config=None)
    assert bare.vq is None
    output = bare(**batch)
    assert output.loss is None
    assert output.logits.shape == (3, 9, 32)
    with pytest.raises(ValueError, match="has no tokenizer"):
        bare.get_eeg_codes(**batch)
    with pytest.raises(ValueError, match=r"`labels` hold codes from 0 to 32; there are 32, from 0 on"):
        bare(**batch, labels=torch.where(codes == codes.max(), 32, 0))
    with pytest.raises(ValueError, match="`labels` hold codes from -1"):
        bare(**batch, labels=torch.full_like(codes, -1))


def test_counts_of_a_step_make_a_batch_s_losses_its_share():
    masked, vq = masked_model(), labram_vq()
    batch, reals = together()
    whole = masked(**batch, masked=padded(MASKS, reals))
    counts = masked.count_loss_items(**batch, masked=padded(MASKS, reals))
    assert counts.tolist() == [2 + 5 + 2, 2 + 4 + 2]
    parts = [(alone(sample), mask[None]) for sample, mask in zip(SAMPLES, MASKS, strict=True)]
    shares = [masked(**part, masked=mask, num_items_in_batch=counts) for part, mask in parts]
    for name in ("loss", "masked_loss", "complement_loss"):
        torch.testing.assert_close(sum(share[name] for share in shares), whole[name])
    counts = sum(vq.count_loss_items(**part) for part, _ in parts)
    assert counts.tolist() == vq.count_loss_items(**batch).tolist() == [17]
    shares = [vq(**part, num_items_in_batch=counts).loss for part, _ in parts]
    torch.testing.assert_close(sum(shares), vq(**batch).loss)


# --- classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_head_reads_what_the_config_says(pooling):
    model, batch = labram_classifier(classifier_pooling=pooling, num_labels=3), alone(SAMPLES[1])
    output = model(**batch)
    hidden = model.labram(**batch).last_hidden_state[0]
    if pooling == "mean":
        assert model.labram.transformer.norm is None
        expected = model.pooled_norm(hidden[1:].mean(0))
    else:
        assert model.pooled_norm is None
        embeds = model.labram.patch_embedding(batch["input_values"])
        model.labram.transformer.norm, norm = None, model.labram.transformer.norm
        bare = model.labram.transformer(embeds, batch["eeg_channel_ids"], batch["eeg_time_ids"])
        expected = norm(bare[0, 0])
        torch.testing.assert_close(hidden[0], expected)
    torch.testing.assert_close(output.features[0], expected)
    torch.testing.assert_close(output.logits, F.linear(output.features, model.score.weight, model.score.bias))


@pytest.mark.parametrize("problem_type", LABELS)
def test_losses_are_torchs_own(problem_type):
    model = labram_classifier(num_labels=3, problem_type=problem_type)
    labels = LABELS[problem_type]
    output = model(**labram_batch(*SAMPLES), labels=labels)
    expected = {
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem_type](output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.sample_losses.mean(), output.loss)
    counts = model.count_loss_items(labels=labels)
    assert counts.tolist() == [3.0]
    shares = [
        model(**alone(sample), labels=labels[row : row + 1], num_items_in_batch=counts).loss
        for row, sample in enumerate(SAMPLES)
    ]
    torch.testing.assert_close(sum(shares), output.loss)
    if problem_type != "single_label_classification":
        with pytest.raises(ValueError, match="`smoothing` is for classes"):
            model(**labram_batch(*SAMPLES), labels=labels, smoothing=0.1)


def test_smoothing_and_ignored_labels():
    model, batch = labram_classifier(num_labels=3), labram_batch(*SAMPLES)
    labels = torch.tensor([2, -100, 1])
    output = model(**batch, labels=labels, smoothing=0.1)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels, label_smoothing=0.1))
    assert output.sample_losses[1] == 0
    assert model(**batch, labels=labels).loss != output.loss
    with pytest.raises(ValueError, match="label of sample 1 is 3, but the head has 3 classes, 0 to 2"):
        model(**batch, labels=torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_all_that_is_there_trains(pooling):
    """No parameter is left without a gradient, which DistributedDataParallel would wait for."""
    model = labram_classifier(classifier_pooling=pooling, num_labels=3).train()
    labels = LABELS["single_label_classification"]
    for batch, mine in ((labram_batch(*SAMPLES), labels), (alone(SAMPLES[0]), labels[:1])):
        got = gradients(model, model(**batch, labels=mine).loss)
        assert got.keys() == dict(model.named_parameters()).keys()
    assert not any(name.startswith("vq") for name in got)
    vq = labram_vq().train()
    assert gradients(vq, vq(**labram_batch(*SAMPLES)).loss).keys() == dict(vq.named_parameters()).keys()


# --- drop path -------------------------------------------------------------------------------------------------------


def test_drop_path_grows_from_block_to_block_and_is_off_in_evaluation():
    model = labram_classifier(drop_path_rate=0.4, num_labels=3)
    layers = model.labram.transformer.layers
    assert [layer.drop_path for layer in layers] == pytest.approx([0.0, 0.2, 0.4])
    still = labram_classifier(num_labels=3)
    assert {layer.drop_path for layer in still.labram.transformer.layers} == {0.0}
    batch = labram_batch(*SAMPLES)
    torch.testing.assert_close(model(**batch).logits, still(**batch).logits)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(**batch).logits, still(**batch).logits)
    assert torch.equal(still.train()(**batch).logits, still(**batch).logits)
    assert LaBraMModel(labram_config(num_hidden_layers=1, drop_path_rate=0.4)).transformer.layers[0].drop_path == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = labram_classifier(drop_path_rate=0.4).labram.transformer.layers[2].train()
    torch.manual_seed(0)
    branches = layer._branch(torch.ones(4000, 3, 100), None)
    assert (branches == branches[:, :1, :1]).all(), "a sample goes as one"
    assert branches[:, 0, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert branches[:, 0, 0].mean().item() == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(
        layer.eval()._branch(torch.ones(2, 3, 100), layer.mlp_scale), layer.mlp_scale.expand(2, 3, 100)
    )


# --- initialisation --------------------------------------------------------------------------------------------------


def test_weights_of_masked_modelling_are_drawn_up_to_one_standard_deviation():
    torch.manual_seed(0)
    model = LaBraMForMaskedEEGModeling(labram_config(vq_config=None))
    drawn = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    assert {name.split(".")[0] for name in drawn} == {"labram", "mask_token", "code_head"}
    for name, values in drawn.items():
        deeper = name.endswith(("attention.output.weight", "mlp_out.weight"))
        reach = 0.02 / (2 * (1 + int(name.split(".")[3]))) ** 0.5 if deeper else 0.02
        assert values.abs().max() <= reach * (1 + 1e-6), name
        # of a normal distribution cut at one sigma
        assert values.std().item() == pytest.approx(0.54 * reach, rel=0.25), name
    for name, values in model.named_parameters():
        if name.endswith("_scale"):
            assert (values == 0.1).all(), name
        elif values.ndim == 1:
            assert (values == float("norm" in name and name.endswith("weight"))).all(), name


def test_weights_of_the_other_models():
    torch.manual_seed(0)
    vq = LaBraMVQModel(labram_vq_config())
    for model in (vq, LaBraMForSequenceClassification(labram_config(num_labels=5, vq_config=None))):
        for name, values in model.named_parameters():
            std = values.std().item() if values.numel() > 1 else 0.0
            if "conv" in name:
                # as torch draws it: uniform within 1 / sqrt(fan in)
                assert values.abs().max() <= (15 if "conv1" in name else 12) ** -0.5, name
                assert values.any(), name
            elif name.endswith(("attention.output.weight", "mlp_out.weight")):
                depth = 1 + int(name.split(".")[3])
                assert std == pytest.approx(0.02 / (2 * depth) ** 0.5, rel=0.1), name
            elif name == "score.weight":
                assert std == pytest.approx(0.02 * 0.001, rel=0.1)
            elif name.startswith("decoder.embedding"):
                assert values.abs().max() <= 8**-0.5, name
                assert std == pytest.approx(8**-0.5 / 3**0.5, rel=0.2), name
            elif values.ndim > 1:
                assert std == pytest.approx(0.02, rel=0.25), name
                assert values.numel() < 2000 or values.abs().max() > 0.04, "nothing is cut"
            elif not name.endswith("_scale"):
                assert (values == float("norm" in name and name.endswith("weight"))).all(), name
    torch.testing.assert_close(vq.encoder.quantizer.codebook.norm(dim=1), torch.ones(32))
    assert not vq.encoder.quantizer.initialized
    torch.manual_seed(0)
    assert_same(LaBraMVQModel(labram_vq_config()).state_dict(), vq.state_dict(), atol=0)


def test_depths_and_what_does_not_decay():
    model = masked_model()
    depth = {name: model.parameter_depth(name) for name, p in model.named_parameters() if p.requires_grad}
    assert model.depths == 5
    assert {name for name, value in depth.items() if value == 0} == {
        name for name in depth if "patch_embedding" in name or name.endswith(("cls_token", "channel_embedding.weight"))
    }
    for block in range(3):
        assert depth[f"labram.transformer.layers.{block}.mlp_in.weight"] == 1 + block
    for name in ("labram.transformer.time_embedding.weight", "labram.transformer.norm.weight", "mask_token"):
        assert depth[name] == 4
    assert depth["code_head.weight"] == 4
    assert {name for name in depth if model.no_weight_decay(name)} == {
        f"labram.transformer.{name}" for name in ("cls_token", "channel_embedding.weight", "time_embedding.weight")
    }


# --- what is refused -------------------------------------------------------------------------------------------------


MODELS = [
    pytest.param(labram_vq, id="tokenizer"),
    pytest.param(masked_model, id="masked"),
    pytest.param(labram_classifier, id="classifier"),
]


@pytest.mark.parametrize("make", MODELS)
def test_input_that_is_not_labrams_is_refused(make):
    model = make()
    batch = labram_batch(*SAMPLES)
    model(**batch)
    with pytest.raises(ValueError, match=r"shape \(batch, patches, 200\), got \(3, 9, 100\)"):
        model(**{**batch, "input_values": batch["input_values"][..., :100]})
    for name in ("eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask"):
        with pytest.raises(ValueError, match=rf"`{name}` must have the shape \(batch, patches\) = \(3, 9\)"):
            model(**{**batch, name: batch[name][:, 1:]})

    def ids(change, name="eeg_channel_ids"):
        changed = {key: values.clone() for key, values in batch.items()}
        change(changed[name])
        return changed

    # ids of the vocabulary itself, where the first is 0
    with pytest.raises(ValueError, match=r"Sample 1 has channel id 0; LaBraM's are 1 to 128, one more than the place"):
        model(**ids(lambda rows: rows.sub_(batch["eeg_attention_mask"])))
    with pytest.raises(ValueError, match=r"Sample 2 has channel id 129; LaBraM's are 1 to 128.*feature extractor"):
        model(**ids(lambda rows: rows[2].masked_fill_(rows[2] == 10, 129)))
    time_major = ids(lambda rows: rows[0, :4].copy_(torch.tensor([4, 8, 4, 8])))
    time_major["eeg_time_ids"][0, :4] = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="patches of sample 0 are not channel-major"):
        model(**time_major)
    with pytest.raises(ValueError, match=r"seconds of each channel must count 0, 1, 2"):
        model(**ids(lambda rows: rows[1, :9].copy_(torch.tensor([0, 1, 3] * 3)), "eeg_time_ids"))
    with pytest.raises(ValueError, match="patches of sample 2 are not channel-major"):
        model(**ids(lambda rows: rows[2].add_(1), "eeg_time_ids"))
    with pytest.raises(ValueError, match="A sample of 17 seconds is longer than the 16 seconds"):
        model(**alone(EEG((4, 8), 17)))
    model(**alone(EEG((128,), 16)))


def test_wrong_calls_of_the_decoder_are_refused():
    model, batch = labram_vq(), labram_batch(*SAMPLES)
    ids = {name: values for name, values in batch.items() if name != "input_values"}
    with pytest.raises(ValueError, match="either `codes` or `quantized`"):
        model.decode(**ids)
    with pytest.raises(ValueError, match="needs `eeg_channel_ids`"):
        model.decode(model.encode(**batch).codes)
    with pytest.raises(ValueError, match="first training batch has no real patch"):
        LaBraMVQModel(labram_vq_config()).train()(**{name: values * 0 for name, values in batch.items()})


# --- in transformers' ways -------------------------------------------------------------------------------------------


def test_hidden_states_attentions_and_tuples():
    batch = labram_batch(*SAMPLES)
    rows, patches = batch["eeg_time_ids"].shape
    for model, layers in ((labram_vq(), 2), (labram_classifier(), 3), (masked_model().labram, 3)):
        model.set_attn_implementation("eager")
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        # the encoder's alone, with the cls token first
        assert [h.shape for h in output.hidden_states] == [(rows, 1 + patches, 100)] * (layers + 1)
        assert [a.shape for a in output.attentions] == [(rows, 4, 1 + patches, 1 + patches)] * layers
        assert not output.attentions[0][0, :, :, 1 + SAMPLES[0].patches :].any()
        expected = model(**batch)
        assert expected.hidden_states is None
        assert_same(list(model(**batch, return_dict=False)), list(expected.to_tuple()))
    assert isinstance(masked_model()(**batch, return_dict=False), tuple)


@pytest.mark.parametrize("make", MODELS)
def test_gradient_checkpointing_gives_the_same_gradients(make):
    model, batch = make().train(), labram_batch(*SAMPLES)
    if make is masked_model:
        batch["masked"] = padded(MASKS, list(batch["eeg_attention_mask"].bool()))
    elif make is labram_classifier:
        batch["labels"] = torch.tensor([0, 1, 1])
    expected = gradients(model, model(**batch).loss)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_same(gradients(model, model(**batch).loss), expected, atol=1e-6)


@pytest.mark.slow  # it is compiled
def test_flex_attention_is_the_same():
    model, batch = labram_classifier(num_labels=3), labram_batch(*SAMPLES)
    expected = model(**batch).logits
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("make", MODELS)
def test_autocast_trains(make):
    model, batch = make().train(), labram_batch(*SAMPLES)
    if make is masked_model:
        batch["masked"] = padded(MASKS, list(batch["eeg_attention_mask"].bool()))
    elif make is labram_classifier:
        batch["labels"] = torch.tensor([0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    torch.testing.assert_close(output.loss, model(**batch).loss, atol=0.1, rtol=0.05)
    assert output.loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())


def test_training_lowers_the_losses():
    batch = labram_batch(*SAMPLES)
    for model in (labram_vq(), masked_model(layer_scale_init=None)):
        model.train()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
        losses = []
        torch.manual_seed(0)
        for _ in range(30):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            if isinstance(model, LaBraMVQModel):
                model.update_codebook()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
