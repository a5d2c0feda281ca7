"""What mining costs at scale: seconds of processor time and peak memory of the stage's own search.

  OMP_NUM_THREADS=1 python tools/bench_mine.py --rows 1000000 --index IVF4096,SQfp16 --nprobe 64

Features are drawn in clusters of about 50 (unit rows of 512 halves, a file per shard of 10,000, mapped into
memory as ``mine`` maps them). Memory is the peak of RssAnon: what is mapped from files can be dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

SHARD = 10_000


class PeakMemory:
    """Peak of this process's own memory in bytes, looked at every 50 ms: ``with PeakMemory() as peak: ...``."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._leaving.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._leaving.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            found = next(line for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(found.split()[1]) * 1024)


def write_features(folder: Path, rows: int, width: int = 512) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(rows // 50, 1), width), dtype=np.float32)
    for number, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        block = centres[random.integers(0, len(centres), count)]
        block += random.standard_normal((count, width), dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        np.save(folder / f"{number:05d}.features.npy", block.astype(np.float16))


def measure(folder: Path, index: str, nprobe: int, searched: int) -> dict:
    """Build the index, then search for the rows of the first ``searched`` shards, and some of them exactly."""
    from open_clip_triplet.tripletdata.backends import neighbours

    features = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.features.npy"))]
    rows, seconds = sum(map(len, features)), {}
    with PeakMemory() as peak:
        numbers = np.arange(1, rows + 1, dtype=np.uint64)
        collection = neighbours.Collection(features, numbers, numbers[:, None])
        start = time.process_time()
        search = neighbours.faiss_search(features, index, nprobe, str(folder / "index.faiss"))
        seconds["index"] = time.process_time() - start
        building = peak.bytes
        start, peak.bytes, found = time.process_time(), 0, []
        for number in range(min(searched, len(features))):
            span = range(int(collection.first[number]), int(collection.first[number + 1]))
            found.append(neighbours.nearest_different(collection, span, search, 0.95)[0])
        seconds["search"] = time.process_time() - start
        searching = peak.bytes
    some = range(0, min(500, len(features[0])))
    exact, _ = neighbours.nearest_different(collection, some, neighbours.exact_search(features), 0.95)
    count = sum(map(len, found))
    return {
        "rows": rows,
        "index": index,
        "nprobe": nprobe,
        "index_cpu_seconds": round(seconds["index"], 1),
        "rows_searched": count,
        "search_cpu_ms_per_row": round(1000 * seconds["search"] / count, 3),
        "peak_gb_building": round(building / 1e9, 2),
        "peak_gb_searching": round(searching / 1e9, 2),
        "same_neighbour_as_exact": round(float(np.mean(exact == found[0][: len(exact)])), 3),
    }


def processor() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def bench_mine(rows: int, index: str, nprobe: int, searched: int) -> dict:
    """The measurement, in a process of its own: what others have allocated is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder), rows)
        program = (
            "import json, sys; from pathlib import Path; import bench_mine; "
            f"print(json.dumps(bench_mine.measure(Path({folder!r}), {index!r}, {nprobe}, {searched})))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        output = subprocess.run(
            [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="pairs (default 1000000)")
    parser.add_argument("--index", default="IVF4096,SQfp16", help="FAISS index (default IVF4096,SQfp16)")
    parser.add_argument("--nprobe", type=int, default=64, help="lists looked at (default 64)")
    parser.add_argument("--shards", type=int, default=10**6, help="shards of 10,000 to search for (default all)")
    parser.add_argument("--output", type=Path, help="json file of the results")
    args = parser.parse_args()
    about = {
        "date": str(date.today()), "cores": os.cpu_count(), "hardware": processor(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    text = json.dumps({**about, "mine": bench_mine(args.rows, args.index, args.nprobe, args.shards)}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
