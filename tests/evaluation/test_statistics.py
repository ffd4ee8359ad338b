import functools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ttest_1samp
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, MulticlassF1Score, MulticlassJaccardIndex

from tokencutseg.evaluation import statistics
from tokencutseg.evaluation.per_image import score
from tokencutseg.evaluation.statistics import MEASURES, REDUCTIONS, paired_difference, summarise


def random_records(n=30, seed=0, size=8, **labels):
    """Masks that agree more or less, some of them empty."""
    generator = np.random.default_rng(seed)
    target = generator.random((n, size, size)) < generator.uniform(0, 0.6, size=(n, 1, 1))
    prediction = target ^ (generator.random(target.shape) < generator.uniform(0, 0.3, size=(n, 1, 1)))
    prediction[0] = target[1] = False
    return with_native(prediction, target, **labels), prediction, target


def with_native(prediction, target, **labels):
    """Records whose native columns are those of the masks without their last column, so that they differ."""
    ids = [f"i{k}" for k in range(len(target))]
    native = score(prediction[:, 1:, 1:], target[:, 1:, 1:], ids)[["iou", "dice", "nsd", "hd95"]]
    return score(prediction, target, ids, **labels).join(native.add_suffix("_native"))


def resampled_by_hand(records, reduction, measure, taken):
    """The estimate on a resample, from the rows themselves taken one after the other."""
    if reduction.startswith("per_image"):
        iou = records["iou_native" if measure.endswith("_native") else "iou"]
        scores = [0.0 if reduction.endswith("thr65") and iou[i] < 0.65 else records[measure][i] for i in taken]
        return sum(scores) / len(scores)
    tp, fp, fn, tn = (sum(int(records[cell][i]) for i in taken) for cell in ("tp", "fp", "fn", "tn"))
    factor = {"iou": 1, "dice": 2}[measure]
    lesion, background = (factor * hits / (factor * hits + fp + fn) for hits in (tp, tn))
    return lesion if reduction == "micro_lesion" else (lesion + background) / 2


def ends(found):
    return found.low, found.high


def trained(*frames):
    """The records of several trainings of one method."""
    return pd.concat([frame.assign(seed=seed) for seed, frame in enumerate(frames)])


PAIRS = [(reduction, measure) for measure in MEASURES for reduction in MEASURES[measure]]


def sets(shape):
    n, side = shape
    return hnp.arrays(np.uint8, (2, n, side, side), elements=st.integers(0, 1))


@settings(max_examples=40)
@given(st.tuples(st.integers(2, 5), st.integers(1, 9)).flatmap(sets))
def test_reductions_equal_torchmetrics(pair):
    prediction, target = torch.from_numpy(pair)
    records = score(prediction, target, list(range(len(target))), boundary=False)
    micro = {"iou": MulticlassJaccardIndex(2, average="macro"), "dice": MulticlassF1Score(2, average="macro")}
    lesion = {"iou": BinaryJaccardIndex(zero_division=1), "dice": BinaryF1Score(zero_division=1)}
    one_by_one = list(zip(prediction, target, strict=True))
    iou = torch.stack([lesion["iou"](*one) for one in one_by_one])
    for measure in ("iou", "dice"):
        for part in (slice(0, 1), slice(1, None)):  # torchmetrics sees the set in two batches, as it does in training
            micro[measure].update(prediction[part], target[part])
        per_image = torch.stack([lesion[measure](*one) for one in one_by_one])
        expected = {
            "micro_two_class": micro[measure].compute(),
            "micro_lesion": lesion[measure](prediction, target),
            "per_image": per_image.mean(),
            "per_image_thr65": per_image.where(iou >= 0.65, 0.0).mean(),
        }
        for reduction, value in expected.items():
            assert summarise(records, reduction, measure, draws=1).mean == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize(("reduction", "measure"), PAIRS)
def test_bootstrap_equals_a_plain_loop_with_the_same_draws(reduction, measure, monkeypatch):
    records, _, _ = random_records()
    draws, n = 64, len(records)
    taken = np.random.default_rng(3).integers(n, size=(draws, n))
    estimates = [resampled_by_hand(records, reduction, measure, row) for row in taken]
    expected = (resampled_by_hand(records, reduction, measure, range(n)), *np.percentile(estimates, [2.5, 97.5]))
    for entries in (statistics.WEIGHTS_AT_ONCE, 7 * n, 1):  # one chunk, several and a rest, one row at a time
        monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", entries)
        summary = summarise(records, reduction, measure, draws=draws, seed=3)
        assert (summary.mean, summary.low, summary.high) == pytest.approx(expected)
        assert summary.n == n


def coverage(column, repeats=600):
    """How often the interval holds the truth, on 80 groups of 4 rows that share most of their randomness."""
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(repeats):
        shared = generator.beta(5, 2, size=80).repeat(4)
        records = pd.DataFrame({"iou": 0.9 * shared + 0.1 * generator.random(320), column: np.arange(320) // 4})
        summary = summarise(records, "per_image", "iou", draws=500, seed=seed)
        hits += summary.low <= 0.9 * 5 / 7 + 0.05 <= summary.high
    return hits / repeats


def test_bootstrap_coverage_over_clusters():
    assert 0.93 <= coverage("cluster") <= 0.97
    assert coverage("unnoticed", 200) < 0.8, "drawn one by one, rows that are not independent must fall short"


def test_clusters_are_drawn_whole_in_each_interval():
    """Means over images where whole clusters are drawn, in the clusters' sorted order."""
    generator, ids = np.random.default_rng(0), [f"i{i}" for i in range(24)]
    labels = np.array([f"patient {i}" for i in generator.integers(7, size=24)])
    a, b = (pd.DataFrame({"id": ids, "iou": generator.random(24), "cluster": labels}) for _ in range(2))
    members = [np.flatnonzero(labels == name) for name in sorted(set(labels))]
    taken = np.random.default_rng(4).integers(len(members), size=(80, len(members)))

    def by_hand(column):
        means = [np.concatenate([column[members[i]] for i in row]).mean() for row in taken]
        return pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))

    difference, shuffled = (a["iou"] - b["iou"]).to_numpy(), b.sample(frac=1, random_state=0)
    assert ends(summarise(a, "per_image", "iou", draws=80, seed=4)) == by_hand(a["iou"].to_numpy())
    assert ends(paired_difference(a, shuffled, "per_image", "iou", draws=80, seed=4)) == by_hand(difference)
    seeded = paired_difference(trained(a, a), trained(b, shuffled), "per_image", "iou", draws=80, seed=4)
    assert ends(seeded) == by_hand(difference) and seeded.difference == pytest.approx(difference.mean())


def test_what_is_drawn_together():
    records = random_records()[0]
    several = pd.concat([records.assign(iou=records["iou"] + step) for step in (0.0, 0.1, 0.2)])

    def found(rows, **columns):
        return vars(summarise(rows.assign(**columns), "per_image", "iou", draws=50))

    alone, whole = found(records), found(records, cluster="one")
    assert whole["low"] == whole["high"] == pytest.approx(alone["mean"]), "one group only: no spread"
    assert found(records, cluster=np.arange(len(records))) == pytest.approx(alone), "each row its own group"
    assert found(records, cluster=None) == alone, "nothing is known of any"
    assert found(several) == found(several, cluster=several["id"]), "the rows of one image"


def test_summary_table_holds_each_group_reduction_and_measure():
    groups = [("unet", "b"), ("unet", "a"), ("otsu", "a")]
    parts = [random_records(seed=i, method=method, test=test)[0] for i, (method, test) in enumerate(groups)]
    table = statistics.summary_table(pd.concat(parts), ["method", "test"], draws=30, seed=5)
    assert table.columns.tolist() == ["method", "test", "reduction", "measure", "n", "mean", "low", "high"]
    assert list(dict.fromkeys(zip(table["method"], table["test"], strict=True))) == groups
    assert len(table) == 3 * len(PAIRS)
    row = table.query("method == 'otsu' and reduction == 'micro_lesion' and measure == 'dice'").iloc[0]
    expected = summarise(parts[2], "micro_lesion", "dice", draws=30, seed=5)
    assert (row["mean"], row.low, row.high, row.n) == (expected.mean, expected.low, expected.high, expected.n)
    assert set(statistics.summary_table(parts[0], [], measures=["iou"], draws=5).reduction) == set(REDUCTIONS)
    without = parts[0].drop(columns=[measure for measure in MEASURES if measure not in ("iou", "dice")])
    assert set(statistics.summary_table(without, [], draws=5).measure) == {"iou", "dice"}


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_dice_bound_holds_under_each_reduction(seed, n):
    records, _, _ = random_records(n, seed)
    assert records.dice.to_numpy() == pytest.approx(statistics.largest_dice(records.iou.to_numpy()))
    assert statistics.largest_dice(np.array([0, 0.5, 1])) == pytest.approx([0, 2 / 3, 1])
    for reduction in REDUCTIONS:
        iou, dice = (summarise(records, reduction, measure, draws=1).mean for measure in ("iou", "dice"))
        assert dice <= statistics.largest_dice(iou) + 1e-12


@pytest.mark.parametrize(("reduction", "measure"), PAIRS)
def test_paired_difference(reduction, measure):
    a, prediction, target = random_records(n=40)
    worse = prediction ^ (np.random.default_rng(9).random(prediction.shape) < 0.05)
    b = with_native(worse, target)
    result = paired_difference(a, b.sample(frac=1, random_state=0), reduction, measure, draws=64, seed=2)
    taken = np.random.default_rng(2).integers(40, size=(64, 40))
    estimate, *by_hand = (
        resampled_by_hand(a, reduction, measure, row) - resampled_by_hand(b, reduction, measure, row)
        for row in (range(40), *taken)
    )
    assert (result.difference, *ends(result)) == pytest.approx((estimate, *np.percentile(by_hand, [2.5, 97.5])))
    assert result.n == 40
    others = list(dict.fromkeys([(reduction, measure), ("per_image", "iou"), ("micro_two_class", "dice")]))
    among = statistics.paired_differences(a, b, others, draws=64, seed=2)[0]
    assert among.columns() == pytest.approx(result.columns(), rel=1e-12, nan_ok=True), "what else is asked"


def test_paired_wilcoxon():
    """Five images, all better, without ties: of the 2^5 sign patterns two are as extreme."""
    a = pd.DataFrame({"id": list("abcde"), "iou": [0.9, 0.8, 0.7, 0.6, 0.5]})
    b = pd.DataFrame({"id": list("abcde"), "iou": [0.89, 0.78, 0.67, 0.56, 0.45]})
    assert paired_difference(a, b, "per_image", "iou", draws=9).p == pytest.approx(2 / 2**5)
    few = b.assign(iou=a["iou"] - [-0.01, -0.02, -0.03, -0.04, 0.3])  # four of five against the mean
    opposed = paired_difference(a, few, "per_image", "iou", draws=9)
    assert opposed.difference > 0 and opposed.p == 1
    twice = [pd.concat([part, part.assign(id=part["id"] + "2")]).assign(cluster=[*"abcde"] * 2) for part in (a, b)]
    assert paired_difference(*twice, "per_image", "iou", draws=9).p == pytest.approx(2 / 2**5), "of five lesions"
    same = paired_difference(a, a, "per_image", "iou", draws=9)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_its_definition(pvalues):
    """Adjusted p of the i-th smallest: the largest (m − j)·p_j over the j up to it (j from 0), at most 1."""
    m, ordered = len(pvalues), sorted(pvalues)
    by_value = {p: min(1, max((m - j) * ordered[j] for j in range(m) if ordered[j] <= p)) for p in pvalues}
    assert statistics.holm(pvalues) == pytest.approx([by_value[p] for p in pvalues])


def test_holm_example():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        statistics.holm([0.5, 1.5])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda records: summarise(records, "image_mean", "iou"), "unknown reduction 'image_mean'"),
        (lambda records: summarise(records, "per_image", "jaccard"), "unknown measure 'jaccard'"),
        (lambda records: summarise(records, "micro_lesion", "nsd"), "belongs to one image"),
        (lambda records: summarise(records.iloc[:0], "per_image", "iou"), "no records"),
        (lambda records: summarise(records.drop(columns="nsd"), "per_image", "nsd"), "scored without"),
        (lambda records: statistics.summary_table(records, ["method"]), "no column 'method'"),
        (lambda records: statistics.summary_table(records, [], measures=["jaccard"]), "unknown measure 'jaccard'"),
        (
            lambda records: paired_difference(records, records.iloc[1:], "per_image", "iou"),
            "1 ids are on one side only",
        ),
        (lambda records: paired_difference(pd.concat([records] * 2), records, "per_image", "iou"), "occurs twice"),
        (
            lambda records: paired_difference(
                trained(records, records), trained(records, records).eval("seed = seed + 2"), "per_image", "iou"
            ),
            r"\[0, 1\] and \[2, 3\] cannot be paired",
        ),
        (
            lambda records: paired_difference(records, records.assign(id=records["id"] + "x"), "per_image", "iou"),
            "different images",
        ),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(random_records()[0])


def test_trainings_are_paired_by_seed():
    a, b, c = (random_records(seed=seed)[0] for seed in (1, 2, 3))
    compared = functools.partial(paired_difference, reduction="per_image", measure="iou", draws=500)
    shuffled = b.sample(frac=1, random_state=0)
    assert compared(trained(a, b, c), trained(shuffled, a)) == compared(trained(a, b), trained(b, a))
    assert compared(trained(a, c), shuffled) == compared(trained(a, c), trained(b, b)), "one against each"
    assert compared(a.assign(seed=7), trained(b, c)) == compared(trained(a, a), trained(b, c))


@pytest.mark.parametrize(("reduction", "measure"), PAIRS)
def test_several_trainings_are_pooled(reduction, measure):
    """The difference is that of the summaries; where all images agree, only the seeds are uncertain."""
    frames = [random_records(seed=seed)[0] for seed in range(4)]
    found = paired_difference(trained(*frames[:2]), trained(*frames[2:]), reduction, measure, draws=300)
    sides = [summarise(pd.concat(pair), reduction, measure, draws=9) for pair in (frames[:2], frames[2:])]
    assert found.difference == pytest.approx(sides[0].mean - sides[1].mean) and sides[0].n == found.n == 30
    alike = [frame.iloc[[2] * 30].assign(id=frame["id"].to_numpy()) for frame in frames]
    found = paired_difference(trained(*alike[:3]), trained(*[alike[3]] * 3), reduction, measure, draws=300)
    means = [summarise(frame, reduction, measure, draws=9).mean for frame in alike]
    alone = ttest_1samp(np.array(means[:3]) - means[3], 0).confidence_interval(0.95)
    halves = (found.difference - found.low, found.high - found.difference)
    assert halves == pytest.approx(((alone.high - alone.low) / 2,) * 2)


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.03, 0.1), (0.002, 0.3)])
def test_coverage_over_images_and_seeds(of_seeds, of_images):
    """Three seeds and eighty images, where either matters more; on the safe side where both do."""
    generator, hits, ids = np.random.default_rng(2), 0, [f"i{i}" for i in range(80)]
    for seed in range(400):
        seeds, images, both = map(generator.standard_normal, ((3, 1), 80, (3, 80)))
        changes = 0.1 + of_seeds * seeds + of_images * images + 0.05 * both
        own = trained(*(pd.DataFrame({"id": ids, "iou": row}) for row in changes))
        found = paired_difference(own, own.assign(iou=0.0), "per_image", "iou", draws=400, seed=seed)
        hits += found.low <= 0.1 <= found.high
    assert 0.93 <= hits / 400 <= 0.99


def test_size_bins_are_means_of_equal_groups():
    generator = np.random.default_rng(0)
    names = np.repeat(["tokencutseg", "otsu"], 20)
    sizes = np.concatenate([generator.permutation(20) / 40 + 0.01 for _ in range(2)])
    records = pd.DataFrame({"method": names, "lesion_fraction": sizes, "iou": generator.random(40)})
    healthy = records.assign(lesion_fraction=0.0)
    table = statistics.size_bins(pd.concat([healthy, records]), bins=4, draws=200)
    assert not len(statistics.size_bins(healthy))
    for method, rows in table.groupby("method"):
        ordered = records[records["method"] == method].sort_values("lesion_fraction")
        size, iou = (ordered[name].to_numpy().reshape(4, 5) for name in ("lesion_fraction", "iou"))
        np.testing.assert_allclose(rows["mean"], iou.mean(1))
        np.testing.assert_allclose(rows["lesion_fraction"], size[:, 2])
    assert (table["n"] == 5).all() and (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
