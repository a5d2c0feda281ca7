"""The loaders that bench_data.py compares ours with: stock OpenCLIP's, and Megatron-Energon's where it is installed.

A loader yields batches ``(images [N*G, 3, H, W], texts [N*G, L], ...)``. G is 1 for plain pairs, as ``--loss clip``
reads them; where the method reads negatives it is 2, and the rows stand as ours do, ``[x0, x0', x1, x1', ...]``.
Every loader decodes with PIL, applies OpenCLIP's training transform to each image and tokenizes each caption.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import webdataset as wds
from open_clip_train import data as openclip
from PIL import Image

try:
    import megatron.energon as energon

    ENERGON_MISSING = ""
except ImportError as error:
    ENERGON_MISSING = f"energon is left out ({error}): pip install megatron-energon"

#: samples in Energon's shuffle buffer: as many as OpenCLIP reads before the first one leaves its own
SHUFFLE = openclip._SAMPLE_SHUFFLE_INITIAL
MEMBERS = {"image": "jpg", "neg_image": "neg.jpg", "text": "txt", "neg_text": "neg.txt"}


def grouped(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Rows ``[p0, n0, p1, n1, ...]`` of two [N, ...]."""
    return torch.stack((positive, negative), 1).flatten(0, 1)


def stock_loader(args, transform: Callable, tokenizer: Callable, *, negatives: bool) -> Iterable:
    """OpenCLIP's own loader. With ``negatives``, its stages with the two negative members beside the positives."""
    if not negatives:
        return openclip.get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader
    first = lambda text: tokenizer(text)[0]  # noqa: E731
    batches = -(-openclip.get_dataset_size(args.train_data)[0] // args.batch_size)
    dataset = wds.DataPipeline(
        wds.SimpleShardList(args.train_data),
        openclip.detshuffle2(
            bufsize=openclip._SHARD_SHUFFLE_SIZE, initial=openclip._SHARD_SHUFFLE_INITIAL, seed=args.seed, epoch=0
        ),
        wds.split_by_node,
        wds.split_by_worker,
        openclip.tarfile_to_samples_nothrow,
        wds.shuffle(bufsize=openclip._SAMPLE_SHUFFLE_SIZE, initial=openclip._SAMPLE_SHUFFLE_INITIAL),
        wds.decode("pilrgb", handler=openclip.log_and_continue),
        wds.map_dict(**{"jpg": transform, "neg.jpg": transform, "txt": first, "neg.txt": first}),
        wds.to_tuple(*MEMBERS.values()),
        wds.batched(args.batch_size, partial=False),
        _group_rows,
    ).with_epoch(-(-batches // args.workers))
    return wds.WebLoader(
        dataset, batch_size=None, shuffle=False, num_workers=args.workers, persistent_workers=args.workers > 0
    )


def _group_rows(batches: Iterator) -> Iterator:
    for image, neg_image, text, neg_text in batches:
        yield grouped(image, neg_image), grouped(text, neg_text)


def prepare_energon(folder: Path) -> float:
    """Write what Energon needs beside the tars of ``folder``, ``.nv-meta`` with an index of every sample.

    Returns:
        Seconds it took. Keys must differ over all shards.

    Raises:
        RuntimeError: with what ``energon prepare`` said.
    """
    start = time.perf_counter()
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", str(folder), *options]
    done = subprocess.run(
        [*command, "--no-progress", "--num-workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"energon prepare {folder}:\n{done.stdout}")
    return time.perf_counter() - start


def energon_loader(args, transform: Callable, tokenizer: Callable, *, negatives: bool) -> Iterable:
    """Energon's loader over the prepared folder of ``args.train_data``, one pass.

    Its shuffle buffer stands behind its decoder. So its decoder is off and ``encode_sample`` decodes: the buffer then
    holds encoded samples, as OpenCLIP's and ours do, and not pixels.
    """
    images = ("jpg", "neg.jpg") if negatives else ("jpg",)
    texts = ("txt", "neg.txt") if negatives else ("txt",)

    @energon.edataclass
    class Sample(energon.Sample):
        images: list
        texts: list

    @energon.stateless
    def cook(raw: dict) -> Sample:
        return Sample(
            **energon.basic_sample_keys(raw),
            images=[raw[name] for name in images],
            texts=[raw[name].decode() for name in texts],
        )

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None
        cookers = (energon.Cooker(cook),)

        @energon.stateless(restore_seeds=True)  # what its manual asks for where the crop is random
        def encode_sample(self, sample: Sample) -> Sample:
            sample.images = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in sample.images]
            return sample

        @energon.stateless
        def batch(self, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
            return (
                torch.stack([image for sample in samples for image in sample.images]),
                tokenizer([text for sample in samples for text in sample.texts]),
            )

    return energon.get_loader(
        energon.get_train_dataset(
            Path(args.train_data).parent,
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=args.workers),
            batch_size=args.batch_size,
            shuffle_buffer_size=SHUFFLE,
            max_samples_per_sequence=100,  # as in its manual
            task_encoder=Encoder(),
            repeat=False,
        )
    )
