"""Generation: whatever the cache, the batch or the search, the tokens of a loop written by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import (
    BACKBONES,
    EEG,
    EEG_TOKEN_ID,
    PAD_TOKEN_ID,
    ROWS,
    SEP,
    VOCAB_SIZE,
    language_model,
    lm_batch,
    lm_config,
    randomize,
)
from transformers import GenerationConfig

from neurolm_hf import NeuroLMForCausalLM, modeling_neurolm


NEW_TOKENS = 6
EOS = 2
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False}


@pytest.fixture(params=[(backbone, width) for backbone in BACKBONES for width in (32, 48)], ids="{0[0]}-{0[1]}".format)
def model(request):
    return language_model(*request.param)


@pytest.fixture
def gpt2():
    return language_model("gpt2", 48)


def by_hand(model, row):
    """Greedy tokens of one row: everything computed anew for every token, without padding, mask or cache."""
    batch = lm_batch([row])
    batch.pop("mm_token_type_ids"), batch.pop("attention_mask")
    answer = []
    with torch.no_grad():
        while len(answer) < NEW_TOKENS and EOS not in answer:
            logits = model(**batch).logits[0, -1, :VOCAB_SIZE]
            logits[EEG_TOKEN_ID] = -torch.inf
            answer.append(logits.argmax().item())
            batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([answer[-1:]])], dim=1)
    return answer


def answers(sequences, prompt_length):
    """New tokens up to and with the end, as lists."""
    lists = [row[prompt_length:].tolist() for row in sequences]
    return [tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens for tokens in lists]


def generated(model, batch, **kwargs):
    return answers(model.generate(**batch, **{**GREEDY, **kwargs}), batch["input_ids"].shape[1])


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_cache_gives_the_tokens_of_the_loop(model, attention):
    model.set_attn_implementation(attention)
    expected = [by_hand(model, row) for row in ROWS]
    assert len({tuple(answer) for answer in expected}) > 2
    batch = lm_batch(ROWS)
    bare = {name: value for name, value in batch.items() if name != "mm_token_type_ids"}
    for inputs in (batch, bare):
        assert generated(model, inputs) == expected
        assert generated(model, inputs, cache_implementation="static") == expected
        assert generated(model, inputs, use_cache=False) == expected
    assert generated(model, lm_batch(ROWS, eeg_padding_side="left", extra_padding=2)) == expected


def test_ids_that_may_be_left_out(gpt2):
    row = [EEG((3, 7), 2, seed=1), SEP, 11]
    batch = lm_batch([row])
    kept = {name: batch[name] for name in ("input_ids", "input_values", "eeg_channel_ids", "eeg_time_ids")}
    for kwargs in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert generated(gpt2, kept, **kwargs) == [by_hand(gpt2, row)]


def test_eeg_is_encoded_once(gpt2):
    calls = count_calls(gpt2.model.eeg_encoder)
    generated(gpt2, lm_batch(ROWS), eos_token_id=None)
    assert len(calls) == 1
    generated(gpt2, lm_batch(ROWS), eos_token_id=None, cache_implementation="static")
    assert len(calls) == 2


def test_static_cache_keeps_the_staircase(gpt2):
    """Where every token saw only what is before it, the answers would differ: the test can tell."""
    batch = lm_batch(ROWS)
    causal = {**batch, "mm_token_type_ids": batch["mm_token_type_ids"] * 0}
    torch.testing.assert_close(gpt2(**batch).logits[1], gpt2(**causal).logits[1])
    assert (gpt2(**batch).logits[0] - gpt2(**causal).logits[0])[-1].abs().max() > 1e-3


def test_text_only(model):
    with torch.no_grad():
        model.code_head.weight.mul_(1000)
    logits = model(**lm_batch(ROWS)).logits
    assert (logits[:, -1].argmax(-1) >= VOCAB_SIZE).any()
    expected = [by_hand(model, row) for row in ROWS]
    output = model.generate(**lm_batch(ROWS), **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert output.logits[0].shape == (len(ROWS), VOCAB_SIZE)
    assert answers(output.sequences, lm_batch(ROWS)["input_ids"].shape[1]) == expected
    sampled = model.generate(**lm_batch(ROWS), max_new_tokens=20, do_sample=True, top_k=0, temperature=5.0)
    assert sampled.max() < VOCAB_SIZE


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"suppress_tokens": [5]},
        {"generation_config": GenerationConfig(do_sample=False, max_new_tokens=4, pad_token_id=PAD_TOKEN_ID)},
        {"num_beams": 2},
        {"do_sample": True},
    ],
    ids=["cached", "uncached", "static", "suppress", "config", "beams", "sample"],
)
def test_placeholder_is_never_generated(gpt2, kwargs):
    """Even where callers bring settings of their own."""
    with torch.no_grad():
        gpt2.lm_head.weight[EEG_TOKEN_ID] = gpt2.lm_head.weight[torch.arange(VOCAB_SIZE) != EEG_TOKEN_ID].sum(0) * 50
    batch = lm_batch([[EEG((3, 7), 2, seed=seed), SEP, 11] for seed in range(6)])
    assert (gpt2(**batch).logits[:, -1].argmax(-1) == EEG_TOKEN_ID).any()
    arguments = {"max_new_tokens": 4, "do_sample": False, **kwargs}
    if "generation_config" in kwargs:
        arguments = kwargs
    new = gpt2.generate(**batch, **arguments)[:, batch["input_ids"].shape[1] :]
    assert not (new == EEG_TOKEN_ID).any()


def test_suppressed_tokens(gpt2):
    first = [answer[0] for answer in generated(gpt2, lm_batch(ROWS))]
    gpt2.suppress_tokens(first)
    assert gpt2.generation_config.suppress_tokens == sorted({*first, EEG_TOKEN_ID})
    assert not {answer[0] for answer in generated(gpt2, lm_batch(ROWS))} & set(first)


def test_beams_and_several_answers(model):
    search = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    together = generated(model, lm_batch(ROWS), **search)
    alone = [answer for row in ROWS for answer in generated(model, lm_batch([row]), **search)]
    assert together == alone
    assert generated(model, lm_batch(ROWS), use_cache=False, **search) == alone
    calls = count_calls(model.model.eeg_encoder)
    generated(model, lm_batch(ROWS), **search)
    assert len(calls) == 1


def test_several_samples(gpt2):
    torch.manual_seed(0)
    batch = lm_batch(ROWS)
    output = gpt2.generate(
        **batch, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=3, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    expected = gpt2(**batch).logits[:, -1, :VOCAB_SIZE].repeat_interleave(3, 0)
    torch.testing.assert_close(output.logits[0], expected, atol=1e-5, rtol=1e-4)


def test_inputs_embeds(gpt2):
    batch = lm_batch(ROWS)
    expected = generated(gpt2, batch)
    ids = batch.pop("input_ids")
    embeds = gpt2.get_input_embeddings()(ids)
    for kwargs in ({}, {"cache_implementation": "static"}):
        new = gpt2.generate(inputs_embeds=embeds, **batch, **GREEDY, **kwargs)
        assert answers(new, 0) == expected
        del_mm = {name: value for name, value in batch.items() if name != "mm_token_type_ids"}
        assert answers(gpt2.generate(inputs_embeds=embeds, **del_mm, **GREEDY, **kwargs), 0) == expected


def test_prompt_lookup(gpt2):
    row = [EEG((3, 7), 2, seed=1), SEP, 11, 12, 11, 12]
    assert generated(gpt2, lm_batch([row]), prompt_lookup_num_tokens=2) == [by_hand(gpt2, row)]


def test_prefill_in_chunks(gpt2):
    text = {name: lm_batch([ROWS[1]])[name] for name in ("input_ids", "attention_mask")}
    assert generated(gpt2, text, prefill_chunk_size=2) == [by_hand(gpt2, ROWS[1])]
    batch = lm_batch([ROWS[0]])
    with pytest.raises(ValueError, match="Chunked prefill"):
        gpt2.generate(**batch, **GREEDY, prefill_chunk_size=4)
    assert generated(gpt2, batch, prefill_chunk_size=100) == [by_hand(gpt2, ROWS[0])]


def second_turn(gpt2, segment):
    """A conversation: the first turn's output, and the inputs of a second one with more EEG."""
    first = [EEG((3, 7), 2, seed=1), SEP, 11]
    output = gpt2.generate(**lm_batch([first]), **GREEDY, eos_token_id=None, return_dict_in_generate=True)
    said = output.sequences[0, lm_batch([first])["input_ids"].shape[1] :].tolist()
    second = [*first, *said, *([segment] if segment else []), SEP, 12]
    return output.past_key_values, second


def test_second_turn_from_the_cache(gpt2):
    segment = EEG((0, 5, 6), 2, seed=3)
    for more in (None, segment):
        cache, second = second_turn(gpt2, more)
        full = lm_batch([second])
        expected = [by_hand(gpt2, second)]
        inputs = {name: full[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        if more:
            inputs |= {name: value for name, value in lm_batch([[more]]).items() if name not in inputs}
        assert generated(gpt2, inputs, past_key_values=cache) == expected


def test_second_turn_without_blocks_is_refused(gpt2):
    segment = EEG((0, 5, 6), 2, seed=3)
    cache, second = second_turn(gpt2, segment)
    full = lm_batch([second])
    new = {name: value for name, value in lm_batch([[segment]]).items() if name.startswith(("eeg", "input_values"))}
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        gpt2.generate(input_ids=full["input_ids"], **new, **GREEDY, past_key_values=cache)
    cache, second = second_turn(gpt2, None)
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        gpt2.generate(input_ids=lm_batch([second])["input_ids"], **GREEDY, past_key_values=cache)
    # only what is new, where the cache holds the rest
    cache, second = second_turn(gpt2, segment)
    only_new = lm_batch([[segment, SEP, 12]])
    with pytest.raises(ValueError, match="whole sequence"):
        gpt2.generate(
            input_ids=only_new["input_ids"], mm_token_type_ids=only_new["mm_token_type_ids"],
            attention_mask=lm_batch([second])["attention_mask"], **new, **GREEDY, past_key_values=cache,
        )  # fmt: skip
    with pytest.raises(ValueError, match="`position_ids`"):
        gpt2(input_ids=torch.tensor([[SEP]]), past_key_values=second_turn(gpt2, None)[0])


def test_placeholders_without_eeg_are_refused(gpt2):
    batch = {name: lm_batch(ROWS)[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="placeholders but no EEG"):
        gpt2.generate(**batch, **GREEDY)


def test_prompts_without_eeg(model):
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    batch = {name: lm_batch(rows)[name] for name in ("input_ids", "attention_mask")}
    expected = [by_hand(model, row) for row in rows]
    assert generated(model, batch) == expected
    assert generated(model, batch, cache_implementation="static") == expected
    assert answers(model.generate(batch["input_ids"][1:], **GREEDY), 5) == expected[1:]


def test_untuned_models_warn(gpt2, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_neurolm.logger, "warning_once", warnings.append)
    generated(gpt2, {name: lm_batch([ROWS[1]])[name] for name in ("input_ids", "attention_mask")})
    assert warnings == []
    gpt2.config.stage = "pretrained"
    generated(gpt2, lm_batch(ROWS))
    assert "'pretrained': it was never instruction-tuned" in warnings[0]
    gpt2.config.stage = "instruction-tuned"
    generated(gpt2, lm_batch(ROWS))
    assert len(warnings) == 1


def test_a_model_with_an_adapter_on_it_does_not_warn(gpt2, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_neurolm.logger, "warning_once", warnings.append)
    gpt2.config.stage = "pretrained"
    lora = LoraConfig(target_modules=r".*\.language_model\.h\.0\.attn\.c_attn", fan_in_fan_out=True)
    adapted = get_peft_model(gpt2, lora)
    adapted.generate(**lm_batch(ROWS), **GREEDY)
    adapted.warn_if_untuned()
    assert warnings == []


def test_hidden_states_and_scores(gpt2):
    output = gpt2.generate(
        **lm_batch(ROWS), **GREEDY, return_dict_in_generate=True, output_hidden_states=True, output_scores=True
    )
    assert len(output.hidden_states[0]) == 3
    assert output.scores[0].shape == (len(ROWS), VOCAB_SIZE)


# --- answers ---------------------------------------------------------------------------------------------------------

ANSWERS = [[11, 12, 13, 14], [12], [11, 13], [20, 21, 22]]
PROMPTS = [[EEG((3, 7), 3, seed=1), SEP, 11, 12], [SEP, 15, EEG((4, 0, 2), 2, seed=2), 16], [SEP, 13, 14]]


@torch.no_grad()
def scored_alone(model, prompt, answer):
    """Log-likelihood of an answer in one unpadded sequence."""
    batch = lm_batch([[*prompt, *answer]])
    log_probs = model(**batch).logits[0, :, :VOCAB_SIZE].log_softmax(-1)
    start = log_probs.shape[0] - len(answer)
    return sum(log_probs[start - 1 + place, token] for place, token in enumerate(answer))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_answers_in_one_pass_are_as_likely_as_alone(backbone, side):
    model = language_model(backbone, 48).eval()
    expected = torch.tensor([[scored_alone(model, prompt, answer) for answer in ANSWERS] for prompt in PROMPTS])
    passes = []
    model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    batch = lm_batch(PROMPTS, side)
    torch.testing.assert_close(model.score_answers(ANSWERS, **batch), expected, atol=1e-5, rtol=1e-5)
    assert len(passes) == 1
    # blocks are worked out where they are not given
    del batch["mm_token_type_ids"]
    torch.testing.assert_close(model.score_answers(ANSWERS, **batch), expected, atol=1e-5, rtol=1e-5)
    single = model.score_answers([[11], [12]], **batch)
    torch.testing.assert_close(single[:, 1], expected[:, 1], atol=1e-5, rtol=1e-5)


def test_answers_under_a_sliding_window_are_as_likely_as_alone():
    config = lm_config("qwen3", 48)
    config.text_config.update({"sliding_window": 9, "layer_types": ["sliding_attention"] * 2})
    model = randomize(NeuroLMForCausalLM(config)).eval()
    expected = torch.tensor([[scored_alone(model, prompt, answer) for answer in ANSWERS] for prompt in PROMPTS])
    torch.testing.assert_close(model.score_answers(ANSWERS, **lm_batch(PROMPTS)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("answers", [[], [[11], []]])
def test_no_answer_to_score(answers):
    with pytest.raises(ValueError, match="one token id or more"):
        language_model("gpt2", 48).score_answers(answers, **lm_batch(PROMPTS))
