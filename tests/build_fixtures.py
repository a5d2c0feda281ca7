"""Tiny random weights for the tests of tripletdata: an SDXL-type pipeline and a chat model, both real."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from open_clip_triplet.shards import ShardWriter
from open_clip_triplet.tripletdata.run.stage import RUNTIME_ONLY, Stage

CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def clip_tokenizer(folder: Path):
    """transformers' CLIP tokenizer over OpenCLIP's bundled byte-pair table."""
    import open_clip.tokenizer as bundled
    from transformers import CLIPTokenizer

    merges = gzip.open(bundled.default_bpe()).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bundled.bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters]
    words += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


def tiny_sdxl(folder: Path) -> str:
    """Save a random SDXL pipeline (64 px, about 27 MB, 0.1 s per image); returns its folder."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "bpe")
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=64,
        projection_class_embeddings_input_dim=80,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=128,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
    )
    pipe.save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def tiny_pix2pix(folder: Path) -> str:
    """Save a random InstructPix2Pix pipeline, which edits by instruction; returns its folder."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    blocks = dict(block_out_channels=(32, 64), layers_per_block=1)
    text = dict(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2)
    ids = dict(bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL(
            **{**blocks, "layers_per_block": 1},
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, **ids)),
        tokenizer=clip_tokenizer(folder / "bpe"),
        unet=UNet2DConditionModel(
            **blocks,
            in_channels=8,  # the noise beside the image to edit
            out_channels=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        ),
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def tiny_flux2(folder: Path) -> str:
    """Save a random FLUX.2-klein pipeline, which edits by instruction, one image a call; returns its folder."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = [*bytes_to_unicode().values(), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=28,
        num_attention_heads=2, num_key_value_heads=2, head_dim=4,
    )
    vae = AutoencoderKLFlux2(
        sample_size=32, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False,
    )
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer, transformer=transformer, is_distilled=True,
    )
    pipe.save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def tiny_chat(folder: Path) -> str:
    """Save a random two-layer Llama with a chat template; returns its folder. Its answers are noise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=49408,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def bert_tokenizer(folder: Path):
    """A BERT tokenizer of letters and a few words."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*words, "dog", "cat", "red", "blue", "is", "there"]))
    return BertTokenizer(str(folder / "vocab.txt"))


def tiny_clip(folder: Path) -> str:
    """Save a random OpenCLIP model in a folder, and return the name by which OpenCLIP loads it."""
    import open_clip
    import torch

    from conftest import TINY_MODEL

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny-random.json").write_text(json.dumps(TINY_MODEL))
    open_clip.add_model_config(folder / "tiny-random.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-random").state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


def tiny_nli(folder: Path) -> str:
    """Save a random cross-encoder with the labels of natural language inference; returns its folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = bert_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3, id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
        label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_vilt(folder: Path) -> str:
    """Save a random ViLT that answers yes, no or maybe; returns its folder."""
    import torch
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(0)
    tokenizer = bert_tokenizer(folder)
    labels = {0: "maybe", 1: "no", 2: "yes"}
    config = ViltConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, image_size=32, patch_size=16, num_labels=3, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    ViltForQuestionAnswering(config).save_pretrained(folder)
    ViltProcessor(ViltImageProcessor(size={"shortest_edge": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_llava(folder: Path) -> str:
    """Save a random LLaVA, a vision-language model that chats; returns its folder. Its answers are noise."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer,
        patch_size=16, vision_feature_select_strategy="default", chat_template=template, image_token="<image>",
        num_additional_image_tokens=1,
    )
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(**size, vocab_size=len(tokenizer), eos_token_id=49407, pad_token_id=49407),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@dataclass
class Shout(Stage):
    """A stage without a model: negative captions in capitals. ``poison`` kills the worker that meets it.

    Args:
        poison: a text; the process that reads it is killed by SIGKILL, once if ``once`` is a file path.
        log: a file that gets a line per task worked.
    """

    name: ClassVar[str] = "shout"
    ending: str = "!"
    poison: str = field(default="", metadata=RUNTIME_ONLY)
    once: str = field(default="", metadata=RUNTIME_ONLY)
    log: str = field(default="", metadata=RUNTIME_ONLY)

    def process(self, task, stats):
        if self.log:
            with open(self.log, "a") as log:
                log.write(task.name + "\n")
        for sample in task.samples(stats):
            if self.poison and self.poison in sample.text:
                self._die()
            if sample.text.startswith("drop"):
                stats.drop("asked to")
                continue
            sample.neg_text = sample.text.upper() + self.ending
            yield sample

    def _die(self):
        if not self.once or not os.path.exists(self.once):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Meeting(Shout):
    """Tasks that wait for each other: they only end where two of them are worked at once."""

    folder: str = field(default="", metadata=RUNTIME_ONLY)

    @property
    def in_flight(self) -> int:
        return 2

    def process(self, task, stats):
        (Path(self.folder) / task.name).touch()
        deadline = time.monotonic() + 20
        while len(list(Path(self.folder).iterdir())) < 2:
            assert time.monotonic() < deadline, "worked alone"
            time.sleep(0.01)
        yield from super().process(task, stats)


def plain_shards(folder: Path, texts: list[list[str]], *, size=(40, 48)) -> str:
    """Image-caption shards as img2dataset writes them: keys start again in every shard."""
    for number, captions in enumerate(texts):
        with ShardWriter(folder / f"{number:05d}.tar") as writer:
            for key, text in enumerate(captions):
                from conftest import picture

                image = picture(100 * number + key, size=size)
                writer.write({"__key__": f"{key:09d}", "jpg": image, "txt": text, "json": {"url": "x"}})
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, by relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    import sys

    KINDS = {"sdxl": tiny_sdxl, "clip": tiny_clip, "nli": tiny_nli}
    print(KINDS[sys.argv[2] if len(sys.argv) > 2 else "sdxl"](Path(sys.argv[1])))
