"""A random model and a few images, for questions and panels."""

import pytest
import torch

from tokencutseg.config import configure
from tokencutseg.data.source import open_source
from tokencutseg.explore import queries
from tokencutseg.models.tokencutseg import TokenCutSeg


@pytest.fixture(scope="package")
def random_model():
    """A function that makes a tiny segmenter whose codes and up-sampler are random instead of zero."""

    def make(recipe="revised", **overrides):
        torch.manual_seed(0)
        model = TokenCutSeg(configure("tiny", recipe, overrides=overrides))
        with torch.no_grad():
            model.vqgan.quantize.embedding.weight.normal_()
            if model.upsampler is not None:
                for part in (model.upsampler.out, model.upsampler.tokens):
                    for p in part.parameters():
                        p.normal_()
        return model.eval()

    return make


@pytest.fixture(scope="package")
def model(random_model):
    return random_model()


@pytest.fixture(scope="package")
def images():
    return open_source("", configure("tiny")).load("site_a", "test")


@pytest.fixture(scope="package")
def tokenized(model, images):
    return queries.tokenize_set(model.vqgan, images, batch_size=5)
