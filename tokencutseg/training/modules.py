"""The Lightning modules of the three stages, and of the baselines, which share the third one's loop."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from tokencutseg.config import Config
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.transforms import Augmentation, mix, recolour
from tokencutseg.evaluation.codebook import codebook_summary
from tokencutseg.evaluation.inference import upsample_nearest
from tokencutseg.evaluation.per_image import score
from tokencutseg.evaluation.statistics import summarise
from tokencutseg.models import losses
from tokencutseg.models.decoder import upsample
from tokencutseg.models.deepcut import to_grid
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.predict import SegmentationModel
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.models.vqgan import VQGAN, Discriminator
from tokencutseg.training.batches import combine_seeds, load_batch

Batch = dict[str, Tensor]
BETAS = (0.9, 0.95)


class StageModule(pl.LightningModule):
    """What all stages share: a seed for every epoch and batch, augmentation on the device, metrics as epoch means."""

    monitor: str | None = None
    """The metric by which `fit` chooses the best epoch, if any."""

    def __init__(self, seed: int, augmentation: str = "released") -> None:
        super().__init__()
        self.seed, self.augment = seed, Augmentation(augmentation)

    def on_train_epoch_start(self) -> None:
        # of dropout and code restarts: a function of the epoch, so that resuming changes nothing
        torch.manual_seed(self.own_seed(self.current_epoch))
        self.trainer.train_dataloader.epoch = self.current_epoch

    def generator(self, batch_index: int) -> torch.Generator:
        """A CPU generator for this batch of this epoch."""
        return torch.Generator().manual_seed(self.own_seed(1 + self.current_epoch, batch_index))

    def own_seed(self, *numbers: int) -> int:
        """The training's seed with these numbers, another one in each of several processes."""
        return combine_seeds(*([self.global_rank] if self.global_rank else []), self.seed, *numbers)

    def log_metrics(self, metrics: dict[str, Tensor | float], images: int = 1) -> None:
        """Log scalars as means over the epoch, weighted by the batch's `images` in validation."""
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=images, sync_dist=True)


def token_mask_for(model: TokenCutSeg, images: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens of each image to mask, as the model's recipe says: (B, T) bool."""
    return sample_token_mask((len(images), *model.grid(images)), model.config.masked_gpt, generator).to(images.device)


class VQGANModule(StageModule):
    """Stage 1. Two optimizers by hand: the autoencoder, and from step `disc_start` on the discriminator.

    `step` counts batches; Lightning's `global_step` would count both optimizers.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.seed)
        self.automatic_optimization = False
        self.config = c = config.vqgan
        self.vqgan = VQGAN(c)
        self.discriminator = Discriminator(c.disc_channels)
        self.perceptual = None if c.perceptual == "none" else losses.PerceptualLoss(c.perceptual, c.perceptual_size)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._validation_tokens: list[Tensor] = []

    @property
    def disc_start(self) -> int:
        """The step at which the discriminator joins."""
        start = self.config.disc_start
        return round(start * self.trainer.estimated_stepping_batches) if start < 1 else int(start)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        c, step = self.config, int(self.step)
        images, _ = self.augment(batch["images"], None, self.generator(batch_index))
        x = self.vqgan.normalise(images)
        autoencoder, discriminator = self.optimizers()
        adversarial = step >= self.disc_start

        reconstruction, quantized = self.vqgan(x)
        l1 = losses.reconstruction_loss(x, reconstruction, c.clamped_reconstruction, c.edge_weighted)
        loss = l1 + c.codebook_weight * quantized.commitment_loss
        if self.perceptual is not None and step % c.perceptual_every == 0:
            perceptual = self.perceptual(x, reconstruction)
            loss = loss + c.perceptual_weight * c.perceptual_every * perceptual
            self.log_metrics({"train_perceptual": perceptual})
        if adversarial:
            self.discriminator.requires_grad_(False)
            loss = loss + c.disc_weight * losses.generator_loss(self.discriminator(reconstruction), c.clamped_adversary)
            self.discriminator.requires_grad_(True)
        self.backward_and_step(autoencoder, loss, self.vqgan)

        if adversarial:
            real, fake = self.discriminator(x), self.discriminator(reconstruction.detach())
            # the released ramp follows Lightning's global step, which counts both optimizers
            loss = losses.discriminator_loss(real, fake, c.clamped_adversary, 2 * (step - self.disc_start))
            self.backward_and_step(discriminator, loss, self.discriminator)
            self.log_metrics({"train_discriminator": loss})
        if c.stepping_schedule:
            schedules = self.lr_schedulers()
            for schedule in schedules if adversarial else schedules[:1]:
                schedule.step()
        self.log_metrics({"train_reconstruction": l1, "train_commitment": quantized.commitment_loss})
        self.step += 1

    def backward_and_step(self, optimizer: Any, loss: Tensor, module: nn.Module) -> None:
        """A step with the norm of the gradients clipped at 1."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        # fused optimizers unscale half-precision gradients in their step: until then the scale is in the limit too
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0 if scaler is None else scaler.get_scale())
        optimizer.step()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images = batch["images"]
        if self.config.augmented_validation:
            images, _ = self.augment(images, None, self.generator(batch_index))
        reconstruction, quantized = self.vqgan(self.vqgan.normalise(images))
        difference = self.vqgan.denormalise(reconstruction).clamp(0, 1) - images
        metrics = {"validation_l1": difference.abs().mean(), "validation_mse": difference.square().mean()}
        self.log_metrics(metrics, len(images))
        self._validation_tokens.append(quantized.tokens.cpu())

    def on_validation_epoch_end(self) -> None:
        summary = codebook_summary(torch.cat(self._validation_tokens), self.config.codebook_size)
        self._validation_tokens.clear()
        self.log_metrics({f"validation_{name}": summary[name] for name in ("usage", "perplexity")})

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.Adam(m.parameters(), self.config.learning_rate, betas=(0.5, 0.9), fused=True)
            for m in (self.vqgan, self.discriminator)
        ]
        if not self.config.stepping_schedule:  # a schedule that never steps would leave the rate at its warm-up's start
            return optimizers
        steps, (autoencoder, discriminator) = self.trainer.estimated_stepping_batches, optimizers
        late = max(1, steps - self.disc_start)
        return optimizers, [cosine_with_warmup(autoencoder, steps), cosine_with_warmup(discriminator, late)]


class MaskedGPTModule(StageModule):
    """Stage 2. The transformer inside `model` is trained; all else is frozen."""

    def __init__(self, config: Config, model: TokenCutSeg) -> None:
        super().__init__(config.seed)
        self.config, self.model = config.masked_gpt, model
        model.requires_grad_(False)
        model.masked_gpt.requires_grad_(True)
        self.train()  # Lightning leaves the modes as they are

    def train(self, mode: bool = True) -> MaskedGPTModule:
        super().train(mode)
        self.model.vqgan.eval()
        self.model.masked_gpt.train(mode)  # although a later stage may keep it frozen
        return self

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = self.generator(batch_index)
        images, _ = self.augment(batch["images"], None, generator)
        loss, accuracy = self.masked_loss(images, generator)
        self.log_metrics({"train_loss": loss, "train_accuracy": accuracy})
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, generator = batch["images"], torch.Generator().manual_seed(batch_index)  # the same in every epoch
        loss, accuracy = self.masked_loss(images, generator)
        self.log_metrics({"validation_loss": loss, "validation_accuracy": accuracy}, len(images))

    def masked_loss(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy at the masked tokens."""
        mask = token_mask_for(self.model, images, generator)
        tokens, logits = self.model.predict_masked(images, mask)
        flat = tokens.flatten(1)
        return losses.masked_token_loss(logits, flat, mask), (logits.argmax(-1) == flat)[mask].float().mean()

    def configure_optimizers(self) -> Any:
        c, learning = self.config, [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, c.learning_rate, BETAS, weight_decay=c.weight_decay, fused=True)
        schedule = cosine_with_warmup(optimizer, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SegmenterModule(StageModule):
    """Stage 3 and the baselines: any `SegmentationModel` under one loop, one loss and one score.

    `eval_model` is the one that is scored: the exponential moving average of the weights where the recipe asks for it.
    It also is the teacher that labels `unlabelled` images, on whose augmented versions the model is trained (Tarvainen
    and Valpola, "Mean teachers are better role models", NeurIPS 2017).
    """

    def __init__(self, config: Config, model: SegmentationModel, unlabelled: ImageSet | None = None) -> None:
        super().__init__(config.seed, config.segmentation.augmentation)
        self.config, self.reduction = config.segmentation, config.evaluation.score_reduction
        self.monitor = f"validation_{self.reduction}_iou"
        self.model, self.unlabelled = model, unlabelled
        if unlabelled is not None:
            self.register_buffer("unlabelled_seen", torch.zeros((), dtype=torch.int64))
        self.ema_model = None
        if self.config.weight_average:
            self.ema_model = AveragedModel(model, multi_avg_fn=ema_with_warmup, use_buffers=True).requires_grad_(False)
        self._records: list[pd.DataFrame] = []

    @property
    def eval_model(self) -> SegmentationModel:
        return self.model if self.ema_model is None else self.ema_model.module

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        generator = self.generator(batch_index)
        images, masks = self.augment(batch["images"], batch["masks"], generator)
        terms = self.losses(images, masks, generator)
        weight = self.self_training_weight(self.trainer.global_step)
        if weight > 0:
            terms["self_training"] = weight * self.self_training_loss(len(images), generator)
        self.log_metrics({f"train_{name}": value for name, value in terms.items()})
        return sum(terms.values())

    def self_training_weight(self, step: int) -> float:
        """Zero for the first tenth of the training, while the teacher is poor; then it rises over three tenths."""
        if self.unlabelled is None:
            return 0.0
        done = step / self.trainer.estimated_stepping_batches
        return self.config.self_training_weight * min(1.0, max(0.0, (done - 0.1) / 0.3))

    def self_training_loss(self, labelled: int, generator: torch.Generator) -> Tensor:
        """The loss on `self_training_share` times as many unlabelled images as there are `labelled` ones in the batch,
        against the teacher's masks of the plain images: warped, recoloured, mixed, and partly hidden."""
        assert self.unlabelled is not None, "self-training needs unlabelled images"
        count = max(1, int(labelled * self.config.self_training_share))
        chosen = torch.randint(len(self.unlabelled), (count,), generator=generator)
        images = load_batch(self.unlabelled, chosen)["images"].to(self.device)
        self.unlabelled_seen += count * self.trainer.world_size
        was_training = self.eval_model.training  # without an average the teacher is the model itself
        self.eval_model.eval()
        with torch.no_grad():
            masks = self.eval_model.probabilities(images).argmax(1)
        self.eval_model.train(was_training)
        images, masks = self.augment(images, masks, generator)
        images, masks = mix(recolour(images, generator), masks, generator, self.config.self_training_mix)
        hidden = self.hidden_cells(images, generator) if self.config.self_training_hidden else None
        return sum(self.losses(images, masks, generator, hidden).values())

    def hidden_cells(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the cells of `self_training_hidden` of the images, in squares as in the masked-token training:
        (B, H, W) bool on the tokens' grid."""
        B, H, W = len(images), *(side // 2**self.model.config.vqgan.n_stages for side in images.shape[-2:])
        cells = sample_token_mask((B, H, W), self.model.config.masked_gpt, generator, ratio=0.5).view(B, H, W)
        chosen = torch.rand(B, generator=generator) < self.config.self_training_hidden
        return (cells & chosen[:, None, None]).to(images.device)

    def losses(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of the training loss, by name; `hidden` cells (B, H, W) the model does not see."""
        if hidden is not None:
            images = images.masked_fill(upsample_nearest(hidden, images.shape[-1])[:, None], 0.5)
        logits = self.model(images)
        return losses.segmentation_loss(logits, logits.softmax(1), masks, self.config)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.ema_model is not None:
            self.ema_model.update_parameters(self.model)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        probabilities, masks = self.eval_model.probabilities(batch["images"]).float(), batch["masks"]
        loss = F.nll_loss(probabilities.clamp(min=1e-6).log(), masks)
        self.log_metrics({"validation_cross_entropy": loss}, len(masks))
        ids = [f"{batch_index}-{i}" for i in range(len(masks))]
        self._records.append(score(probabilities.argmax(1), masks, ids, boundary=False))

    def on_validation_epoch_end(self) -> None:
        records = pd.concat(self._records)
        self._records.clear()
        for reduction in sorted({"per_image", "micro_two_class", self.reduction}):
            iou = summarise(records, reduction, "iou", draws=1).mean
            self.log_metrics({f"validation_{reduction}_iou": iou})

    def configure_optimizers(self) -> Any:
        c = self.config
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                scale = c.transformer_lr_scale if name.startswith("masked_gpt.") else 1.0  # it was pretrained
                decays = p.ndim > 1 or c.schedule == "cosine"
                options = {"params": [], "lr": scale * c.learning_rate, "weight_decay": c.weight_decay * decays}
                groups.setdefault((scale, decays), options)["params"].append(p)
        optimizer = torch.optim.AdamW(list(groups.values()), c.learning_rate, BETAS, fused=True)
        if c.schedule == "cosine":  # released: once an epoch, down to a tenth of each group's rate
            schedule = cosine_with_warmup(optimizer, self.trainer.max_epochs, warmup=0, min_ratio=0.1)
            return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]
        schedule = cosine_with_warmup(optimizer, self.trainer.estimated_stepping_batches, min_ratio=0.0)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class TokenCutSegModule(SegmenterModule):
    """Stage 3 proper: supervised loss, graph-cut loss, and the masked-token loss where the recipe trains jointly."""

    model: TokenCutSeg

    def losses(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        c, model = self.config, self.model
        joint = c.mlm_weight > 0 or c.training_features == "masked"
        token_mask = token_mask_for(model, images, generator) if joint else None
        unseen = token_mask if c.training_features == "masked" else None
        out = model(images, unseen if hidden is None else hidden.flatten(1), blank=hidden is not None)
        scores = out.probabilities if c.loss_input == "probabilities" else out.logits
        terms = losses.segmentation_loss(scores, out.probabilities, masks, c)
        if c.assignment_weight > 0:
            at_tokens = to_grid(out.assignments, model.grid(images))
            coarse = upsample(at_tokens, images.shape[-2:])
            own = losses.segmentation_loss(coarse.clamp(min=1e-6).log(), coarse, masks, c)
            terms |= {f"assignment_{name}": c.assignment_weight * value for name, value in own.items()}
        if c.use_deepcut:
            terms["deepcut"] = c.deepcut_loss_weight * out.deepcut_loss
        if c.mlm_weight > 0 and hidden is None:  # other tokens are hidden than masked
            if c.training_features == "full":
                _, logits = model.predict_masked(images, token_mask)
            else:
                logits = model.masked_gpt.lm_head(out.features)
            terms["masked_tokens"] = c.mlm_weight * losses.masked_token_loss(logits, out.tokens, token_mask)
        return terms


def cosine_with_warmup(optimizer: Any, steps: int, warmup: float = 0.1, min_ratio: float = 0.05) -> LambdaLR:
    """Linear warm-up over the share `warmup` of `steps`, then a cosine down to `min_ratio` times the peak."""
    rise = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def ema_with_warmup(averages: list[Tensor], new: list[Tensor], n: Tensor | int) -> None:
    """Exponential moving average whose memory grows from a few steps to 200. A BatchNorm's statistics are averaged like
    the weights that they belong to; its counter is copied."""
    if not averages[0].is_floating_point():  # the lists come by type and device
        torch._foreach_copy_(averages, new)
        return
    decay = min(0.995, (1 + float(n)) / (10 + float(n)))
    torch._foreach_lerp_(averages, new, 1 - decay)
