"""Models that answer yes-or-no questions about images, through transformers.

Two kinds load: classifiers over a list of answers (ViLT, BLIP's question answering heads do not), and
vision-language models that chat (LLaVA, Qwen-VL, SmolVLM and others of ``AutoModelForImageTextToText``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from open_clip_triplet.tripletdata.backends.language import loading
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, needs, settings

#: tokens of an answer to "yes or no?"
MAX_TOKENS = 8


@dataclass
class VisualQuestions:
    """The paper's is ViLT."""

    model: str = "dandelin/vilt-b32-finetuned-vqa"
    revision: str = ""
    batch_size: int = field(default=64, metadata=RUNTIME_ONLY)

    def config(self) -> dict:
        return settings(self)

    def open(self, device: str) -> None:
        with needs("question answering needs transformers"):
            import torch
            from transformers import (
                AutoConfig,
                AutoModelForImageTextToText,
                AutoProcessor,
                ViltForQuestionAnswering,
            )
            from transformers.utils import logging
        logging.disable_progress_bar()
        common = {"revision": self.revision} if self.revision else {}
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with loading(self.model):
            classifier = AutoConfig.from_pretrained(self.model, **common).model_type == "vilt"
            loader = ViltForQuestionAnswering if classifier else AutoModelForImageTextToText
            self._processor = AutoProcessor.from_pretrained(self.model, **common)
            self._model = loader.from_pretrained(self.model, use_safetensors=True, dtype=dtype, **common)
        self._model.to(device).eval()
        self._answer = self._classify if classifier else self._generate
        if not classifier:
            self._processor.tokenizer.padding_side = "left"

    def answer(self, pairs: list[tuple[Any, str]]) -> list[str]:
        """``yes``, ``no`` or ``""`` for each (PIL image, question)."""
        answers: list[str] = []
        for start in range(0, len(pairs), self.batch_size):
            images, questions = zip(*pairs[start : start + self.batch_size])
            answers += self._answer(list(images), list(questions))
        return answers

    def _classify(self, images: list, questions: list[str]) -> list[str]:
        """The more likely of the classes ``yes`` and ``no``."""
        import torch

        inputs = self._processor(images, questions, padding=True, truncation=True, return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            logits = self._model(**inputs).logits
        columns = {name.lower(): index for index, name in self._model.config.id2label.items()}
        more_yes = logits[:, columns["yes"]] > logits[:, columns["no"]]
        return ["yes" if yes else "no" for yes in more_yes.tolist()]

    def _generate(self, images: list, questions: list[str]) -> list[str]:
        import torch

        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"{q} Answer yes or no."}]}]
            for q in questions
        ]
        texts = [self._processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        inputs = self._processor(
            text=texts, images=[[image] for image in images], padding=True, return_tensors="pt"
        )
        inputs = inputs.to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        texts = self._processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [yes_or_no(text) for text in texts]


def yes_or_no(text: str) -> str:
    """The first ``yes`` or ``no`` of an answer; ``""`` where it is neither.

    >>> yes_or_no("Yes, there is."), yes_or_no("There are none.")
    ('yes', '')
    """
    match = re.search(r"\b(yes|no)\b", text, re.I)
    return match[1].lower() if match else ""
