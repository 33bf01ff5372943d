"""What makes a run fit that does not: the cheapest changes, each of them planned.

A remedy turns one screw, mildest first: the engines' share of a GPU, their TP, FP8 weights, sleep,
recomputation, smaller micro-batches, the reference on the host, smaller buckets, another layout,
bf16, more nodes. Tried are single remedies, then two together, then three, where no fewer of them
fit. Cheapest is, in this order: what changes no result and needs no more GPUs, what changes
results, what needs more GPUs; then fewer remedies, then the shorter step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

from herl_megatron.config.decides import keys
from herl_megatron.config.schema import Config
from herl_megatron.config.schema.base import Decides
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.build import Plan, find_problems
from herl_megatron.plan.engine_memory import plan_engine
from herl_megatron.plan.layouts import Layouts, divisors
from herl_megatron.plan.machines import Assumptions, Cluster
from herl_megatron.plan.rank_memory import largest_micro_batch

_MOST_TOGETHER = 3
_MOST_SEARCHES = 2
"""Of layouts, over the settings of what else is turned."""
_BESIDE_LAYOUT = {"layout", "share", "engine TP", "fp8", "nodes"}
"""What a layout is searched together with: it recomputes and cuts by itself."""
_SHARES = [share / 100 for share in range(10, 100, 5)]
_LEAST_BUCKET_BYTES = 64 << 20
_RESULTS = (Decides.NUMBERS, Decides.VERDICTS)

Override = Mapping[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True)
class Remedy:
    """One screw: its settings, mildest first; nodes: how many times as many each of them takes."""

    name: str
    settings: tuple[Override, ...]
    nodes: tuple[int, ...] = ()

    @property
    def changes_results(self) -> bool:
        """Whether it decides more than time and memory, as the keys' types in the schema say."""
        return any(key in _deciding() for setting in self.settings for key in setting)

    @property
    def rank(self) -> int:
        """0: changes no result, 1: does, 2: needs more GPUs."""
        return 2 if self.nodes else int(self.changes_results)


@dataclass(frozen=True)
class Change:
    """Overrides that make a configuration fit, and the plan with them."""

    overrides: tuple[str, ...]
    plan: Plan
    changes_results: bool
    gpus: int


LAYOUT = Remedy("layout", ({},))
"""Its settings are found by `Layouts`."""


@cache
def _deciding() -> frozenset[str]:
    return frozenset(key.path for key in keys() if key.decides in _RESULTS)


def cheapest_changes(
    config: Config,
    shape: Path,
    *,
    plan: Plan,
    cluster: Cluster,
    assumed: Assumptions,
    most: int = 3,
) -> list[Change]:
    """The cheapest changes that fit, at most `most`, cheapest first; `plan` does not fit."""
    return _Search(config, shape, plan, cluster, assumed).run(most)


class _Search:
    def __init__(
        self, config: Config, shape: Path, plan: Plan, cluster: Cluster, assumed: Assumptions
    ) -> None:
        self._config = config
        self._shape = shape
        self._cluster = cluster
        self._assumed = assumed
        self._architecture = read_architecture(str(shape))
        self._layouts = Layouts(shape, assumed)
        self._remedies = list(remedies(config, self._architecture, plan, cluster))

    def run(self, most: int) -> list[Change]:
        """See `cheapest_changes`."""
        found: list[Change] = []
        enough: list[frozenset[str]] = []  # names of those that fit: no more is added to them
        for rank, count in product(range(3), range(1, _MOST_TOGETHER + 1)):
            together = []
            for chosen in combinations(self._remedies, count):
                names = frozenset(remedy.name for remedy in chosen)
                if max(remedy.rank for remedy in chosen) != rank:
                    continue
                if any(fewer <= names for fewer in enough):
                    continue
                if LAYOUT in chosen and not names <= _BESIDE_LAYOUT:
                    continue
                if change := self._first(chosen):
                    together.append(change)
                    enough.append(names)
            found += sorted(together, key=lambda change: sum(change.plan.seconds.values()))
            if len(found) >= most:
                break
        return found[:most]

    def _first(self, chosen: Sequence[Remedy]) -> Change | None:
        """The mildest settings of these remedies together that fit."""
        searches = LAYOUT in chosen
        searched = 0
        for places in product(*(range(len(remedy.settings)) for remedy in chosen)):
            values: dict[str, Any] = {}
            nodes = 1
            for remedy, place in zip(chosen, places, strict=True):
                values |= remedy.settings[place]
                nodes *= remedy.nodes[place] if remedy.nodes else 1
            config = applied(self._config, values)
            cluster = replace(self._cluster, nodes=self._cluster.nodes * nodes)
            if not self._engine_holds(config):
                continue
            searched += 1
            if searches and searched > _MOST_SEARCHES:
                return None
            if change := self._fits(config, cluster, searches=searches):
                return change
        return None

    def _engine_holds(self, config: Config) -> bool:
        """Whether the engine has room for a sequence: the part of a plan that takes no time."""
        gpu, assumed = self._cluster.gpu, self._assumed
        return plan_engine(self._architecture, config, gpu=gpu, assumed=assumed).sequences > 0

    def _fits(self, config: Config, cluster: Cluster, *, searches: bool) -> Change | None:
        if searches:
            found = self._layouts.find(config, cluster)
            if found is None:
                return None
            megatron, plan = found
            config = config.model_copy(update={"megatron": megatron})
        else:
            if find_problems(config, self._shape, cluster):
                return None
            fitting = self._layouts.fitting_plan(config, cluster)
            if fitting is None:
                return None
            plan = fitting
        overrides = tuple(_differences(self._config, config))
        deciding = any(text.partition("=")[0] in _deciding() for text in overrides)
        return Change(overrides, plan, deciding, cluster.gpus)


def remedies(
    config: Config, architecture: Architecture, plan: Plan, cluster: Cluster
) -> Iterator[Remedy]:
    """Those that change something here and may help against what is too large."""
    yield from _anywhere(config, plan)
    if not plan.only_host_misfits:
        yield from _on_gpus(config, architecture, cluster)


def _anywhere(config: Config, plan: Plan) -> Iterator[Remedy]:
    """What helps memory of hosts or of both."""
    rollout, megatron, sync = config.rollout, config.megatron, config.weight_sync
    if rollout.mode != "one_step_off" and rollout.sleep < 2:
        levels = range(rollout.sleep + 1, 3)
        yield _remedy("sleep", [{"rollout.sleep": level} for level in levels])
    if megatron.reference == "resident" and config.algorithm.kl_coef:
        yield _remedy("reference", [{"megatron.reference": "host"}])
    if megatron.reference == "host" and config.algorithm.kl_coef and not plan.host_fits:
        yield _remedy("reference", [{"megatron.reference": "resident"}])
    halves = [sync.bucket_bytes >> by for by in (1, 2, 3)]
    buckets = [size for size in halves if size >= _LEAST_BUCKET_BYTES]
    yield _remedy("buckets", [{"weight_sync.bucket_bytes": size} for size in buckets])


def _on_gpus(config: Config, architecture: Architecture, cluster: Cluster) -> Iterator[Remedy]:
    """What helps memory of GPUs, the cheaper first."""
    rollout, megatron = config.rollout, config.megatron
    shares = sorted(_SHARES, key=lambda share: abs(share - rollout.gpu_memory_utilization))
    yield _remedy("share", [{"rollout.gpu_memory_utilization": share} for share in shares])
    yield _remedy("engine TP", list(_engine_layouts(config, architecture, cluster)))
    if megatron.recompute != "full":
        yield _remedy("recompute", [{"megatron.recompute": "full"}])
    longest = largest_micro_batch(config).longest_row * megatron.context_parallel
    smaller = [megatron.micro_batch_tokens >> by for by in (1, 2, 3)]
    budgets = [tokens for tokens in smaller if tokens >= longest]
    yield _remedy("micro-batch", [{"megatron.micro_batch_tokens": tokens} for tokens in budgets])
    yield LAYOUT
    if rollout.quantization is None:
        fp8 = {"rollout.quantization": "fp8", "rollout.dtype": "bf16"}
        yield _remedy("fp8", [fp8 | {"algorithm.mismatch_weight": True}])
    if "fp32" in (megatron.precision, rollout.dtype):
        yield _remedy("bf16", [{"megatron.precision": "bf16", "rollout.dtype": "bf16"}])
    if not megatron.distributed_optimizer and megatron.data_parallel > 1:
        yield _remedy("sharded optimizer", [{"megatron.distributed_optimizer": True}])
    times = (2, 4)
    more = [
        {
            "megatron.data_parallel": megatron.data_parallel * by,
            "rollout.replicas": rollout.replicas * by,
        }
        for by in times
    ]
    yield Remedy("nodes", tuple(more), nodes=times)


def _remedy(name: str, settings: Sequence[Override]) -> Remedy:
    return Remedy(name, tuple(settings))


def _engine_layouts(
    config: Config, architecture: Architecture, cluster: Cluster
) -> Iterator[Override]:
    """Fewer engines, each on more GPUs of a node; as many GPUs as before."""
    rollout = config.rollout
    gpus = rollout.replicas * rollout.tensor_parallel
    for tp in divisors(cluster.gpus_per_node):
        if tp > rollout.tensor_parallel and not architecture.num_heads % tp and not gpus % tp:
            yield {"rollout.tensor_parallel": tp, "rollout.replicas": gpus // tp}


def applied(config: Config, values: Override) -> Config:
    """The configuration with other values; rules are checked when it is planned."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = value
    whole = dict(config)  # section by name
    return config.model_copy(
        update={name: whole[name].model_copy(update=update) for name, update in sections.items()}
    )


def _differences(before: Config, after: Config) -> Iterator[str]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for section, values in new.items():
        for key, value in values.items():
            if value != old[section][key]:
                yield f"{section}.{key}={_text(value)}"


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower()
