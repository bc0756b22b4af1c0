import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlarl import images
from vlarl.errors import ConfigError
from vlarl.images import (
    ImageError,
    center_crop,
    decode_image,
    encode_jpeg,
    lanczos_resize,
    prepare_image,
)
from vlarl.models.openvla.pixels import PixelNormalizer

GOLDEN = Path(__file__).parents[2] / "golden"


def _frames(stage: str) -> np.ndarray:
    return np.load(GOLDEN / "images.npz")[stage]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(int) - theirs.astype(int)).mean())


def _png(width: int, height: int) -> bytes:
    """A PNG that claims a size and brings next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
        crc = zlib.crc32(kind + body)
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return b"\x89PNG\r\n\x1a\n" + chunks


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_jpeg_is_as_long_as_tensorflows_and_decodes_to_its_pixels() -> None:
    lengths = [len(encode_jpeg(frame)) for frame in _frames("rendered")]
    assert lengths == np.load(GOLDEN / "images.npz")["jpeg_len"].tolist()
    decoded = np.stack([decode_image(encode_jpeg(frame)) for frame in _frames("rendered")])
    assert np.array_equal(decoded, _frames("decoded"))


def test_resize_is_tensorflows() -> None:
    """Reached: one pixel value in 7,900 differs, by one level."""
    resized = np.stack([lanczos_resize(frame, 224) for frame in _frames("decoded")])
    assert _difference(resized, _frames("resized")) < 0.001
    assert np.abs(resized.astype(int) - _frames("resized")).max() <= 1


def _resized_in_integers(frame: np.ndarray, size: int) -> np.ndarray:
    """The same sums over int64, where nothing is ever rounded; then half to even."""
    unit = images._WEIGHT_UNIT
    down, across = (images._lanczos_weights(side, size) / unit for side in frame.shape[:2])
    assert np.array_equal(down, np.rint(down))
    assert np.array_equal(across, np.rint(across))
    rows = np.einsum("th,hwc->twc", down.astype(np.int64), frame.astype(np.int64))
    sums = np.einsum("tw,hwc->htc", across.astype(np.int64), rows)
    one = round(1 / unit**2)
    whole, rest = np.divmod(sums, one)
    up = (rest * 2 > one) | ((rest * 2 == one) & (whole % 2 == 1))
    return np.clip(whole + up, 0, 255).astype(np.uint8)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(8, 300), st.integers(8, 300), st.integers(8, 240))
def test_resizing_is_exact_whatever_adds_the_sums_up(
    seed: int, height: int, width: int, size: int
) -> None:
    """Policy server and trainer may run on other processors and with other numbers of threads."""
    drawn = np.random.default_rng(seed)
    frame = drawn.choice(np.array([0, 1, 254, 255, 128], np.uint8), (height, width, 3))
    assert np.array_equal(lanczos_resize(frame, size), _resized_in_integers(frame, size))


def test_centre_crop_is_tensorflows() -> None:
    """Reached: one pixel value in 20,000 differs, by one level."""
    cropped = np.stack([center_crop(frame) for frame in _frames("resized")])
    assert _difference(cropped, _frames("cropped")) < 0.001
    assert np.abs(cropped.astype(int) - _frames("cropped")).max() <= 1


def test_the_whole_path_from_jpeg_to_crop() -> None:
    """Reached: mean 1.30 levels, all of it from decoding the JPEG."""
    ours = [prepare_image(decode_image(encode_jpeg(f)), 224, True) for f in _frames("rendered")]
    assert _difference(np.stack(ours), _frames("cropped")) < 1.6
    ours = [prepare_image(frame, 224, True) for frame in _frames("decoded")]
    assert _difference(np.stack(ours), _frames("cropped")) < 0.01


def test_pixel_values_are_the_original_processors() -> None:
    golden = np.load(GOLDEN / "openvla-tiny/golden.npz")
    normalize = PixelNormalizer.from_directory(GOLDEN / "openvla-tiny")
    ours = normalize(golden["images"][:1])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, golden["pixel_values0"], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(normalize(golden["images"][0]), ours[0])


def test_an_image_of_the_models_size_is_used_as_it_is() -> None:
    frame = _frames("resized")[0]
    np.testing.assert_array_equal(prepare_image(frame, 224, False), frame)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(0, 255))
def test_a_flat_image_stays_flat(height: int, width: int, size: int, level: int) -> None:
    frame = np.full((height, width, 3), level, np.uint8)
    for crop in (False, True):
        prepared = prepare_image(frame, size, crop)
        assert prepared.shape == (size, size, 3)
        assert set(prepared.ravel().tolist()) == {level}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_every_eight_bit_png_becomes_rgb(mode: str) -> None:
    encoded = _encoded(Image.new(mode, (5, 3)), "PNG")
    assert decode_image(encoded).shape == (3, 5, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
def test_every_jpeg_becomes_rgb(mode: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert(mode).save(buffer, "JPEG", **options)
    theirs = np.array(Image.open(buffer).convert("RGB"))
    assert _difference(decode_image(buffer.getvalue()), theirs) < 2


def test_a_jpeg_with_bytes_too_many_is_pillows_to_judge() -> None:
    encoded = encode_jpeg(_frames("rendered")[0])
    odd = encoded[:2] + b"\xff" * 7 + encoded[2:]
    theirs = np.array(Image.open(io.BytesIO(odd)))
    assert _difference(decode_image(odd), theirs) < 2


def test_a_jpeg_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    encoded = bytearray(encode_jpeg(_frames("rendered")[0]))
    start = encoded.index(b"\xff\xc0")
    encoded[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", explode)
    monkeypatch.setattr(Image.Image, "load", explode)
    with pytest.raises(ImageError, match="pixels"):
        decode_image(bytes(encoded))


def test_an_image_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "convert", explode)
    for width, height in ((8192, 8192), (20_000, 20_000), (4097, 4096), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ImageError):
            decode_image(_png(width, height))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="bytes"):
        decode_image(bytes(images.MAX_IMAGE_BYTES + 1))


def test_other_formats_and_depths_are_refused() -> None:
    small = Image.new("RGB", (4, 4))
    for encoded in (b"", b"GIF89a", _encoded(small, "BMP"), _encoded(small, "GIF")):
        with pytest.raises(ImageError):
            decode_image(encoded)
    with pytest.raises(ImageError, match="neither a JPEG nor a PNG"):
        decode_image(b"GIF89a")
    with pytest.raises(ImageError, match="8 bits"):
        decode_image(_encoded(Image.new("I;16", (4, 4)), "PNG"))


def test_a_jpeg_cut_short_is_refused() -> None:
    encoded = encode_jpeg(_frames("rendered")[0])
    for length in (2, 20, 600, len(encoded) // 2):
        with pytest.raises(ImageError):
            decode_image(encoded[:length])


@settings(max_examples=300)
@given(
    st.sampled_from(["JPEG", "PNG"]), st.lists(st.tuples(st.floats(0, 1), st.binary()), max_size=8)
)
def test_damaged_bytes_decode_or_raise_image_error(
    kind: str, damage: list[tuple[float, bytes]]
) -> None:
    encoded = bytearray(_encoded(Image.radial_gradient("L").resize((24, 24)), kind))
    for where, replacement in damage:
        start = int(where * len(encoded))
        encoded[start : start + len(replacement)] = replacement
    with contextlib.suppress(ImageError):
        assert decode_image(bytes(encoded)).shape[2] == 3


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_frames_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ImageError, match="uint8"):
        encode_jpeg(frame)
    with pytest.raises(ImageError, match="uint8"):
        prepare_image(frame, 4, False)


def test_a_missing_preprocessor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        PixelNormalizer.from_directory(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"tvf_normalize_params": [{"mean": 1}]}')
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        PixelNormalizer.from_directory(tmp_path)
