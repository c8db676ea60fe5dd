"""Export networks as torchvision and transformers define them, pruned by magnitude, for the table of architectures.

    pip install torch torchvision transformers onnxscript
    python scripts/export_architectures.py DIR [NAME...] [--sparsity 0.9]

Weights are random (normalisations have statistics that are not trivial): the networks measure speed, and whether all
that exporters write is understood. Language models have 2 layers, a small vocabulary and 64 tokens. What cannot be
exported is named and left out; networks that are there already are not exported again. Then

    python scripts/bench_models.py --models DIR --against ort --budget 0 --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers

import sparsetvm

IMAGES = {
    "alexnet": 224, "convnext_tiny": 224, "densenet121": 224, "efficientnet_b0": 224, "efficientnet_v2_s": 224,
    "googlenet": 224, "inception_v3": 299, "maxvit_t": 224, "mnasnet1_0": 224, "mobilenet_v2": 224,
    "mobilenet_v3_large": 224, "regnet_y_400mf": 224, "resnet18": 224, "resnext50_32x4d": 224,
    "shufflenet_v2_x1_0": 224, "squeezenet1_1": 224, "swin_t": 224, "vit_b_16": 224,
}  # fmt: skip
SEGMENTATION = {"deeplabv3_mobilenet_v3_large": 256, "lraspp_mobilenet_v3_large": 256}
_SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 1000}
LANGUAGE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {"num_hidden_layers": 2, "vocab_size": 1000}),
    "deberta_v2": ("DebertaV2Config", "DebertaV2Model", {**_SMALL, "intermediate_size": 512}),
    "distilbert": ("DistilBertConfig", "DistilBertForSequenceClassification", {"n_layers": 2, "vocab_size": 1000}),
    "electra": ("ElectraConfig", "ElectraModel", {"num_hidden_layers": 2, "vocab_size": 1000}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_layer": 2, "vocab_size": 1000}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_SMALL, "intermediate_size": 688}),
    "mobilebert": ("MobileBertConfig", "MobileBertModel", {"num_hidden_layers": 2, "vocab_size": 1000}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**_SMALL, "ffn_dim": 1024, "word_embed_proj_dim": 256}),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {"num_hidden_layers": 2, "vocab_size": 1000}),
    "t5_encoder": ("T5Config", "T5EncoderModel", {"num_layers": 2, "vocab_size": 1000}),
}
TOKENS, OPSET = 64, 18
Made = tuple[torch.nn.Module, tuple[torch.Tensor, ...], list[str]]


class Pixels(torch.nn.Module):
    """The class scores of a segmentation network, without its dictionary."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]


class Tokens(torch.nn.Module):
    """The first output of a language model."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=ids, attention_mask=mask)[0]


def make_image(name: str) -> Made:
    """A network of torchvision whose BatchNormalizations do something."""
    if name in SEGMENTATION:
        network = Pixels(getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None))
        size = SEGMENTATION[name]
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network, size = getattr(torchvision.models, name)(weights=None, **options), IMAGES[name]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.0, 0.1)
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():  # the head of a ViT: an output of zeros would agree with anything
            torch.nn.init.normal_(weight, std=0.02)
    return network, (torch.randn(1, 3, size, size),), ["x"]


def make_language(name: str) -> Made:
    """A small language model of transformers, without a cache of keys and values."""
    config, model, options = LANGUAGE[name]
    configured = getattr(transformers, config)(**options, use_cache=False, attn_implementation="eager")
    ids = torch.randint(0, 1000, (1, TOKENS))
    return Tokens(getattr(transformers, model)(configured)), (ids, torch.ones_like(ids)), ["ids", "mask"]


MAKERS: dict[str, Callable[[str], Made]] = {
    **dict.fromkeys((*IMAGES, *SEGMENTATION), make_image),
    **dict.fromkeys(LANGUAGE, make_language),
}


def export(name: str, path: Path, sparsity: float) -> None:
    """Write the pruned network to `path`."""
    torch.manual_seed(0)
    network, inputs, names = MAKERS[name](name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = Path(folder) / "dense.onnx"
        torch.onnx.export(
            network.eval(), inputs, dense, dynamo=True, opset_version=OPSET, external_data=False, input_names=names,
            verbose=False,
        )  # fmt: skip
        sparsetvm.prune(dense, path, sparsity=sparsity)


def main() -> int:
    """Exit code 1 when a network could not be exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(sorted(MAKERS))} (default: all)")
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(MAKERS))
    if unknown:
        parser.error(f"unknown networks: {', '.join(unknown)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.names or sorted(MAKERS):
        path = options.folder / f"{name}.onnx"
        if path.exists():
            continue
        try:
            export(name, path, options.sparsity)
            print(f"{name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)
        except Exception as error:  # exporters raise whatever they like; the others are still wanted
            failed += 1
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
