"""The language model: what sees what, where it stands, what it must predict, and what training may move."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny import (
    BACKBONES,
    EEG,
    EEG_TOKEN_ID,
    PAD_TOKEN_ID,
    ROWS,
    SEP,
    VOCAB_SIZE,
    blocks_of,
    language_model,
    lm_batch,
    lm_config,
    randomize,
    tokens_of,
    vq_config,
)

from neurolm_hf import NeuroLMForCausalLM, NeuroLMModel, modeling_neurolm
from neurolm_hf.modeling_neurolm import NeuroLMEEGEncoding, block_ids, positions_from_blocks, previous_second


OPTIONAL = ("mm_token_type_ids", "eeg_segment_ids", "eeg_attention_mask")
WIDTHS = [32, 48]


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


@pytest.fixture
def model(backbone):
    return language_model(backbone, 48)


@pytest.fixture
def gpt2():
    return language_model("gpt2", 32)


def positions_of(row):
    """Every text token and every second of every segment takes one position."""
    positions, position, previous = [], -1, 0
    for block in blocks_of(row):
        position += block == 0 or block != previous
        positions.append(position)
        previous = block
    return positions


def staircase_of(row):
    """(tokens, tokens): what each token of a row may see."""
    blocks = blocks_of(row)
    allowed = torch.zeros(len(blocks), len(blocks), dtype=torch.bool)
    for query, key in itertools.product(range(len(blocks)), repeat=2):
        allowed[query, key] = key <= query or (blocks[query] > 0 and blocks[query] == blocks[key])
    return allowed


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


def language_inputs(model, batch, **kwargs):
    """What the text model is called with."""
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**batch, **kwargs)
    hook.remove()
    return seen


def real_logits(model, batch):
    """Logits of each row without its padding."""
    with torch.no_grad():
        logits = model(**batch).logits
    return [logits[row, mask.bool()] for row, mask in enumerate(batch["attention_mask"])]


# --- masks, blocks, positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_mask_is_the_staircase(model, attention, padding_side, training):
    model.set_attn_implementation(attention)
    model.train(training)
    batch = without(lm_batch(ROWS, padding_side), "mm_token_type_ids")
    mask = language_inputs(model, batch)["attention_mask"]
    if isinstance(mask, dict):
        assert list(mask) == ["full_attention"]
        mask = mask["full_attention"]
    if mask.dtype != torch.bool:
        assert attention == "eager"
        assert ((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all()
        mask = mask == 0
    for row, real in enumerate(batch["attention_mask"].bool()):
        assert torch.equal(mask[row, 0, real][:, real], staircase_of(ROWS[row]))
        assert not mask[row, 0, real][:, ~real].any()


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("eeg_padding_side", ["left", "right"])
def test_blocks_and_positions(padding_side, eeg_padding_side):
    batch = lm_batch(ROWS, padding_side, eeg_padding_side, extra_padding=2)
    blocks = block_ids(
        batch["input_ids"] == EEG_TOKEN_ID,
        batch["eeg_time_ids"],
        batch["eeg_segment_ids"],
        batch["eeg_attention_mask"],
    )
    assert torch.equal(blocks, batch["mm_token_type_ids"])
    positions = positions_from_blocks(batch["attention_mask"].bool(), blocks)
    for row, real in enumerate(batch["attention_mask"].bool()):
        assert positions[row, real].tolist() == positions_of(ROWS[row])
        assert positions[row, ~real].abs().max() == 0
        # a block id that came back after text would let an earlier segment see a later one
        runs = [block for block, _ in itertools.groupby(blocks[row, real].tolist()) if block]
        assert runs == list(range(1, len(runs) + 1))


def test_blocks_with_padding_between_segments():
    time = torch.tensor([[0, 0, 1, 0, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1]])
    assert block_ids(torch.ones(1, 6).bool(), time, segments, mask).tolist() == [[1, 1, 2, 3, 3, 4]]
    time, segments = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 1]])
    mask = torch.tensor([[1, 0, 1, 1]])
    assert block_ids(torch.ones(1, 3).bool(), time, segments, mask).tolist() == [[1, 2, 3]]


def test_model_takes_these_positions(model):
    for padding_side in ("left", "right"):
        batch = lm_batch(ROWS, padding_side)
        positions = language_inputs(model, without(batch, "mm_token_type_ids"))["position_ids"]
        for row, real in enumerate(batch["attention_mask"].bool()):
            assert positions[row, real].tolist() == positions_of(ROWS[row])


def test_padding_and_batch_mates_change_no_logit(model):
    expected = [real_logits(model, lm_batch([row]))[0] for row in ROWS]
    for sides in itertools.product(("left", "right"), repeat=2):
        batch = lm_batch(ROWS, *sides, extra_padding=3)
        for logits, alone in zip(real_logits(model, batch), expected, strict=True):
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_eager_and_sdpa_agree(model):
    batch = lm_batch(ROWS)
    model.set_attn_implementation("sdpa")
    expected = real_logits(model, batch)
    model.set_attn_implementation("eager")
    for logits, other in zip(real_logits(model, batch), expected, strict=True):
        torch.testing.assert_close(logits, other, atol=1e-5, rtol=1e-4)


def test_later_input_changes_nothing_before_it(model):
    row = [5, EEG((3, 7), 2, seed=1), SEP, 11, EEG((0, 3, 5), 2, seed=2), 13, 14]
    base = real_logits(model, lm_batch([row]))[0]
    starts = [len(tokens_of(row[:piece])) for piece in range(len(row))]
    for piece, changed in ((1, EEG((3, 7), 2, seed=8)), (3, 12), (4, EEG((0, 3, 5), 2, seed=9)), (6, 15)):
        other = real_logits(model, lm_batch([[*row[:piece], changed, *row[piece + 1 :]]]))[0]
        difference = (other - base).abs().amax(-1)
        assert (difference[: starts[piece]] < 1e-5).all()
        assert (difference[starts[piece] :] > 1e-4).all()


def test_patches_of_one_second_see_each_other_and_nothing_later(model, monkeypatch):
    """At the language model: within a segment the encoder itself looks both ways."""
    row = [EEG((3, 7, 1), 3, seed=1), SEP, 11]
    batch = lm_batch([row])
    features = torch.randn(1, 9, 32)
    monkeypatch.setattr(model.model, "encode_eeg", lambda *args, **kwargs: NeuroLMEEGEncoding(features=features))
    base = real_logits(model, batch)[0]
    features = features.clone()
    features[0, 4] += 1.0  # second 1, channel 7
    difference = (real_logits(model, batch)[0] - base).abs().amax(-1)
    assert (difference[:3] < 1e-6).all()
    assert (difference[3:] > 1e-4).all()


@pytest.mark.slow
def test_flex_attention_sees_the_same():
    """Forward only: on a CPU it has no gradient. The first call compiles it."""
    model = language_model("llama", 48).eval().requires_grad_(False)
    batch = lm_batch(ROWS)
    expected = real_logits(model, batch)
    model.set_attn_implementation("flex_attention")
    assert model.model.eeg_encoder.config._attn_implementation == "flex_attention"
    assert model.model.language_model.config._attn_implementation == "flex_attention"
    for got, wanted in zip(real_logits(model, batch), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_ids_that_may_be_left_out(model):
    batch = lm_batch([[EEG((3, 7), 2, seed=1), SEP, 11, 12], [EEG((4, 0), 2, seed=2), SEP, 13, 14]])
    expected = model(**batch).logits
    torch.testing.assert_close(model(**without(batch, *OPTIONAL)).logits, expected, atol=1e-6, rtol=1e-5)
    for name in OPTIONAL:
        torch.testing.assert_close(model(**without(batch, name)).logits, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(**without(batch, "attention_mask")).logits, expected, atol=1e-6, rtol=1e-5)


def test_inputs_embeds(model):
    for batch in (lm_batch(ROWS), without(lm_batch(ROWS), "mm_token_type_ids")):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        expected = model(**batch, labels=labels)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        got = model(**without(batch, "input_ids"), inputs_embeds=embeds, labels=labels)
        torch.testing.assert_close(got.logits, expected.logits)
        torch.testing.assert_close(got.loss, expected.loss)


def test_keyword_and_tuple_calls(model):
    batch = lm_batch(ROWS)
    expected = model(**batch)
    got = model(**batch, return_dict=False)
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected.logits)
    got = model(**batch, labels=batch["input_ids"], return_dict=False)
    assert torch.equal(got[0], model(**batch, labels=batch["input_ids"]).loss)
    assert torch.equal(model(**batch).logits, expected.logits)  # twice the same
    base = model.model(**batch, return_dict=False)
    torch.testing.assert_close(base[0], model.model(**batch).last_hidden_state)


def test_hidden_states_and_attentions(model):
    model.set_attn_implementation("eager")
    batch = lm_batch(ROWS)
    rows, tokens = batch["input_ids"].shape
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in output.hidden_states] == [(rows, tokens, 48)] * 3
    assert [a.shape for a in output.attentions] == [(rows, 4, tokens, tokens)] * 2
    torch.testing.assert_close(model._logits(output.hidden_states[-1]), output.logits)
    assert model(**batch).hidden_states is None
    model.config.output_hidden_states = True
    model.config.output_attentions = True
    output = model(**batch)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    assert model(**batch, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("hidden_size", WIDTHS)
def test_eeg_features_and_codes(hidden_size):
    model = language_model("gpt2", hidden_size)
    batch = lm_batch(ROWS)
    eeg = {name: batch[name] for name in batch if name.startswith("eeg") or name == "input_values"}
    features, codes = model.get_eeg_features(**eeg), model.get_eeg_codes(**eeg)
    assert features.shape == (*batch["eeg_time_ids"].shape, hidden_size)
    real = batch["eeg_attention_mask"].bool()
    assert (codes[~real] == -1).all()
    assert ((codes[real] >= 0) & (codes[real] < 32)).all()
    torch.testing.assert_close(features[real], model.model.get_eeg_features(**eeg)[real])
    # each segment as if it were alone
    place = 0
    for piece in (piece for piece in ROWS[3] if isinstance(piece, EEG)):
        alone = lm_batch([[piece]])
        alone = {name: alone[name] for name in eeg}
        part = slice(place, place + piece.patches)
        place = part.stop
        torch.testing.assert_close(features[3, part], model.get_eeg_features(**alone)[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(codes[3, part], model.get_eeg_codes(**without(alone, *OPTIONAL))[0])
        encoder = model.model.eeg_encoder
        plain = encoder(alone["input_values"], alone["eeg_channel_ids"], alone["eeg_time_ids"])
        expected = model.model.eeg_projector(plain) + model.model.channel_embedding(alone["eeg_channel_ids"])
        torch.testing.assert_close(features[3, part], expected[0], atol=1e-5, rtol=1e-4)


def test_rows_of_text_alone_and_batches_without_eeg(model):
    batch = lm_batch(ROWS)
    batch["eeg_attention_mask"] *= 0
    keep = batch["input_ids"] == EEG_TOKEN_ID
    batch["input_ids"][keep] = 17
    batch = without(batch, "mm_token_type_ids")
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    for train in (False, True):
        model.train(train)
        torch.testing.assert_close(model(**batch).logits, model(**text).logits)


def test_wrong_inputs_are_refused(gpt2):
    rows = [[EEG((3, 7), 2), SEP, 11, 12], [EEG((4, 0), 2), SEP, 13, 14]]
    batch = lm_batch(rows)
    # totals match, rows do not: the EEG of one sample would slip into the next
    moved = batch["input_ids"].clone()
    moved[0, 3], moved[1, 4] = 11, EEG_TOKEN_ID
    with pytest.raises(ValueError, match="Sample 0 has 3 EEG placeholders but 4 patches"):
        gpt2(**{**batch, "input_ids": moved})
    for name in ("eeg_channel_ids", "eeg_time_ids"):
        with pytest.raises(ValueError, match="needs `eeg_channel_ids` and `eeg_time_ids`"):
            gpt2(**without(batch, name))
    gap = batch["eeg_time_ids"].clone()
    gap[1, 2:] = 2
    with pytest.raises(ValueError, match=r"seconds of sample 1 are \[0, 2\]"):
        gpt2(**{**batch, "eeg_time_ids": gap})
    with pytest.raises(ValueError, match=r"seconds of sample 0 are \[1, 2\]"):
        gpt2(**{**batch, "eeg_time_ids": batch["eeg_time_ids"] + 1})
    with pytest.raises(ValueError, match="longer than the 8 seconds"):
        gpt2(**lm_batch([[EEG((1,), 9), SEP]]))
    backwards = batch["eeg_segment_ids"].clone()
    backwards[0, :2] = 1
    with pytest.raises(ValueError, match="segments in order"):
        gpt2(**{**batch, "eeg_segment_ids": backwards, "eeg_time_ids": batch["eeg_time_ids"] * 0})
    with pytest.raises(ValueError, match="exactly one of"):
        gpt2(attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="2 rows, the EEG has 1"):
        gpt2(**{**batch, **{k: v[:1] for k, v in batch.items() if k.startswith("eeg") or k == "input_values"}})
    with pytest.raises(ValueError, match="placeholders"):
        gpt2(input_ids=batch["input_ids"], labels=batch["input_ids"])


def test_flash_attention_is_refused(gpt2):
    with pytest.raises(ValueError, match=r"[Ff]lash"):
        NeuroLMForCausalLM._from_config(lm_config(), attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match=r"[Ff]lash"):
        gpt2.set_attn_implementation("flash_attention_2")
    # of the text model alone, whose own class could do it
    gpt2.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="staircase"):
        gpt2(**lm_batch(ROWS))


def test_no_codebook(gpt2):
    model = randomize(NeuroLMForCausalLM(lm_config(eeg_config=vq_config(has_codebook=False))))
    batch = lm_batch(ROWS)
    assert model(**batch).logits.isfinite().all()
    text_labels = batch["input_ids"].masked_fill(batch["input_ids"] == EEG_TOKEN_ID, -100)
    assert model(**batch, labels=text_labels).text_loss > 0
    with pytest.raises(ValueError, match="no codebook"):
        model(**batch, labels=batch["input_ids"])


def test_slices_of_a_batch_are_batches(model):
    """A data dispatcher hands each process some rows of every tensor."""
    batch = lm_batch(ROWS)
    expected = model(**batch).logits
    for rows in (slice(0, 2), slice(2, 4), slice(1, 2)):
        part = model(**{name: value[rows] for name, value in batch.items()}).logits
        real = batch["attention_mask"][rows].bool()
        torch.testing.assert_close(part[real], expected[rows][real], atol=1e-5, rtol=1e-4)


def test_compatibility_switch_pads_the_encoder_too():
    config = lm_config(eeg_config=vq_config(padding_enters_statistics=True))
    padded, plain = randomize(NeuroLMForCausalLM(config)), language_model("gpt2", 32)
    padded.load_state_dict(plain.state_dict())
    batch = lm_batch([[EEG((3, 7), 3, seed=1), SEP], [EEG((2,), 2, seed=2), SEP], [SEP, 11]])
    eeg = {name: batch[name] for name in batch if name.startswith("eeg") or name == "input_values"}
    torch.testing.assert_close(padded.get_eeg_features(**eeg)[0], plain.get_eeg_features(**eeg)[0])
    difference = padded.get_eeg_features(**eeg)[1, :2] - plain.get_eeg_features(**eeg)[1, :2]
    assert difference.abs().max() > 1e-3
    assert torch.equal(padded.get_eeg_codes(**eeg) == -1, batch["eeg_attention_mask"] == 0)
    with pytest.raises(ValueError, match="one EEG segment a sample"):
        padded(**lm_batch(ROWS))


# --- labels and losses -----------------------------------------------------------------------------------------------


def brute_force_targets(row, codes):
    """{token: target row} of a row whose every token is labelled; `codes` of its patches in order."""
    targets, tokens = {}, tokens_of(row)
    patch_of = {}  # (segment, channel, second) -> (token, code)
    token, patch = 0, 0
    for segment, piece in enumerate(row):
        for second in range(getattr(piece, "seconds", 1)):
            for channel in getattr(piece, "channels", (None,)):
                if channel is not None:
                    patch_of[segment, channel, second] = (token, codes[patch])
                    patch += 1
                token += 1
    for (segment, channel, second), (token, _) in patch_of.items():
        if (segment, channel, second + 1) in patch_of:
            targets[token] = VOCAB_SIZE + patch_of[segment, channel, second + 1][1]
    for token in range(len(tokens) - 1):
        if EEG_TOKEN_ID not in tokens[token : token + 2]:
            targets[token] = tokens[token + 1]
    return targets


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_labels(model, sides):
    batch = lm_batch(ROWS, *sides, extra_padding=1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels)
    assert output.logits.shape == (*labels.shape, VOCAB_SIZE + 32)
    eeg, answer, text = [], [], []
    for index, row in enumerate(ROWS):
        words = answer if any(isinstance(piece, EEG) for piece in row) else text
        codes = output.eeg_codes[index, batch["eeg_attention_mask"][index].bool()].tolist()
        log_probs = output.logits[index, batch["attention_mask"][index].bool()].log_softmax(-1)
        for token, target in brute_force_targets(row, codes).items():
            (eeg if target >= VOCAB_SIZE else words).append(-log_probs[token, target])
    torch.testing.assert_close(output.eeg_loss, torch.stack(eeg).mean())
    torch.testing.assert_close(output.answer_loss, torch.stack(answer).mean())
    torch.testing.assert_close(output.text_loss, torch.stack(text).mean())
    torch.testing.assert_close(output.loss, output.eeg_loss + output.answer_loss + output.text_loss)


@pytest.mark.parametrize("chunk", [5, 512])
def test_training_keeps_no_logits_and_gives_the_gradients_of_all_of_them(model, monkeypatch, chunk):
    monkeypatch.setattr(modeling_neurolm, "LOSS_CHUNK", chunk)
    widest = []
    chunks = modeling_neurolm._cross_entropy_chunk
    monkeypatch.setattr(
        modeling_neurolm, "_cross_entropy_chunk", lambda *args: widest.append(len(args[0])) or chunks(*args)
    )
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    plain = model.train()(**batch, labels=labels, return_logits=True)
    wanted = plain.targets != -100
    losses = F.cross_entropy(plain.logits[wanted], plain.targets[wanted], reduction="none")
    kinds = F.one_hot(plain.target_kinds).float()
    expected = (losses @ kinds / kinds.sum(0)).sum()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # scaled, as by DistributedDataParallel or for fp16
    expected_gradients = torch.autograd.grad(3 * expected, parameters, allow_unused=True)

    widest.clear()
    output = model(**batch, labels=labels)
    assert output.logits is None
    assert (max(widest), sum(widest)) == (min(chunk, len(losses)), len(losses))
    torch.testing.assert_close(output.loss, expected)
    for gradient, wanted_gradient in zip(
        torch.autograd.grad(3 * output.loss, parameters, allow_unused=True), expected_gradients, strict=True
    ):
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted_gradient, atol=5e-6, rtol=1e-5)
    text_rows = model.lm_head.out_features
    of_kind = [
        (text_rows + logits[text_rows:].argmax() if target >= text_rows else logits[:text_rows].argmax()) == target
        for logits, target in zip(plain.logits[wanted], plain.targets[wanted], strict=True)
    ]
    assert output.target_hits.tolist() == of_kind
    assert output.target_rows.tolist() == wanted.nonzero()[:, 0].tolist()


def test_the_last_mlp_computes_what_is_wanted_alone(model):
    batch = lm_batch([[EEG((3, 7), 2, seed=1), SEP, 11, 12], [EEG((4, 0, 2), 2, seed=2), SEP, 13, 14, 15]])
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    layers = (
        model.model.language_model.h if hasattr(model.model.language_model, "h") else model.model.language_model.layers
    )
    seen = [[], []]
    for layer, sizes in zip(layers, seen, strict=True):
        layer.mlp.register_forward_hook(
            lambda module, args, output, sizes=sizes: sizes.append(args[0].shape[:2].numel())
        )
    everywhere = model.train()(**batch, labels=labels, return_logits=True)
    everywhere.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = model(**batch, labels=labels)
    output.loss.backward()
    tokens = batch["input_ids"].numel()
    assert seen == [[tokens, tokens], [tokens, 4]]
    torch.testing.assert_close(output.target_losses, everywhere.target_losses)
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)
    # the hooks are gone, and whoever asks for all hidden states gets them whole
    states = model(**batch, labels=labels, output_hidden_states=True).hidden_states
    whole = model(**batch, output_hidden_states=True, return_logits=True).hidden_states
    torch.testing.assert_close(states[-1], whole[-1])
    model.gradient_checkpointing_enable()
    model.zero_grad()
    model(**batch, labels=labels).loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-6, rtol=1e-5)


def test_losses_without_a_gradient_make_none(gpt2, monkeypatch):
    seen = []
    chunks = modeling_neurolm._cross_entropy_chunk
    monkeypatch.setattr(modeling_neurolm, "_cross_entropy_chunk", lambda *args: seen.append(args[5]) or chunks(*args))
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    gpt2.train()(**batch, labels=labels)
    with torch.no_grad():
        gpt2(**batch, labels=labels)
    gpt2.requires_grad_(False).lm_head.requires_grad_(True)
    gpt2(**batch, labels=labels)
    assert [[gradient is not None for gradient in given] for given in seen] == [
        [True, True, True],
        [False, False, False],
        [False, True, False],
    ]


def test_mixed_precision_gives_nearly_the_same_gradients(gpt2):
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = gpt2.train()(**batch, labels=labels)
    expected.loss.backward()
    exact = {name: p.grad.clone() for name, p in gpt2.named_parameters() if p.grad is not None}
    gpt2.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = gpt2(**batch, labels=labels)
    output.loss.backward()
    assert output.target_losses.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0)
    for name in ("lm_head.weight", "code_head.weight", "model.language_model.h.1.mlp.c_fc.weight"):
        got = gpt2.get_parameter(name).grad
        assert got.dtype == torch.float32
        assert (got - exact[name]).norm() < 0.05 * exact[name].norm()
        assert not torch.equal(got, exact[name])


def test_float16_keeps_gradients_of_many_targets(gpt2):
    """With a GradScaler's factor, which must come before what is small is rounded to nothing."""
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    given = {**batch, "labels": labels, "num_items_in_batch": torch.full((3,), 2e5)}
    gpt2.train()(**given).loss.backward()
    exact = {name: p.grad.clone() for name, p in gpt2.named_parameters() if p.grad is not None}
    gpt2.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = gpt2(**given).loss
    (2**15 * loss).backward()
    for name in ("lm_head.weight", "code_head.weight", "model.language_model.h.1.mlp.c_fc.weight"):
        got = gpt2.get_parameter(name).grad / 2**15
        assert (got - exact[name]).norm() < 0.02 * exact[name].norm()


def test_adapted_heads_give_the_same_losses(gpt2, monkeypatch):
    monkeypatch.setattr(modeling_neurolm, "LOSS_CHUNK", 5)
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    config = LoraConfig(r=2, target_modules=["lm_head", "code_head"], init_lora_weights=False)
    adapted = get_peft_model(gpt2, config).train()
    output = adapted(**batch, labels=labels)
    output.loss.backward()
    adapter = adapted.base_model.model.code_head.lora_A["default"].weight
    own = adapter.grad.clone()
    adapter.grad = None
    # logits of all targets at once, through the adapter's layers
    whole = adapted(**batch, labels=labels, return_logits=True)
    wanted = whole.targets != -100
    losses = F.cross_entropy(whole.logits[wanted], whole.targets[wanted], reduction="none")
    kinds = F.one_hot(whole.target_kinds).float()
    (losses @ kinds / kinds.sum(0)).sum().backward()
    torch.testing.assert_close(output.target_losses, losses.detach())
    torch.testing.assert_close(own, adapter.grad, atol=1e-6, rtol=1e-5)
    assert own.abs().max() > 1e-4
    merged = adapted.merge_and_unload()(**batch, labels=labels)
    for name in ("loss", "eeg_loss", "target_losses"):
        torch.testing.assert_close(output[name], merged[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(output.target_hits, merged.target_hits)


def test_texts_beside_the_samples_are_as_rows_among_them(model):
    samples, texts = [ROWS[0], ROWS[2]], [[SEP, 21, 22, 23, 24, 25], [31, 32]]
    both = lm_batch([*samples, *texts], "right")
    whole = model.train()(**both, labels=both["input_ids"].masked_fill(both["attention_mask"] == 0, -100))
    batch = lm_batch(samples)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    beside = {
        "text_input_ids": torch.tensor([texts[0], [*texts[1], 0, 0, 0, 0]]),
        "text_attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]),
    }
    output = model(**batch, **beside, labels=labels)
    for name in ("loss", "eeg_loss", "answer_loss", "text_loss", "target_losses", "target_rows", "target_kinds"):
        torch.testing.assert_close(output[name], whole[name])
    assert model.count_loss_items(**batch, **beside, labels=labels).tolist() == (
        model.count_loss_items(**both, labels=both["input_ids"]).tolist()
    )
    # a text of one token predicts nothing
    nothing = model(**batch, labels=labels, text_input_ids=torch.tensor([[SEP]]))
    assert nothing.text_loss is None
    torch.testing.assert_close(nothing.loss, output.eeg_loss + output.answer_loss)


def test_features_that_were_computed_before(gpt2):
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = gpt2.train()(**batch, labels=labels)
    encoding = gpt2.encode_eeg(**{name: batch[name] for name in batch if name.startswith(("eeg", "input_values"))})
    gpt2.model.eeg_encoder.forward = None
    kept = {"eeg_features": encoding.features, "eeg_codes": encoding.codes}
    rest = without(batch, "input_values")
    output = gpt2(**rest, **kept, labels=labels)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.eeg_codes, expected.eeg_codes)
    assert torch.equal(
        gpt2.count_loss_items(**rest, **kept, labels=labels), gpt2.count_loss_items(**batch, labels=labels)
    )
    with pytest.raises(ValueError, match="not both"):
        gpt2(**batch, **kept)
    with pytest.raises(ValueError, match=r"`eeg_codes` of the shape .* got None"):
        gpt2(**rest, eeg_features=encoding.features, labels=labels)
    with pytest.raises(ValueError, match=r"\(batch, patches, 32\), got"):
        gpt2(**rest, eeg_features=encoding.features[..., :3])
    gpt2.config.freeze_eeg_encoder = False
    with pytest.raises(ValueError, match="out of date"):
        gpt2(**rest, **kept)


def test_targets_and_their_losses_add_up_to_the_loss(model):
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels)
    wanted = output.targets != -100
    is_eeg = batch["input_ids"][wanted] == EEG_TOKEN_ID
    assert torch.equal(is_eeg, output.targets[wanted] >= VOCAB_SIZE)
    losses = F.cross_entropy(output.logits[wanted], output.targets[wanted], reduction="none")
    torch.testing.assert_close(output.target_losses, losses)
    torch.testing.assert_close(output.eeg_loss, losses[is_eeg].mean())
    has_eeg = (batch["input_ids"] == EEG_TOKEN_ID).any(1, keepdim=True).expand_as(wanted)[wanted]
    kinds = [is_eeg, ~is_eeg & has_eeg, ~has_eeg]
    assert min(int(kind.sum()) for kind in kinds) > 1
    assert model.count_loss_items(**batch, labels=labels).tolist() == [kind.sum() for kind in kinds]
    assert [(output.target_kinds == index).tolist() for index in range(3)] == [kind.tolist() for kind in kinds]
    for name, kind in zip(("eeg_loss", "answer_loss", "text_loss"), kinds, strict=True):
        torch.testing.assert_close(output[name], losses[kind].mean())


def test_counts_of_a_step_make_a_batch_s_loss_its_share(model):
    batch, alone = lm_batch(ROWS), [lm_batch([row]) for row in ROWS]
    whole = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))
    counts = sum(model.count_loss_items(**part, labels=part["input_ids"]) for part in alone)
    shares = [model(**part, labels=part["input_ids"], num_items_in_batch=counts) for part in alone]
    torch.testing.assert_close(sum(share.loss for share in shares), whole.loss)
    eeg = [share.eeg_loss for share in shares if share.eeg_loss is not None]
    assert len(eeg) == 3
    torch.testing.assert_close(sum(eeg), whole.eeg_loss)


def test_counting_asks_no_more_of_a_batch_than_its_loss_does(gpt2):
    # a channel twice in a second: no matter as long as no code is predicted
    batch = lm_batch([[EEG((3, 3), 2), SEP, 11, 12]])
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == EEG_TOKEN_ID, -100)
    assert gpt2(**batch, labels=labels).loss.isfinite()
    assert gpt2.count_loss_items(**batch, labels=labels).tolist() == [0.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="a channel twice in one second"):
        gpt2.count_loss_items(**batch, labels=batch["input_ids"])
    with pytest.raises(ValueError, match="`labels`"):
        gpt2.count_loss_items(**batch)


def test_one_encoder_pass_gives_features_and_codes(gpt2):
    batch = lm_batch(ROWS)
    calls = []
    gpt2.model.eeg_encoder.register_forward_hook(lambda *args: calls.append(1))
    output = gpt2(**batch, labels=batch["input_ids"])
    assert len(calls) == 1
    eeg = {name: batch[name] for name in batch if name.startswith("eeg") or name == "input_values"}
    assert torch.equal(output.eeg_codes, gpt2.get_eeg_codes(**eeg))
    # nobody asks for codes: nothing is looked up
    text_labels = batch["input_ids"].masked_fill(batch["input_ids"] == EEG_TOKEN_ID, -100)
    gpt2.model.eeg_encoder.quantizer.lookup = None
    assert gpt2(**batch, labels=text_labels).eeg_codes is None


def test_ignored_labels(gpt2):
    row = [EEG((3, 7), 3, seed=1), SEP, 11, 12, 13]
    batch = lm_batch([row])
    codes = gpt2.get_eeg_codes(batch["input_values"], batch["eeg_channel_ids"], batch["eeg_time_ids"])[0]
    labels = torch.full_like(batch["input_ids"], -100)
    output = gpt2(**batch, labels=labels)
    assert (output.loss.item(), output.eeg_loss, output.answer_loss, output.text_loss) == (0.0, None, None, None)
    gpt2.train()(**batch, labels=labels).loss.backward()
    gpt2.eval()
    # the first second and text right after EEG are never targets
    labels[0, [0, 1, 6]] = batch["input_ids"][0, [0, 1, 6]]
    assert gpt2(**batch, labels=labels).loss == 0
    # one patch, (channel 7, second 2), and one text token
    labels = torch.full_like(labels, -100)
    labels[0, 5], labels[0, 8] = EEG_TOKEN_ID, 12
    output = gpt2(**batch, labels=labels)
    logits = output.logits[0]
    torch.testing.assert_close(output.eeg_loss, F.cross_entropy(logits[3], VOCAB_SIZE + codes[5]))
    torch.testing.assert_close(output.answer_loss, F.cross_entropy(logits[7], torch.tensor(12)))
    assert output.text_loss is None


def test_channels_that_come_and_go():
    """A channel that the second before lacks has no predictor; order within a second does not matter."""
    channels = torch.tensor([[3, 7, 7, 3, 5, 5, 3, 9]])
    seconds = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0]])
    segments = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1]])
    expected = [[-1, -1, 1, 0, -1, 4, 3, -1]]
    assert previous_second(channels, seconds, segments, torch.ones_like(channels)).tolist() == expected
    assert previous_second(channels, seconds, segments, None).tolist() == expected
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]])
    assert previous_second(channels, seconds, segments, mask).tolist() == [[-1, -1, 1, -1, -1, 4, -1, -1]]


def test_logits_are_text_rows_then_code_rows(gpt2):
    batch = lm_batch(ROWS)
    hidden = gpt2.model(**batch).last_hidden_state
    logits = gpt2(**batch).logits
    torch.testing.assert_close(logits[..., :VOCAB_SIZE], hidden @ gpt2.lm_head.weight.T)
    torch.testing.assert_close(logits[..., VOCAB_SIZE:], hidden @ gpt2.code_head.weight.T)
    torch.testing.assert_close(gpt2(**batch, text_logits_only=True).logits, logits[..., :VOCAB_SIZE])
    torch.testing.assert_close(gpt2(**batch, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(gpt2(**batch, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])


# --- training --------------------------------------------------------------------------------------------------------


def labelled(rows):
    batch = lm_batch(rows)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(model):
    batch = labelled(ROWS)
    expected = gradients(model.train(), batch)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        got = gradients(model, batch)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


def frozen_state(model):
    return copy.deepcopy(model.model.eeg_encoder.state_dict())


def assert_tower_frozen(model):
    assert not any(p.requires_grad for p in model.model.eeg_encoder.parameters())
    assert not any(module.training for module in model.model.eeg_encoder.modules())


def test_tower_stays_frozen(model, tmp_path):
    assert_tower_frozen(model)
    assert_tower_frozen(model.train())
    assert model.model.language_model.training
    model.save_pretrained(tmp_path)
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path)
    assert_tower_frozen(loaded)
    assert_tower_frozen(loaded.train())
    base, _ = NeuroLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(p.requires_grad for p in base.train().eeg_encoder.parameters())
    assert not base.eeg_encoder.training


def trained(model, rows, steps=2, **arguments):
    from transformers import Trainer, TrainingArguments

    batch = labelled(rows)
    dataset = [{name: value[index] for name, value in batch.items()} for index in range(len(rows))]
    arguments = TrainingArguments(
        use_cpu=True, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        save_strategy="no", disable_tqdm=True, logging_strategy="no", **arguments,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=dataset).train()
    return model


def changed(model, before):
    """First parts of the names of what training has moved."""
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_trainer_leaves_the_tower_alone(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    trained(model, ROWS, output_dir=str(tmp_path), gradient_checkpointing=True)
    moved = changed(model, before)
    assert not any("eeg_encoder" in name for name in moved)
    assert {"lm_head.weight", "code_head.weight", "model.channel_embedding.weight"} <= moved
    assert {"model.eeg_projector.0.weight", "model.eeg_projector.0.bias"} <= moved
    assert any("language_model" in name for name in moved)
    assert_tower_frozen(model)


def test_trainer_evaluates(gpt2, tmp_path):
    """Batches with and without EEG targets: losses of a kind come and go, predictions do not."""
    from transformers import Trainer, TrainingArguments

    batch = labelled(ROWS)
    dataset = [{name: value[index] for name, value in batch.items()} for index in range(len(ROWS))]
    shapes = []
    trainer = Trainer(
        gpt2,
        TrainingArguments(
            str(tmp_path), use_cpu=True, per_device_eval_batch_size=1, report_to=[], disable_tqdm=True,
        ),
        eval_dataset=dataset,
        compute_metrics=lambda prediction: shapes.append(prediction.predictions.shape) or {},
    )  # fmt: skip
    with torch.no_grad():
        expected = [gpt2(**{name: value[None] for name, value in row.items()}).loss for row in dataset]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert shapes == [(len(ROWS), batch["input_ids"].shape[1], VOCAB_SIZE + 32)]


def test_tower_trains_when_asked(tmp_path):
    model = language_model("gpt2", 48, freeze_eeg_encoder=False)
    assert model.train().model.eeg_encoder.training
    before = copy.deepcopy(model.state_dict())
    trained(model, ROWS, output_dir=str(tmp_path))
    moved = {name for name in changed(model, before) if "eeg_encoder" in name}
    assert any("transformer.layers" in name for name in moved)
    # codes are targets: no gradient reaches what makes them
    assert not any("quantizer" in name or "to_codebook" in name for name in moved)
    got = gradients(model, labelled(ROWS))
    assert got.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path / "saved")
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.model.eeg_encoder.transformer.norm.weight.requires_grad


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("hidden_size", WIDTHS)
def test_text_alone_touches_every_trained_parameter(hidden_size, frozen):
    """Otherwise processes with and without EEG wait for each other's gradients for ever."""
    model = language_model("gpt2", hidden_size, freeze_eeg_encoder=frozen).train()
    for rows in ([[5, 6, 7, 8]], ROWS):
        got = gradients(model, labelled(rows))
        assert got.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    batch = labelled([[5, 6, 7, 8], [EEG((1,), 2), SEP, 9]])
    first = {name: value[:1] for name, value in batch.items()}  # text only, with the EEG keys of its batch
    got = gradients(model, first)
    assert got.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_bfloat16(model, tmp_path):
    batch = labelled(ROWS)
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.eeg_encoder.quantizer.codebook.dtype == torch.float32
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    output = loaded(**batch)
    torch.testing.assert_close(output.loss.float(), expected.loss, atol=0.3, rtol=0.1)
    loaded.train()(**batch).loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, atol=0.3, rtol=0.1)


def test_pad_rows_do_not_matter():
    """Whatever stands at padding, ids and EEG."""
    model = language_model("gpt2", 32)
    batch = lm_batch(ROWS)
    expected = real_logits(model, batch)
    batch["input_ids"][batch["attention_mask"] == 0] = PAD_TOKEN_ID - 5
    batch["input_values"][batch["eeg_attention_mask"] == 0] = 5.0
    batch["eeg_channel_ids"][batch["eeg_attention_mask"] == 0] = 2
    batch["eeg_time_ids"][batch["eeg_attention_mask"] == 0] = 3
    batch["eeg_segment_ids"][batch["eeg_attention_mask"] == 0] = 6
    for logits, other in zip(real_logits(model, without(batch, "mm_token_type_ids")), expected, strict=True):
        torch.testing.assert_close(logits, other, atol=1e-5, rtol=1e-4)


def test_feature_noise_shifts_a_whole_segment_while_training(gpt2):
    batch = lm_batch(ROWS)
    eeg = {name: value for name, value in batch.items() if name.startswith(("input_values", "eeg_"))}
    plain = gpt2.train().get_eeg_features(**eeg)
    gpt2.model.feature_noise = 0.5
    assert torch.equal(gpt2.eval().get_eeg_features(**eeg), plain)
    torch.manual_seed(0)
    shift = gpt2.train().get_eeg_features(**eeg) - plain
    real = eeg["eeg_attention_mask"].bool()
    segments = torch.arange(len(real))[:, None] * 8 + eeg["eeg_segment_ids"]
    offsets = [shift[real & (segments == segment)] for segment in segments[real].unique()]
    for offset in offsets:
        torch.testing.assert_close(offset, offset[:1].expand_as(offset), atol=1e-5, rtol=0)
    each = torch.stack([offset[0] for offset in offsets])
    assert float(each.std()) == pytest.approx(0.5, rel=0.25)
    assert len(each.round(decimals=3).unique(dim=0)) == len(each)
