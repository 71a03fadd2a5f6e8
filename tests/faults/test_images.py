"""Images of every kind, and of none: the cases 25 to 34 of FAULTS.md."""

import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from detector.data.check import check_data
from detector.data.formats.voc import read_voc
from detector.data.image import ImageOptions, read_image, read_image_hw
from detector.data.loader import TransformedDataset, collate
from detector.data.transforms import Resize
from detector.errors import InputError
from detector.models import build_model
from detector.runtime.files import digest_of
from detector.settings import Model


def save(tmp_path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def bad_of(root) -> list[tuple[str, str]]:
    return check_data(read_voc(root, "train")).bad


def test_case_25_a_truncated_jpeg_is_found_by_full_decoding(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 20, 20)], "b": []}})
    Image.effect_noise((60, 40), 50).save(root / "JPEGImages/a.jpg")
    data = (root / "JPEGImages/a.jpg").read_bytes()
    (root / "JPEGImages/a.jpg").write_bytes(data[:-100])
    with Image.open(root / "JPEGImages/a.jpg") as image:
        image.verify()  # what others look at finds nothing
    [(kind, text)] = bad_of(root)
    assert kind == "corrupt"
    assert "a.jpg: damaged image: image file is truncated" in text


def test_case_26_what_is_no_image_is_named_with_the_reason(make_voc):
    root = make_voc({"train": {id: [] for id in ("empty", "folder", "link", "missing", "page", "sound")}})
    files = root / "JPEGImages"
    for name in ("empty", "folder", "link", "missing", "page"):
        (files / f"{name}.jpg").unlink()
    (files / "empty.jpg").write_bytes(b"")
    (files / "folder.jpg").mkdir()
    (files / "link.jpg").symlink_to("nowhere.jpg")
    (files / "page.jpg").write_text("<html>not found</html>")
    empty, folder, link, missing, page = bad_of(root)
    assert empty[0] == page[0] == "corrupt"
    assert "empty.jpg: not an image (readable are JPEG, PNG, WEBP, BMP, TIFF); the file is empty" in empty[1]
    assert page[1].endswith("page.jpg: not an image (readable are JPEG, PNG, WEBP, BMP, TIFF)")
    assert folder == ("missing", f"{files}/folder.jpg: a folder")
    assert link == ("missing", f"{files}/link.jpg: no such file")
    assert missing == ("missing", f"{files}: image 'missing' of split 'train' needs one file, there is none")


def test_case_26_so_it_is_without_a_check(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    for name, says in (("folder", "a folder"), ("none", "no such file")):
        with pytest.raises(InputError, match=rf"{name}\.jpg: {says}"):
            read_image(tmp_path / f"{name}.jpg")


def test_case_27_every_kind_of_picture_becomes_rgb(tmp_path):
    red = Image.new("RGB", (4, 3), (200, 0, 0))
    assert save(tmp_path, red, "rgb.png").tolist() == [[[200, 0, 0]] * 4] * 3
    assert save(tmp_path, red.convert("P"), "palette.png")[0, 0].tolist() == pytest.approx([200, 0, 0], abs=10)
    assert save(tmp_path, Image.new("L", (4, 3), 77), "gray.png")[0, 0].tolist() == [77] * 3
    assert save(tmp_path, Image.new("1", (4, 3), 1), "bits.png")[0, 0].tolist() == [255] * 3
    assert save(tmp_path, Image.new("RGBA", (4, 3), (200, 0, 0, 0)), "alpha.png")[0, 0].tolist() == [255] * 3
    assert save(tmp_path, Image.new("LA", (4, 3), (10, 255)), "la.png")[0, 0].tolist() == [10] * 3
    assert save(tmp_path, Image.new("CMYK", (4, 3), (0, 0, 0, 0)), "cmyk.jpg")[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_case_28_16_bits_keep_their_high_byte(tmp_path, suffix):
    deep = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert save(tmp_path, deep, f"deep.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_case_28_32_bits_have_no_known_range(tmp_path, mode):
    with pytest.raises(InputError, match=r"deep\.tif: .*32-bit gray"):
        save(tmp_path, Image.new(mode, (4, 3)), "deep.tif")


def turned(path, orientation: int) -> None:
    """Save a 60x40 picture that is white in its upper left corner as stored, with this orientation."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


# EXIF 2.32: which sides of the picture the first row and the first column as stored are
@pytest.mark.parametrize(
    ("orientation", "shape", "corner"),
    [(1, (40, 60), "left top"), (2, (40, 60), "right top"), (3, (40, 60), "right bottom"), (4, (40, 60), "left bottom"),
     (5, (60, 40), "left top"), (6, (60, 40), "right top"), (7, (60, 40), "right bottom"),
     (8, (60, 40), "left bottom")],
)  # fmt: skip
def test_case_29_exif_orientation_is_applied(tmp_path, orientation, shape, corner):
    turned(tmp_path / "a.jpg", orientation)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape[:2] == shape
    white = {
        f"{x} {y}"
        for x, column in (("left", 5), ("right", -5))
        for y, row in (("top", 5), ("bottom", -5))
        if image[row, column].min() > 200
    }
    assert white == {corner}
    assert read_image_hw(tmp_path / "a.jpg") == shape
    ignored = ImageOptions(exif="ignore")
    assert read_image(tmp_path / "a.jpg", ignored)[5, 5].min() > 200
    assert read_image_hw(tmp_path / "a.jpg", ignored) == (40, 60)
    turned(tmp_path / "a.tif", orientation)
    assert read_image_hw(tmp_path / "a.tif") == read_image(tmp_path / "a.tif").shape[:2] == shape


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"])
def test_case_29_a_tiff_of_every_kind_is_turned_upright(tmp_path, mode, orientation, compression):
    """Those without compression were once mapped into memory with their sides swapped."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    if mode == "I;16":
        stored = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    else:
        stored = Image.fromarray(noise).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "stored.tif", compression=compression)
    stored.save(tmp_path / "a.tif", exif=exif, compression=compression)
    upright = {
        1: lambda pixels: pixels,
        2: np.fliplr,
        3: lambda pixels: np.rot90(pixels, 2),
        4: np.flipud,
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation](read_image(tmp_path / "stored.tif"))
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, upright)
    assert read_image_hw(tmp_path / "a.tif") == image.shape[:2]


def test_case_29_an_image_that_was_annotated_without_exif(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 60, 20)]}})
    turned(root / "JPEGImages/a.jpg", 6)
    [(kind, text)] = bad_of(root)
    assert kind == "misannotated"
    assert "a.xml: is for an image of 60x40, but" in text
    assert "is 40x60 once it is turned upright" in text
    assert "annotated without EXIF. With data.exif=ignore" in text
    dataset = read_voc(root, "train", image_options=ImageOptions(exif="ignore"))
    assert check_data(dataset).image_hws == [(40, 60)]
    assert dataset.image(0).shape == (40, 60, 3)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01",
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0abcde"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the same
def test_case_30_a_broken_exif_block_is_none(tmp_path, exif):
    assert save(tmp_path, Image.new("RGB", (60, 40)), "a.jpg", exif=exif).shape == (40, 60, 3)


def test_case_31_an_image_of_another_size_than_annotated(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    Image.new("RGB", (40, 60)).save(root / "JPEGImages/a.jpg")
    [(kind, text)] = bad_of(root)
    assert kind == "misannotated"
    assert f"{root}/Annotations/a.xml: is for an image of 60x40, but {root}/JPEGImages/a.jpg is 40x60" in text
    assert "remove the size from the annotation" in text


def test_case_32_an_image_bomb_is_refused_by_its_header(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"bomb\.png: 50000x50000 are more pixels than data\.max_image_pixels="):
        read_image(tmp_path / "bomb.png")


def test_case_32_the_limit_is_a_setting(tmp_path):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageOptions(max_pixels=200)).shape == (10, 20, 3)
    for read in (read_image, read_image_hw):
        with pytest.raises(InputError, match=r"20x10 are more pixels than data\.max_image_pixels=199"):
            read(tmp_path / "a.png", ImageOptions(max_pixels=199))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 400), (400, 1)])
def test_case_33_the_thinnest_image_has_a_feature_cell(make_voc, size):
    root = make_voc({"train": {"a": []}})
    (root / "Annotations/a.xml").write_text("<annotation></annotation>")
    Image.new("RGB", size, (90, 90, 90)).save(root / "JPEGImages/a.jpg")
    whole = np.array([[0, 0, size[0], size[1]]], np.float32)
    samples = TransformedDataset(read_voc(root, "train"), {"a": whole}, Resize([96], 160))
    batch = collate([samples[0, 0]])
    x1, y1, x2, y2 = batch.proposals[0][0].tolist()
    model = build_model(Model(backbone="resnet18", hidden=8), num_classes=1).eval()
    with torch.no_grad():
        class_logits, deltas = model(batch.images, torch.tensor([[0, x1, y1, x2, y2]]))
    assert torch.isfinite(class_logits).all()
    assert torch.isfinite(deltas).all()


def test_case_34_images_are_found_by_their_stem(make_voc):
    ids = ["IMG 1", "größe-日本", "b.c"]
    root = make_voc({"train": {id: [("cat", 1, 1, 2, 2)] for id in ids}})
    (root / "JPEGImages/b.c.jpg").rename(root / "JPEGImages/b.c.JPEG")
    (root / "JPEGImages/IMG 1.jpg").rename(root / "elsewhere")
    (root / "JPEGImages/IMG 1.Jpg").symlink_to(root / "elsewhere")
    dataset = read_voc(root, "train")
    assert [dataset.image_path(index).name for index in range(3)] == ["IMG 1.Jpg", "größe-日本.jpg", "b.c.JPEG"]
    assert all(dataset.image(index).shape == (40, 60, 3) for index in range(3))


def test_case_34_two_images_of_one_stem_are_an_error(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    Image.new("RGB", (60, 40)).save(root / "JPEGImages/a.png")
    with pytest.raises(
        InputError, match=r"image 'a' of split 'train' needs one file, there is more than one: a\.jpg, a"
    ):
        read_voc(root, "train").image_path(0)


def test_a_tiff_whose_tag_has_another_type_is_a_damaged_image(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    failed = 0
    for position in range(8, min(len(data), 200)):
        (tmp_path / "b.tif").write_bytes(data[:position] + bytes([11]) + data[position + 1 :])
        for read in (read_image, read_image_hw):
            with suppress(InputError):
                read(tmp_path / "b.tif")
                failed -= 1
            failed += 1
    assert failed


def test_a_pipe_or_a_device_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(InputError, match=rf"{name}: not a regular file"):
            read_image(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: not a regular file"):
            digest_of(tmp_path / name)
