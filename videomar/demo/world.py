"""The demo world: one coloured shape over a soft gradient, moving as a sentence says.

Endless and seeded. For most sentences the first frame and the sentence decide every later frame, so a generated
continuation can be measured against the true one; for those of `chance.CHANCES` the future is drawn. Knows nothing of
models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from videomar.demo.chance import CHANCES, draw
from videomar.errors import InputError

SIZE = 64  # pixels, both ways
FRAMES = 17  # 1 + 2 * 8: three latent frames

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.25),
    "blue": (0.20, 0.40, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.70, 0.25, 0.85),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "diamond")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.7, "quickly": 1.5}  # pixels a frame
MOTIONS = tuple(f"moves {d} {s}" for d in DIRECTIONS for s in SPEEDS) + (
    "falls",
    "bounces",
    "grows",
    "shrinks",
    "stays still",
)
FALL_GRAVITY = 0.22  # pixels a frame, squared
BOUNCE_GRAVITY = 0.5
RESTITUTION = 0.8  # share of the speed kept at the floor
DRIFT = 1.1  # pixels a frame
GROWTH = {"grows": 0.6, "shrinks": -0.5}  # change of radius over 16 frames, as a share
MARGIN = 1.0  # pixels kept free at every edge
EDGE = 2.0  # pixels over which an outline fades: a soft edge shows sub-pixel motion


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip."""

    color: str
    shape: str
    motion: str
    x: float  # centre in the first frame, pixels
    y: float
    radius: float
    corner_colors: tuple[tuple[float, float, float], tuple[float, float, float]]
    gradient_angle: float  # radians
    outcome: str = ""  # which of the motion's futures, where there are several

    @property
    def prompt(self) -> str:
        return f"a {self.color} {self.shape} {self.motion}"


def trajectory(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """True centre and radius in every frame: [frames, 3] float64 as (x, y, radius), pixels.

    Raises InputError when the motion has several futures and the scene does not say which.
    """
    t = np.arange(frames, dtype=np.float64)
    x, y, radius = np.full(frames, scene.x), np.full(frames, scene.y), np.full(frames, scene.radius)
    verb, *rest = _happens(scene).split()
    if verb == "drifts":
        dx, dy = DIRECTIONS[rest[0]]
        x, y = x + dx * DRIFT * t, y + dy * DRIFT * t
    elif verb == "moves":
        (dx, dy), speed = DIRECTIONS[rest[0]], SPEEDS[rest[1]]
        x, y = x + dx * speed * t, y + dy * speed * t
    elif verb == "falls":
        y = y + 0.5 * FALL_GRAVITY * t**2
    elif verb == "bounces":
        y = _bounce(scene.y, size - MARGIN - scene.radius, frames)
    elif verb in GROWTH:
        radius = radius * (1 + GROWTH[verb] * t / 16)
    return np.stack([x, y, radius], axis=1)


def _happens(scene: Scene) -> str:
    if scene.motion in CHANCES and scene.outcome not in CHANCES[scene.motion]:
        raise InputError(
            f"'{scene.motion}' has several futures and the scene's outcome is {scene.outcome!r}, expected one of "
            f"{', '.join(CHANCES[scene.motion])}; `futures` gives a scene for each"
        )
    return scene.outcome or scene.motion


def futures(scene: Scene) -> list[Scene]:
    """The scene once for each future that its sentence may have: one for most, several for those of `CHANCES`."""
    return [replace(scene, outcome=outcome) for outcome in CHANCES.get(scene.motion, ("",))]


def _bounce(start: float, floor: float, frames: int) -> np.ndarray:
    """Height of a ball let go at `start`, in closed form per flight so that no integration error builds up."""
    heights, clock, top, speed = [], 0.0, start, 0.0
    for t in range(frames):
        while True:
            # time until the floor, from height `top` with upward speed `speed`
            flight = (speed + np.sqrt(speed**2 + 2 * BOUNCE_GRAVITY * max(floor - top, 0.0))) / BOUNCE_GRAVITY
            if t - clock < flight or flight < 1e-6:
                break
            impact = BOUNCE_GRAVITY * flight - speed
            clock, top, speed = clock + flight, floor, impact * RESTITUTION
        s = t - clock
        heights.append(min(top - speed * s + 0.5 * BOUNCE_GRAVITY * s**2, floor))
    return np.array(heights)


def sample_scene(rng: np.random.Generator, motion: str | None = None, frames: int = FRAMES, size: int = SIZE) -> Scene:
    """One random scene whose circle of `radius` stays inside the picture for `frames` frames.

    Corners of diamonds and triangles may poke out by a few pixels. Raises InputError when the motion is too long for
    the picture.
    """
    motion = motion or MOTIONS[rng.integers(len(MOTIONS))]
    radius = float(rng.uniform(7.5, 11.0))
    if motion == "shrinks":
        radius += 2.5
    elif motion in CHANCES:
        radius = float(rng.uniform(9.5, 12.0))  # large, so that many tokens must agree
    # Where can the centre be? Try the motion from the middle of nowhere and see how far it reaches.
    reach = Scene("red", "circle", motion, 0.0, 0.0, radius, ((0,) * 3, (0,) * 3), 0.0)  # type: ignore[arg-type]
    if motion == "bounces":
        low_y, high_y = radius + MARGIN, size - MARGIN - radius - 14.0
        low_x, high_x = radius + MARGIN, size - MARGIN - radius
    else:
        path = np.concatenate([trajectory(future, frames, size) for future in futures(reach)])
        r = path[:, 2]
        low_x, high_x = (r + MARGIN - path[:, 0]).max(), (size - MARGIN - r - path[:, 0]).min()
        low_y, high_y = (r + MARGIN - path[:, 1]).max(), (size - MARGIN - r - path[:, 1]).min()
        if low_x > high_x or low_y > high_y or r.min() < 2:
            raise InputError(f"'{motion}' does not fit {frames} frames of {size} pixels; ask for fewer frames")
    base = rng.uniform(0.15, 0.40, 3)
    step = rng.uniform(-0.12, 0.12, 3)
    outcome = draw(rng, motion) if motion in CHANCES else ""
    return Scene(
        color=tuple(COLORS)[rng.integers(len(COLORS))],
        shape=SHAPES[rng.integers(len(SHAPES))],
        motion=motion,
        x=float(rng.uniform(low_x, high_x)),
        y=float(rng.uniform(low_y, high_y)),
        radius=radius,
        corner_colors=(tuple(base - step), tuple(base + step)),  # type: ignore[arg-type]
        gradient_angle=float(rng.uniform(0, 2 * np.pi)),
        outcome=outcome,
    )


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Distance to the outline, negative inside; `r` is the radius of a circle of about the same size."""
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.86 * r
    if shape == "diamond":
        return (np.abs(dx) + np.abs(dy)) / 2**0.5 - 0.82 * r
    if shape == "triangle":  # equilateral, pointing up; its centroid is at the centre
        inner = 0.66 * r
        return np.maximum(dy, np.abs(dx) * (3**0.5) / 2 - dy / 2) - inner
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def background(scene: Scene, size: int = SIZE) -> np.ndarray:
    """The picture without the shape: [size, size, 3] float32 in 0..1."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    ramp = axis[None, :] * np.cos(scene.gradient_angle) + axis[:, None] * np.sin(scene.gradient_angle) + 0.5
    low, high = np.asarray(scene.corner_colors[0]), np.asarray(scene.corner_colors[1])
    return (low + (high - low) * ramp[..., None]).astype(np.float32)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE, start: int = 0) -> np.ndarray:
    """Draw a clip from frame `start` on: [frames - start, size, size, 3] uint8, RGB."""
    path = trajectory(scene, frames, size)[start:].astype(np.float32)
    axis = np.arange(size, dtype=np.float32) + 0.5
    dx = axis[None, None, :] - path[:, 0, None, None]
    dy = axis[None, :, None] - path[:, 1, None, None]
    distance = _signed_distance(scene.shape, dx, dy, path[:, 2, None, None])
    cover = np.clip(0.5 - distance / EDGE, 0, 1)[..., None].astype(np.float32)
    color = np.asarray(COLORS[scene.color], np.float32)
    clip = background(scene, size)[None] * (1 - cover) + color * cover
    # The gradient overshoots in the corners: clip before the cast, which would wrap.
    return np.clip(np.round(clip * 255), 0, 255).astype(np.uint8)


def vocabulary() -> list[str]:
    """Every word a prompt of this world may hold, in a fixed order."""
    words = {"a", *COLORS, *SHAPES, *(word for motion in (*MOTIONS, *CHANCES) for word in motion.split())}
    return sorted(words)
