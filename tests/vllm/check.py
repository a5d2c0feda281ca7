"""Ask real vLLM for negative captions of 32 captions: in process, then over HTTP. Called by run.sh.

python tests/vllm/check.py MODEL_FOLDER
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from open_clip_triplet import make_shards
from open_clip_triplet.shards import ShardWriter

HERE = Path(__file__).parent


def input_shards(folder: Path) -> str:
    """CC12M's shard where the real data is at hand, else one of the captions beside this file."""
    real = os.environ.get("TRIPLET_TEST_DATA")
    if real and (Path(real) / "cc12m").is_dir():
        return str(Path(real) / "cc12m")
    with ShardWriter(folder / "in/00000.tar") as writer:
        for number, caption in enumerate((HERE / "captions.txt").read_text().splitlines()):
            writer.write({"__key__": f"{number:09d}", "txt": caption})
    return str(folder / "in")


def check(name: str, output: Path, arguments: list[str]) -> None:
    """One run of the captions stage; its counts must add up and a fair part must pass the checks."""
    start = time.monotonic()
    options = ["--text-only", "--max-tokens", "48", "--max-drop", "0.75"]  # a small model copies much
    status = make_shards.main(["captions", *arguments, "--output", str(output), *options])
    assert status == 0, f"{name}: exit status {status}"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["read"] == 32 == summary["kept"] + sum(summary["dropped"].values()), summary
    assert summary["kept"] >= 8, f"{name}: only {summary['kept']} of 32 answers passed: {summary['dropped']}"
    print(
        f"{name}: {summary['kept']} of 32 kept, dropped {summary['dropped']}, {time.monotonic() - start:.0f} s"
    )


@contextmanager
def serving(model: str):
    """The address of a ``vllm serve`` on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    vllm = Path(sys.executable).with_name("vllm")
    command = [vllm, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    command += ["--enforce-eager", "--no-enable-chunked-prefill"]  # the second for seeds on a CPU
    server = subprocess.Popen([*command, "--served-model-name", "smollm2"])
    try:
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, f"vllm serve ended with status {server.returncode}"
            assert time.monotonic() < deadline, "vllm serve did not get ready in 240 s"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shards = ["--input", input_shards(folder)]
        with serving(model) as url:
            server = ["--backend", "openai", "--llm", "smollm2", "--url", url, "--concurrency", "16"]
            check("vllm serve", folder / "served", [*shards, *server])
        # Last, because the engine lives in this process.
        check("vllm in process", folder / "in-process", [*shards, "--backend", "vllm", "--llm", model])
    print("vllm: 2 passed, 0 failed")


if __name__ == "__main__":
    main(sys.argv[1])
