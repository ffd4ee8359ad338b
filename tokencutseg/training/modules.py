"""The Lightning modules of the three stages, and of the baselines, which share the third one's loop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tokencutseg.config import Config, SegmentationConfig
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.transforms import Augmentation, recolour
from tokencutseg.evaluation.codebook import codebook_summary
from tokencutseg.evaluation.per_image import score
from tokencutseg.evaluation.statistics import summarise
from tokencutseg.models.losses import (
    PerceptualLoss,
    discriminator_loss,
    generator_loss,
    masked_token_loss,
    reconstruction_loss,
    segmentation_loss,
)
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.parallel import batch_mean, own_rows, shared_batch
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN, Discriminator, Encoding
from tokencutseg.training.batches import combine_seeds, load


class StageModule(pl.LightningModule):
    """What all stages share: a seed for every epoch and batch, augmentation on the device, metrics as epoch means."""

    def __init__(self, seed: int, augmentation: str = "released") -> None:
        super().__init__()
        self.seed = seed
        self.steps_per_epoch = 0
        """TrainLoader per epoch, which schedules need; `fit` sets it."""
        self.augment = Augmentation(augmentation)

    def on_train_epoch_start(self) -> None:
        # dropout and code restarts draw from the global state: tie it to the epoch, so that resuming changes nothing
        torch.manual_seed(combine_seeds(self.seed, self.current_epoch))
        self.trainer.train_dataloader.epoch = self.current_epoch

    def generator(self, batch_index: int) -> torch.Generator:
        """A CPU generator for this batch of this epoch."""
        return torch.Generator().manual_seed(combine_seeds(self.seed, 1 + self.current_epoch, batch_index))

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor | None:
        """`learn`, where every process holds its part of the batch."""
        with shared_batch():
            return self.learn(batch, self.generator(batch_index))

    def learn(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor | None:
        """One step on a whole batch: the loss, or None where the optimizers were stepped by hand."""
        raise NotImplementedError

    def note(self, **metrics: Tensor | float) -> None:
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def total_steps(self) -> int:
        return self.trainer.max_epochs * self.steps_per_epoch

    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Cut the norm of the gradients at 1."""
        # in half precision the gradients are still multiplied by the scaler's factor, and so is the limit then
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        nn.utils.clip_grad_norm_(parameters, 1.0 if scaler is None else scaler.get_scale())


class TokenCache:
    """The words of validation batches, which are the same in every epoch while the tokenizer is frozen."""

    LIMIT = 2**30
    """Bytes; batches that would exceed it are encoded anew."""

    def __init__(self, model: TokenCutSeg) -> None:
        self._model, self._known, self._bytes = model, {}, 0

    def __call__(self, batch_index: int, images: Tensor) -> tuple[Tensor, Encoding]:
        """What `words` returns for this batch; without the feature maps where the up-sampler does not read them."""
        if batch_index in self._known:
            return self._known[batch_index]
        tokens, encoding = self._model.encode_to_tokens(images)
        if self._model.upsampler is None or self._model.encoder is not None:
            encoding = encoding._replace(stages=[])
        size = sum(x.nbytes for x in (tokens, encoding.latents, *encoding.stages))
        if self._bytes + size <= self.LIMIT:
            self._known[batch_index], self._bytes = (tokens, encoding), self._bytes + size
        return tokens, encoding


def token_mask_for(model: TokenCutSeg, images: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens of each image to hide, as the model's recipe says: (B, T) bool."""
    return sample_token_mask((len(images), *model.grid(images)), model.config.masked_gpt, generator).to(images.device)


class VQGANModule(StageModule):
    """Stage 1. Two optimizers by hand: the autoencoder, and from `disc_start` on the discriminator.

    `step` counts batches; Lightning's `global_step` would count both optimizers.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.seed)
        self.automatic_optimization = False
        self.config = config.vqgan
        self.vqgan = VQGAN(config.vqgan)
        self.discriminator = Discriminator(config.vqgan.disc_channels)
        self.perceptual = (
            None
            if config.vqgan.perceptual == "none"
            else PerceptualLoss(config.vqgan.perceptual, config.vqgan.perceptual_size)
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._validation_tokens: list[Tensor] = []

    def learn(self, batch: dict[str, Tensor], generator: torch.Generator) -> None:
        c, step = self.config, int(self.step)
        images, _ = self.augment(batch["images"], None, generator)
        x = self.vqgan.normalise(own_rows(images))
        autoencoder, adversary = self.optimizers()
        adversarial = step >= c.disc_start

        reconstruction, quantized = self.vqgan(x)
        l1 = reconstruction_loss(x, reconstruction, c.clamped_reconstruction, c.edge_weighted)
        loss = l1 + c.codebook_weight * quantized.commitment_loss
        if self.perceptual is not None and step % c.perceptual_every == 0:
            perceptual = self.perceptual(x, reconstruction)
            loss = loss + c.perceptual_weight * c.perceptual_every * perceptual
            self.note(train_perceptual=perceptual)
        if adversarial:
            self.discriminator.requires_grad_(False)
            loss = loss + c.disc_weight * generator_loss(self.discriminator(reconstruction), c.clamped_adversary)
            self.discriminator.requires_grad_(True)
        self._descend(autoencoder, loss, self.vqgan)

        if adversarial:
            real, fake = self.discriminator(x), self.discriminator(reconstruction.detach())
            # the released ramp reads Lightning's global step, which counts both optimizers
            critic = discriminator_loss(real, fake, c.clamped_adversary, 2 * (step - c.disc_start))
            self._descend(adversary, critic, self.discriminator)
            self.note(train_discriminator=critic)
        if c.stepping_schedule:
            schedules = self.lr_schedulers()
            for schedule in schedules if adversarial else schedules[:1]:
                schedule.step()
        self.note(train_reconstruction=l1, train_commitment=quantized.commitment_loss)
        self.step += 1

    def _descend(self, optimizer: Any, loss: Tensor, module: nn.Module) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip(module.parameters())
        optimizer.step()

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        images = batch["images"]
        if self.config.augmented_validation:
            images, _ = self.augment(images, None, self.generator(batch_index))
        x = self.vqgan.normalise(images)
        reconstruction, quantized = self.vqgan(x)
        difference = self.vqgan.denormalise(reconstruction).clamp(0, 1) - images
        self.log_dict(
            {"validation_l1": difference.abs().mean(), "validation_mse": difference.square().mean()},
            batch_size=len(x),
            sync_dist=True,
        )
        self._validation_tokens.append(quantized.tokens.cpu())

    def on_validation_epoch_end(self) -> None:
        summary = codebook_summary(torch.cat(self._validation_tokens), self.config.codebook_size)
        self._validation_tokens.clear()
        self.log_dict(
            {"validation_usage": summary["usage"], "validation_perplexity": summary["perplexity"]}, sync_dist=True
        )

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.Adam(m.parameters(), self.config.learning_rate, betas=(0.5, 0.9), fused=True)
            for m in (self.vqgan, self.discriminator)
        ]
        if not self.config.stepping_schedule:  # a schedule that only starts would leave the rate at its warm-up's first
            return optimizers
        total = self.total_steps()
        return optimizers, [
            cosine_with_warmup(optimizers[0], total),
            cosine_with_warmup(optimizers[1], max(1, total - self.config.disc_start)),
        ]


class MaskedGPTModule(StageModule):
    """Stage 2. The tokenizer inside `model` is frozen; the transformer learns, and the copy of the encoder where the
    recipe has it trained."""

    def __init__(self, config: Config, model: TokenCutSeg) -> None:
        super().__init__(config.seed)
        self.config, self.model = config.masked_gpt, model
        self._validation_words = TokenCache(model)
        model.requires_grad_(False)
        for part in self.learning:
            part.requires_grad_(True)

    @property
    def learning(self) -> list[nn.Module]:
        """The parts of the model that learn."""
        return [self.model.masked_gpt] + ([self.model.encoder] if self.config.trains_encoder else [])

    def train(self, mode: bool = True) -> MaskedGPTModule:
        super().train(mode)
        self.model.vqgan.eval()
        self.model.masked_gpt.train(mode)  # although a later stage may keep it frozen
        return self

    def learn(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        images, _ = self.augment(batch["images"], None, generator)
        mask = own_rows(token_mask_for(self.model, images, generator))
        loss, accuracy = self._masked(own_rows(images), mask)
        self.note(train_loss=loss, train_accuracy=accuracy)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        # the same masks in every epoch
        images = batch["images"]
        mask = token_mask_for(self.model, images, torch.Generator().manual_seed(batch_index))
        loss, accuracy = self._masked(images, mask, self._validation_words(batch_index, images))
        self.log_dict(
            {"validation_loss": loss, "validation_accuracy": accuracy}, batch_size=len(images), sync_dist=True
        )

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **_: Any) -> None:
        if self.config.trains_encoder:  # through which the loss of blanked images is steep at times
            self.clip(p for part in self.learning for p in part.parameters())

    def _masked(
        self, images: Tensor, mask: Tensor, words: tuple[Tensor, Encoding] | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens, logits = self.model.predict_masked(images, mask, words)
        flat = tokens.flatten(1)
        return masked_token_loss(logits, flat, mask), batch_mean((logits.argmax(-1) == flat)[mask].float())

    def configure_optimizers(self) -> Any:
        parameters = [p for part in self.learning for p in part.parameters()]
        optimizer = torch.optim.AdamW(
            parameters, self.config.learning_rate, betas=(0.9, 0.95), weight_decay=self.config.weight_decay, fused=True
        )
        return [optimizer], [{"scheduler": cosine_with_warmup(optimizer, self.total_steps()), "interval": "step"}]


class SegmenterModule(StageModule):
    """Stage 3 and the baselines: any model with `probabilities(images)`, under one loop, one loss and one score.

    `scored` is the model that counts: the running mean of the weights where the recipe asks for it. It also says what
    is on `unlabelled` images, for the model to learn from their augmented versions (Tarvainen and Valpola, "Mean
    teachers are better role models", NeurIPS 2017).
    """

    def __init__(self, config: Config, model: nn.Module, unlabelled: ImageSet | None = None) -> None:
        super().__init__(config.seed, config.segmentation.augmentation)
        self.unlabelled = unlabelled
        if unlabelled is not None:
            self.register_buffer("unlabelled_seen", torch.zeros((), dtype=torch.int64))
        self.config, self.reduction = config.segmentation, config.evaluation.score_reduction
        self.model = model
        self.averaged = (
            AveragedModel(model, multi_avg_fn=ema_with_warmup, use_buffers=True) if self.config.weight_average else None
        )
        if self.averaged is not None:
            self.averaged.requires_grad_(False)
        self._records: list[pd.DataFrame] = []

    @property
    def scored(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged.module

    def learn(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        images, masks = self.augment(batch["images"], batch["masks"], generator)
        terms = self.losses(images, masks, generator)
        weight = self.self_training_weight(self.trainer.global_step)
        if weight > 0:
            terms["self_training"] = weight * self.self_training_loss(len(images), generator)
        self.note(**{f"train_{name}": value for name, value in terms.items()})
        return sum(terms.values())

    def self_training_weight(self, step: int) -> float:
        """Zero for the first tenth of the training, when there is nothing to learn from the averaged weights yet; then
        it rises over three tenths."""
        if self.unlabelled is None:
            return 0.0
        return self.config.self_training_weight * min(1.0, max(0.0, (step / self.total_steps() - 0.1) / 0.3))

    def self_training_loss(self, labelled: int, generator: torch.Generator) -> Tensor:
        """The loss on half as many unlabelled images as there are `labelled` ones in the batch, moved, warped and
        recoloured, against the mask that `scored` gives them as they are."""
        count = max(self.trainer.world_size, labelled // 2)
        chosen = torch.randint(len(self.unlabelled), (count,), generator=generator)
        images = load(self.unlabelled, chosen)["images"].to(self.device)
        self.unlabelled_seen += count
        learns = self.scored.training  # as it does where no weights are averaged: it goes on as it was
        self.scored.eval()
        with torch.no_grad():
            masks = self.scored.probabilities(images).argmax(1)
        self.scored.train(learns)
        images, masks = self.augment(images, masks, generator)
        return sum(self.losses(recolour(images, generator), masks, generator).values())

    def losses(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of the training loss on a whole batch, by name."""
        logits = self.model(own_rows(images))
        return self._supervised(logits, logits.softmax(1), own_rows(masks), "logits")

    def _supervised(self, logits: Tensor, probabilities: Tensor, masks: Tensor, kind: str) -> dict[str, Tensor]:
        cross_entropy, dice = segmentation_loss(
            logits, probabilities, masks, kind, self.config.class_weighted_dice, self.config.cross_entropy_weight
        )
        return {"cross_entropy": cross_entropy, "dice": dice}

    def rate(self, parameter: str) -> float:
        """The learning rate of a parameter of `model`, by its name, as a share of the configured one."""
        return 1.0

    def on_train_batch_end(self, *_: Any) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        self.scored.eval()

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        probabilities = self.look(batch["images"], batch_index).float()  # epochs are compared without flips
        self.log(
            "validation_cross_entropy",
            F.nll_loss(probabilities.clamp(min=1e-6).log(), batch["masks"]),
            batch_size=len(probabilities),
            sync_dist=True,
        )
        ids = [f"{batch_index}-{i}" for i in range(len(probabilities))]
        self._records.append(score(probabilities.argmax(1), batch["masks"], ids, boundary=False))

    def look(self, images: Tensor, batch_index: int) -> Tensor:
        """The scored model's probabilities for one batch of validation."""
        return self.scored.probabilities(images)

    def on_validation_epoch_end(self) -> None:
        records = pd.concat(self._records)
        self._records.clear()
        self.log_dict(
            {
                f"validation_{reduction}_iou": summarise(records, reduction, "iou", draws=1).mean
                for reduction in sorted({"per_image", "micro_two_class", self.reduction})
            },
            sync_dist=True,
        )

    @property
    def monitor(self) -> str:
        """The metric by which the best epoch is chosen."""
        return f"validation_{self.reduction}_iou"

    def configure_optimizers(self) -> Any:
        c: SegmentationConfig = self.config
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                decays = p.ndim > 1 or c.schedule == "cosine"
                groups.setdefault((self.rate(name), decays), []).append(p)
        optimizer = torch.optim.AdamW(
            [
                {"params": group, "lr": rate * c.learning_rate, "weight_decay": c.weight_decay * decays}
                for (rate, decays), group in groups.items()
            ],
            c.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        if c.schedule == "cosine":  # released: once an epoch, down to a tenth, whatever share of the rate a part has
            schedule = cosine_with_warmup(optimizer, self.trainer.max_epochs, warmup=0, floor=0.1)
            return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]
        return [optimizer], [
            {"scheduler": cosine_with_warmup(optimizer, self.total_steps(), floor=0.0), "interval": "step"}
        ]


class TokenCutSegModule(SegmenterModule):
    """Stage 3 proper: supervised loss, graph-cut loss, and the masked-token loss where the recipe trains jointly."""

    def __init__(self, config: Config, model: TokenCutSeg, unlabelled: ImageSet | None = None) -> None:
        super().__init__(config, model, unlabelled)
        self._validation_words = TokenCache(model) if config.segmentation.frozen_codebook else None

    def rate(self, parameter: str) -> float:
        shares = {"encoder": self.config.encoder_lr_scale, "masked_gpt": self.config.transformer_lr_scale}
        return shares.get(parameter.partition(".")[0], 1.0)

    def look(self, images: Tensor, batch_index: int) -> Tensor:
        if self._validation_words is None:
            return super().look(images, batch_index)
        return self.scored(images, encoded=self._validation_words(batch_index, images)).probabilities

    def losses(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        c, model = self.config, self.model
        joint = c.mlm_weight > 0 or c.training_features == "masked"
        token_mask = own_rows(token_mask_for(model, images, generator)) if joint else None
        images, masks = own_rows(images), own_rows(masks)
        out = model(images, token_mask if c.training_features == "masked" else None)
        terms = self._supervised(out.logits, out.probabilities, masks, c.loss_input)
        if c.use_deepcut:
            terms["deepcut"] = c.deepcut_loss_weight * out.deepcut_loss
        if c.mlm_weight > 0:
            if c.training_features == "full":
                reads = model.encode_to_tokens if model.config.masked_gpt.trains_encoder else model.read
                _, logits = model.predict_masked(images, token_mask, reads(images)[:2])
            else:
                logits = model.masked_gpt.lm_head(out.features)
            terms["masked_tokens"] = c.mlm_weight * masked_token_loss(logits, out.tokens, token_mask)
        return terms


def cosine_with_warmup(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.1, floor: float = 0.05
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over the share `warmup` of `steps`, then a cosine down to `floor` times the peak."""
    rise = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def ema_with_warmup(averages: list[Tensor], new: list[Tensor], n: Tensor | int) -> None:
    """Exponential moving average whose memory grows from a few steps to 200; a BatchNorm's statistics are averaged with
    the weights that they belong to, and its counter is not."""
    if not averages[0].is_floating_point():  # they come by type and device
        torch._foreach_copy_(averages, new)
        return
    decay = min(0.995, (1 + float(n)) / (10 + float(n)))
    torch._foreach_lerp_(averages, new, 1 - decay)
