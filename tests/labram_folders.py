"""Tiny folders of LaBraM's three kinds of model, as the scripts leave them."""

from tiny_labram import labram_classifier, labram_vq, masked_model

from neurolm_hf import EEGFeatureExtractor, NeuroLMProcessor
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT


LABRAM = {"tokenizer": labram_vq, "masked": masked_model, "classifier": labram_classifier}


def write_labram_folders(root, **recipe):
    """`tokenizer`, `masked` and `classifier`, of No and Yes, in a folder; `recipe` of their feature extractor."""
    classes = {"id2label": {0: "No", 1: "Yes"}, "label2id": {"No": 0, "Yes": 1}}
    for name, make in LABRAM.items():
        make(**classes if name == "classifier" else {}).save_pretrained(root / name)
        extractor = EEGFeatureExtractor(**{"notch_frequency": 50, **LABRAM_LAYOUT, **recipe})
        NeuroLMProcessor(extractor).save_pretrained(root / name)
    return root
