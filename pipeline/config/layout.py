"""Where every file of the pipeline lies: the one place that knows the folders.

Paths are relative to the folder of params.yaml; `D` is a data set, `E` an experiment.
"""

from pathlib import Path

from pipeline.records import ReportFiles
from serving.files import here_or_above

VARIANTS = ("fp32", "fp16", "int8")
"""The exported model, and what is made of it."""
DETAILS = Path("reports/details")
REPORT = Path("reports/index.html")
MACHINE = Path("reports/machine.json")
PICTURES = Path("reports/pictures")
DEVICES = Path("reports/places/devices")
"""What the devices measured that a bundle was deployed to, a file of each."""
PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")


def project() -> Path:
    """The folder of the nearest params.yaml, here or above as git and DVC look; here without one.

    Relative to the working directory, as all of these paths: `.` or `../..`.
    """
    return here_or_above(PARAMS).parent


def raw(dataset: str) -> Path:
    """The official files of a data set: `data/raw/D`."""
    return Path("data/raw") / dataset


def ready(dataset: str) -> Path:
    """The arrays of a data set: `data/ready/D`."""
    return Path("data/ready") / dataset


def contact_sheet(dataset: str) -> Path:
    """Examples of the images of a data set: `reports/data/D.png`."""
    return Path("reports/data") / f"{dataset}.png"


def weights(experiment: str) -> Path:
    """The trained weights: `models/E/model.safetensors`."""
    return Path("models") / experiment / "model.safetensors"


def checkpoint(experiment: str) -> Path:
    """Where an interrupted training goes on: `models/E/checkpoint.safetensors`."""
    return Path("models") / experiment / "checkpoint.safetensors"


def model(experiment: str) -> Path:
    """The exported model: `models/E/model.onnx`."""
    return Path("models") / experiment / "model.onnx"


def quantized(experiment: str) -> Path:
    """The folder of what is made of it: `models/E/quantized`."""
    return Path("models") / experiment / "quantized"


def variant(experiment: str, name: str) -> Path:
    """The ONNX file of a variant: that of fp32 is the exported model."""
    return (
        quantized(experiment) / f"model.{name}.onnx" if name != VARIANTS[0] else model(experiment)
    )


def models(experiment: str, root: Path = Path()) -> dict[str, Path]:
    """The ONNX file of each variant that was made, fp32 first, below the folder of params.yaml.

    Which ones `ferry quantize` made depends on what it measured: those whose files are there.
    """
    files = {name: root / variant(experiment, name) for name in VARIANTS}
    return {name: path for name, path in files.items() if name == VARIANTS[0] or path.is_file()}


def maker(path: Path, experiment: str) -> str:
    """The stage that makes a file of weights or a model of an experiment: "export@mnist-cnn"."""
    stages = {weights(experiment).name: "train", model(experiment).name: "export"}
    return f"{stages.get(path.name, 'quantize')}@{experiment}"


def mark(experiment: str) -> Path:
    """What says that the settings can be read: `models/E/before/checked`."""
    return weights(experiment).with_name("before") / "checked"


def taught(experiment: str) -> Path:
    """The logits of its teacher, if it has one: `models/E/before/taught.safetensors`.

    In one folder with the mark, which every experiment has: DVC knows no dependency of some.
    """
    return mark(experiment).with_name("taught.safetensors")


def details(experiment: str, stage: str) -> Path:
    """All that a stage measured: `reports/details/E/STAGE.json`."""
    return DETAILS / experiment / f"{stage}.json"


def report_files(experiment: str, stage: str) -> ReportFiles:
    """Both files of what a stage measured: its details, and `metrics/E/STAGE.json`."""
    return ReportFiles(
        details=details(experiment, stage), metrics=Path("metrics") / experiment / f"{stage}.json"
    )


def plots(experiment: str, stage: str) -> Path:
    """The folder of a stage's rows that `dvc plots` draws: `plots/E/STAGE`."""
    return Path("plots") / experiment / stage


def pictures(experiment: str) -> Path:
    """The folder of the SVG files that show the inside of a network: `reports/pictures/E`."""
    return PICTURES / experiment


def places(experiment: str) -> Path:
    """How its models answer in other places: `reports/places/E.json`."""
    return Path("reports/places") / f"{experiment}.json"


def bundle(experiment: str, target: str = "cpu") -> Path:
    """The folder that is deployed: `bundles/E`, for another target `bundles/E.TARGET`."""
    return Path("bundles") / (experiment if target == "cpu" else f"{experiment}.{target}")


def tune(experiment: str) -> Path:
    """The folder of a search for better settings: `models/E/tune`."""
    return Path("models") / experiment / "tune"
