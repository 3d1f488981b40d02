"""Passwords and signatures in addresses: they open what they are for, and are shown nowhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import feather, parquet
from tiny_classifier import images
from tiny_images import encoded
from web_folder import Web, served

from serving.batch.predict import predict
from serving.batch.writers import FORMATS
from serving.cli import serving
from serving.errors import InputError, OutputError, one_line, redacted
from serving.inputs import fetching
from serving.inputs.names import unsigned

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
    f"http://h/#access_token={SECRET}": "http://h/#access_token=***",
    f"http://h/?X%2DGoog%2DSignature={SECRET}&a=1": "http://h/?X%2DGoog%2DSignature=***&a=1",
    f"http://h/?to=http%3A%2F%2Fu%3A{SECRET}%40i%2F": "http://h/?to=http%3A%2F%2F***%40i%2F",
    f"http://h/?to=http%3A%2F%2Fi%3Fsig%3D{SECRET}&a=1": "http://h/?to=http%3A%2F%2Fi%3Fsig%3D***&a=1",
    f"sent Authorization: Bearer {SECRET}, and": "sent Authorization: ***, and",
    f"{{'authorization': 'Basic {SECRET}'}}": "{'authorization': '***'}",
    f"Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature={SECRET}": "Authorization: ***",
    f"BlobEndpoint=h;AccountKey={SECRET}==;": "BlobEndpoint=h;AccountKey=***;",
}
KEPT = [
    *("http://h:8080/photos/a@2x.png", "s3://bucket/a:b@c", "http://[::1]:80/a@b"),
    *("http://h/?key=1.png&max_tokens=3", "somebody@example.org", "a = b", "file:///a@b/c:d@e"),
    *("no authorization to read it", "50%25 of 3%3D4", "a%40b"),
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
    monkeypatch.setattr(fetching, "WAITS", (0.0,))
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
    assert kept.count(f"{web.url}/a.png") >= 2, "an id, and an input of the manifest"
    assert f"{web.url}/no.png: " in json.loads(result.stdout)["first_error"]


@pytest.mark.parametrize("name", ["gone.png", "gone.npy", "rows.npy", "*.png", "folder/"])
def test_no_error_of_an_input_holds_a_secret(web: Web, model_file: Path, name: str) -> None:
    for more in ((), ("--json",)):
        result = invoke("predict", model_file, at(web, name), *more)
        assert result.exit_code == 1
        assert SECRET not in result.stdout + result.stderr
        assert "user:***@" in result.stderr


SIGNED = {
    f"https://u:{SECRET}@h/a.png": "https://h/a.png",
    f"https://{SECRET}@h/a.png?v=1": "https://h/a.png?v=1",
    "https://b.s3.amazonaws.com/a.png?versionId=3&X-Amz-Algorithm=A&X-Amz-Credential=c%2F1&"
    f"X-Amz-Date=1&X-Amz-Expires=2&X-Amz-SignedHeaders=host&X-Amz-Signature={SECRET}&"
    f"X-Amz-Security-Token={SECRET}": "https://b.s3.amazonaws.com/a.png?versionId=3",
    f"https://h/a.png?AWSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}": "https://h/a.png",
    f"https://h/a.png?X-Goog-Date=1&X-Goog-Signature={SECRET}": "https://h/a.png",
    f"https://h/a.png?Expires=1&Policy=p&Key-Pair-Id=K&Signature={SECRET}": "https://h/a.png",
    f"https://h/a.png?sv=2&st=1&se=2&sr=b&sp=r&spr=https&sig={SECRET}": "https://h/a.png",
}


@pytest.mark.parametrize("address", SIGNED)
def test_who_asks_and_what_lets_them_is_no_part_of_an_object(address: str) -> None:
    assert unsigned(address) == unsigned(redacted(address)) == SIGNED[address]


@pytest.mark.parametrize("address", ["http://h/?sr=b&se=2&v=1", "http://h/a?", "s3://b/a?.png"])
def test_an_address_without_a_secret_stays(address: str) -> None:
    assert unsigned(address) == address


def test_another_signature_goes_on_and_another_object_does_not(
    web: Web, model_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    predict(model_file, [at(web, "a.png")], output=output)
    for secret in (SECRET, "other"):
        assert predict(model_file, [at(web, "a.png", secret)], output=output).resumed_rows == 1
    with pytest.raises(OutputError, match="was begun with other inputs"):
        predict(model_file, [at(web, "b.png")], output=output)
    (web.folder / "a.png").write_bytes((web.folder / "b.png").read_bytes() + b" ")
    with pytest.raises(OutputError, match="was begun with other inputs"):
        predict(model_file, [at(web, "a.png")], output=output)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_keeps_none(
    web: Web, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = Path(f"x.png?X-Amz-Signature={SECRET}")  # as wget calls what it fetched
    saved.write_bytes((web.folder / "a.png").read_bytes())
    Path("images.lst").write_text(f"{saved}\nhttp://user:{SECRET}@h/a.png\n")
    inputs = [at(web, "a.png"), at(web, "no.png"), "images.lst"]
    for output in ("-", f"labels.{form}")[form == "parquet" :]:
        more = ("--output", output, "--format", form)
        result = CliRunner().invoke(serving, ["predict", str(model_file), *inputs, *more])
        assert result.exit_code == 0, result.stderr
        assert SECRET.encode() not in result.stdout_bytes + result.stderr_bytes
    saved.unlink()
    Path("images.lst").unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "web" not in path.parts]
    assert len(written) >= 3
    for path in written:
        assert SECRET.encode() not in path.read_bytes() + unpacked(path)


def unpacked(path: Path) -> bytes:
    """What a file holds beneath its compression."""
    if path.suffix in (".parquet", ".arrow"):
        read = parquet.read_table if path.suffix == ".parquet" else feather.read_table
        table = read(path)
        return f"{table.to_pydict()} {table.schema.metadata}".encode()
    if path.suffix in (".gz", ".zst"):
        kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
        return bytes(pa.input_stream(str(path), compression=kind).read())
    return b""


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
