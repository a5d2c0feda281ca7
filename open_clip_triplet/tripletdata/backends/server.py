"""Any OpenAI-compatible chat server: ``vllm serve``, llama.cpp, a hosted one.

A response that is no chat completion (a proxy's page, cut JSON, no content) is a fault of the way, not
an answer: it is asked for again, and a server that gives nothing else is called down.
"""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.language import (
    LanguageModel,
    NoAnswer,
    Progress,
    Unfinished,
    unreported,
)
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, needs

#: statuses that say "later": the request is sent again
LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}
#: statuses that may mean this prompt alone, at once or after all patience is spent
REFUSED, BROKEN = {400, 413, 422}, {500, 502, 504}
#: a caption that every server can answer for, to tell a bad prompt from a bad set-up
PROBE = "A dog on a table."


class BadResponse(Exception):
    """Status 200, but no chat completion inside."""


@dataclass
class Server(LanguageModel):
    """Requests in parallel, each tried again with growing pauses until ``patience`` seconds have passed.

    The key is read from the environment variable ``api_key_env`` and never written anywhere.

    Args:
        extra_body: members added to each request, such as ``{"repetition_penalty": 1.1}``.
    """

    url: str = field(default="http://127.0.0.1:8000/v1", metadata=RUNTIME_ONLY)
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=RUNTIME_ONLY)
    concurrency: int = field(default=64, metadata=RUNTIME_ONLY)
    patience: float = field(default=120.0, metadata=RUNTIME_ONLY)
    extra_body: dict = field(default_factory=dict)

    uses_gpu = False

    def open(self, device: str) -> None:
        with needs("--backend openai needs httpx"):
            import httpx
        key = os.environ.get(self.api_key_env)
        try:
            self._client = httpx.Client(
                base_url=self.url.rstrip("/") + "/",
                timeout=httpx.Timeout(300, connect=10),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx.Limits(max_connections=self.concurrency),
            )
        except httpx.InvalidURL as error:
            raise PipelineError(f"--url {self.url}: {error}", 2) from error
        except UnicodeEncodeError as error:
            raise PipelineError(f"${self.api_key_env} is no key: it holds letters that are not ASCII", 2) from error
        self._works, self._probing = False, threading.Lock()

    def complete(
        self, prompts: list[str], seeds: list[int], progress: Progress = unreported
    ) -> list[str | NoAnswer]:
        ending = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [
                pool.submit(self._one, prompt, seed, ending)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                answers = []
                for number, future in enumerate(futures, 1):
                    answers.append(future.result())
                    progress(number / len(futures))
                return answers
            except BaseException:  # Ctrl-C as well: thousands of requests may be queued
                ending.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _request(self, prompt: str, seed: int) -> dict:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
        }
        if self.reproducible:
            body["seed"] = seed
        if self.template_kwargs:
            body["chat_template_kwargs"] = self.template_kwargs
        return {**body, **self.extra_body}

    def _ask(self, prompt: str, seed: int) -> tuple[str | NoAnswer | None, int, str, float]:
        """One request: (answer or None, status or 0, what went wrong, seconds the server asks to wait)."""
        import httpx

        try:
            response = self._client.post("chat/completions", json=self._request(prompt, seed))
        except httpx.RequestError as error:
            return None, 0, f"{type(error).__name__}: {error}", 0.0
        status = response.status_code
        if status != 200:
            return None, status, f"status {status}: {response.text[:200]}", _retry_after(response)
        try:
            return _content(response), status, "", 0.0
        except BadResponse as error:
            return None, status, str(error), 0.0

    def _one(self, prompt: str, seed: int, ending: threading.Event) -> str | NoAnswer:
        """One answer; NoAnswer where the server fails at this prompt and not at others."""
        deadline, pause = time.monotonic() + self.patience, 0.5
        while True:
            answer, status, fault, after = self._ask(prompt, seed)
            if answer is not None:
                self._works = True
                return answer
            later = status in {0, 200, *LATER}
            if status in REFUSED:
                others = self._works or self._answers_others()
                if others:
                    return NoAnswer(f"refused by the server ({status})")
                later = others is None
            if not later:
                raise PipelineError(
                    f"{self.url} refused the request for model {self.model!r} ({fault}). "
                    f"Check --url, --llm, --max-tokens, --prompt and ${self.api_key_env}."
                )
            wait = max(pause * random.uniform(0.5, 1.5), after)
            if time.monotonic() + wait > deadline:
                if status in {200, *BROKEN} and self._answers_others():
                    return NoAnswer("fails the server" + (f" ({status})" if status != 200 else ""))
                raise PipelineError(
                    f"no answer from {self.url} for {self.patience:g} s ({fault}). "
                    "Start the server or correct --url, then run the same command again; what is done is kept."
                )
            if ending.wait(wait):
                raise PipelineError("ended with the other requests")
            pause = min(pause * 2, 30.0)

    def _answers_others(self) -> bool | None:
        """Whether the server answers, now, the same question about a plain short caption; None where it is busy."""
        with self._probing:
            answer, status, *_ = self._ask(self.prompt.replace("{}", PROBE), self.seed)
            if answer is None:
                return None if status in {0, 200, *LATER} else False
            self._works = True
            return True


def _content(response) -> str | NoAnswer:
    """The answer in a chat completion.

    Raises:
        BadResponse: it is none: not JSON, no choice, or content that is no text.
    """
    try:
        choice = response.json()["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadResponse(f"status 200, but no chat completion: {response.text[:200]!r}") from error
    if reason == "content_filter":
        return NoAnswer("refused by the server (content_filter)")
    if reason == "length":  # a reasoning model that ran out of tokens has no content
        return Unfinished(content if isinstance(content, str) else "")
    if not isinstance(content, str):
        raise BadResponse(f"status 200, but the content is no text: {response.text[:200]!r}")
    return content


def _retry_after(response) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    try:
        return min(float(response.headers["retry-after"]), 60.0)
    except (KeyError, ValueError):
        return 0.0
