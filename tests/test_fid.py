import numpy as np
import pytest
import scipy.linalg

from threedim.evaluation.metrics import fid
from threedim.evaluation.metrics.fid import FeatureMoments, PictureMoments, frechet_distance


def moments_of(*parts):
    moments = FeatureMoments(parts[0].shape[1])
    for part in parts:
        moments.add(part)
    return moments


def from_covariance(mean, covariance):
    moments = FeatureMoments(len(mean))
    moments.count, moments.mean, moments.scatter = 1001, np.asarray(mean, float), np.asarray(covariance) * 1000
    return moments


def features(seed, count, size=12, shift=0.0):
    """Correlated and positive, like those of a network that ends in a ReLU."""
    mixing = np.random.default_rng(99).normal(size=(size, size)) / np.arange(1, size + 1)
    return np.maximum(np.random.default_rng(seed).normal(size=(count, size)) @ mixing.T + shift, 0).astype(np.float32)


def test_moments_are_those_of_all_features_at_once():
    parts = [features(seed, count) for seed, count in enumerate((1, 40, 0, 7, 300))]
    everything, moments = np.concatenate(parts).astype(np.float64), moments_of(*parts)
    assert moments.count == 348
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(), np.cov(everything, rowvar=False), rtol=1e-11, atol=1e-14)


def test_nothing_cancels_far_from_the_origin():
    spread = np.random.default_rng(0).normal(size=(5000, 4))
    moments = moments_of(*np.split(spread + 1e7, 50))
    np.testing.assert_allclose(moments.covariance(), np.cov(spread, rowvar=False), rtol=1e-6, atol=1e-7)


def test_refused_features():
    moments = moments_of(features(0, 5))
    for wrong, message in (
        (np.zeros((5, 11)), r"\(vector, 12\), got \(5, 11\)"),
        (np.zeros(12), r"got \(12,\)"),
        (np.full((2, 12), np.nan), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.add(wrong)
    np.testing.assert_array_equal(moments.scatter, moments_of(features(0, 5)).scatter)
    many = moments_of(features(1, 30))
    for count in (0, 1):
        few = moments_of(features(0, count))
        for pair in ((few, many), (many, few)):
            with pytest.raises(ValueError, match=f"at least 2 pictures, got {count}"):
                frechet_distance(*pair)
    with pytest.raises(ValueError, match="12 and 11 features"):
        frechet_distance(many, moments_of(features(0, 30, size=11)))


def test_normal_distributions_with_independent_features():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 30)), rng.uniform(0.1, 3, (2, 30))
    found = frechet_distance(*(from_covariance(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True)))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert (found.value, found.warnings) == (pytest.approx(expected, rel=1e-12), ())


def test_covariances_that_do_not_commute():
    first, second = (np.cov(features(seed, 200, shift=seed), rowvar=False) for seed in (0, 1))
    root = scipy.linalg.sqrtm(first)
    trace = np.sqrt(np.linalg.eigvalsh(root @ second @ root)).sum()
    expected = np.trace(first) + np.trace(second) - 2 * trace
    found = frechet_distance(from_covariance(np.zeros(12), first), from_covariance(np.zeros(12), second))
    assert found.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("first_count", "second_count"), [(5, 5), (40, 64), (200, 20), (2, 2)])
def test_fewer_pictures_than_features(first_count, second_count):
    """The trace of the root is then the sum of the singular values of the centered features' product."""
    a, b = features(0, first_count, 64).astype(float), features(1, second_count, 64, 0.1).astype(float)
    found = frechet_distance(moments_of(a), moments_of(b))
    shift = a.mean(axis=0) - b.mean(axis=0)
    a, b = ((each - each.mean(axis=0)) / np.sqrt(len(each) - 1) for each in (a, b))
    trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = shift @ shift + (a**2).sum() + (b**2).sum() - 2 * trace
    assert found.value == pytest.approx(expected, rel=1e-4)
    few = dict.fromkeys(count for count in (first_count, second_count) if count <= 64)
    said = [warning.split(",")[0] for warning in found.warnings]
    assert said == [f"a set has {count} pictures for 64 features" for count in few]


def test_a_set_and_itself_and_constant_features():
    moments = moments_of(features(0, 500))
    assert 0 <= frechet_distance(moments, moments).value < 1e-10
    first, second = moments_of(np.ones((20, 3))), moments_of(np.full((20, 3), 3.0))
    assert frechet_distance(first, second).value == pytest.approx(12)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 2e-3j, None])
def test_root_that_is_not_finite_or_not_real(monkeypatch, spoil):
    """None: SciPy gives up."""
    true_root, calls = scipy.linalg.sqrtm, []

    def root(matrix):
        calls.append(matrix)
        if len(calls) > 1:
            return true_root(matrix)
        if spoil is None:
            raise scipy.linalg.LinAlgError("no convergence")
        return true_root(matrix) + np.diag(np.full(len(matrix), spoil))

    first, second = moments_of(features(0, 200)), moments_of(features(1, 200, shift=0.1))
    expected = frechet_distance(first, second).value
    monkeypatch.setattr(fid.scipy.linalg, "sqrtm", root)
    found = frechet_distance(first, second)
    assert found.value == pytest.approx(expected, rel=1e-3)
    (warning,) = found.warnings
    assert warning == "the product of the covariances has no finite real root; 1e-06 was added to their diagonals"
    offset = 1e-6 * np.eye(12)
    np.testing.assert_allclose(calls[1], (first.covariance() + offset) @ (second.covariance() + offset), rtol=1e-9)


def test_small_imaginary_parts_are_dropped_and_no_root_raises(monkeypatch):
    first, second = moments_of(features(0, 200)), moments_of(features(1, 200, shift=0.1))
    expected, true_root = frechet_distance(first, second), scipy.linalg.sqrtm
    monkeypatch.setattr(fid.scipy.linalg, "sqrtm", lambda matrix: true_root(matrix) + 9e-4j * np.eye(12))
    assert frechet_distance(first, second) == expected
    monkeypatch.setattr(fid.scipy.linalg, "sqrtm", lambda matrix: np.full_like(matrix, np.nan))
    with pytest.raises(ValueError, match="no finite real root, even with 1e-06"):
        frechet_distance(first, second)


def test_pictures_in_batches_of_any_size(monkeypatch):
    monkeypatch.setattr(fid, "_BLOCK_PICTURES", 16)
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), np.uint8)
    colors = images.reshape(90, -1, 3).mean(axis=1)

    def extract(chunk):
        assert len(chunk) <= 16
        return chunk.reshape(len(chunk), -1, 3).mean(axis=1)

    pictures = PictureMoments(extract, 3)
    for batch in (images[:50], images[50:50], images[50:86].reshape(2, 18, 8, 8, 3), images[86], images[87:]):
        pictures.add(batch)
    assert pictures.moments.count == 90
    np.testing.assert_allclose(pictures.moments.mean, colors.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(pictures.moments.covariance(), np.cov(colors, rowvar=False), rtol=1e-9)
    with pytest.raises(ValueError, match=r"must be uint8 .*, got float64 \(90, 8, 8, 3\)"):
        pictures.add(images / 255.0)
