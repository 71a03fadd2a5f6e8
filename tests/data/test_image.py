import numpy as np
import pytest
from PIL import Image

from detector.data.image import read_image, read_image_hw
from detector.errors import InputError


def save(tmp_path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    red = Image.new("RGB", (4, 3), (200, 0, 0))
    assert save(tmp_path, red, "rgb.png").tolist() == [[[200, 0, 0]] * 4] * 3
    assert save(tmp_path, red.convert("P"), "palette.png")[0, 0].tolist() == pytest.approx([200, 0, 0], abs=10)
    assert save(tmp_path, Image.new("L", (4, 3), 77), "gray.png")[0, 0].tolist() == [77] * 3
    assert save(tmp_path, Image.new("1", (4, 3), 1), "bits.png")[0, 0].tolist() == [255] * 3
    assert save(tmp_path, Image.new("RGBA", (4, 3), (200, 0, 0, 0)), "alpha.png")[0, 0].tolist() == [255] * 3
    assert save(tmp_path, Image.new("LA", (4, 3), (10, 255)), "la.png")[0, 0].tolist() == [10] * 3
    assert save(tmp_path, Image.new("CMYK", (4, 3), (0, 0, 0, 0)), "cmyk.jpg")[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_high_byte(tmp_path, suffix):
    deep = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert save(tmp_path, deep, f"deep.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_known_range(tmp_path, mode):
    with pytest.raises(InputError, match=r"deep\.tif: .*32-bit gray"):
        save(tmp_path, Image.new(mode, (4, 3)), "deep.tif")


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert save(tmp_path, Image.new("RGB", (40, 20)), "turned.jpg", exif=exif).shape == (40, 20, 3)
    assert read_image_hw(tmp_path / "turned.jpg") == (40, 20)
    Image.new("RGB", (40, 20)).save(tmp_path / "lying.jpg")
    assert read_image_hw(tmp_path / "lying.jpg") == (20, 40)


def test_bad_files_are_named(tmp_path):
    Image.effect_noise((200, 200), 50).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "folder.jpg").mkdir()
    cases = {"cut": "damaged", "empty": "not an image", "page": "not an image", "none": "no such", "folder": "damaged"}
    for name, says in cases.items():
        with pytest.raises(InputError, match=rf"{name}\.jpg: {says}"):
            read_image(tmp_path / f"{name}.jpg")


def test_an_image_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 * 1000)
    with pytest.raises(InputError, match=r"bomb\.png: damaged image: .*decompression bomb"):
        read_image(tmp_path / "bomb.png")
