"""Tiny paired shards, and a tokenizer and transform that let a test read back which sample a row is."""

import io
from argparse import Namespace

import torch
from PIL import Image

from open_clip_triplet.losses import METHODS
from open_clip_triplet.shards import ShardWriter, write_sizes

SIZE = 16


def jpeg(number, size=(24, 20)):
    """A plain image of a colour that tells its number (0 to 255) through JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def sample(number, **changes):
    """Positive: number n. Negative image: 255 - n. Negative captions: n + 1000 and n + 2000."""
    made = {
        "__key__": f"{number:06d}",
        "jpg": jpeg(number % 256),
        "txt": str(number),
        "neg.jpg": jpeg(255 - number % 256),
        "neg.txt": str(number + 1000),
        "json": {
            "captions": [str(number), str(number + 5000)],
            "neg_captions": [str(number + 1000), str(number + 2000)],
        },
    }
    made.update(changes)
    return {name: value for name, value in made.items() if value is not None}


def write_shards(folder, lengths, *, changes=None, sizes=True):
    """Shards of the given lengths with samples 0, 1, 2, ...; returns the brace spelling of all of them."""
    number = 0
    for place, length in enumerate(lengths):
        with ShardWriter(folder / f"{place:05d}.tar") as writer:
            for _ in range(length):
                writer.write(sample(number, **(changes or {}).get(number, {})))
                number += 1
    if sizes:
        write_sizes(folder, {f"{place:05d}.tar": length for place, length in enumerate(lengths)})
    return f"{folder}/{{00000..{len(lengths) - 1:05d}}}.tar"


def tokenize(texts):
    """[len(texts), 2]: the number in the caption, and a constant. Picklable, unlike a lambda."""
    return torch.tensor([[int(text), 7] for text in texts])


def numbers(texts):
    return [int(row[0]) for row in texts]


def arguments(train_data=None, **changes):
    """OpenCLIP's parsed arguments, those that the pipeline looks at."""
    values = {
        "train_data": train_data,
        "val_data": None,
        "train_num_samples": None,
        "val_num_samples": None,
        "batch_size": 4,
        "workers": 0,
        "world_size": 1,
        "rank": 0,
        "seed": 0,
        "distributed": False,
        "accum_freq": 1,
        "dataset_resampled": False,
        "train_data_upsampling_factors": None,
        "device": "cpu",
        "precision": "fp32",
        "neg_captions": 1,
        "caption_sampling": "first",
        "image_decoder": "pil",
        "same_crop": False,
        "data_streams": None,
        "data_stage": [],
        "max_bad_fraction": 0.5,
        "aug_cfg": {},
    }
    values.update(changes)
    return Namespace(**values)


def method(name="triplet"):
    return METHODS[name]
