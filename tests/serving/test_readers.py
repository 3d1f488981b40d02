import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_classifier import classifier, images

from serving.errors import InputError, MissingInputError
from serving.inputs.images import Images, open_images
from serving.inputs.inputs import ReadOptions, open_inputs
from serving.inputs.names import IMAGE_SUFFIXES
from serving.inputs.sources import InputRow, UnreadableRow, each_row
from serving.model import Model, open_model


def model(tmp_path: Path, channels: int = 1) -> Model:
    path = tmp_path / f"model{channels}.onnx"
    path.write_bytes(classifier(channels))
    return open_model(path)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def opened(path: Path, model: Model, *, resize: bool = False) -> Images:
    return open_images([path], model.input, model.path, resize=resize)


def only(path: Path, model: Model, *, resize: bool = False) -> InputRow | UnreadableRow:
    (item,) = each_row(opened(path, model, resize=resize))
    return item


def reason(path: Path, model: Model, *, resize: bool = False) -> str:
    item = only(path, model, resize=resize)
    assert isinstance(item, UnreadableRow)
    assert item.id == str(path)
    assert "\n" not in item.reason
    return item.reason


def pixels(path: Path, model: Model, *, resize: bool = False) -> np.ndarray:
    item = only(path, model, resize=resize)
    assert isinstance(item, InputRow), item
    return item.value


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".TIF"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_is_read_to_the_byte(tmp_path: Path, suffix: str, channels: int) -> None:
    if (suffix, channels) == (".bmp", 4):
        pytest.skip("Pillow reads no alpha from a BMP")
    row = images(1, channels)[0]
    path = save(tmp_path / f"image{suffix}", row)
    np.testing.assert_array_equal(pixels(path, model(tmp_path, channels)), row)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"image{suffix}", np.full((4, 5, 3), 128, np.uint8))
    read = pixels(path, model(tmp_path, 3))
    assert (read.shape, read.dtype) == ((4, 5, 3), np.uint8)
    assert abs(read.astype(int) - 128).max() <= 3


def test_a_folder_is_read_in_order_with_the_folders_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    names = ["b.png", "a/2.png", "a/10.png", "c/d/e.png", "Z.png"]
    for name, row in zip(names, images(5), strict=True):
        save(folder / name, row)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".cache").mkdir()
    save(folder / ".cache" / "thumbnail.png", images(1)[0])
    (folder / "loop").symlink_to(folder)
    found = opened(folder, model(tmp_path))
    assert found.count == 5
    assert [item.id for item in each_row(found)] == [
        str(folder / name) for name in ("Z.png", "a/10.png", "a/2.png", "b.png", "c/d/e.png")
    ]
    assert [item.id for item in each_row(found)] == [item.id for item in each_row(found)]


def test_inputs_keep_the_order_they_were_given_in(tmp_path: Path) -> None:
    single = save(tmp_path / "one.png", images(1)[0])
    np.save(tmp_path / "rows.npy", images(2))
    inputs = open_inputs([tmp_path / "rows.npy", single, tmp_path / "rows.npy"], model(tmp_path))
    rows = str(tmp_path / "rows.npy")
    assert [item.id for item in inputs] == [
        f"{rows}:0",
        f"{rows}:1",
        str(single),
        f"{rows}:0",
        f"{rows}:1",
    ]


def test_a_wrong_size_or_mode_says_what_the_model_takes(tmp_path: Path) -> None:
    tall = save(tmp_path / "tall.png", np.zeros((5, 4, 1), np.uint8))
    colour = save(tmp_path / "colour.png", np.zeros((4, 5, 3), np.uint8))
    gray = model(tmp_path)
    assert reason(tall, gray) == "it is 4x5 L, the model takes 5x4 L; --resize fits it"
    assert reason(colour, gray) == "it is 5x4 RGB, the model takes 5x4 L; --resize fits it"
    assert "takes 5x4 RGB" in reason(tall, model(tmp_path, 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_fits_any_eight_bit_image(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (31, 17), (200, 200, 200)).convert(mode).save(path)
    read = pixels(path, model(tmp_path, channels), resize=True)
    assert (read.shape, read.dtype) == ((4, 5, channels), np.uint8)
    assert read.mean() > 150


def test_resize_is_bilinear(tmp_path: Path) -> None:
    big = images(1, 3)[0].repeat(4, axis=0).repeat(3, axis=1)
    path = save(tmp_path / "big.png", big)
    expected = Image.fromarray(big).resize((5, 4), Image.Resampling.BILINEAR)
    read = pixels(path, model(tmp_path, 3), resize=True)
    np.testing.assert_array_equal(read, np.asarray(expected))


def test_sixteen_bits_are_not_clipped_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(path)
    for resize in (False, True):
        assert "convert it to 8 bits" in reason(path, model(tmp_path), resize=resize)


def test_several_pictures_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "pages.tiff"
    page = Image.new("L", (5, 4))
    page.save(path, save_all=True, append_images=[page, page])
    assert reason(path, model(tmp_path)) == "it holds 3 pictures, not one"


def test_a_picture_with_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "bomb.png", np.zeros((30, 50, 1), np.uint8))
    for limit in (1000, 100):  # Pillow warns up to twice its limit, and refuses from there
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = reason(path, model(tmp_path), resize=True)
        assert message == f"it has more than {limit} pixels"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_a_truncated_image_is_an_error_of_that_row(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    path = save(tmp_path / f"image{suffix}", noise)
    whole = path.read_bytes()
    takes = model(tmp_path, 3)
    for size in (0, 1, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert reason(path, takes, resize=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_damaged_images_never_stop_a_run(tmp_path: Path, suffix: str) -> None:
    """Whatever the decoder makes of the bytes, there is one item and no exception."""
    rng = np.random.default_rng(1)
    path = save(tmp_path / f"image{suffix}", images(1, 3)[0].repeat(5, 0).repeat(5, 1))
    whole = path.read_bytes()
    takes = model(tmp_path, 3)
    for _ in range(60):
        spoilt = bytearray(whole)
        for position in rng.integers(0, len(whole), 4):
            spoilt[position] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        assert isinstance(only(path, takes, resize=True), (InputRow, UnreadableRow))


def test_what_is_no_image_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_text("<html>not found</html>")
    assert reason(path, model(tmp_path)) == "it is not an image, or not of a known format"
    Image.new("L", (5, 4)).save(path, format="GIF")
    assert "known format" in reason(path, model(tmp_path))


def test_an_image_that_vanishes_is_an_error_of_that_row(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    save(folder / "a.png", images(1)[0])
    (folder / "b.png").symlink_to(save(tmp_path / "target.png", images(1)[0]))
    found = opened(folder, model(tmp_path))
    (tmp_path / "target.png").unlink()
    assert [type(item) for item in each_row(found)] == [InputRow, UnreadableRow]
    assert list(each_row(found))[1] == UnreadableRow(
        str(folder / "b.png"), "No such file or directory"
    )


def test_a_name_that_is_not_utf8_can_be_written_down(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    save(path, images(1)[0])
    assert only(path, model(tmp_path)).id.endswith("caf\\xe9.png")


def test_an_array_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", images(6))
    inputs = open_inputs([tmp_path / "rows.npy"], model(tmp_path))
    assert inputs.count == 6
    ((_, chunk),) = inputs.chunks(8)
    rows = inputs.sources[0].decode(chunk).rows
    assert isinstance(rows.base, np.memmap)
    values = np.stack([item.value for item in inputs])
    np.testing.assert_array_equal(values, images(6))


@pytest.mark.parametrize(
    ("arrays", "asked", "taken"),
    [
        ({"images": 1, "input": 0}, None, 1),
        ({"labels": 0, "input": 1}, None, 1),
        ({"inputs": 1, "x": 0}, None, 1),
        ({"anything": 1}, None, 1),
        ({"images": 0, "x": 1}, "x", 1),
    ],
)
def test_which_array_of_an_archive(
    tmp_path: Path, arrays: dict[str, int], asked: str | None, taken: int
) -> None:
    choices = [images(2), images(3)]
    np.savez(tmp_path / "rows.npz", **{name: choices[which] for name, which in arrays.items()})
    inputs = open_inputs([tmp_path / "rows.npz"], model(tmp_path), ReadOptions(array=asked))
    assert inputs.count == len(choices[taken])


def refused(path: Path, model: Model, array: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        list(open_inputs([path], model, ReadOptions(array=array)))
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_an_archive_that_leaves_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, a=images(2), b=images(2))
    assert "holds the arrays a, b; name one with --array" in refused(path, model(tmp_path))
    message = refused(path, model(tmp_path), array="c")
    assert "no array named 'c'; there are: a, b" in message
    np.savez(path)
    assert "holds the arrays none" in refused(path, model(tmp_path))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_never_unpickled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    evil = np.array([{"a": 1}], dtype=object)
    (np.save if suffix == ".npy" else np.savez)(path, evil)
    assert "can be read" in refused(path, model(tmp_path))
    path.write_bytes(b"\x80\x04]\x94.")  # a pickle of a list
    assert "can be read" in refused(path, model(tmp_path))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_truncated_arrays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, images(50))
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        refused(path, model(tmp_path))


def test_an_archive_with_a_spoilt_member(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, images=images(50))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, model(tmp_path))


def test_an_npy_that_calls_itself_npz(tmp_path: Path) -> None:
    with (tmp_path / "rows.npz").open("wb") as file:
        np.save(file, images(2))
    assert "not a .npz file" in refused(tmp_path / "rows.npz", model(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (images(2).astype(np.float32), "holds float32 [2, 4, 5, 1]"),
        (images(2)[..., 0], "holds uint8 [2, 4, 5]"),
        (images(2).astype(">u2"), "holds >u2"),
        (np.array(1, np.uint8), "holds uint8 []"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    np.save(tmp_path / "rows.npy", rows)
    message = refused(tmp_path / "rows.npy", model(tmp_path))
    assert message in message
    assert "takes uint8 [rows, 4, 5, 1]" in message


def test_no_rows_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", images(0))
    assert "holds no rows" in refused(tmp_path / "rows.npy", model(tmp_path))
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty", model(tmp_path))
    assert message.endswith(f"holds no images ({', '.join(IMAGE_SUFFIXES)})")


def test_paths_that_are_no_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"gone\.npy is not there"):
        open_inputs([tmp_path / "gone.npy"], model(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    assert "which no line of text is" in refused(tmp_path / "notes.txt", model(tmp_path))
    (tmp_path / "notes.doc").write_text("")
    assert "unknown suffix '.doc'" in refused(tmp_path / "notes.doc", model(tmp_path))
    (tmp_path / "noends").write_text("")
    assert "unknown suffix ''" in refused(tmp_path / "noends", model(tmp_path))


def test_images_for_a_model_that_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    path.write_bytes(classifier(channels=2))
    image = save(tmp_path / "a.png", images(1)[0])
    message = refused(image, open_model(path))
    assert "takes uint8 [rows, 4, 5, 2], which no image is; give such rows as .npy" in message
