"""Passwords and signatures in addresses: they open what they are for, and are shown nowhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_classifier import images
from tiny_images import encoded
from web_folder import Web, served

from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.cli import serving
from serving.errors import InputError, OutputError, one_line, redacted
from serving.inputs import remote

SECRET = "hunter2%2FhUNTER"
SHOWN = {
    f"http://u:{SECRET}@h:80/x": "http://u:***@h:80/x",
    f"postgresql+psycopg://u:{SECRET}@@h/db": "postgresql+psycopg://u:***@h/db",
    f"http://u:a/{SECRET}@h/": "http://u:***@h/",
    f"http:/u:{SECRET}@h/x is not there": "http:/u:***@h/x is not there",
    f"https://{SECRET}@github.com/a": "https://***@github.com/a",
    f"s3://b/k?X-Amz-Signature={SECRET}&X-Amz-Date=1": "s3://b/k?X-Amz-Signature=***&X-Amz-Date=1",
    f"https://a.net/c?sv=2&sig={SECRET}": "https://a.net/c?sv=2&sig=***",
    f"with url: /x?token={SECRET} (Caused by": "with url: /x?token=*** (Caused by",
    f'{{"url": "http://h/?a=1&access_token={SECRET}"}}': '{"url": "http://h/?a=1&access_token=***"}',
    f"http://h/?X-Amz-Credential={SECRET}#end": "http://h/?X-Amz-Credential=***#end",
    f"http://h/?key=AIza{SECRET}": "http://h/?key=***",
}
KEPT = [
    *("http://h:8080/photos/a@2x.png", "s3://bucket/a:b@c", "http://[::1]:80/a@b"),
    *("http://h/?key=1.png&max_tokens=3", "somebody@example.org", "a = b", "file:///a@b/c:d@e"),
]


@pytest.mark.parametrize("text", SHOWN)
def test_a_secret_is_taken_out(text: str) -> None:
    assert redacted(text) == SHOWN[text]
    assert redacted(redacted(text)) == SHOWN[text]
    assert str(InputError(text)) == one_line(ValueError(text)) == SHOWN[text]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of images, and of one that is none."""
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "web"
    folder.mkdir()
    for name, pixels in zip("ab", images(2), strict=True):
        (folder / f"{name}.png").write_bytes(encoded(pixels, "PNG"))
    (folder / "no.png").write_bytes(b"no image")
    (folder / "rows.npy").write_bytes(b"no rows")
    with served(folder) as found:
        yield found


def at(web: Web, name: str, secret: str = SECRET) -> str:
    return f"{web.url.replace('//', f'//user:{secret}@')}/{name}?X-Amz-Signature={secret}"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(serving, [str(one) for one in arguments])


@pytest.mark.parametrize("output", ["labels.csv", "labels"])
def test_no_file_of_a_run_holds_a_secret(
    web: Web, model_file: Path, tmp_path: Path, output: str
) -> None:
    names = [at(web, name) for name in ("a.png", "no.png", "b.png")]
    result = invoke("predict", model_file, *names, "--output", tmp_path / output, "--json")
    assert result.exit_code == 0, result.stderr
    files = [path for path in tmp_path.glob(f"{output}*/*") if path.is_file()]
    files += [path for path in tmp_path.glob(f"{output}*") if path.is_file()]
    kept = "".join(path.read_bytes().decode("latin-1") for path in files)
    assert len(files) == 3
    for text in (kept, result.stdout, result.stderr):
        assert SECRET not in text
    assert kept.count(f"{at(web, 'a.png', '***')}") >= 2, "an id, and an input of the manifest"
    assert f"{at(web, 'no.png', '***')}" in json.loads(result.stdout)["first_error"]


@pytest.mark.parametrize("name", ["gone.png", "gone.npy", "rows.npy", "*.png", "folder/"])
def test_no_error_of_an_input_holds_a_secret(web: Web, model_file: Path, name: str) -> None:
    for more in ((), ("--json",)):
        result = invoke("predict", model_file, at(web, name), *more)
        assert result.exit_code == 1
        assert SECRET not in result.stdout + result.stderr
        assert "user:***@" in result.stderr


def test_inputs_of_other_secrets_are_other_inputs(
    web: Web, model_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    predict(model_file, [at(web, "a.png")], output=output)
    assert predict(model_file, [at(web, "a.png")], output=output).resumed_rows == 1
    with pytest.raises(OutputError, match="was begun with other inputs"):
        predict(model_file, [at(web, "a.png", "other")], output=output, options=PredictOptions())


@pytest.mark.parametrize(
    "given",
    [
        ("predict", "none.onnx", f"ftp://u:{SECRET}@h/a"),
        ("predict", f"http://u:{SECRET}@h/a.onnx", "a.npy"),
        ("verify", f"http://u:{SECRET}@h/a?token={SECRET}"),
        (f"http://u:{SECRET}@h/",),
        ("predict", f"--http://u:{SECRET}@h/"),
        ("predict", "a.onnx", "a.npy", "--batch-size", f"http://u:{SECRET}@h/"),
        ("doctor", f"http://u:{SECRET}@h/"),
    ],
)
def test_no_refusal_repeats_a_secret(given: tuple[str, ...]) -> None:
    result = invoke(*given)
    assert result.exit_code in (1, 2)
    assert SECRET not in result.stdout + result.stderr
    assert "***" in result.stderr or "none.onnx" in result.stderr


@pytest.mark.parametrize("scheme", ["http", "postgresql", "sqlite", "other"])
def test_the_doctor_keeps_secrets(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{scheme}://u:{SECRET}@127.0.0.1:9/x?sslpassword={SECRET}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for more in ((), ("--json",)):
        result = invoke("doctor", *more)
        assert SECRET not in result.stdout + result.stderr
