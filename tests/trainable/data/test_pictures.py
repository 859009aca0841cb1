from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from trainable.data.moments import moments
from trainable.data.pictures import fit
from trainable.errors import DataError


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 57), (16, 16), (9, 21)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizes_and_crops_as_torchvision_does(make_pictures, size, channels: int) -> None:
    picture = make_pictures(1, size)[0]
    picture = picture if channels == 3 else picture[:, :, :1]
    resize = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])
    image = Image.fromarray(picture if channels == 3 else picture[:, :, 0])
    expected = np.asarray(resize(image)).reshape(16, 16, channels).transpose(2, 0, 1)
    assert np.array_equal(fit(picture, channels, 16), expected)


@pytest.mark.parametrize("size", [(40, 30), (20, 20), (16, 16), (9, 21)])
def test_resizes_to_more_than_it_crops_as_torchvision_does(make_pictures, size) -> None:
    picture = make_pictures(1, size)[0]
    resize = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16)])
    expected = np.asarray(resize(Image.fromarray(picture))).transpose(2, 0, 1)
    assert np.array_equal(fit(picture, 3, 16, 20), expected)


def test_turns_colour_grey_as_pillow_does(make_pictures) -> None:
    picture = make_pictures(1, (64, 64))[0]
    expected = np.asarray(Image.fromarray(picture).convert("L"))
    assert np.array_equal(fit(picture, 1, None), expected[None])


def test_repeats_grey(make_pictures) -> None:
    grey = make_pictures(1)[0][:, :, :1]
    fitted = fit(grey, 3, None)
    assert fitted.shape == (3, 8, 8)
    assert all(np.array_equal(channel, grey[:, :, 0]) for channel in fitted)


def test_moments_are_those_of_the_pixels(make_pictures) -> None:
    pixels = make_pictures(50).transpose(0, 3, 1, 2)
    wide = pixels.astype(np.int64)
    mean, std = moments(wide.sum((2, 3)), (wide**2).sum((2, 3)), 64)
    assert mean == pytest.approx((pixels / 255).mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx((pixels / 255).std((0, 2, 3)), rel=1e-12)


def test_a_channel_that_never_varies_is_refused() -> None:
    sums = np.full((3, 1), 7 * 16, dtype=np.int64)
    with pytest.raises(DataError, match=r"data\.std: channel 0 must vary.*got 7 in every pixel"):
        moments(sums, np.full((3, 1), 49 * 16, dtype=np.int64), 16)
