from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.demo.chance import CHANCES
from videomar.demo.world import (
    BOUNCE_GRAVITY,
    COLORS,
    FRAMES,
    MARGIN,
    MOTIONS,
    RESTITUTION,
    SHAPES,
    SIZE,
    Scene,
    background,
    render,
    sample_scene,
    trajectory,
    vocabulary,
)

seeds = st.integers(0, 2**32 - 1)
motions = st.sampled_from(MOTIONS)
# How far an outline reaches left, right, up and down of the centre, in radii: from the definition of each shape.
REACH = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.86, 0.86, 0.86, 0.86),
    "diamond": (0.82 * 2**0.5,) * 4,
    "triangle": (0.66 * 3**0.5, 0.66 * 3**0.5, 2 * 0.66, 0.66),
}


def scene_of(seed: int, motion: str | None = None, shape: str | None = None) -> Scene:
    scene = sample_scene(np.random.default_rng(seed), motion)
    return replace(scene, shape=shape) if shape else scene


def outside(scene: Scene) -> float:
    """How far the outline pokes out of the picture at worst, pixels; negative when it stays inside."""
    x, y, r = trajectory(scene).T
    left, right, up, down = REACH[scene.shape]
    return float(
        max((left * r - x).max(), (x + right * r).max() - SIZE, (up * r - y).max(), (y + down * r).max() - SIZE)
    )


@settings(max_examples=20, deadline=None)
@given(seeds, motions)
def test_same_seed_same_clip(seed, motion):
    first, second = scene_of(seed, motion), scene_of(seed, motion)
    assert first == second
    assert np.array_equal(render(first), render(second))


@settings(max_examples=300, deadline=None)
@given(seeds, motions)
def test_the_circle_of_the_scenes_radius_keeps_the_margin_in_every_frame(seed, motion):
    x, y, r = trajectory(scene_of(seed, motion)).T
    for centre in (x, y):
        assert (centre - r).min() >= MARGIN - 1e-9
        assert (centre + r).max() <= SIZE - MARGIN + 1e-9


@settings(max_examples=300, deadline=None)
@given(seeds, motions, st.sampled_from(SHAPES))
def test_only_corners_of_diamonds_and_triangles_poke_out_and_no_further_than_their_reach(seed, motion, shape):
    # Corners lie 1.16 (diamond) and 1.32 (triangle's tip) radii from the centre; 1 radius + MARGIN is kept free.
    scene = scene_of(seed, motion, shape)
    largest = trajectory(scene)[:, 2].max()
    assert outside(scene) <= (max(REACH[shape]) - 1) * largest - MARGIN + 1e-9
    if shape in ("circle", "square"):
        assert outside(scene) <= -MARGIN + 1e-9


@settings(max_examples=60, deadline=None)
@given(seeds, motions, st.sampled_from(SHAPES))
def test_a_shape_fully_inside_has_its_drawn_centroid_on_the_trajectory(seed, motion, shape):
    scene = replace(scene_of(seed, motion, shape), color="white", corner_colors=((0.0,) * 3, (0.0,) * 3))
    if outside(scene) > -1:  # the soft edge reaches one pixel further than the outline
        return
    cover = render(scene)[..., 0] / (255 * COLORS["white"][0])  # white on black: grey level is cover
    axis, area = np.arange(SIZE) + 0.5, cover.sum(axis=(1, 2))
    x, y = (cover * axis).sum(axis=(1, 2)) / area, (cover * axis[:, None]).sum(axis=(1, 2)) / area
    off = np.hypot(*(np.stack([x, y], axis=1) - trajectory(scene)[:, :2]).T)
    assert off.max() < 0.35


@settings(max_examples=20, deadline=None)
@given(st.floats(10, 50), st.floats(7.5, 11), st.integers(1, 120))
def test_a_bounce_never_goes_below_the_floor(y, radius, frames):
    scene = replace(scene_of(0, "bounces"), y=min(y, SIZE - MARGIN - radius), radius=radius)
    heights = trajectory(scene, frames)[:, 1]
    assert len(heights) == frames and np.isfinite(heights).all()
    assert heights.max() <= SIZE - MARGIN - radius + 1e-9
    assert heights.min() >= scene.y - 1e-9


def test_a_bounce_agrees_with_a_small_step_simulation():
    scenes = [scene_of(seed, "bounces") for seed in range(50)]
    y, floor = np.array([s.y for s in scenes]), np.array([SIZE - MARGIN - s.radius for s in scenes])
    speed, steps_a_frame, seen = np.zeros_like(y), 2000, []
    for step in range(40 * steps_a_frame):
        if step % steps_a_frame == 0:
            seen.append(y)
        dt = 1 / steps_a_frame
        y, speed = y + speed * dt + BOUNCE_GRAVITY * dt**2 / 2, speed + BOUNCE_GRAVITY * dt  # downwards is positive
        hit = (y > floor) & (speed > 0)
        y, speed = np.where(hit, floor, y), np.where(hit, -RESTITUTION * speed, speed)
    closed = np.stack([trajectory(scene, 40)[:, 1] for scene in scenes], axis=1)
    assert np.abs(np.array(seen) - closed).max() < 0.05


def test_falls_agrees_with_hand_values():
    scene = replace(scene_of(0, "falls"), x=30.0, y=12.0, radius=8.0)
    path = trajectory(scene)
    # 0.22 pixels a frame squared: 0.11 t^2
    assert path[[0, 1, 2, 10, 16], 1] == pytest.approx([12.0, 12.11, 12.44, 23.0, 40.16])
    assert (path[:, 0] == 30).all() and (path[:, 2] == 8).all()


@pytest.mark.parametrize(
    ("motion", "last"),
    [
        ("moves left slowly", (32 - 11.2, 32, 8)),
        ("moves right quickly", (32 + 24, 32, 8)),
        ("moves up quickly", (32, 32 - 24, 8)),
        ("moves down slowly", (32, 32 + 11.2, 8)),
        ("grows", (32, 32, 12.8)),
        ("shrinks", (32, 32, 4)),
        ("stays still", (32, 32, 8)),
    ],
)
def test_after_sixteen_frames_a_motion_is_where_its_words_say(motion, last):
    scene = replace(scene_of(0, motion), x=32.0, y=32.0, radius=8.0)
    assert trajectory(scene)[16] == pytest.approx(last)


def all_prompts():
    scene = scene_of(0)
    motions = (*MOTIONS, *CHANCES)
    return [replace(scene, color=c, shape=s, motion=m).prompt for c in COLORS for s in SHAPES for m in motions]


def test_every_prompts_words_are_in_the_vocabulary_and_no_word_is_idle():
    assert {word for prompt in all_prompts() for word in prompt.split()} == set(vocabulary())
    assert vocabulary() == sorted(set(vocabulary()))


def test_prompts_are_distinct():
    prompts = all_prompts()
    assert len(prompts) == 6 * 4 * (13 + 4) == len(set(prompts))


@settings(max_examples=20, deadline=None)
@given(seeds, motions, st.integers(0, FRAMES - 1))
def test_a_render_from_frame_k_is_the_tail_of_the_whole(seed, motion, start):
    scene = scene_of(seed, motion)
    whole = render(scene)
    assert whole.shape == (FRAMES, SIZE, SIZE, 3) and whole.dtype == np.uint8
    assert np.array_equal(render(scene, start=start), whole[start:])


def test_the_background_of_a_clip_is_the_gradient_in_every_corner():
    # 1 scene of 400: the ramp runs from -0.2 to 1.2 along a diagonal and takes a channel of 0.03 below 0.
    scene = scene_of(312)
    level = np.clip(np.round(background(scene) * 255), 0, 255)[-1, 0]
    assert np.abs(render(scene, 1)[0, -1, 0] - level).max() <= 1
