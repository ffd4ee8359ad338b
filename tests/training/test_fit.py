"""Trainings of a few steps: they resume exactly, keep frozen parts frozen, and choose on validation."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from tokencutseg.config import configure
from tokencutseg.data.source import open_source
from tokencutseg.data.transforms import Augmentation, recolour
from tokencutseg.models.checkpoint import build
from tokencutseg.models.deepcut import position_graph
from tokencutseg.models.losses import dice_loss
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.training.batches import EvalLoader, TrainLoader
from tokencutseg.training.fit import AtomicCheckpointIO, Hardware, fit
from tokencutseg.training.modules import MaskedGPTModule, SegmenterModule, TokenCutSegModule, VQGANModule


class Interrupted(Exception):
    """Stands for a lost machine."""


def made(stage, recipe="revised", **overrides):
    """A module of a stage and its data, from the configuration alone."""
    config = configure("tiny", recipe, overrides={"vqgan.perceptual": "none"} | overrides)
    source = open_source("", config)
    torch.manual_seed(0)
    if stage == "vqgan":
        module = VQGANModule(config)
    elif stage == "baseline":
        module = SegmenterModule(config, build("baseline", config, "unet"))
    else:
        module = (MaskedGPTModule if stage == "masked_gpt" else TokenCutSegModule)(config, TokenCutSeg(config))
    section = getattr(config, "segmentation" if stage == "baseline" else stage)
    batches = TrainLoader(source.load("site_a", "train"), 8, 16, config.seed)
    return module, batches, EvalLoader(source.load("site_a", "validation"), 4), section


def train(stage, folder, epochs=3, fail_at=None, **overrides):
    module, batches, validation, _ = made(stage, **overrides)
    if fail_at is not None:
        ordinary = module.on_train_epoch_start

        def start():
            if module.current_epoch == fail_at:
                raise Interrupted
            ordinary()

        module.on_train_epoch_start = start
    state, facts = fit(module, batches, validation, epochs, folder, stage)
    return module, state, facts


def test_a_checkpoint_that_is_not_written_to_its_end_leaves_the_last_one(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)

    def half(self, checkpoint, path, storage_options=None):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_lightning.plugins.io.TorchCheckpointIO.save_checkpoint", half)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path) == {"epoch": 1}


@pytest.mark.parametrize("recipe", ["released", "revised"])
def test_every_part_ends_at_the_same_share_of_its_rate(recipe, tmp_path):
    """Released: once an epoch, down to a tenth; revised: step by step, down to nothing."""
    rates = {"segmentation.transformer_lr_scale": 0.1, "segmentation.mlm_weight": 0.0}
    module, *_ = train("segmentation", tmp_path, epochs=3, recipe=recipe, **rates)
    groups = module.trainer.optimizers[0].param_groups
    ends = {round(group["lr"] / group["initial_lr"], 6) for group in groups}
    assert ends == {0.1 if recipe == "released" else 0.0} and len({group["initial_lr"] for group in groups}) > 1


@pytest.mark.parametrize("stage", ["vqgan", "masked_gpt", "segmentation"])
def test_a_broken_training_resumes_to_the_same_weights(tmp_path, stage):
    whole, state, facts = train(stage, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(stage, tmp_path / "broken", fail_at=2)
    resumed, resumed_state, resumed_facts = train(stage, tmp_path / "broken")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    histories = [pd.read_csv(tmp_path / kind / "history.csv").drop(columns="seconds") for kind in ("whole", "broken")]
    pd.testing.assert_frame_equal(*histories)
    assert histories[0]["epoch"].tolist() == [1, 2, 3] and histories[0]["images"].tolist() == [16, 32, 48]
    assert {**facts, "seconds": 0} == {**resumed_facts, "seconds": 0} and facts["steps"] == 6
    assert (state is None) == (resumed_state is None) == (stage != "segmentation")


@pytest.mark.parametrize("recipe", ["released", "revised"])
@pytest.mark.parametrize("stage", ["vqgan", "masked_gpt", "segmentation"])
def test_mixed_precision_stays_close_to_single(tmp_path, stage, recipe):
    """The first epoch's mean losses; the quantizer and all sums over tokens are in single precision either way."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        position_graph.cache_clear()  # or the second would work on the first one's graph
        module, batches, validation, _ = made(stage, recipe)
        fit(module, batches, validation, 1, tmp_path / precision, stage, Hardware("cpu", precision=precision))
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
        history = pd.read_csv(tmp_path / precision / "history.csv").iloc[0]
        losses.append(history[[name for name in history.index if name.startswith("train_")]])
    pd.testing.assert_series_equal(*losses, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("recipe", ["released", "described", "revised"])
@pytest.mark.parametrize("stage", ["masked_gpt", "segmentation"])
def test_tokenizer_and_codebook_stay_bit_identical(tmp_path, stage, recipe):
    reference = made(stage, recipe)[0].model.vqgan.state_dict()
    module, _, _ = train(stage, tmp_path, epochs=1, recipe=recipe)
    for name, value in module.model.vqgan.state_dict().items():
        assert torch.equal(value, reference[name]), name
    before = dict(made(stage, recipe)[0].model.named_parameters())
    learnt = {name for name, value in module.model.named_parameters() if not torch.equal(value, before[name])}
    expected = {name for name, value in before.items() if value.requires_grad}
    assert learnt and learnt <= expected and len(learnt) > len(expected) / 2
    stays = stage == "segmentation" and module.model.config.segmentation.frozen_transformer
    assert any(name.startswith("masked_gpt.") for name in learnt) == (not stays)


@pytest.mark.parametrize(("encoder", "parts"), [("frozen", {"masked_gpt"}), ("trained", {"masked_gpt", "encoder"})])
def test_stage_2_teaches_the_transformer_and_where_told_the_encoder(tmp_path, encoder, parts):
    before = made("masked_gpt", **{"masked_gpt.encoder": encoder})[0].model.state_dict()
    module, _, _ = train("masked_gpt", tmp_path, epochs=1, **{"masked_gpt.encoder": encoder})
    assert {
        name.split(".")[0] for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])
    } == parts


def test_best_epoch_is_chosen_on_validation(tmp_path):
    _, state, facts = train("baseline", tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    best = history["validation_per_image_iou"]
    assert facts["best_score"] == pytest.approx(best.max()) and facts["best_epoch"] == best.idxmax() + 1
    assert set(state) == set(build("baseline", configure("tiny"), "unet").state_dict())


def test_the_discriminator_waits_for_its_start(tmp_path):
    late, _, _ = train("vqgan", tmp_path / "late", **{"vqgan.disc_start": 100})
    fresh = made("vqgan")[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(late.discriminator.parameters(), fresh.discriminator.parameters(), strict=True)
    )
    soon, _, _ = train("vqgan", tmp_path / "soon")
    assert any(
        not torch.equal(a, b)
        for a, b in zip(soon.discriminator.parameters(), fresh.discriminator.parameters(), strict=True)
    )
    assert int(soon.step) == 6


@pytest.mark.parametrize("recipe", ["released", "revised"])
def test_learning_rate_schedules(tmp_path, recipe):
    train("vqgan", tmp_path / "vqgan", recipe=recipe)
    rates = pd.read_csv(tmp_path / "vqgan" / "history.csv")["learning_rate"]
    peak = configure("tiny", recipe).vqgan.learning_rate
    assert (rates == peak).all() == (recipe == "released")  # a schedule is created there, but never stepped
    train("segmentation", tmp_path / "segmentation", recipe=recipe)
    rates = pd.read_csv(tmp_path / "segmentation" / "history.csv")["learning_rate"]
    assert rates.is_monotonic_decreasing and rates.iloc[-1] < rates.iloc[0]


def test_joint_training_teaches_the_vocabulary_head(tmp_path):
    train("segmentation", tmp_path, epochs=1, recipe="released")
    history = pd.read_csv(tmp_path / "history.csv")
    assert {"train_masked_tokens", "train_deepcut", "train_cross_entropy", "train_dice"} <= set(history)


def test_the_running_mean_of_weights_takes_their_batch_statistics_along():
    """Both follow the same recursion: decay (1 + n) / (10 + n), at most 0.995; counters are those of the last step."""
    module = made("baseline")[0]
    norm = next(part for part in module.model.modules() if isinstance(part, nn.BatchNorm2d))
    averaged = dict(module.ema_model.module.named_modules())[
        next(name for name, part in module.model.named_modules() if part is norm)
    ]
    expected = None
    for step in range(4):
        with torch.no_grad():
            norm.weight.fill_(step + 1.0)
            norm.running_mean.fill_(2.0 * (step + 1))
            norm.num_batches_tracked.fill_(step)
        module.on_train_batch_end()
        decay = (1 + step) / (10 + step)
        expected = 1.0 if expected is None else decay * expected + (1 - decay) * (step + 1)
        assert averaged.weight.mean().item() == pytest.approx(expected)
        assert averaged.running_mean.mean().item() == pytest.approx(2 * expected)
        assert averaged.num_batches_tracked.item() == step


def test_self_training_learns_from_unlabelled_images_what_the_averaged_weights_see(tmp_path):
    module, batches, validation, section = made("segmentation", **{"segmentation.epochs": 5})
    module = TokenCutSegModule(module.model.config, module.model, open_source("", configure("tiny")).unlabelled())
    fit(module, batches, validation, section.epochs, tmp_path / "with", "segmentation")
    history = pd.read_csv(tmp_path / "with" / "history.csv")
    assert (history["train_self_training"] > 0).any()
    assert int(module.unlabelled_seen) == 4 * (10 - 2)  # not in the first tenth of 10 steps, nor at its end
    alone = train("segmentation", tmp_path / "without", section.epochs, **{"segmentation.epochs": 5})[0]
    assert not torch.equal(module.model.upsampler.out.weight, alone.model.upsampler.out.weight)
    assert "train_self_training" not in pd.read_csv(tmp_path / "without" / "history.csv")


def test_the_self_training_loss_is_the_supervised_one_against_the_averaged_weights_masks():
    model = made("segmentation")[0].model
    module = TokenCutSegModule(model.config, model, open_source("", configure("tiny")).unlabelled())
    module.trainer = SimpleNamespace(world_size=1)
    module.augment = Augmentation.none()
    module.eval()  # the graph module has dropout
    with torch.no_grad():
        for p in module.ema_model.parameters():
            p += 0.1 * torch.randn_like(p)
    loss = module.self_training_loss(8, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    images = module.unlabelled.images[torch.randint(len(module.unlabelled), (4,), generator=generator)] / 255
    masks = module.eval_model(images).mask
    module.augment(images, masks, generator)  # which draws, though it changes nothing
    out = module.model(recolour(images, generator))
    chosen = out.logits.log_softmax(1).gather(1, masks[:, None]).mean()
    dice = dice_loss(out.probabilities, masks, False)
    torch.testing.assert_close(loss, -chosen + dice + module.config.deepcut_loss_weight * out.deepcut_loss)
    loss.backward()
    assert all(p.grad is None for p in module.ema_model.parameters())


@pytest.mark.parametrize("averaged", [True, False])
def test_after_a_look_at_unlabelled_images_the_model_learns_on_with_dropout(averaged):
    model = made("segmentation", **{"segmentation.weight_average": averaged})[0].model
    module = TokenCutSegModule(model.config, model, open_source("", configure("tiny")).unlabelled())
    module.trainer = SimpleNamespace(world_size=1)
    before = [part.training for part in module.model.modules()]
    assert any(before) and not all(before), "the tokenizer never trains here"
    module.self_training_loss(8, torch.Generator().manual_seed(3))
    assert [part.training for part in module.model.modules()] == before


def test_self_training_waits_for_weights_worth_averaging():
    module, *_ = made("segmentation", **{"segmentation.self_training_weight": 0.5})
    module.total_steps = lambda: 100
    assert module.self_training_weight(99) == 0  # nothing unlabelled
    module.unlabelled = object()
    weights = [module.self_training_weight(step) for step in range(100)]
    assert weights[10] == 0 < weights[11] and weights == sorted(weights)
    assert weights[25] == pytest.approx(0.25) and weights[40:] == [pytest.approx(0.5)] * 60


def test_the_second_stage_trains_the_transformer_that_the_third_one_freezes():
    module, *_ = made("masked_gpt", **{"segmentation.frozen_transformer": True, "masked_gpt.encoder": "frozen"})
    module.train()
    assert module.model.masked_gpt.training and not module.model.vqgan.training
    learning = {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}
    assert learning == {"masked_gpt"}


def test_what_was_pretrained_learns_at_its_own_rate():
    module, batches, *_ = made(
        "segmentation", **{"segmentation.encoder_lr_scale": 0.3, "segmentation.transformer_lr_scale": 0.1}
    )
    module.trainer, module.steps_per_epoch = SimpleNamespace(max_epochs=2), len(batches)
    optimizer = module.configure_optimizers()[0][0]
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    learning = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    assert len(rate) == len(learning)
    peak = max(rate.values())
    for name, p in learning.items():
        share = {"encoder": 0.3, "masked_gpt": 0.1}.get(name.split(".")[0], 1.0)
        assert rate[id(p)] == pytest.approx(share * peak)
