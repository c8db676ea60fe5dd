"""The candidates of one task: the union of the spaces of all templates that match, dense included."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sparsetvm.analysis.gpu_roofline import dense_us, us_of
from sparsetvm.analysis.roofline import WORTH_IT, expected_speedup
from sparsetvm.core.arithmetic import Arithmetic
from sparsetvm.core.config import Config
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.workload import Workload
from sparsetvm.schedules.base import Template, matching
from sparsetvm.search.trial import RecordIndex, Valid
from sparsetvm.space.space import Space

Matching = Callable[[Workload, Target], Sequence[Template]]
_NO_PATTERN = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "")


Estimate = Callable[[Config], float | None]


def _unknown(config: Config) -> float | None:
    """The estimate of templates that have none."""
    return None


@dataclass(frozen=True)
class TemplateChoice:
    """One template of the union: its space for the workload and its config without tuning.

    version_of, preferred, quick, estimate: as in Template, for this workload.
    """

    name: str
    version_of: Callable[[Config], int]
    dense: bool
    space: Space
    default: Config
    preferred: bool = True
    quick: bool = True
    estimate: Estimate = _unknown
    arithmetic: Arithmetic = "float32"

    @property
    def clocks(self) -> float | None:
        """The estimate of the default where it may be the task's, else None."""
        return self.estimate(self.default) if self.preferred and not self.dense else None

    def likely(self, count: int) -> list[Config]:
        """The default and the configs with the smallest estimates, `count` in all; of equal estimates the first.

        Equal estimates mostly mean that two configs say the same.
        """
        found: dict[float, Config] = {}
        for config in self.space:
            clocks = self.estimate(config)
            if clocks is not None and clocks < math.inf:
                found.setdefault(clocks, config)
        known = self.estimate(self.default)
        others = [config for clocks, config in sorted(found.items(), key=lambda item: item[0]) if clocks != known]
        return [self.default, *others[: count - 1]]


@dataclass(frozen=True)
class Candidates:
    """All configs of a task. The first template of `choices` gives the default config."""

    choices: tuple[TemplateChoice, ...]

    @property
    def cardinality(self) -> int:
        return sum(choice.space.cardinality for choice in self.choices)

    @property
    def default(self) -> Config:
        return self.choices[0].default

    @property
    def dense_only(self) -> bool:
        """True when nothing but dense templates match: the layer is tuned, but with few trials."""
        return all(choice.dense for choice in self.choices)

    def choice(self, template: str) -> TemplateChoice | None:
        """The choice of that template name, None when the template does not match the task."""
        return next((choice for choice in self.choices if choice.name == template), None)

    def contains(self, config: Config) -> bool:
        choice = self.choice(config.template)
        return choice is not None and choice.space.contains(config)

    def is_dense(self, config: Config) -> bool:
        choice = self.choice(config.template)
        return choice is not None and choice.dense

    def first(self) -> list[Config]:
        """What to measure first: the task's default, those of dense templates, and one that is not dense."""
        sparse = [choice.default for choice in self.choices if not choice.dense]
        dense = [choice.default for choice in self.choices if choice.dense]
        return list(dict.fromkeys([self.default, *dense, *sparse[:1]]))

    def broad(self, each: int) -> list[Config]:
        """What to measure first where trials are cheap: `first`, then of every sparse template that builds quickly its
        default, then by turns what else it is likely fastest with, `each` configs of it in all.

        Tasks that only dense templates match get the likely configs of those.
        """
        choices = [choice for choice in self.choices if choice.quick and (not choice.dense or self.dense_only)]
        turns = itertools.chain(*itertools.zip_longest(*(choice.likely(each) for choice in choices)))
        return list(dict.fromkeys([*self.first(), *(config for config in turns if config is not None)]))

    def later(self) -> list[Config]:
        """The defaults of the other templates: better than what is drawn at random."""
        return [choice.default for choice in self.choices if choice.default not in self.first()]

    def sample(self, rng: random.Random) -> Config:
        """A random config. Templates have a chance of the square root of their space, so that no small one drowns."""
        weights = [math.sqrt(choice.space.cardinality) for choice in self.choices]
        return rng.choices(self.choices, weights)[0].space.sample(rng)

    def neighbours(self, config: Config) -> list[Config]:
        choice = self.choice(config.template)
        return [] if choice is None else list(choice.space.neighbours(config))

    def variants(self, config: Config) -> list[Config]:
        """Configs that differ in one knob by any step."""
        choice = self.choice(config.template)
        knobs = () if choice is None else choice.space.knobs
        return [config.replace(**{k.name: v}) for k in knobs for v in k.values if v != config[k.name]]

    def unseen(self, seen: set[Config], limit: int) -> list[Config]:
        """Up to `limit` configs outside `seen`, in the order of the spaces."""
        found: list[Config] = []
        for choice in self.choices:
            for config in choice.space:
                if len(found) >= limit:
                    return found
                if config not in seen:
                    found.append(config)
        return found


def candidates_of(workload: Workload, target: Target, templates: Matching = matching) -> Candidates:
    """Candidates of a workload; `choices` is empty when no template matches."""
    choices = _fastest_first([_choice(t, workload, target) for t in templates(workload, target)])
    if _stays_dense(choices, workload, target):
        choices.sort(key=lambda choice: not choice.dense)  # stable: without tuning such a layer stays dense
    return Candidates(tuple(choices))


def _half_clocks(choices: Sequence[TemplateChoice]) -> dict[str, float]:
    """Estimates of the dense templates in 16 bits."""
    half = [choice for choice in choices if choice.dense and choice.arithmetic in ("float16", "bfloat16")]
    return {choice.name: value for choice in half if (value := choice.estimate(choice.default)) is not None}


def _stays_dense(choices: Sequence[TemplateChoice], workload: Workload, target: Target) -> bool:
    """True when no sparse config is expected to gain enough, neither by the roofline nor by its template's estimate, or
    a dense one in 16 bits has the smallest estimate.
    """
    clocks = min((value for choice in choices if (value := choice.clocks) is not None), default=math.inf)
    if min(_half_clocks(choices).values(), default=math.inf) < clocks < math.inf:
        return True
    if expected_speedup(workload, target) >= WORTH_IT:
        return False
    return target.kind != "cuda" or dense_us(workload, target) < WORTH_IT * us_of(clocks)


def _choice(t: Template, workload: Workload, target: Target) -> TemplateChoice:
    return TemplateChoice(
        t.name, t.version_of, t.dense, t.space(workload, target), t.default(workload, target),
        t.preferred(workload, target), t.quick(workload), lambda config: t.estimate(workload, config, target),
        t.arithmetic,
    )  # fmt: skip


def _fastest_first(choices: Sequence[TemplateChoice]) -> list[TemplateChoice]:
    """The choices, those that may give the default and have an estimate by it in their places; so are the dense ones in
    16 bits among themselves.
    """
    sparse = {choice.name: value for choice in choices if (value := choice.clocks) is not None}
    return _ranked(_ranked(choices, sparse), _half_clocks(choices))


def _ranked(choices: Sequence[TemplateChoice], clocks: Mapping[str, float]) -> list[TemplateChoice]:
    """The choices, those that have clocks ordered by them in their places."""
    ranked = iter(sorted((c for c in choices if c.name in clocks), key=lambda c: clocks[c.name]))
    return [next(ranked) if choice.name in clocks else choice for choice in choices]


def validator(candidates: Candidates) -> Valid:
    """What a record may select from: the configs that the local templates declare (see log.lookup.Valid)."""

    def valid(config: Config, version: int, space: str) -> bool:
        choice = candidates.choice(config.template)
        return (
            choice is not None
            and space in ("", choice.space.fingerprint)
            and choice.space.contains(config)
            and choice.version_of(config) == version
        )

    return valid


def known_dense(
    index: RecordIndex, workload: Workload, candidates: Candidates, device: DeviceFingerprint
) -> Record | None:
    """The best record of a dense config of this shape: neither the pattern nor zeros of X matter to dense
    kernels.
    """
    family, sizes = _without_pattern(workload), (workload.m, workload.k, workload.n)
    usable = [
        record
        for record in index.training(workload, device)
        if record.status == "ok"
        and candidates.is_dense(record.config)
        and record.device.model == device.model
        and (record.workload.m, record.workload.k, record.workload.n) == sizes
        and _without_pattern(record.workload) == family
    ]
    return min(usable, key=lambda record: (record.stage == "search", record.best_us), default=None)


def _without_pattern(workload: Workload) -> Workload:
    return msgspec.structs.replace(workload, pattern=_NO_PATTERN, activation_density=msgspec.UNSET)
