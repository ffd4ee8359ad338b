import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencutseg.data.image_set import ImageSet
from tokencutseg.training.batches import EvalLoader, TrainLoader


def numbered(n, masks=True):
    """Images whose pixels say which one they are."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).contiguous()
    labels = torch.zeros(n, 4, 4, dtype=torch.uint8) if masks else None
    return ImageSet("made", "train", [str(i) for i in range(n)], images, labels, None, [(4, 4)] * n)


@given(st.integers(1, 20), st.integers(1, 7), st.none() | st.integers(1, 50), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_epochs_are_one_sequence_of_permutations(n, batch_size, per_epoch, epochs):
    batches = TrainLoader(numbered(n), batch_size, per_epoch, seed=1)
    drawn = torch.cat([batches.order(e) for e in range(epochs)])
    assert len(drawn) == epochs * (per_epoch or n)
    for start in range(0, len(drawn) - n + 1, n):
        assert sorted(drawn[start : start + n].tolist()) == list(range(n))


def test_two_epochs_differ_and_the_seed_decides():
    a, b, c = (TrainLoader(numbered(30), 8, None, seed) for seed in (1, 1, 2))
    assert torch.equal(a.order(0), b.order(0)) and not torch.equal(a.order(0), c.order(0))
    assert not torch.equal(a.order(0), a.order(1))


def test_batches_hold_what_the_order_says():
    batches = TrainLoader(numbered(10), 4, 10, seed=0)
    batches.epoch = 2
    seen = list(batches)
    assert [len(b["images"]) for b in seen] == [4, 4, 2] and len(batches) == 3
    values = torch.cat([b["images"][:, 0, 0, 0] for b in seen]) * 255
    assert torch.equal(values.round().long(), batches.order(2))
    assert seen[0]["masks"].dtype == torch.int64 and seen[0]["images"].max() <= 1


def test_in_order():
    seen = list(EvalLoader(numbered(5, masks=False), 2))
    assert [len(b["images"]) for b in seen] == [2, 2, 1] and "masks" not in seen[0]
    assert torch.equal(torch.cat([b["images"] for b in seen])[:, 0, 0, 0] * 255, torch.arange(5.0))
