"""The links between an experiment's data and its bundle, proven by the hashes that stages recorded.

Reports are read as plain JSON where their records would import what takes longer than all of this.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.config import layout
from pipeline.config.yamlfile import parse_yaml, text_of
from pipeline.project.dvclock import LOCK, LockedStage, contradictions, read_stages
from pipeline.records import read, ready
from pipeline.records.train import TrainReport
from serving.bundles.bundle import MODEL, Bundle, open_bundle, sealed
from serving.errors import IntegrityError
from serving.files import read_json, sha256_of_bytes, sha256_of_file
from serving.machine.environment import output_of

State = Literal["proven", "claimed", "not here", "unknown", "broken"]
"""Proven by a hash; said by the file itself alone; not in this checkout; not known at all; or
contradicted."""
LARGE_BYTES = 100 * 2**20
"""Of a data set: a quarter of a second of hashing."""
GIT_SECONDS = 10
DIRTY = "-dirty"
COMMIT = re.compile(r"[0-9a-f]{7,64}")
"""No option of git's."""
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
TRAINED = ("dataset", "epochs", "model", "train")
"""The parts of an experiment's section that are trained with."""
STAGES = {
    "weights": ("train",),
    "onnx": ("train", "export", "quantize"),
    "bundle": ("train", "export", "quantize", "parity", "benchmark", "bundle"),
}
"""Those that make what a chain ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link of the chain."""

    name: str
    """For instance "data", "weights" or "onnx int8"."""
    subject: str
    """The path or the name."""
    fingerprint: str
    """The hash, or git's revision, that stands for it; "" where there is none."""
    state: State
    detail: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The links of one experiment that was trained, below the folder `root` of params.yaml."""

    root: Path
    experiment: str
    deep: bool = False
    """Whether the arrays of a large data set are hashed as well."""

    @cached_property
    def trained(self) -> TrainReport:
        """What the training recorded; MissingInputError before it, IntegrityError if altered."""
        path = self.root / layout.details(self.experiment, "train")
        return read(TrainReport, path, f"ferry train {self.experiment}")

    def links(self, end: str, variants: Sequence[str]) -> Iterator[Link]:
        """From the data to the end, "weights", "onnx" or "bundle", and whether dvc.lock agrees."""
        yield self.data()
        yield self.params()
        yield self.revision()
        yield from self.origins()
        yield self.weights()
        for variant in variants:
            yield self.onnx(variant)
        if end == "bundle" and (self.root / layout.bundle(self.experiment)).is_dir():
            yield self.bundle(layout.bundle(self.experiment))
        yield self.lock(end, variants)

    # The links, one by one

    def data(self) -> Link:
        """The preprocessed arrays, which `data_sha256` of the training stands for."""
        trained, folder = self.trained, self.root / layout.ready(self.trained.dataset)
        stage = f"preprocess@{trained.dataset}"
        md5 = [one.outs.get(str(layout.ready(trained.dataset)), "") for one in self.locked(stage)]
        link = Link(
            name="data",
            subject=trained.dataset,
            fingerprint="".join(md5) or trained.data_sha256,
            state="proven",
            detail=f"data_sha256 {trained.data_sha256[:12]}",
        )
        if not (folder / ready.MANIFEST).is_file():
            return replace(link, state="not here", detail=f"{link.detail}; `dvc repro {stage}`")
        manifest = ready.open_manifest(folder)
        if (found := ready.digest(manifest)) != trained.data_sha256:
            return _broken(link, f"{folder} has data_sha256 {found[:12]}…", trained.data_sha256)
        if not self._hashes_data():
            return replace(link, detail=f"{link.detail} of the manifest; --deep reads the arrays")
        for name, info in manifest.arrays.items():
            path = folder / name
            if not path.is_file() or (found := sha256_of_file(path)) != info.sha256:
                has = f"has sha256 {found[:12]}…" if path.is_file() else "is not there"
                return _broken(link, f"{path} {has}", info.sha256)
        return replace(link, detail=f"{link.detail}, {len(manifest.arrays)} arrays")

    def params(self) -> Link:
        """The settings of the training, beside those that params.yaml has now."""
        settings, overrides = self.trained.settings, self.trained.overrides
        link = Link(
            name="params",
            subject=str(layout.PARAMS),
            fingerprint=sha256_of_bytes(json.dumps(settings, sort_keys=True).encode()),
            state="proven",
            detail=f"{len(settings)} settings",
        )
        if overrides:
            options = " ".join(f"--set {key}={value}" for key, value in overrides.items())
            link = replace(link, detail=f"{link.detail}, with {options}")
        if not self.settings:
            return replace(link, state="not here")
        other = self._other_setting()
        return replace(link, state="broken", detail=f"{layout.PARAMS}: {other}") if other else link

    def revision(self) -> Link:
        """The commit that the training ran at."""
        revision = self.trained.git_revision
        commit = revision.removesuffix(DIRTY)
        short = commit[:12] + revision[len(commit) :]
        link = Link(name="git", subject=short, fingerprint=commit, state="proven", detail="")
        if not COMMIT.fullmatch(commit):
            return replace(link, fingerprint="", state="unknown", detail="trained outside of git")
        shown = self._git("log", "-1", "--format=%cs %s", commit)
        if not shown and self._git("rev-parse", "--git-dir"):
            lacks = f"commit {commit[:12]}… is not in this repository; a shallow clone lacks it"
            return replace(link, state="broken", detail=lacks)
        if not shown:
            return replace(link, state="claimed", detail="this folder is no git repository")
        if revision != commit:
            return replace(link, state="claimed", detail=f"sources differed from it: {shown}")
        return replace(link, detail=shown)

    def origins(self) -> Iterator[Link]:
        """The weights of other experiments that this one learned from: its teacher's, its first."""
        named = {"teacher": self.trained.teacher, "init_from": self.trained.init_from}
        for name, origin in named.items():
            if origin:
                path = layout.weights(origin.experiment)
                yield self._file(name, path, {"train.json": origin.weights_sha256})

    def weights(self) -> Link:
        """The trained weights."""
        path = layout.weights(self.experiment)
        record = layout.details(self.experiment, "train")
        return self._file("weights", path, {str(record): self.trained.weights_sha256})

    def onnx(self, variant: str) -> Link:
        """The ONNX file of a variant, of those weights."""
        weights, parity = self.trained.weights_sha256, self.reports["parity"]
        made_by = "export.json" if variant == layout.VARIANTS[0] else "quantize.json"
        compared = at(parity, "variants", variant)
        recorded = {made_by: self.recorded(variant), "parity.json": at(compared, "sha256") or ""}
        link = self._file(f"onnx {variant}", layout.variant(self.experiment, variant), recorded)
        if link.state == "broken":
            return link
        parents = [
            ("export.json", at(self.reports["export"], "weights_sha256"), weights),
            ("parity.json", at(parity, "weights_sha256"), weights),
        ]
        if made_by == "quantize.json":
            exported = self.recorded(layout.VARIANTS[0])
            parents.append((made_by, at(self.reports["quantize"], "model_sha256"), exported))
        for record, found, expected in parents:
            if found and found != expected:
                return _broken(link, f"{record} is about {found[:12]}…", expected)
        if link.state == "proven" and compared:
            passed = at(compared, "passed") is True
            link = replace(link, detail=f"parity {'passed' if passed else 'FAILED'}")
        return link

    def bundle(self, folder: Path) -> Link:
        """A bundle of this experiment; one that lies elsewhere may be of an earlier run."""
        link = Link(name="bundle", subject=str(folder), fingerprint="", state="broken", detail="")
        try:
            bundle = open_bundle(self.root / folder)
        except IntegrityError as error:
            return replace(link, detail=str(error))
        manifest = bundle.manifest
        link = replace(link, fingerprint=manifest.digest)
        model, trained = manifest.files[MODEL].sha256, self.trained
        same = [
            ("the weights", manifest.source.weights_sha256, trained.weights_sha256),
            ("the commit", manifest.source.git_revision, trained.git_revision),
            (f"the {manifest.variant} model", model, self.recorded(manifest.variant)),
        ]
        made_here = folder == layout.bundle(self.experiment)
        if made_here:
            digest = at(self.reports["bundle"], "digest")
            same.append(("bundle.json", _digest_as_made(bundle), digest))
        for what, found, expected in same:
            if expected and found != expected:
                wrong = _broken(link, f"its manifest has {found[:12]}… for {what}", expected)
                return wrong if made_here else replace(wrong, state="claimed")
        ships = f"ships {manifest.variant}"
        if not self.recorded(manifest.variant):
            return replace(link, state="claimed", detail=f"{ships}, which no report is about")
        tuned = f", {len(manifest.profiles)} profiles tuned since" if manifest.profiles else ""
        return replace(link, state="proven", detail=f"{ships}{tuned}")

    def lock(self, end: str, variants: Sequence[str]) -> Link:
        """Whether dvc.lock agrees with the files, with params.yaml and with itself."""
        names = STAGES[end][:-1] if tuple(variants) == ("fp32",) and end == "onnx" else STAGES[end]
        stages = self.locked(
            f"preprocess@{self.trained.dataset}", *(f"{name}@{self.experiment}" for name in names)
        )
        link = Link(name="dvc.lock", subject=str(LOCK), fingerprint="", state="proven", detail="")
        if not stages:
            return replace(link, state="not here", detail="`dvc repro` writes it; commit it")
        unread = () if self._hashes_data() else (str(layout.ready(self.trained.dataset)),)
        wrong = [*contradictions(stages, self.root, unread)]
        wrong += [other for one in stages if one.params and (other := self._other_locked(one))]
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            again = f"`dvc repro {stages[-1].name}` settles it"
            return replace(link, state="broken", detail=f"{wrong[0]}{more}; {again}")
        return replace(link, detail=f"{len(stages)} stages agree with the files")

    # What is recorded

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What params.yaml has now, {} where it is not there."""
        path = self.root / layout.PARAMS
        return parse_yaml(text_of(path), str(path)) if path.is_file() else {}

    @cached_property
    def reports(self) -> Mapping[str, Any]:
        """What the stages after the training wrote, {} for one that has not run."""
        stages = ("export", "quantize", "parity", "bundle")
        paths = {stage: self.root / layout.details(self.experiment, stage) for stage in stages}
        return {stage: read_json(path) if path.is_file() else {} for stage, path in paths.items()}

    def recorded(self, variant: str) -> str:
        """The sha256 of a variant's file, by the stage that made it; "" where none did."""
        if variant == layout.VARIANTS[0]:
            return str(at(self.reports["export"], "sha256") or "")
        return str(at(self.reports["quantize"], "variants", variant, "sha256") or "")

    def locked(self, *names: str) -> tuple[LockedStage, ...]:
        """Stages as dvc.lock has them."""
        return read_stages(self.root / LOCK, names)

    def _file(self, name: str, path: Path, recorded: Mapping[str, str]) -> Link:
        """A file that every record of it must have hashed alike."""
        known = {record: sha256 for record, sha256 in recorded.items() if sha256}
        fingerprint = next(iter(known.values()), "")
        link = Link(
            name=name, subject=str(path), fingerprint=fingerprint, state="proven", detail=""
        )
        if not (self.root / path).is_file():
            return replace(link, state="not here", detail="`dvc checkout` brings it, if DVC has it")
        found = sha256_of_file(self.root / path)
        for record, sha256 in known.items():
            if sha256 != found:
                return _broken(link, f"{path} has sha256 {found[:12]}…", sha256, record)
        return link if known else replace(link, fingerprint=found, state="unknown")

    def _hashes_data(self) -> bool:
        folder = self.root / layout.ready(self.trained.dataset)
        return self.deep or sum(one.stat().st_size for one in folder.glob("*")) <= LARGE_BYTES

    def _other_setting(self) -> str:
        """The first setting that params.yaml has otherwise than the weights were trained with."""
        defaults = at(self.settings, "defaults")
        own = at(self.settings, "experiments", self.experiment)
        if own is None:
            return f"experiments.{self.experiment} is not there any more"
        places = [own, *([at(defaults, "regression")] if self.trained.targets else []), defaults]
        settings = {**self.trained.settings, "dataset": self.trained.dataset}
        for key, text in settings.items():
            found = (at(place, *key.split("."), otherwise=NOTHING) for place in places)
            now = next((one for one in found if one is not NOTHING), None)
            if key not in self.trained.overrides and now != parse_yaml(text, key):
                return f"{key} is {now}, the weights were trained with {text}"
        trained = {part: own[part] for part in TRAINED if part in own}
        new = [key for key in _keys(trained) if key not in settings]
        return f"{new[0]} is new since the weights were trained" if new else ""

    def _other_locked(self, stage: LockedStage) -> str:
        """The first setting that dvc.lock has otherwise than params.yaml."""
        for key, value in stage.params.items() if self.settings else ():
            if _as_dvc_reads(at(self.settings, *key.split("."))) != _as_dvc_reads(value):
                return f"{stage.name} ran with another {key} than {layout.PARAMS} has"
        return ""

    def _git(self, *arguments: str) -> str:
        command = ("git", "-C", str(self.root), *arguments)
        return output_of(command, seconds=GIT_SECONDS).decode(errors="replace").strip()


NOTHING = object()


def at(node: Any, *keys: str, otherwise: object = None) -> Any:
    """What lies at a path of plain values; `otherwise` where nothing does."""
    for key in keys:
        node = node.get(key, otherwise) if isinstance(node, Mapping) else otherwise
    return node


def _as_dvc_reads(node: Any) -> Any:
    """The same with numbers in place of texts such as 1e-05, which YAML 1.2 takes for numbers."""
    if isinstance(node, Mapping):
        return {key: _as_dvc_reads(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_dvc_reads(value) for value in node]
    return float(node) if isinstance(node, str) and EXPONENT.fullmatch(node) else node


def _keys(node: Any, *keys: str) -> Iterator[str]:
    """The paths of all values of a section."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _keys(value, *keys, key)
    else:
        yield ".".join(keys)


def _digest_as_made(bundle: Bundle) -> str:
    """The digest before `ferry bench --tune` added its profiles."""
    return sealed(replace(bundle.manifest, profiles=())).digest


def _broken(link: Link, found: str, expected: str, record: str = "") -> Link:
    by = f" by {record}" if record else ""
    return replace(link, state="broken", detail=f"{found}, expected {expected[:12]}…{by}")
