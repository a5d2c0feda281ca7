"""The two image decoders: pil is OpenCLIP's to the bit, fast makes nearly the same pixels."""

import io
import os
import random
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from open_clip_triplet.data.counts import Dropped
from open_clip_triplet.data.device import ToDevice
from open_clip_triplet.data.images import (
    FastImages,
    PilImages,
    augmentation_state,
    crop_boxes,
    decode_fast,
    decode_scale,
    random_crop,
    resize_box,
)

TRANSFORM = open_clip.image_transform(224, is_train=True)
LIMIT = 1.5  # mean absolute difference in levels of 255


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width=512, height=384, seed=0):
    """Smooth colours with edges: as much detail as a photo, not the worst case that noise is."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 32, width // 32, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def fast_as_pil(encoded, *names, **options):
    """What the training loop gets from ``fast``: normalised floats [len(encoded), 3, H, W]."""
    images = FastImages(TRANSFORM, **options)
    return on_device(torch.stack(images(encoded, *names)), images)


def on_device(made, images):
    return ToDevice("cpu", images.normalize)([made], [torch.zeros(1)])[0]


def difference(pil, fast):
    """Mean absolute difference in levels of 255."""
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    return ((pil - fast) * std * 255).abs().mean().item()


@pytest.mark.parametrize(
    "aug_cfg",
    [{}, {"scale": (0.3, 1.0), "color_jitter": (0.4,) * 4, "color_jitter_prob": 0.8, "gray_scale_prob": 0.3}],
)
def test_pil_is_openclips_transform_to_the_bit(aug_cfg):
    transform = open_clip.image_transform(64, is_train=True, aug_cfg=aug_cfg)
    for number in range(5):
        data = encode(picture(seed=number))
        with augmentation_state("seed", number):
            stock = transform(Image.open(io.BytesIO(data)).convert("RGB"))
        (ours,) = PilImages(transform)([data], "seed", number)
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("size", [(512, 384), (1024, 768), (768, 1100), (2048, 1536), (100, 300), (224, 224)])
def test_fast_is_near_pil_on_identical_crops(size):
    for number in range(3):
        data = encode(picture(*size, seed=number), quality=90)
        (pil,) = PilImages(TRANSFORM)([data], number)
        assert difference(pil, fast_as_pil([data], number)[0]) < LIMIT / 2


@pytest.mark.skipif("TRIPLET_TEST_DATA" not in os.environ, reason="TRIPLET_TEST_DATA is not set: no photos")
@pytest.mark.parametrize("pixels", [224, 140])
def test_fast_is_near_pil_on_photos(pixels):
    """140: 640x480 photos are then reduced as much as 1024x768 ones at 224, with detail at full sharpness."""
    transform = open_clip.image_transform(pixels, is_train=True)
    fast = FastImages(transform)
    levels = []
    for path in sorted(Path(os.environ["TRIPLET_TEST_DATA"], "coco/val2017").glob("*.jpg")):
        (pil,) = PilImages(transform)([path.read_bytes()], path.name)
        made = torch.stack(fast([path.read_bytes()], path.name))
        made = on_device(made, fast)
        levels.append(difference(pil, made[0]))
    assert len(levels) == 50 and np.mean(levels) < LIMIT


def odd_images():
    photo = picture(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated; OpenCLIP does not
    return {
        "png": encode(photo, "PNG"),
        "palette png with transparency": encode(photo.convert("P"), "PNG", transparency=3),
        "webp": encode(photo, "WEBP", lossless=True),
        "grey jpeg": encode(photo.convert("L")),
        "cmyk jpeg": encode(photo.convert("CMYK")),
        "progressive jpeg": encode(photo, progressive=True),
        "16 bit png": encode(Image.fromarray(np.arange(60000, dtype=np.uint16).reshape(200, 300)), "PNG"),
        "exif rotated jpeg": encode(photo, exif=exif),
        "jpeg with bytes after its end": encode(photo) + b"trailing",
    }


@pytest.mark.parametrize("kind", odd_images())
def test_odd_images_are_treated_alike(kind):
    data = odd_images()[kind]
    (pil,) = PilImages(TRANSFORM)([data], kind)
    assert difference(pil, fast_as_pil([data], kind)[0]) < 0.3


@pytest.mark.parametrize(
    "data", [b"", b"no image", encode(picture())[:3000], encode(picture(), "PNG")[:3000]]
)
def test_what_cannot_be_decoded_is_dropped_by_both(data):
    for images in (PilImages(TRANSFORM), FastImages(TRANSFORM)):
        with pytest.raises(Dropped, match="corrupt image"):
            images([data], 0)


def damaged(number: int) -> list[bytes]:
    """Truncated, garbled and headless copies of images of all kinds, the same ones on each run."""
    rng = random.Random(0)
    whole = [encode(picture(64, 64)), encode(picture(64, 64).convert("CMYK")), encode(picture(64, 64), "PNG")]
    copies = [b"", b"\xff\xd8", b"\xff\xd8\xff", *(data[: len(data) // 50] for data in whole)]
    while len(copies) < number:
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(min(len(data), 700))] = rng.randrange(256)
        copies.append(bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])]))
    return copies


def test_whatever_a_decoder_raises_drops_the_sample():
    fast, pil = FastImages(TRANSFORM), PilImages(TRANSFORM)

    def usable(images, data):
        try:
            return len(images([data], "key")) == 1
        except Dropped as dropped:
            assert dropped.reason == "corrupt image"
            return False

    verdicts = [(usable(fast, data), usable(pil, data)) for data in damaged(400)]
    assert all(a == b for a, b in verdicts) and len(set(verdicts)) == 2


def test_fast_does_jitter_and_grey_scale_with_the_same_draws():
    cfg = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8, "gray_scale_prob": 0.5}
    transform = open_clip.image_transform(64, is_train=True, aug_cfg=cfg)
    fast = FastImages(transform)
    for number in range(8):
        data = encode(picture(seed=number))
        (pil,) = PilImages(transform)([data], number)
        made = on_device(torch.stack(fast([data], number)), fast)
        assert difference(pil, made[0]) < LIMIT


def test_fast_refuses_by_name_what_it_cannot_do():
    timm = open_clip.image_transform(64, is_train=True, aug_cfg={"use_timm": True, "scale": (0.5, 1.0)})
    with pytest.raises(ValueError, match="RandomResizedCropAndInterpolation.*use_timm.*--image-decoder pil"):
        FastImages(timm)
    TRANSFORM_PLUS = type(TRANSFORM)(
        [*TRANSFORM.transforms[:2], torch.nn.Dropout(), *TRANSFORM.transforms[2:]]
    )
    with pytest.raises(ValueError, match="fast cannot do the augmentation Dropout"):
        FastImages(TRANSFORM_PLUS)


@pytest.mark.parametrize("images", [PilImages, FastImages])
def test_same_crop_for_positive_and_negative(images):
    photo = picture(seed=1)
    pair = [encode(photo, "PNG"), encode(photo, "PNG")]
    same = images(TRANSFORM, same_crop=True)(pair, 5)
    assert torch.equal(same[0], same[1])
    own = images(TRANSFORM)(pair, 5)
    assert torch.equal(own[0], same[0]) and not torch.equal(own[1], same[1])
    larger = images(TRANSFORM, same_crop=True)([pair[0], encode(photo.resize((1024, 768)), "PNG")], 5)
    scale = 255 * 0.27 if images is PilImages else 1
    assert ((larger[0].float() - larger[1].float()) * scale).abs().mean() < 2


@pytest.mark.parametrize(
    "scale, ratio", [((0.9, 1.0), (3 / 4, 4 / 3)), ((0.08, 0.5), (1.0, 1.0)), ((1.0, 1.0), (0.5, 3.0))]
)
def test_crops_are_torchvisions_draws(scale, ratio):
    crop = RandomResizedCrop(224, scale, ratio)
    sizes = np.random.default_rng(0).integers(1, 2000, (1500, 2)).tolist()
    torch.manual_seed(0)
    expected = [crop.get_params(torch.empty((3, *size), device="meta"), scale, ratio) for size in sizes]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert [random_crop(crop, *size) for size in sizes] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_is_carried_over_in_proportion():
    crop = TRANSFORM.transforms[0]
    with augmentation_state(3):
        (top, left, height, width), other = crop_boxes(crop, [(100, 200), (50, 100)], same=True)
    assert other == pytest.approx((top / 2, left / 2, height / 2, width / 2), abs=1)


def test_random_state_depends_on_the_names_alone_and_is_put_back():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    after = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    drawn = []
    for names in (("a", 1), ("a", 1), ("a", 2)):
        with augmentation_state(*names):
            drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1] != drawn[2]
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == after


def test_jpegs_are_decoded_smaller_only_where_enough_pixels_remain():
    chosen = [decode_scale((0, 0, side, side), (224, 224)) for side in (224, 335, 600, 700, 5000)]
    assert chosen == [(1, False), (1, False), (1, True), (2, True), (8, True)]
    assert decode_fast(encode(picture(1024, 768)), 2).shape == (384, 512, 3)
    assert decode_fast(encode(picture(1023, 767)), 4).shape == (192, 256, 3)
    assert decode_fast(encode(picture(1024, 768), "PNG"), 2).shape == (768, 1024, 3)


@pytest.mark.parametrize("begin", range(12))
def test_a_crop_of_a_reduced_image_begins_where_it_does_in_the_whole(begin):
    """A ramp keeps its values under any exact resampling, so a shift of the crop shows at once."""
    ramp = np.tile(np.linspace(0, 250, 200).round().astype(np.uint8), (200, 1))
    image = np.stack([ramp, ramp.T, ramp], -1)
    box = (begin, begin, 180, 180)
    whole = resize_box(image, (200, 200), box, (52, 52))
    half = np.asarray(Image.fromarray(image).reduce(2))
    made = resize_box(half.copy(), (200, 200), box, (52, 52))
    inner = (made[4:-4, 4:-4].float() - whole[4:-4, 4:-4].float()).mean((0, 1))
    assert inner.abs().max() < 0.55  # up to 0.5 is rounding; a shift by one pixel is 1.25
