"""`ferry lineage`: which data, settings and commit a file comes from, and where that chain breaks.

It is read from files alone: what each stage wrote of its inputs, the bundle's manifest, the ONNX
file's own words, dvc.lock and git. A link is proven where a recorded hash is that of the file which
lies there. A file that was copied elsewhere is found by its hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import layout
from pipeline.project.chain import Chain, Link, at
from serving.batch.journal import Journal, Layout, read_journal
from serving.bundles.bundle import FOREIGN, MODEL, BundleManifest, open_bundle, read_manifest
from serving.bundles.finding import MANIFEST, is_registered_name, located, not_there
from serving.bundles.registry import version_named
from serving.console import columns
from serving.errors import InputError, IntegrityError, one_line
from serving.files import read_json, sha256_of_file
from serving.runtime.onnxfile import read_header

FERRY = "ferry."
"""How the keys begin that ferry writes into an ONNX file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A chain from the data to what was asked for."""

    subject: str
    experiment: str | None
    """None where no experiment of this project made it."""
    links: tuple[Link, ...]

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that are contradicted."""
        return tuple(link for link in self.links if link.state == "broken")

    def require(self) -> None:
        """Raise IntegrityError naming each broken link, if there is one."""
        if self.broken:
            breaks = "; ".join(f"{link.name}: {link.detail}" for link in self.broken)
            raise IntegrityError(f"the lineage of {self.subject} breaks at {breaks}")


def as_table(found: Lineage) -> str:
    """Lay the chain out for a terminal."""
    rows = [
        (
            link.name,
            link.subject,
            link.fingerprint[:12],
            link.state.upper() if link.state == "broken" else link.state,
            link.detail,
        )
        for link in found.links
    ]
    return columns([("link", "what", "hash", "state", ""), *rows])


def lineage(given: str, root: Path = Path(), *, deep: bool = False) -> Lineage:
    """The chain of an experiment's name, a bundle, an ONNX file, weights or predictions.

    `root` is the folder of params.yaml. The arrays of a large data set are hashed with `deep` only.
    Raises MissingInputError for what is not there, InputError for a file that is none of these, and
    IntegrityError for a report that cannot be read.
    """
    search = LineageSearch(root=root, deep=deep, subject=given)
    if not Path(given).exists() and search.is_trained(given):
        return search.chain(given, "bundle", *layout.models(given, root))
    path = located(given)
    if not path.exists():
        raise not_there(path)
    if path.is_dir() and (path / MANIFEST).is_file():
        found = search.of_bundle(path)
        return _with_version(found, given) if is_registered_name(given) else found
    if path.suffix == ".safetensors":
        return search.of_weights(path)
    if path.suffix == ".onnx":
        return search.of_onnx(path)
    return search.of_predictions(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageSearch:
    """Looks for the experiment that made a file, by its hash, in the reports below `root`."""

    root: Path
    deep: bool
    subject: str

    def of_weights(self, path: Path) -> Lineage:
        """The chain of a file of weights."""
        sha256 = sha256_of_file(path)
        experiment = self._by_place(path) or self._with(sha256, "train", "weights_sha256")
        if experiment:
            return self.chain(experiment, "weights", own=self._copy(path, sha256, experiment))
        link = Link(
            name="weights",
            subject=str(path),
            fingerprint=sha256,
            state="broken",
            detail="no training of this project wrote this file",
        )
        return self._alone(link)

    def of_onnx(self, path: Path) -> Lineage:
        """The chain of an ONNX file, which may be another program's."""
        sha256 = sha256_of_file(path)
        known = self._place(path) or self._variant_of(sha256)
        if known:
            experiment, variant = known
            own = self._copy(path, sha256, experiment)
            return self.chain(experiment, "onnx", *dict.fromkeys(("fp32", variant)), own=own)
        header = read_header(path.read_bytes())
        link = Link(
            name="onnx",
            subject=str(path),
            fingerprint=sha256,
            state="unknown",
            detail=f"ferry did not export it: opset {header.opset}, IR {header.ir_version}",
        )
        metadata = header.metadata
        experiment = metadata.get(f"{FERRY}experiment", "")
        if not experiment:
            return self._alone(link)
        words = {
            name: metadata.get(f"{FERRY}{name}", "")
            for name in ("dataset", "data_sha256", "git_revision", "weights_sha256")
        }
        return self._by_its_word(replace(link, state="broken"), experiment, words)

    def of_bundle(self, path: Path) -> Lineage:
        """The chain of a bundle, wherever it lies."""
        here = self._by_place(path)
        if here:
            return self.chain(here, "bundle", *layout.models(here, self.root))
        link = Link(name="bundle", subject=str(path), fingerprint="", state="broken", detail="")
        try:
            manifest = open_bundle(path).manifest
        except IntegrityError as error:
            link = replace(link, detail=one_line(error))
            experiment = self._named_by(path)
            return self.chain(experiment, "weights", own=link) if experiment else self._alone(link)
        link = replace(link, fingerprint=manifest.digest)
        source = manifest.source
        if manifest.variant == FOREIGN:
            detail = f"holds {manifest.name}, which answers as {source.weights_sha256[:12]}… does"
            return self._alone(replace(link, state="claimed", detail=detail))
        experiment = self._with(source.weights_sha256, "train", "weights_sha256")
        if experiment:
            variants = dict.fromkeys(("fp32", manifest.variant))
            own = self._opened(experiment).bundle(path)
            return self.chain(experiment, "onnx", *variants, own=own)
        words = {
            "dataset": source.dataset,
            "git_revision": source.git_revision,
            "weights_sha256": source.weights_sha256,
        }
        # It proves itself whole; that its experiment went on since is no fault of it.
        return self._by_its_word(replace(link, state="claimed"), manifest.name, words)

    def of_predictions(self, path: Path) -> Lineage:
        """The chain of what `ferry predict` wrote, by the list of shards beside it."""
        journal = _journal_of(path)
        provenance = journal.provenance
        key = provenance.key
        link = Link(
            name="predictions",
            subject=str(path),
            fingerprint=key.model_sha256,
            state="proven",
            detail=f"{journal.rows:,} rows by {provenance.model} on {key.provider}, ONNX Runtime "
            f"{provenance.onnxruntime}",
        )
        known = self._variant_of(key.model_sha256)
        if known:
            experiment, variant = known
            shipped = _model_of(self.root / layout.bundle(experiment)) == key.model_sha256
            variants = dict.fromkeys(("fp32", variant))
            return self.chain(experiment, "bundle" if shipped else "onnx", *variants, own=link)
        there = Path(provenance.model)
        model = sha256_of_file(there) if there.is_file() else _model_of(there)
        if model != key.model_sha256:
            detail = (
                f"{provenance.model} is not the model of sha256 {key.model_sha256[:12]}…, and no "
            )
            detail += "experiment of this project made it"
            return self._alone(replace(link, state="broken", detail=detail))
        behind = self.of_onnx(there) if there.is_file() else self.of_bundle(there)
        return replace(behind, subject=self.subject, links=(*behind.links, link))

    # What the chains are made of

    def chain(self, experiment: str, end: str, *variants: str, own: Link | None = None) -> Lineage:
        """The links of an experiment and, at the end, that of a file which lies elsewhere."""
        links = tuple(self._opened(experiment).links(end, variants))
        return Lineage(
            subject=self.subject,
            experiment=experiment,
            links=(*links, own) if own else links,
        )

    def is_trained(self, experiment: str) -> bool:
        """Whether an experiment of that name left a report of its training."""
        return experiment in self._experiments()  # which no path is that a file names

    def _opened(self, experiment: str) -> Chain:
        return Chain(root=self.root, experiment=experiment, deep=self.deep)

    def _alone(self, link: Link) -> Lineage:
        return Lineage(subject=self.subject, experiment=None, links=(link,))

    def _by_its_word(self, link: Link, experiment: str, words: Mapping[str, str]) -> Lineage:
        """The chain of a file of ferry's that no report of this project knows.

        Where its experiment is there, and has other files now, `link` has its state.
        """
        weights = words.get("weights_sha256", "")
        trained = self._with(weights, "train", "weights_sha256") if weights else None
        if trained:
            detail = f"of the weights of {trained}, but no report of {trained} knows these bytes"
            return self.chain(trained, "weights", own=replace(link, detail=detail))
        links = [
            Link(
                name=name, subject=value, fingerprint=words.get(key, ""), state="claimed", detail=""
            )
            for name, key, value in (
                ("data", "data_sha256", words.get("dataset", "")),
                ("git", "git_revision", words.get("git_revision", "")),
                ("weights", "weights_sha256", experiment),
            )
            if value
        ]
        if self.is_trained(experiment):
            link = replace(
                link, detail=f"{experiment} has other weights now, trained since or before"
            )
        else:
            detail = "by its own word: no report of this project knows it"
            link = replace(link, state="claimed", detail=detail)
        return Lineage(subject=self.subject, experiment=None, links=(*links, link))

    def _copy(self, path: Path, sha256: str, experiment: str) -> Link | None:
        """The link of a file that lies elsewhere; None for one where ferry writes it."""
        if self._by_place(path) == experiment:
            return None
        return Link(
            name="copy",
            subject=str(path),
            fingerprint=sha256,
            state="proven",
            detail=f"the same bytes as {experiment} has",
        )

    # Who made it

    def _experiments(self) -> list[str]:
        """Those that left a report of their training."""
        reports = self.root.glob(str(layout.details("*", "train")))
        return sorted(report.parent.name for report in reports)

    def _with(self, sha256: str, stage: str, *keys: str) -> str | None:
        """The experiment whose stage recorded a hash."""
        return next(
            (
                one
                for one in self._experiments()
                if at(self._report(one, stage, sha256), *keys) == sha256
            ),
            None,
        )

    def _variant_of(self, sha256: str) -> tuple[str, str] | None:
        """The experiment and the variant whose file has this hash."""
        exported = self._with(sha256, "export", "sha256")
        if exported:
            return exported, "fp32"
        for one in self._experiments():
            made = self._report(one, "quantize", sha256)
            for variant in layout.VARIANTS:
                if at(made, "variants", variant, "sha256") == sha256:
                    return one, variant
        return None

    def _report(self, experiment: str, stage: str, sha256: str) -> object:
        """A report in which a hash stands; most do not have it, and are not parsed."""
        path = self.root / layout.details(experiment, stage)
        there = path.is_file() and sha256.encode() in path.read_bytes()
        return read_json(path) if there else None

    def _place(self, path: Path) -> tuple[str, str] | None:
        """The experiment that writes at this very place, and what: "weights", "bundle", "int8"."""
        for one in self._experiments():
            variants = {name: layout.variant(one, name) for name in layout.VARIANTS}
            places = {"weights": layout.weights(one), "bundle": layout.bundle(one)} | variants
            for what, place in places.items():
                if path.resolve() == (self.root / place).resolve():
                    return one, what
        return None

    def _by_place(self, path: Path) -> str | None:
        return (self._place(path) or (None,))[0]

    def _named_by(self, path: Path) -> str | None:
        """The experiment that a bundle names whose files are not those that were written."""
        try:
            name = read_manifest(path).name
        except IntegrityError:
            return None
        return name if self.is_trained(name) else None


def _with_version(found: Lineage, given: str) -> Lineage:
    """The chain with the version and its alias beside the bundle."""
    registry, version = version_named(given)
    alias = registry.alias_of(version)
    words = [f"{registry.name}/{version}", f"the {alias}" if alias else ""]
    links = (
        replace(link, detail=", ".join(filter(None, [link.detail, *words])))
        if link.name == "bundle"
        else link
        for link in found.links
    )
    return replace(found, links=tuple(links))


def _journal_of(path: Path) -> Journal:
    place = Layout(output=path, form="")
    for manifest in (path, place.finished_manifest, place.manifest):
        if manifest.name.endswith("manifest.jsonl") and manifest.is_file():
            journal = read_journal(manifest)
            if journal:
                return journal
    raise InputError(
        f"{path} is no bundle, no ONNX file, no weights (.safetensors) and no output of `ferry "
        f"predict`, which has a manifest beside it"
    )


def _model_of(folder: Path) -> str:
    """The sha256 of the model in a bundle; "" where there is none."""
    if not (folder / MANIFEST).is_file():
        return ""
    manifest: BundleManifest = read_manifest(folder)
    return manifest.files[MODEL].sha256
