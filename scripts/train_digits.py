"""Train, prune and export the shipped example: a small convolutional network for scikit-learn's 8x8 digits.

    pip install -e '.[train]' && python scripts/train_digits.py            # about two minutes on one core

The network is trained dense, then pruned gradually by global weight magnitude (cubic schedule of Zhu and Gupta,
"To prune, or not to prune", 2017) while training goes on, then fine-tuned with the positions fixed. The ONNX file is
written node by node; its metadata says the test accuracy before and after, and how the test images were chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

SEED = 0
TEST_SHARE = 0.2
SPARSITY = 0.93
DENSE_EPOCHS, PRUNE_EPOCHS, FINE_TUNE_EPOCHS = 30, 30, 30
BATCH = 64
DEFAULT_OUTPUT = Path(__file__).parents[1] / "sparsetvm" / "examples" / "digits.onnx"


class DigitsNet(nn.Module):
    """8x8 images -> 10 logits; 200 k weights, three 3x3 convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 96, 3, padding=1)
        self.conv3 = nn.Conv2d(96, 128, 3, padding=1)
        self.fc1 = nn.Linear(128 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv3(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))

    def prunable(self) -> list[nn.Parameter]:
        return [layer.weight for layer in (self.conv1, self.conv2, self.conv3, self.fc1, self.fc2)]


def load_split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images in [0, 1] as (n, 1, 8, 8) and labels: train images, test images, train labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), labels,
        test_size=TEST_SHARE, stratify=labels, random_state=SEED,
    )  # fmt: skip
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return train_x, test_x, train_y, test_y


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Augmentation: the whole batch moved by up to one pixel."""
    dy, dx = (int(step) for step in torch.randint(-1, 2, (2,)))
    return functional.pad(images, (1, 1, 1, 1))[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]


def sparsity_at(step: int, steps: int) -> float:
    """Cubic schedule from 0 to SPARSITY."""
    return SPARSITY * (1 - (1 - min(1.0, step / steps)) ** 3)


def make_masks(weights: list[nn.Parameter], sparsity: float) -> list[torch.Tensor]:
    """1 where a weight is kept: the largest magnitudes of all layers together."""
    magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
    count = int(sparsity * magnitudes.numel())
    threshold = magnitudes.kthvalue(count).values if count else torch.tensor(-1.0)
    return [(w.detach().abs() > threshold).float() for w in weights]


def train(net: DigitsNet, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float, prune: bool) -> None:
    """Adam with a cosine rate; with `prune` the masks tighten by the schedule, else zeros stay zeros."""
    weights = net.prunable()
    masks = [(w.detach() != 0).float() for w in weights]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    per_epoch = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch, eta_min=rate / 20)
    step = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(shifted(images[batch])), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
            step += 1
            if prune and step % 10 == 0:
                masks = make_masks(weights, sparsity_at(step, epochs * per_epoch - 10))
            with torch.no_grad():
                for weight, mask in zip(weights, masks, strict=True):
                    weight.mul_(mask)


@torch.no_grad()
def accuracy(net: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((net(images).argmax(1) == labels).float().mean())


def zeros(net: DigitsNet) -> float:
    """Share of zeros among all convolution and linear weights."""
    weights = net.prunable()
    return float(sum((w == 0).sum() for w in weights)) / sum(w.numel() for w in weights)


def to_onnx(net: DigitsNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The network with a symbolic batch "N": image (N, 1, 8, 8) -> logits (N, 10)."""
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name) for name, value in net.state_dict().items()
    ]
    pads, pool = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, {"kernel_shape": [2, 2], "strides": [2, 2]}

    def layer(op: str, name: str, source: str, **attrs: object) -> onnx.NodeProto:
        return helper.make_node(op, [source, f"{name}.weight", f"{name}.bias"], [f"{name}_out"], name=name, **attrs)

    def simple(op: str, name: str, source: str, **attrs: object) -> onnx.NodeProto:
        return helper.make_node(op, [source], [f"{name}_out"], name=name, **attrs)

    nodes = [
        layer("Conv", "conv1", "image", **pads),
        simple("Relu", "relu1", "conv1_out"),
        layer("Conv", "conv2", "relu1_out", **pads),
        simple("Relu", "relu2", "conv2_out"),
        simple("MaxPool", "pool2", "relu2_out", **pool),
        layer("Conv", "conv3", "pool2_out", **pads),
        simple("Relu", "relu3", "conv3_out"),
        simple("MaxPool", "pool3", "relu3_out", **pool),
        simple("Flatten", "flatten", "pool3_out", axis=1),
        layer("Gemm", "fc1", "flatten_out", transB=1),
        simple("Relu", "relu4", "fc1_out"),
        layer("Gemm", "fc2", "relu4_out", transB=1),
    ]
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="sparsetvm")
    model.ir_version = 8
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT)
    output = parser.parse_args().output

    torch.manual_seed(SEED)
    train_x, test_x, train_y, test_y = load_split()
    net = DigitsNet()
    train(net, train_x, train_y, DENSE_EPOCHS, 2e-3, prune=False)
    dense = accuracy(net, test_x, test_y)
    print(f"dense:      test accuracy {dense:.4f}", flush=True)
    train(net, train_x, train_y, PRUNE_EPOCHS, 1e-3, prune=True)
    print(f"pruned:     test accuracy {accuracy(net, test_x, test_y):.4f}, {zeros(net):.1%} zeros", flush=True)
    train(net, train_x, train_y, FINE_TUNE_EPOCHS, 1e-3, prune=False)
    pruned = accuracy(net, test_x, test_y)
    print(f"fine-tuned: test accuracy {pruned:.4f}, {zeros(net):.1%} zeros")
    metadata = {
        "test_accuracy_dense": f"{dense:.4f}",
        "test_accuracy_pruned": f"{pruned:.4f}",
        "sparsity": f"{zeros(net):.4f}",
        "seed": str(SEED),
        "split": f"sklearn load_digits / 16, train_test_split(test_size={TEST_SHARE}, stratify=y, random_state={SEED})",
    }
    onnx.save(to_onnx(net, metadata), output)
    print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
