"""About how long each bucket of a model takes: measured times of its layers where there are some, else estimates.

Estimates are scaled by what the measured layers took beside theirs. The times are compared with each other only.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsetvm.analysis.rest_time import rest_time
from sparsetvm.analysis.roofline import best_time
from sparsetvm.build.network import Network
from sparsetvm.core.target import Target

_CLOCK = 3.5e3  # cycles per microsecond, where the model counts cycles


def bucket_costs(networks: Sequence[Network], target: Target) -> tuple[float, ...]:
    """Microseconds of one run of each network."""
    measured = estimated = 0.0
    for network in networks:
        for name, choice in network.choices.items():
            if choice.best_us:
                measured += choice.best_us
                estimated += _us(best_time(network.tasks[name].workload, target), target)
    scale = measured / estimated if estimated else 1.0
    return tuple(_cost(network, target, scale) for network in networks)


def _cost(network: Network, target: Target, scale: float) -> float:
    graph = network.graph
    runs = graph.node_runs()
    layers = sum(
        runs[name] * (choice.best_us or scale * _us(best_time(network.tasks[name].workload, target), target))
        for name, choice in network.choices.items()
    )
    return layers + scale * _us(rest_time(graph, target), target)


def _us(time: float, target: Target) -> float:
    return time if target.kind == "cuda" else time / (_CLOCK * target.threads)
