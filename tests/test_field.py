"""The neural field and its fit against slow, obvious computations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from threedim import cameras
from threedim.consistency import field as nf
from threedim.consistency import fit as ff

TINY = nf.FieldSettings(
    levels=2, base_resolution=4, growth=3.0, table_size_log2=8, features=2, samples=8, proposal_bins=16,
    proposal_resolution=8, proposal_updates=64, rays_per_step=64, rays_per_chunk=64, num_steps=6,
)  # fmt: skip
DENSE = dataclasses.replace(TINY, levels=1, proposal_bins=8, samples=4)
QUICK = dataclasses.replace(DENSE, orientation_weight=0.0)
BOUNDS = nf.scene_bounds(2.0, 2.0)


def make_rays(views=5, size=6, seed=0):
    rng, K = np.random.default_rng(seed), cameras.intrinsics(1.1 * size, size)
    camera = cameras.orbit(np.linspace(0, 300, views), rng.uniform(-60, 60, views), 2.0, K)
    _, directions = camera.rays(size, size)
    colors = rng.uniform(size=(views, size * size, 3)).astype(np.float32)
    return ff.Rays(jnp.asarray(camera.t), jnp.asarray(directions.reshape(views, -1, 3)), jnp.asarray(colors))


def loud_params(seed=0, settings=TINY):
    """Parameters with entries large enough to matter, which fresh ones are not."""
    params = nf.init_params(jax.random.key(seed), settings)
    rng = np.random.default_rng(seed)
    return params | {"grid": jnp.asarray(rng.normal(size=params["grid"].shape), jnp.float32)}


def test_encoding_agrees_with_loops_over_corners():
    params = loud_params()
    grid, rng = np.asarray(params["grid"], np.float64), np.random.default_rng(1)
    positions = np.concatenate([rng.uniform(size=(20, 3)), [[0, 0, 0], [1, 1, 1], [0.25, 1, 0.5]]]).astype(np.float32)
    expected = np.zeros((len(positions), 4))
    assert TINY.table_sizes() == [125, 256]  # one dense level, one hashed
    for point, position in enumerate(positions.astype(np.float64)):
        for level, (cells, offset) in enumerate(((4, 0), (12, 125))):
            low = np.minimum(np.floor(position * cells), cells - 1).astype(int)
            inside = position * cells - low
            for corner in np.ndindex(2, 2, 2):
                x, y, z = (int(value) for value in low + corner)
                if level == 0:
                    index = (x * 5 + y) * 5 + z
                else:
                    index = (x ^ (y * 2654435761) % 2**32 ^ (z * 805459861) % 2**32) % 256
                weight = np.prod(np.where(corner, inside, 1 - inside))
                expected[point, 2 * level : 2 * level + 2] += weight * grid[offset + index]

    @jax.jit
    def encode(positions):
        indices, fractions = nf.locate(positions, TINY)
        return nf.interpolate(params["grid"][indices], fractions)

    np.testing.assert_allclose(encode(positions), expected, atol=2e-5)


def test_normals_are_the_negative_gradient_of_the_density():
    params = loud_params(3)
    # In one cell of the finest level, so that differences do not cross a kink of the interpolation.
    positions = (np.asarray([[3.4, 7.6, 5.5], [8.3, 2.4, 10.5], [6.5, 6.6, 6.4]]) / 12).astype(np.float32)
    evaluate = jax.jit(functools.partial(nf.density_and_color, settings=TINY, normals_of=slice(1, 3)))
    densities, colors, normals = evaluate(params, positions)
    step = 1e-3
    moves = np.concatenate([np.zeros((1, 3)), *([step * axis, -step * axis] for axis in np.eye(3))])
    moved = jnp.asarray(positions[:, None] + moves, jnp.float32).reshape(-1, 3)
    values = np.asarray(jax.jit(nf.density, static_argnums=2)(params, moved, TINY), np.float64).reshape(3, 7)
    np.testing.assert_allclose(densities, values[:, 0], rtol=1e-5)
    assert np.all((colors > 0) & (colors < 1))
    for value, normal in zip(np.log(values[1:, 1:]), np.asarray(normals), strict=True):
        slope = (value[0::2] - value[1::2]) / (2 * step)
        np.testing.assert_allclose(normal, -slope / np.linalg.norm(slope), atol=0.02)


def test_volume_weights_agree_with_a_loop():
    rng = np.random.default_rng(0)
    densities, lengths = rng.exponential(3, (4, 7)), rng.uniform(0.01, 0.4, (4, 7))
    expected = np.zeros((4, 7))
    for ray in range(4):
        transmittance = 1.0
        for sample in range(7):
            opacity = 1 - np.exp(-densities[ray, sample] * lengths[ray, sample])
            expected[ray, sample] = transmittance * opacity
            transmittance *= 1 - opacity
    np.testing.assert_allclose(jax.jit(nf.volume_weights)(densities, lengths), expected, atol=1e-6)


def test_distortion_agrees_with_the_double_sum():
    rng = np.random.default_rng(0)
    weights, edges = rng.uniform(size=(3, 6)), np.sort(rng.uniform(size=(3, 7)))
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    expected = [
        sum(w[i] * w[j] * abs(m[i] - m[j]) for i in range(6) for j in range(6))
        + sum(w[i] ** 2 * (e[i + 1] - e[i]) for i in range(6)) / 3
        for w, m, e in zip(weights, middles, edges, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(ff.distortion_loss)(weights, edges), expected, rtol=1e-5)


def test_orientation_punishes_only_surfaces_that_face_away():
    directions, weights = jnp.asarray([[0.0, 0.0, 1.0]]), jnp.asarray([[0.5, 0.25]])
    towards, away = [0.0, 0.6, -0.8], [0.6, 0.0, 0.8]
    loss = jax.jit(ff.orientation_loss)
    np.testing.assert_allclose(loss(weights, jnp.asarray([[towards, towards]]), directions), [0.0])
    np.testing.assert_allclose(loss(weights, jnp.asarray([[towards, away]]), directions), [0.25 * 0.64], rtol=1e-6)


def test_bounds_are_the_papers():
    bounds = nf.scene_bounds(1.2, 1.6)
    np.testing.assert_allclose(bounds, (0.45, 2.4, 0.8))
    for wrong in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="camera distances"):
            nf.scene_bounds(*wrong)


def test_rays_are_clipped_to_the_box_and_the_bounds():
    bounds = nf.Bounds(1.0, 3.0, 1.0)
    origins = jnp.asarray([[0, 0, -2.5], [0, 0, -1.5], [0, 5.0, -2.5], [0.0, 0, -0.5]])
    enter, leave = jax.jit(nf.clip_to_box)(origins, jnp.tile(jnp.asarray([[0.0, 0, 1]]), (4, 1)), bounds)
    np.testing.assert_allclose(enter[jnp.asarray([0, 1, 3])], [1.5, 1.0, 1.0])
    np.testing.assert_allclose(leave[jnp.asarray([0, 1, 3])], [3.0, 2.5, 1.5])
    assert enter[2] == leave[2]


def test_intervals_are_short_where_something_is_seen():
    proposal = np.zeros((8, 8, 8), np.float32)
    proposal[:, :, 5] = 1000.0  # a wall, z in [0.25, 0.5] of [-1, 1]
    origins, directions = jnp.asarray([[0.1, 0.1, -2.0]]), jnp.asarray([[0.0, 0, 1]])
    propose = jax.jit(lambda proposal: nf.propose_edges(proposal, origins, directions, BOUNDS, 16, 64, None)[0])
    edges = np.asarray(propose(proposal))
    assert np.all(np.diff(edges) >= 0)
    np.testing.assert_allclose(edges[[0, -1]], [1.0, 3.0], atol=1e-6)
    assert np.sum((edges > 2.2) & (edges < 2.55)) >= 10
    empty = np.asarray(propose(np.zeros_like(proposal)))
    np.testing.assert_allclose(np.diff(empty[1:-1]), np.diff(empty[1:-1])[0], rtol=1e-3)


def test_schedule_falls_over_100_steps_and_stays():
    rate = ff.learning_rate(nf.FieldSettings())
    np.testing.assert_allclose([rate(0), rate(50), rate(100), rate(999)], [0.01, 0.0055, 0.001, 0.001], rtol=1e-5)


def test_weight_decay_is_decoupled_and_gradients_are_clipped():
    optimizer = ff.make_optimizer(nf.FieldSettings())
    params = {"a": jnp.asarray([2.0, -3.0])}
    updates, _ = optimizer.update({"a": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.01 * 0.1 * 2, 0.01 * 0.1 * 3], rtol=1e-5)
    _, state = optimizer.update({"a": jnp.asarray([30.0, 40.0])}, optimizer.init(params), params)
    (moments,) = (part.mu for part in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(part, "mu"))
    np.testing.assert_allclose(moments["a"], [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


def test_penalties_raise_the_loss():
    params, rays, key = loud_params(settings=DENSE), make_rays(), jax.random.key(1)
    origins = jnp.repeat(rays.origins, 36, axis=0)
    flat = origins, rays.directions.reshape(-1, 3), rays.colors.reshape(-1, 3), jnp.full(180, 1 / 180)

    def loss(**weights):
        settings = dataclasses.replace(DENSE, orientation_every=1, **weights)
        return ff._losses(params, jnp.ones((8, 8, 8)), *flat, key, BOUNDS, settings)

    pairs = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5))
    losses = jax.jit(lambda: [loss(distortion_weight=one, orientation_weight=other) for one, other in pairs])
    without, distorted, oriented = losses()
    assert without[0] == without[1] > 0
    # Half of at most 1, the largest distance; and of at most 1, a normal along the ray.
    assert without[0] + 1e-4 < distorted[0] < without[0] + 0.5
    assert without[0] + 1e-4 < oriented[0] < without[0] + 0.5
    np.testing.assert_allclose([distorted[1], oriented[1]], without[1], rtol=1e-6)


def test_all_pixels_count_once_whatever_the_chunks():
    # With a single interval per ray nothing is drawn at random, and 5 views of 36 pixels fill no chunk evenly.
    base = dataclasses.replace(DENSE, samples=1, rays_per_step=0, orientation_every=1)
    state = ff.init_state(jax.random.key(0), base)._replace(params=loud_params(settings=DENSE))

    def gradient(chunk):
        settings = dataclasses.replace(base, rays_per_chunk=chunk)
        run = jax.jit(functools.partial(ff._gradient, bounds=BOUNDS, settings=settings))
        return run(state, make_rays(), jnp.arange(1, 181), jax.random.key(1))

    rendering = nf.render(nf.Field(state.params, state.proposal), *make_rays()[:2], BOUNDS, base)
    assert rendering.colors.shape == (5, 36, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient(180), gradient(7))


def test_sampled_pixels_estimate_the_mean_over_all():
    rng, colors = np.random.default_rng(0), np.ones((400, 3), np.float32)
    colors[rng.permutation(400)[:40], 1] = 0.5
    seen, loss = jnp.cumsum(jnp.asarray(colors[:, 1] < 1)), rng.uniform(1, 2, 400)
    draw = jax.jit(jax.vmap(lambda key: ff.sample_pixels(key, jnp.asarray(colors), seen, 100)))
    indices, weights = map(np.asarray, draw(jax.random.split(jax.random.key(0), 400)))
    estimates = np.sum(weights * loss[indices], axis=1)
    assert abs(estimates.mean() - loss.mean()) < 4 * estimates.std() / 20
    assert 0.5 < np.mean(colors[indices, 1] < 1) < 0.6  # half of the draws, and a tenth of the other half
    white, none = jnp.ones((400, 3)), jnp.zeros(400, jnp.int32)
    indices, weights = jax.jit(ff.sample_pixels, static_argnums=3)(jax.random.key(0), white, none, 100)
    np.testing.assert_allclose(weights, 0.01, rtol=1e-6)
    assert len(set(np.asarray(indices).tolist())) > 60


def make_pair():
    rays = [make_rays(seed=seed) for seed in (0, 1)]
    return jax.random.split(jax.random.key(5), 2), jax.tree.map(lambda *leaves: jnp.stack(leaves), *rays)


@pytest.mark.slow
def test_fields_do_not_know_of_their_neighbors():
    keys, rays = make_pair()
    seen = []
    there = ff.fit(keys, rays, BOUNDS, QUICK, lambda done, error: seen.append((done, error.shape)), steps_per_call=3)
    assert seen == [(3, (2,)), (6, (2,))]
    swapped = ff.fit(keys[::-1], jax.tree.map(lambda leaf: leaf[::-1], rays), BOUNDS, QUICK, steps_per_call=3)

    def picture(fields, index):
        field = jax.tree.map(lambda leaf: leaf[index], fields)
        return np.asarray(nf.render(field, rays.origins[1], rays.directions[1], BOUNDS, QUICK).colors)

    pictures = [picture(there, 1), picture(swapped, 0), picture(there, 0)]
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-3)
    assert np.abs(pictures[0] - pictures[2]).max() > 1e-2
    assert 0 <= pictures[0].min() <= pictures[0].max() <= 1 + 1e-5


def test_what_cannot_be_fitted_is_refused():
    keys, rays = make_pair()
    with pytest.raises(ValueError, match="origins, directions, colors"):
        ff.fit(keys, rays._replace(colors=rays.colors[:, :, :5]), BOUNDS, QUICK)
    with pytest.raises(FloatingPointError, match="after 3 steps"):
        ff.fit(keys, rays._replace(colors=rays.colors * np.nan), BOUNDS, QUICK, steps_per_call=3)
    for field, value in (("levels", 0), ("growth", 0.5), ("distortion_weight", -1.0), ("average_decay", 1.0)):
        with pytest.raises(ValueError, match=field):
            dataclasses.replace(QUICK, **{field: value})
