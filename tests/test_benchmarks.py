"""The scripts in benchmarks/: each says how it is run, and what it measures can be measured."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from closure import ROOT

from pipeline.records.published import read_scripts
from serving.measuring.meters import Growth
from serving.measuring.pairing import PairedRatio
from serving.runtime.session import probe

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def load(name: str) -> ModuleType:
    """A script as a module, which runs nothing."""
    spec = importlib.util.spec_from_file_location(
        f"benchmarks_{name}", ROOT / f"benchmarks/{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_measures_and_how_it_is_run(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    message = ast.get_docstring(tree) or ""
    assert f"Run: python benchmarks/{script.name}" in message
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "main" in names
    assert 'if __name__ == "__main__":' in script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def benching() -> ModuleType:
    return load("benching")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(probe())
    return path


def test_the_price_of_our_own_call_is_a_ratio(
    benching: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = benching.paired_ratio

    def brief(first: object, second: object, *, seconds: float, seed: int) -> PairedRatio:
        ratio: PairedRatio = whole(first, second, seconds=seconds / 60, seed=seed)
        return ratio

    monkeypatch.setattr(benching, "paired_ratio", brief)
    own, bound = benching.own_call(model)
    assert own.what == "tiny: ferry's call over session.run"
    assert bound.what == "tiny: the same with bound memory"
    for line in (own, bound):
        median = float(line.reached.split()[0])
        assert 0.1 < median < 10
        assert line.met == (median <= float(line.aim)) or abs(median - float(line.aim)) < 0.01


def test_what_was_reached_is_printed_and_published(
    benching: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/benching.py"])
    lines = [benching.Line("rate", "0.60", "0.85", met=False)]
    benching.show(lines, Path("docs/results"))
    assert capsys.readouterr().out.splitlines()[1].split() == ["rate", "0.60", "0.85", "NO"]
    (found,) = read_scripts(Path("docs/results"))
    assert (found.script, list(found.lines)) == ("benching.py", lines)


def test_a_model_against_itself_is_counted(
    benching: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ratios that we choose: two that are no difference, and one that would be a false one."""
    ratios = iter([(1.0, 0.99, 1.01), (1.015, 0.99, 1.04), (1.08, 1.05, 1.1)])

    def bench(model: Path, options: object, *, against: Path) -> object:
        assert model == against
        median, low, high = next(ratios)
        speedup = PairedRatio(median=median, low=low, high=high, num_pairs=10)
        return holder(measured=[holder(rows=[holder(speedup=speedup)])])

    monkeypatch.setattr(benching, "NUM_REPEATS", 3)
    monkeypatch.setattr(benching, "bench", bench)
    same, within = benching.against_itself(model)
    assert (same.reached, same.met) == ("2 of 3", False)
    assert (within.reached, within.met) == ("2 of 3, worst 8.0 %", False)


def holder(**values: object) -> object:
    return type("Holder", (), values)()


@pytest.mark.parametrize(("drift", "met"), [(2**20, True), (6 * 2**20, False)])
def test_memory_is_held_against_its_aim(
    benching: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch, drift: int, met: bool
) -> None:
    growth = Growth(num_calls=100, batch_sizes=(1,), arena_bytes=drift, drift_bytes=drift)
    found = holder(measured=[holder(growth=growth)])
    monkeypatch.setattr(benching, "bench", lambda *_: found)
    (line,) = benching.memory(model)
    assert line.met == met
    assert line.what == "tiny: memory drift over 100 calls, MiB"


def test_what_needs_a_gpu_says_that_it_was_skipped(benching: ModuleType, model: Path) -> None:
    lines = list(benching.gpu(model))
    if any(line.met is not None for line in lines):
        pytest.skip("there is a GPU here, and it was measured")
    (line,) = lines
    assert line.reached.startswith("skipped: ")
