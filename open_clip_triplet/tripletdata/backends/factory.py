"""The language model that the command line names, and the options that describe it."""

from __future__ import annotations

import argparse
import json

from open_clip_triplet.tripletdata.backends.language import STOP, read_prompt
from open_clip_triplet.tripletdata.run import options

DEFAULT_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
BACKENDS = ("vllm", "openai", "transformers", "rules")


def json_object(text: str) -> dict:
    """An option's value that must be a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


def add_model_arguments(parser, prompt: str, *, rules: bool = False) -> None:
    group = parser.add_argument_group("language model")
    names = BACKENDS if rules else BACKENDS[:-1]
    group.add_argument("--backend", choices=names, default="vllm", help="default vllm")
    group.add_argument("--llm", default=DEFAULT_MODEL, metavar="MODEL", help=f"default {DEFAULT_MODEL}")
    group.add_argument("--revision", default="", help="the model's revision on the Hugging Face Hub")
    group.add_argument(
        "--prompt", metavar="FILE", help=f"prompt with one {{}} for the caption (default {prompt})"
    )
    group.add_argument("--temperature", type=float, default=0.7, help="default 0.7")
    group.add_argument("--top-p", type=options.share, default=0.95, help="default 0.95")
    group.add_argument("--max-tokens", type=options.positive, default=96, help="longest answer (default 96)")
    group.add_argument(
        "--stop", nargs="*", default=list(STOP), metavar="TEXT", help="strings that end an answer (default '\\nInput:')"
    )
    group.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""for the chat template, e.g. '{"enable_thinking": false}'""",
    )
    group.add_argument(
        "--reproducible",
        action="store_true",
        help="vllm, openai: a seed per request (transformers and rules always are)",
    )
    _add_backend_arguments(group)


def _add_backend_arguments(group) -> None:
    group.add_argument(
        "--llm-batch", type=options.positive, default=32, help="captions per batch, transformers (default 32)"
    )
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="vllm: encode the shared prompt each time"
    )
    group.add_argument(
        "--max-model-len", type=options.positive, default=2048, help="vllm: context length (default 2048)"
    )
    group.add_argument(
        "--gpu-memory", type=options.share, default=0.9, help="vllm: share of GPU memory (default 0.9)"
    )
    group.add_argument(
        "--tensor-parallel", type=options.positive, default=1, help="vllm: GPUs per worker (default 1)"
    )
    group.add_argument(
        "--url", default="http://127.0.0.1:8000/v1", help="openai: the server (default %(default)s)"
    )
    group.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="openai: variable of the key (default %(default)s)"
    )
    group.add_argument(
        "--concurrency", type=options.positive, default=64, help="openai: requests in flight (default 64)"
    )
    group.add_argument(
        "--patience", type=float, default=120, help="openai: seconds to keep trying (default 120)"
    )
    group.add_argument(
        "--extra-body",
        type=json_object,
        default={},
        metavar="JSON",
        help="""openai: more of the request, e.g. '{"repetition_penalty": 1.1}'""",
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
        revision=args.revision,
        template_kwargs=args.chat_template_kwargs,
        stop=tuple(args.stop),
        reproducible=args.reproducible,
    )
    if args.backend == "transformers":
        from open_clip_triplet.tripletdata.backends.transformers import Transformers

        return Transformers(**{**common, "reproducible": True}, batch_size=args.llm_batch)
    if args.backend == "vllm":
        from open_clip_triplet.tripletdata.backends.vllm import Vllm

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
        extra_body=args.extra_body,
    )
