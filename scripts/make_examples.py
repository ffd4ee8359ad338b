"""Write docs/examples.png: eight ISIC 2017 test images with the expert's outline and the packaged model's.

    python scripts/make_examples.py

The images are those of tests/fixtures/isic, drawn at random; they are shown from the highest IoU to the lowest.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tokencutseg
from tokencutseg.evaluation.per_image import score
from tokencutseg.plots import segmentation, style

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "tests/fixtures/isic"


def examples() -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The ids, images uint8 (8, 3, 128, 128) and masks uint8 (8, 128, 128) of {0, 1}."""
    files = sorted(EXAMPLES.glob("ISIC_???????.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    masks = np.stack([np.asarray(Image.open(file.with_stem(f"{file.stem}_segmentation"))) > 0 for file in files])
    return [file.stem for file in files], torch.from_numpy(images.copy()), torch.from_numpy(masks.astype(np.uint8))


def main() -> None:
    ids, images, masks = examples()
    predicted = tokencutseg.load().predict_probabilities(images.float() / 255).argmax(1)
    scores = score(predicted, masks, ids, boundary=False)["iou"].to_numpy()
    order = np.argsort(-scores, kind="stable")
    figure, axes = style.make_panels(8, 4, 1.85)
    titles = [f"IoU {scores[i]:.2f}" for i in order]
    segmentation.outlines(figure, axes, images[order], masks[order], predicted[order], titles)
    figure.savefig(ROOT / "docs/examples.png", dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
