"""Model card (README.md with a YAML header) of a checkpoint, filled from its run and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import yaml

from open_clip_triplet.errors import UsageError
from open_clip_triplet.evaluation.checkpoints.params import training_options
from open_clip_triplet.evaluation.checkpoints.spec import CheckpointSpec, locate

PAPER = "https://arxiv.org/abs/2411.02545"
#: options of a run that say what it was trained on and how, in the card's order
_OPTIONS = (
    "loss", "train_data", "neg_captions", "model", "pretrained", "batch_size", "world_size", "accum_freq",
    "total_steps", "epochs", "lr", "wd", "beta1", "beta2", "eps", "warmup", "lr_scheduler", "precision", "seed",
)
_CITATION = """## Citation

```bibtex
@inproceedings{patel2024tripletclip,
  title={TripletCLIP: Improving Compositional Reasoning of CLIP via Synthetic Vision-Language Negatives},
  author={Patel, Maitreya and Kusumba, Abhiram and Cheng, Sheng and Kim, Changhoon and Gokhale, Tejas and \
Baral, Chitta and Yang, Yezhou},
  booktitle={NeurIPS},
  year={2024}
}
```
"""
_USAGE = {
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("{where}")
tokenizer = open_clip.get_tokenizer("{where}")
""",
    "transformers": """from transformers import {cls}, AutoProcessor

model = {cls}.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
""",
}


def model_card(
    spec: CheckpointSpec, to: str, *, repo: str = "", results: Sequence[str] = (), license: str = "other"
) -> Callable[[dict], str]:
    """A function from OpenCLIP's model config to the card's text.

    Args:
        repo: the hub's name of the repository, or '' for a local folder.
        results: result files or folders of ``triplet-evaluate run``; those of this checkpoint are printed.
        license: as the hub's header names it; the data's terms decide it, so there is no default for you.
    """
    path = locate(spec.pretrained)
    trained = training_options(path) if path else {}
    rows = _rows(spec, results)

    def text(config: dict) -> str:
        name = repo.rpartition("/")[2] or spec.label
        header = yaml.safe_dump(_header(name, to, trained, rows, license), sort_keys=False, allow_unicode=True)
        return "\n".join(
            [f"---\n{header}---\n", f"# {name}\n", _about(config, trained), _usage(name, repo, to, config),
             _training(trained), _results(rows), _CITATION]
        )

    return text


def _header(name: str, to: str, trained: dict, rows: list[dict], license: str) -> dict:
    method = trained.get("loss", "clip")
    library = "transformers" if to == "transformers" else "open_clip"
    header: dict = {
        "license": license, "library_name": library, "pipeline_tag": "zero-shot-image-classification",
        "tags": list(dict.fromkeys(["clip", "open_clip", "compositionality", method])),
    }
    if rows:
        results = [
            {
                "task": {"type": "zero-shot-image-classification", "name": row["metric"]},
                "dataset": {"name": row["title"], "type": row["benchmark"]},
                "metrics": [{"type": "accuracy", "name": f"{row['metric']} (%)", "value": round(row["value"], 2)}],
            }
            for row in rows
        ]
        header["model-index"] = [{"name": name, "results": results}]
    return header


def _about(config: dict, trained: dict) -> str:
    vision, text = config["vision_cfg"], config["text_cfg"]
    tower = vision.get("timm_model_name") or (
        f"ViT/{vision['patch_size']}, {vision.get('layers', 12)} layers of width {vision.get('width', 768)}"
        if isinstance(vision.get("layers", 12), int)
        else "ResNet"
    )
    writer = text.get("hf_model_name") or f"{text.get('layers', 12)} layers of width {text.get('width', 512)}"
    method = f" trained with `--loss {trained['loss']}` ([TripletCLIP]({PAPER}) and its baselines)" if (
        "loss" in trained) else ""
    return (
        f"A CLIP model{method}. Image tower: {tower}, {vision.get('image_size', 224)} pixels. Text tower: "
        f"{writer}, {text.get('context_length', 77)} tokens. Embeddings have {config['embed_dim']} values.\n"
    )


def _usage(name: str, repo: str, to: str, config: dict) -> str:
    if to not in _USAGE:
        return ""
    where = f"hf-hub:{repo}" if repo else f"local-dir:{name}"
    cls = "SiglipModel" if config.get("custom_text") and "timm_model_name" in config["vision_cfg"] else "CLIPModel"
    return f"## Usage\n\n```python\n{_USAGE[to].format(where=where, name=repo or name, cls=cls)}```\n"


def _training(trained: dict) -> str:
    rows = [(name, trained[name]) for name in _OPTIONS if trained.get(name) not in (None, "", "None")]
    if not rows:
        return "## Training\n\nNot known: the checkpoint came without its run's `params.txt`.\n"
    lines = [f"| `--{name.replace('_', '-')}` | `{value}` |" for name, value in rows]
    return "\n".join(["## Training\n", "| option | value |", "|---|---|", *lines, ""])


def _rows(spec: CheckpointSpec, results: Sequence[str]) -> list[dict]:
    """One row per benchmark whose result is this checkpoint's, in %."""
    if not results:
        return []
    from open_clip_triplet.evaluation.result_files import read_results

    rows, read = [], read_results(results)
    names = dict.fromkeys(result["checkpoint"]["name"] for result in read)
    if spec.label not in names:
        raise UsageError(
            f"--results: none of {spec.label!r}; there are: {', '.join(names)}. Name the checkpoint as they do: "
            "--pretrained NAME=PATH"
        )
    for result in read:
        if result["checkpoint"]["name"] != spec.label:
            continue
        overall = result["summary"].get("overall")
        found = [("overall", overall, result)] if overall else [
            (f"{subset} {metric}", value, content)
            for subset, content in result["subsets"].items() if content["items"]
            for metric, value in content["metrics"].items()
        ]
        for metric, value, scored in found:
            if not {"value", "low", "high"} <= value.keys() or value["value"] is None:
                continue
            whole = result["complete"] and scored["complete"]
            rows.append({
                "benchmark": result["benchmark"], "metric": metric, "items": scored["items"],
                "title": result["title"] + ("" if whole else " (partial)"),
                **{key: 100 * value[key] for key in ("value", "low", "high") if value[key] is not None},
            })
    return rows


def _results(rows: list[dict]) -> str:
    if not rows:
        return ""
    lines = [
        f"| {row['title']} | {row['metric']} | {row['value']:.2f} | "
        + (f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row and "high" in row else "")
        + f" | {row['items']} |"
        for row in rows
    ]
    return "\n".join(
        ["## Results\n", "In %, by `triplet-evaluate run`. A tie counts as wrong.\n",
         "| benchmark | metric | value | 95% interval | items |", "|---|---|---|---|---|", *lines, ""]
    )
