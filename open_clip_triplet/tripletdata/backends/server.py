"""Any OpenAI-compatible chat server: ``vllm serve``, llama.cpp, a hosted one."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.textmodels import LanguageModel, NoAnswer
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY

#: answers that say "later": the request is sent again
LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}
#: answers that may mean this prompt alone, at once or after all patience is spent
REFUSED, BROKEN = {400, 413, 422}, {500, 502, 504}
#: a caption that every server can answer for, to tell a bad prompt from a bad set-up
PROBE = "A dog on a table."


@dataclass
class Server(LanguageModel):
    """Requests in parallel, each tried again with growing pauses until ``patience`` seconds have passed.

    The key is read from the environment variable ``api_key_env`` and never written anywhere.
    """

    url: str = field(default="http://127.0.0.1:8000/v1", metadata=RUNTIME_ONLY)
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=RUNTIME_ONLY)
    concurrency: int = field(default=64, metadata=RUNTIME_ONLY)
    patience: float = field(default=120.0, metadata=RUNTIME_ONLY)

    uses_gpu = False

    def open(self, device: str) -> None:
        try:
            import httpx
        except ImportError as error:
            raise PipelineError("--backend openai needs httpx: pip install 'open_clip_triplet[build]'") from error
        key = os.environ.get(self.api_key_env)
        self._client = httpx.Client(
            base_url=self.url.rstrip("/") + "/",
            timeout=httpx.Timeout(300, connect=10),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=self.concurrency),
        )
        self._works, self._probing = False, threading.Lock()

    def complete(self, prompts: list[str], seeds: list[int]) -> list[str | NoAnswer]:
        ending = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [
                pool.submit(self._one, prompt, seed, ending)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                return [future.result() for future in futures]
            except BaseException:  # Ctrl-C as well: thousands of requests may be queued
                ending.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _post(self, prompt: str, seed: int):
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "seed": seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        return self._client.post("chat/completions", json=body)

    def _one(self, prompt: str, seed: int, ending: threading.Event) -> str | NoAnswer:
        """One answer; NoAnswer where the server fails at this prompt and not at others."""
        import httpx

        deadline, pause = time.monotonic() + self.patience, 0.5
        while True:
            try:
                response = self._post(prompt, seed)
                status, fault = response.status_code, f"status {response.status_code}: {response.text[:200]}"
            except httpx.TransportError as error:
                response, status, fault = None, 0, f"{type(error).__name__}: {error}"
            if status == 200:
                self._works = True
                return _content(response)
            if status in REFUSED and (self._works or self._answers_others()):
                return NoAnswer(f"refused by the server ({status})")
            if status and status not in LATER:
                raise PipelineError(
                    f"{self.url} refused the request for model {self.model!r} ({fault}). "
                    f"Check --url, --llm, --max-tokens, --prompt and ${self.api_key_env}."
                )
            wait = max(pause * random.uniform(0.5, 1.5), _retry_after(response))
            if time.monotonic() + wait > deadline:
                if status in BROKEN and self._answers_others():
                    return NoAnswer(f"fails the server ({status})")
                raise PipelineError(
                    f"no answer from {self.url} for {self.patience:g} s ({fault}). "
                    "Start the server or mend --url, then run the same command again; what is done is kept."
                )
            if ending.wait(wait):
                raise PipelineError("ended with the other requests")
            pause = min(pause * 2, 30.0)

    def _answers_others(self) -> bool:
        """Whether the server answers, now, the same question about a plain short caption."""
        import httpx

        with self._probing:
            try:
                works = self._post(self.prompt.replace("{}", PROBE), self.seed).status_code == 200
            except httpx.TransportError:
                works = False
            self._works = self._works or works
            return works


def _content(response) -> str:
    try:
        return response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        return ""


def _retry_after(response) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    try:
        return min(float(response.headers["retry-after"]), 60.0)
    except (AttributeError, KeyError, ValueError):
        return 0.0
