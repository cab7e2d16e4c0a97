"""Tiny models and batches for the tests: everything is random, small, and the same for the same seed.

A row of a language model batch is written as it reads: `[5, 6, EEG((0, 3), 2), 7]` is two text tokens, two seconds of
two channels, and another text token.
"""

from dataclasses import dataclass
from typing import Any

import torch

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQConfig, NeuroLMVQModel


PATCH_SIZE = 200
VOCAB_SIZE = 96
EEG_TOKEN_ID = 94
PAD_TOKEN_ID = 92
BACKBONES = ("gpt2", "llama", "qwen3")

# [SEP] of these tests: any text id will do
SEP = 93


@dataclass(frozen=True)
class EEG:
    """A segment: its channels (all of them in every second), how many seconds, and the seed of its signal."""

    channels: tuple[int, ...]
    seconds: int
    seed: int = 0

    @property
    def patches(self) -> int:
        return len(self.channels) * self.seconds

    def values(self) -> torch.Tensor:
        """(patches, PATCH_SIZE), time-major."""
        generator = torch.Generator().manual_seed(1000 + self.seed)
        noise = torch.randn(self.patches, PATCH_SIZE, generator=generator)
        rhythm = torch.rand(self.patches, 1, generator=generator) * 40
        return 0.3 * noise + torch.sin(torch.arange(PATCH_SIZE) / PATCH_SIZE * 2 * torch.pi * rhythm)

    def channel_ids(self) -> list[int]:
        return list(self.channels) * self.seconds

    def time_ids(self) -> list[int]:
        return [second for second in range(self.seconds) for _ in self.channels]


Row = list[int | EEG]

# Interleaved segments of different channel counts and lengths, a row of text alone, and one segment in front.
ROWS: list[Row] = [
    [EEG((3, 7), 2, seed=1), SEP, 11, 12, EEG((0, 3, 5), 2, seed=2), 13, 14],
    [21, 22, 23, 24],
    [EEG((9,), 3, seed=3), SEP, 31],
    [41, EEG((1, 2, 4), 1, seed=4), EEG((1, 2), 3, seed=5), 42, 43, 44],
]


def vq_config(**changes: Any) -> NeuroLMVQConfig:
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "decoder_num_hidden_layers": 1,
        "codebook_size": 32,
        "codebook_dim": 8,
        "patch_size": PATCH_SIZE,
        "num_channel_embeddings": 16,
        "max_seconds": 8,
        "alignment_vocab_size": 50,
        "alignment_hidden_size": 16,
    }
    return NeuroLMVQConfig(**{**values, **changes})


def text_config(backbone: str = "gpt2", hidden_size: int = 32, **changes: Any) -> dict[str, Any]:
    """As a dictionary, which is how a saved folder holds it."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD_TOKEN_ID}
    if backbone == "gpt2":
        sizes = {"n_embd": hidden_size, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        sizes = {
            "hidden_size": hidden_size,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        }
    return {"model_type": backbone, "vocab_size": VOCAB_SIZE, **special, **sizes, **changes}


def lm_config(backbone: str = "gpt2", hidden_size: int = 32, **changes: Any) -> NeuroLMConfig:
    """`hidden_size` is the language model's; the EEG encoder's is 32."""
    values = {
        "eeg_config": vq_config(),
        "text_config": text_config(backbone, hidden_size),
        "eeg_token_id": EEG_TOKEN_ID,
    }
    return NeuroLMConfig(**{**values, **changes})


def randomize(model: Any, seed: int = 0, scale: float = 0.15) -> Any:
    """Moves every weight off its initial value: fresh models ignore most of their input. The codebook is placed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith("initialized"):
                buffer.fill_(True)
    return model.eval()


def vq_model(model_class: type = NeuroLMVQModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    return randomize(model_class(vq_config(**changes)))


def language_model(backbone: str = "gpt2", hidden_size: int = 32, **changes: Any) -> NeuroLMForCausalLM:
    torch.manual_seed(0)
    return randomize(NeuroLMForCausalLM(lm_config(backbone, hidden_size, **changes)))


def vq_batch(*samples: EEG, extra_padding: int = 0, padding_side: str = "right") -> dict[str, torch.Tensor]:
    """Inputs of the tokenizer, padded with zeros to the longest sample and `extra_padding` patches more."""
    length = max(sample.patches for sample in samples) + extra_padding
    ids = torch.zeros(3, len(samples), length, dtype=torch.long)
    values = torch.zeros(len(samples), length, PATCH_SIZE)
    for row, sample in enumerate(samples):
        real = slice(0, sample.patches) if padding_side == "right" else slice(length - sample.patches, length)
        values[row, real] = sample.values()
        ids[:, row, real] = torch.tensor([sample.channel_ids(), sample.time_ids(), [1] * sample.patches])
    return dict(
        zip(("input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask"), (values, *ids), strict=True)
    )


def blocks_of(row: Row) -> list[int]:
    """`mm_token_type_ids` of a row without padding."""
    blocks: list[int] = []
    for piece in row:
        if isinstance(piece, int):
            blocks.append(0)
            continue
        for _ in range(piece.seconds):
            blocks += [max(blocks, default=0) + 1] * len(piece.channels)
    return blocks


def tokens_of(row: Row) -> list[int]:
    """`input_ids` of a row without padding."""
    tokens: list[int] = []
    for piece in row:
        tokens += [piece] if isinstance(piece, int) else [EEG_TOKEN_ID] * piece.patches
    return tokens


def lm_batch(
    rows: list[Row], padding_side: str = "left", eeg_padding_side: str = "right", extra_padding: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of the language model, as the processor makes them."""
    tokens = [tokens_of(row) for row in rows]
    length = max(map(len, tokens)) + extra_padding
    batch: dict[str, torch.Tensor] = {
        "input_ids": torch.full((len(rows), length), PAD_TOKEN_ID),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "mm_token_type_ids": torch.zeros(len(rows), length, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        real = slice(length - len(tokens[index]), length) if padding_side == "left" else slice(len(tokens[index]))
        batch["input_ids"][index, real] = torch.tensor(tokens[index])
        batch["attention_mask"][index, real] = 1
        batch["mm_token_type_ids"][index, real] = torch.tensor(blocks_of(row))
    segments = [[piece for piece in row if isinstance(piece, EEG)] for row in rows]
    if not any(segments):
        return batch
    patches = max(sum(piece.patches for piece in pieces) for pieces in segments) + extra_padding
    values = torch.zeros(len(rows), patches, PATCH_SIZE)
    ids = torch.zeros(4, len(rows), patches, dtype=torch.long)
    for index, pieces in enumerate(segments):
        start = patches - sum(piece.patches for piece in pieces) if eeg_padding_side == "left" else 0
        for segment, piece in enumerate(pieces):
            real = slice(start, start + piece.patches)
            start = real.stop
            values[index, real] = piece.values()
            ids[:, index, real] = torch.tensor(
                [piece.channel_ids(), piece.time_ids(), [segment] * piece.patches, [1] * piece.patches]
            )
    names = ("eeg_channel_ids", "eeg_time_ids", "eeg_segment_ids", "eeg_attention_mask")
    return {**batch, "input_values": values, **dict(zip(names, ids, strict=True))}
