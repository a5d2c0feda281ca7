"""Language models through Hugging Face transformers, on one device, in batches of similar length.

Every answer has its own seed, so that it does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from open_clip_triplet.tripletdata.backends.language import (
    LanguageModel,
    NoAnswer,
    Progress,
    Unfinished,
    chat_text,
    loading,
    unreported,
)
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, needs

#: new tokens that are decoded to look for a stop string at their end
STOP_WINDOW = 12


@dataclass
class Transformers(LanguageModel):
    """A causal language model of transformers."""

    batch_size: int = field(default=32, metadata=RUNTIME_ONLY)

    def open(self, device: str) -> None:
        with needs("--backend transformers needs transformers"):
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        logging.disable_progress_bar()
        common = {"revision": self.revision} if self.revision else {}
        with loading(self.model):
            self._tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left", **common)
            self._model = AutoModelForCausalLM.from_pretrained(
                self.model,
                dtype=torch.bfloat16 if device == "cuda" else torch.float32,
                use_safetensors=True,
                **common,
            )
        self._model.to(device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._turn = threading.Lock()  # shards in flight take turns, a batch each

    def complete(
        self, prompts: list[str], seeds: list[int], progress: Progress = unreported
    ) -> list[str | NoAnswer]:
        texts = [chat_text(self._tokenizer, prompt, self.template_kwargs) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        answers: list[str | NoAnswer] = [""] * len(texts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            with self._turn:
                found = self._generate([texts[i] for i in rows], [seeds[i] for i in rows])
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
            progress(min(1.0, (start + self.batch_size) / len(order)))
        return answers

    def _generate(self, texts: list[str], seeds: list[int]) -> list[str]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        tokens = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = tokens.to(self._model.device)
        width = tokens["input_ids"].shape[1]
        ends = self._model.generation_config.eos_token_id
        # Greedy search over seeded noise is sampling with one generator per row; the model's own
        # sampling settings must not come on top.
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=ends,
        )
        sampler = LogitsProcessorList([RowSampler(seeds, self.temperature, self.top_p)])
        stops = StoppingCriteriaList([StopStrings(self._tokenizer, self.stop, width)] if self.stop else [])
        with torch.inference_mode():
            output = self._model.generate(
                **tokens, generation_config=config, logits_processor=sampler, stopping_criteria=stops
            )
        output = output[:, width:]
        ended = torch.isin(output, torch.tensor(ends, device=output.device).reshape(-1)).any(1).tolist()
        answers = self._tokenizer.batch_decode(output, skip_special_tokens=True)
        return [self._answer(text, whole) for text, whole in zip(answers, ended)]

    def _answer(self, text: str, whole: bool) -> str:
        cuts = [text.index(stop) for stop in self.stop if stop in text]
        if cuts:
            return text[: min(cuts)]
        return text if whole else Unfinished(text)


class StopStrings:
    """A stopping criterion that ends each row once its last new tokens hold a stop string."""

    def __init__(self, tokenizer, stop: tuple[str, ...], width: int):
        self.tokenizer, self.stop, self.width = tokenizer, stop, width

    def __call__(self, input_ids, scores, **kwargs):
        """input_ids: [rows, length] -> bool [rows]."""
        import torch

        tails = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -STOP_WINDOW:])
        stopped = [any(stop in tail for stop in self.stop) for tail in tails]
        return torch.tensor(stopped, device=input_ids.device)


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
