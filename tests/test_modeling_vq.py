"""The neural tokenizer: padding, batch-mates, codebook, losses, adversary, saving."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tiny import EEG, PATCH_SIZE, randomize, vq_batch, vq_config, vq_model

from neurolm_hf import NeuroLMVQConfig, NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.layers_neurolm import VectorQuantizer, codebook_statistics
from neurolm_hf.modeling_neurolm import NeuroLMVQOutput, reconstruction_targets


SAMPLES = (EEG((3, 7), 2, seed=1), EEG((0, 3, 5), 3, seed=2), EEG((9,), 4, seed=3))
LOSSES = ("loss", "frequency_loss", "raw_loss", "commitment_loss")


@pytest.fixture
def model():
    return vq_model()


def gradients(model, batch, **kwargs):
    model.zero_grad()
    model(**batch, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual, expected, atol=2e-6):
    """Two dictionaries, or two lists, of tensors."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = list(actual.values()), list(expected.values())
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)


def sums_of(model):
    quantizer = model.encoder.quantizer
    return [quantizer._counts, quantizer._sums]


# --- padding and batch-mates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side, attention):
    model = vq_model()
    model.set_attn_implementation(attention)
    sample = SAMPLES[1]
    alone = model(**{k: v for k, v in vq_batch(sample).items() if k != "eeg_attention_mask"})
    padded_batch = vq_batch(sample, extra_padding=5, padding_side=side)
    padded_batch["input_values"][padded_batch["eeg_attention_mask"] == 0] = 7.0  # whatever padding holds
    padded = model(**padded_batch)
    real = padded_batch["eeg_attention_mask"][0].bool()

    assert torch.equal(padded.codes[0, real], alone.codes[0])
    assert (padded.codes[0, ~real] == -1).all()
    for name in ("features", "quantized", "frequency", "raw", "target_frequency", "target_raw"):
        torch.testing.assert_close(padded[name][0, real], alone[name][0], atol=2e-6, rtol=1e-5)
    assert padded.target_raw[0, ~real].abs().max() == 0
    for name in (*LOSSES, "codebook_usage", "perplexity"):
        torch.testing.assert_close(padded[name], alone[name], atol=2e-6, rtol=1e-5)
    assert_same(
        gradients(model, padded_batch),
        gradients(model, {k: v for k, v in vq_batch(sample).items() if k != "eeg_attention_mask"}),
    )


def test_batch_mates_change_no_feature_and_no_code(model):
    together = model.encode(**vq_batch(*SAMPLES))
    for row, sample in enumerate(SAMPLES):
        alone = model.encode(**vq_batch(sample))
        torch.testing.assert_close(together.features[row, : sample.patches], alone.features[0], atol=2e-6, rtol=1e-5)
        assert torch.equal(together.codes[row, : sample.patches], alone.codes[0])


def test_losses_of_a_batch_are_means_over_its_real_patches(model):
    together = model(**vq_batch(*SAMPLES, extra_padding=3))
    counts = torch.tensor([float(sample.patches) for sample in SAMPLES])
    for name in LOSSES:
        alone = torch.stack([model(**vq_batch(sample))[name] for sample in SAMPLES])
        torch.testing.assert_close(together[name], (alone * counts).sum() / counts.sum(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        together.loss, together.frequency_loss + together.raw_loss + together.commitment_loss, atol=1e-6, rtol=0
    )


def test_a_row_of_padding_alone_is_harmless(model):
    batch = vq_batch(*SAMPLES)
    batch["eeg_attention_mask"][0] = 0
    output = model.train()(**batch)
    expected = model(**vq_batch(*SAMPLES[1:]))
    torch.testing.assert_close(output.loss, expected.loss, atol=2e-6, rtol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model, batch).values())


def test_compatibility_switch_lets_padding_enter(model):
    """Padding as if it were real in norms, codebook and commitment, and in the denominators of the losses."""
    padded_model = NeuroLMVQModel(vq_config(padding_enters_statistics=True))
    padded_model.load_state_dict(model.state_dict())
    batch = vq_batch(SAMPLES[1], extra_padding=5)
    count = SAMPLES[1].patches
    ours, theirs = model(**batch), padded_model.eval()(**batch)
    assert (ours.features[0, :count] - theirs.features[0, :count]).abs().max() > 1e-3

    # the norms see every patch, attention sees the real ones
    embeds = padded_model.encoder.patch_embedding(batch["input_values"], None)
    features = padded_model.encoder.transformer(
        embeds, batch["eeg_channel_ids"], batch["eeg_time_ids"], batch["eeg_attention_mask"].bool()
    )
    torch.testing.assert_close(theirs.features, features)
    vectors = F.normalize(padded_model.encoder.to_codebook(features), dim=-1)
    nearest = padded_model.encoder.quantizer.codebook[padded_model.encoder.quantizer.lookup(vectors[0])]
    torch.testing.assert_close(theirs.commitment_loss, (vectors[0] - nearest).square().mean())
    error = (theirs.raw - theirs.target_raw)[0, :count].square().sum()
    torch.testing.assert_close(theirs.raw_loss, error / (PATCH_SIZE * (count + 5)))
    # targets hold real patches only, in either mode
    torch.testing.assert_close(theirs.target_raw, ours.target_raw)

    padded_model.train()(**batch)
    assert padded_model.encoder.quantizer._counts.sum() == count + 5
    unpadded = vq_batch(SAMPLES[1])
    torch.testing.assert_close(padded_model.eval()(**unpadded).loss, model(**unpadded).loss)


def test_targets_are_z_scores_of_the_whole_two_sided_spectrum():
    values = SAMPLES[0].values()[None]
    frequency, raw = reconstruction_targets(values, None, vq_config())
    amplitude = torch.fft.fft(values).abs()
    expected = (amplitude - amplitude.mean()) / amplitude.std()
    torch.testing.assert_close(frequency, expected[..., :100], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(raw, (values - values.mean()) / values.std(), atol=1e-5, rtol=1e-5)


def test_log_power_target_is_the_smoothed_z_score():
    values = vq_batch(EEG((1, 2), 3, seed=4))["input_values"]
    config = vq_config(frequency_target="log_power", frequency_smoothing=5, num_frequency_bins=60)
    frequency, _ = reconstruction_targets(values, None, config)
    power = torch.fft.fft(values[0].double()).abs()[:, :101].square()
    smooth = torch.stack([power[:, [abs(b + offset) for offset in range(-2, 3)]].mean(-1) for b in range(60)], dim=-1)
    logarithm = smooth.log()
    torch.testing.assert_close(
        frequency[0].double(), (logarithm - logarithm.mean()) / logarithm.std(), atol=1e-3, rtol=1e-3
    )
    # a gain changes nothing, and neither does padding
    louder, _ = reconstruction_targets(values * 1e3, None, config)
    torch.testing.assert_close(louder, frequency, atol=1e-4, rtol=1e-4)
    padded = vq_batch(EEG((1, 2), 3, seed=4), extra_padding=3)
    masked, _ = reconstruction_targets(padded["input_values"], padded["eeg_attention_mask"].bool(), config)
    torch.testing.assert_close(masked[:, :6], frequency)
    assert not masked[:, 6:].any()


def test_a_flat_channel_leaves_the_log_power_of_the_others_readable():
    values = vq_batch(EEG((1, 2), 3, seed=4))["input_values"]
    flat = torch.cat([values, torch.zeros(1, 1, PATCH_SIZE)], dim=1)
    frequency, _ = reconstruction_targets(flat, None, vq_config(frequency_target="log_power"))
    assert frequency.isfinite().all()
    assert frequency[0, :6].std() > 0.3


def test_weights_of_the_reconstruction_losses():
    batch = vq_batch(*SAMPLES)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        model = vq_model(frequency_weight=weights[0], raw_weight=weights[1])
        output = model(**batch)
        expected = weights[0] * output.frequency_loss + weights[1] * output.raw_loss + output.commitment_loss
        torch.testing.assert_close(output.loss, expected)
        torch.testing.assert_close(output.raw_loss, vq_model()(**batch).raw_loss)
        output.loss.backward()
        reached = [bool(d.head[0].weight.grad.any()) for d in (model.frequency_decoder, model.raw_decoder)]
        assert reached == [weight > 0 for weight in weights]


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_input_gives_no_nan(model, value):
    batch = vq_batch(*SAMPLES)
    batch["input_values"] = torch.full_like(batch["input_values"], value)
    output = model.train()(**batch)
    assert output.loss.isfinite()
    assert output.target_raw.abs().max() < 1e-6
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- encode, decode, forward -----------------------------------------------------------------------------------------


def test_encode_and_decode(model):
    batch = vq_batch(*SAMPLES)
    encoded = model.encode(**batch)
    rows, patches = batch["eeg_time_ids"].shape
    assert list(encoded) == ["features", "quantized", "codes"]
    assert encoded.features.shape == (rows, patches, 32)
    assert encoded.quantized.shape == (rows, patches, 8)
    assert encoded.codes.shape == (rows, patches)
    assert encoded.codes.dtype == torch.long

    ids = {name: value for name, value in batch.items() if name != "input_values"}
    decoded = model.decode(encoded.codes, **ids)
    assert list(decoded) == ["frequency", "raw"]
    assert decoded.frequency.shape == (rows, patches, 100)
    assert decoded.raw.shape == (rows, patches, PATCH_SIZE)
    real = batch["eeg_attention_mask"].bool()
    torch.testing.assert_close(encoded.quantized[real], model.encoder.quantizer.codebook[encoded.codes[real]])
    from_vectors = model.decode(quantized=encoded.quantized, **ids)
    torch.testing.assert_close(from_vectors.raw[real], decoded.raw[real])
    output = model(**batch)
    torch.testing.assert_close(output.raw[real], decoded.raw[real])
    assert torch.equal(output.codes, encoded.codes)


def test_codes_are_the_nearest_by_squared_distance(model):
    output = model(**vq_batch(*SAMPLES))
    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)
    distances = torch.cdist(vectors, model.encoder.quantizer.codebook)
    real = output.codes >= 0
    assert torch.equal(distances.argmin(-1)[real], output.codes[real])


def test_wrong_calls_are_refused(model):
    batch = vq_batch(*SAMPLES)
    ids = {name: value for name, value in batch.items() if name != "input_values"}
    with pytest.raises(ValueError, match="either `codes` or `quantized`"):
        model.decode(**ids)
    with pytest.raises(ValueError, match="needs `eeg_channel_ids`"):
        model.decode(model.encode(**batch).codes)
    with pytest.raises(ValueError, match=r"shape \(batch, patches, 200\)"):
        model.encode(batch["input_values"][..., :100], **ids)
    with pytest.raises(ValueError, match="`eeg_channel_ids` must have the shape"):
        model.encode(**{**batch, "eeg_channel_ids": batch["eeg_channel_ids"][:, 1:]})
    gap = batch["eeg_time_ids"].clone()
    gap[1, gap[1] == 2] = 3
    with pytest.raises(ValueError, match=r"seconds of sample 1 are \[0, 1, 3\]"):
        model.encode(**{**batch, "eeg_time_ids": gap})
    with pytest.raises(ValueError, match="longer than the 8 seconds"):
        model.encode(**vq_batch(EEG((0,), 9)))
    with pytest.raises(ValueError, match="without codebook"):
        NeuroLMVQModel(vq_config(has_codebook=False))


def test_hidden_states_and_attentions():
    model = vq_model()
    model.set_attn_implementation("eager")
    batch = vq_batch(*SAMPLES)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    rows, patches = batch["eeg_time_ids"].shape
    # the encoder's alone, not the decoders'
    assert [h.shape for h in output.hidden_states] == [(rows, patches, 32)] * 3
    assert [a.shape for a in output.attentions] == [(rows, 4, patches, patches)] * 2
    torch.testing.assert_close(model.encoder.transformer.norm(output.hidden_states[-1]), output.features)
    assert output.attentions[0][0, :, :, SAMPLES[0].patches :].abs().max() == 0
    assert model(**batch).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 3


@pytest.mark.parametrize("model_class", [NeuroLMVQModel, NeuroLMVQForPreTraining])
def test_return_dict_false_is_the_same_as_a_tuple(model_class):
    model = vq_model(model_class)
    batch = vq_batch(*SAMPLES)
    expected = model(**batch)
    got = model(**batch, return_dict=False)
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected.loss)
    assert list(expected) == [field for field in NeuroLMVQOutput.__dataclass_fields__ if field in expected]
    assert_same(list(got), list(expected.to_tuple()))
    assert_same(list(model(*batch.values(), return_dict=False)), list(expected.to_tuple()))
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    batch = vq_batch(*SAMPLES)
    expected = gradients(model.train(), batch)
    counts = model.encoder.quantizer._counts
    model.encoder.quantizer._forget_sums()
    model.gradient_checkpointing_enable()
    assert_same(gradients(model, batch), expected)
    assert torch.equal(model.encoder.quantizer._counts, counts)


# --- codebook --------------------------------------------------------------------------------------------------------


def test_update_is_the_moving_average_of_a_one_hot_computation(model):
    quantizer = model.encoder.quantizer
    batch = vq_batch(*SAMPLES)
    before, size = quantizer.codebook.clone(), quantizer.cluster_size.clone()
    output = model.train()(**batch)
    model.update_codebook()

    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)[output.codes >= 0].detach()
    one_hot = F.one_hot(output.codes[output.codes >= 0], 32).float()
    counts = one_hot.sum(0)
    means = (one_hot.T @ vectors) / counts.clamp(min=1)[:, None]
    moved = torch.where(counts[:, None] > 0, F.normalize(means, dim=-1), before)
    expected = F.normalize(0.99 * before + 0.01 * moved, dim=-1)
    torch.testing.assert_close(quantizer.codebook, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(quantizer.cluster_size, 0.99 * size + 0.01 * counts)
    unused = counts == 0
    assert unused.any()
    torch.testing.assert_close(quantizer.codebook[unused], before[unused], atol=1e-6, rtol=0)


def test_micro_batches_move_the_codebook_once(model):
    split = copy.deepcopy(model).train()
    model.train()(**vq_batch(*SAMPLES))
    model.update_codebook()
    before = split.encoder.quantizer.codebook.clone()
    for sample in SAMPLES:
        split(**vq_batch(sample))
        assert torch.equal(split.encoder.quantizer.codebook, before)
    split.update_codebook()
    assert not torch.equal(split.encoder.quantizer.codebook, before)
    torch.testing.assert_close(split.encoder.quantizer.codebook, model.encoder.quantizer.codebook)
    torch.testing.assert_close(split.encoder.quantizer.cluster_size, model.encoder.quantizer.cluster_size)
    # nothing new since: nothing moves
    after = split.encoder.quantizer.codebook.clone()
    split.update_codebook()
    assert torch.equal(split.encoder.quantizer.codebook, after)


@pytest.mark.parametrize("padded", [False, True])
def test_patch_losses_add_up_to_the_losses(padded):
    model = vq_model(padding_enters_statistics=padded, commitment_weight=0.7)
    batch = vq_batch(*SAMPLES, extra_padding=2)
    output = model(**batch)
    count = model.count_loss_items(**batch)
    assert count.tolist() == [3 * 11 if padded else 17]
    assert output.patch_losses.shape == (3, 11, 4)
    names = ("loss", "frequency_loss", "raw_loss", "commitment_loss")
    for name, total in zip(names, output.patch_losses.sum((0, 1)), strict=True):
        torch.testing.assert_close(output[name], total / count[0])
    padding = batch["eeg_attention_mask"] == 0
    assert (output.patch_losses[padding][:, 1:3] == 0).all()
    assert bool((output.patch_losses[padding][:, 3] == 0).all()) is not padded


def test_counts_of_a_step_make_a_batch_s_losses_its_share(pretraining_model):
    model = pretraining_model
    texts = torch.arange(9).view(3, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    whole = model(**vq_batch(*SAMPLES), text_input_ids=texts, text_attention_mask=mask)
    parts = [
        {**vq_batch(sample), "text_input_ids": texts[i : i + 1], "text_attention_mask": mask[i : i + 1]}
        for i, sample in enumerate(SAMPLES)
    ]
    counts = sum(model.count_loss_items(**part) for part in parts)
    assert counts.tolist() == [17, 17, 6]
    shares = [model(**part, num_items_in_batch=counts) for part in parts]
    for name in (*LOSSES, "eeg_alignment_loss", "text_alignment_loss"):
        torch.testing.assert_close(sum(share[name] for share in shares), whole[name])
    no_mask = {name: values for name, values in vq_batch(SAMPLES[0]).items() if name != "eeg_attention_mask"}
    assert model.count_loss_items(**no_mask).tolist() == [4, 4, 0]
    assert model.count_loss_items(**no_mask, text_input_ids=texts).tolist() == [4, 4, 9]


def test_a_dropped_step_does_not_move_the_codebook(model):
    start = model.encoder.quantizer.codebook.clone()
    model.train()(**vq_batch(SAMPLES[0]))
    model.drop_codebook_step()
    model(**vq_batch(SAMPLES[1]))
    model.update_codebook()
    assert torch.equal(model.encoder.quantizer.codebook, start)
    # the next step counts again
    model(**vq_batch(SAMPLES[1]))
    model.update_codebook()
    assert not torch.equal(model.encoder.quantizer.codebook, start)


def test_evaluation_teaches_the_codebook_nothing(model):
    state = copy.deepcopy(model.state_dict())
    model.eval()(**vq_batch(*SAMPLES))
    model.train().encode(**vq_batch(*SAMPLES))
    assert sums_of(model) == [None, None]
    model.update_codebook()
    assert_same(model.state_dict(), state, atol=0)


def test_kmeans_places_the_codebook_on_the_first_batch():
    torch.manual_seed(0)
    model = NeuroLMVQModel(vq_config(codebook_size=4)).train()
    quantizer = model.encoder.quantizer
    assert not quantizer.initialized
    first = quantizer.codebook.clone()
    model.eval()(**vq_batch(*SAMPLES))
    assert torch.equal(quantizer.codebook, first)
    state = torch.get_rng_state()
    output = model.train()(**vq_batch(*SAMPLES))
    assert torch.equal(torch.get_rng_state(), state)
    assert quantizer.initialized
    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)[output.codes >= 0].detach()
    # converged: every code is the direction of the mean of its vectors
    codes = quantizer.lookup(vectors)
    for code in codes.unique():
        expected = F.normalize(vectors[codes == code].mean(0), dim=0)
        torch.testing.assert_close(quantizer.codebook[code], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quantizer.cluster_size, torch.bincount(codes, minlength=4).float())
    placed = quantizer.codebook.clone()
    model(**vq_batch(SAMPLES[0]))
    assert torch.equal(quantizer.codebook, placed)


def test_kmeans_waits_for_a_batch_that_is_finite():
    model = NeuroLMVQModel(vq_config()).train()
    codebook = model.encoder.quantizer.codebook.clone()
    batch = vq_batch(*SAMPLES)
    output = model(**{**batch, "input_values": batch["input_values"] * float("nan")})
    assert not output.loss.isfinite()
    assert torch.equal(model.encoder.quantizer.codebook, codebook)
    assert not model.encoder.quantizer.initialized
    model.drop_codebook_step()
    model.update_codebook()
    model(**batch)
    assert model.encoder.quantizer.initialized


def test_kmeans_with_fewer_vectors_than_codes():
    model = NeuroLMVQModel(vq_config(codebook_size=64)).train()
    output = model(**vq_batch(SAMPLES[0]))
    torch.testing.assert_close(model.encoder.quantizer.codebook.norm(dim=1), torch.ones(64))
    assert output.commitment_loss < 1e-6
    with pytest.raises(ValueError, match="no real patch"):
        NeuroLMVQModel(vq_config()).train()(**{k: v * 0 for k, v in vq_batch(SAMPLES[0]).items()})


def quantizer_steps(batches, dead_code_threshold):
    """State of a fresh quantizer after k-means and as many updates as there are batches, each (n, codebook_dim)."""
    config = vq_config(codebook_size=6, dead_code_threshold=dead_code_threshold)
    quantizer = VectorQuantizer(config)
    for buffer in quantizer.buffers():
        buffer.zero_()
    for batch in batches:
        quantizer(batch[None], learn=True)
        quantizer.update()
    return quantizer.state_dict()


def distributed_steps(rank, folder, batches, lengths):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)  # ranks differ in their random state
    for threshold in (0.0, 0.3):
        mine = [batch.split([length, 20 - length])[rank] for batch, length in zip(batches, lengths, strict=True)]
        torch.save(quantizer_steps(mine, dead_code_threshold=threshold), f"{folder}/{threshold}-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_move_the_codebook_as_one_process_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(20, 8, generator=generator) for _ in range(3)]
    lengths = (13, 0, 20)  # of rank 0; in the last two batches one rank has no real patch at all
    mp.spawn(distributed_steps, args=(str(tmp_path), batches, lengths), nprocs=2)
    states = {name.stem: torch.load(name) for name in tmp_path.glob("*.pt")}
    assert_same(states["0.0-1"], states["0.0-0"], atol=0)
    assert_same(states["0.0-0"], quantizer_steps(batches, 0.0))
    # replacements of dead codes are drawn, but by one rank for all
    assert_same(states["0.3-1"], states["0.3-0"], atol=0)


@torch.no_grad()
def test_dead_codes_are_revived():
    model = vq_model(codebook_size=16, dead_code_threshold=0.1).train()
    quantizer = model.encoder.quantizer
    quantizer.cluster_size.fill_(1.0)
    quantizer.cluster_size[3] = 0.0
    features = model.encode(**vq_batch(*SAMPLES)).features
    quantizer.codebook[3] = -F.normalize(model.encoder.to_codebook(features)[0].sum(0), dim=0)
    before = quantizer.codebook[3].clone()
    output = model(**vq_batch(*SAMPLES))
    assert not (output.codes == 3).any()
    model.update_codebook()
    vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1)[output.codes >= 0]
    assert (quantizer.codebook[3] - before).norm() > 0.1
    assert (vectors - quantizer.codebook[3]).norm(dim=1).min() < 1e-6
    assert quantizer.cluster_size[3] > 0.5


def test_dead_codes_are_revived_from_every_micro_batch_of_a_step():
    """They are grouped by length: from the last one alone, all would come from the longest windows."""
    model = vq_model(codebook_size=64, dead_code_threshold=0.1).train()
    quantizer = model.encoder.quantizer
    quantizer.cluster_size.fill_(1.0)
    quantizer.cluster_size[16:] = 0.0
    outputs = [model(**vq_batch(sample)) for sample in SAMPLES[:2]]
    model.update_codebook()
    for output in outputs:
        vectors = F.normalize(model.encoder.to_codebook(output.features), dim=-1).flatten(0, 1)
        assert torch.cdist(quantizer.codebook, vectors).min() < 1e-3


def test_no_code_is_revived_by_default(model):
    model.encoder.quantizer.cluster_size.zero_()
    before = model.encoder.quantizer.codebook.clone()
    counts = torch.bincount(model.train()(**vq_batch(SAMPLES[0])).codes.flatten(), minlength=32)
    model.update_codebook()
    torch.testing.assert_close(model.encoder.quantizer.codebook[counts == 0], before[counts == 0], atol=1e-6, rtol=0)


def test_usage_and_perplexity():
    usage, perplexity = codebook_statistics(torch.tensor([[0, 0, 3], [5, -1, -1]]), 8)
    assert usage.item() == 3 / 8
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert perplexity.item() == pytest.approx(math.exp(entropy), rel=1e-6)
    usage, perplexity = codebook_statistics(torch.full((2, 3), -1), 8)
    assert (usage.item(), perplexity.item()) == (0.0, 1.0)


def test_quantizer_bypass():
    model = vq_model(quantizer_bypass=1.0)
    plain = NeuroLMVQModel(vq_config())
    plain.load_state_dict(model.state_dict())
    batch = vq_batch(*SAMPLES)
    torch.testing.assert_close(model.eval()(**batch).loss, plain.eval()(**batch).loss)

    model.encoder.quantizer.initialized.fill_(False)
    before = model.encoder.quantizer.codebook.clone()
    output = model.train()(**batch)
    torch.testing.assert_close(output.quantized, F.normalize(model.encoder.to_codebook(output.features), dim=-1))
    assert output.commitment_loss == 0
    model.update_codebook()
    assert torch.equal(model.encoder.quantizer.codebook, before)
    assert not model.encoder.quantizer.initialized

    model.config.quantizer_bypass = 0.5
    model.encoder.quantizer.initialized.fill_(True)
    output = model(**vq_batch(*[SAMPLES[0]] * 40))
    nearest = model.encoder.quantizer.codebook[output.codes]
    quantized = (output.quantized - nearest).flatten(1).norm(dim=1) < 1e-5
    assert 8 < quantized.sum() < 32


# --- precision -------------------------------------------------------------------------------------------------------


def assert_codebook_untouched(model, reference):
    assert model.dtype != torch.float32
    for name, buffer in reference.encoder.quantizer.named_buffers():
        moved = model.encoder.quantizer.get_buffer(name)
        assert moved.dtype == buffer.dtype
        assert torch.equal(moved, buffer)
    vectors = F.normalize(torch.randn(50, 8), dim=1)
    assert torch.equal(model.encoder.quantizer.lookup(vectors), reference.encoder.quantizer.lookup(vectors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codebook_stays_in_float32(model, tmp_path, dtype):
    batch = vq_batch(*SAMPLES)
    cast = copy.deepcopy(model).to(dtype)
    assert_codebook_untouched(cast, model)
    assert_codebook_untouched(copy.deepcopy(model).half(), model)
    model.save_pretrained(tmp_path)
    loaded = NeuroLMVQModel.from_pretrained(tmp_path, dtype=dtype)
    assert_codebook_untouched(loaded, model)
    for low in (cast, loaded):
        output = low.train()(**batch)
        assert output.loss.isfinite()
        low.update_codebook()
        assert low.encoder.quantizer.codebook.dtype == torch.float32
    # saving what was cast loses nothing of the codebook
    cast = copy.deepcopy(model).to(dtype)
    cast.save_pretrained(tmp_path / "cast")
    assert_codebook_untouched(NeuroLMVQModel.from_pretrained(tmp_path / "cast"), model)


def test_autocast_trains(model):
    batch = vq_batch(*SAMPLES)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(**batch)
    expected = model(**batch)
    torch.testing.assert_close(output.loss, expected.loss, atol=0.1, rtol=0.05)
    assert output.loss.dtype == torch.float32
    output.loss.backward()


# --- adversary -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretraining_model():
    return vq_model(NeuroLMVQForPreTraining)


def alignment_gradients(model, strength, **text):
    model.zero_grad()
    output = model(**vq_batch(*SAMPLES), **text, reversal_strength=strength)
    (output.loss - output.frequency_loss - output.raw_loss - output.commitment_loss).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_is_reversed_and_scaled(pretraining_model):
    model = pretraining_model
    features = model.vq.encode(**vq_batch(*SAMPLES)).features
    mask = vq_batch(*SAMPLES)["eeg_attention_mask"].bool()
    logits = model.alignment_classifier(features)[mask]
    expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    output = model(**vq_batch(*SAMPLES))
    torch.testing.assert_close(output.eeg_alignment_loss, expected)
    assert output.text_alignment_loss is None

    model.zero_grad()
    expected.backward()
    straight = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for strength in (0.0, 0.37, 1.0):
        reversed_ = alignment_gradients(model, strength)
        for name, gradient in straight.items():
            factor = -strength if name.startswith("vq.encoder") else 1.0
            torch.testing.assert_close(reversed_[name], factor * gradient, atol=1e-6, rtol=1e-3)


def test_strength_of_the_reversal_is_the_attribute_s_unless_given(pretraining_model):
    def encoder_gradient(**kwargs):
        return alignment_gradients(pretraining_model, **kwargs)["vq.encoder.patch_embedding.conv1.weight"]

    assert not encoder_gradient(strength=None).any()
    pretraining_model.reversal_strength = 0.6
    torch.testing.assert_close(encoder_gradient(strength=None), encoder_gradient(strength=0.6))
    assert not encoder_gradient(strength=0.0).any()


def test_text_side_of_the_adversary(pretraining_model):
    model = pretraining_model
    text = {
        "text_input_ids": torch.tensor([[4, 5, 6], [7, 0, 0]]),
        "text_attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    output = model(**vq_batch(*SAMPLES), **text)
    logits = model.alignment_classifier(model.text_embedding(torch.tensor([4, 5, 6, 7])))
    torch.testing.assert_close(output.text_alignment_loss, F.cross_entropy(logits, torch.ones(4, dtype=torch.long)))
    parts = ("frequency_loss", "raw_loss", "commitment_loss", "eeg_alignment_loss", "text_alignment_loss")
    torch.testing.assert_close(output.loss, sum(output[name] for name in parts))
    assert "text_embedding.weight" not in alignment_gradients(model, 1.0, **text)


def test_text_embedding_stays_frozen(pretraining_model, tmp_path):
    assert not pretraining_model.text_embedding.weight.requires_grad
    pretraining_model.save_pretrained(tmp_path)
    loaded, info = NeuroLMVQForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.text_embedding.weight.requires_grad
    assert all(p.requires_grad for name, p in loaded.named_parameters() if not name.startswith("text_embedding"))


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [NeuroLMVQModel, NeuroLMVQForPreTraining])
def test_saved_and_loaded_bit_for_bit(model_class, tmp_path):
    model = vq_model(model_class)
    batch = vq_batch(*SAMPLES)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = model_class.from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), model.state_dict(), atol=0)
    assert not loaded.training
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert torch.equal(loaded(**batch).loss, loaded(**batch).loss)
    assert isinstance(loaded.config, NeuroLMVQConfig)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_tokenizer_is_read_from_a_pretraining_folder(pretraining_model, tmp_path):
    pretraining_model.save_pretrained(tmp_path)
    loaded = NeuroLMVQModel.from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), pretraining_model.vq.state_dict(), atol=0)


def test_meta_device(model):
    with torch.device("meta"):
        skeleton = NeuroLMVQForPreTraining(vq_config())
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    assert skeleton.to_empty(device="cpu").vq.encoder.quantizer.codebook.dtype == torch.float32


def test_initialisation_is_deterministic_and_sane():
    torch.manual_seed(3)
    one = NeuroLMVQModel(vq_config())
    torch.manual_seed(3)
    other = NeuroLMVQModel(vq_config())
    assert_same(one.state_dict(), other.state_dict(), atol=0)
    torch.testing.assert_close(one.encoder.quantizer.codebook.norm(dim=1), torch.ones(32))
    for transformer in (one.encoder.transformer, one.raw_decoder.transformer):
        for embedding in (transformer.channel_embedding, transformer.time_embedding):
            assert embedding.weight.std().item() == pytest.approx(1.0, abs=0.2)
    # PyTorch's own initialisation: uniform within 1 / sqrt(fan in)
    assert one.encoder.patch_embedding.conv1.weight.std().item() == pytest.approx(15**-0.5 / 3**0.5, rel=0.1)
    assert one.encoder.patch_embedding.conv1.weight.abs().max() <= 15**-0.5
    assert one.encoder.transformer.layers[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert NeuroLMVQForPreTraining(vq_config()).text_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not one.encoder.quantizer.initialized


def test_a_codebook_that_never_moves_is_reported(model, monkeypatch, caplog):
    monkeypatch.setattr("neurolm_hf.layers_neurolm.BATCHES_BEFORE_WARNING", 2)
    monkeypatch.setattr("neurolm_hf.layers_neurolm.logger.warning", lambda text: warnings.append(text))
    warnings = []
    model.train()
    for _ in range(3):
        model(**vq_batch(SAMPLES[0]))
    assert len(warnings) == 1
    assert "update_codebook" in warnings[0]


def test_training_lowers_the_loss():
    model = randomize(NeuroLMVQModel(vq_config()), scale=0.02).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**vq_batch(*SAMPLES)).loss
        loss.backward()
        optimizer.step()
        model.update_codebook()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
