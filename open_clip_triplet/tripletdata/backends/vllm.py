"""vLLM in process: whole shards at once (continuous batching), several of them in flight, shared prompt cached.

One thread steps the engine; any number of shards wait for their answers in other threads. So the
engine has the next shard's prompts while the last answers of one shard come in, and tokenising, checking
and writing take none of its time.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.backends.language import (
    LanguageModel,
    NoAnswer,
    Progress,
    Unfinished,
    chat_text,
    loading,
    unreported,
)
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY


@dataclass
class Vllm(LanguageModel):
    """A model in vLLM's engine.

    ``reproducible`` gives each request its own seed. vLLM samples seeded rows one by one, so that it is
    off by default: a shard that was begun again may then get other answers.
    """

    prefix_caching: bool = field(default=True, metadata=RUNTIME_ONLY)
    max_model_len: int = 2048  # what does not fit is dropped
    gpu_memory: float = field(default=0.9, metadata=RUNTIME_ONLY)
    tensor_parallel: int = field(default=1, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        # The engine in this very process: it ends when this process does, however that happens.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise PipelineError(
                "--backend vllm needs vLLM: install open_clip_triplet with its extra `vllm`, "
                "in an environment of its own (vLLM pins its torch)"
            ) from error
        if device == "cuda":
            settings: dict[str, Any] = {"gpu_memory_utilization": self.gpu_memory}
        else:
            # Compiling for a CPU takes longer than it saves. A prompt that is read in several steps has
            # its random generator set back between them, which torch's CPU generator cannot do.
            settings = {"enforce_eager": True, "enable_chunked_prefill": False}
        if self.revision:
            settings["revision"] = self.revision
        with loading(self.model):
            llm = LLM(
                model=self.model,
                enable_prefix_caching=self.prefix_caching,
                max_model_len=self.max_model_len,
                tensor_parallel_size=self.tensor_parallel,
                disable_log_stats=True,
                **settings,
            )
        self._tokenizer = llm.get_tokenizer()
        self._engine = EngineThread(llm.llm_engine)

    def complete(
        self, prompts: list[str], seeds: list[int], progress: Progress = unreported
    ) -> list[str | NoAnswer]:
        texts = [chat_text(self._tokenizer, prompt, self.template_kwargs) for prompt in prompts]
        tokens = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        answers: list[str | NoAnswer] = [NoAnswer("longer than the context")] * len(prompts)
        # vLLM refuses a prompt that does not fit, and all that were given with it.
        fitting = [i for i, ids in enumerate(tokens) if len(ids) + self.max_tokens <= self.max_model_len]
        futures = [self._engine.submit(tokens[i], self._parameters(seeds[i])) for i in fitting]
        for number, (i, future) in enumerate(zip(fitting, futures, strict=True), 1):
            output = future.result().outputs[0]
            answers[i] = Unfinished(output.text) if output.finish_reason == "length" else output.text
            if number % 64 == 0:
                progress(number / len(fitting))
        return answers

    def _parameters(self, seed: int):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=list(self.stop),
            seed=seed if self.reproducible else None,
        )


class EngineThread:
    """Steps a vLLM engine in a thread of its own, for as many callers as like."""

    def __init__(self, engine):
        self._engine, self._numbers = engine, itertools.count()
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._futures: dict[str, Future] = {}
        threading.Thread(target=self._run, daemon=True, name="vllm-engine").start()

    def submit(self, tokens: list[int], parameters) -> Future:
        """A future of vLLM's ``RequestOutput`` for a prompt of token ids."""
        future: Future = Future()
        self._waiting.put((str(next(self._numbers)), tokens, parameters, future))
        return future

    def _run(self) -> None:
        while True:
            try:
                self._add(block=not self._futures)
                for output in self._engine.step():
                    if output.finished:
                        self._futures.pop(output.request_id).set_result(output)
            except Exception as error:  # whoever waits gets it; nobody would see it in this thread
                for future in self._futures.values():
                    future.set_exception(error)
                self._futures.clear()

    def _add(self, block: bool) -> None:
        """Hand over what waits; ``block`` until there is something."""
        while block or not self._waiting.empty():
            name, tokens, parameters, future = self._waiting.get()
            self._futures[name] = future
            self._engine.add_request(name, {"prompt_token_ids": tokens}, parameters)
            block = False
