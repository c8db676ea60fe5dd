"""Activation density as part of a workload: quantised, optional, and without it nothing changes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from log_samples import WORKLOAD, record

from sparsetvm.core.layout import PLAIN
from sparsetvm.core.target import host_target
from sparsetvm.core.workload import ACTIVATION_DENSITIES, activation_level
from sparsetvm.log.line import decode_line, encode_line
from sparsetvm.log.relation import distance
from sparsetvm.measure.doubt import least_us
from sparsetvm.measure.reference import make_references, random_input


def with_density(density):
    return msgspec.structs.replace(WORKLOAD, activation_density=density)


def test_workload_without_density_has_the_identity_that_it_always_had() -> None:
    assert b"activation_density" not in WORKLOAD.canonical()
    assert WORKLOAD.id == with_density(msgspec.UNSET).id


def test_density_is_part_of_identity_and_family() -> None:
    assert with_density(1 / 8).id != WORKLOAD.id
    assert with_density(1 / 8).family != with_density(1 / 4).family


@pytest.mark.parametrize("level", ACTIVATION_DENSITIES)
def test_level_is_the_nearest_of_a_few(level: float) -> None:
    assert activation_level(level) == level
    assert activation_level(level * 1.1) == level


def test_level_of_numenta_is_an_eighth_and_of_relu_unknown() -> None:
    assert activation_level(0.12) == 1 / 8
    assert activation_level(0.5) is msgspec.UNSET
    assert activation_level(0.0) == ACTIVATION_DENSITIES[0]


def test_record_with_density_survives_the_log() -> None:
    known = record(workload=with_density(1 / 8))
    assert decode_line(encode_line(known).rstrip())[1] == known
    with pytest.raises(ValueError, match="activation density"):
        encode_line(record(workload=with_density(2.0)))


def test_other_densities_are_further_away() -> None:
    ours = with_density(1 / 8)
    assert distance(with_density(3 / 16), ours) < distance(WORKLOAD, ours)


def test_timed_input_has_the_density_and_zeros_and_full_inputs_are_checked() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20, 4000)).astype(np.float32)
    workload = msgspec.structs.replace(with_density(1 / 8), m=20, k=4000, n=1, layout_in=PLAIN, layout_out=PLAIN)
    counts = [np.count_nonzero(reference.x) for reference in make_references(workload, weight, None)]
    assert 400 < counts[0] < 600
    assert {0, 4000} <= set(counts)
    assert np.count_nonzero(random_input(workload, 1)) != 4000


def test_impossible_times_allow_for_zeros() -> None:
    assert least_us(with_density(1 / 8), host_target(1)) == pytest.approx(least_us(WORKLOAD, host_target(1)) / 8)
