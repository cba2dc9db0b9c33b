"""The space of a sweep: drawing and counting values, and turning them into settings.

A trial has a value for each entry of the space whose conditions hold:

    space     ablation: {bundles: {all: {}, no_alignment: {objective.alignment_weight: 0.0}}}
              objective.alignment_weight: {loguniform: [0.01, 2.0], when: {ablation: all}}
    values    {"ablation": "all", "objective.alignment_weight": 0.3}
    settings  {"objective.alignment_weight": 0.3}
    or
    values    {"ablation": "no_alignment"}
    settings  {"objective.alignment_weight": 0.0}

`settings_of` makes the settings; `config.dotted.merged` puts them over those of `pretrain`.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from pipelines.config.space import Domain, wanted_values

Space = Mapping[str, Domain]
Values = dict[str, Any]


def is_searched(domain: Domain, values: Mapping[str, Any]) -> bool:
    """Whether the conditions of a domain hold for the values of earlier entries."""
    return all(
        parent in values and values[parent] in wanted_values(wanted)
        for parent, wanted in domain.when.items()
    )


def _distribution(domain: Domain) -> BaseDistribution:
    """Returns Optuna's distribution of a domain."""
    if domain.uniform is not None:
        return FloatDistribution(*domain.uniform)
    if domain.loguniform is not None:
        return FloatDistribution(*domain.loguniform, log=True)
    if domain.integer is not None:
        return IntDistribution(*domain.integer)
    return CategoricalDistribution(_as_json(domain.options or ()))


def draw(space: Space, trial: BaseTrial) -> Values:
    """Draws a value for each entry whose conditions hold, from an Optuna trial."""
    values: Values = {}
    for key, domain in space.items():
        if is_searched(domain, values):
            values[key] = _drawn(trial, key, domain)
    return values


def _drawn(trial: BaseTrial, key: str, domain: Domain) -> Any:
    if domain.uniform is not None:
        return trial.suggest_float(key, *domain.uniform)
    if domain.loguniform is not None:
        return trial.suggest_float(key, *domain.loguniform, log=True)
    if domain.integer is not None:
        return trial.suggest_int(key, *domain.integer)
    return json.loads(trial.suggest_categorical(key, _as_json(domain.options or ())))


def _as_json(options: Sequence[Any]) -> list[str]:
    """Encodes options as text: Optuna accepts only scalars as categories."""
    return [json.dumps(option) for option in options]


def parameters(space: Space, values: Values) -> tuple[Values, dict[str, BaseDistribution]]:
    """Returns values as Optuna stores them, with their distributions."""
    plain = {
        key: json.dumps(value) if space[key].kind in ("choice", "bundles") else value
        for key, value in values.items()
    }
    return plain, {key: _distribution(space[key]) for key in values}


def grid(space: Space) -> Iterator[Values]:
    """Yields every combination once; the first entry changes slowest."""
    return _grown({}, list(space.items()))


def _grown(values: Values, entries: Sequence[tuple[str, Domain]]) -> Iterator[Values]:
    if not entries:
        yield values
        return
    (key, domain), *rest = entries
    if not is_searched(domain, values):
        yield from _grown(values, rest)
        return
    for option in domain.options or ():
        yield from _grown({**values, key: option}, rest)


def num_combinations(space: Space) -> int:
    """Counts the combinations of a grid without creating them: there may be billions."""
    # Options that a condition names are followed one by one; all others of an entry behave alike
    # and are followed as one group, with their number:
    #   a: 1000 choices, b: 3 choices when a is 7   ->   ({a: 7}, 1), ({}, 999)   ->   3 + 999
    groups: list[tuple[Values, int]] = [({}, 1)]
    for key, domain in space.items():
        groups = [group for found in groups for group in _split(found, key, domain, space)]
    return sum(count for _, count in groups)


def _split(
    group: tuple[Values, int], key: str, domain: Domain, space: Space
) -> Iterator[tuple[Values, int]]:
    values, count = group
    if not is_searched(domain, values):
        yield group
        return
    options = domain.options or ()
    asked_for = [wanted_values(other.when[key]) for other in space.values() if key in other.when]
    named: list[Any] = []
    for option in (option for wanted in asked_for for option in wanted):
        if option in options and option not in named:
            named.append(option)
    for option in named:
        yield {**values, key: option}, count
    if others := len(options) - len(named):
        yield values, count * others


def edge_cases(space: Space) -> Iterator[tuple[str, Any, Values]]:
    """Yields each end and option of each entry, with the values that its conditions need."""
    for key, domain in space.items():
        needed = _parents(space, key)
        for value in domain.ends:
            yield key, value, {**needed, key: value}


def _parents(space: Space, key: str) -> Values:
    values: Values = {}
    for parent, wanted in space[key].when.items():
        values |= _parents(space, parent) | {parent: wanted_values(wanted)[0]}
    return values


@dataclass(frozen=True)
class _Setting:
    """A setting that an entry of the space changes."""

    entry: str
    name: str
    takes: Mapping[str, Sequence[Any]]
    """Values of other entries that are needed for it."""

    def touches(self, other: "_Setting") -> bool:
        """Whether both are the same setting, or one is a section with the other in it."""
        short, long = sorted((f"{self.name}.", f"{other.name}."), key=len)
        return long.startswith(short)

    def meets(self, other: "_Setting") -> bool:
        """Whether a trial can have both."""
        return all(
            any(value in other.takes[entry] for value in self.takes[entry])
            for entry in self.takes.keys() & other.takes.keys()
        )


def overlaps(space: Space) -> list[str]:
    """Returns the pairs of entries that set the same setting in some trial."""
    settings = _settings_set(space)
    found: dict[tuple[str, str], str] = {}
    for one, other in itertools.combinations(settings, 2):
        pair = one.entry, other.entry
        if pair not in found and one.touches(other) and one.meets(other):
            found[pair] = (
                f"space.{one.entry} and space.{other.entry} both set "
                f"{max(one.name, other.name, key=len)}, where the later one would win: "
                + _remedy(space, settings, *pair)
            )
    return list(found.values())


def _settings_set(space: Space) -> list[_Setting]:
    found = []
    for key, domain in space.items():
        takes = _takes(space, key)
        if domain.bundles is None:
            found.append(_Setting(key, key, takes))
        for bundle, settings in (domain.bundles or {}).items():
            found += [_Setting(key, name, {**takes, key: [bundle]}) for name in settings]
    return found


def _takes(space: Space, key: str) -> dict[str, list[Any]]:
    """Returns the values that an entry's conditions need, and the conditions of those."""
    takes: dict[str, list[Any]] = {}
    for parent, wanted in space[key].when.items():
        for entry, values in (*_takes(space, parent).items(), (parent, wanted_values(wanted))):
            takes[entry] = [value for value in takes.get(entry, values) if value in values]
    return takes


def _remedy(space: Space, settings: Sequence[_Setting], one: str, other: str) -> str:
    """Returns how to write it: the plain entry only where no bundle sets its setting."""
    bundled, plain = (one, other) if space[one].bundles is not None else (other, one)
    others = [setting for setting in settings if setting.entry == plain]
    taken = [
        setting.takes.get(bundled)
        for setting in settings
        if setting.entry == bundled and any(map(setting.touches, others))
    ]
    free = [bundle for bundle in space[bundled].bundles or {} if [bundle] not in taken]
    if space[plain].bundles is not None or not free:
        return "keep one of them, or keep them apart with `when`"
    return f"write {plain} after {bundled}, with `when: {{{bundled}: [{', '.join(free)}]}}`"


def settings_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a trial as dotted settings of pretraining."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        bundles = space[key].bundles
        settings |= {key: value} if bundles is None else bundles[value]
    return settings


def combinations(space: Space, count: int, seed: int) -> Iterator[Values]:
    """Yields combinations to check: all if there are at most `count`, else random ones."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_countable = all(domain.options is not None for domain in space.values())
    if is_countable and num_combinations(space) <= count:
        yield from grid(space)
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(count):
        yield draw(space, study.ask())
