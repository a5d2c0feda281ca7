"""Language models behind one protocol: transformers, vLLM in process, any OpenAI-compatible server.

A caption enters a prompt by plain replacement of ``{}`` and is never interpreted; an answer is data.
Every answer has its own seed, from the sample's key, so that it does not depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from open_clip_triplet.errors import PipelineError
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, sample_seed, settings

DEFAULT_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
BACKENDS = ("vllm", "openai", "transformers", "rules")


@dataclass(frozen=True)
class NoAnswer:
    """Stands for an answer that will never come: asking again is of no use. ``reason`` is counted."""

    reason: str


@dataclass
class LanguageModel:
    """A chat model with a prompt of one placeholder ``{}``. Subclasses answer in ``complete``."""

    model: str
    prompt: str
    seed: int = 0
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 96
    retries = True
    progress = staticmethod(lambda share: None)  # ``complete`` calls it with the share done

    def config(self) -> dict:
        return {"backend": type(self).__name__.lower(), **settings(self)}

    def provenance(self) -> dict:
        """What a sample's json says of its caption's origin."""
        return {"llm": self.model, "prompt_sha": prompt_sha(self.prompt)}

    def open(self, device: str) -> None:
        """Load the model."""

    def propose(self, captions: list[str], keys: list[str], count: int, attempt: int) -> list[list]:
        prompts = [self.prompt.replace("{}", caption) for caption in captions for _ in range(count)]
        seeds = [sample_seed(self.seed, key, attempt * count + k) for key in keys for k in range(count)]
        answers = self.complete(prompts, seeds)
        return [answers[i * count : (i + 1) * count] for i in range(len(captions))]

    def complete(self, prompts: list[str], seeds: list[int]) -> list[str | NoAnswer]:
        """One answer per prompt. An empty answer counts as a failed try, NoAnswer as the last one."""
        raise NotImplementedError


@dataclass
class Transformers(LanguageModel):
    """Hugging Face transformers on one device, in batches of similar length."""

    batch_size: int = field(default=32, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise PipelineError("--backend transformers needs: pip install 'open_clip_triplet[build]'") from error
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(
                self.model, dtype=torch.bfloat16 if device == "cuda" else torch.float32, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise PipelineError(missing_model(self.model, error)) from error
        self._model.to(device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def complete(self, prompts: list[str], seeds: list[int]) -> list[str]:
        texts = [chat_text(self._tokenizer, prompt) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        answers = [""] * len(texts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for i, answer in zip(rows, self._generate([texts[i] for i in rows], [seeds[i] for i in rows])):
                answers[i] = answer
            self.progress(min(1.0, (start + self.batch_size) / len(order)))
        return answers

    def _generate(self, texts: list[str], seeds: list[int]) -> list[str]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        tokens = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = tokens.to(self._model.device)
        # Greedy search over seeded noise is sampling with one generator per row; the model's own
        # sampling settings must not come on top.
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=self._model.generation_config.eos_token_id,
        )
        sampler = LogitsProcessorList([RowSampler(seeds, self.temperature, self.top_p)])
        with torch.inference_mode():
            output = self._model.generate(**tokens, generation_config=config, logits_processor=sampler)
        return self._tokenizer.batch_decode(
            output[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True
        )


class RowSampler:
    """A logits processor that makes greedy search sample: temperature, top-p, then Gumbel noise per row.

    argmax(log p + Gumbel noise) is a sample of p; each row draws its noise from its own seed.
    """

    def __init__(self, seeds: list[int], temperature: float, top_p: float):
        import torch

        self.temperature, self.top_p = temperature, top_p
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids, scores):
        """scores: [rows, vocabulary] logits -> perturbed log-probabilities of the same shape."""
        import torch

        if self.temperature <= 0:
            return scores
        logits = (scores.float() / self.temperature).log_softmax(-1)
        ordered, index = logits.sort(descending=True)
        beyond = ordered.exp().cumsum(-1) - ordered.exp() >= self.top_p  # never the most likely token
        logits = logits.scatter(-1, index, ordered.masked_fill(beyond, float("-inf")))
        uniform = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in self.generators])
        return logits - (-uniform.clamp(1e-20, 1 - 1e-7).log()).log().to(logits.device)


@dataclass
class Vllm(LanguageModel):
    """vLLM in process: the whole shard at once (continuous batching), shared prompt cached."""

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
                "--backend vllm needs: pip install 'open_clip_triplet[vllm]' (an environment of its own)"
            ) from error
        if device == "cuda":
            settings = {"gpu_memory_utilization": self.gpu_memory}
        else:
            # Compiling for a CPU takes longer than it saves. A prompt that is read in several steps has
            # its random generator set back between them, which torch's CPU generator cannot do.
            settings = {"enforce_eager": True, "enable_chunked_prefill": False}
        try:
            self._llm = LLM(
                model=self.model,
                enable_prefix_caching=self.prefix_caching,
                max_model_len=self.max_model_len,
                tensor_parallel_size=self.tensor_parallel,
                disable_log_stats=True,
                **settings,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise PipelineError(missing_model(self.model, error)) from error

    def complete(self, prompts: list[str], seeds: list[int]) -> list[str | NoAnswer]:
        from vllm import SamplingParams

        tokenizer = self._llm.get_tokenizer()
        texts = [chat_text(tokenizer, prompt) for prompt in prompts]
        tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
        # vLLM refuses the whole batch for one prompt that does not fit.
        fitting = [i for i, ids in enumerate(tokens) if len(ids) + self.max_tokens <= self.max_model_len]
        common = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        outputs = self._llm.generate(
            [{"prompt_token_ids": tokens[i]} for i in fitting],
            [SamplingParams(**common, seed=seeds[i]) for i in fitting],
            use_tqdm=False,
        )
        answers: list[str | NoAnswer] = [NoAnswer("longer than the context")] * len(prompts)
        for i, output in zip(fitting, outputs, strict=True):
            answers[i] = output.outputs[0].text
        return answers


def chat_text(tokenizer, prompt: str) -> str:
    """One user turn in the model's chat template; the bare prompt for a model without one."""
    if not tokenizer.chat_template:
        return prompt
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def prompt_sha(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def missing_model(name: str, error: Exception) -> str:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"cannot load the model {name!r}. Give a folder that holds it, or the name of one on the "
        f"Hugging Face Hub (hf auth login for gated ones). The loader said: {cause}"
    )


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
        except OSError as error:
            raise PipelineError(f"--prompt {path}: cannot be read ({error.strerror})", 2) from error
    if text.count("{}") != 1:
        raise PipelineError(
            f"--prompt {path}: must hold {{}} once, where the caption goes (found {text.count('{}')})", 2
        )
    return text.strip()


def add_model_arguments(parser, prompt: str, *, rules: bool = False) -> None:
    group = parser.add_argument_group("language model")
    names = BACKENDS if rules else BACKENDS[:-1]
    group.add_argument("--backend", choices=names, default="vllm", help="default vllm")
    group.add_argument("--llm", default=DEFAULT_MODEL, metavar="MODEL", help=f"default {DEFAULT_MODEL}")
    group.add_argument(
        "--prompt", metavar="FILE", help=f"prompt with one {{}} for the caption (default {prompt})"
    )
    group.add_argument("--temperature", type=float, default=0.7, help="default 0.7")
    group.add_argument("--top-p", type=float, default=0.95, help="default 0.95")
    group.add_argument("--max-tokens", type=int, default=96, help="longest answer (default 96)")
    group.add_argument(
        "--llm-batch", type=int, default=32, help="captions per batch, transformers (default 32)"
    )
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="vllm: encode the shared prompt each time"
    )
    group.add_argument("--max-model-len", type=int, default=2048, help="vllm: context length (default 2048)")
    group.add_argument(
        "--gpu-memory", type=float, default=0.9, help="vllm: share of GPU memory (default 0.9)"
    )
    group.add_argument("--tensor-parallel", type=int, default=1, help="vllm: GPUs per worker (default 1)")
    group.add_argument(
        "--url", default="http://127.0.0.1:8000/v1", help="openai: the server (default %(default)s)"
    )
    group.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="openai: variable of the key (default %(default)s)"
    )
    group.add_argument("--concurrency", type=int, default=64, help="openai: requests in flight (default 64)")
    group.add_argument(
        "--patience", type=float, default=120, help="openai: seconds to keep trying (default 120)"
    )


def make_model(args, default_prompt: str):
    """The caption model that the arguments name, not yet loaded."""
    if args.backend == "rules":
        from open_clip_triplet.tripletdata.backends.rules import Rules

        return Rules(seed=args.seed)
    common = dict(
        model=args.llm,
        prompt=read_prompt(args.prompt, default_prompt),
        seed=args.seed,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
    )
    if args.backend == "transformers":
        return Transformers(**common, batch_size=args.llm_batch)
    if args.backend == "vllm":
        return Vllm(
            **common,
            prefix_caching=not args.no_prefix_caching,
            max_model_len=args.max_model_len,
            gpu_memory=args.gpu_memory,
            tensor_parallel=args.tensor_parallel,
        )
    from open_clip_triplet.tripletdata.backends.server import Server

    return Server(
        **common,
        url=args.url,
        api_key_env=args.api_key_env,
        concurrency=args.concurrency,
        patience=args.patience,
    )
