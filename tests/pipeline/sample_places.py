"""Reports of the places where a model was measured, with chosen figures."""

from dataclasses import replace

import sample_metrics

from pipeline.records.places import ARM, CORTEX_M4, WEB, PlaceReport, Places

RUNTIME = "onnxruntime 1.31.1"


def report(place: str = "x86 all", **facts: object) -> PlaceReport:
    usual = PlaceReport(
        variant="fp32",
        place=place,
        runtime=RUNTIME,
        machine="AMD EPYC <Genoa>",
        sha256=sample_metrics.MODEL,
        rows=1000,
        equal=1000,
        near_ties=0,
        flips=0,
        largest_diff=3.2e-7,
        diff_of="probabilities",
        p50_ms=None,
        bytes=34_000,
        command="python benchmarks/places.py mnist-cnn --only x86",
        revision="4f0c1d2e",
    )
    return replace(usual, **facts)  # type: ignore[arg-type]  # fields by name


def everywhere(experiment: str) -> Places:
    """fp32 in six places, and int8 in two, with a row near a tie and a flip."""
    arm = f"python benchmarks/places.py {experiment} --only arm64"
    emulated = "cortex-a76, qemu 7.2.22"
    int8 = report(variant="int8", bytes=15_800, p50_ms=0.0193, largest_diff=0)
    reports = (
        report(p50_ms=0.0142, largest_diff=0),
        report("x86 none", p50_ms=0.0217),
        report(ARM, machine=emulated, runtime="onnxruntime 1.27.0", command=arm),
        report(WEB, p50_ms=0.31, runtime="onnxruntime-web 1.30.0"),
        report(CORTEX_M4, runtime="C99", machine="mps2-an386, qemu 7.2.22"),
        int8,
        replace(int8, place=ARM, equal=998, near_ties=1, flips=1, p50_ms=None, command=arm),
    )
    return Places(experiment=experiment, reports=reports)
