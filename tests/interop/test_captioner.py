"""Images that cannot be read, and packages that are missing. What needs PyTorch is in tests/parity/test_captioner_parity.py."""

import sys

import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.interop.captioner import caption_image, read_image

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def picture(tmp_path):
    """Of two colours, left and right, larger than a block of its format's data."""
    image = Image.effect_noise((300, 200), 90).convert("RGB")
    image.paste((200, 30, 10), (0, 0, 150, 200))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_images_are_read_upright_and_in_rgb(picture, tmp_path):
    image = read_image(picture)
    assert image.mode == "RGB" and image.size == (300, 200) and image.getpixel((3, 5)) == (200, 30, 10)
    turned, exif = Image.open(picture).rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # The camera was turned: a viewer turns the picture a quarter to the right.
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").tobytes() == image.tobytes()
    Image.new("LA", (7, 5)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").mode == "RGB"


def test_what_is_no_image_is_an_error(picture, tmp_path):
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:5000])
    (tmp_path / "text.jpg").write_text("a calm sea at night")
    (tmp_path / "empty.png").touch()
    for name, message in [
        ("none.png", r"none.png cannot be read, No such file or directory: check the path"),
        (".", r"cannot be read, Is a directory"),
        ("half.png", r"half.png is not a whole image \(.*truncated.*\): give a PNG or JPEG file"),
        ("text.jpg", r"text.jpg is not a whole image \(no format that Pillow knows\): give a PNG or JPEG file"),
        ("empty.png", r"empty.png is not a whole image"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            caption_image(tmp_path / name)
        assert "\n" not in str(error.value)


def test_an_image_too_large_to_open_is_an_error(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="not a whole image .*exceeds limit"):
        caption_image(picture)


@pytest.mark.parametrize("package", ["PIL.Image", "torch", "transformers"])
def test_a_missing_package_is_said_with_the_extra(package, picture, monkeypatch):
    if package != "torch":
        monkeypatch.setitem(sys.modules, "torch", sys)  # Whether or not it is installed.
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        caption_image(picture)
    assert str(error.value) == f"the caption of an image needs the package {package}; install it with: pip install 'musiclm-jax[image]'"
