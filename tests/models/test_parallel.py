"""Two processes with a part of the batch each against one with all of it, in double precision."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from tokencutseg.models import parallel
from tokencutseg.models.losses import dice_loss, discriminator_loss, masked_token_loss
from tokencutseg.models.vqgan import EMAQuantizer

B = 5  # which two processes share unequally


def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(B, 3, 6, 6, generator=generator, dtype=torch.float64),
        "classes": torch.randint(2, (B, 6, 6), generator=generator),
        "masked": torch.rand(B, 36, generator=generator) < 0.3,
    }


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), parallel.BatchNorm2d(4), nn.ReLU(), parallel.Dropout(0.4), nn.Conv2d(4, 2, 1)
    ).double()


def learn():
    """One step on this process's part: losses, gradients (their mean over the processes), statistics, codebook."""
    data, model = batch(), network()
    quantizer = EMAQuantizer(7, 3).double()
    torch.manual_seed(2)
    with parallel.shared_batch():
        images, classes, masked = (parallel.own_rows(data[key]) for key in ("images", "classes", "masked"))
        logits = model(images)
        losses = [
            dice_loss(logits.softmax(1), classes, True),
            discriminator_loss(logits, -logits, True),
            masked_token_loss(logits.flatten(2).mT, classes.flatten(1), masked),
            parallel.batch_mean(logits**2),
        ]
        sum(losses).backward()
        for step in range(3):
            if step:  # two codes that nothing is near
                quantizer.embedding.weight.data[:2] += 100
                quantizer.cluster_size[:2] = 0
            commitment = quantizer(images * (1 + step)).commitment_loss
    gradients = [p.grad for p in model.parameters()]
    if dist.is_initialized():
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return [
        *(loss.detach() for loss in losses),
        *gradients,
        commitment,
        *model[1].buffers(),
        *quantizer.state_dict().values(),
    ]


def process(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(learn(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_learn_what_one_learns(both):
    alone = learn()
    assert len(alone) > 15
    for results in both:
        for ours, expected in zip(results, alone, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-9)


def test_batch_norm_in_one_process_is_torchs_own():
    x = batch()["images"]
    ours, theirs = parallel.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    with parallel.shared_batch():
        assert torch.equal(ours(x), theirs(x))


def test_converted_networks_keep_parameters_and_names():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network[1][0].weight.data.fill_(2)
    converted = parallel.share_batch_norm(network)
    assert type(converted[1][0]) is parallel.BatchNorm2d
    assert converted[1][0].momentum == 0.3
    assert list(converted.state_dict()) == list(before)
    assert (converted[1][0].weight == 2).all()
