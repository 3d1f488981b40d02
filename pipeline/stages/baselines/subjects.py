"""All that a benchmark measures: the baselines, PyTorch eager first, and every variant."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.experiment import Experiment
from pipeline.records.benchmark import EAGER
from pipeline.stages.baselines import first_answer, pyfunc_subject, torch_model, torch_subject
from serving.measuring.bench import ColdProgram, cold_program, model_spec
from serving.measuring.client import TORCH, Spec
from serving.measuring.report import Skipped
from serving.runtime.session import probe, usable_providers

NAMES = {
    "eager": EAGER,
    "channels_last": "PyTorch channels_last",
    "compile": "torch.compile",
    "pyfunc": "MLflow pyfunc",
}
FROM_COLD = ("eager", "pyfunc")
"""Another layout starts as eager does; what a compiler takes is the first call of its row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestants:
    """What takes part."""

    specs: tuple[Spec, ...]
    cold: tuple[ColdProgram, ...]
    skipped: tuple[Skipped, ...]
    """Each variant on each provider that this machine cannot run, with the reason."""


def contestants_of(
    weights: Path,
    models: Mapping[str, Path],
    data: Path,
    saved: Path,
    *,
    threads: Sequence[int],
    experiment: Experiment,
) -> Contestants:
    """Gather the baselines of params.yaml and all of `models` on every provider of this machine.

    `saved` is an empty folder for what MLflow opens.
    """
    named = experiment.benchmark.baselines
    baselines: dict[str, Spec] = {
        mode: Spec(
            name=NAMES[mode],
            provider=TORCH,
            module=torch_subject.__name__,
            setup=torch_model.setup_of(experiment, weights, data, mode),
        )
        for mode in NAMES
        if mode in named and mode != "pyfunc"
    }
    if "pyfunc" in named:
        pyfunc_subject.save_pyfuncs(saved, models["fp32"], threads)
        baselines["pyfunc"] = Spec(
            name=NAMES["pyfunc"],
            provider=TORCH,
            module=pyfunc_subject.__name__,
            setup=pyfunc_subject.setup_of(saved, models["fp32"], data),
        )
    reasons = usable_providers(probe())
    variants = list(_variants(models, data / "test_inputs.npy", reasons))
    return Contestants(
        specs=(*baselines.values(), *variants),
        cold=(
            *(_cold_baseline(spec) for name, spec in baselines.items() if name in FROM_COLD),
            *(cold_program(spec) for spec in variants),
        ),
        skipped=tuple(
            Skipped(subject=variant, provider=provider, threads=None, skipped=reason)
            for variant in models
            for provider, reason in reasons.items()
            if reason is not None
        ),
    )


def _variants(
    models: Mapping[str, Path], rows: Path, reasons: Mapping[str, str | None]
) -> Iterator[Spec]:
    for provider, reason in reasons.items():
        if reason is None:
            yield from (model_spec(name, path, provider, rows) for name, path in models.items())


def _cold_baseline(spec: Spec) -> ColdProgram:
    arguments = ("-m", first_answer.__name__, json.dumps(spec.setup))
    return ColdProgram(subject=spec.label, arguments=arguments)
