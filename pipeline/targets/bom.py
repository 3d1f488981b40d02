"""`bom.json`: the bill of materials of a bundle, CycloneDX 1.6 with the model card of ML-BOM.

    https://cyclonedx.org/docs/1.6/json/

A bill's serial number follows from what it is of and it holds no time, so that the same bundle has
the same bill. That of a release of ferry (`make release`) is made of the same parts.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.targets.web import RUNTIME_VERSION
from serving.bundles.bundle import MODEL, RUNNER, BundleManifest
from serving.bundles.registry import DIGEST_CHARACTERS
from serving.runtime.tensors import TensorInfo

if TYPE_CHECKING:
    from pipeline.targets.card import Card

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
SPDX = {
    "Apache-2.0": "Apache-2.0",
    "BSD-3-Clause": "BSD-3-Clause",
    "CC BY 4.0": "CC-BY-4.0",
    "CC BY-SA 3.0": "CC-BY-SA-3.0",
    "CC BY-SA 4.0": "CC-BY-SA-4.0",
    "CC0": "CC0-1.0",
    "MIT": "MIT",
}
"""Licences of data sets that have an identifier of SPDX; any other is kept by its name."""
UNSTATED = ("", "none stated")
NUMPY = "2.0"
"""The first numpy that ferry is tested with."""

Json = dict[str, Any]


def bill_of_materials(card: "Card", sums: Mapping[str, str]) -> Json:
    """The bill of a bundle; `sums` are the sha256 of its files by name, but for the bill itself."""
    manifest = card.manifest
    libraries = list(_libraries(manifest))
    return bill(
        manifest.digest,
        manifest.source.ferry_version,
        _model(card, sums[MODEL]),
        [_data(card), *libraries, *(_file(name, content) for name, content in sums.items())],
        {"model": ["data", *(library["bom-ref"] for library in libraries)]},
    )


def bill(
    digest: str,
    ferry_version: str,
    component: Json,
    components: Sequence[Json],
    needs: Mapping[str, Sequence[str]],
) -> Json:
    """A bill of one component, of those that are in it, and of who needs whom, by their bom-ref."""
    tool = {"type": "application", "name": "onnx-ferry", "version": ferry_version}
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": component},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": others} for ref, others in needs.items()],
    }


def _model(card: "Card", sha256: str) -> Json:
    manifest, source = card.manifest, card.manifest.source
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": source.weights_sha256[:DIGEST_CHARACTERS],
        "hashes": hashes(sha256),
        "modelCard": _model_card(card),
        "properties": properties(
            {
                "variant": manifest.variant,
                "target": manifest.target,
                "opset": str(manifest.opset),
                "ir_version": str(manifest.ir_version),
                "weights_sha256": source.weights_sha256,
                "git_revision": source.git_revision,
                "needs": ", ".join(manifest.needs),
                "golden_rows": str(manifest.golden.rows),
                "golden_max_abs_diff": repr(manifest.golden.max_abs_diff),
                "golden_tie": repr(manifest.golden.tie),
            }
        ),
    }


def _model_card(card: "Card") -> Json:
    manifest = card.manifest
    parameters = {
        "task": card.task,
        "architectureFamily": card.architecture,
        "datasets": [{"ref": "data"}],
        "inputs": [_format(info) for info in manifest.inputs],
        "outputs": [_format(info) for info in manifest.outputs],
    }
    return {
        "modelParameters": {name: value for name, value in parameters.items() if value},
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(card))},
        "considerations": {
            "technicalLimitations": [
                "It was measured on the test rows of its data set alone.",
                f"It runs on ONNX Runtime {manifest.minimum_runtime} or later.",
            ]
        },
        "properties": properties(
            {f"limit:{name}": repr(gate.limit) for name, gate in manifest.parity.items()}
        ),
    }


def _format(info: TensorInfo) -> Json:
    axes = ", ".join("any" if axis is None else str(axis) for axis in info.shape)
    return {"format": f"{info.name}: {'string' if info.is_text else info.dtype} [{axes}]"}


def _metrics(card: "Card") -> Iterator[Json]:
    for name, value in card.manifest.metrics.items():
        yield {"type": name, "value": repr(value), "slice": "test rows"}
    beside = f"test rows, against {card.reference}"
    for name, gate in card.manifest.parity.items():
        yield {"type": name, "value": repr(gate.measured), "slice": beside}


def _data(card: "Card") -> Json:
    """The data set, with what its own record says of it, and no more."""
    data = card.data
    name = card.manifest.source.dataset
    component: Json = {"type": "data", "bom-ref": "data", "name": name}
    if data and data.licence not in UNSTATED:
        spdx = SPDX.get(data.licence)
        licence = {"id": spdx} if spdx else {"name": data.licence}
        component["licenses"] = [{"license": licence}]
    if data and data.homepage:
        component["externalReferences"] = [{"type": "website", "url": data.homepage}]
    said = {"licence": card.licence, "citation": data.citation if data else ""}
    return component | {"data": [{"type": "dataset"}], "properties": properties(said)}


def _libraries(manifest: BundleManifest) -> Iterator[Json]:
    """What runs the model: the packages that the runner imports, and the runtime of a page."""
    for name, licence, version in (
        ("onnxruntime", "MIT", manifest.minimum_runtime),
        ("numpy", "BSD-3-Clause", NUMPY),
    ):
        # The least that does: there is no field for that in 1.6.
        least = {"properties": properties({"minimum_version": version})}
        yield library(f"pkg:pypi/{name}", name, {"license": {"id": licence}}) | least
    if manifest.target == "web":
        web = "onnxruntime-web"
        purl = f"pkg:npm/{web}@{RUNTIME_VERSION}"
        yield library(purl, web, {"license": {"id": "MIT"}}) | {"version": RUNTIME_VERSION}


def library(purl: str, name: str, licence: Json | None) -> Json:
    """A package, with its licence where that is known."""
    licences = {"licenses": [licence]} if licence else {}
    return {"type": "library", "bom-ref": name, "name": name, **licences, "purl": purl}


def _file(name: str, sha256: str) -> Json:
    file = {"type": "file", "name": name, "hashes": hashes(sha256)}
    own = name == RUNNER  # ferry's own code; of the model nobody told a licence
    return file | ({"licenses": [{"license": {"id": "Apache-2.0"}}]} if own else {})


def hashes(sha256: str) -> list[Json]:
    """The sum of a component."""
    return [{"alg": "SHA-256", "content": sha256}]


def properties(values: Mapping[str, str]) -> list[Json]:
    """What CycloneDX has no field for, under names of ferry's own."""
    return [{"name": f"ferry:{name}", "value": value} for name, value in values.items() if value]
