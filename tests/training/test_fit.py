"""Trainings of a few steps: they resume exactly, keep frozen parts frozen, and choose on validation."""

import functools
import math
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
from tokencutseg.training.modules import (
    MaskedGPTModule,
    SegmenterModule,
    TokenCutSegModule,
    VQGANModule,
    cosine_with_warmup,
    ema_with_warmup,
    token_mask_for,
)

CPU = Hardware("cpu")
RECIPES = pytest.mark.parametrize("recipe", ["released", "revised"])


def made(stage, recipe="revised", unlabelled=False, **overrides):
    """A module of a stage, from the configuration alone."""
    config = configure("tiny", recipe, overrides={"vqgan.perceptual": "none"} | overrides)
    torch.manual_seed(0)
    if stage == "vqgan":
        return VQGANModule(config)
    if stage == "masked_gpt":
        return MaskedGPTModule(config, TokenCutSeg(config))
    images = open_source("", config).unlabelled() if unlabelled else None
    if stage == "baseline":
        return SegmenterModule(config, build("baseline", config, "unet"))
    return TokenCutSegModule(config, TokenCutSeg(config), images)


def train(module, folder, epochs=3, hardware=CPU):
    """Two batches an epoch. Gives the history, the best weights, and the facts."""
    source = open_source("", configure("tiny"))
    batches = TrainLoader(source.load("site_a", "train"), 8, 16, 0)
    validation = EvalLoader(source.load("site_a", "validation"), 4)
    state, facts = fit(module, batches, validation, epochs, folder, hardware)
    return pd.read_csv(folder / "history.csv"), state, facts


def changed(module, reference):
    """The names of parameters and buffers that differ."""
    before = reference.state_dict()
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_half_written_checkpoint_leaves_the_last_one(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)

    def half(self, checkpoint, path, storage_options=None):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_lightning.plugins.io.TorchCheckpointIO.save_checkpoint", half)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path) == {"epoch": 1}


@pytest.mark.parametrize("stage", ["vqgan", "masked_gpt", "segmentation"])
def test_resumes_to_the_same_weights(tmp_path, monkeypatch, capsys, stage):
    whole, resumed = made(stage), made(stage)
    history, state, facts = train(whole, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(type(resumed), "on_validation_start", lambda self: self.current_epoch < 2 or 1 / 0, raising=False)
        train(made(stage), tmp_path / "broken")
    history_2, state_2, facts_2 = train(resumed, tmp_path / "broken", hardware=Hardware("cpu", progress_bar=True))
    assert not changed(whole, resumed)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), history_2.drop(columns="seconds"))
    assert history["epoch"].tolist() == [1, 2, 3] and history["images"].tolist() == [16, 32, 48]
    assert {**facts, "seconds": 0} == {**facts_2, "seconds": 0} and facts["steps"] == 6
    assert (state is None) == (state_2 is None) == (stage != "segmentation")
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert len(lines) == 1 and lines[0].startswith("broken epoch 3/3  ")


def test_broken_checkpoint_starts_anew(tmp_path, capsys):
    history, *_ = train(made("vqgan"), tmp_path, epochs=1)
    checkpoint = tmp_path / "last.ckpt"
    whole = checkpoint.read_bytes()
    for broken in (b"", b"0", *(whole[: int(left * len(whole))] for left in (0.5, 0.99))):
        checkpoint.write_bytes(broken)
        capsys.readouterr()
        again, *_ = train(made("vqgan"), tmp_path, epochs=1)
        pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"))
        out = capsys.readouterr().out.splitlines()
        assert len(out) == 1 and out[0].startswith(f"{checkpoint} cannot be read")


def test_checkpoint_of_other_networks_starts_anew(tmp_path, capsys):
    module = made("vqgan")
    module.perceptual = torch.nn.Linear(1, 1)  # as where the loss network's weights were not there at first
    torch.save({"state_dict": module.state_dict()}, tmp_path / "last.ckpt")
    history, *_ = train(made("vqgan"), tmp_path, epochs=1)
    assert history["epoch"].tolist() == [1] and "of other networks" in capsys.readouterr().out


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """A function that trains a stage for one epoch in single precision, once: the module and its history."""

    @functools.cache
    def trained(stage, recipe):
        position_graph.cache_clear()
        module = made(stage, recipe)
        return module, train(module, tmp_path_factory.mktemp(stage), epochs=1)[0]

    return trained


@RECIPES
@pytest.mark.parametrize("stage", ["vqgan", "masked_gpt", "segmentation"])
def test_mixed_precision_stays_close_to_single(tmp_path, one_epoch, stage, recipe):
    """The first epoch's mean losses; the quantizer and all sums over tokens are in single precision either way."""
    single, mixed = one_epoch(stage, recipe), made(stage, recipe)
    position_graph.cache_clear()  # the graph must not come from the other precision
    history, *_ = train(mixed, tmp_path, 1, Hardware("cpu", precision="bf16-mixed"))
    for module in (single[0], mixed):
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    losses = [name for name in history if name.startswith("train_")]
    pd.testing.assert_frame_equal(single[1][losses], history[losses], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("recipe", ["released", "described", "revised"])
@pytest.mark.parametrize("stage", ["masked_gpt", "segmentation"])
def test_tokenizer_stays_frozen_and_the_rest_learns(one_epoch, stage, recipe):
    (module, history), reference = one_epoch(stage, recipe), made(stage, recipe)
    learnt = changed(module.model, reference.model) - {name for name, _ in reference.model.named_buffers()}
    assert not any(name.startswith("vqgan.") for name in learnt)
    expected = {name for name, value in reference.model.named_parameters() if value.requires_grad}
    assert learnt <= expected and len(learnt) > len(expected) / 2
    frozen = stage == "segmentation" and module.model.config.segmentation.frozen_transformer
    assert any(name.startswith("masked_gpt.") for name in learnt) == (not frozen)
    joint = {"train_masked_tokens", "train_deepcut", "train_cross_entropy", "train_dice"}
    assert joint <= set(history) or (stage, recipe) != ("segmentation", "released")


def test_stage_2_trains_a_transformer_that_stage_3_freezes():
    module = made("masked_gpt", **{"segmentation.frozen_transformer": True})
    assert module.model.masked_gpt.training and not module.model.vqgan.training
    assert {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad} == {"masked_gpt"}


def test_each_process_and_batch_has_random_numbers_of_its_own(monkeypatch):
    module, seeds = made("vqgan"), set()
    for rank in range(4):
        monkeypatch.setattr(type(module), "global_rank", rank)
        seeds |= {module.own_seed(epoch, batch) for epoch in range(20) for batch in range(50)}
    assert len(seeds) == 4 * 20 * 50


def test_best_epoch_is_chosen_on_validation(tmp_path):
    module = made("baseline")

    def spoil_last_epoch():
        for p in module.ema_model.parameters() if module.current_epoch == 2 else ():
            p.zero_()

    module.on_validation_epoch_start = spoil_last_epoch
    history, state, facts = train(module, tmp_path)
    best = history["validation_per_image_iou"]
    assert facts["best_score"] == pytest.approx(best.max()) and facts["best_epoch"] == best.idxmax() + 1 < 3
    images = open_source("", configure("tiny")).load("site_a", "validation")
    kept, masks = build("baseline", configure("tiny"), "unet").eval(), images.masks.bool()
    kept.load_state_dict(state)
    with torch.no_grad():
        found = kept(images.images / 255).argmax(1).bool()
    iou = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    assert facts["best_score"] == pytest.approx(iou.mean().item(), abs=0.003)


@pytest.mark.parametrize(("start", "joins"), [(0.5, 2), (3, 3), (0, 0), (100, None)])
def test_discriminator_joins_at_its_share_or_step(tmp_path, start, joins):
    module, steps = made("vqgan", **{"vqgan.disc_start": start}), []
    learn = module.backward_and_step

    def note(optimizer, loss, network):
        steps.extend([int(module.step)] * (network is module.discriminator))
        learn(optimizer, loss, network)

    module.backward_and_step = note
    train(module, tmp_path, epochs=2)
    assert int(module.step) == 4
    assert steps == ([] if joins is None else list(range(joins, 4)))
    assert bool(changed(module.discriminator, made("vqgan").discriminator)) == bool(steps)


def test_rare_perceptual_term_weighs_as_much_as_one_in_each_step(tmp_path):
    module, found = made("vqgan", **{"vqgan.perceptual_every": 2, "vqgan.disc_start": 100}), []
    module.perceptual, learn = (lambda x, reconstruction: reconstruction.mean() * 0 + 1e4), module.backward_and_step
    module.backward_and_step = lambda *given: found.append(given[1].item()) or learn(*given)
    train(module, tmp_path, epochs=2)
    assert [loss > 100 for loss in found] == [True, False] * 2
    assert sum(found) / 4 == pytest.approx(1e4 * module.config.perceptual_weight, rel=1e-3)


def test_released_graph_learns_from_masked_tokens():
    module = made("segmentation", "released").eval()  # without dropout
    images, masks = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    terms = module.losses(images, masks, torch.Generator().manual_seed(3))
    hidden = token_mask_for(module.model, images, torch.Generator().manual_seed(3))
    out, config = module.model(images, hidden), module.config
    torch.testing.assert_close(terms["deepcut"], config.deepcut_loss_weight * out.deepcut_loss)
    torch.testing.assert_close(terms["dice"], dice_loss(out.probabilities, masks, True))
    chosen = module.model.masked_gpt.lm_head(out.features).log_softmax(-1).gather(-1, out.tokens[..., None])[..., 0]
    torch.testing.assert_close(terms["masked_tokens"], -config.mlm_weight * chosen[hidden].mean())


def test_warm_up_is_a_line_and_what_follows_a_cosine():
    schedule = cosine_with_warmup(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 100)
    found = [schedule.lr_lambdas[0](step) for step in range(101)]
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:] == pytest.approx([0.525 + 0.475 * math.cos(math.pi * step / 90) for step in range(91)])


@RECIPES
def test_learning_rate_schedules(tmp_path, recipe):
    """Segmentation, released: once an epoch, down to a tenth; revised: step by step, down to nothing."""
    rates = train(made("vqgan", recipe), tmp_path / "vqgan")[0]["learning_rate"]
    peak = configure("tiny", recipe).vqgan.learning_rate
    assert (rates == peak).all() == (recipe == "released")  # which creates a schedule, but never steps it
    scales = {"segmentation.transformer_lr_scale": 0.1, "segmentation.mlm_weight": 0.0}
    scales["segmentation.frozen_transformer"] = False
    module = made("segmentation", recipe, **scales)
    rates = train(module, tmp_path / "segmentation")[0]["learning_rate"]
    assert rates.is_monotonic_decreasing and rates.iloc[-1] < rates.iloc[0]
    groups = module.trainer.optimizers[0].param_groups
    ends = {round(group["lr"] / group["initial_lr"], 6) for group in groups}
    assert ends == {0.1 if recipe == "released" else 0.0}
    started = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    learning = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    assert started.keys() == {id(p) for p in learning.values()}
    for name, p in learning.items():
        scale = 0.1 if name.startswith("masked_gpt.") else 1.0
        assert started[id(p)] == pytest.approx(scale * module.config.learning_rate), name
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for p in learning.values():
        assert decays[id(p)] == module.config.weight_decay * (recipe == "released" or p.ndim > 1)


def test_weight_average_follows_its_recursion():
    """Weights and BatchNorm statistics: decay (1 + n) / (10 + n), at most 0.995. Counters are copied."""
    module = made("baseline")
    name, norm = next((n, part) for n, part in module.model.named_modules() if isinstance(part, nn.BatchNorm2d))
    average, expected = module.ema_model.module.get_submodule(name), None
    for step in range(4):
        with torch.no_grad():
            norm.weight.fill_(step + 1.0)
            norm.running_mean.fill_(2.0 * (step + 1))
            norm.num_batches_tracked.fill_(step)
        module.on_train_batch_end()
        decay = (1 + step) / (10 + step)
        expected = 1.0 if expected is None else decay * expected + (1 - decay) * (step + 1)
        assert average.weight.mean().item() == pytest.approx(expected)
        assert average.running_mean.mean().item() == pytest.approx(2 * expected)
        assert average.num_batches_tracked.item() == step
    late = [torch.ones(1)]
    ema_with_warmup(late, [torch.zeros(1)], 10_000)
    assert late[0].item() == pytest.approx(0.995)


def test_self_training_reaches_the_weights(tmp_path):
    module, alone = (made("segmentation", unlabelled=given, **{"segmentation.epochs": 5}) for given in (True, False))
    history, *_ = train(module, tmp_path / "with", 5)
    assert (history["train_self_training"] > 0).any()
    assert int(module.unlabelled_seen) == 8 * (10 - 2)  # not in the first tenth of 10 steps, nor at its end
    history, *_ = train(alone, tmp_path / "without", 5)
    assert not torch.equal(*(next(one.model.upsampler.out.parameters()) for one in (module, alone)))
    assert "train_self_training" not in history


def test_self_training_loss_is_the_supervised_one_on_the_teachers_masks():
    plain = {"segmentation.self_training_share": 0.5, "segmentation.self_training_hidden": 0}
    module = made("segmentation", unlabelled=True, **plain, **{"segmentation.self_training_mix": 0})
    module.trainer, module.augment = SimpleNamespace(world_size=1), Augmentation("none")
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
    grid = out.assignments.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    coarse = torch.nn.functional.interpolate(grid, (32, 32), mode="bilinear")
    own = dice_loss(coarse, masks, False) - coarse.log().gather(1, masks[:, None]).mean()
    expected = -chosen + dice + module.config.deepcut_loss_weight * out.deepcut_loss
    torch.testing.assert_close(loss, expected + module.config.assignment_weight * own)
    loss.backward()
    assert all(p.grad is None for p in module.ema_model.parameters())


def test_hidden_cells_are_grey_to_a_network():
    settings = {"segmentation.self_training_hidden": 0.5}
    module, generator = made("baseline", **settings).eval(), torch.Generator().manual_seed(0)
    images, masks = torch.rand(16, 3, 32, 32), torch.zeros(16, 32, 32, dtype=torch.int64)
    hidden = module.hidden_cells(images, generator)  # (16, 4, 4)
    shares = hidden.float().mean((1, 2))
    assert set(shares.tolist()) == {0.0, 0.5} and 4 <= (shares > 0).sum() <= 12
    grey = torch.where(hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], 0.5, images)
    found, expected = module.losses(images, masks, generator, hidden), module.losses(grey, masks, generator)
    torch.testing.assert_close(found, expected)


def test_hidden_tokens_are_masked_and_their_pixels_blank_to_the_encoder():
    module = made("segmentation", **{"segmentation.self_training_hidden": 1.0}).eval()
    images, generator = torch.rand(2, 3, 32, 32), torch.Generator().manual_seed(0)
    hidden = module.hidden_cells(images, generator)
    grey = torch.where(hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], 0.5, images)
    torch.testing.assert_close(module.model.pyramid(images, hidden.flatten(1)), module.model.pyramid(grey))
    tokens, latents = module.model.encode_to_tokens(images)
    expected = module.model.transformer_features(tokens, latents, hidden.flatten(1))
    torch.testing.assert_close(module.model(images, hidden.flatten(1), blank=True).features, expected)


@pytest.mark.parametrize("averaged", [True, False])
def test_teacher_leaves_the_training_mode_as_it_was(averaged):
    module = made("segmentation", unlabelled=True, **{"segmentation.weight_average": averaged})
    module.trainer = SimpleNamespace(world_size=1)
    before = [part.training for part in module.model.modules()]
    assert any(before) and not all(before)  # the tokenizer never trains here
    module.self_training_loss(8, torch.Generator().manual_seed(3))
    assert [part.training for part in module.model.modules()] == before


def test_self_training_weight_rises():
    module = made("segmentation", **{"segmentation.self_training_weight": 0.5})
    module.trainer = SimpleNamespace(estimated_stepping_batches=100)
    assert module.self_training_weight(99) == 0  # nothing unlabelled
    module.unlabelled = object()
    weights = [module.self_training_weight(step) for step in range(100)]
    assert weights[10] == 0 < weights[11] and weights == sorted(weights)
    assert weights[25] == pytest.approx(0.25) and weights[40:] == [pytest.approx(0.5)] * 60
