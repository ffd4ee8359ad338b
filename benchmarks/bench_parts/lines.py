"""What is timed: one line per part of the method, ours beside its plain formulation, at the paper's sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokencutseg.bench import plain
from tokencutseg.bench.measure import Call
from torch import Tensor

from tokencutseg.config import Config, configure
from tokencutseg.data import synthetic
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.transforms import Augmentation
from tokencutseg.evaluation.per_image import score
from tokencutseg.models.deepcut import to_grid
from tokencutseg.models.losses import discriminator_loss, generator_loss, masked_token_loss, segmentation_loss
from tokencutseg.models.tokencutseg import TokenCutSeg, upsample
from tokencutseg.models.vqgan import VQGAN, Discriminator, EMAQuantizer
from tokencutseg.training.batches import TrainLoader


@dataclass(frozen=True)
class Line:
    """One comparison. `plain` is None where the part has no other formulation, and the ratio then says nothing."""

    name: str
    ours: Call
    plain: Call | None
    against: str
    images: int | None = None
    """Images per call, where images per second are the natural unit."""
    flops: int | None = None
    """Floating-point operations of one call of ours, where its share of the machine's rate is of interest."""


def paper_config() -> Config:
    """The paper's sizes, computed as released: 224 px, 3136 tokens, width 256, 12 layers, 1024 codes."""
    return configure("full", "released")


def lines(config: Config, device: str) -> Iterator[Line]:
    """The lines in order; each is built when it is its turn, so that only one is in memory."""
    for make in (graph_lines, transformer_lines, tokenizer_lines, whole_lines):
        yield from make(config, device)
    if device == "cpu":
        yield from data_lines(config)


def graph_lines(config: Config, device: str) -> Iterator[Line]:
    """The graph module alone on random features, forward and with its backward pass."""
    head = _model(config, device).head.eval()
    side, width = config.grid_size, config.masked_gpt.d_model
    features = torch.randn(1, side**2, width, generator=torch.Generator().manual_seed(0)).to(device)

    def ours(x: Tensor) -> Tensor:
        S = head(x, (side, side)).softmax(-1)
        return head.loss(S, x, (side, side)) + S.sum()

    def dense(x: Tensor) -> Tensor:
        S, loss = plain.deepcut(head, x, (side, side))
        return loss + S.sum()

    yield Line(
        "graph module, forward",
        _without_gradients(lambda: ours(features)),
        _without_gradients(lambda: dense(features)),
        "dense T×T adjacency",
    )
    yield Line(
        "graph module, forward + backward",
        lambda: _backward(head, lambda: ours(features)),
        lambda: _backward(head, lambda: dense(features)),
        "dense T×T adjacency",
    )
    learned = features.clone().requires_grad_()
    yield Line(
        "graph module, also to its features",
        lambda: _backward(head, lambda: ours(learned)),
        lambda: _backward(head, lambda: dense(learned)),
        "dense T×T adjacency",
    )


def transformer_lines(config: Config, device: str) -> Iterator[Line]:
    """The transformer alone, then with the graph module: a training step at batch 1."""
    model = _model(config, device)
    gpt, side = model.masked_gpt, config.grid_size
    tokens = torch.randint(config.vqgan.codebook_size, (1, side**2), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    forward = transformer_flops(config)
    gpt.eval()
    yield Line(
        "transformer, forward",
        _without_gradients(lambda: gpt(tokens)),
        _without_gradients(lambda: plain.transformer(gpt, tokens)),
        "attention as matrices",
        1,
        forward,
    )

    model.train()
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)).to(device) < 0.15
    target = torch.randint(2, (1, config.data.image_size, config.data.image_size), device=device)

    def loss(features: Tensor, S: Tensor, cut: Tensor) -> Tensor:
        probabilities = upsample(to_grid(S, (side, side)), target.shape[-2:])
        supervised = segmentation_loss(probabilities, probabilities, target, "probabilities", True, 0.5)
        return sum(supervised) + masked_token_loss(gpt.lm_head(features), tokens, mask) + 0.2 * cut

    def ours() -> Tensor:
        features = gpt(tokens, mask=mask)
        S = model.head(features, (side, side)).softmax(-1)
        return loss(features, S, model.head.loss(S, features, (side, side)))

    def dense() -> Tensor:
        features = plain.transformer(gpt, tokens.masked_fill(mask, gpt.mask_id))
        return loss(features, *plain.deepcut(model.head, features, (side, side)))

    yield Line(
        "transformer + graph, training step",
        *_steps(model, ours, dense),
        "attention as matrices, dense adjacency",
        1,
        3 * forward,
    )


def tokenizer_lines(config: Config, device: str) -> Iterator[Line]:
    """The tokenizer: encoding, decoding, a training step without the perceptual network, and the quantizer alone."""
    vqgan, critic = VQGAN(config.vqgan).to(device).eval(), Discriminator(config.vqgan.disc_channels).to(device)
    S, batch = config.data.image_size, 1
    images = torch.rand(batch, 3, S, S, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        tokens = vqgan.tokenize(images)
    encode, decode = tokenizer_flops(config)
    yield Line("tokenizer, encode", lambda: vqgan.tokenize(images), None, "", batch, encode)
    yield Line("tokenizer, decode", lambda: vqgan.detokenize(tokens), None, "", batch, decode)

    vqgan.train()

    def step(quantize: Callable) -> Tensor:
        x = vqgan.normalise(images)
        quantized = quantize(vqgan.encode(x).latents)
        back = vqgan.decode(quantized.vectors)
        return (
            (x - back).abs().mean()
            + quantized.commitment_loss
            + generator_loss(critic(back), False)
            + discriminator_loss(critic(x), critic(back.detach()), False)
        )

    yield Line(
        "tokenizer, training step",
        *_steps(vqgan, lambda: step(vqgan.quantize), lambda: step(lambda z: plain.quantize(vqgan.quantize, z))),
        "one-hot quantizer",
        batch,
        3 * (encode + decode),
    )
    yield from quantizer_lines(config, device)


def quantizer_lines(config: Config, device: str) -> Iterator[Line]:
    """A training step of the codebook on the tokens of four images, against vector-quantize-pytorch where it is."""
    side, D = config.grid_size, config.vqgan.code_dim
    z = torch.randn(4, D, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    ours = EMAQuantizer(config.vqgan.codebook_size, D, start="uniform", restart_dead=False).to(device).train()
    yield Line("quantizer, training step", lambda: ours(z), lambda: plain.quantize(ours, z), "one-hot matrices", 4)
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:  # a development dependency
        return
    theirs = (
        VectorQuantize(
            dim=D,
            codebook_size=config.vqgan.codebook_size,
            decay=0.99,
            commitment_weight=0.25,
            rotation_trick=False,
            threshold_ema_dead_code=0,
        )
        .to(device)
        .train()
    )
    flat = z.flatten(2).transpose(1, 2).contiguous()
    yield Line("quantizer, training step", lambda: ours(z), lambda: theirs(flat), "vector-quantize-pytorch", 4)


def whole_lines(config: Config, device: str) -> Iterator[Line]:
    """From pixels: a training step of the segmenter, and image to mask, both at batch 1."""
    model = _model(config, device)
    S = config.data.image_size
    images = torch.rand(1, 3, S, S, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.randint(2, (1, S, S), device=device)
    side = config.grid_size
    (encode, _), transformer = tokenizer_flops(config), transformer_flops(config)

    def ours() -> Tensor:
        out = model(images)
        return (
            sum(segmentation_loss(out.logits, out.probabilities, target, "probabilities", True, 0.5))
            + 0.2 * out.deepcut_loss
        )

    def dense() -> Tensor:
        tokens, _ = model.encode_to_tokens(images)
        S_, cut = plain.deepcut(model.head, plain.transformer(model.masked_gpt, tokens.flatten(1)), (side, side))
        p = upsample(to_grid(S_, (side, side)), (S, S))
        return sum(segmentation_loss(p, p, target, "probabilities", True, 0.5)) + 0.2 * cut

    model.train()
    yield Line(
        "segmenter, training step",
        *_steps(model, ours, dense),
        "attention as matrices, dense adjacency",
        1,
        encode + 3 * transformer,
    )
    model.eval()
    yield Line(
        "image → mask",
        _without_gradients(lambda: model(images).mask),
        _without_gradients(lambda: plain.predict(model, images)),
        "attention as matrices, dense adjacency",
        1,
        encode + transformer,
    )


def data_lines(config: Config) -> Iterator[Line]:
    """TrainLoader with the full augmentation from pixels in memory, and scores from masks."""
    n, S = 64, config.data.image_size
    images = synthetic_images(n, S)
    augment, generator = Augmentation("released"), torch.Generator().manual_seed(0)

    def epoch(batch_size: int) -> None:
        for batch in TrainLoader(images, batch_size, None, 0):
            augment(batch["images"], batch["masks"], generator)

    yield Line("data pipeline with augmentation", lambda: epoch(16), lambda: epoch(1), "image by image", n)
    generator = np.random.default_rng(0)
    target = np.repeat(images.masks.numpy(), 4, 0)
    prediction = target ^ (generator.random(target.shape) < 0.05)
    ids = [str(i) for i in range(len(target))]
    yield Line(
        "scoring",
        lambda: score(prediction, target, ids, boundary=False)["iou"].mean(),
        lambda: plain.count_overlap(prediction, target),
        "torchmetrics, image by image",
        len(target),
    )


# operations ---------------------------------------------------------------------------------------------------------


def transformer_flops(config: Config) -> int:
    """Matrix products of one forward pass: 12·C² per token and layer, and two T×T products of width C."""
    T, C, layers = config.grid_size**2, config.masked_gpt.d_model, config.masked_gpt.n_layer
    return layers * (2 * T * 12 * C**2 + 4 * T**2 * C)


def tokenizer_flops(config: Config) -> tuple[int, int]:
    """Of encoding (with the search for the nearest code) and of decoding one image, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vqgan = VQGAN(config.vqgan).eval()
        images = torch.empty(1, 3, config.data.image_size, config.data.image_size)
        counts = []
        latents = vqgan.encode(images).latents
        for call in (lambda: vqgan.encode(images), lambda: vqgan.decode(latents)):
            with FlopCounterMode(display=False) as counter:
                call()
            counts.append(counter.get_total_flops())
    nearest = 2 * config.grid_size**2 * config.vqgan.codebook_size * config.vqgan.code_dim
    return counts[0] + nearest, counts[1]


# helpers ------------------------------------------------------------------------------------------------------------


def synthetic_images(count: int, size: int) -> ImageSet:
    """Made-up lesions in memory, with their masks."""
    pixels, masks = synthetic.generate("site_a", count, size, 0)
    return ImageSet(
        "bench",
        "train",
        [str(i) for i in range(count)],
        torch.from_numpy(pixels),
        torch.from_numpy(masks),
        None,
        [(size, size)] * count,
    )


def _model(config: Config, device: str) -> TokenCutSeg:
    torch.manual_seed(0)
    return TokenCutSeg(config).to(device)


def _without_gradients(call: Call) -> Call:
    def inside() -> Tensor:
        with torch.no_grad():
            return call()

    return inside


def _backward(module: torch.nn.Module, loss: Call) -> None:
    module.zero_grad(set_to_none=True)
    loss().backward()


def _steps(module: torch.nn.Module, *losses: Call) -> Iterator[Call]:
    """A whole optimizer step for each loss; the parameters are shared, so every formulation takes the same ones."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-6)

    def step(loss: Call) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return (lambda loss=loss: step(loss) for loss in losses)


def at_side(config: Config, side: int) -> Config:
    """The same model for an image with `side` × `side` tokens."""
    return config.override({"data.image_size": side * 2**config.vqgan.n_stages})
