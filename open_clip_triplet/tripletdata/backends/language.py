"""What every language model of the captions stage shares: the prompt, the seeds, what an answer can be.

A caption enters a prompt by plain replacement of ``{}`` and is never interpreted; an answer is data.
The backends: ``vllm.py`` (in process), ``server.py`` (any OpenAI-compatible one), ``transformers.py``,
and ``rules.py`` without a model.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import model_name, sample_seed, settings

#: what ends an answer: a model that goes on with the examples of its prompt
STOP = ("\nInput:",)


Progress = Callable[[float], None]


def unreported(share: float) -> None:
    """A ``progress`` that nobody looks at."""


@dataclass(frozen=True)
class NoAnswer:
    """Stands for an answer that will never come: asking again is of no use. ``reason`` is counted."""

    reason: str


class Unfinished(str):
    """An answer that ``max_tokens`` cut off: its last line is not whole."""


class Negative(str):
    """An accepted negative caption, with what else is known of it.

    Args:
        category: of the edit, where who made it knows; empty otherwise.
        instruction: to an image editor, that makes it from the source caption; empty where none was given.
    """

    category: str
    instruction: str

    def __new__(cls, text: str, *, category: str = "", instruction: str = "") -> Negative:
        negative = super().__new__(cls, text)
        negative.category, negative.instruction = category, instruction
        return negative


@dataclass
class LanguageModel:
    """A chat model with a prompt of one placeholder ``{}``. Subclasses answer in ``complete``.

    Args:
        revision: of the model on the Hugging Face Hub; empty means the newest.
        template_kwargs: for the model's chat template, such as ``{"enable_thinking": false}``.
        stop: strings that end an answer.
        reproducible: whether every request has its own seed, from its sample's key.
    """

    model: str
    prompt: str
    seed: int = 0
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 96
    revision: str = ""
    template_kwargs: dict = field(default_factory=dict)
    stop: tuple[str, ...] = STOP
    reproducible: bool = False
    retries = True
    in_flight = 2  # shards that may ask at once

    def config(self) -> dict:
        return {"backend": type(self).__name__.lower(), **settings(self)}

    def provenance(self) -> dict:
        """What a sample's json says of its caption's origin."""
        return {"llm": model_name(self.model), "prompt_sha": prompt_sha(self.prompt)}

    def open(self, device: str) -> None:
        """Load the model."""

    def propose(
        self, captions: list[str], keys: list[str], count: int, attempt: int, progress: Progress = unreported
    ) -> list[list]:
        """``count`` answers for each caption; ``keys`` and ``attempt`` seed them."""
        prompts = [self.prompt.replace("{}", caption) for caption in captions for _ in range(count)]
        seeds = [sample_seed(self.seed, key, attempt * count + k) for key in keys for k in range(count)]
        answers = self.complete(prompts, seeds, progress)
        return [answers[i * count : (i + 1) * count] for i in range(len(captions))]

    def complete(
        self, prompts: list[str], seeds: list[int], progress: Progress = unreported
    ) -> list[str | NoAnswer]:
        """One answer per prompt: an empty or ``Unfinished`` one is a failed try, NoAnswer the last one.

        ``progress`` is called now and then with the share that is done. Several threads may ask at once.
        """
        raise NotImplementedError


def chat_text(tokenizer, prompt: str, template_kwargs: dict) -> str:
    """One user turn in the model's chat template; the bare prompt for a model without one."""
    if not tokenizer.chat_template:
        return prompt
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **template_kwargs
    )


def prompt_sha(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Around the loading of a model.

    Raises:
        PipelineError: it cannot be loaded; the message says what may be missing.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise PipelineError(
            f"cannot load the model {name!r}. Give a folder that holds it, or the name of one on the "
            f"Hugging Face Hub (hf auth login for gated ones). The loader said: {cause}"
        ) from error


def read_prompt(path: str | None, default: str) -> str:
    """The prompt in a file, or the packaged ``default``.

    Raises:
        PipelineError: no such file, or its placeholders are not exactly one ``{}``.
    """
    if path is None:
        text = resources.files("open_clip_triplet.tripletdata").joinpath(default).read_text(encoding="utf-8")
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"--prompt {path}: cannot be read ({error})", 2) from error
    if text.count("{}") != 1:
        raise PipelineError(
            f"--prompt {path}: must hold {{}} once, where the caption goes (found {text.count('{}')})", 2
        )
    return text.strip()
